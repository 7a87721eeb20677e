import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dualform.models.loading.identity import model_identity
from dualform.runs.sweep_cells import DigestCache, cells_of, combined_cell
from dualform.runs.sweep_config import Group, SweepConfig, expand
from dualform.tasks.digest import task_digest
from dualform.tasks.sources import load_task
from tests.studies.small import write_choices, write_csv
from tests.tiny import save_tiny


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny("gpt2", tmp_path / "gpt2")
    write_csv(tmp_path / "tickets.csv")
    return tmp_path


def group(**changes: Any) -> Group:
    task = {"task": "tickets.csv", "text": "body", "label": "topic"}
    given: dict[str, Any] = {"models": ["gpt2"], "tasks": [task], "seeds": "1..3", "settings": {"k": 4}}
    (result,) = expand(SweepConfig(**(given | changes)))
    return result


def digests(**changes: Any) -> dict[int | None, str]:
    return {cell.seed: cell.key.digest for cell in cells_of(group(**changes), DigestCache())}


def test_a_comparison_has_a_cell_per_seed_and_the_later_ones_wait_for_the_first(place: Path) -> None:
    first, second, third = cells_of(group(), DigestCache())

    assert [cell.seed for cell in (first, second, third)] == [1, 2, 3]
    assert first.depends_on == ()
    assert second.depends_on == third.depends_on == (first.key,)
    assert set(second.pieces) == {"seed 1", "seed 2"}


def test_where_each_seed_searches_for_itself_none_waits(place: Path) -> None:
    assert [cell.depends_on for cell in cells_of(group(settings={"tune": "each"}), DigestCache())] == [(), (), ()]


def test_the_same_settings_data_and_model_are_the_same_cells_wherever_they_lie(place: Path) -> None:
    before = digests()
    assert digests() == before
    assert digests(name="another sweep") == before
    # More seeds add cells; how an interval is computed changes none.
    assert digests(seeds="1..4").items() >= before.items()
    assert digests(settings={"k": 4, "resamples": 20}) == before


@pytest.mark.parametrize(
    "changes",
    [{"settings": {"k": 8}}, {"settings": {"k": 4, "rates": [1e-3]}}, {"seeds": "2..4"}],
)
def test_another_setting_is_another_cell(place: Path, changes: dict[str, Any]) -> None:
    # Of seeds 2 to 4 the rates are those of seed 2, not of seed 1.
    assert not set(digests(**changes).values()) & set(digests().values())


def test_another_row_or_weight_is_another_cell(place: Path) -> None:
    before = digests()
    text = (place / "tickets.csv").read_text()
    (place / "tickets.csv").write_text(text.replace("story", "tale", 1))
    assert not set(digests().values()) & set(before.values())

    (place / "tickets.csv").write_text(text)
    assert digests() == before
    shutil.rmtree(place / "gpt2")
    save_tiny("gpt2", place / "gpt2", seed=1)
    assert not set(digests().values()) & set(before.values())


def test_another_file_that_a_fold_reads_is_another_cell(place: Path) -> None:
    settings = {"k": 4, "fold": {"calibration": "texts.txt"}}
    (place / "texts.txt").write_text("one\ntwo\n")
    before = digests(settings=settings)
    (place / "texts.txt").write_text("one\nthree\n")

    assert not set(digests(settings=settings).values()) & set(before.values())


def test_a_choice_among_seeds_and_other_studies_are_one_cell(place: Path) -> None:
    (chosen,) = cells_of(group(settings={"k": 4, "select": "icl"}), DigestCache())
    (stability,) = cells_of(group(study="stability"), DigestCache())

    assert chosen.seed is None
    assert stability.seed is None
    assert chosen.key != stability.key


def test_what_seeds_are_put_together_to_hangs_on_which_finished(place: Path) -> None:
    every = combined_cell(group(), [1, 2, 3], DigestCache())
    partial = combined_cell(group(), [3, 1], DigestCache())

    assert every.key != partial.key
    assert partial.settings.model_dump()["seeds"] == (1, 3)
    assert set(partial.pieces) == {"seed 1", "seed 3"}
    assert combined_cell(group(settings={"k": 4, "resamples": 20}), [1, 2, 3], DigestCache()).key != every.key


def test_a_model_is_identified_by_its_weights_and_not_by_its_name(place: Path) -> None:
    same = model_identity("gpt2")
    shutil.copytree(place / "gpt2", place / "copy")
    assert model_identity(str(place / "copy")) == same

    weights = place / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    offsets = [
        first["data_offsets"][0] for name, first in json.loads(data[8 : 8 + header]).items() if name != "__metadata__"
    ]
    data[8 + header + max(offsets)] ^= 1
    weights.write_bytes(bytes(data))
    assert model_identity(str(place / "copy")) != same

    weights.write_bytes(b"\xff" * 40)
    assert len(model_identity(str(place / "copy"))) == 16
    assert model_identity("smollm2-135m") != model_identity("gemma3-270m")
    assert model_identity("no/such-model") != model_identity("no/other-model")


def test_a_task_is_identified_by_its_rows_and_not_by_its_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "mine.csv")
    first, second = (load_task(tmp_path / name / "mine.csv", text="body", label="topic") for name in ("one", "two"))
    assert task_digest(first) == task_digest(second)

    other = load_task(tmp_path / "one" / "mine.csv", text="body", label="topic", prompt="{text} is")
    assert task_digest(other) != task_digest(first)
    choices = load_task(write_choices(tmp_path / "c.jsonl"), text="goal", choices="choices")
    assert task_digest(choices) != task_digest(first)

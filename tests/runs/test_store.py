import dataclasses
import errno
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml

from dualform.errors import ConfigError, StorageError
from dualform.result import Result
from dualform.runs import store
from dualform.runs.store import RunFolder, free_folder, read_attention, read_result, write_report
from dualform.studies.comparison.config import read_config
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.summary import examples_table
from dualform.studies.pages import render_page
from dualform.studies.pieces import Piece
from dualform.studies.stability.config import stability_config
from tests.studies.small import small_config, small_lm, small_task

CONFIG = small_config()
OTHER = CONFIG.model_copy(update={"k": 5})
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}


@cache
def comparison() -> Comparison:
    """A finished one; tests only read it."""
    return compare(CONFIG, lm=small_lm(), task=small_task())


def pieces() -> list[Piece]:
    """Its two seeds."""
    return [outcome.to_piece() for outcome in comparison().records]


def finish(folder: RunFolder, output: Comparison | None = None) -> None:
    output = output or comparison()
    folder.finish(output.result, examples_table(output.description, output.records))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cells_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("cells-*/*"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "one", CONFIG)


@pytest.fixture(autouse=True)
def _one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real page, rendered once for each result because it takes a second."""
    monkeypatch.setattr(store, "render_page", lambda result, attention=None: _page(result.to_json()))


@cache
def _page(text: str) -> str:
    return render_page(Result.from_json(text))


@pytest.fixture
def no_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sync of a file fail with a full disk."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_the_first_seed_brings_settings_that_can_be_read_back(folder: RunFolder) -> None:
    # Before that, a run that holds its folder now must stay whole.
    assert names(folder.path) == {"log.txt"}

    folder.put(pieces()[0])

    assert read_config(folder.path / "config.yaml") == CONFIG
    assert "tiny on toy" in (folder.path / "log.txt").read_text()


def test_a_finished_folder_holds_what_was_promised_and_no_pieces(folder: RunFolder) -> None:
    for piece in pieces():
        folder.put(piece)
    assert len(cells_of(folder.path)) == 2

    finish(folder)

    assert names(folder.path) == PROMISED
    assert read_result(folder.path) == comparison().result
    assert (folder.path / "result.json").read_text() == comparison().result.to_json() + "\n"
    table = pq.read_table(folder.path / "examples.parquet")
    assert table.num_rows == 2 * 3 * 8
    assert table.column_names[:5] == ["seed", "learner", "query", "label", "prediction"]
    assert "<html" in (folder.path / "report.html").read_text(encoding="utf-8")
    log = (folder.path / "log.txt").read_text()
    assert "seed 1: finished" in log
    assert all(f"note: {warning}" in log for warning in comparison().result.warnings)


def test_a_stored_seed_is_reused_with_the_same_settings(folder: RunFolder) -> None:
    mine = pieces()[0]
    folder.put(mine)

    theirs = RunFolder(folder.path, CONFIG).get("seed 1", mine.inputs)

    assert theirs is not None
    assert list(theirs.tensors) == list(mine.tensors)
    outcome = SeedRecord.from_piece(theirs)
    assert outcome.rows == comparison().records[0].rows
    for name, tensor in mine.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert folder.get("seed 2", mine.inputs) is None
    assert "seed 1: finished earlier, reused" in (folder.path / "log.txt").read_text()


@pytest.mark.parametrize("changes", [{"k": 5}, {"rates": (1e-3,)}, {"model": "other"}, {"loss_on": "label"}])
def test_a_seed_stored_with_other_settings_is_not_used(folder: RunFolder, changes: dict[str, Any]) -> None:
    folder.put(pieces()[0])

    assert RunFolder(folder.path, CONFIG.model_copy(update=changes)).get("seed 1", pieces()[0].inputs) is None


def test_a_seed_of_other_inputs_is_not_used(folder: RunFolder) -> None:
    folder.put(pieces()[0])

    assert folder.get("seed 1", "other") is None
    assert "seed 1: model or data have changed" in (folder.path / "log.txt").read_text()


def test_a_seed_stored_by_other_source_code_is_not_used(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(pieces()[0])
    monkeypatch.setattr(store, "source_digest", lambda: "of another day")

    assert RunFolder(folder.path, CONFIG).get("seed 1", pieces()[0].inputs) is None


def _no_piece_inside() -> bytes:
    return safetensors.torch.save({"x": torch.zeros(1)})


def _nothing_said_inside() -> bytes:
    return safetensors.torch.save({"x": torch.zeros(1)}, metadata={"piece": json.dumps({"name": "seed 1"})})


def _older_piece_inside() -> bytes:
    return safetensors.torch.save({"x": torch.zeros(1)}, metadata={"outcome": json.dumps({"seed": 1})})


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:100],
        lambda whole: whole[:-8],
        lambda whole: b"\xff" * len(whole),
        lambda whole: _no_piece_inside(),
        lambda whole: _older_piece_inside(),
        lambda whole: _nothing_said_inside(),
    ],
)
def test_a_damaged_piece_is_run_again(folder: RunFolder, damage: Any) -> None:
    folder.put(pieces()[0])
    (cell,) = cells_of(folder.path)
    cell.write_bytes(damage(cell.read_bytes()))

    assert folder.get("seed 1", pieces()[0].inputs) is None
    assert "seed 1: seed-1.safetensors is damaged" in (folder.path / "log.txt").read_text()


def test_a_run_continues_after_a_damaged_piece(folder: RunFolder) -> None:
    for piece in pieces():
        folder.put(piece)
    cells_of(folder.path)[1].write_bytes(b"half")

    again = compare(CONFIG, lm=small_lm(), task=small_task(), pieces=folder)

    assert again.result.similarity == comparison().result.similarity
    log = (folder.path / "log.txt").read_text()
    assert "seed 1: finished earlier" in log
    assert "seed 2: seed-2.safetensors is damaged" in log


HARD_NAMES = [
    "seed 1",
    "seed-1",
    "choosing, seed 1",
    "../../elsewhere, seed 1",
    "a/b, seed 1",
    "a-b, seed 1",
    "größe ü, seed 1",
    f"{'long/' * 60}x, seed 1",
    f"{'long/' * 60}y, seed 1",
    ".",
]


def test_pieces_can_be_named_by_paths_of_any_length(folder: RunFolder) -> None:
    # Studies of several models name their pieces by model, and a model may be a path.
    for number, name in enumerate(HARD_NAMES[2:]):
        folder.put(Piece(name, "abc", {"x": torch.tensor([float(number)])}, {"number": number}))

    cells = cells_of(folder.path)
    assert len(cells) == len(HARD_NAMES[2:])
    assert {cell.parent for cell in cells} == {cells[0].parent}
    assert all(len(cell.name.encode()) < 255 for cell in cells)
    for number, name in enumerate(HARD_NAMES[2:]):
        piece = folder.get(name, "abc")
        assert piece is not None, name
        assert (piece.name, piece.about, float(piece.tensors["x"])) == (name, {"number": number}, float(number))
    assert names(folder.path.parent) == {"one"}


@pytest.mark.parametrize(("stored", "requested"), [("seed 1", "seed-1"), ("seed-1", "seed 1")])
def test_a_piece_is_never_taken_for_another_of_a_like_name(folder: RunFolder, stored: str, requested: str) -> None:
    folder.put(Piece(stored, "abc", {}, {}))

    assert folder.get(requested, "abc") is None
    assert folder.get(stored, "abc") is not None


def test_a_piece_put_twice_is_the_later_one(folder: RunFolder) -> None:
    for number in (1, 2):
        folder.put(Piece("seed 1", "abc", {}, {"number": number}))

    piece = folder.get("seed 1", "abc")
    assert piece is not None
    assert piece.about == {"number": 2}
    assert len(cells_of(folder.path)) == 1


def test_a_folder_holds_any_studys_settings(tmp_path: Path) -> None:
    config = stability_config(("a", "models/b"), "toy")
    folder = RunFolder(tmp_path / "one", config)

    folder.put(Piece("models/b, seed 1", "abc", {}, {}))

    assert "a, models/b on toy" in (folder.path / "log.txt").read_text()
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == config.model_dump(mode="json")
    assert RunFolder(folder.path, config).get("models/b, seed 1", "abc") is not None
    assert RunFolder(folder.path, CONFIG).get("models/b, seed 1", "abc") is None


def test_only_a_runs_own_pieces_are_dropped_at_the_end(folder: RunFolder) -> None:
    RunFolder(folder.path, OTHER).put(pieces()[0])
    others = cells_of(folder.path)
    folder.put(pieces()[0])
    (folder.path / "cells-of-mine").mkdir()
    (folder.path / ".notes.md.1.tmp").write_text("mine")
    assert len(cells_of(folder.path)) == 2

    finish(folder)

    assert cells_of(folder.path) == others
    assert names(folder.path) == PROMISED | {others[0].parent.name, "cells-of-mine", ".notes.md.1.tmp"}


def test_the_result_of_other_settings_is_overwritten_only_on_request(folder: RunFolder) -> None:
    finish(folder)
    log = (folder.path / "log.txt").read_bytes()

    with pytest.raises(ConfigError, match=r"one holds the result of other settings\. .* --out, or give --overwrite"):
        RunFolder(folder.path, OTHER)

    assert (folder.path / "log.txt").read_bytes() == log
    RunFolder(folder.path, CONFIG)
    RunFolder(folder.path, OTHER, overwrite=True)


def test_a_result_that_cannot_be_read_counts_as_other_settings(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("from an older version")

    with pytest.raises(ConfigError, match="--overwrite"):
        RunFolder(tmp_path, CONFIG)


def test_a_free_folder_is_the_base_unless_other_settings_have_a_result_there(folder: RunFolder) -> None:
    base = folder.path
    assert free_folder(base, OTHER) == base

    finish(folder)

    assert free_folder(base, CONFIG) == base
    free = free_folder(base, OTHER)
    assert free.parent == base.parent
    assert re.fullmatch(r"one-[0-9a-f]{6}", free.name)
    assert free_folder(base, OTHER) == free
    assert free_folder(base, CONFIG.model_copy(update={"k": 6})) != free


def test_what_a_killed_run_was_writing_is_dropped_at_the_end(folder: RunFolder) -> None:
    (folder.path / ".examples.parquet.123.tmp").write_bytes(b"half a table")

    finish(folder)

    assert names(folder.path) == PROMISED


@pytest.mark.usefixtures("no_space")
def test_a_full_disk_leaves_no_half_written_settings(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the disk is full\. Free some space .* --out"):
        RunFolder(tmp_path / "one", CONFIG).put(pieces()[0])

    assert "config.yaml" not in names(tmp_path / "one")


def test_a_full_disk_is_reported_when_a_seed_is_stored(folder: RunFolder, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("no_space")

    with pytest.raises(StorageError, match=r"seed-1\.safetensors: the disk is full"):
        folder.put(pieces()[0])

    assert cells_of(folder.path) == []
    assert folder.get("seed 1", pieces()[0].inputs) is None


@pytest.mark.parametrize("step", ["examples.parquet", "report.html", "result.json"])
def test_a_disk_that_fills_at_the_end_leaves_the_earlier_result_unchanged(
    folder: RunFolder, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(folder)
    before = {name: (folder.path / name).read_bytes() for name in PROMISED}
    folder.put(pieces()[0])
    replace = os.replace

    def full_at(source: Path, target: Path) -> None:
        if Path(target).name == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_at)
    other = dataclasses.replace(comparison(), result=comparison().result.model_copy(update={"warnings": ["other"]}))
    with pytest.raises(StorageError, match=rf"{step}: the disk is full"):
        finish(folder, other)

    assert (folder.path / "result.json").read_bytes() == before["result.json"]
    assert (folder.path / step).read_bytes() == before[step]
    assert not [name for name in names(folder.path) if name.endswith(".tmp")]
    # The seeds are not lost: with space made, only the writing is left to do.
    assert len(cells_of(folder.path)) == 1


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match=r"file/run: a part of the path is a file\. .* --out"):
        RunFolder(tmp_path / "file" / "run", CONFIG)


def test_any_other_fault_while_writing_leaves_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(folder)
    before = (folder.path / "result.json").read_bytes()

    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        finish(folder)

    assert (folder.path / "result.json").read_bytes() == before
    assert names(folder.path) == PROMISED


def test_the_report_can_be_written_again_from_the_result(folder: RunFolder) -> None:
    finish(folder)
    page = folder.path / "report.html"
    whole = page.read_bytes()
    page.unlink()
    (folder.path / "examples.parquet").unlink()

    assert write_report(folder.path) == page
    assert page.read_bytes() == whole
    assert b"<html" in whole


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no result\.json: give the folder of a finished run"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", '{"schema": 1}', b"\xff\xfe"],
)
def test_a_result_that_cannot_be_read_is_named(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError, match=r"result\.json is not a result that this version can read") as caught:
        read_result(tmp_path)
    assert "validation error" not in str(caught.value)
    assert "Restore the file" in str(caught.value)


def test_settings_with_words_of_any_language_are_kept(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"label_words": "schlecht,größer"})
    folder = RunFolder(tmp_path / "ä b", config)

    folder.put(Piece("seed 1", "abc", {}, {}))
    assert yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))["label_words"] == "schlecht,größer"
    assert folder.get("seed 1", "abc") is not None


def test_attention_is_stored_next_to_the_result_and_read_back(folder: RunFolder) -> None:
    record = comparison().attention
    assert record is not None

    folder.finish(comparison().result, examples_table(comparison().description, comparison().records), record)

    assert names(folder.path) == PROMISED | {"attention.json"}
    assert read_attention(folder.path) == record


def test_a_run_without_attention_removes_that_of_an_earlier_run(folder: RunFolder) -> None:
    (folder.path / "attention.json").write_text("of another run")

    finish(folder)

    assert names(folder.path) == PROMISED
    assert read_attention(folder.path) is None


def test_the_rebuilt_page_shows_where_learners_looked(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Any] = []
    finish(folder)
    record = comparison().attention
    assert record is not None
    (folder.path / "attention.json").write_text(record.to_json(), encoding="utf-8")

    def page(result: Result, attention: Any) -> str:
        records.append(attention)
        return "a page"

    monkeypatch.setattr(store, "render_page", page)

    write_report(folder.path)

    assert records == [record]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', "\x00"])
def test_a_damaged_record_is_reported_with_a_remedy(folder: RunFolder, text: str) -> None:
    finish(folder)
    (folder.path / "attention.json").write_text(text)

    with pytest.raises(ConfigError, match=r"attention\.json is not a record .* delete the file"):
        write_report(folder.path)

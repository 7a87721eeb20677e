"""Files in `schema_1` were written by dualform 0.1.0, when the schema of `result.json` was 1, and only made shorter."""

import json
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import ConfigError
from dualform.result import Result
from dualform.runs.flat_numbers import numbers_of
from dualform.runs.store import read_result
from dualform.runs.sweep_folder import read_sweep, write_sweep_report
from dualform.schema_versions import RESULT_SCHEMA
from dualform.studies.folding.result import FoldingResult
from dualform.studies.laboratory.result import LaboratoryResult
from dualform.studies.momentum.result import MomentumResult
from dualform.studies.pages import render_page
from dualform.studies.selection.result import SelectionResult
from dualform.studies.stability.result import StabilityResult
from dualform.studies.study import study_of_result
from tests.golden.cases import numbers_in

SAMPLES = Path(__file__).parent / "schema_1"
CLASSES: dict[str, type[Result]] = {
    "compare": Result,
    "fold": Result,
    "stability": StabilityResult,
    "selection": SelectionResult,
    "folding": FoldingResult,
    "momentum": MomentumResult,
    "regress_constructed": LaboratoryResult,
}
OF_STUDIES = {"stability", "selection", "folding", "momentum", "laboratory"}


def sample(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    assert fields["schema"] == 1
    return fields


def own_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """All numbers of a file, less its version and the empty fields of other studies."""
    kept = {name: part for name, part in fields.items() if name != "schema" and not (name in OF_STUDIES and not part)}
    return numbers_in(kept, keep=lambda name: True)


@pytest.mark.parametrize("name", CLASSES)
def test_a_file_of_the_first_version_keeps_every_number(name: str) -> None:
    old = sample(name)
    result = Result.from_json(json.dumps(old))
    new = json.loads(result.to_json())
    assert type(result) is CLASSES[name]
    assert new["schema"] == RESULT_SCHEMA
    assert own_numbers(new) == own_numbers(old)
    assert len(own_numbers(new)) > 100


@pytest.mark.parametrize("name", CLASSES)
def test_a_file_of_the_first_version_is_rendered_as_a_new_one(name: str) -> None:
    result = Result.from_json(json.dumps(sample(name)))
    assert Result.from_json(result.to_json()) == result
    study = study_of_result(result)
    assert study is not None
    assert study.view.headlines(result)
    assert study.view.tables(result)
    assert "This result holds no" not in render_page(result)


def test_numbers_for_trackers_are_those_of_the_first_version() -> None:
    result = Result.from_json(json.dumps(sample("stability")))
    accuracy = sample("stability")["stability"]["models"]["gpt2"]["learners"]["icl"]["plain"]["accuracy"]
    assert numbers_of(result)["stability/models/gpt2/learners/icl/plain/accuracy"] == accuracy["mean"]


def test_a_sweep_of_the_first_version_keeps_the_results_of_its_groups(tmp_path: Path) -> None:
    old = sample("sweep")
    (tmp_path / "sweep.json").write_text(json.dumps(old), encoding="utf-8")
    sweep = read_sweep(tmp_path)
    assert [type(group.result) for group in sweep.groups] == [StabilityResult, SelectionResult]
    new = json.loads(sweep.to_json())
    for before, after in zip(old["groups"], new["groups"], strict=True):
        assert own_numbers(after["result"]) == own_numbers(before["result"])
    assert write_sweep_report(tmp_path).exists()


def test_a_study_that_is_not_installed_keeps_all_of_its_fields() -> None:
    old = sample("lengths")
    result = Result.from_json(json.dumps(old))
    assert (result.study, result.own) == ("lengths", old["own"])
    assert json.loads(result.to_json())["own"] == old["own"]
    assert "gpt2" in render_page(result)
    # As a package writes it whose results are of a class of its own.
    later = json.loads(result.to_json()) | {"lengths": {"correlation": 0.25}}
    assert json.loads(Result.from_json(json.dumps(later)).to_json()) == later


@pytest.mark.parametrize("name", ["result.json", "sweep.json"])
def test_a_file_of_a_newer_version_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    fields = sample("stability" if name == "result.json" else "sweep") | {"schema": RESULT_SCHEMA + 1}
    (tmp_path / name).write_text(json.dumps(fields), encoding="utf-8")
    read = read_result if name == "result.json" else read_sweep
    with pytest.raises(
        ConfigError, match=rf"{name}: schema {RESULT_SCHEMA + 1} was written by a newer version .* upgrade dualform"
    ):
        read(tmp_path)


def test_a_newer_result_inside_a_sweep_is_refused_too(tmp_path: Path) -> None:
    fields = sample("sweep")
    fields["groups"][1]["result"]["schema"] = RESULT_SCHEMA + 1
    (tmp_path / "sweep.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"sweep\.json: schema {RESULT_SCHEMA + 1} was written by a newer version"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"stability": {"models": []}}, "stability.models"),
        ({"selection": {"choices": []}}, "selection: Extra inputs are not permitted"),
        ({"schema": "1"}, "schema"),
        ({"schema": 0}, "schema"),
        ({"warnings": 1}, "warnings"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(changes: dict[str, Any], place: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(sample("stability") | changes), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not a result that this version can read .* Restore the file") as caught:
        read_result(tmp_path)
    assert place in str(caught.value)

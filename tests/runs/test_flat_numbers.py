import math
import typing
from typing import Any

import pytest
from pydantic import BaseModel
from tools.result_reference import models

from dualform.result import Estimate, Record, Result
from dualform.runs.flat_numbers import LEFT_OUT, clean, numbers_of, numbers_of_sweep
from tests.report.example_folding import example_folding
from tests.report.example_laboratory import example_laboratory
from tests.report.example_momentum import example_momentum
from tests.report.example_result import empty_result, example_result, old_result
from tests.report.example_selection import example_selection
from tests.report.example_stability import example_stability
from tests.report.example_sweep import example_sweep

STUDIES = {
    "comparison": example_result,
    "old comparison": old_result,
    "stability": example_stability,
    "selection": example_selection,
    "folding": example_folding,
    "momentum": example_momentum,
    "laboratory": example_laboratory,
}
LEFT_OUT_LISTS = {
    *("CurvePoint", "Estimate", "LabChart", "LabCurve", "LabRow", "LabTable", "ReliabilityBin", "StabilityRun", "Trial")
}
"""Records whose lists are left out: points of curves, rows of tables, single runs."""


@pytest.mark.parametrize("make", STUDIES.values(), ids=STUDIES)
def test_every_study_has_numbers_that_every_tracker_can_hold(make: Any) -> None:
    numbers = numbers_of(make())
    assert len(numbers) > 5
    for name, number in numbers.items():
        assert isinstance(number, float)
        assert math.isfinite(number)
        # What mlflow takes, the strictest of the three; no tracker of ours takes an empty part.
        assert len(name) < 250
        assert all(part == clean(part) for part in name.split("/")), name
        parents = ["/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]
        assert not [parent for parent in parents if parent in numbers], "a file cannot be a folder, too"


def test_a_name_is_the_path_in_the_result_and_the_interval_has_its_own() -> None:
    result = example_result()
    numbers = numbers_of(result)
    icl, similarity = result.accuracy["icl"], result.similarity["sim_aou"]
    assert numbers["accuracy/icl"] == icl.mean
    assert (numbers["ci95/accuracy/icl/low"], numbers["ci95/accuracy/icl/high"]) == icl.ci95
    assert numbers["n/accuracy/icl"] == icl.n
    assert numbers["similarity/sim_aou"] == similarity.mean
    assert numbers["cost/icl/tokens"] == result.cost["icl"].tokens
    assert numbers["seconds"] == result.environment["seconds"]
    calibrated = result.calibrated["sim_aou"]
    assert numbers["calibrated/sim_aou"] == calibrated.mean
    assert numbers["floor/calibrated/sim_aou"] == calibrated.floor


def test_lists_are_named_by_what_tells_their_records_apart() -> None:
    comparison = example_result()
    numbers = numbers_of(comparison)
    for test in comparison.tests:
        assert numbers[f"tests/{test.first}-{test.second}/difference"] == test.difference
    for point in comparison.rate_sweep:
        assert numbers[f"rate_sweep/{point.learning_rate:g}/accuracy"] == point.accuracy.mean
    momentum = example_momentum()
    assert momentum.momentum is not None
    numbers = numbers_of(momentum)
    for arm in momentum.momentum.arms:
        for length, estimate in arm.perplexity.items():
            assert numbers.get(f"momentum/arms/{clean(arm.name)}/perplexity/{length}") == estimate.mean
    laboratory = example_laboratory()
    assert laboratory.laboratory is not None
    study = laboratory.laboratory.studies[0]
    numbers = numbers_of(laboratory)
    assert numbers[f"laboratory/studies/{study.name}/claims/01/found"] == study.claims[0].found.mean
    assert numbers[f"laboratory/studies/{study.name}/claims/01/holds"] == float(study.claims[0].holds)


def test_every_list_of_records_in_the_schema_is_included_or_left_out_on_purpose() -> None:
    others = {"dualform.sweep_result", "dualform.attention_record"}
    records = [kind for kind in models() if kind.__module__ not in others]
    listed = {
        inside for kind in records for field in kind.model_fields.values() for inside in lists_in(field.annotation)
    }
    named = {kind: kind.named_by for kind in listed if issubclass(kind, Record) and kind.named_by is not None}
    assert {kind.__name__ for kind in listed} == {kind.__name__ for kind in named} | LEFT_OUT_LISTS
    for kind, names in named.items():
        assert set(names) <= set(kind.model_fields)
    fields = {name for kind in records for name in kind.model_fields}
    qualified = {f"{kind.__name__}.{name}" for kind in records for name in kind.model_fields}
    assert fields | qualified >= LEFT_OUT, "a name that the schema has lost"


def lists_in(annotation: Any, inside: bool = False) -> set[type[BaseModel]]:
    """Records that occur in lists in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation} if inside else set()
    deeper = inside or typing.get_origin(annotation) is list
    return {nested for part in typing.get_args(annotation) for nested in lists_in(part, deeper)}


def test_numbers_that_do_not_exist_are_left_out() -> None:
    nothing = Estimate(mean=float("nan"), ci95=(None, 0.5), n=0)
    result = empty_result()
    assert not any(name.startswith("accuracy/") for name in numbers_of(result))
    lost = example_folding()
    assert lost.folding is not None
    lost = lost.model_copy(update={"folding": lost.folding.model_copy(update={"icl": nothing})})
    numbers = numbers_of(lost)
    assert "folding/icl" not in numbers
    assert "ci95/folding/icl/low" not in numbers
    assert numbers["ci95/folding/icl/high"] == 0.5
    assert numbers["n/folding/icl"] == 0


def test_names_that_differ_in_refused_letters_alone_stay_apart() -> None:
    result = example_stability()
    assert result.stability is not None
    summary = next(iter(result.stability.models.values()))
    names = ("./a:b", "./a?b", "..", "/", "模型", "x" * 300, "per_seed", "task")
    models = dict.fromkeys(names, summary)
    many = result.model_copy(update={"stability": result.stability.model_copy(update={"models": models})})
    numbers = numbers_of(many)
    included = {name: number for name, number in numbers.items() if name.startswith("stability/models/")}
    single = result.model_copy(update={"stability": result.stability.model_copy(update={"models": {"a": summary}})})
    each = sum(name.startswith("stability/models/") for name in numbers_of(single))
    assert each > 0
    assert len(included) == each * len(names)
    assert all(clean(part) == part for name in included for part in name.split("/"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ft@0.001", "ft_0.001"),
        ("..", "_"),
        ("", "_"),
        ("a/b", "a_b"),
        ("é", "_"),
        (" a b ", "a b"),
        ("a\x1b[31m", "a__31m"),
    ],
)
def test_a_part_of_a_name_keeps_what_all_trackers_take(given: str, expected: str) -> None:
    assert clean(given) == expected
    assert clean(expected) == expected


def test_a_sweep_tells_its_cells_and_each_groups_accuracy() -> None:
    sweep = example_sweep()
    numbers = numbers_of_sweep(sweep)
    statuses = ("finished", "reused", "failed", "pending")
    assert sum(numbers[f"cells/{status}"] for status in statuses) == len(sweep.cells)
    group = next(group for group in sweep.groups if group.result is not None)
    assert isinstance(group.result, Result)
    for learner, accuracy in group.result.accuracy.items():
        assert numbers[f"accuracy/{clean(group.name)}/{learner}"] == accuracy.mean
    for name in numbers:
        parents = ["/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]
        assert not [parent for parent in parents if parent in numbers]

from typing import get_args

import pytest

from dualform.report.measures import (
    KINDS,
    ControlKind,
    control_of,
    controls_in_order,
    in_order,
    known_controls,
    known_measures,
)
from dualform.studies.controls import CONTROLS, facts_of, names_of_kind
from dualform.studies.published import compare_with_paper
from tests.report.example_result import empty_result, example_result
from tests.studies.known_controls import CEILINGS, FLOORS, PAIRS


def test_every_control_of_a_comparison_is_named_and_explained():
    known = {control.name for control in known_controls() if control.meaning}
    # The rate sweep is no control of its own in a result.
    assert {*CONTROLS.own, *PAIRS} - {"rates"} <= known


def test_the_floors_and_ceilings_are_those_of_the_scale():
    kinds = {control.name: control.kind for control in known_controls()}
    assert {key for key, kind in kinds.items() if kind == "floor"} == set(FLOORS)
    assert {key for key, kind in kinds.items() if kind == "ceiling"} == set(CEILINGS)
    assert (names_of_kind("floor"), names_of_kind("ceiling")) == (FLOORS, CEILINGS)
    assert [kind for kind, _ in KINDS] == list(get_args(ControlKind))


@pytest.mark.parametrize("control", PAIRS)
def test_every_control_knows_whose_answers_it_compares(control):
    facts = facts_of(control)
    assert facts is not None
    assert facts.compared_answers == PAIRS[control]


def test_an_unknown_control_claims_to_be_neither_floor_nor_ceiling():
    assert (control_of("mezo").title, control_of("mezo").kind) == ("mezo", "comparison")


def test_no_two_titles_are_equal():
    for table in (known_measures(), known_controls()):
        titles = [each.title for each in table]
        assert len(set(titles)) == len(titles)


def test_unknown_keys_come_last_as_they_came():
    assert in_order(["z", "a", "sim_am", "rec2ftp"]) == ["rec2ftp", "sim_am", "z", "a"]
    assert controls_in_order(["z", "ft_order", "random"]) == ["random", "ft_order", "z"]


def test_published_numbers_stand_beside_runs_of_that_protocol_alone():
    assert compare_with_paper(example_result()) == []
    assert compare_with_paper(empty_result(config={"preset": "default"})) == []
    rows = compare_with_paper(empty_result(config={"preset": "dai2023"}, task={"name": "cb"}))
    assert {row.title: row.published for row in rows}["accuracy, finetuned (FT)"] == (0.554, 0.571)
    assert {row.run for row in rows} == {None}


@pytest.mark.parametrize("task", ["sst2", "sst5", "mr", "subj", "agnews", "cb"])
def test_every_task_of_the_paper_has_three_accuracies(task):
    rows = compare_with_paper(empty_result(config={"preset": "dai2023"}, task={"name": task}))
    shares = [row for row in rows if row.tasks == task]
    assert len(shares) == 3
    assert all(0.3 < value < 1 for row in shares for value in row.published)


def test_the_published_likeness_grows_with_finetuning():
    rows = {row.title: row.published for row in compare_with_paper(empty_result(config={"preset": "dai2023"}))}
    assert all(after > before for after, before in zip(rows["SimAM"], rows["SimAM before finetuning"], strict=True))
    assert all(abs(value) < 0.01 for title, values in rows.items() if "random" in title for value in values)

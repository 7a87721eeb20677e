import pytest

from dualform.studies.stability.result import Stability
from dualform.studies.stability.table import (
    behaviour_table,
    contrast_name,
    contrasts_table,
    labels_in_order,
    labels_table,
    tables,
    variance_table,
)
from tests.report.example_result import empty_result
from tests.report.example_stability import LARGE, SMALL, contrast, example_model, example_stability, learner, one_model
from tests.studies.comparison.test_table import printed


@pytest.mark.parametrize("number", range(5))
def test_tables_fit_in_eighty_columns_without_losing_a_number(number):
    text = printed(tables(example_stability())[number])
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_another_study_has_no_tables():
    assert tables(empty_result(study="stability")) == []
    for table in (variance_table, labels_table, contrasts_table):
        assert table(empty_result(study="stability")).row_count == 0


def test_calibrated_numbers_are_below_uncalibrated_ones():
    lines = printed(behaviour_table(SMALL, example_model(SMALL, 10))).splitlines()
    [icl] = [number for number, line in enumerate(lines) if "in-context (ICL)" in line]
    assert "64.9 %" in lines[icl]
    assert "30.0 % !" in lines[icl]
    assert "40" in lines[icl]
    assert "calibrated" in lines[icl + 1]
    assert "0.0 %" in lines[icl + 1]
    assert "!" not in lines[icl + 1]


def test_a_learner_without_calibration_has_one_row():
    model = example_model(SMALL, 10).model_copy(update={"learners": {"icl": learner(0.6, 0.1, 0.1, calibrated=False)}})
    assert behaviour_table(SMALL, model).row_count == 1


def test_one_order_has_no_share_of_the_variance():
    [row] = [
        line
        for line in printed(variance_table(one_model({"icl": learner(0.6, 0.1, 0.1, orders=1)}))).splitlines()
        if "in-context (ICL) " in line
    ]
    assert [cell.strip() for cell in row.split("│")[4:7]] == ["83 %", "–", "17 %"]  # noqa: RUF001


def test_labels_are_in_the_order_true_random_flipped():
    assert labels_in_order(["flipped", "own", "random", "true"]) == ["true", "random", "flipped", "own"]
    text = printed(labels_table(one_model()))
    assert text.index("true") < text.index("random") < text.index("flipped")


def test_a_contrast_names_its_numerator_first():
    within = contrast("ft", 0.02, 0.05, 0.4, (0.2, 0.8), SMALL, calibrated=True)
    assert contrast_name(within) == f"finetuned (FT) / in-context (ICL), {SMALL}, calibrated"
    size = contrast("icl", 0.02, 0.05, 0.4, (0.2, 0.8), LARGE, SMALL, question="size")
    assert contrast_name(size) == f"{LARGE} / {SMALL}, in-context (ICL)"


def test_square_brackets_in_a_model_are_no_markup():
    name = "[bold]loud[/bold]"
    contrasts = [contrast("ft", 0.02, 0.05, None, (None, None), name)]
    stability = Stability(models={name: example_model(name, 10)}, contrasts=contrasts)
    for table in tables(example_stability(stability=stability)):
        text = "".join("".join(line.split("│")) for line in printed(table, width=200).splitlines())
        assert name in text

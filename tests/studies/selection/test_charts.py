import json

import pytest

from dualform.report.charts.saving import save_chart
from dualform.studies.selection.charts import optimism_chart, similarity_by_choice_chart
from tests.report.chart_rows import held, values
from tests.report.example_result import empty_result
from tests.report.example_selection import choice, estimate, example_selection, study

CHARTS = [optimism_chart, similarity_by_choice_chart]
NAMES = [chart.__name__ for chart in CHARTS]


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_complete_study_gives_a_valid_specification_without_nan(chart, tmp_path):
    spec = chart(example_selection()).to_dict(validate=True)
    assert values(spec)
    json.dumps(spec, allow_nan=False)
    save_chart(chart(example_selection()), tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_result_without_the_study_gives_no_chart(chart):
    assert chart(empty_result(study="selection")) is None
    nothing = (None, None, None)
    empty = choice("icl", "report", icl=nothing, ft=nothing, similarity={"sim_aou": estimate(nothing)})
    assert chart(example_selection(selection=study(empty))) is None


def test_optimism_is_drawn_in_points_for_each_choice_and_learner():
    rows = held(optimism_chart(example_selection()), "optimism")
    assert len(rows) == 10
    [row] = [row for row in rows if row["choice"] == "FT on report" and row["learner"] == "finetuned (FT)"]
    assert (row["optimism"], row["low"], row["high"]) == pytest.approx((6.1, 3.2, 9.0))
    assert row["chosen"] == "seed 2, order 1, rate 0.01"


def test_an_optimism_without_interval_is_a_dot():
    only = study(choice("icl", "report", icl=(0.05, None, None), ft=(None, None, None)))
    rows = held(optimism_chart(example_selection(selection=only)), "optimism")
    assert [(row["learner"], row["low"], row["high"]) for row in rows] == [("in-context (ICL)", 5.0, 5.0)]


def test_each_measure_has_a_row_for_each_choice():
    rows = held(similarity_by_choice_chart(example_selection()), "mean")
    assert len(rows) == 2 * 5

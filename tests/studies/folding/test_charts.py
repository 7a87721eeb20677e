import json

import pytest

from dualform.report.charts.saving import save_chart
from dualform.studies.folding.charts import axis_chart
from dualform.studies.folding.words import AXES
from tests.report.chart_rows import drawn, held
from tests.report.example_folding import NOTHING, around, example_folding, point, study
from tests.report.example_result import empty_result, example_result


def panels_of(chart) -> list[dict]:
    assert chart is not None
    return chart.to_dict()["concat"]


def x_of(panel: dict) -> dict:
    """The x channel of the dots."""
    return [layer for layer in panel["layer"] if layer["mark"]["type"] == "point"][-1]["encoding"]["x"]


def titles(chart) -> list[str]:
    return [panel["title"]["text"] for panel in panels_of(chart)]


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_gives_a_valid_specification_that_can_be_drawn(axis, tmp_path):
    chart = axis_chart(example_folding(), axis)
    assert chart is not None
    json.dumps(chart.to_dict(validate=True), allow_nan=False)
    save_chart(chart, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("axis", AXES)
def test_without_points_that_have_numbers_there_is_no_chart(axis):
    assert axis_chart(empty_result(study="folding"), axis) is None
    assert axis_chart(example_folding(folding=study(points=[])), axis) is None
    assert axis_chart(example_folding(folding=study(points=[point(axis, "8", NOTHING)])), axis) is None


@pytest.mark.parametrize("axis", ["k", "texts", "strength"])
def test_amounts_lie_on_a_log_scale_at_their_own_numbers(axis):
    for panel in panels_of(axis_chart(example_folding(), axis)):
        assert x_of(panel)["field"] == "position"
        assert x_of(panel)["scale"]["type"] == "log"
    [last] = [row for row in held(axis_chart(example_folding(), "texts"), "position") if row["value"] == "1,024"][:1]
    assert last["position"] == 1024


def test_zero_has_no_place_on_a_log_scale():
    points = [point("strength", value) for value in ("0", "0.1", "1")]
    chart = axis_chart(example_folding(folding=study(points=points)), "strength")
    assert {x_of(panel)["scale"]["type"] for panel in panels_of(chart)} == {"linear"}


def test_an_amount_in_words_makes_the_scale_one_of_names_in_the_order_written():
    points = [point("strength", value) for value in ("10", "chosen", "0.1")]  # Which was chosen is not known.
    [panel, *_] = panels_of(axis_chart(example_folding(folding=study(points=points)), "strength"))
    assert x_of(panel)["sort"] == ["10", "chosen", "0.1"]


def test_layers_are_a_line_where_they_are_numbers_and_dots_where_they_are_not():
    def marks(values) -> set[str]:
        points = [point("layers", value) for value in values]
        chart = axis_chart(example_folding(folding=study(points=points)), "layers")
        return {layer["mark"]["type"] for panel in panels_of(chart) for layer in panel["layer"]}

    assert "line" in marks(["4", "8", "12"])
    assert "line" not in marks(["all", "0 to 14"])


def test_points_stay_in_the_order_in_which_they_were_written():
    rows = held(axis_chart(example_folding(), "method"), "value")
    names = list(dict.fromkeys(row["value"] for row in rows))
    assert names == ["ridge", "ridge, last token", "thought vector", "task vector", "MeZO", "KV momentum"]


def test_zero_shot_icl_and_finetuning_are_lines_to_compare_with():
    levels = {row["learner"]: row["at"] for row in held(axis_chart(example_folding(), "method"), "at")}
    assert levels == {"zero-shot": 0.57, "in-context (ICL)": 0.722, "finetuned (FT)": 0.684}
    without = axis_chart(example_folding(folding=study(ft=None)), "method")
    assert {row["learner"] for row in held(without, "at")} == {"zero-shot", "in-context (ICL)"}


def test_over_an_axis_icl_is_that_of_the_same_demonstrations():
    rows = [row for row in drawn(axis_chart(example_folding(), "k")) if row.get("learner") == "in-context (ICL)"]
    assert {row["value"]: row["mean"] for row in rows} == pytest.approx(
        {str(2**n): 0.6 + 0.024 * (n - 1) for n in range(1, 7)}
    )


def test_agreement_stands_beside_that_of_learners_without_a_fold_where_it_is_known():
    beside = example_folding(against_icl=example_result().against_icl)
    levels = held(axis_chart(beside, "method"), "at")
    assert {"learner": "zero-shot", "at": 0.563, "from": 0.543, "to": 0.583, "n": 2000} in [
        {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in levels
    ]


def test_perplexity_has_a_panel_only_where_it_is_known():
    assert titles(axis_chart(example_folding(), "strength"))[-1] == "perplexity, folded / base"
    assert titles(axis_chart(example_folding(), "k")) == ["accuracy", "agreement with ICL"]


def test_a_point_without_interval_is_a_dot():
    points = [point("method", "ridge", (0.7, None, None))]
    rows = held(axis_chart(example_folding(folding=study(points=points)), "method"), "value")
    assert (rows[0]["low"], rows[0]["mean"], rows[0]["high"]) == (0.7, 0.7, 0.7)


def test_an_axis_that_is_not_known_is_drawn_under_its_own_name():
    points = [point("rank", value, around(0.7)) for value in ("1", "2", "4")]
    [panel, *_] = panels_of(axis_chart(example_folding(folding=study(points=points)), "rank"))
    assert x_of(panel)["axis"]["title"] == "rank"
    assert x_of(panel)["scale"]["type"] == "linear"


def test_a_strength_chosen_by_a_rule_is_placed_at_its_number_and_is_not_in_the_line():
    [panel, *_] = panels_of(axis_chart(example_folding(), "strength"))
    assert x_of(panel)["scale"]["type"] == "log"
    marks = {layer["mark"]["type"]: layer for layer in panel["layer"] if layer["mark"].get("shape") != "diamond"}
    assert [row["value"] for row in marks["line"]["data"]["values"]] == ["0.001", "0.01", "0.1", "1", "10"]
    [diamond] = [layer for layer in panel["layer"] if layer["mark"].get("shape") == "diamond"]
    [row] = diamond["data"]["values"]
    assert (row["value"], row["position"]) == ("gcv", 0.03)
    assert x_of(panel)["axis"]["values"] == [0.001, 0.01, 0.1, 1, 10]

import itertools
import json
import math

import pytest

from dualform.report.charts.lines import log_ticks
from dualform.report.charts.saving import save_chart
from dualform.report.palette import MEASURE_COLOUR
from dualform.result import Estimate
from dualform.studies.laboratory.charts import (
    COLOURS,
    DASHES,
    FAR,
    GREYS,
    curve_styles,
    describe_chart,
    lab_chart,
    remarks,
)
from dualform.studies.laboratory.result import LabChart
from tests.report.chart_rows import held
from tests.report.example_laboratory import chart, curve, estimate, example_laboratory
from tests.report.parsed_page import ATTACKS

EXAMPLES: list[LabChart] = [
    each for study in getattr(example_laboratory().laboratory, "studies", []) for each in study.charts
]


def drawn(of: LabChart):
    drawing = lab_chart(of, curve_styles([of]))
    assert drawing is not None
    spec = drawing.to_dict(validate=True)
    json.dumps(spec, allow_nan=False)
    return drawing, spec


def marks(spec: dict) -> dict[str, dict]:
    return {layer["mark"]["type"]: layer for layer in spec["layer"]}


def domain(spec: dict, axis: str = "y") -> tuple[float, float]:
    low, high = marks(spec)["line"]["encoding"][axis]["scale"]["domain"]
    return low, high


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[each.title for each in EXAMPLES])
def test_every_chart_is_a_valid_specification_that_can_be_drawn(number, tmp_path):
    drawing, _ = drawn(EXAMPLES[number])
    save_chart(drawing, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_exact_predictors_are_dashed_in_grey_and_models_are_not():
    _, spec = drawn(chart(curve("a", [1, 2]), curve("b", [2, 3]), curve("ridge", [1, 1], reference=True)))
    encoding = marks(spec)["line"]["encoding"]
    assert encoding["color"]["scale"] == {"domain": ["a", "b", "ridge"], "range": [*COLOURS[:2], MEASURE_COLOUR]}
    plain, also, dashed = encoding["strokeDash"]["scale"]["range"]
    assert plain == also == [1, 0]
    assert dashed != plain


def test_up_to_sixteen_exact_predictors_have_different_styles():
    many = chart(curve("a", [1, 2]), *(curve(f"exact {n}", [n, n], reference=True) for n in range(16)))
    styles = curve_styles([many])
    exact = [look for (_, reference), look in styles.items() if reference]
    assert len(set(exact)) == 16
    assert all(look.colour in GREYS and look.colour not in COLOURS and look.dash != (1, 0) for look in exact)
    encoding = marks(drawn(many)[1])["line"]["encoding"]
    ranges = [encoding[channel]["scale"]["range"] for channel in ("color", "strokeDash")]
    assert len({(colour, tuple(dash)) for colour, dash in zip(*ranges, strict=True)}) == 17


def test_styles_repeat_after_sixteen_exact_predictors():
    looked = curve_styles([chart(*(curve(f"exact {n}", [n, n], reference=True) for n in range(17)))])
    assert looked["exact 16", True] == looked["exact 0", True]


def test_a_model_and_an_exact_predictor_of_one_name_differ_in_look_and_in_name():
    both = chart(curve("ridge", [1, 2]), curve("ridge", [3, 4], reference=True), curve("Bayes", [1, 1], reference=True))
    styles = curve_styles([both])
    assert styles["ridge", False] != styles["ridge", True]
    _, spec = drawn(both)
    encoding = marks(spec)["line"]["encoding"]
    assert encoding["color"]["scale"] == {
        "domain": ["ridge", "ridge (exact)", "Bayes"],
        "range": [COLOURS[0], *GREYS],
    }
    plain, first_dash, other = encoding["strokeDash"]["scale"]["range"]
    assert plain == [1, 0]
    assert [tuple(first_dash), tuple(other)] == list(DASHES[:2])
    assert "for ridge, ridge (exact) and Bayes" in describe_chart(both)


def test_a_curve_keeps_its_colour_from_chart_to_chart():
    first, second = chart(curve("a", [1, 2]), curve("b", [1, 2])), chart(curve("b", [3, 4]), curve("c", [3, 4]))
    styles = curve_styles([first, second])
    assert [styles[name, False].colour for name in "abc"] == list(COLOURS[:3])
    chart_of_second = lab_chart(second, styles)
    assert chart_of_second is not None
    assert marks(chart_of_second.to_dict())["line"]["encoding"]["color"]["scale"]["range"] == list(COLOURS[1:3])


def test_colours_repeat_when_there_are_more_curves():
    many = chart(*(curve(f"model {n}", [n, n]) for n in range(len(COLOURS) + 1)))
    assert curve_styles([many])[f"model {len(COLOURS)}", False].colour == COLOURS[0]
    drawn(many)


def test_intervals_are_bands_and_without_any_there_is_no_band():
    _, spec = drawn(chart(curve("a", [1, 2], 0.1)))
    rows = marks(spec)["area"]["data"]["values"]
    assert [(row["low"], row["high"]) for row in rows] == [(0.9, 1.1), (1.9, 2.1)]
    assert "area" not in marks(drawn(chart(curve("a", [1, 2])))[1])


def test_a_hole_breaks_the_line_and_is_counted():
    drawing, spec = drawn(chart(curve("a", [1, None, 2], 0.1)))
    assert [row["mean"] for row in marks(spec)["line"]["data"]["values"]] == [1, None, 2]
    assert [row["mean"] for row in held(drawing, "dot")] == [1, 2]
    assert remarks(chart(curve("a", [1, None, 2], 0.1))) == ["1 point has no number."]
    several = chart(curve("a", [None, 1, math.nan]), curve("b", [None, 2, 3], x=[0.0, 1.0, 2.0]), log_x=True)
    # What has no number is not said to lie at a place that the axis lacks.
    assert remarks(several) == ["3 points have no number."]


def test_each_reason_why_a_point_is_not_drawn_has_its_own_sentence():
    wild = [1e301, -1e301, 0.5, 5e-324, 0.0, None]
    large = "too large for the axis: beyond 1e+300."
    assert remarks(chart(curve("a", wild), log_y=True)) == [
        "1 point has no number.",
        "2 points are zero or negative, and cannot be drawn on a log axis.",
        "1 point is too close to zero for a log axis: below 1e-300.",
        f"1 point is {large}",
    ]
    assert remarks(chart(curve("a", wild))) == ["1 point has no number.", f"2 points are {large}"]
    assert remarks(chart(curve("a", [1.0, 2.0], x=[1.0, 1e301]), log_x=True)) == [f"1 point is {large}"]


def test_zero_and_negative_values_are_not_drawn_on_a_log_axis_and_the_page_says_so():
    gone = chart(curve("a", [0.1, 0.0, -3.0, 0.2]), log_y=True)
    drawing, spec = drawn(gone)
    assert [row["mean"] for row in held(drawing, "dot")] == [0.1, 0.2]
    assert domain(spec)[0] > 0
    assert remarks(gone) == ["2 points are zero or negative, and cannot be drawn on a log axis."]
    sideways = chart(curve("a", [1, 2, 3], x=[0.0, 1.0, 10.0]), log_x=True)
    assert [row["x"] for row in held(drawn(sideways)[0], "dot")] == [1.0, 10.0]
    assert remarks(sideways) == ["1 point is zero or negative, and cannot be drawn on a log axis."]


def test_a_band_that_reaches_below_zero_ends_at_the_edge_of_a_log_axis():
    _, spec = drawn(chart(curve("a", [1.0, 0.1], 0.5), log_y=True))
    low, _ = domain(spec)
    assert [row["low"] for row in marks(spec)["area"]["data"]["values"]] == [0.5, low]


def test_an_exact_predictor_that_falls_to_rounding_does_not_flatten_the_models():
    far = chart(curve("a", [0.5, 0.2]), curve("least squares", [0.5, 1e-31], reference=True), log_y=True)
    _, spec = drawn(far)
    low, high = domain(spec)
    assert low > 0.2 / (1.3 * FAR)
    assert high < 1
    assert remarks(far) == ["Least squares leaves the chart where it is more than 1,000 times away from all models."]
    # By itself it is what the chart is about.
    alone = chart(curve("least squares", [0.5, 1e-31], reference=True), log_y=True)
    assert domain(drawn(alone)[1])[0] < 1e-31
    assert remarks(alone) == []


def test_an_exact_predictor_near_the_models_is_always_in_the_chart():
    _, spec = drawn(chart(curve("a", [0.2, 0.201]), curve("zero", [0.417, 0.417], reference=True)))
    low, high = domain(spec)
    assert low == 0
    assert high > 0.417


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1e300, 1.0], [1e-300, 1.0], [5e-324, 1.0], [1.7e308, 1.0], [-1e300, 1e300], [3.0, 3.0], [0.0, 0.0]]
)
def test_extreme_numbers_make_a_chart_or_none(values, log):
    extreme = chart(curve("a", values), log_y=log)
    if not [value for value in values if (value > 1e-300 or not log) and abs(value) <= 1e300]:
        assert lab_chart(extreme, curve_styles([extreme])) is None
        return
    low, high = domain(drawn(extreme)[1])
    assert low < high
    assert math.isfinite(low)
    assert math.isfinite(high)


def test_huge_intervals_leave_the_means_readable():
    wild = chart(curve("a", [1.0, 2.0]))
    points = [Estimate(mean=1.0, ci95=(-1e9, 1e9), n=2), estimate(2.0, 0.1)]
    wild = wild.model_copy(update={"curves": [wild.curves[0].model_copy(update={"y": points})]})
    low, high = domain(drawn(wild)[1])
    assert -1 <= low < high < 4


@pytest.mark.parametrize(
    "empty",
    [
        chart(),
        chart(curve("a", [])),
        chart(curve("a", [None, None])),
        chart(curve("a", [0.0, -1.0]), log_y=True),
        chart(curve("a", [1.0], x=[0.0]), log_x=True),
    ],
)
def test_without_a_point_there_is_no_chart(empty):
    assert lab_chart(empty, curve_styles([empty])) is None
    remarks(empty)


def test_a_single_point_is_a_dot_that_can_be_seen():
    drawing, spec = drawn(chart(curve("a", [0.3]), curve("exact", [0.2], reference=True)))
    assert [row["dot"] for row in held(drawing, "dot")] == [1.0, 1.0]
    low, high = domain(spec, "x")
    assert low < 1 < high


def test_long_curves_have_points_to_be_pointed_at_and_none_to_be_seen():
    long, short = (list(range(1, n)) for n in (40, 5))
    rows = held(drawn(chart(curve("long", [*long]), curve("short", [*short])))[0], "dot")
    assert {row["curve"]: row["dot"] for row in rows} == {"long": 0.0, "short": 1.0}


def test_few_places_get_a_tick_each():
    _, spec = drawn(chart(curve("a", [1, 2, 3], x=[1.0, 2.0, 4.0]), log_x=True))
    assert marks(spec)["line"]["encoding"]["x"]["axis"]["values"] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (1e-16, 1.0), (1e-300, 1e300), (2.0, 2.5), (1.0, 10.0)])
def test_ticks_of_a_log_axis_are_few_and_within_it(low, high):
    ticks = log_ticks((low, high), within=True)
    assert len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)
    assert all(left < right for left, right in itertools.pairwise(ticks))


def test_two_curves_of_one_name_are_two_lines():
    _, spec = drawn(chart(curve("a", [1, 2]), curve("a", [3, 4])))
    line = marks(spec)["line"]
    assert line["encoding"]["detail"]["field"] == "line"
    assert [row["line"] for row in line["data"]["values"]] == [0, 0, 1, 1]


def test_text_of_others_is_data_and_no_field_or_expression():
    hostile = chart(*(curve(attack, [1, 2]) for attack in ATTACKS), title=ATTACKS[0], x=ATTACKS[1], y=ATTACKS[2])
    _, spec = drawn(hostile)
    fields = {
        channel["field"]
        for layer in spec["layer"]
        for channels in layer["encoding"].values()
        for channel in (channels if isinstance(channels, list) else [channels])
        if "field" in channel
    }
    assert fields == {"x", "mean", "low", "high", "curve", "line", "dot", "n"} - ({"low", "high"} - fields)
    assert all(attack in describe_chart(hostile) for attack in ATTACKS)

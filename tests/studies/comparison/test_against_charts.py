import itertools
import json
import re

import pytest

from dualform.report.charts.saving import save_chart
from dualform.report.palette import LEARNERS, SPARE_COLOURS
from dualform.result import Accuracy, Cost
from dualform.studies.comparison.against_charts import CACHED, SPACING, cost_accuracy_chart
from tests.report.chart_rows import held
from tests.report.example_result import empty_result, example_result, old_result


def layers_of(chart) -> list[dict]:
    assert chart is not None
    return chart.to_dict()["layer"]


def shifts(**costs: float) -> dict[str, float]:
    """By how many pixels the dots of learners with these costs stand aside."""
    chart = cost_accuracy_chart(
        empty_result(
            accuracy={key: Accuracy(mean=0.5, ci95=(0.4, 0.6), n=9, per_seed={}) for key in costs},
            cost={key: Cost(adapt_seconds=0, query_seconds=0, tokens=9, flops=flops) for key, flops in costs.items()},
        )
    )
    dots = [layer for layer in layers_of(chart) if layer["mark"]["type"] == "point"]
    return {layer["data"]["values"][0]["key"]: layer["mark"].get("xOffset", 0) for layer in dots}


def test_the_chart_is_a_valid_specification_that_can_be_drawn(tmp_path):
    chart = cost_accuracy_chart(example_result())
    assert chart is not None
    json.dumps(chart.to_dict(validate=True), allow_nan=False)
    save_chart(chart, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_every_learner_with_a_cost_has_one_point_and_icl_two():
    rows = held(cost_accuracy_chart(example_result()), "n")
    points = {(row["key"], row["reading"]): row["cost"] for row in rows}
    # The probe's operations are unknown.
    assert points == pytest.approx(
        {
            ("zsl", ""): 8.4e12,
            ("icl", "prompt re-read"): 3.3e14,
            ("icl", CACHED): 1.21e13,
            ("ft", ""): 8.4e12,
            ("lora", ""): 8.4e12,
            ("fold", ""): 8.41e12,
        }
    )


def test_the_two_points_of_a_prompt_are_joined_by_a_line():
    [line] = [layer for layer in layers_of(cost_accuracy_chart(example_result())) if "x2Offset" in layer["mark"]]
    [row] = line["data"]["values"]
    assert (row["cost"], row["cost_cached"]) == (pytest.approx(3.3e14), pytest.approx(1.21e13))
    assert not [layer for layer in layers_of(cost_accuracy_chart(old_result())) if "x2Offset" in layer["mark"]]


def test_only_the_cached_prompt_is_hollow():
    dots = [layer for layer in layers_of(cost_accuracy_chart(example_result())) if layer["mark"]["type"] == "point"]
    hollow = [dot["data"]["values"][0]["reading"] for dot in dots if not dot["mark"]["filled"]]
    assert hollow == [CACHED]


def test_learners_of_nearly_equal_cost_are_shifted_apart_and_others_are_not():
    assert shifts(zsl=1e9, fold=1.01e9, icl=1e11) == {"zsl": -SPACING / 2, "fold": SPACING / 2, "icl": 0}
    assert set(shifts(zsl=1e9, fold=1e10, icl=1e11).values()) == {0}
    assert shifts(zsl=1e9, ft=1e9, fold=1e9) == {"zsl": -SPACING, "ft": 0, "fold": SPACING}


def test_fewer_than_two_points_are_no_chart():
    assert cost_accuracy_chart(empty_result()) is None
    result = example_result()
    assert cost_accuracy_chart(example_result(cost={"zsl": result.cost["zsl"]})) is None
    # The two points of a prompt alone are two.
    assert cost_accuracy_chart(example_result(cost={"icl": result.cost["icl"]})) is not None
    free = {key: each.model_copy(update={"flops": 0.0, "kept_flops": 0.0}) for key, each in result.cost.items()}
    assert cost_accuracy_chart(example_result(cost=free)) is None


@pytest.mark.parametrize("keys", itertools.combinations(("zsl", "icl", "ft", "lora", "fold"), 2), ids="+".join)
def test_every_two_learners_can_be_drawn(keys):
    result = example_result()
    costs = {key: result.cost[key] for key in keys if key in result.cost}
    assert len(costs) == 2
    rows = held(cost_accuracy_chart(example_result(cost=costs)), "n")
    assert {row["key"] for row in rows} == set(keys)


# Viénot, Brettel & Mollon (1999): linear RGB as seen without the long- or the middle-wave cone.
_BLIND = {
    "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


def linear(colour: str) -> list[float]:
    parts = [int(pair, 16) / 255 for pair in re.findall("..", colour.removeprefix("#"))]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def lightness(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def lab(rgb: list[float]) -> list[float]:
    """CIELAB of linear RGB, white point D65."""
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(a * b for a, b in zip(row, rgb, strict=True)) / w for row, w in zip(rows, white, strict=True)]
    f = [value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in xyz]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def distance(first: str, second: str, blindness: str) -> float:
    """How far two colours lie apart in CIELAB for such an eye."""
    seen = [
        lab([max(0.0, sum(a * b for a, b in zip(row, linear(each), strict=True))) for row in _BLIND[blindness]])
        for each in (first, second)
    ]
    return sum((a - b) ** 2 for a, b in zip(*seen, strict=True)) ** 0.5


@pytest.mark.parametrize("blindness", _BLIND)
def test_foldings_colour_differs_from_the_others_for_the_colour_blind(blindness):
    [fold] = [style.colour for style in LEARNERS if style.key == "fold"]
    others = [style.colour for style in LEARNERS if style.key in ("zsl", "icl", "ft", "lora")]
    assert min(distance(fold, other, blindness) for other in others) > 12
    # A green and a red of one lightness fail: the test can tell.
    assert distance("#5FA052", "#C07C52", "deutan") < 12
    assert fold not in SPARE_COLOURS


@pytest.mark.parametrize("page", ["#fbfbfa", "#14171a"], ids=["light", "dark"])
def test_folding_is_legible_on_both_pages(page):
    [fold] = [style.colour for style in LEARNERS if style.key == "fold"]
    high, low = sorted((lightness(fold), lightness(page)), reverse=True)
    # WCAG 2.1, 1.4.11: graphics want a contrast of 3.
    assert (high + 0.05) / (low + 0.05) > 3

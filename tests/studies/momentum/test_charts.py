import json
from collections.abc import Callable

import pytest

from dualform.report.charts.saving import save_chart
from dualform.studies.momentum.charts import (
    ETA_COLOURS,
    arm_colours,
    difference_chart,
    length_chart,
    regression_chart,
    tasks_chart,
    training_chart,
)
from tests.report.chart_rows import drawn, held
from tests.report.example_momentum import (
    EXACT,
    arm,
    broken,
    curve,
    estimate,
    example_momentum,
    paired,
    regression,
    study,
)
from tests.report.example_result import empty_result

CHARTS = (difference_chart, training_chart, length_chart, regression_chart, tasks_chart)
NAMED: dict[str, Callable] = {chart.__name__: chart for chart in CHARTS}


def with_arms(*arms, **changes):
    return example_momentum(momentum=study(arms=list(arms), **changes))


def panels_of(chart) -> list[dict]:
    assert chart is not None
    return chart.to_dict()["concat"]


def titles(chart) -> list[str]:
    return [panel["title"]["text"] for panel in panels_of(chart)]


def channel(panel: dict, name: str, mark: str = "point") -> dict:
    """A channel of the first layer with that mark that has it."""
    return next(
        layer["encoding"][name]
        for layer in panel["layer"]
        if layer["mark"]["type"] == mark and name in layer["encoding"]
    )


@pytest.mark.parametrize("name", NAMED)
def test_every_chart_is_a_valid_specification_that_can_be_drawn(name, tmp_path):
    chart = NAMED[name](example_momentum())
    assert chart is not None
    json.dumps(chart.to_dict(validate=True), allow_nan=False)
    save_chart(chart, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("name", NAMED)
def test_without_numbers_there_is_no_chart(name):
    failed = arm("momentum", None, eta=0.1, difference={"256": broken()}, perplexity={"256": estimate(None)})
    for result in (
        empty_result(study="momentum"),
        with_arms(regression=None),
        with_arms(arm("vanilla", None), failed, regression=regression(curves=[])),
    ):
        assert NAMED[name](result) is None


def test_etas_lie_on_a_scale_other_arms_by_name_and_linear_attention_apart():
    chart = difference_chart(example_momentum())
    assert titles(chart) == ["momentum minus vanilla", "others minus vanilla", "arms minus linear"]
    by_eta, by_name, linear = panels_of(chart)
    assert (channel(by_eta, "x")["field"], channel(by_eta, "x")["type"]) == ("eta", "quantitative")
    assert channel(by_name, "x")["sort"] == ["normalised 0.3", "learned 0.3", "convolution"]
    assert channel(linear, "x")["sort"] == ["linear-momentum 0.3", "heavy-ball 0.3", "nesterov 0.3"]


def test_panels_with_one_baseline_share_a_scale_that_holds_zero_and_every_seed():
    by_eta, by_name, linear = panels_of(difference_chart(example_momentum()))
    domains = [channel(panel, "y")["scale"]["domain"] for panel in (by_eta, by_name, linear)]
    assert domains[0] == domains[1] != domains[2]
    for low, high in domains:
        assert low < 0 < high
    seeds = [row["mean"] for row in held(difference_chart(example_momentum()), "seed")]
    assert len(seeds) == 5 * 10
    assert min(seeds) > domains[0][0]
    assert max(seeds) < domains[0][1]


def test_a_difference_without_interval_is_a_dot():
    chart = difference_chart(with_arms(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3, seeds=1)))
    [row] = held(chart, "p")
    assert (row["low"], row["mean"], row["high"]) == (-0.01, -0.01, -0.01)


def test_momentum_without_eta_stands_by_name():
    chart = difference_chart(with_arms(arm("vanilla", 0.0), arm("momentum", -0.01)))
    assert titles(chart) == ["arms minus vanilla"]


def test_training_is_drawn_as_loss_and_as_difference_without_its_first_tenth():
    chart = training_chart(example_momentum())
    assert titles(chart) == [
        "validation loss, nats a token",
        "momentum minus vanilla",
        "others minus vanilla",
        "arms minus linear",
    ]
    everything, late = held(chart, "tokens"), held(chart, "difference")
    assert min(row["tokens"] for row in everything) == 262_144
    assert min(row["tokens"] for row in late) == 524_288
    [last] = [row for row in late if row["arm"] == "momentum 0.9" and row["tokens"] == 4_194_304]
    assert last["difference"] == pytest.approx(0.0382, abs=1e-4)


def test_the_baseline_is_subtracted_only_where_both_were_measured():
    vanilla = arm("vanilla", 0.0)
    short = vanilla.model_copy(update={"curve": vanilla.curve[:8]})
    rows = held(training_chart(with_arms(short, arm("momentum", -0.01, eta=0.1))), "difference")
    assert max(row["tokens"] for row in rows) == vanilla.curve[7].tokens
    assert titles(training_chart(with_arms(arm("momentum", -0.01, eta=0.1)))) == ["validation loss, nats a token"]


def test_lengths_are_in_order_and_arms_side_by_side():
    chart = length_chart(example_momentum())
    for panel in panels_of(chart):
        assert channel(panel, "x")["scale"]["domain"] == ["64", "128", "256"]
    assert channel(panels_of(chart)[1], "xOffset")["scale"]["domain"] == [
        f"momentum {eta}" for eta in (0.1, 0.3, 0.5, 0.9)
    ]
    assert chart is not None
    assert chart.to_dict()["resolve"]["scale"]["xOffset"] == "independent"


def test_a_single_length_needs_no_chart_by_length():
    single = {"perplexity": {"256": estimate(20.0)}, "difference": {"256": paired(-0.01, 0.001)}}
    assert length_chart(with_arms(arm("vanilla", 0.0, perplexity=single["perplexity"]))) is None


def test_regression_has_a_log_panel_a_condition_number_and_dashed_exact_predictors():
    chart = regression_chart(example_momentum())
    assert titles(chart) == ["condition number 1", "condition number 100"]
    [panel, _] = panels_of(chart)
    assert channel(panel, "y", "line")["scale"]["type"] == "log"
    dashes = channel(panel, "strokeDash", "line")["scale"]
    look = dict(zip(dashes["domain"], dashes["range"], strict=True))
    assert [look[name] for name in ("vanilla", "momentum 0.3", "heavy-ball 0.3")] == [[1, 0]] * 3
    assert len({tuple(look[name]) for name, _ in EXACT} | {(1, 0)}) == 4


def test_values_that_cannot_be_drawn_on_a_log_scale_are_left_out():
    bad = curve("vanilla", 1.0, 0.1, None)
    bad = bad.model_copy(update={"loss": [estimate(1.0), estimate(0.0), estimate(0.2, 0.5), estimate(None)]})
    rows = held(regression_chart(example_momentum(momentum=study(regression=regression(curves=[bad])))), "seen")
    ours = [row for row in rows if row["arm"] == "vanilla"]
    assert [row["seen"] for row in ours] == [0, 2]
    assert (ours[1]["low"], ours[1]["high"]) == (0.2, 0.2)


def test_an_exact_predictor_is_not_followed_to_where_it_would_squeeze_the_arms():
    rows = held(regression_chart(example_momentum()), "seen")
    arms = min(row["mean"] for row in rows if row["arm"] == "heavy-ball 0.3")
    exact = [row for row in rows if row["arm"] == "least squares"]
    assert 0.1 * arms <= min(row["mean"] for row in exact) < arms
    assert max(row["seen"] for row in exact) < 20


def test_an_error_of_one_value_has_ticks_around_it():
    flat = curve("vanilla", 1.0, 0.0, None)
    [panel] = panels_of(
        regression_chart(example_momentum(momentum=study(regression=regression(curves=[flat], references={}))))
    )
    assert 1 in channel(panel, "y", "line")["axis"]["values"]


def test_tasks_have_a_panel_each_with_every_arm_and_chance_level():
    chart = tasks_chart(example_momentum())
    assert titles(chart) == ["sst2", "agnews", "cb"]
    names = [each.name for each in study().arms]
    assert all(channel(panel, "y")["sort"] == names for panel in panels_of(chart))
    assert sorted({row["at"] for row in drawn(chart) if "at" in row}) == [0.26, 0.5, 0.51]


def test_colours_are_those_of_an_arm_and_etas_run_from_first_to_last():
    colours = arm_colours(study())
    assert colours["momentum 0.1"] == ETA_COLOURS[0]
    assert colours["momentum 0.9"] == ETA_COLOURS[-1]
    assert len(set(colours.values())) == len(colours)
    [single] = arm_colours(study(arms=[arm("momentum", 0.0, eta=0.3)])).values()
    assert single == ETA_COLOURS[0]
    unknown = arm("momentum", 0.0).model_copy(update={"kind": "another"})
    assert arm_colours(study(arms=[unknown])) == arm_colours(study(arms=[unknown]))


def test_an_eta_between_two_has_a_colour_between_theirs():
    five = [arm("momentum", 0.0, eta=eta) for eta in (0.1, 0.2, 0.3, 0.4, 0.5)]
    colours = list(arm_colours(study(arms=five)).values())
    assert len(set(colours)) == 5
    assert all(len(colour) == 7 for colour in colours)

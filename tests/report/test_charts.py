import json

import pytest

from dualform.errors import ConfigError
from dualform.report.charts import (
    LABELS_SHOWN,
    accuracy_chart,
    controls_chart,
    head_map_chart,
    prediction_chart,
    save_chart,
    similarity_by_layer_chart,
    trials_chart,
)
from dualform.report.palette import LEARNERS, learner_style, learners_in_order
from dualform.result import Accuracy, Predictions, Similarity
from tests.report.example_result import empty_result, example_result

CHARTS = [
    accuracy_chart,
    prediction_chart,
    controls_chart,
    similarity_by_layer_chart,
    head_map_chart,
    trials_chart,
]
NAMES = [chart.__name__ for chart in CHARTS]


def values(spec) -> list[dict]:
    """All data rows of a Vega-Lite specification, wherever they lie."""
    if isinstance(spec, dict):
        own = spec["values"] if isinstance(spec.get("values"), list) and spec["values"] else []
        rows = [row for row in own if isinstance(row, dict)]
        return rows + [row for key, part in spec.items() if key != "values" for row in values(part)]
    return [row for part in spec for row in values(part)] if isinstance(spec, list) else []


def drawn(chart) -> list[dict]:
    """All data rows of a chart that must be there."""
    assert chart is not None
    return values(chart.to_dict())


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_complete_result_gives_a_valid_specification_without_nan(chart):
    spec = chart(example_result()).to_dict(validate=True)
    assert values(spec)
    json.dumps(spec, allow_nan=False)


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_an_empty_result_gives_no_chart(chart):
    assert chart(empty_result()) is None


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_chart_can_be_drawn_as_svg(chart, tmp_path):
    save_chart(chart(example_result()), tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_every_format_is_written_and_nothing_else_is_left(tmp_path):
    chart = accuracy_chart(example_result())
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "json": b"{", "html": b"<!DOCTYPE html>"}
    for kind in begins:
        save_chart(chart, tmp_path / f"chart.{kind}")
    assert {path.name for path in tmp_path.iterdir()} == {f"chart.{kind}" for kind in begins}
    for kind, start in begins.items():
        assert (tmp_path / f"chart.{kind}").read_bytes().lstrip()[: len(start)] == start


def test_a_saved_html_chart_loads_no_script_from_the_network(tmp_path):
    save_chart(accuracy_chart(example_result()), tmp_path / "chart.html")
    assert "<script src=" not in (tmp_path / "chart.html").read_text()


def test_an_unknown_ending_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"'chart\.bmp': its ending must be one of \.svg, \.png"):
        save_chart(accuracy_chart(example_result()), tmp_path / "chart.bmp")
    assert not list(tmp_path.iterdir())


def test_the_chance_line_stands_at_one_over_the_number_of_labels():
    task = {"label_words": [" a", " b", " c", " d"]}
    rows = drawn(accuracy_chart(example_result(task=task)))
    assert {row["chance"] for row in rows if "chance" in row} == {0.25}


def test_a_task_without_label_words_has_no_chance_line():
    rows = drawn(accuracy_chart(example_result(task={"name": "copa"})))
    assert not [row for row in rows if "chance" in row]


def test_an_accuracy_without_interval_is_drawn_as_a_dot_and_one_without_mean_not_at_all():
    accuracy = {
        "icl": Accuracy(mean=0.7, ci95=(None, None), n=10, per_seed={"1": 0.7}),
        "ft": Accuracy(mean=float("nan"), ci95=(None, None), n=0, per_seed={"1": None}),
    }
    rows = [row for row in drawn(accuracy_chart(example_result(accuracy=accuracy))) if "low" in row]
    assert {(row["learner"], row["low"], row["high"]) for row in rows} == {("in-context (ICL)", 0.7, 0.7)}


def test_many_labels_are_drawn_as_a_few_and_the_rest_together():
    counts = {f" label{number}": 100 - number for number in range(30)}
    predictions = {"icl": Predictions(majority_share=0.04, majority_label=" label0", entropy=3.0, counts=counts)}
    rows = drawn(prediction_chart(example_result(predictions=predictions)))
    shares = {row["label"]: row["share"] for row in rows if "share" in row}
    assert len(shares) == LABELS_SHOWN
    assert sum(shares.values()) == pytest.approx(1)
    assert "all others" in shares


def test_a_layer_without_a_number_is_a_gap():
    result = example_result()
    rows = [row for row in drawn(similarity_by_layer_chart(result)) if row.get("measure") == "SimAOU"]
    assert {row["layer"] for row in rows if row["mean"] is None} == {4}
    assert len({row["layer"] for row in rows}) == 30


def test_a_measure_whose_layers_hold_no_number_is_left_out():
    nothing = Similarity(mean=None, ci95=(None, None), n=0, per_layer=[None, None], per_head=[[None], [None]])
    result = example_result(similarity={"sim_am": nothing})
    assert similarity_by_layer_chart(result) is None
    assert head_map_chart(result) is None


def test_a_dropped_rate_keeps_its_place_but_has_no_accuracy():
    rows = [row for row in drawn(trials_chart(example_result())) if row["status"] == "diverged"]
    assert rows
    assert {row["accuracy"] for row in rows} == {None}
    assert {row["learning_rate"] for row in rows} == {0.2}


def test_learners_keep_one_colour_and_no_two_share_one():
    assert len({style.colour for style in LEARNERS}) == len(LEARNERS)
    chart = accuracy_chart(example_result())
    assert chart is not None
    assert all(style.colour in chart.to_json() for style in LEARNERS)
    assert learner_style("mezo") == learner_style("mezo")


def test_unknown_learners_come_last_and_are_drawn():
    accuracy = {"mezo": Accuracy(mean=0.6, ci95=(0.5, 0.7), n=10, per_seed={}), **example_result().accuracy}
    assert learners_in_order(accuracy)[-1] == "mezo"
    rows = drawn(accuracy_chart(example_result(accuracy=accuracy)))
    assert "mezo" in {row.get("learner") for row in rows}

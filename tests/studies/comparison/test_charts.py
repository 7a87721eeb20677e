import json
from typing import Any

import pytest

from dualform.errors import ConfigError
from dualform.report.charts.saving import save_chart
from dualform.report.numerals import MISSING
from dualform.report.palette import LEARNERS, learner_style, learners_in_order
from dualform.result import Accuracy, Calibrated, Estimate, Predictions, Similarity
from dualform.studies.comparison.charts import (
    LABELS_SHOWN,
    MOST_LABELS,
    accuracy_chart,
    by_label_chart,
    head_map_chart,
    prediction_chart,
    similarity_by_layer_chart,
    trained_name,
    trials_chart,
)
from dualform.studies.comparison.control_charts import LEFTMOST, RIGHTMOST, band_chart, calibrated_chart, sweep_chart
from tests.report.chart_rows import held
from tests.report.example_result import empty_result, example_result, old_result

CHARTS = [
    accuracy_chart,
    prediction_chart,
    similarity_by_layer_chart,
    head_map_chart,
    trials_chart,
    band_chart,
    calibrated_chart,
    sweep_chart,
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
    """All data rows of a chart that must be there, each once although layers repeat them."""
    assert chart is not None
    rows = values(chart.to_dict())
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def layers_of(chart) -> list[dict]:
    """All layers of all panels of small multiples."""
    assert chart is not None
    return [layer for panel in chart.to_dict()["concat"] for layer in panel["layer"]]


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
    assert chart is not None
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "json": b"{", "html": b"<!DOCTYPE html>"}
    for kind in begins:
        save_chart(chart, tmp_path / f"chart.{kind}")
    assert {path.name for path in tmp_path.iterdir()} == {f"chart.{kind}" for kind in begins}
    for kind, start in begins.items():
        assert (tmp_path / f"chart.{kind}").read_bytes().lstrip()[: len(start)] == start


def test_a_saved_html_chart_loads_no_script_from_the_network(tmp_path):
    chart = accuracy_chart(example_result())
    assert chart is not None
    save_chart(chart, tmp_path / "chart.html")
    assert "<script src=" not in (tmp_path / "chart.html").read_text()


def test_an_unknown_ending_is_refused_by_name(tmp_path):
    chart = accuracy_chart(example_result())
    assert chart is not None
    with pytest.raises(ConfigError, match=r"'chart\.bmp'\. Use one of the suffixes \.svg, \.png"):
        save_chart(chart, tmp_path / "chart.bmp")
    assert not list(tmp_path.iterdir())


def test_the_chance_line_stands_at_one_over_the_number_of_labels():
    task = {"label_words": [" a", " b", " c", " d"]}
    rows = drawn(accuracy_chart(example_result(task=task)))
    assert {row["at"] for row in rows if "at" in row} == {0.25}


def test_a_task_without_label_words_has_no_chance_line():
    rows = drawn(accuracy_chart(example_result(task={"name": "copa"})))
    assert not [row for row in rows if "at" in row]


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
    assert all(learner_style(key).colour in chart.to_json() for key in example_result().accuracy)
    assert learner_style("mezo") == learner_style("mezo")


def test_unknown_learners_come_last_and_are_drawn():
    accuracy = {"mezo": Accuracy(mean=0.6, ci95=(0.5, 0.7), n=10, per_seed={}), **example_result().accuracy}
    assert learners_in_order(accuracy)[-1] == "mezo"
    rows = drawn(accuracy_chart(example_result(accuracy=accuracy)))
    assert "mezo" in {row.get("learner") for row in rows}


def one_measure(place: Calibrated | None, **controls: Similarity):
    """A result with raw SimAOU alone, at 0.2."""
    similarity = {"sim_aou_raw": Similarity(mean=0.2, ci95=(0.18, 0.22), n=400)}
    named = {control: {"sim_aou_raw": each} for control, each in controls.items()}
    return empty_result(similarity=similarity, controls=named, calibrated={"sim_aou_raw": place} if place else {})


def place(mean: float | None, low: float | None, high: float | None, **changes) -> Calibrated:
    fields: dict[str, Any] = {
        "score": 0.2,
        "control": "untrained",
        "floor": 0.1,
        "ceiling": 0.5,
        "minimum_detectable": 0.02,
        "n": 300,
    }
    return Calibrated(mean=mean, ci95=(low, high), **(fields | changes))


def score(mean: float | None) -> Similarity:
    return Similarity(mean=mean, ci95=(None, None), n=300)


def test_a_measure_stands_in_a_band_from_its_floor_to_its_ceiling():
    rows = drawn(band_chart(one_measure(place(0.25, 0.2, 0.3), untrained=score(0.1), icl_order=score(0.5))))
    [band] = [row for row in rows if "ceiling" in row]
    assert (band["floor"], band["ceiling"], band["control"]) == (0.1, 0.5, "untrained model")
    assert band["place"] == "0.25 (0.20 to 0.30)"
    [own] = [row for row in rows if "low" in row]
    assert (own["low"], own["mean"], own["high"]) == (0.18, 0.2, 0.22)


def test_every_control_is_marked_by_its_kind_and_has_the_calibrated_value_with_it_as_floor():
    result = example_result()
    rows = [row for row in drawn(band_chart(result)) if row.get("measure") == "SimAOU, raw" and "kind" in row]
    assert {row["control"]: row["kind"] for row in rows}["FT in one step"] == "comparisons"
    assert {row["kind"] for row in rows} == {"floors", "comparisons", "ceilings"}
    assert len(rows) == len(result.controls)
    places = {row["control"]: row["place"] for row in rows}
    assert places["shuffled labels"].startswith("0.21 (")
    assert places["ICL, other order"] == MISSING


def test_no_room_between_floor_and_ceiling_draws_no_band_and_no_place():
    result = one_measure(place(None, None, None, floor=0.5, ceiling=0.1), untrained=score(0.5))
    assert not [row for row in drawn(band_chart(result)) if "ceiling" in row]
    assert calibrated_chart(result) is None


def test_accuracy_of_a_control_is_drawn_as_no_measure():
    result = one_measure(None, untrained=score(0.1))
    controls = {"untrained": {**result.controls["untrained"], "accuracy": score(0.77)}}
    rows = drawn(band_chart(result.model_copy(update={"controls": controls})))
    assert not [row for row in rows if row.get("mean") == 0.77]


def test_an_old_result_is_drawn_with_the_controls_that_it_has():
    rows = drawn(band_chart(old_result()))
    assert {row["control"] for row in rows if row.get("measure") == "SimAOU" and "kind" in row} == {
        "random direction",
        "untrained model",
        "shuffled labels",
    }
    assert not [row for row in rows if "ceiling" in row]
    assert calibrated_chart(old_result()) is None
    assert sweep_chart(old_result()) is None


def test_a_measure_on_another_scale_is_left_to_the_table():
    result = empty_result(similarity={"sim_aou": score(0.2), "distance": score(40.0)})
    assert {row["measure"] for row in drawn(band_chart(result)) if "measure" in row} == {"SimAOU"}


@pytest.mark.parametrize(
    ("mean", "low", "high", "edges"),
    [
        (0.3, 0.1, 0.5, (True, False, False)),
        (2.7, -1.4, 6.1, (False, True, True)),
        (-3.0, -4.0, 0.5, (False, True, False)),
        (1.2, 0.9, 2.5, (True, False, True)),
    ],
)
def test_what_lies_beyond_the_calibrated_axis_is_marked_at_its_edge(mean, low, high, edges):
    row, *_ = [row for row in drawn(calibrated_chart(one_measure(place(mean, low, high)))) if "shown" in row]
    assert (row["inside"], row["beyond_left"], row["beyond_right"]) == edges
    assert LEFTMOST <= row["low"] <= row["shown"] <= row["high"] <= RIGHTMOST
    assert row["place"] == f"{mean:.2f}"


def test_the_calibrated_axis_always_shows_floor_and_ceiling():
    chart = calibrated_chart(one_measure(place(0.3, 0.28, 0.32)))
    assert chart is not None
    left, right = chart.to_dict()["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert left < 0 < 1 < right


def test_the_sweep_begins_with_accuracy_and_length_and_marks_the_chosen_rate():
    rows = drawn(sweep_chart(example_result()))
    named = list(dict.fromkeys(row["what"] for row in rows if "what" in row))
    assert named[:3] == ["accuracy of finetuning", "length of FT's update / ICL's", "SimAOU"]
    assert {row["at"] for row in rows if "at" in row} == {0.001}
    assert {row["rate"] for row in rows if "rate" in row} == {1e-4, 1e-3, 1e-2, 5e-2}


def test_layers_are_compared_with_their_measures_floor_and_marked_if_above_it():
    result = example_result()
    rows = [row for row in drawn(similarity_by_layer_chart(result)) if row.get("measure") == "SimAOU, raw"]
    floor = result.controls["shuffled_labels"]["sim_aou_raw"].per_layer
    assert floor is not None
    assert {row["floor"] for row in rows if row["layer"] == 10} == {f"{floor[10]:.3f}"}
    assert {row["layer"] for row in rows if row["above"]} == set(range(8, 24))
    assert {row["above"] for row in rows if row["layer"] == 4} == {None}
    marks = [layer["mark"] for layer in layers_of(similarity_by_layer_chart(result)) if layer["mark"].get("size") == 26]
    assert [mark["filled"] for mark in marks] == [True, False] * 2


def test_without_a_scale_layers_are_compared_with_the_random_direction_and_have_no_points():
    layers = layers_of(similarity_by_layer_chart(old_result()))
    assert not [layer for layer in layers if layer["mark"].get("size") == 26]
    assert "random direction" in json.dumps(layers)


def test_trials_of_a_control_are_named_after_it():
    assert (trained_name("ft"), trained_name("lcgd"), trained_name("mezo")) == (
        "finetuned (FT)",
        "layer-causal descent",
        "mezo",
    )


@pytest.mark.parametrize("q", [0.0, 1.0])
def test_where_all_layers_fall_on_one_side_no_mark_is_left_without_rows(q: float) -> None:
    # Vega warns of a layer in which nothing is left, on every reader's console.
    result = example_result()
    key, similarity = next((key, each) for key, each in result.similarity.items() if each.per_layer_q)
    one_sided = similarity.model_copy(update={"per_layer_q": [q] * len(similarity.per_layer or [])})
    chart = similarity_by_layer_chart(result.model_copy(update={"similarity": {key: one_sided}}))
    assert chart is not None

    text = json.dumps(chart.to_dict())
    assert f'"above": {str(q == 0.0).lower()}' in text
    assert "datum.above" not in text
    assert '"values": []' not in text


def test_each_label_has_a_row_with_a_dot_a_learner():
    result = example_result()
    share = Estimate(mean=0.4, ci95=(0.3, 0.5), n=50)
    levels = {
        key: each.model_copy(update={"per_label": {" good": each, " bad": share}})
        for key, each in result.accuracy.items()
        if key in ("icl", "ft")
    }
    rows = held(by_label_chart(result.model_copy(update={"accuracy": levels})), "label")
    assert {(row["label"], row["learner"], row["accuracy"]) for row in rows} == {
        ("good", "in-context (ICL)", levels["icl"].mean),
        ("bad", "in-context (ICL)", 0.4),
        ("good", "finetuned (FT)", levels["ft"].mean),
        ("bad", "finetuned (FT)", 0.4),
    }
    assert by_label_chart(empty_result()) is None
    too_many = {f" {number}": share for number in range(MOST_LABELS + 1)}
    crowded = {"icl": levels["icl"].model_copy(update={"per_label": too_many})}
    assert by_label_chart(result.model_copy(update={"accuracy": crowded})) is None

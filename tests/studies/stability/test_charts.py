import json

import pytest

from dualform.report.charts.saving import save_chart
from dualform.report.palette import learner_style
from dualform.studies.stability.charts import (
    accuracy_runs_chart,
    labels_chart,
    majority_runs_chart,
    size_chart,
    variance_chart,
)
from dualform.studies.stability.result import Stability
from tests.report.chart_rows import drawn, held, values
from tests.report.example_result import empty_result
from tests.report.example_stability import SMALL, example_model, example_stability, learner, one_model

CHARTS = [accuracy_runs_chart, majority_runs_chart, variance_chart, size_chart, labels_chart]
NAMES = [chart.__name__ for chart in CHARTS]


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_complete_study_gives_a_valid_specification_without_nan(chart):
    spec = chart(example_stability()).to_dict(validate=True)
    assert values(spec)
    json.dumps(spec, allow_nan=False)


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_result_without_the_study_gives_no_chart(chart):
    assert chart(empty_result(study="stability")) is None
    assert chart(example_stability(stability=Stability(models={}, contrasts=[]))) is None


@pytest.mark.parametrize("chart", CHARTS, ids=NAMES)
def test_a_chart_can_be_drawn_as_svg(chart, tmp_path):
    save_chart(chart(example_stability()), tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_every_run_with_true_labels_is_a_dot_before_and_after_calibration():
    dots = [row for row in drawn(accuracy_runs_chart(one_model({"icl": learner(0.6, 0.1, 0.1)}))) if "share" in row]
    assert len(dots) == 2 * 8 * 5
    before = {row["place"] for row in dots if row["kind"] == "uncalibrated"}
    after = {row["place"] for row in dots if row["kind"] == "calibrated"}
    assert len(before) == len(after) == 5
    assert max(before) < 0.5 < min(after)


def test_runs_with_other_labels_are_no_dots():
    labels = {"true": (0.6, 0.5, 0.7), "flipped": (0.4, 0.3, 0.5)}
    plain, more = learner(0.6, 0.1, 0.1), learner(0.6, 0.1, 0.1, labels=labels)
    assert len(more.runs) > len(plain.runs)
    assert drawn(accuracy_runs_chart(one_model({"icl": plain}))) == drawn(accuracy_runs_chart(one_model({"icl": more})))


def test_without_calibration_the_runs_keep_the_middle_of_their_row():
    result = one_model({"icl": learner(0.6, 0.1, 0.1, orders=1, calibrated=False)})
    dots = [row for row in drawn(accuracy_runs_chart(result)) if "share" in row]
    assert {row["place"] for row in dots} == {0.5}


def test_few_runs_have_no_box():
    few = one_model({"icl": learner(0.6, 0.1, 0.1, sets=3, orders=1)})
    assert not [row for row in drawn(accuracy_runs_chart(few)) if "q25" in row]
    many = one_model({"icl": learner(0.6, 0.1, 0.1, sets=4, orders=1)})
    assert [row for row in drawn(accuracy_runs_chart(many)) if "q25" in row]


def test_chance_and_collapse_are_lines():
    assert {row["at"] for row in drawn(accuracy_runs_chart(example_stability())) if "at" in row} == {0.5}
    assert {row["at"] for row in drawn(majority_runs_chart(example_stability())) if "at" in row} == {0.9}
    free_text = example_stability(task={"name": "copa"})
    assert not [row for row in drawn(accuracy_runs_chart(free_text)) if "at" in row]


def test_the_parts_of_a_variance_are_stacked_in_points_squared():
    rows = [
        row
        for row in drawn(variance_chart(one_model({"icl": learner(0.6, 0.08, 0.05)})))
        if row["kind"] == "uncalibrated"
    ]
    assert [row["part"] for row in rows] == ["set", "order", "residual (queries)"]
    assert [row["variance"] for row in rows] == pytest.approx([64, 25, 20])
    assert [row["end"] for row in rows] == pytest.approx([64, 89, 109])
    assert rows[0]["start"] == 0
    assert rows[1]["start"] == rows[0]["end"]


def test_one_order_leaves_a_bar_of_two_parts():
    rows = drawn(variance_chart(one_model({"icl": learner(0.6, 0.08, 0.05, orders=1)})))
    assert {row["part"] for row in rows} == {"set", "residual (queries)"}


def test_one_size_is_no_chart_of_size():
    assert size_chart(one_model()) is None
    same = Stability(models={name: example_model(name, 10) for name in ("a", "b")}, contrasts=[])
    assert size_chart(example_stability(stability=same)) is None
    unknown = example_model("a", 10).model_copy(update={"model": {}})
    models = {"a": unknown, "b": example_model("b", 20)}
    assert size_chart(example_stability(stability=Stability(models=models, contrasts=[]))) is None


def test_the_size_chart_has_both_learners_at_every_size():
    rows = held(size_chart(example_stability()), "sd")
    assert len(rows) == 2 * 2 * 2
    assert {row["parameters"] for row in rows} == {134_515_008, 268_098_176}
    assert all(row["low"] < row["sd"] < row["high"] for row in rows)


def test_an_accuracy_by_labels_without_interval_is_a_dot():
    labels = {"true": (0.6, None, None), "flipped": (0.4, 0.3, 0.5)}
    rows = held(labels_chart(one_model({"icl": learner(0.6, 0.1, 0.1, labels=labels)})), "labels")
    assert [(row["labels"], row["low"], row["high"]) for row in rows] == [("true", 0.6, 0.6), ("flipped", 0.3, 0.5)]


def test_labels_that_were_not_varied_give_no_chart():
    assert labels_chart(one_model({"icl": learner(0.6, 0.1, 0.1)})) is None


def test_panels_are_headed_by_their_model_only_where_there_are_several():
    assert SMALL in json.dumps(drawn_spec(example_stability()))
    assert SMALL not in json.dumps(drawn_spec(one_model()))


def drawn_spec(result) -> dict:
    chart = variance_chart(result)
    assert chart is not None
    return chart.to_dict()


@pytest.mark.parametrize("chart", [accuracy_runs_chart, labels_chart], ids=lambda chart: chart.__name__)
def test_models_with_other_learners_share_one_scale_of_colours(chart):
    first, second = example_model("a", 10), example_model("b", 20)
    second = second.model_copy(update={"learners": {"lora": second.learners["ft"], "icl": second.learners["icl"]}})
    spec = chart(example_stability(stability=Stability(models={"a": first, "b": second}, contrasts=[]))).to_dict()
    scales = [
        layer["encoding"]["color"]["scale"]
        for panel in spec["concat"]
        for layer in panel["layer"]
        if "color" in layer["encoding"]
    ]
    assert all(scale == scales[0] for scale in scales)
    assert dict(zip(scales[0]["domain"], scales[0]["range"], strict=True))["LoRA"] == learner_style("lora").colour

import json

import pytest
import torch

from dualform.report.html import still_picture
from dualform.result import Classification, Result
from dualform.studies.classification import classification
from dualform.studies.comparison.calibration_words import calibration_sentences, mean_confidence
from dualform.studies.comparison.class_charts import (
    MOST_CLASSES,
    MOST_NAMED,
    MOST_NUMBERED,
    confusion_chart,
    reliability_chart,
)
from dualform.studies.comparison.table import class_table, label_table, scores_table
from dualform.studies.statistics import Statistics
from tests.report.chart_rows import held
from tests.report.example_result import empty_result, example_result
from tests.studies.comparison.test_table import printed


def scores_of(n_labels: int, n: int = 300, scale: float = 1.0, names: bool = True) -> Classification:
    generator = torch.Generator().manual_seed(n_labels)
    labels = torch.randint(n_labels, (n,), generator=generator)
    table = torch.randn(2, n, n_labels, generator=generator, dtype=torch.float64)
    table += 2 * torch.nn.functional.one_hot(labels, n_labels)
    words = [f" label {number}" for number in range(n_labels)] if names else None
    return classification(scale * table, labels, words, Statistics(30, ("1", "2")))


def with_scores(**scores: Classification) -> Result:
    return example_result(classification=scores)


def test_each_cell_of_the_matrix_has_its_count_and_its_share_of_the_row():
    scores = scores_of(3)
    rows = held(confusion_chart(with_scores(icl=scores)), "answers")
    found = {(row["right answer"], row["prediction"]): (row["answers"], row["share"]) for row in rows}
    for place, line in enumerate(scores.confusion):
        for other, n in enumerate(line):
            assert found[f"label {place}", f"label {other}"] == (n, pytest.approx(n / sum(line)))
    assert sum(row["answers"] for row in rows) == 600


def test_learners_are_panels_in_the_usual_order():
    chart = confusion_chart(example_result())
    assert chart is not None
    titles = [panel["title"]["text"] for panel in chart.to_dict()["concat"]]
    assert titles == ["zero-shot", "in-context (ICL)", "finetuned (FT)", "LoRA", "linear probe", "folded"]


@pytest.mark.parametrize("n", [1, 2, MOST_NUMBERED + 1, MOST_NAMED + 1, MOST_CLASSES, MOST_CLASSES + 1])
def test_many_classes_have_no_numbers_then_no_names_then_no_matrix(n):
    chart = confusion_chart(with_scores(icl=scores_of(n)))
    assert (chart is None) is (n in (1, MOST_CLASSES + 1))
    if chart is None:
        return
    text = json.dumps(chart.to_dict())
    assert ('"type": "text"' in text) is (n <= MOST_NUMBERED)
    assert ('"values": []' in text) is (n > MOST_NAMED)
    # A specification that Vega cannot draw would leave an empty place on the page.
    assert "<svg" in still_picture(chart)


def test_the_reliability_plot_has_a_dot_a_bin_with_its_interval_and_the_diagonal():
    scores = example_result().classification["icl"]
    chart = reliability_chart(with_scores(icl=scores))
    rows = held(chart, "answers")
    assert [(row["confidence"], row["accuracy"], row["answers"], row["low"], row["high"]) for row in rows] == [
        (each.confidence, each.accuracy.mean, each.accuracy.n, *each.accuracy.ci95) for each in scores.reliability
    ]
    ends = [row for row in held(chart, "confidence") if "answers" not in row]
    assert ends == [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    assert chart is not None
    assert "<svg" in still_picture(chart)


def test_without_scores_there_are_no_charts_tables_or_sentences():
    nothing = empty_result()
    assert confusion_chart(nothing) is None
    assert reliability_chart(nothing) is None
    assert not scores_table(nothing)
    assert not class_table(nothing)
    assert calibration_sentences(nothing) == []


def test_choices_have_a_reliability_plot_and_no_matrix_and_no_scores_by_class():
    result = with_scores(icl=scores_of(4, names=False))
    assert confusion_chart(result) is None
    assert reliability_chart(result) is not None
    assert not class_table(result)
    titles = [column.title for column in scores_table(result).columns]
    assert titles == ["learner", "accuracy", "log-loss, nats", "Brier score", "calibration error"]


def test_the_table_by_label_has_a_row_for_each_label_and_learner():
    result = example_result()
    frame = class_table(result).frame()
    assert len(frame) == 2 * len(result.classification)
    for key, title in (("icl", "in-context (ICL)"), ("probe", "linear probe")):
        for label, scores in result.classification[key].per_class.items():
            [(_, row)] = frame[(frame["label"] == label.strip()) & (frame["learner"] == title)].iterrows()
            assert row[["precision", "recall", "F1", "queries", "answers"]].tolist() == [
                scores.precision.mean,
                scores.recall.mean,
                scores.f1.mean,
                scores.support,
                scores.predicted,
            ]
            assert (row["recall low"], row["recall high"]) == scores.recall.ci95
    assert not label_table(result), "the example has no recalls of its own"


def test_the_table_of_scores_has_the_numbers_of_the_result():
    result = example_result()
    frame = scores_table(result).frame().set_index("learner")
    for key, title in (("zsl", "zero-shot"), ("fold", "folded")):
        scores = result.classification[key]
        assert scores.balanced_accuracy is not None
        assert frame.loc[title, "balanced accuracy"] == scores.balanced_accuracy.mean
        assert frame.loc[title, "log-loss, nats"] == scores.log_loss.mean
        assert frame.loc[title, "Brier score"] == scores.brier.mean
        assert (
            frame.loc[title, "calibration error low"],
            frame.loc[title, "calibration error high"],
        ) == scores.ece.ci95
    assert "at probability 0" in printed(scores_table(result), width=200)


def test_learners_are_sorted_by_whether_they_are_right_as_often_as_they_say():
    sure, unsure = scores_of(2, scale=6.0), scores_of(2, scale=0.2)
    over, under = calibration_sentences(with_scores(icl=sure, ft=unsure))
    assert over.startswith("Overconfident")
    assert f"in-context learning ({100 * (mean_confidence(sure) or 0):.0f} % sure" in over
    assert f"{100 * (sure.accuracy.mean or 0):.0f} % right)" in over
    assert under.startswith("Underconfident")
    assert "finetuning" in under
    [neither] = [each for each in calibration_sentences(example_result()) if "No calibration error" in each]
    assert "finetuning" in neither


def test_the_mean_confidence_is_that_of_all_answers():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (50,), generator=generator)
    scores = classification(table, labels, None, Statistics(5, ("1", "2")))
    assert mean_confidence(scores) == pytest.approx(table.softmax(-1).amax(-1).mean().item())

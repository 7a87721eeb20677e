from typing import Any

import pytest

from dualform.studies.folding.result import Folding
from dualform.studies.folding.words import (
    axes_in_order,
    composition_sentences,
    findings,
    perplexity_sentence,
    transfer_sentences,
    values_as_numbers,
)
from tests.report.example_folding import (
    NOTHING,
    around,
    composition,
    estimate,
    example_folding,
    perplexity,
    point,
    study,
    transfer,
)
from tests.report.example_result import empty_result


def sentences_of(*points, **changes) -> list[str]:
    nothing: dict[str, Any] = {"perplexity": None, "transfer": [], "compositions": []}
    return findings(example_folding(folding=study(points=list(points), **(nothing | changes))))


def test_without_points_there_are_no_findings():
    assert findings(empty_result(study="folding")) == []
    assert sentences_of() == []
    assert sentences_of(point("method", "ridge", NOTHING))[:-1] == []


def test_the_best_method_comes_first_with_what_it_is_compared_with():
    first, second, third, *_ = findings(example_folding())
    assert first == (
        "Of 6 folding methods, “KV momentum” is the most accurate: 72 % (69 to 75 %), compared with 57 % for "
        "zero-shot, 72 % for in-context learning and 68 % for finetuning. It is significantly more accurate than "
        "zero-shot, and not significantly different from in-context learning and finetuning."
    )
    assert second == (
        "It answers 87.4 % (84.4 to 90.4 %) of the queries as in-context learning does and recovers 101.3 % (20.0 to "
        "110.0 %) of the prompt's gain over zero-shot."
    )
    assert third == "It was chosen as the best of 6 by the reported queries, so its accuracy is biased upwards."


def test_a_single_method_is_not_called_the_best():
    sentences = sentences_of(point("method", "ridge", around(0.6)))
    assert sentences[0].startswith(
        "Folding by “ridge” reaches an accuracy of 60 % (57 to 63 %), compared with 57 % for zero-shot"
    )
    assert sentences[0].endswith(
        "It is significantly less accurate than in-context learning and finetuning, and not significantly different "
        "from zero-shot."
    )
    assert not any("best" in sentence for sentence in sentences)


def test_methods_differ_significantly_only_if_intervals_do_not_overlap():
    text = "\n".join(
        sentences_of(
            point("method", "a", around(0.72)),
            point("method", "b", around(0.661, 0.028)),
            point("method", "c", around(0.663, 0.028)),
        )
    )
    assert (
        "Significantly less accurate than the best: “b” (66.1 %); not significantly different from it: “c” (66.3 %)."
    ) in text
    assert "Not significantly more accurate than zero-shot" not in text


def test_methods_not_better_than_zero_shot_are_named():
    text = "\n".join(sentences_of(point("method", "a", around(0.72)), point("method", "b", around(0.58))))
    assert "Not significantly more accurate than zero-shot: “b”." in text


def test_a_gain_that_is_not_significant_makes_its_share_mean_little():
    unsure = point("method", "a", around(0.7), recovered=estimate((0.9, None, None)))
    assert "so the share means little" in "\n".join(sentences_of(unsure))
    level = point("method", "a", around(0.58), icl=estimate(around(0.59)))
    assert "so the share means little" in "\n".join(sentences_of(level))
    assert "means little" not in "\n".join(sentences_of(point("method", "a", around(0.7))))


def test_without_a_method_axis_the_best_is_taken_from_the_first_axis():
    first = sentences_of(point("k", "4", around(0.6)), point("k", "8", around(0.7)))[0]
    assert first.startswith("Folding is most accurate with demonstrations = “8”: 70 %")


@pytest.mark.parametrize(
    ("first", "last", "end"),
    [
        (0.6, 0.7, ", a significant increase"),
        (0.7, 0.6, ", a significant decrease"),
        (0.65, 0.67, ", no significant difference"),
    ],
)
def test_a_change_is_significant_only_if_the_intervals_of_the_ends_do_not_overlap(first, last, end):
    points = [point("k", "4", around(first)), point("k", "32", around(last))]
    [sentence] = [each for each in sentences_of(*points) if each.startswith("Demonstrations: accuracy is")]
    assert f"at 32{end}. Agreement with ICL is" in sentence


def test_a_peak_in_the_middle_is_reported():
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("1", 0.7), ("10", 0.6))]
    assert "the highest is 70.0 % at 1, significantly above both ends" in "\n".join(sentences_of(*points))
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("1", 0.61), ("10", 0.6))]
    assert "the highest is 61.0 % at 1. " in "\n".join(sentences_of(*points))


def test_a_value_chosen_by_a_rule_is_reported_separately():
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("gcv", 0.71), ("10", 0.61))]
    [sentence] = [each for each in sentences_of(*points) if each.startswith("Ridge strength")]
    assert "60.0 % (57.0 to 63.0 %) at 0.1 and 61.0 % (58.0 to 64.0 %) at 10, no significant difference" in sentence
    assert "; 71.0 % (68.0 to 74.0 %) with “gcv”. Agreement" in sentence


def test_the_default_method_is_reported_if_another_is_the_most_accurate():
    folding = study(points=[point("method", "ridge", around(0.7)), point("method", "other", around(0.75))])
    named = example_folding(folding=folding, config={"fold": {"method": "ridge"}})
    assert (
        "The default method “ridge”, which was not chosen by these queries, reaches 70 % (67 to 73 %): it is "
        "significantly more accurate than zero-shot, and not significantly different from in-context learning."
    ) in findings(named)
    best = example_folding(folding=folding, config={"fold": {"method": "other"}})
    assert "default" not in "".join(findings(best))


def test_names_are_compared_with_the_best_of_them():
    def sentence_on(*means: float) -> str:
        [sentence] = [
            each
            for each in sentences_of(*(point("source", f"s{n}", around(mean)) for n, mean in enumerate(means)))
            if each.startswith("Source of the texts")
        ]
        return sentence

    assert sentence_on(0.7, 0.6).endswith("“s0” is significantly better than all others.")
    assert sentence_on(0.7, 0.69).endswith("none differs significantly from the best.")
    assert sentence_on(0.7, 0.69, 0.5).endswith("“s0” is not significantly better than “s1”.")


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.04, 1.02, 1.06), ": a significant increase, so the model predicts plain text worse."),
        ((0.97, 0.95, 0.99), ": a significant decrease, so the model is better at it."),
        ((1.01, 0.99, 1.03), ": no significant change."),
        ((1.01, None, None), "no interval, so no conclusion."),
    ],
)
def test_perplexity_changes_significantly_only_if_the_interval_of_its_ratio_excludes_one(ratio, verdict):
    sentence = perplexity_sentence(perplexity(ratio))
    assert sentence.startswith("On plain text (20,480 tokens of “plain.txt”), folding multiplies perplexity by ")
    assert sentence.endswith(verdict)
    assert "from 18.20 to" in sentence
    assert "could not be compared" in perplexity_sentence(perplexity(NOTHING))


def test_accuracy_on_other_tasks_differs_only_if_the_interval_excludes_zero():
    [sentence] = transfer_sentences(
        [
            transfer("a", 0.6, (0.05, 0.01, 0.09)),
            transfer("b", 0.6, (-0.05, -0.09, -0.01)),
            transfer("c", 0.6, (0.05, -0.01, 0.11)),
            transfer("d", 0.6, (0.05, None, None)),
            transfer("e", 0.6, NOTHING),
        ]
    )
    assert sentence == (
        "On other tasks, the folded model is significantly less accurate than the base model on “b” (-5.0 points, -9.0 "
        "to -1.0); significantly more accurate than it on “a” (+5.0 points, +1.0 to +9.0); not significantly different "
        "from it on “c” (+5.0 points, -1.0 to +11.0); without an interval, so not compared, on “d” (+5.0 points)."
    )
    assert transfer_sentences([]) == []


def test_the_first_group_of_tasks_names_what_it_is_compared_with():
    [better] = transfer_sentences([transfer("a", 0.6, (0.05, 0.01, 0.09))])
    assert "is significantly more accurate than the base model on “a”" in better
    [level] = transfer_sentences([transfer("a", 0.6, (0.05, -0.01, 0.09))])
    assert "is not significantly different from the base model on “a”" in level


def test_a_sum_is_compared_with_its_parts_by_intervals():
    [sentence] = composition_sentences(
        [composition(["x", "y", "z"], {"x": (0.6, 0.7), "y": (0.7, 0.69), "z": (0.8, 0.7)})]
    )
    assert sentence == (
        "The sum “x + y + z” is significantly less accurate than the task's own fold on “x” (60.0 %, alone 70.0 %); "
        "significantly more accurate than it on “z” (80.0 %, alone 70.0 %); not significantly different from it on “y” "
        "(70.0 %, alone 69.0 %)."
    )
    [level] = composition_sentences([composition(["x"], {"x": (0.7, 0.7)})])
    assert "not significantly different from the task's own fold on “x”" in level
    lonely = composition(["x"], {"x": (0.7, 0.7)}).model_copy(update={"alone": {}})
    assert composition_sentences([lonely]) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2,048", " 1e-3 "], [1, 2048, 0.001]),
        (["1", "all"], None),
        (["1", "nan"], None),
        (["inf"], None),
        ([], []),
    ],
)
def test_values_are_numbers_only_if_all_of_them_are(values, expected):
    assert values_as_numbers([point("k", value) for value in values]) == expected


def test_axes_are_in_page_order_with_unknown_ones_last():
    folding: Folding = study(points=[point(axis, "1") for axis in ("rank", "k", "strength", "method")])
    assert axes_in_order(folding) == ["method", "k", "strength", "rank"]

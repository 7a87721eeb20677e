from typing import Any

import pytest

from dualform.studies.folding.result import Folding
from dualform.studies.folding.words import (
    axes_in_order,
    composition_sentences,
    headlines,
    numbers,
    perplexity_sentence,
    transfer_sentences,
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


def said(*points, **changes) -> list[str]:
    nothing: dict[str, Any] = {"perplexity": None, "transfer": [], "compositions": []}
    return headlines(example_folding(folding=study(points=list(points), **(nothing | changes))))


def test_another_study_and_one_without_points_have_nothing_to_say():
    assert headlines(empty_result(study="folding")) == []
    assert said() == []
    assert said(point("method", "ridge", NOTHING))[:-1] == []


def test_the_best_method_comes_first_beside_what_it_is_read_beside():
    first, second, third, *_ = headlines(example_folding())
    assert first == (
        "Of 6 ways of folding, “KV momentum” is most accurate: 72 % (69 to 75 %), where zero-shot has 57 %, "
        "in-context learning has 72 % and finetuning has 68 %. It lies above zero-shot, and is not distinguished from "
        "in-context learning and finetuning."
    )
    assert second == (
        "It answers 87.4 % (84.4 to 90.4 %) of the queries as in-context learning does, and recovers 101.3 % (20.0 to "
        "110.0 %) of what the prompt gained over zero-shot."
    )
    assert third == "It was picked as the best of 6 on these very queries, which flatters it."


def test_one_method_alone_is_not_called_the_best():
    sentences = said(point("method", "ridge", around(0.6)))
    assert sentences[0].startswith("Folding by “ridge” is accurate: 60 % (57 to 63 %), where zero-shot has 57 %")
    assert sentences[0].endswith(
        "It lies below in-context learning and finetuning, and is not distinguished from zero-shot."
    )
    assert not any("best" in sentence for sentence in sentences)


def test_methods_are_told_apart_only_where_intervals_do_not_touch():
    text = "\n".join(
        said(
            point("method", "a", around(0.72)),
            point("method", "b", around(0.661, 0.028)),
            point("method", "c", around(0.663, 0.028)),
        )
    )
    assert "Shown to lie below it: “b” (66.1 %); not distinguished from it: “c” (66.3 %)." in text
    assert "Not shown to be above zero-shot" not in text


def test_methods_no_better_than_no_fold_are_named():
    text = "\n".join(said(point("method", "a", around(0.72)), point("method", "b", around(0.58))))
    assert "Not shown to be above zero-shot: “b”." in text


def test_a_gain_that_is_not_shown_makes_its_share_mean_little():
    unsure = point("method", "a", around(0.7), recovered=estimate((0.9, None, None)))
    assert "so the share means little" in "\n".join(said(unsure))
    level = point("method", "a", around(0.58), icl=estimate(around(0.59)))
    assert "so the share means little" in "\n".join(said(level))
    assert "means little" not in "\n".join(said(point("method", "a", around(0.7))))


def test_without_a_method_axis_the_first_one_tells_the_best():
    first = said(point("k", "4", around(0.6)), point("k", "8", around(0.7)))[0]
    assert first.startswith("Folding is at its most accurate at demonstrations “8”: 70 %")


@pytest.mark.parametrize(
    ("first", "last", "end"),
    [
        (0.6, 0.7, ", a rise that the intervals show"),
        (0.7, 0.6, ", a fall that the intervals show"),
        (0.65, 0.67, "; the two intervals overlap"),
    ],
)
def test_a_trend_is_one_only_where_its_ends_are_apart(first, last, end):
    points = [point("k", "4", around(first)), point("k", "32", around(last))]
    [sentence] = [each for each in said(*points) if each.startswith("Demonstrations: accuracy goes from")]
    assert f"at 32{end}. Agreement with ICL goes from" in sentence


def test_a_peak_in_the_middle_is_told():
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("1", 0.7), ("10", 0.6))]
    assert "the highest is 70.0 % at 1, above both ends" in "\n".join(said(*points))
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("1", 0.61), ("10", 0.6))]
    assert "the highest is 61.0 % at 1. " in "\n".join(said(*points))


def test_what_a_rule_chose_is_told_beside_the_numbers():
    points = [point("strength", value, around(mean)) for value, mean in (("0.1", 0.6), ("gcv", 0.71), ("10", 0.61))]
    [sentence] = [each for each in said(*points) if each.startswith("Ridge strength")]
    assert "from 60.0 % (57.0 to 63.0 %) at 0.1 to 61.0 % (58.0 to 64.0 %) at 10; the two intervals overlap" in sentence
    assert "; “gcv” has 71.0 % (68.0 to 74.0 %). Agreement" in sentence


def test_the_default_method_is_told_where_another_is_the_most_accurate():
    folding = study(points=[point("method", "ridge", around(0.7)), point("method", "other", around(0.75))])
    named = example_folding(folding=folding, config={"fold": {"method": "ridge"}})
    assert (
        "The study's default, “ridge”, which was not picked by them, has 70 % (67 to 73 %): it lies above "
        "zero-shot, and is not distinguished from in-context learning."
    ) in headlines(named)
    best = example_folding(folding=folding, config={"fold": {"method": "other"}})
    assert "default" not in "".join(headlines(best))


def test_names_are_compared_with_the_best_of_them():
    def told(*means: float) -> str:
        [sentence] = [
            each
            for each in said(*(point("source", f"s{n}", around(mean)) for n, mean in enumerate(means)))
            if each.startswith("Source of the texts")
        ]
        return sentence

    assert told(0.7, 0.6).endswith("“s0” lies above all others.")
    assert told(0.7, 0.69).endswith("none is shown to differ from the best.")
    assert told(0.7, 0.69, 0.5).endswith("“s0” is not shown to lie above “s1”.")


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.04, 1.02, 1.06), "the model has become worse at it."),
        ((0.97, 0.95, 0.99), "the model has become better at it."),
        ((1.01, 0.99, 1.03), "no change is shown."),
        ((1.01, None, None), "no interval, so no conclusion."),
    ],
)
def test_perplexity_has_changed_only_where_its_ratio_does_not_hold_one(ratio, verdict):
    sentence = perplexity_sentence(perplexity(ratio))
    assert sentence.startswith("On plain text (20,480 tokens of “plain.txt”) folding multiplies perplexity by ")
    assert sentence.endswith(verdict)
    assert "from 18.20 to" in sentence
    assert "could not be compared" in perplexity_sentence(perplexity(NOTHING))


def test_other_tasks_are_better_or_worse_only_clear_of_zero():
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
        "Asked other tasks, the folded model is worse than the base model on “b” (-5.0 points, -9.0 to -1.0); better "
        "than it on “a” (+5.0 points, +1.0 to +9.0); not distinguished from it on “c” (+5.0 points, -1.0 to +11.0); "
        "not to be judged, without an interval, on “d” (+5.0 points)."
    )
    assert transfer_sentences([]) == []


def test_alone_a_group_of_tasks_names_what_it_is_beside():
    [better] = transfer_sentences([transfer("a", 0.6, (0.05, 0.01, 0.09))])
    assert "is better than the base model on “a”" in better
    [level] = transfer_sentences([transfer("a", 0.6, (0.05, -0.01, 0.09))])
    assert "is not distinguished from the base model on “a”" in level


def test_a_sum_is_told_apart_from_its_parts_by_intervals():
    [sentence] = composition_sentences(
        [composition(["x", "y", "z"], {"x": (0.6, 0.7), "y": (0.7, 0.69), "z": (0.8, 0.7)})]
    )
    assert sentence == (
        "The sum “x + y + z” is below the task's own fold on “x” (60.0 %, alone 70.0 %); above it on “z” (80.0 %, "
        "alone 70.0 %); not distinguished from it on “y” (70.0 %, alone 69.0 %)."
    )
    [level] = composition_sentences([composition(["x"], {"x": (0.7, 0.7)})])
    assert "not distinguished from the task's own fold on “x”" in level
    lonely = composition(["x"], {"x": (0.7, 0.7)}).model_copy(update={"alone": {}})
    assert composition_sentences([lonely]) == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["1", "2,048", " 1e-3 "], [1, 2048, 0.001]),
        (["1", "all"], None),
        (["1", "nan"], None),
        (["inf"], None),
        ([], []),
    ],
)
def test_values_are_numbers_only_all_together(values, found):
    assert numbers([point("k", value) for value in values]) == found


def test_axes_come_in_the_pages_order_and_unknown_ones_last():
    folding: Folding = study(points=[point(axis, "1") for axis in ("rank", "k", "strength", "method")])
    assert axes_in_order(folding) == ["method", "k", "strength", "rank"]

"""The sentences of a result where a learner is not shown to answer better than guessing or than one label for all."""

import re

import pytest

from dualform.report.numerals import MISSING
from dualform.report.phrases import share, share_interval
from dualform.result import Accuracy, Baselines, Estimate, PairedTest, PromptingComparison, Result, Similarity
from dualform.studies.against_words import recovered_share
from dualform.studies.baseline_words import above_guessing, baseline_levels
from dualform.studies.comparison.table import accuracy_table
from dualform.studies.comparison.words import findings
from dualform.studies.pages import render_page
from dualform.studies.paired_words import pair_sentences
from tests.report.example_result import empty_result

BASELINES = Baselines(chance=0.5, majority=0.7, majority_label=" yes", label_counts={" no": 30, " yes": 70}, n=100)


def accuracy(mean: float, half: float = 0.05, over: float | None = None, n: int = 300) -> Accuracy:
    difference = mean - 0.7 if over is None else over
    return Accuracy(
        mean=mean,
        ci95=(mean - half, mean + half),
        n=n,
        per_seed={"1": mean, "2": mean, "3": mean},
        over_majority=Estimate(mean=difference, ci95=(difference - half, difference + half), n=n),
    )


def result(**learners: Accuracy) -> Result:
    task = {"label_words": [" no", " yes"], "n_report": 100}
    return empty_result(accuracy=learners, baselines=BASELINES, task=task)


def test_a_learner_above_chance_but_not_above_the_most_common_label_has_not_been_shown_to_learn() -> None:
    measured = result(zsl=accuracy(0.55), icl=accuracy(0.69), ft=accuracy(0.9))
    assert above_guessing(measured, "icl") is False
    assert above_guessing(measured, "ft") is True
    text = "\n".join(findings(measured))
    assert (
        "Zero-shot and in-context learning are not significantly more accurate than both guessing (50.0 %) and" in text
    )
    assert "always answering “yes”, the most common label among the reported queries (70.0 %), so there is no" in text
    assert "no evidence that they have learned the task." in text


def test_where_even_the_best_is_no_better_than_one_label_that_is_said_first() -> None:
    first = findings(result(icl=accuracy(0.72), ft=accuracy(0.6)))[0]
    assert first.startswith(
        "No learner is shown to answer better than both guessing (50.0 %) and always answering “yes”"
    )


def test_the_paired_difference_decides_and_not_two_intervals() -> None:
    # 74 % with an interval from 69 %, but two points above the baseline on the very same queries.
    assert (
        above_guessing(
            result(
                icl=accuracy(0.74, half=0.05).model_copy(
                    update={"over_majority": Estimate(mean=0.04, ci95=(0.02, 0.06), n=300)}
                )
            ),
            "icl",
        )
        is True
    )
    collapsed = accuracy(0.7).model_copy(update={"over_majority": Estimate(mean=0.0, ci95=(None, None), n=300)})
    assert above_guessing(result(icl=collapsed), "icl") is False


def test_similarity_to_a_learner_that_learned_nothing_comes_with_a_caution() -> None:
    alike = {"rec2ftp": Similarity(mean=0.8, ci95=(0.7, 0.9), n=50, details={"chance": 0.6, "lift_ci95": [0.1, 0.3]})}
    measured = result(icl=accuracy(0.7), ft=accuracy(0.9)).model_copy(update={"similarity": alike})
    assert any("the similarity may not come from learning the task" in sentence for sentence in findings(measured))
    learned = result(icl=accuracy(0.9), ft=accuracy(0.9)).model_copy(update={"similarity": alike})
    assert not any("may not come from learning" in sentence for sentence in findings(learned))


def test_queries_of_one_label_make_accuracy_meaningless_and_that_comes_first() -> None:
    one_label = BASELINES.model_copy(update={"majority": 1.0, "label_counts": {" yes": 100}})
    measured = result(icl=accuracy(0.9, over=-0.1)).model_copy(update={"baselines": one_label})
    assert findings(measured)[0].startswith("Every reported query has the same right answer")


def test_levels_that_are_equal_are_one_line() -> None:
    assert baseline_levels(result()) == [(0.5, "chance"), (0.7, "majority")]
    even = empty_result(baselines=BASELINES.model_copy(update={"majority": 0.5}))
    assert baseline_levels(even) == [(0.5, "chance = majority")]


def test_the_terminal_and_the_page_hold_both_baselines() -> None:
    measured = result(icl=accuracy(0.9))
    table = accuracy_table(measured)
    assert [row.cells[1].text for row in table.rows] == ["90.0 %", "50.0 %", "70.0 %"]
    assert [row.cells[0].text for row in table.rows][1:] == ["guessing", "always answering “yes”"]
    page = render_page(measured)
    assert re.search(r"<th scope=.row.[^>]*>\s*always answering “yes”\s*</th>\s*<td[^>]*>\s*70\.0 %\s*<", page)


@pytest.mark.parametrize(
    ("n", "text", "interval"), [(1, "1 of 1", MISSING), (9, "9 of 9", MISSING), (10, "100.0 %", "69.0 to 100.0 %")]
)
def test_a_share_of_few_answers_is_a_count_whatever_interval_the_file_holds(n: int, text: str, interval: str) -> None:
    measured = Estimate(mean=1.0, ci95=(0.69, 1.0), n=n)
    assert (share(measured), share_interval(measured)) == (text, interval)


def test_rec2ftp_of_few_answers_is_no_verdict() -> None:
    few = Similarity(mean=1.0, ci95=(1.0, 1.0), n=1, details={"chance": 0.4, "lift_ci95": [0.5, 0.7]})
    [sentence] = [each for each in findings(empty_result(similarity={"rec2ftp": few})) if "corrected" in each]
    assert "Of the 1 answer that finetuning corrected, ICL corrected 1" in sentence
    assert "too few for a conclusion" in sentence
    assert "%" not in sentence


def test_a_test_of_few_answers_shows_nothing() -> None:
    test = PairedTest(
        first="icl", second="ft", difference=1.0, ci95=(None, None), n=9, p_queries=0.004, p_seeds=None,
        minimum_detectable=None,
    )  # fmt: skip
    assert pair_sentences(empty_result(tests=[test])) == [
        "Not significantly different: in-context learning and finetuning."
    ]


def test_a_share_of_a_gain_of_few_answers_is_a_count() -> None:
    against = PromptingComparison(
        agreement=Estimate(mean=0.9, ci95=(0.8, 1.0), n=100),
        recovered=Estimate(mean=0.75, ci95=(None, None), n=100),
        gained=4,
        break_even=None,
        break_even_kept=None,
    )
    assert recovered_share(against) == "3 of 4"
    assert recovered_share(against.model_copy(update={"gained": 40})) == "75.0 %"

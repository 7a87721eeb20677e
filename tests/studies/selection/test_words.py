import pytest

from dualform.result import Estimate
from dualform.studies.selection.words import choice_name, findings
from tests.report.example_result import empty_result
from tests.report.example_selection import choice, example_selection, study

NOTHING = (0.0, -0.02, 0.02)


def text_of(*choices, **changes) -> str:
    return "\n".join(findings(example_selection(selection=study(*choices, **changes))))


def test_without_choices_there_are_no_findings():
    assert findings(empty_result(study="selection")) == []
    assert findings(example_selection(selection=study())) == []


def test_the_largest_significant_optimism_comes_first():
    first = findings(example_selection())[0]
    assert first == (
        "Choosing by finetuning's accuracy on the report queries inflates the accuracy of finetuning most, by +6.1 "
        "points (+3.2 to +9.0); 4 of 8 accuracies of chosen settings are significantly too high."
    )


def test_a_choice_inflates_an_accuracy_only_if_the_interval_lies_above_zero():
    text = text_of(choice("icl", "report", icl=(0.05, 0.01, 0.09), ft=(0.02, -0.01, 0.05)))
    assert (
        "Choosing by in-context learning's accuracy on the report queries inflates the accuracy of in-context learning "
        "by +5.0 points (+1.0 to +9.0), and does not significantly inflate that of finetuning (+2.0 points, -1.0 to "
        "+5.0)." in text
    )


def test_a_score_that_is_too_low_is_reported():
    text = text_of(choice("both", "validation", icl=(-0.05, -0.08, -0.02), ft=NOTHING))
    assert "deflates the accuracy of in-context learning by -5.0 points" in text
    assert text.startswith("No choice significantly inflates a learner's accuracy")


def test_if_every_interval_contains_zero_no_choice_inflates_an_accuracy():
    text = text_of(choice("both", "validation", icl=NOTHING, ft=NOTHING))
    assert text.startswith("No choice significantly inflates a learner's accuracy")
    assert "does not significantly inflate the accuracy of in-context learning (+0.0 points, -2.0 to +2.0) and" in text


def test_without_intervals_there_is_no_conclusion():
    text = text_of(choice("icl", "report", icl=(0.05, None, None), ft=(0.01, None, None)))
    assert text.startswith("No intervals, so no conclusion on the optimism of a choice.")
    assert "allows no conclusion, without an interval, on the accuracy of in-context learning (+5.0 points)" in text


def test_one_learner_is_favoured_only_if_the_intervals_do_not_overlap():
    separate = text_of(choice("icl", "report", icl=(0.08, 0.05, 0.11), ft=NOTHING))
    assert "It favours in-context learning over finetuning" in separate
    overlapping = text_of(choice("icl", "report", icl=(0.05, 0.01, 0.09), ft=NOTHING))
    assert "favours" not in overlapping


def test_without_a_choice_a_difference_shows_unequal_queries():
    text = text_of(choice("none", "report", icl=(0.05, 0.01, 0.09), ft=NOTHING))
    assert text.startswith("Nothing was chosen")
    assert (
        "Even without a choice, accuracy differs between the two sets of queries for in-context learning by +5.0"
        in text
    )
    assert "inflates" not in text
    assert "Even without" not in text_of(choice("none", "report", icl=NOTHING, ft=NOTHING))


@pytest.mark.parametrize(
    ("tokens", "claim"),
    [
        ((1000, 1050), "1,000 tokens for in-context learning (35 trials) and 1,050 for finetuning (36 trials): equal"),
        ((1000, 2000), "the budgets were unequal, 2.00 times as many tokens for finetuning"),
        ((3000, 2000), "the budgets were unequal, 1.50 times as many tokens for in-context learning"),
        ((1000, 0), "the budgets were unequal, since finetuning was not searched"),
        ((0, 0), "neither was searched"),
        ((None, 1000), "so the budgets cannot be compared"),
    ],
)
def test_budgets_are_compared(tokens, claim):
    assert claim in text_of(choice("both", "report", icl=NOTHING, ft=NOTHING, tokens=tokens))


def test_choices_with_equal_searches_are_reported_together():
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING, tokens=(10, 20))
    two = choice("ft", "report", icl=NOTHING, ft=NOTHING, tokens=(10, 20))
    three = choice("both", "report", icl=NOTHING, ft=NOTHING, tokens=(20, 20))
    assert "With every choice, the search read 10 tokens" in text_of(one, two)
    text = text_of(one, two, three)
    assert "With ICL on report and FT on report, the search read 10 tokens" in text
    assert "With both on report, the search read 20 tokens" in text


def test_similarity_depends_on_the_choice_only_if_the_intervals_of_the_extremes_do_not_overlap():
    def two(first, second):
        return text_of(
            choice("icl", "report", icl=NOTHING, ft=NOTHING, similarity_score=first, seed=1),
            choice("ft", "report", icl=NOTHING, ft=NOTHING, similarity_score=second, seed=2),
        )

    separate = two((0.1, 0.08, 0.12), (0.18, 0.16, 0.2))
    assert (
        "SimAOU lies between 0.100 (0.080 to 0.120; ICL on report) and 0.180 (0.160 to 0.200; FT on report), a range "
        "of 0.080 (0.050 to 0.110); their intervals do not overlap, so it depends on the choice." in separate
    )
    overlapping = two((0.1, 0.05, 0.15), (0.18, 0.12, 0.24))
    assert "SimAOU lies" in overlapping
    assert "their intervals overlap, so it does not differ significantly between choices" in overlapping
    unknown = two((0.1, None, None), (0.18, None, None))
    assert "no intervals, so no conclusion" in unknown
    assert "SimAOU is 0.100 with every choice." in two((0.1, 0.05, 0.15), (0.1, 0.05, 0.15))


def test_equal_choices_cannot_differ_in_similarity():
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING)
    two = choice("ft", "report", icl=NOTHING, ft=NOTHING)
    text = text_of(one, two)
    assert "Every choice is the same (seed 1, order 1, rate 0.01)" in text
    assert "SimAOU" not in text


def test_a_single_choice_has_no_finding_on_similarity():
    assert "SimAOU" not in text_of(choice("icl", "report", icl=NOTHING, ft=NOTHING))


def test_a_measure_without_a_number_for_one_choice_is_compared_over_the_others():
    nothing = {"sim_aou": Estimate(mean=None, ci95=(None, None), n=0)}
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING, similarity=nothing)
    assert "SimAOU" not in text_of(one, choice("ft", "report", icl=NOTHING, ft=NOTHING, seed=2))


def test_the_last_sentence_counts_the_queries():
    assert findings(example_selection())[-1] == (
        "Based on choices by 100 validation queries or 200 report queries, evaluated on 300 untouched queries."
    )


def test_every_choice_has_a_name_of_its_own():
    selection = example_selection().selection
    assert selection is not None
    names = [choice_name(each) for each in selection.choices]
    assert names == ["ICL on report", "FT on report", "both on report", "both on validation", "none on report"]

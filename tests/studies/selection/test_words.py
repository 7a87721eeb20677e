import pytest

from dualform.result import Estimate
from dualform.studies.selection.words import choice_name, headlines
from tests.report.example_result import empty_result
from tests.report.example_selection import choice, example_selection, study

NOTHING = (0.0, -0.02, 0.02)


def said(*choices, **changes) -> str:
    return "\n".join(headlines(example_selection(selection=study(*choices, **changes))))


def test_another_study_has_nothing_to_say():
    assert headlines(empty_result(study="selection")) == []
    assert headlines(example_selection(selection=study())) == []


def test_the_largest_optimism_that_is_shown_comes_first():
    first = headlines(example_selection())[0]
    assert first == (
        "Choosing by finetuning's accuracy on the report queries flatters finetuning most, by +6.1 points "
        "(+3.2 to +9.0); 4 of 8 accuracies chosen are shown to be too high."
    )


def test_a_choice_flatters_only_clear_of_zero():
    text = said(choice("icl", "report", icl=(0.05, 0.01, 0.09), ft=(0.02, -0.01, 0.05)))
    assert (
        "Choosing by in-context learning's accuracy on the report queries flatters in-context learning by +5.0 points "
        "(+1.0 to +9.0), and is not shown to flatter finetuning (+2.0 points, -1.0 to +5.0)." in text
    )


def test_a_score_that_came_out_too_low_is_said():
    text = said(choice("both", "validation", icl=(-0.05, -0.08, -0.02), ft=NOTHING))
    assert "shows too low in-context learning by -5.0 points" in text
    assert text.startswith("No way of choosing is shown to flatter a learner")


def test_overlapping_zero_everywhere_flatters_nobody():
    text = said(choice("both", "validation", icl=NOTHING, ft=NOTHING))
    assert text.startswith("No way of choosing is shown to flatter a learner")
    assert "is not shown to flatter in-context learning (+0.0 points, -2.0 to +2.0) and finetuning" in text


def test_without_intervals_nothing_is_claimed():
    text = said(choice("icl", "report", icl=(0.05, None, None), ft=(0.01, None, None)))
    assert text.startswith("Without intervals no choice is said to flatter a learner.")
    assert "cannot be judged, without an interval, for in-context learning (+5.0 points)" in text


def test_one_learner_is_favoured_only_where_the_intervals_do_not_touch():
    apart = said(choice("icl", "report", icl=(0.08, 0.05, 0.11), ft=NOTHING))
    assert "It favours in-context learning over finetuning" in apart
    touching = said(choice("icl", "report", icl=(0.05, 0.01, 0.09), ft=NOTHING))
    assert "favours" not in touching


def test_choosing_nothing_flatters_nobody_but_shows_unequal_queries():
    text = said(choice("none", "report", icl=(0.05, 0.01, 0.09), ft=NOTHING))
    assert text.startswith("Nothing was chosen")
    assert "Even where nothing is chosen the two sets of queries differ for in-context learning by +5.0 points" in text
    assert "flatters in-context" not in text
    assert "Even where" not in said(choice("none", "report", icl=NOTHING, ft=NOTHING))


@pytest.mark.parametrize(
    ("tokens", "claim"),
    [
        ((1000, 1050), "1,000 tokens for in-context learning (35 trials) and 1,050 for finetuning (36 trials): equal"),
        ((1000, 2000), "the budgets were not equal, finetuning had 2.00 times the other's"),
        ((3000, 2000), "the budgets were not equal, in-context learning had 1.50 times the other's"),
        ((1000, 0), "the budgets were not equal, finetuning was not searched"),
        ((0, 0), "neither was searched"),
        ((None, 1000), "nothing says whether the budgets were equal"),
    ],
)
def test_budgets_are_held_beside_one_another(tokens, claim):
    assert claim in said(choice("both", "report", icl=NOTHING, ft=NOTHING, tokens=tokens))


def test_choices_searched_alike_are_told_together():
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING, tokens=(10, 20))
    two = choice("ft", "report", icl=NOTHING, ft=NOTHING, tokens=(10, 20))
    three = choice("both", "report", icl=NOTHING, ft=NOTHING, tokens=(20, 20))
    assert "Under every choice the search read 10 tokens" in said(one, two)
    text = said(one, two, three)
    assert "Under ICL on report and FT on report the search read 10 tokens" in text
    assert "Under both on report the search read 20 tokens" in text


def test_likeness_depends_on_the_choice_only_where_the_extremes_lie_apart():
    def two(first, second):
        return said(
            choice("icl", "report", icl=NOTHING, ft=NOTHING, likeness=first, seed=1),
            choice("ft", "report", icl=NOTHING, ft=NOTHING, likeness=second, seed=2),
        )

    apart = two((0.1, 0.08, 0.12), (0.18, 0.16, 0.2))
    assert (
        "SimAOU lies between 0.100 (0.080 to 0.120; ICL on report) and 0.180 (0.160 to 0.200; FT on report), a range "
        "of 0.080 (0.050 to 0.110); their intervals do not touch, so it depends on the choice." in apart
    )
    overlapping = two((0.1, 0.05, 0.15), (0.18, 0.12, 0.24))
    assert "SimAOU lies" in overlapping
    assert "their intervals overlap, so it is not shown to depend on the choice" in overlapping
    unknown = two((0.1, None, None), (0.18, None, None))
    assert "without intervals nothing says whether it depends" in unknown
    assert "SimAOU is 0.100 under every choice." in two((0.1, 0.05, 0.15), (0.1, 0.05, 0.15))


def test_choices_of_one_and_the_same_thing_cannot_differ():
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING)
    two = choice("ft", "report", icl=NOTHING, ft=NOTHING)
    text = said(one, two)
    assert "Every choice is the same (seed 1, order 1, rate 0.01)" in text
    assert "SimAOU" not in text


def test_a_single_choice_says_nothing_of_likeness():
    assert "SimAOU" not in said(choice("icl", "report", icl=NOTHING, ft=NOTHING))


def test_a_likeness_that_one_choice_lacks_is_compared_over_the_others():
    nothing = {"sim_aou": Estimate(mean=None, ci95=(None, None), n=0)}
    one = choice("icl", "report", icl=NOTHING, ft=NOTHING, similarity=nothing)
    assert "SimAOU" not in said(one, choice("ft", "report", icl=NOTHING, ft=NOTHING, seed=2))


def test_the_verdict_closes_with_what_it_stands_on():
    assert headlines(example_selection())[-1] == (
        "Chosen on 100 validation queries or 200 report queries; held against 300 queries that nothing was chosen on."
    )


def test_every_choice_has_a_name_of_its_own():
    selection = example_selection().selection
    assert selection is not None
    names = [choice_name(each) for each in selection.choices]
    assert names == ["ICL on report", "FT on report", "both on report", "both on validation", "none on report"]

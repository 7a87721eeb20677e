"""The sentences that a terminal prints first: four at most, without losing a caution."""

import re

import pytest

from dualform.report.phrases import count_sentences, leading_sentences
from dualform.result import Result
from dualform.runs.sweep_words import sweep_headlines, sweep_notes, sweep_verdict
from dualform.studies.study import study_of_result
from dualform.sweep_result import SweepResult
from tests.report.example_advice import example_advice
from tests.report.example_folding import example_folding
from tests.report.example_laboratory import example_laboratory
from tests.report.example_momentum import example_momentum
from tests.report.example_result import example_result, old_result
from tests.report.example_selection import example_selection
from tests.report.example_stability import example_stability, one_model
from tests.report.example_sweep import empty_sweep, example_sweep, mixed_sweep, sweep_over_k

RESULTS = {
    "advice": example_advice,
    "comparison": example_result,
    "older comparison": old_result,
    "folding": example_folding,
    "laboratory": example_laboratory,
    "momentum": example_momentum,
    "selection": example_selection,
    "stability": example_stability,
    "stability of one model": one_model,
}
CAUTIONS = {
    "advice": "the advice loses",
    "comparison": "has collapsed into one class",
    "older comparison": "does not show that ICL and finetuning learn the same thing",
    "folding": "its accuracy is biased upwards",
    "laboratory": "must fail",
    "momentum": "not corrected for multiplicity",
    "selection": "untouched queries",
    "stability": "Two sizes are not a trend",
    "stability of one model": "Only one model was run",
}
SWEEPS = (example_sweep, sweep_over_k, mixed_sweep)


def full_stops(sentences: list[str]) -> int:
    """Ends of sentences: marks that no digit follows, as in 0.21, and no further letter, as in gpt.cpp."""
    return sum(len(re.findall(r"[.?!](?![0-9A-Za-z])", sentence)) for sentence in sentences)


def view_of(result: Result) -> tuple[list[str], list[str]]:
    study = study_of_result(result)
    assert study is not None
    return list(study.view.headlines(result)), list(study.view.notes(result))


@pytest.mark.parametrize("name", RESULTS)
def test_a_verdict_has_at_most_four_sentences_and_a_caution_is_never_lost(name: str) -> None:
    headlines, notes = view_of(RESULTS[name]())
    assert 1 <= full_stops(headlines) <= 4
    assert any(CAUTIONS[name] in sentence for sentence in (*headlines, *notes))


@pytest.mark.parametrize("example", SWEEPS)
def test_a_verdict_on_a_sweep_has_at_most_four_sentences(example) -> None:
    sweep: SweepResult = example()
    headlines = sweep_headlines(sweep)
    assert 1 <= full_stops(headlines) <= 4
    assert set(headlines) <= set(sweep_verdict(sweep))


def test_a_sweeps_missing_and_collapsed_cells_are_noted() -> None:
    notes = " ".join(sweep_notes(example_sweep()))
    assert "2 failed and 2 were not started" in notes
    assert "Finetuning has collapsed into one class in 1 of 11 groups" in notes
    # What reports no problem is no caution.
    assert sweep_notes(mixed_sweep()) == []
    assert sweep_notes(empty_sweep()) == []


def test_a_finding_is_taken_whole_and_one_that_does_not_fit_is_skipped() -> None:
    two = "First of all. And more."
    assert leading_sentences([two], ["A claim.", "But a caveat. And more of it."], ["Third."], ["Fourth."]) == [
        two,
        "Third.",
        "Fourth.",
    ]
    assert leading_sentences([two], ["a model: ends at 0.21."], ["A claim.", "A caveat."]) == [
        two,
        "a model: ends at 0.21.",
    ]


@pytest.mark.parametrize(
    ("text", "n"),
    [("", 0), ("It is 0.21 (0.17 to 0.24).", 1), ("Is it? “Yes” it is. smollm2 too.", 2), ("Two. Sentences.", 2)],
)
def test_sentences_are_counted_by_their_ends(text: str, n: int) -> None:
    assert count_sentences(text) == n

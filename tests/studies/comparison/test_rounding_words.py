from typing import Any

import pytest

from dualform.result import Result, Rounding, SeedEstimate
from dualform.studies.comparison.rounding_words import TRAINED, rounding_section, rounding_sentences
from dualform.studies.comparison.words import findings
from dualform.studies.pages import render_page
from tests.report.example_result import example_result
from tests.studies.known_controls import PAIRS


def estimate(mean: float | None, n: int = 40) -> SeedEstimate:
    return SeedEstimate(mean=mean, ci95=(None, None), n=n, per_seed={"1": mean})


def rounding(**changes: Any) -> Rounding:
    settings: dict[str, Any] = {
        "learning_rate": {"1": 1e-3},
        "log_probability": estimate(0.1037),
        "largest": {"1": 0.4219},
        "flips": estimate(0.125),
        "accuracy": 0.6,
        "accuracy_repeated": 0.55,
        "similarity": {"sim_aou_raw": estimate(0.9871)},
        "loss": [6e-6, 0.1],
        "stable": False,
    }
    return Rounding(**(settings | changes))


def with_rounding(**changes: Any) -> Result:
    """The example with a repeat, and with what it moves."""
    result = example_result(precision={"ft": rounding(**changes)})
    moved = {name: each.model_copy(update={"rounding": 0.0317}) for name, each in result.similarity.items()}
    return result.model_copy(update={"similarity": moved})


def test_a_stable_training_needs_no_sentence() -> None:
    assert rounding_sentences(with_rounding(stable=True), "sim_aou_raw") == []
    assert rounding_sentences(example_result(), "sim_aou_raw") == []


def test_the_verdict_names_the_numbers() -> None:
    verdict = " ".join(rounding_sentences(with_rounding(), "sim_aou_raw"))
    for number in ("(0.001)", "0.104 nats", "at most 0.422 nats", "5 of 40 answers change", "0.032", "0.987"):
        assert number in verdict, number
    assert all(sentence in findings(with_rounding()) for sentence in rounding_sentences(with_rounding(), "sim_aou_raw"))


def test_a_repeat_that_diverged_is_named() -> None:
    gone = rounding(
        log_probability=estimate(None, 0), largest={"1": None}, flips=estimate(None, 0), diverged=[1], loss=[]
    )
    result = example_result(precision={"ft": gone})
    assert "diverged for 1 seed" in rounding_sentences(result)[0]
    assert "diverged" in render_page(result)


def test_trained_controls_are_those_of_the_study() -> None:
    """Every control whose stand-in is trained, and no other."""
    untrained = {"position_shift", "shuffled_labels", "random_labels", "other_task", "random_update", "icl_order"}
    assert set(TRAINED) == set(PAIRS) - untrained


@pytest.mark.parametrize("stable", [True, False])
def test_the_page_shows_what_a_repeat_changes(stable: bool) -> None:
    result = with_rounding(stable=stable)
    section = rounding_section(result)
    assert ("can be reproduced on other machines" in section.note) is stable
    page = render_page(result)
    assert 'id="rounding"' in page
    assert "5 of 40" in page
    assert "± 0.032 by rounding" in page
    assert 'id="rounding"' not in render_page(example_result())

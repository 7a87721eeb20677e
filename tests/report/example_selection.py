"""A made-up but plausible selection study for the tests of its report."""

from collections.abc import Mapping
from typing import Any

from dualform.result import Estimate
from dualform.studies.selection.result import Choice, ChoiceScore, Selection, SelectionResult


def example_selection(**changes: Any) -> SelectionResult:
    """Five choices, one of them `none`; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "selection",
        "config": {"model": "smollm2-135m", "task": "reviews", "seeds": [1, 2, 3, 4, 5, 6, 7]},
        "environment": {"python": "3.12.3", "device": "cpu", "seconds": 512.3},
        "model": {"name": "smollm2-135m", "parameters": 134_515_008, "n_layers": 30},
        "task": {
            "name": "reviews",
            "label_words": [" Negative", " Positive"],
            "prompt": "Review: a masterpiece of the obvious\nSentiment:",
            "n_report": 200,
            "report_split": "test",
        },
        "selection": study(
            choice(
                "icl", "report", icl=(0.052, 0.011, 0.093), ft=(0.004, -0.02, 0.03), similarity_score=(0.12, 0.1, 0.14)
            ),
            choice(
                "ft",
                "report",
                icl=(-0.01, -0.05, 0.03),
                ft=(0.061, 0.032, 0.09),
                similarity_score=(0.2, 0.18, 0.22),
                seed=2,
            ),
            choice(
                "both",
                "report",
                icl=(0.05, 0.01, 0.09),
                ft=(0.06, 0.03, 0.09),
                similarity_score=(0.16, 0.14, 0.18),
                seed=3,
            ),
            choice(
                "both",
                "validation",
                icl=(0.01, -0.02, 0.04),
                ft=(0.0, -0.03, 0.03),
                similarity_score=(0.15, 0.13, 0.17),
            ),
            choice(
                "none",
                "report",
                icl=(0.0, -0.02, 0.02),
                ft=(0.0, -0.02, 0.02),
                similarity_score=(0.17, 0.15, 0.19),
                seed=4,
            ),
        ),
    }
    return SelectionResult(**(fields | changes))


def study(*choices: Choice, width: float = 0.08) -> Selection:
    """A study of these choices."""
    measures = {key for each in choices for key in each.similarity}
    return Selection(
        choices=list(choices),
        similarity_range={key: estimate((width, width - 0.03, width + 0.03)) for key in measures},
        n_validation=100,
        n_report=200,
        n_untouched=300,
    )


def choice(
    select: str,
    select_on: str,
    *,
    icl: tuple[float | None, float | None, float | None],
    ft: tuple[float | None, float | None, float | None],
    similarity_score: tuple[float | None, float | None, float | None] = (0.1, 0.08, 0.12),
    tokens: tuple[float | None, float | None] = (1_200_000, 1_900_000),
    seed: int = 1,
    similarity: Mapping[str, Estimate] | None = None,
) -> Choice:
    """A choice with this optimism (mean and interval) for ICL and FT."""
    return Choice(
        select=select,
        select_on=select_on,
        seed=seed,
        order=1,
        learning_rate=0.01,
        scores={"icl": score(icl, 0.7, tokens[0], 35), "ft": score(ft, 0.66, tokens[1], 36)},
        similarity=(
            {"sim_aou": estimate(similarity_score), "sim_am": estimate((0.6 + seed / 1000, 0.58, 0.62))}
            if similarity is None
            else dict(similarity)
        ),
    )


def score(
    optimism: tuple[float | None, float | None, float | None], untouched: float, tokens: float | None, trials: int
) -> ChoiceScore:
    """A score with this optimism."""
    selected = untouched + (optimism[0] or 0.0)
    return ChoiceScore(
        selected=estimate((selected, selected - 0.03, selected + 0.03)),
        untouched=estimate((untouched, untouched - 0.03, untouched + 0.03)),
        optimism=estimate(optimism),
        tokens=tokens,
        trials=trials,
    )


def estimate(numbers: tuple[float | None, float | None, float | None]) -> Estimate:
    """Mean and interval."""
    return Estimate(mean=numbers[0], ci95=(numbers[1], numbers[2]), n=200)

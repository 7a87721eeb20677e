"""How far finetuning's numbers depend on rounding, in sentences and table rows."""

from typing import Any

from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import MISSING, count, decimal, finite, percent, significant
from dualform.report.phrases import hundredths, listed, plural
from dualform.result import Result, Rounding

TRAINED = (
    "other_demonstrations",
    "ft_order",
    "batch",
    "batch_sequential",
    "lcgd",
    "value_one_layer",
    "mlp",
    "untrained",
    "embeddings",
)
"""Controls whose stand-in is trained, and whose training is not repeated."""

_MOVE = "weights moved by one unit in their last place"


def rounding_sentences(result: Result, judged: str | None = None) -> list[str]:
    """What to know where finetuning's numbers depend on rounding; empty where they do not, or this was not measured.

    Args:
        result: Of a comparison.
        judged: The measure by which the verdict judges similarity.
    """
    found = result.precision.get("ft")
    if found is None or found.stable:
        return []
    sentences = [f"Finetuning depends on rounding {_at(found)}: {_apart(found)}."]
    moved = _moved(result, judged) if judged else ""
    if moved:
        sentences.append(moved)
    trained = [f"“{control_of(key).title}”" for key in controls_in_order(result.controls) if key in TRAINED]
    also = f" Controls that train ({listed(trained)}) were not repeated and are affected likewise." if trained else ""
    sentences.append(
        "No interval includes this. A lower rate (--rates) depends on it less; --dtype float64 on the same rate shows "
        f"what exact arithmetic would give.{also}"
    )
    return sentences


def _at(found: Rounding) -> str:
    rates = sorted({rate for rate in map(finite, found.learning_rate.values()) if rate is not None})
    return f"at the rate chosen ({listed([f'{rate:g}' for rate in rates])})" if rates else "at the rate chosen"


def _apart(found: Rounding) -> str:
    """What a repeat changes, as the end of a sentence."""
    parts = []
    if found.diverged:
        parts.append(f"repeated from {_MOVE}, it diverged for {plural(len(found.diverged), 'seed')}")
    mean, largest = finite(found.log_probability.mean), largest_of(found)
    if mean is not None and largest is not None:
        changed, n = flips_of(found)
        parts.append(
            f"repeated from {_MOVE}, it gives log-probabilities of answers that differ by {significant(mean)} nats on "
            f"average and {significant(largest)} at most, and changes {changed} of {plural(n, 'answer')}"
        )
    return "; ".join(parts) or "its repeat gave no numbers"


def _moved(result: Result, judged: str) -> str:
    """How far the measure that the verdict judges by is moved, and what finetuning scores against its own repeat."""
    each, place = result.similarity.get(judged), result.calibrated.get(judged)
    moved = None if each is None else finite(each.rounding)
    if moved is None:
        return ""
    sentence = f"{measure_of(judged).title} moves by {decimal(moved)}"
    scaled = None if place is None else finite(place.rounding)
    sentence += f" (calibrated: by {hundredths(scaled)})" if scaled is not None else ""
    again = result.precision["ft"].similarity.get(judged)
    if again is None or finite(again.mean) is None:
        return f"{sentence}."
    sentence += f"; between finetuning and its repeat it is {decimal(again.mean)}"
    ceiling = result.controls.get("ft_order", {}).get(judged)
    if ceiling is not None and finite(ceiling.mean) is not None:
        sentence += f", between two orders of the demonstrations {decimal(ceiling.mean)}"
    return f"{sentence}."


def largest_of(found: Rounding) -> float | None:
    """The largest difference of a log-probability over all seeds, nats."""
    known = [value for each in found.largest.values() if (value := finite(each)) is not None]
    return max(known) if known else None


def flips_of(found: Rounding) -> tuple[int, int]:
    """Answers that the repeat changes, and of how many."""
    n = found.flips.n
    return round((finite(found.flips.mean) or 0.0) * n), n


def rounding_section(result: Result) -> dict[str, Any] | None:
    """What the page shows of it; None where it was not measured."""
    found = result.precision.get("ft")
    if found is None:
        return None
    changed, n = flips_of(found)
    rows = [
        ("difference of an answer's log-probability, mean, nats", significant(found.log_probability.mean)),
        ("the largest, nats", significant(largest_of(found))),
        ("answers changed", f"{changed} of {count(n)}"),
        ("accuracy of finetuning, and of its repeat", _both(found)),
        ("difference of the training loss at the first step, and at the last, nats", _losses(found)),
    ]
    measures = [
        {
            "title": measure_of(key).title,
            "again": decimal(found.similarity[key].mean) if key in found.similarity else "",
            "moved": moved_by(result.similarity[key].rounding),
            "calibrated": hundredths(result.calibrated[key].rounding)
            if key in result.calibrated and finite(result.calibrated[key].rounding) is not None
            else "",
        }
        for key in in_order(result.similarity)
        if key in found.similarity or finite(result.similarity[key].rounding) is not None
    ]
    trained = [control_of(key).title for key in controls_in_order(result.controls) if key in TRAINED]
    return {
        "stable": found.stable,
        "at": _at(found),
        "rows": rows,
        "measures": measures,
        "trained": listed(trained) if trained else "",
        "seeds": [
            (seed, significant(value), percent(found.flips.per_seed.get(seed))) for seed, value in found.largest.items()
        ],
    }


def moved_by(number: float | None) -> str:
    """A move as `0.004`; empty without one."""
    return "" if finite(number) is None else decimal(number)


def _both(found: Rounding) -> str:
    return f"{percent(found.accuracy)}, {percent(found.accuracy_repeated)}"


def _losses(found: Rounding) -> str:
    return f"{significant(found.loss[0])}, {significant(found.loss[-1])}" if found.loss else MISSING

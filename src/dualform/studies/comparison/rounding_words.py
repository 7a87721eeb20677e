"""How far finetuning's numbers depend on rounding, in sentences and table rows."""

from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import MISSING, count, decimal, finite, percent, significant
from dualform.report.phrases import hundredths, listed, plural
from dualform.report.section import Section
from dualform.report.table import BLANK, Cell, Column, Row, Table
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


def rounding_section(result: Result) -> Section:
    """What the page shows of it; empty where it was not measured."""
    title = "How far finetuning depends on rounding"
    found = result.precision.get("ft")
    if found is None:
        return Section("rounding", title)
    outcome = (
        "Next to nothing changes: its numbers can be reproduced elsewhere."
        if found.stable
        else "What changes depends on the machine that ran it, and no interval of this page includes it."
    )
    trained = [control_of(key).title for key in controls_in_order(result.controls) if key in TRAINED]
    others = (
        f" Trainings of controls ({listed(trained)}) were not repeated; expect the same of them at the same rate."
        if trained
        else ""
    )
    tables = rounding_tables(result)
    return Section(
        "rounding",
        title,
        note=f"Finetuning repeated {_at(found)} from weights moved by one unit in their last place, the least change "
        f"that their precision can express. {outcome} One repeat a seed shows the order of magnitude.{others}",
        tables=tables[:2],
        sections=[Section("rounding-seeds", "Seed by seed", tables=tables[2:])],
    )


def rounding_tables(result: Result) -> list[Table]:
    """What a repeat changes: in all, measure by measure, and seed by seed where there are several."""
    found = result.precision.get("ft")
    if found is None:
        return []
    changed, n = flips_of(found)
    rows = [
        ("difference of an answer's log-probability, mean, nats", significant(found.log_probability.mean)),
        ("the largest, nats", significant(largest_of(found))),
        ("answers changed", f"{changed} of {count(n)}"),
        ("accuracy of finetuning, and of its repeat", _both(found)),
        ("difference of the training loss at the first step, and at the last, nats", _losses(found)),
    ]
    totals = Table(
        "In all",
        (Column("number"), Column("value", "number")),
        tuple(Row((Cell(name), Cell(None, "number", shown=value))) for name, value in rows),
    )
    measures = tuple(
        Row(
            (
                Cell(measure_of(key).title),
                Cell(found.similarity[key].mean, "score") if key in found.similarity else BLANK,
                Cell(moved, "score") if (moved := finite(result.similarity[key].rounding)) is not None else BLANK,
                Cell(result.calibrated[key].rounding, "ratio")
                if key in result.calibrated and finite(result.calibrated[key].rounding) is not None
                else BLANK,
            )
        )
        for key in in_order(result.similarity)
        if key in found.similarity or finite(result.similarity[key].rounding) is not None
    )
    columns = (
        Column("measure"),
        Column("finetuning against its repeat", "score"),
        Column("moved by", "score"),
        Column("calibrated value moved by", "ratio"),
    )
    seeds = tuple(
        Row((Cell(seed), Cell(value, "number"), Cell(found.flips.per_seed.get(seed), "share")))
        for seed, value in found.largest.items()
    )
    by_seed = (Column("seed"), Column("largest difference, nats", "number"), Column("answers changed", "share"))
    tables = [totals, Table("Measure by measure", columns, measures)]
    return [*tables, Table("Seed by seed", by_seed, seeds if len(seeds) > 1 else ())]


def _both(found: Rounding) -> str:
    return f"{percent(found.accuracy)}, {percent(found.accuracy_repeated)}"


def _losses(found: Rounding) -> str:
    return f"{significant(found.loss[0])}, {significant(found.loss[-1])}" if found.loss else MISSING

"""How much finetuning's numbers depend on rounding, in sentences and tables."""

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
"""Controls that train a model; their training is not repeated."""


def rounding_sentences(result: Result, judged: str | None = None) -> list[str]:
    """Warnings if finetuning's numbers depend on rounding; empty if they do not, or if this was not measured.

    Args:
        result: Result of a comparison.
        judged: The measure by which the verdict judges similarity.
    """
    rounding = result.precision.get("ft")
    if rounding is None or rounding.stable:
        return []
    sentences = [f"Finetuning depends on rounding {_at_rate(rounding)}: {_describe_repeat(rounding)}."]
    moved = _describe_moved_measure(result, judged) if judged else ""
    if moved:
        sentences.append(moved)
    also = " Controls that train a model were not repeated, but are affected too." if _trained(result) else ""
    sentences.append(
        "No interval includes this effect. Use a lower learning rate (--rates) to reduce it, or --dtype float64 to "
        f"measure without it.{also}"
    )
    return sentences


def _trained(result: Result) -> list[str]:
    """Titles of the result's controls that train a model, in quotation marks."""
    return [f"“{control_of(key).title}”" for key in controls_in_order(result.controls) if key in TRAINED]


def _at_rate(rounding: Rounding) -> str:
    rates = sorted({rate for rate in map(finite, rounding.learning_rate.values()) if rate is not None})
    listing = f" ({listed([f'{rate:g}' for rate in rates])})" if rates else ""
    return f"at the chosen learning rate{listing}"


def _describe_repeat(rounding: Rounding) -> str:
    """What a repeat changes, as the end of a sentence."""
    changes = []
    if rounding.diverged:
        changes.append(f"it diverged for {plural(len(rounding.diverged), 'seed')}")
    mean, largest = finite(rounding.log_probability.mean), largest_of(rounding)
    if mean is not None and largest is not None:
        changed, n = flips_of(rounding)
        changes.append(
            f"answers' log-probabilities differ by {significant(mean)} nats on average and by at most "
            f"{significant(largest)} nats, and {changed} of {plural(n, 'answer')} change"
        )
    if not changes:
        return "the repeated training gave no numbers"
    return f"repeated with each trained weight changed by one unit in the last place, {'; '.join(changes)}"


def _describe_moved_measure(result: Result, judged: str) -> str:
    """How much rounding changes the measure of the verdict, and what finetuning scores against its own repeat."""
    similarity, place = result.similarity.get(judged), result.calibrated.get(judged)
    moved = None if similarity is None else finite(similarity.rounding)
    if moved is None:
        return ""
    sentence = f"The measure “{measure_of(judged).title}” changes by {decimal(moved)}"
    scaled = None if place is None else finite(place.rounding)
    sentence += f" (calibrated: by {hundredths(scaled)})" if scaled is not None else ""
    repeat = result.precision["ft"].similarity.get(judged)
    if repeat is None or finite(repeat.mean) is None:
        return f"{sentence}."
    sentence += f"; between finetuning and its repeat it is {decimal(repeat.mean)}"
    ceiling = result.controls.get("ft_order", {}).get(judged)
    if ceiling is not None and finite(ceiling.mean) is not None:
        sentence += f", between two orders of the demonstrations {decimal(ceiling.mean)}"
    return f"{sentence}."


def largest_of(rounding: Rounding) -> float | None:
    """The largest difference of a log-probability over all seeds, in nats."""
    differences = [value for each in rounding.largest.values() if (value := finite(each)) is not None]
    return max(differences) if differences else None


def flips_of(rounding: Rounding) -> tuple[int, int]:
    """The number of answers that the repeat changes, and the number of answers compared."""
    n = rounding.flips.n
    return round((finite(rounding.flips.mean) or 0.0) * n), n


def rounding_section(result: Result) -> Section:
    """The page's section on rounding; empty if finetuning was not repeated."""
    title = "How much finetuning depends on rounding"
    rounding = result.precision.get("ft")
    if rounding is None:
        return Section("rounding", title)
    conclusion = (
        "The repeat gives almost the same numbers, so they can be reproduced on other machines."
        if rounding.stable
        else "The changes depend on the machine that ran it, and no interval on this page includes them."
    )
    trained = _trained(result)
    others = f" Controls that train ({listed(trained)}) were not repeated; expect similar changes." if trained else ""
    tables = rounding_tables(result)
    return Section(
        "rounding",
        title,
        note=f"Finetuning was repeated {_at_rate(rounding)} with each trained weight changed by one unit in the "
        f"last place, the smallest possible change. {conclusion} One repeat a seed shows only the order of "
        f"magnitude.{others}",
        tables=tables[:2],
        sections=[Section("rounding-seeds", "Seed by seed", tables=tables[2:])],
    )


def rounding_tables(result: Result) -> list[Table]:
    """What the repeat changes: overall, for each measure, and for each seed if there are several."""
    rounding = result.precision.get("ft")
    if rounding is None:
        return []
    changed, n = flips_of(rounding)
    rows = [
        ("mean difference of an answer's log-probability, nats", significant(rounding.log_probability.mean)),
        ("largest difference, nats", significant(largest_of(rounding))),
        ("answers changed", f"{changed} of {count(n)}"),
        ("accuracy of finetuning, and of its repeat", _both_accuracies(rounding)),
        ("difference of the training loss at the first and at the last step, nats", _loss_differences(rounding)),
    ]
    totals = Table(
        "Overall",
        (Column("number"), Column("value", "number")),
        tuple(Row((Cell(name), Cell(None, "number", override=value))) for name, value in rows),
    )
    measures = tuple(
        Row(
            (
                Cell(measure_of(key).title),
                Cell(rounding.similarity[key].mean, "score") if key in rounding.similarity else BLANK,
                Cell(moved, "score") if (moved := finite(result.similarity[key].rounding)) is not None else BLANK,
                Cell(result.calibrated[key].rounding, "ratio")
                if key in result.calibrated and finite(result.calibrated[key].rounding) is not None
                else BLANK,
            )
        )
        for key in in_order(result.similarity)
        if key in rounding.similarity or finite(result.similarity[key].rounding) is not None
    )
    columns = (
        Column("measure"),
        Column("finetuning compared with its repeat", "score"),
        Column("change of the measure", "score"),
        Column("change of the calibrated value", "ratio"),
    )
    seeds = tuple(
        Row((Cell(seed), Cell(value, "number"), Cell(rounding.flips.per_seed.get(seed), "share")))
        for seed, value in rounding.largest.items()
    )
    by_seed = (Column("seed"), Column("largest difference, nats", "number"), Column("answers changed", "share"))
    tables = [totals, Table("Measure by measure", columns, measures)]
    return [*tables, Table("Seed by seed", by_seed, seeds if len(seeds) > 1 else ())]


def _both_accuracies(rounding: Rounding) -> str:
    return f"{percent(rounding.accuracy)}, {percent(rounding.accuracy_repeated)}"


def _loss_differences(rounding: Rounding) -> str:
    return f"{significant(rounding.loss[0])}, {significant(rounding.loss[-1])}" if rounding.loss else MISSING

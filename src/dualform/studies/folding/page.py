"""A folding study as one HTML file that needs no network."""

from dualform.report.numerals import decimal, decimal_interval, percent, percent_interval
from dualform.report.page import Fact, study_page, titled
from dualform.report.section import Figure, Section
from dualform.studies.folding.charts import axis_chart
from dualform.studies.folding.result import Folding, FoldingResult
from dualform.studies.folding.table import (
    axis_table,
    compositions_table,
    levels_table,
    reference_levels,
    transfer_table,
)
from dualform.studies.folding.words import (
    AXES,
    axes_in_order,
    axis_heading,
    axis_name,
    best_point,
    composition_sentences,
    headlines,
    is_scale,
    perplexity_sentence,
    points_on,
    transfer_sentences,
)
from dualform.studies.glossary import DEMONSTRATION, SEEDS_AND_QUERIES, learner_terms

GLOSSARY: tuple[tuple[str, str], ...] = (
    DEMONSTRATION,
    (
        "unlabelled text",
        "An example without its label, on which the fold sees what the prompt changes inside the model.",
    ),
    ("agreement with ICL", "Share of the queries that the folded model answers as ICL does, rightly or wrongly."),
    (
        "recovered",
        "(accuracy - zero-shot's) / (ICL's - zero-shot's): 100 % is all that the prompt gained. It can lie beyond 0 to "
        "100 %, and swings widely where the prompt gained little.",
    ),
    (
        "perplexity",
        "exp of the mean negative log-probability of a token of plain text: low where the model expects what comes. "
        "Folded over base: 1 where folding changed nothing.",
    ),
    SEEDS_AND_QUERIES,
    ("n", "Numbers that a mean is taken over: (seed, query) pairs."),
)


def render(result: FoldingResult) -> str:
    """The report of a folding study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    folding = result.folding
    axes = axes_in_order(folding) if folding is not None else []
    # Names of our own: an axis that this version does not know may be called anything.
    names = {axis: axis if axis in AXES else f"axis-{number}" for number, axis in enumerate(axes)}
    figures = {axis: _figure(result, axis, names[axis]) for axis in axes}
    return study_page(
        result,
        title=titled("folding", result.model.get("name"), result.task.get("name")),
        sentences=headlines(result),
        nothing="This result holds no folding study.",
        charts=list(figures.values())[:1],
        facts=_facts(result),
        sections=_sections(result, folding, names, figures),
        glossary=[*learner_terms([*reference_levels(result), "fold"]), *GLOSSARY] if folding is not None else [],
    )


def _sections(
    result: FoldingResult, folding: Folding | None, names: dict[str, str], figures: dict[str, Figure]
) -> list[Section]:
    """One section an axis, the first one's chart on the first screen; then what folding does elsewhere."""
    if folding is None:
        return []
    first = next(iter(names), None)
    return [
        Section(
            "levels",
            "Without a fold",
            note="Share of queries answered correctly by what the folds are compared with.",
            tables=[levels_table(result)],
        ),
        *(
            Section(
                names[axis],
                axis_heading(axis),
                charts=[] if axis == first else [figures[axis]],
                tables=[axis_table(result, axis)],
            )
            for axis in names
        ),
        Section("plain", "Plain text", [perplexity_sentence(folding.perplexity)] if folding.perplexity else []),
        Section(
            "transfer",
            "Another task",
            transfer_sentences(folding.transfer),
            tables=[transfer_table(result)],
            note="The model folded for this task answers the queries of others: what did the fold change that it was "
            "not made to change?",
        ),
        Section(
            "compositions",
            "Folds added up",
            composition_sentences(folding.compositions),
            tables=[compositions_table(result)],
            note="The changes of several folds added to one model, which then answers the queries of each of their "
            "tasks. Alone: the task's own fold and no other.",
        ),
    ]


def _figure(result: FoldingResult, axis: str, name: str) -> Figure:
    joined = result.folding is not None and is_scale(axis, points_on(result.folding, axis))
    dotted = "; dotted, ICL with the same demonstrations; dashed, the levels without a fold"
    lines = dotted if joined else "; dashed, the levels without a fold"
    return Figure(
        name,
        axis_chart(result, axis),
        f"Accuracy and agreement with in-context learning by {axis_name(axis)}, with 95 % intervals.",
        f"Dots are means, bars 95 % intervals{lines}. Scales differ.",
    )


def _facts(result: FoldingResult) -> list[Fact]:
    """The levels, the most accurate method, and what it does to plain text."""
    folding = result.folding
    if folding is None:
        return []
    cards = [
        Fact(f"{name} accuracy", percent(each.mean), percent_interval(each.ci95))
        for name, each in (("zero-shot", folding.zero_shot), ("ICL", folding.icl))
    ]
    axis = next(iter(axes_in_order(folding)), None)
    best = best_point(points_on(folding, axis)) if axis is not None else None
    if axis is not None and best is not None:
        cards.append(Fact("best fold's accuracy", percent(best.accuracy.mean), f"{axis_name(axis)} {best.value}"))
        cards.append(Fact("it answers as ICL", percent(best.agreement.mean), percent_interval(best.agreement.ci95)))
    if folding.perplexity is not None:
        ratio = folding.perplexity.ratio
        cards.append(Fact("perplexity, folded over base", decimal(ratio.mean), decimal_interval(ratio.ci95)))
    return cards

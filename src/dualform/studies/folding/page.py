"""The HTML report of a folding study."""

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
    findings,
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
        "An example without its label. The fold is fitted to reproduce, on these texts, the change that the prompt "
        "makes to the activations.",
    ),
    ("agreement with ICL", "Share of the queries that the folded model answers as ICL does, correctly or not."),
    (
        "recovered",
        "(accuracy - zero-shot's) / (ICL's - zero-shot's): 100 % means the whole gain of the prompt. It can lie "
        "outside 0 to 100 %, and is imprecise if the prompt gained little.",
    ),
    (
        "perplexity",
        "exp of the mean negative log-probability of a token of plain text; lower is better. Folded / base is 1 if "
        "folding changed nothing.",
    ),
    SEEDS_AND_QUERIES,
    ("n", "Number of (seed, query) pairs in a mean."),
)


def render(result: FoldingResult) -> str:
    """A self-contained HTML page that needs no network; sections without data are left out."""
    folding = result.folding
    axes = axes_in_order(folding) if folding is not None else []
    # Unknown axes get a safe name, since theirs may contain anything.
    names = {axis: axis if axis in AXES else f"axis-{number}" for number, axis in enumerate(axes)}
    figures = {axis: _figure(result, axis, names[axis]) for axis in axes}
    return study_page(
        result,
        title=titled("folding", result.model.get("name"), result.task.get("name")),
        sentences=findings(result),
        nothing="This result holds no folding study.",
        charts=list(figures.values())[:1],
        facts=_facts(result),
        sections=_sections(result, folding, names, figures),
        glossary=[*learner_terms([*reference_levels(result), "fold"]), *GLOSSARY] if folding is not None else [],
    )


def _sections(
    result: FoldingResult, folding: Folding | None, names: dict[str, str], figures: dict[str, Figure]
) -> list[Section]:
    """A section for each axis (the chart of the first is at the top of the page), then plain text and other tasks."""
    if folding is None:
        return []
    first = next(iter(names), None)
    return [
        Section(
            "levels",
            "Without a fold",
            note="Accuracy of the learners with which the folds are compared.",
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
            "Other tasks",
            transfer_sentences(folding.transfer),
            tables=[transfer_table(result)],
            note="Accuracy of the folded model on other tasks, compared with the base model: an unintended effect of "
            "the fold.",
        ),
        Section(
            "compositions",
            "Sums of folds",
            composition_sentences(folding.compositions),
            tables=[compositions_table(result)],
            note="The weight changes of several folds are added to one model, which then answers the queries of each "
            "task. Alone: the task's own fold only.",
        ),
    ]


def _figure(result: FoldingResult, axis: str, name: str) -> Figure:
    joined = result.folding is not None and is_scale(axis, points_on(result.folding, axis))
    dotted = " Dotted: ICL with the same demonstrations." if joined else ""
    return Figure(
        name,
        axis_chart(result, axis),
        f"Accuracy and agreement with in-context learning by {axis_name(axis)}, with 95 % intervals.",
        f"Dots are means, bars 95 % intervals.{dotted} Dashed: accuracy without a fold. The panels have "
        "different scales.",
    )


def _facts(result: FoldingResult) -> list[Fact]:
    """Accuracy without a fold, the most accurate fold, and the perplexity of plain text."""
    folding = result.folding
    if folding is None:
        return []
    cards = [
        Fact(f"{name} accuracy", percent(accuracy.mean), percent_interval(accuracy.ci95))
        for name, accuracy in (("zero-shot", folding.zero_shot), ("ICL", folding.icl))
    ]
    axis = next(iter(axes_in_order(folding)), None)
    best = best_point(points_on(folding, axis)) if axis is not None else None
    if axis is not None and best is not None:
        cards.append(Fact("best fold's accuracy", percent(best.accuracy.mean), f"{axis_name(axis)} {best.value}"))
        cards.append(
            Fact("its agreement with ICL", percent(best.agreement.mean), percent_interval(best.agreement.ci95))
        )
    if folding.perplexity is not None:
        ratio = folding.perplexity.ratio
        cards.append(Fact("perplexity, folded / base", decimal(ratio.mean), decimal_interval(ratio.ci95)))
    return cards

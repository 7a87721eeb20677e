"""The HTML report of a selection study."""

from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import count, decimal, decimal_interval, finite, percent
from dualform.report.page import Fact, study_page, titled
from dualform.report.phrases import difference, difference_interval
from dualform.report.section import Figure, Section
from dualform.studies.baseline_words import majority_answer
from dualform.studies.glossary import DEMONSTRATION, learner_terms
from dualform.studies.selection.charts import optimism_chart, similarity_by_choice_chart
from dualform.studies.selection.result import SelectionResult
from dualform.studies.selection.table import choices_table, optimism_table, similarity_table
from dualform.studies.selection.words import choice_name, findings

GLOSSARY: tuple[tuple[str, str], ...] = (
    DEMONSTRATION,
    (
        "choice",
        "A demonstration seed, an order of ICL's demonstrations and a learning rate for FT, chosen by ICL's accuracy, "
        "FT's accuracy or the mean of both. “none” is the first seed and order and the middle rate.",
    ),
    ("on validation, on report", "The selecting queries: those on which the candidates were compared."),
    ("selected", "Accuracy of the chosen settings on the selecting queries."),
    ("untouched", "Their accuracy on queries that were not used for any choice."),
    (
        "optimism",
        "Selected minus untouched: how much the best score owes to chance, plus any difference in difficulty between "
        "the two sets of queries.",
    ),
    ("tokens searched", "Tokens read to make the choice; a backward pass counts as two forward passes."),
    (
        "95 % interval",
        "Bootstrap over queries; for an optimism, the choice is repeated in every resample. Where two "
        "intervals overlap, the difference does not count as significant.",
    ),
)


def render(result: SelectionResult) -> str:
    """A self-contained HTML page that needs no network; sections without data are left out."""
    choices = result.selection.choices if result.selection is not None else []
    return study_page(
        result,
        title=titled("selection", result.model.get("name"), result.task.get("name")),
        sentences=findings(result),
        nothing="This result holds no selection study.",
        charts=[
            Figure(
                "optimism",
                optimism_chart(result),
                "Optimism of each choice for each learner, with 95 % intervals.",
                "Optimism: accuracy on the selecting queries minus accuracy on untouched queries. Dots are means, bars "
                "95 % intervals. If the whole bar lies right of zero, the choice inflates the accuracy.",
            )
        ],
        facts=_facts(result),
        sections=[
            Section(
                "choices",
                "How much does a choice inflate accuracy?",
                note="Accuracy of the chosen settings on the selecting queries and on untouched queries; the "
                f"difference is the optimism of the choice. {_baselines(result)}".rstrip(),
                tables=[optimism_table(result)],
            ),
            Section("search", "Chosen settings and search", tables=[choices_table(result)]),
            Section(
                "similarity",
                "Does similarity depend on the choice?",
                note="Similarity of in-context learning and finetuning with the chosen settings. The highest minus the "
                "lowest score is never negative, so compare the intervals of the scores instead.",
                charts=[
                    Figure(
                        "similarity",
                        similarity_by_choice_chart(result),
                        "Each similarity measure for each choice, with 95 % intervals.",
                        "Dots are means, bars 95 % intervals. The panels have different scales.",
                    )
                ],
                tables=[similarity_table(result)],
            ),
        ],
        glossary=[*learner_terms(key for choice in choices for key in choice.scores), *GLOSSARY] if choices else [],
    )


def _baselines(result: SelectionResult) -> str:
    """The accuracy of guessing and of always giving the most common label on each set of queries; empty if unknown."""
    levels = result.selection.baselines if result.selection is not None else {}
    parts = [
        f"on the {count(each.n)} {name} queries, guessing gives {percent(each.chance)} and "
        f"{majority_answer(result, each)} {percent(each.majority)}"
        for name, each in levels.items()
    ]
    return f"Baselines: {'; '.join(parts)}." if parts else ""


def _facts(result: SelectionResult) -> list[Fact]:
    """The largest optimism of each learner, and the range of the first two measures over the choices."""
    if result.selection is None:
        return []
    cards = []
    choices = result.selection.choices
    for key, title in (("icl", "ICL: largest optimism"), ("ft", "FT: largest optimism")):
        candidates = [
            (optimism, choice)
            for choice in choices
            if choice.select != "none" and key in choice.scores
            if (optimism := finite(choice.scores[key].optimism.mean)) is not None
        ]
        if candidates:
            optimism, choice = max(candidates, key=lambda each: each[0])
            interval = difference_interval(choice.scores[key].optimism.ci95)
            cards.append(Fact(title, difference(optimism), f"points, {interval}, {choice_name(choice)}"))
    for key in in_order(result.selection.similarity_range)[:2]:
        score_range = result.selection.similarity_range[key]
        title = f"{measure_of(key).title}: highest minus lowest"
        cards.append(Fact(title, decimal(score_range.mean), decimal_interval(score_range.ci95)))
    cards.append(Fact("untouched queries", count(result.selection.n_untouched), f"{len(choices)} choices"))
    return cards

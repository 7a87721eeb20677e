"""A selection study as one HTML file that needs no network."""

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
from dualform.studies.selection.words import choice_name, headlines

GLOSSARY: tuple[tuple[str, str], ...] = (
    DEMONSTRATION,
    (
        "choice",
        "A demonstration seed, an order of ICL's demonstrations and FT's learning rate, taken because they scored "
        "best: by ICL's accuracy, by FT's, or by both. “none” takes the first seed and order and the middle rate.",
    ),
    ("on validation, on report", "The queries on which the candidates were scored."),
    ("selected", "Accuracy of what was chosen, on the queries that it was chosen on."),
    ("untouched", "Its accuracy on queries that nothing was chosen on."),
    (
        "optimism",
        "Selected less untouched: what a best score owes to luck, and to the two sets of queries not being equally "
        "hard.",
    ),
    ("tokens searched", "Tokens read forwards in search of the choice; a backward pass counts as two."),
    (
        "95 % interval",
        "Bootstrap over queries; that of an optimism repeats the choice in every resample. Two that overlap are not "
        "distinguished here.",
    ),
)


def render(result: SelectionResult) -> str:
    """The report of a selection study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    choices = result.selection.choices if result.selection is not None else []
    return study_page(
        result,
        title=titled("selection", result.model.get("name"), result.task.get("name")),
        sentences=headlines(result),
        nothing="This result holds no selection study.",
        charts=[
            Figure(
                "optimism",
                optimism_chart(result),
                "Optimism of each way of choosing for each learner, with its 95 % interval.",
                "Optimism: accuracy where it was chosen less accuracy on untouched queries. Dots are means, bars 95 % "
                "intervals. A bar clear of zero, on the right, is a score that choosing made too high.",
            )
        ],
        facts=_facts(result),
        sections=[
            Section(
                "choices",
                "What choosing does to accuracy",
                note="Each way of choosing is scored on the queries that it was chosen on and on others that "
                "nothing "
                f"was chosen on. The difference is its optimism. {_baselines(result)}".rstrip(),
                tables=[optimism_table(result)],
            ),
            Section("search", "What was searched", tables=[choices_table(result)]),
            Section(
                "similarity",
                "What choosing does to similarity",
                note="Similarity of context and finetuning for what was chosen. The highest less the lowest is never "
                "below zero: compare it with the scores' own intervals.",
                charts=[
                    Figure(
                        "similarity",
                        similarity_by_choice_chart(result),
                        "Each measure of similarity under each way of choosing, with its 95 % interval.",
                        "Dots are means, bars 95 % intervals. Scales differ.",
                    )
                ],
                tables=[similarity_table(result)],
            ),
        ],
        glossary=[*learner_terms(key for choice in choices for key in choice.scores), *GLOSSARY] if choices else [],
    )


def _baselines(result: SelectionResult) -> str:
    """What guessing and the commonest label would give on each set of queries; empty where it is not known."""
    levels = result.selection.baselines if result.selection is not None else {}
    parts = [
        f"on the {count(each.n)} {name} queries guessing gives {percent(each.chance)}, {majority_answer(result, each)} "
        f"{percent(each.majority)}"
        for name, each in levels.items()
    ]
    return f"Without reading a query: {'; '.join(parts)}." if parts else ""


def _facts(result: SelectionResult) -> list[Fact]:
    """For each learner the largest optimism, and how far the first measure moves."""
    if result.selection is None:
        return []
    cards = []
    choices = result.selection.choices
    for key, title in (("icl", "ICL: largest optimism"), ("ft", "FT: largest optimism")):
        found = [
            (optimism, choice)
            for choice in choices
            if choice.select != "none" and key in choice.scores
            if (optimism := finite(choice.scores[key].optimism.mean)) is not None
        ]
        if found:
            optimism, choice = max(found, key=lambda each: each[0])
            interval = difference_interval(choice.scores[key].optimism.ci95)
            cards.append(Fact(title, difference(optimism), f"points, {interval}, {choice_name(choice)}"))
    for key in in_order(result.selection.similarity_range)[:2]:
        reach = result.selection.similarity_range[key]
        title = f"{measure_of(key).title}: highest less lowest"
        cards.append(Fact(title, decimal(reach.mean), decimal_interval(reach.ci95)))
    cards.append(Fact("untouched queries", count(result.selection.n_untouched), f"{len(choices)} ways of choosing"))
    return cards

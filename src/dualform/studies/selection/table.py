"""The tables of a selection study, for the terminal, the page, files and data frames."""

from dualform.report.measures import in_order, measure_of
from dualform.report.palette import learners_in_order
from dualform.report.table import Cell, Column, Row, Table, estimate_cell, learner_cell, score_cell
from dualform.studies.selection.result import Choice, SelectionResult
from dualform.studies.selection.words import choice_name, chosen_trial


def tables(result: SelectionResult) -> list[Table]:
    """All tables with rows, in page order; none without a selection study."""
    return [each for each in (optimism_table(result), choices_table(result), similarity_table(result)) if each]


def optimism_table(result: SelectionResult) -> Table:
    """Accuracy on the selecting and on untouched queries, and the difference in points with its interval."""
    columns = (
        Column("chosen by"),
        Column("learner"),
        Column("selected", "share"),
        Column("untouched", "share"),
        Column("optimism, points", "difference", short="optimism", interval=True),
    )
    rows = tuple(
        Row(
            (
                Cell(choice_name(choice), notes=(chosen_trial(choice),)),
                learner_cell(key),
                estimate_cell(score.selected, "share"),
                estimate_cell(score.untouched, "share"),
                estimate_cell(score.optimism, "difference"),
            )
        )
        for choice in _choices(result)
        for key in learners_in_order(choice.scores)
        if (score := choice.scores[key])
    )
    return Table("Accuracy of the chosen settings", columns, rows)


def choices_table(result: SelectionResult) -> Table:
    """The settings of each choice, and the tokens and trials of its search."""
    columns = (
        Column("chosen by"),
        Column("chosen"),
        Column("learner"),
        Column("tokens searched", "count", short="tokens"),
        Column("compared", "count", short="trials"),
    )
    rows = tuple(
        Row(
            (
                Cell(choice_name(choice)),
                Cell(chosen_trial(choice)),
                learner_cell(key),
                Cell(choice.scores[key].tokens, "count"),
                Cell(choice.scores[key].trials, "count"),
            )
        )
        for choice in _choices(result)
        for key in learners_in_order(choice.scores)
    )
    return Table("Chosen settings and search", columns, rows)


def similarity_table(result: SelectionResult) -> Table:
    """Each measure for each choice, and its range over the choices."""
    columns = (
        Column("measure"),
        Column("chosen by"),
        Column("mean", "score", interval=True),
        Column("n", "count"),
    )
    choices = _choices(result)
    rows = []
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        scores = [(choice_name(choice), choice.similarity[key]) for choice in choices if key in choice.similarity]
        if result.selection is not None and key in result.selection.similarity_range:
            scores.append(("highest minus lowest", result.selection.similarity_range[key]))
        rows += [
            Row((Cell(measure_of(key).title), Cell(name), score_cell(key, each), Cell(each.n, "count")))
            for name, each in scores
        ]
    return Table("Similarity by choice", columns, tuple(rows))


def _choices(result: SelectionResult) -> list[Choice]:
    return result.selection.choices if result.selection is not None else []

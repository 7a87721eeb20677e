"""A selection study as compact tables for the terminal, at most 80 columns wide."""

from rich.table import Table
from rich.text import Text

from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import count, decimal, decimal_interval
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import difference, difference_interval, share
from dualform.result import Choice, Result
from dualform.studies.selection.words import choice_name, chosen


def selection_tables(result: Result) -> list[Table]:
    """All tables that have rows, in the order of reading; none without a selection study."""
    tables = [optimism_table(result), choices_table(result), similarity_by_choice_table(result)]
    return [table for table in tables if table.row_count]


def optimism_table(result: Result) -> Table:
    """Accuracy where it was chosen, on untouched queries, and the difference in points with its interval."""
    table = Table(title="Accuracy of what was chosen", title_justify="left")
    table.add_column("chosen by", overflow="fold")
    table.add_column("learner", overflow="fold")
    for name in ("selected", "untouched", "optimism", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in _choices(result):
        for key in learners_in_order(choice.scores):
            score = choice.scores[key]
            table.add_row(
                Text(choice_name(choice)),
                Text(learner_style(key).title),
                share(score.selected),
                share(score.untouched),
                difference(score.optimism.mean),
                difference_interval(score.optimism.ci95),
            )
    return table


def choices_table(result: Result) -> Table:
    """What each way of choosing chose, and what its search read."""
    table = Table(title="What was chosen, and the search for it", title_justify="left")
    table.add_column("chosen by", overflow="fold")
    table.add_column("chosen", overflow="fold")
    table.add_column("learner", overflow="fold")
    for name in ("tokens", "trials"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in _choices(result):
        for key in learners_in_order(choice.scores):
            score = choice.scores[key]
            table.add_row(
                Text(choice_name(choice)),
                Text(chosen(choice)),
                Text(learner_style(key).title),
                count(score.tokens),
                count(score.trials),
            )
    return table


def similarity_by_choice_table(result: Result) -> Table:
    """Each measure under each choice, and its range over them."""
    table = Table(title="Likeness by choice", title_justify="left")
    table.add_column("measure", overflow="fold")
    table.add_column("chosen by", overflow="fold")
    for name in ("mean", "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    choices = _choices(result)
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        rows = [(choice_name(choice), choice.similarity[key]) for choice in choices if key in choice.similarity]
        if result.selection is not None and key in result.selection.similarity_range:
            rows.append(("highest less lowest", result.selection.similarity_range[key]))
        for name, each in rows:
            table.add_row(
                Text(measure_of(key).title),
                Text(name),
                decimal(each.mean),
                decimal_interval(each.ci95),
                count(each.n),
            )
    return table


def _choices(result: Result) -> list[Choice]:
    return result.selection.choices if result.selection is not None else []

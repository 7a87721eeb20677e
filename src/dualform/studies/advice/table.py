"""The tables of advice, for the terminal, the page, files and data frames."""

from dualform.report.numerals import MISSING
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import plural
from dualform.report.table import Cell, Column, Row, Table, estimate_cell, learner_cell
from dualform.studies.advice.result import Advice, AdviceResult

PER_THOUSAND = 1000
"""Queries in a cost."""


def tables(result: AdviceResult) -> list[Table]:
    """All tables with rows, in page order."""
    advice = result.advice
    if advice is None:
        return []
    return [table for table in (recommendation_table(advice), curve_table(advice), cost_table(advice)) if table]


def recommendation_table(advice: Advice) -> Table:
    """One row for each budget: the recommended learner, how sure that is, and which others are as good."""
    columns = (
        Column("labels", "count"),
        Column("recommended", short="use"),
        Column("accuracy", "share", interval=True),
        Column("probability of being best", "share", short="sure"),
        Column("minus the best prompt, points", "difference", interval=True, where="page"),
        Column("not significantly worse", short="as good"),
        Column("loss on other queries, points", "points", short="loss"),
    )
    rows = []
    for each in advice.recommendations:
        as_good = ", ".join(learner_style(name).title for name in each.as_good) or MISSING
        rows.append(
            Row(
                (
                    Cell(each.labels, "count"),
                    learner_cell(each.learner),
                    estimate_cell(each.accuracy, "share"),
                    Cell(each.probability, "share"),
                    estimate_cell(each.over_prompting, "difference"),
                    Cell(as_good, short=plural(len(each.as_good), "learner") if each.as_good else None),
                    Cell(each.regret, "points"),
                )
            )
        )
    note = (
        "Learners are compared by accuracy averaged over neighbouring budgets. Not significantly worse: the 95 % "
        "interval of the difference of accuracies includes 0; the cheapest query comes first. Loss: accuracy below the "
        "best learner's on a random half of the queries, if the other half gives the advice."
    )
    return Table("Recommended learner by number of labels", columns, tuple(rows), note=note)


def curve_table(advice: Advice) -> Table:
    """Accuracy of each learner, a row, with each budget, a column; best in bold."""
    columns = (
        Column("learner"),
        *(Column(f"{n} labels", "share", interval="below", short=str(n)) for n in advice.budgets),
    )
    best = [
        max(points[place].accuracy.mean or 0.0 for points in advice.curves.values())
        for place in range(len(advice.budgets))
    ]
    rows = [
        Row(
            (
                learner_cell(name),
                *(
                    Cell(
                        point.accuracy.mean,
                        "share",
                        point.accuracy.ci95,
                        point.accuracy.n,
                        tone="best" if point.accuracy.mean == best[place] else "",
                    )
                    for place, point in enumerate(advice.curves[name])
                ),
            )
        )
        for name in learners_in_order(advice.curves)
    ]
    return Table("Accuracy by number of labels", columns, tuple(rows))


def detail_table(advice: Advice) -> Table:
    """One row for each learner and budget: labels used, spread over draws, macro-F1, log-loss."""
    columns = (
        Column("learner"),
        Column("labels", "count"),
        Column("in the prompt", "count"),
        Column("trained on", "count"),
        Column("settings chosen on", "count"),
        Column("accuracy", "share", interval=True),
        Column("SD over draws, points", "points"),
        Column("macro-F1", "score", interval=True),
        Column("log-loss, nats", "nats"),
    )
    rows = [
        Row(
            (
                learner_cell(name),
                Cell(point.labels, "count"),
                Cell(point.used.demonstrations, "count"),
                Cell(point.used.training, "count"),
                Cell(point.used.settings, "count"),
                estimate_cell(point.accuracy, "share"),
                Cell(point.spread, "points"),
                estimate_cell(point.accuracy.macro_f1),
                Cell(point.log_loss, "nats"),
            )
        )
        for name in learners_in_order(advice.curves)
        for point in advice.curves[name]
    ]
    return Table("Every learner with every number of labels", columns, tuple(rows))


def cost_table(advice: Advice) -> Table:
    """What each learner costs with the largest budget: to adapt, and for a thousand queries."""
    columns = (
        Column("learner"),
        Column("seconds to adapt", "seconds", short="adapt, s"),
        Column("operations to adapt, TFLOP", "number", short="TFLOP"),
        Column("seconds for 1000 queries", "seconds", short="1000 queries, s"),
        Column("operations for 1000 queries, TFLOP", "number", short="TFLOP, 1000"),
    )
    rows = []
    for name in learners_in_order(advice.curves):
        point = advice.curves[name][-1]
        rows.append(
            Row(
                (
                    learner_cell(name),
                    Cell(point.adapt_seconds, "seconds"),
                    Cell(_tera(point.adapt_flops), "number"),
                    Cell(_times(point.query_seconds), "seconds"),
                    Cell(_tera(_times(point.query_flops)), "number"),
                )
            )
        )
    return Table(f"Cost with {advice.budgets[-1]} labels", columns, tuple(rows))


def _times(value: float | None) -> float | None:
    return None if value is None else PER_THOUSAND * value


def _tera(value: float | None) -> float | None:
    return None if value is None else value / 1e12

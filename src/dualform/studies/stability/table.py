"""A stability study as compact tables for the terminal, at most 80 columns wide."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from dualform.report.numerals import MISSING, finite, percent, percent_interval
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    points,
    points_interval,
)
from dualform.result import Behaviour, Contrast, ModelStability, Result
from dualform.studies.stability.words import variance_shares

LABEL_ORDER = ("true", "random", "flipped")
"""Rules for the labels shown, in the order of reading."""


def stability_tables(result: Result) -> list[Table]:
    """All tables that have rows, in the order of reading; none without a stability study."""
    if result.stability is None:
        return []
    tables = [behaviour_table(name, model) for name, model in result.stability.models.items()]
    tables += [fairness_table(result), variance_table(result), labels_table(result), contrasts_table(result)]
    return [table for table in tables if table.row_count]


def behaviour_table(name: str, model: ModelStability) -> Table:
    """One model: mean, SD and range of accuracy, most frequent answer, share of runs collapsed; calibrated below."""
    table = Table(title=Text(f"{name}: accuracy over sets and orders"), title_justify="left")
    table.add_column("learner", overflow="fold")
    for column in ("mean", "SD", "range, %", "top", "collapsed", "runs"):
        table.add_column(column, justify="right", no_wrap=True)
    for key in learners_in_order(model.learners):
        learner = model.learners[key]
        _add_behaviour(table, learner_style(key).title, learner.plain)
        if learner.calibrated is not None:
            _add_behaviour(table, "  calibrated", learner.calibrated)
    return table


def variance_table(result: Result) -> Table:
    """Where the variance of accuracy comes from: SD of runs in all, and shares by set, order and queries."""
    table = Table(title="Variance of accuracy", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("learner", overflow="fold")
    for column in ("SD", "set", "order", "residual"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, model in _models(result).items():
        for key in learners_in_order(model.learners):
            learner = model.learners[key]
            for behaviour, after in ((learner.plain, ""), (learner.calibrated, ", calibrated")):
                if behaviour is None or behaviour.variance is None:
                    continue
                total = behaviour.variance.total
                shares = variance_shares(behaviour.variance)
                table.add_row(
                    Text(name),
                    Text(learner_style(key).title + after),
                    points(total**0.5 if total is not None and total >= 0 else None),
                    *(percent(shares.get(part), 0) for part in ("set", "order", "residual")),
                )
    return table


def labels_table(result: Result) -> Table:
    """Accuracy by the labels shown, with intervals."""
    table = Table(title="Accuracy by the labels shown", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("learner", overflow="fold")
    for column in ("labels", "accuracy", "95 % interval", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, model in _models(result).items():
        for key in learners_in_order(model.learners):
            labels = model.learners[key].labels
            for rule in labels_in_order(labels):
                each = labels[rule]
                table.add_row(
                    Text(name),
                    Text(learner_style(key).title),
                    Text(rule),
                    percent(each.mean),
                    percent_interval(each.ci95),
                    f"{each.n:,}",
                )
    return table


SELECTED_BY = {"none": "nobody: all sets", "icl": "ICL", "ft": "FT", "both": "both, mean"}
"""Ways of choosing a set, in words."""


def fairness_table(result: Result) -> Table:
    """ICL's lead over FT in points when a set is chosen, on the half that chose it and on the other."""
    table = Table(title="ICL less FT, points, when one set is chosen", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("chosen by", overflow="fold")
    for column in ("where chosen", "elsewhere", "95 % interval", "sets"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, model in _models(result).items():
        for each in model.fairness:
            table.add_row(
                Text(name),
                SELECTED_BY.get(each.select, each.select),
                difference(each.gap_chosen_on.mean),
                difference(each.gap_untouched.mean),
                difference_interval(each.gap_untouched.ci95),
                f"{each.gap_untouched.n:,}",
            )
    return table


def contrasts_table(result: Result) -> Table:
    """Spreads compared: standard deviations in points, their ratio with its interval, sets."""
    table = Table(title="Standard deviations of accuracy compared, points", title_justify="left")
    table.add_column("above the line / below it", overflow="fold")
    for column in ("above", "below", "ratio", "95 % interval", "sets"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in result.stability.contrasts if result.stability is not None else []:
        table.add_row(
            Text(contrast_name(each)),
            points(each.sd_first),
            points(each.sd_second),
            hundredths(each.ratio),
            hundredths_interval(each.ci95),
            f"{each.n:,}",
        )
    return table


def contrast_name(contrast: Contrast) -> str:
    """`FT / ICL, smollm2-135m, calibrated`."""
    after = ", calibrated" if contrast.calibrated else ""
    learner = learner_style(contrast.learner).title
    if contrast.question == "ft_beside_icl":
        return f"{learner} / {learner_style('icl').title}, {contrast.first}{after}"
    return f"{contrast.first} / {contrast.second}, {learner}{after}"


def labels_in_order(rules: Iterable[str]) -> list[str]:
    """`rules` in the usual order, unknown ones last."""
    order = {rule: place for place, rule in enumerate(LABEL_ORDER)}
    return sorted(rules, key=lambda rule: order.get(rule, len(order)))


def _models(result: Result) -> dict[str, ModelStability]:
    return result.stability.models if result.stability is not None else {}


def _add_behaviour(table: Table, name: str, behaviour: Behaviour) -> None:
    accuracy = behaviour.accuracy
    collapsed = finite(behaviour.collapse_rate.mean)
    table.add_row(
        Text(name),
        percent(accuracy.mean),
        points(accuracy.sd),
        points_interval((accuracy.low, accuracy.high)) if accuracy.n > 1 else MISSING,
        percent(behaviour.majority_share.mean),
        # Said in a sign as well as in colour: a terminal may have none.
        Text(percent(collapsed) + " !", style="bold red") if collapsed else Text(percent(collapsed)),
        f"{accuracy.n:,}",
    )

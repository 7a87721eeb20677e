"""The tables of a stability study, for the terminal, the page, files and data frames."""

from collections.abc import Iterable

from dualform.report.numerals import MISSING, Interval, finite, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import plural, points_interval
from dualform.report.table import Cell, Column, Row, Table, estimate_cell, learner_cell
from dualform.studies.stability.contrast_words import runs_with_true_labels
from dualform.studies.stability.result import Behaviour, Contrast, LearnerStability, ModelStability, StabilityResult
from dualform.studies.stability.words import variance_shares

LABEL_ORDER = ("true", "random", "flipped")
"""Label rules in the order in which they are listed."""


def tables(result: StabilityResult) -> list[Table]:
    """All tables with rows, in page order; none without a stability study."""
    if result.stability is None:
        return []
    tables = [behaviour_table(name, model) for name, model in result.stability.models.items()]
    tables += [fairness_table(result), variance_table(result), labels_table(result), contrasts_table(result)]
    return [table for table in tables if table]


def behaviour_table(name: str, model: ModelStability) -> Table:
    """One model: accuracy, most frequent answer and collapsed runs of each learner, before and after calibration."""
    columns = (
        Column("learner"),
        Column("mean", "share"),
        Column("SD, points", "points", short="SD"),
        Column("lowest to highest", "share", short="range, %"),
        Column("by order", "points", where="page"),
        Column("top answer", "share", short="top"),
        Column("entropy", "nats", where="page"),
        Column("collapsed", "share"),
        Column("runs", "count"),
    )
    rows = []
    for key in learners_in_order(model.learners):
        learner = model.learners[key]
        rows.append(Row((learner_cell(key, notes=(_runs(key, learner),)), *_behaviour(learner.plain))))
        if learner.calibrated is not None:
            rows.append(Row((Cell("calibrated"), *_behaviour(learner.calibrated)), style="companion"))
    return Table(f"{name}: accuracy over sets and orders", columns, tuple(rows))


def _runs(key: str, learner: LearnerStability) -> str:
    """`4 sets, 2 orders, rate 0.001`."""
    runs = runs_with_true_labels(learner)
    sets, orders = len({run.seed for run in runs}), len({run.order for run in runs})
    runs_of = f"{plural(sets, 'set')}, {plural(orders, 'order')}" if len(runs) > 1 else "1 run"
    rate = learner.learning_rate
    return f"{runs_of}, rate {rate:.3g}" if rate is not None and "@" not in key else runs_of


def _behaviour(behaviour: Behaviour) -> tuple[Cell, ...]:
    accuracy, collapsed = behaviour.accuracy, behaviour.collapse_rate
    several = accuracy.n > 1
    ends: Interval = (accuracy.low, accuracy.high)
    return (
        Cell(accuracy.mean, "share"),
        Cell(accuracy.sd, "points", accuracy.sd_ci95),
        # The column heading holds the percent sign.
        Cell(None, "share", override=points_interval(ends) if several else MISSING),
        Cell(behaviour.order_range.mean, "points"),
        Cell(behaviour.majority_share.mean, "share"),
        Cell(behaviour.entropy.mean, "nats"),
        Cell(
            collapsed.mean,
            "share",
            collapsed.ci95 if several else None,
            flag="collapsed" if finite(collapsed.mean) else "",
        ),
        Cell(accuracy.n, "count"),
    )


def variance_table(result: StabilityResult) -> Table:
    """SD of accuracy over runs, and the shares of its variance that come from set, order and queries."""
    columns = (
        Column("model"),
        Column("learner"),
        Column("SD, points", "points", short="SD"),
        *(Column(part, "share") for part in ("set", "order", "residual")),
    )
    rows = []
    for name, model in _models(result).items():
        for key in learners_in_order(model.learners):
            learner = model.learners[key]
            for behaviour, after in ((learner.plain, ""), (learner.calibrated, ", calibrated")):
                if behaviour is None or behaviour.variance is None:
                    continue
                total = behaviour.variance.total
                shares = variance_shares(behaviour.variance)
                parts = [shares.get(part) for part in ("set", "order", "residual")]
                rows.append(
                    Row(
                        (
                            Cell(name),
                            learner_cell(key, after),
                            Cell(total**0.5 if total is not None and total >= 0 else None, "points"),
                            *(Cell(each, "share", override=percent(each, 0)) for each in parts),
                        )
                    )
                )
    return Table("Variance of accuracy", columns, tuple(rows))


def labels_table(result: StabilityResult) -> Table:
    """Accuracy by the demonstrations' labels, with intervals."""
    columns = (
        Column("model"),
        Column("learner"),
        Column("demonstration labels", short="labels"),
        Column("accuracy", "share", interval=True),
        Column("n", "count"),
    )
    rows = []
    for name, model in _models(result).items():
        for key in learners_in_order(model.learners):
            labels = model.learners[key].labels
            rows += [
                Row(
                    (
                        Cell(name),
                        learner_cell(key),
                        Cell(rule),
                        Cell(labels[rule].mean, "share", labels[rule].ci95, labels[rule].n),
                        Cell(labels[rule].n, "count"),
                    )
                )
                for rule in labels_in_order(labels)
            ]
    return Table("Accuracy by demonstration labels", columns, tuple(rows))


SELECTED_BY = {"none": "no choice: all sets", "icl": "ICL", "ft": "FT", "both": "mean of both"}
"""`FairGap.select` -> its name in the table."""


def fairness_table(result: StabilityResult) -> Table:
    """ICL minus FT in points if a set is chosen, on the half of the queries that chose it and on the other half."""
    columns = (
        Column("model"),
        Column("set chosen by", short="chosen by"),
        Column("ICL, selecting half", "share", where="page"),
        Column("ICL, other half", "share", where="page"),
        Column("FT, selecting half", "share", where="page"),
        Column("FT, other half", "share", where="page"),
        Column("ICL minus FT, selecting half", "difference", short="selecting half"),
        Column("ICL minus FT, other half", "difference", short="other half", interval=True),
        Column("sets", "count"),
    )
    rows = tuple(
        Row(
            (
                Cell(name),
                Cell(SELECTED_BY.get(each.select, each.select)),
                Cell(each.icl_chosen_on, "share"),
                Cell(each.icl_untouched, "share"),
                Cell(each.ft_chosen_on, "share"),
                Cell(each.ft_untouched, "share"),
                estimate_cell(each.gap_chosen_on, "difference"),
                estimate_cell(each.gap_untouched, "difference"),
                Cell(each.gap_untouched.n, "count"),
            )
        )
        for name, model in _models(result).items()
        for each in model.fairness
    )
    return Table("ICL minus FT, points, if one set is chosen", columns, rows)


def contrasts_table(result: StabilityResult) -> Table:
    """Pairs of standard deviations in points, their ratio with its interval, and the number of sets."""
    columns = (
        Column("first / second"),
        Column("SD of the first, points", "points", short="first"),
        Column("SD of the second, points", "points", short="second"),
        Column("ratio", "ratio", interval=True),
        Column("sets", "count"),
    )
    rows = tuple(
        Row(
            (
                Cell(contrast_name(each)),
                Cell(each.sd_first, "points"),
                Cell(each.sd_second, "points"),
                Cell(each.ratio, "ratio", each.ci95, each.n),
                Cell(each.n, "count"),
            )
        )
        for each in (result.stability.contrasts if result.stability is not None else [])
    )
    return Table("Standard deviations of accuracy compared, points", columns, rows)


def contrast_name(contrast: Contrast) -> str:
    """`FT / ICL, smollm2-135m, calibrated`."""
    after = ", calibrated" if contrast.calibrated else ""
    learner = learner_style(contrast.learner).title
    if contrast.question == "ft_beside_icl":
        return f"{learner} / {learner_style('icl').title}, {contrast.first}{after}"
    return f"{contrast.first} / {contrast.second}, {learner}{after}"


def labels_in_order(rules: Iterable[str]) -> list[str]:
    """`rules` as in `LABEL_ORDER`, unknown ones last."""
    order = {rule: place for place, rule in enumerate(LABEL_ORDER)}
    return sorted(rules, key=lambda rule: order.get(rule, len(order)))


def _models(result: StabilityResult) -> dict[str, ModelStability]:
    return result.stability.models if result.stability is not None else {}

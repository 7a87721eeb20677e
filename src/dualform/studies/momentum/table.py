"""The tables of a momentum study, each declared once for the terminal, the page, files and data frames."""

from dualform.report.numerals import MISSING, finite, significant
from dualform.report.palette import MEASURE_COLOUR
from dualform.report.phrases import difference
from dualform.report.table import BLANK, Cell, Column, Row, Table, estimate_cell, p_value
from dualform.result import Estimate, Paired
from dualform.studies.momentum.charts import arm_colours
from dualform.studies.momentum.figures import (
    added_parameters,
    arm_of,
    best_momentum,
    conditions,
    curves_at,
    difference_at,
    full_length,
    last_error,
    length_name,
    lengths,
    mean_accuracy,
    nats,
    nats_interval,
    over_tasks,
    perplexity_interval,
    perplexity_text,
    references_at,
    relative,
    relative_interval,
)
from dualform.studies.momentum.result import MomentumArm, MomentumReport, MomentumResult
from dualform.studies.published import PaperMomentumComparison, compare_momentum_with_paper

LENGTHS_SHOWN = 3
"""The terminal shows perplexity at this many of the longest lengths; the page shows all."""


def momentum_tables(result: MomentumResult) -> list[Table]:
    """All tables for the terminal that have rows."""
    if result.momentum is None:
        return []
    tables = [difference_table(result), perplexity_table(result), tasks_table(result), regression_table(result)]
    return [table for table in [*tables, pretrained_table(result), cost_table(result)] if table]


def difference_table(result: MomentumResult) -> Table:
    """Each arm's loss at full length minus its baseline's, in nats and as a change of perplexity."""
    report = result.momentum
    length = full_length(report) if report is not None else None
    where = f" at {length_name(length)} tokens" if length is not None else ""
    columns = (
        Column("arm", notes=True),
        Column("nats a token", "nats", interval="below"),
        Column("perplexity", "number", interval="below"),
        Column("p", "p"),
        Column("p by sign flips", "p", where="page"),
        Column("seeds", "count"),
    )
    rows = []
    for arm in _arms(report):
        if arm.baseline is not None and report is not None:
            paired = difference_at(arm, length)
            rows.append(
                Row(
                    (
                        _arm(report, arm, with_baseline=True),
                        nats_cell(paired),
                        _change(paired),
                        _p(paired.p if paired is not None else None),
                        _p(paired.p_signs if paired is not None else None),
                        Cell(paired.n if paired is not None else None, "count"),
                    )
                )
            )
    return Table(f"Loss{where}, minus the baseline's", columns, tuple(rows))


def perplexity_table(result: MomentumResult) -> Table:
    """Perplexity on test text by its length, with intervals below."""
    report = result.momentum
    all_lengths = lengths(report) if report is not None else []
    in_terminal = all_lengths[-LENGTHS_SHOWN:]
    columns = (
        Column("arm"),
        *(
            Column(
                f"{length_name(each)} tokens",
                "number",
                short=length_name(each),
                interval="below",
                where="everywhere" if each in in_terminal else "page",
            )
            for each in all_lengths
        ),
    )
    rows = tuple(
        Row((_arm(report, arm), *(_perplexity(arm.perplexity.get(each)) for each in all_lengths)))
        for arm in _arms(report)
        if report is not None and all_lengths
    )
    note = (
        "Test text in pieces of each length. The intervals of perplexities include variation between seeds that all "
        "arms share; use the differences to compare arms."
    )
    return Table("Perplexity by tokens of test text", columns, rows, note=note)


def learned_table(result: MomentumResult) -> Table:
    """Learned etas by arm and layer."""
    report = result.momentum
    arms = [arm for arm in _arms(report) if arm.learned_eta]
    layers = max((len(arm.learned_eta) for arm in arms), default=0)
    columns = (Column("eta by layer"), *(Column(str(layer), "score") for layer in range(layers)))
    rows = tuple(
        Row(
            (
                Cell(arm.name),
                *(
                    Cell(arm.learned_eta[layer] if layer < len(arm.learned_eta) else None, "score")
                    for layer in range(layers)
                ),
            )
        )
        for arm in arms
    )
    return Table("Learned eta", columns, rows)


def tasks_table(result: MomentumResult) -> Table:
    """Accuracy in context by task, its mean over tasks and the difference from the baseline's."""
    report = result.momentum
    names = list(dict.fromkeys(score.task for arm in _arms(report) for score in arm.tasks))
    columns = (
        Column("arm"),
        Column("tasks", "count", where="terminal"),
        *(Column(name, "share", where="page") for name in names),
        Column("mean", "share", short="accuracy", where="everywhere" if len(names) > 1 else "terminal"),
        Column("minus the baseline's, points", "difference", short="difference", interval=True),
        Column("p", "p"),
    )
    rows = []
    chances: dict[str, float | None] = {}
    for arm in _arms(report):
        scores = {score.task: score for score in arm.tasks}
        if not scores:
            continue
        chances |= {name: score.chance for name, score in scores.items() if finite(score.chance) is not None}
        paired = over_tasks(arm)
        rows.append(
            Row(
                (
                    Cell(arm.name),
                    Cell(len(arm.tasks), "count"),
                    *(
                        Cell(None, "share") if name not in scores else estimate_cell(scores[name].accuracy, "share")
                        for name in names
                    ),
                    Cell(mean_accuracy(arm), "share"),
                    BLANK if paired is None else Cell(paired.mean, "difference", paired.ci95, paired.n),
                    BLANK if paired is None else _p(paired.p),
                )
            )
        )
    levels = (Cell(chances.get(name), "share") for name in names)
    if rows:
        chance = (Cell("chance level"), BLANK, *levels, BLANK, BLANK, BLANK)
        rows.append(Row(chance, style="reference", where="page"))
    return Table("Accuracy in context, mean over tasks", columns, tuple(rows))


def regression_table(result: MomentumResult) -> Table:
    """Error after all examples by condition number, and the relative change of the error from the baseline's."""
    report = result.momentum
    regression = report.regression if report is not None else None
    columns = (
        Column("condition number", "number", short="condition"),
        Column("predictor"),
        Column("error after all examples", "score", short="last error"),
        Column("error relative to the baseline's", "number", short="change", interval="below"),
        Column("p", "p"),
    )
    rows = []
    for condition in conditions(regression) if regression is not None else []:
        assert regression is not None
        assert report is not None
        colours = arm_colours(report)
        predictors = [
            (curve.arm, colours.get(curve.arm, MEASURE_COLOUR), curve) for curve in curves_at(regression, condition)
        ]
        exact = references_at(regression, condition).items()
        predictors += [(f"{name} (exact)", MEASURE_COLOUR, curve) for name, curve in exact]
        for place, (name, colour, curve) in enumerate(predictors):
            last, paired = last_error(curve), curve.difference
            rows.append(
                Row(
                    (
                        # Only in the first row of each block.
                        Cell(condition, "number", override=f"{condition:g}" if place == 0 else ""),
                        Cell(name, colour=colour),
                        Cell(None, "score") if last is None else estimate_cell(last),
                        BLANK if paired is None else _change(paired),
                        BLANK if paired is None else _p(paired.p),
                    )
                )
            )
    note = (
        "The change relative to the baseline is the geometric mean over all points but the first, which has no "
        "examples "
        "before it, seed by seed."
    )
    return Table("In-context regression", columns, tuple(rows), note=note)


def pretrained_table(result: MomentumResult) -> Table:
    """Momentum in models that were trained without it: perplexity before, and the difference after a finetune."""
    columns = (
        Column("model"),
        Column("eta", "number"),
        Column("perplexity without", "number", short="without"),
        Column("with, no training", "number", short="with"),
        Column("finetuned without", "number", where="page"),
        Column("finetuned with", "number", where="page"),
        Column("difference, nats a token", "nats", short="tuned: nats", interval="below"),
        Column("p", "p"),
    )
    rows = tuple(
        Row(
            (
                Cell(each.model),
                Cell(each.eta, "number", override=eta_text(each.eta)),
                Cell(each.base, "number", override=perplexity_text(each.base)),
                Cell(each.perplexity, "number", override=perplexity_text(each.perplexity)),
                _perplexity(each.base_tuned),
                _perplexity(each.tuned),
                nats_cell(each.difference),
                _p(each.difference.p if each.difference is not None else None),
            )
        )
        for each in (result.momentum.pretrained if result.momentum is not None else [])
    )
    return Table("Momentum in models that were trained without it", columns, rows)


def published_table(result: MomentumResult) -> Table:
    """The paper's numbers, one run each, and this run's where there are any."""
    report = result.momentum
    best = best_momentum(report, full_length(report)) if report is not None else None
    if report is None or best is None:
        return Table("The paper's numbers", (Column("number"),), ())
    vanilla = arm_of(report, best.baseline)
    compared = compare_momentum_with_paper(vanilla, best)
    own = shares_with_the_paper(result)
    columns = (
        Column("number"),
        *(Column(name, "number") for name in ("vanilla", "momentum", "change")),
        *(
            Column(name, "number")
            for name in ([vanilla.name if vanilla is not None else MISSING, best.name] if own else [])
        ),
    )
    rows = tuple(
        Row((Cell(row.title), *_published(row), *(_own(row, each) for each in row.run if own))) for row in compared
    )
    groups = (("", 1), ("paper, one run each", 3), *((("this run", 2),) if own else ()))
    return Table("The paper's numbers", columns, rows, groups=groups)


def shares_with_the_paper(result: MomentumResult) -> bool:
    """Whether this run measured a number that the paper also reports."""
    report = result.momentum
    best = best_momentum(report, full_length(report)) if report is not None else None
    if report is None or best is None:
        return False
    rows = compare_momentum_with_paper(arm_of(report, best.baseline), best)
    return any(each is not None for row in rows for each in row.run)


def _published(row: PaperMomentumComparison) -> list[Cell]:
    vanilla, momentum = row.published
    if row.share:
        change = Cell(momentum - vanilla, "difference", override=f"{difference(momentum - vanilla)} points")
        return [*(Cell(each, "share") for each in row.published), change]
    relative_change = momentum / vanilla - 1
    change = Cell(relative_change, "number", override=f"{100 * relative_change:+.2f} %")
    return [*(Cell(each, "number", override=perplexity_text(each)) for each in row.published), change]


def _own(row: PaperMomentumComparison, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return BLANK
    return Cell(estimate.mean, "share", estimate.ci95, estimate.n) if row.share else _perplexity(estimate)


def cost_table(result: MomentumResult) -> Table:
    """Eta, parameters and relative duration of a training step of each arm."""
    report = result.momentum
    columns = (
        Column("arm"),
        Column("eta", "number"),
        Column("parameters", "count"),
        Column("more than the baseline", "count", short="more"),
        Column("step, times the baseline's", "number", short="step"),
    )
    rows = []
    for arm in _arms(report):
        assert report is not None
        more = added_parameters(report, arm)
        compared = arm_of(report, arm.baseline) is not None
        rows.append(
            Row(
                (
                    _arm(report, arm),
                    Cell(arm.eta, "number", override=eta_text(arm.eta)),
                    Cell(arm.parameters, "count"),
                    BLANK if more is None else Cell(more, "count"),
                    Cell(arm.step_ratio, "number", override=ratio_text(arm.step_ratio)) if compared else BLANK,
                )
            )
        )
    note = (
        "Duration of a training step divided by the baseline's: median of a few alternating steps in one process, on "
        "this machine with its load at the time."
    )
    return Table("What it costs", columns, tuple(rows), note=note)


def _arms(report: MomentumReport | None) -> list[MomentumArm]:
    return report.arms if report is not None else []


def _arm(report: MomentumReport, arm: MomentumArm, with_baseline: bool = False) -> Cell:
    """An arm's name in its colour, with the arm that it is compared with below."""
    notes = (f"minus {arm.baseline}",) if with_baseline else ()
    return Cell(arm.name, colour=arm_colours(report)[arm.name], notes=notes)


def nats_cell(paired: Paired | None) -> Cell:
    """A difference of losses with four decimals and a sign."""
    if paired is None:
        return Cell(None, "nats")
    mean, interval = nats(paired.mean), nats_interval(paired.ci95)
    return Cell(paired.mean, "nats", paired.ci95, paired.n, mean, shown_interval=interval)


def _change(paired: Paired | None) -> Cell:
    """A difference of logarithms as a relative change in per cent."""
    if paired is None:
        return Cell(None, "number")
    mean, interval = relative(paired.mean), relative_interval(paired.ci95)
    return Cell(paired.mean, "number", paired.ci95, paired.n, mean, shown_interval=interval)


def _perplexity(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(None, "number")
    mean, interval = perplexity_text(estimate.mean), perplexity_interval(estimate.ci95)
    return Cell(estimate.mean, "number", estimate.ci95, estimate.n, mean, shown_interval=interval)


def _p(p: float | None) -> Cell:
    return Cell(p, "p", override=MISSING if finite(p) is None else p_value(p))


def eta_text(eta: float | None) -> str:
    """`0.3`; empty for an arm without eta."""
    number = finite(eta)
    return "" if number is None else f"{number:g}"


def ratio_text(ratio: float | None) -> str:
    """`1.08 x`, or a dash."""
    return MISSING if finite(ratio) is None else f"{significant(ratio)} x"

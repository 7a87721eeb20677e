"""A comparison of momentum attention with vanilla as compact tables for the terminal, at most 80 columns wide."""

from rich.table import Table
from rich.text import Text

from dualform.report.numerals import MISSING, count, decimal, finite, percent, significant
from dualform.report.phrases import difference, difference_interval
from dualform.result import Result
from dualform.studies.comparison.words import p_text
from dualform.studies.momentum.figures import (
    added_parameters,
    arm_of,
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


def momentum_tables(result: Result) -> list[Table]:
    """All tables that have rows, in the order of reading; none without a momentum study."""
    if result.momentum is None:
        return []
    tables = [difference_table(result), perplexity_table(result), tasks_table(result), regression_table(result)]
    return [table for table in [*tables, pretrained_table(result), cost_table(result)] if table.row_count]


def difference_table(result: Result) -> Table:
    """Each arm's loss at full length less its baseline's, as nats and as a change of perplexity."""
    report = result.momentum
    length = full_length(report) if report is not None else None
    where = f" at {length_name(length)} tokens" if length is not None else ""
    table = Table(title=f"Loss{where}, less the baseline's", title_justify="left")
    table.add_column("arm", overflow="fold")
    for name in ("nats a token", "perplexity", "p", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in report.arms if report is not None else []:
        if arm.baseline is None:
            continue
        names = Text(f"{arm.name}\n less {arm.baseline}")
        found = difference_at(arm, length)
        if found is None:
            table.add_row(names, *(MISSING,) * 4)
            continue
        cells = (
            _under(nats(found.mean), nats_interval(found.ci95)),
            _under(relative(found.mean), relative_interval(found.ci95)),
        )
        table.add_row(names, *cells, p_alone(found.p), count(found.n))
    return table


def perplexity_table(result: Result) -> Table:
    """Perplexity on test text by its length, intervals below."""
    report = result.momentum
    # As many as eighty columns hold; the page has all of them.
    shown = (lengths(report) if report is not None else [])[-3:]
    table = Table(title="Perplexity by tokens of test text", title_justify="left")
    table.add_column("arm", overflow="fold")
    for length in shown:
        table.add_column(Text(length_name(length)), justify="right", no_wrap=True)
    for arm in report.arms if report is not None and shown else []:
        cells = []
        for length in shown:
            each = arm.perplexity.get(length)
            cells.append(
                MISSING if each is None else _under(perplexity_text(each.mean), perplexity_interval(each.ci95))
            )
        table.add_row(Text(arm.name), *cells)
    return table


def tasks_table(result: Result) -> Table:
    """Accuracy in context, mean over tasks, and its difference from the baseline's."""
    report = result.momentum
    table = Table(title="Accuracy in context, mean over tasks", title_justify="left")
    table.add_column("arm", overflow="fold")
    for name in ("tasks", "accuracy", "difference", "95 % interval", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in report.arms if report is not None else []:
        if not arm.tasks:
            continue
        found = over_tasks(arm)
        cells = (
            ("", "", "")
            if found is None
            else (difference(found.mean), difference_interval(found.ci95), p_alone(found.p))
        )
        table.add_row(Text(arm.name), count(len(arm.tasks)), percent(mean_accuracy(arm)), *cells)
    return table


def regression_table(result: Result) -> Table:
    """Error behind all examples by condition number, and the mean change of the error from the baseline's."""
    regression = result.momentum.regression if result.momentum is not None else None
    table = Table(title="In-context regression", title_justify="left")
    table.add_column("condition", justify="right", no_wrap=True)
    table.add_column("predictor", overflow="fold")
    for name in ("last error", "error changed by", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for condition in conditions(regression) if regression is not None else []:
        assert regression is not None
        number = f"{condition:g}"
        for curve in curves_at(regression, condition):
            found, last = curve.difference, last_error(curve)
            cells = ("", "")
            if found is not None:
                cells = (_under(relative(found.mean), relative_interval(found.ci95)), p_alone(found.p))
            table.add_row(number, Text(curve.arm), decimal(last.mean) if last is not None else MISSING, *cells)
            number = ""
        for name, curve in references_at(regression, condition).items():
            last = last_error(curve)
            table.add_row(number, Text(f"{name} (exact)"), decimal(last.mean) if last is not None else MISSING, "", "")
            number = ""
    return table


def pretrained_table(result: Result) -> Table:
    """Momentum in models that were trained without: perplexity as they are, and the difference after a finetune."""
    table = Table(title="Put into models that were trained without", title_justify="left")
    table.add_column("model", overflow="fold")
    for name in ("eta", "without", "with", "tuned: nats", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in result.momentum.pretrained if result.momentum is not None else []:
        found = each.difference
        cells = (MISSING, MISSING)
        if found is not None:
            cells = (_under(nats(found.mean), nats_interval(found.ci95)), p_alone(found.p))
        table.add_row(
            Text(each.model), eta_text(each.eta), perplexity_text(each.base), perplexity_text(each.perplexity), *cells
        )
    return table


def cost_table(result: Result) -> Table:
    """What each arm is made of, and how long a step takes beside its baseline's."""
    report = result.momentum
    table = Table(title="What it costs", title_justify="left")
    table.add_column("arm", overflow="fold")
    for name in ("eta", "parameters", "more", "step"):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in report.arms if report is not None else []:
        assert report is not None
        more = added_parameters(report, arm)
        table.add_row(
            Text(arm.name),
            eta_text(arm.eta),
            count(arm.parameters),
            "" if more is None else count(more),
            ratio_text(arm.step_ratio) if arm_of(report, arm.baseline) is not None else "",
        )
    return table


def _under(number: str, interval: str) -> str:
    """A number, and below it its interval where there is one."""
    return number if interval == MISSING else f"{number}\n{interval}"


def p_alone(p: float | None) -> str:
    """`0.012`, `< 0.001`, or a dash."""
    return MISSING if finite(p) is None else p_text(p).removeprefix("p ").removeprefix("= ")


def eta_text(eta: float | None) -> str:
    """`0.3`; empty for an arm without."""
    number = finite(eta)
    return "" if number is None else f"{number:g}"


def ratio_text(ratio: float | None) -> str:
    """`1.08 x`, or a dash."""
    return MISSING if finite(ratio) is None else f"{significant(ratio)} x"

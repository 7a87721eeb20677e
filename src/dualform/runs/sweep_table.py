"""The tables of a sweep, each declared once for the terminal, the page, files and data frames."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from dualform.report.measures import control_of, measure_of
from dualform.report.numerals import MISSING, finite, percent, scaled
from dualform.report.palette import learner_style
from dualform.report.phrases import is_few, plural, points, points_interval, share
from dualform.report.table import BLANK, Cell, Column, Row, Table, learner_cell, score_cell, without_columns
from dualform.result import Accuracy, Estimate, Result
from dualform.runs.sweep_words import (
    SHARE,
    TaskMean,
    accuracy_of,
    cells_by_status,
    compared,
    group_name,
    learners_of,
    option_text,
    over_tasks,
    seed_spread,
    slice_name,
    slices,
    study_name,
)
from dualform.studies.against_words import break_even, compare_accuracy
from dualform.studies.baseline_words import collapsed, majority_level
from dualform.sweep_result import SweepGroup, SweepResult

Found = list[tuple[SweepGroup, Result]]

SHORT = {"zsl": "ZSL", "icl": "ICL", "ft": "FT", "probe": "probe", "fold": "fold"}
"""Names of learners in a narrow column; others keep their title."""


def sweep_tables(sweep: SweepResult) -> list[Table]:
    """All tables for the terminal that have rows, in the order of reading."""
    return [table for table in (grid_table(sweep), studies_table(sweep), failures_table(sweep)) if table.row_count]


def href(group: SweepGroup) -> str:
    """Address of a group's own page, relative to the sweep's."""
    # The name is a folder's, whatever it holds: quoted it can be no other address.
    return f"./{quote(group.name, safe='')}/report.html"


def grid_table(sweep: SweepResult) -> Table:
    """Accuracy of each learner, one row a group; the highest of a row is marked, and so is a collapse.

    On the page also what is not significantly different from the highest, the commonest label's share, agreement with
    ICL, and each model's mean over tasks.
    """
    found = compared(sweep)
    learners, agreeing = learners_of(found), agreeing_learners(found)
    columns = (
        Column("model", where="terminal"),
        Column("task"),
        Column("commonest label", "points", where="page"),
        *(Column(learner_style(key).title, "points", short=SHORT.get(key, "")) for key in learners),
        *(Column(f"{learner_style(key).title}: agrees with ICL", "points", where="page") for key in agreeing),
    )
    # By identity: a group without a result has a row too, in its place.
    there = {id(group) for group, _ in found}
    blocks: dict[str, list[SweepGroup]] = {}
    for group in sweep.groups:
        if id(group) in there or (group.result is None and study_name(group) == "comparison"):
            blocks.setdefault(slice_name(group), []).append(group)
    rows = []
    for name, groups in blocks.items():
        blank = (BLANK,) * (len(columns) - 2)
        rows.append(Row((BLANK, Cell(name), *blank), style="group", where="page"))
        rows += [_grid_row(name if place == 0 else "", group, learners, agreeing) for place, group in enumerate(groups)]
        own = [(group, group.result) for group in groups if group.result is not None]
        rows += _mean_rows(own, learners, agreeing)
    note = (
        "A mean over tasks counts each task once, whatever its number of queries, and only tasks on which every "
        "learner was "
        "run; its interval is over tasks."
    )
    table = Table("Accuracy, % (* highest of its row, ! collapsed)", columns, tuple(rows), note=note)
    known = any(majority_level(result) is not None for _, result in found)
    return table if known else without_columns(table, ["commonest label"])


def _grid_row(name: str, group: SweepGroup, learners: Sequence[str], agreeing: Sequence[str]) -> Row:
    result, missing = group.result, group.missing_seeds
    note = f"seed {', '.join(map(str, missing))} missing" if missing else ""
    if result is None:
        note = note or "no result yet"
    task = Cell(
        group.task or MISSING,
        link=href(group) if result is not None else "",
        notes=(note,) if note else (),
        short=f"{group.task or MISSING} ({len(missing)} missing)" if missing else None,
    )
    if result is None:
        return Row((Cell(name), task, BLANK, *(BLANK for _ in [*learners, *agreeing])))
    means = {key: mean for key in learners if (mean := accuracy_of(key)(result)) is not None}
    highest = max(means, key=means.__getitem__) if means else None
    fallen = collapsed(result)
    cells = []
    for key in learners:
        accuracy = result.accuracy.get(key)
        if accuracy is None:
            cells.append(BLANK)
            continue
        level = highest is not None and key != highest and key in means and compare_accuracy(result, highest, key) == 0
        cells.append(_accuracy(accuracy, best=key == highest, level=level, fallen=key in fallen))
    agreement = [result.against_icl[key].agreement if key in result.against_icl else None for key in agreeing]
    shares = [BLANK if each is None else _points_or_count(each) for each in agreement]
    return Row((Cell(name), task, Cell(majority_level(result), "points"), *cells, *shares))


def _accuracy(accuracy: Accuracy, *, best: bool, level: bool, fallen: bool) -> Cell:
    """An accuracy in per cent; `≈` before one that is not significantly different from the highest of its row."""
    shown = share(accuracy) if is_few(accuracy) else points(accuracy.mean)
    return Cell(
        accuracy.mean,
        "points",
        None if is_few(accuracy) else accuracy.ci95,
        accuracy.n,
        f"≈ {shown}" if level else shown,
        short=shown,
        flag="collapsed" if fallen else "",
        tone="best" if best else "",
    )


def _points_or_count(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, "points", n=estimate.n, shown=share(estimate) if is_few(estimate) else None)


def _mean_rows(own: Found, learners: Sequence[str], agreeing: Sequence[str]) -> list[Row]:
    """Means over the tasks that all learners have; none with fewer than two."""
    shared = [(group, result) for group, result in own if all(accuracy_of(key)(result) is not None for key in learners)]
    means = [over_tasks(shared, accuracy_of(key), SHARE) for key in learners]
    known = [mean for mean in means if mean is not None and mean.n >= 2]
    if not means or len(known) < len(means):
        return []
    agreement = [over_tasks(shared, agreement_of(key), SHARE) for key in agreeing]
    cells = (Cell(f"mean over {known[0].n} tasks"), BLANK, *map(_mean, means))
    shares = (BLANK if mean is None else Cell(mean.mean, "points") for mean in agreement)
    return [Row((BLANK, *cells, *shares), style="reference", where="page")]


def _mean(mean: TaskMean | None) -> Cell:
    return BLANK if mean is None else Cell(mean.mean, "points", mean.ci95, mean.n)


def agreement_of(key: str) -> Callable[[Result], float | None]:
    """Reads a learner's agreement with ICL from a result."""
    return lambda result: finite(result.against_icl[key].agreement.mean) if key in result.against_icl else None


def agreeing_learners(found: Found) -> list[str]:
    """Learners whose agreement with ICL has a column."""
    return [key for key in ("ft", "fold") if any(key in result.against_icl for _, result in found)]


def option_table(axis: str, values: Sequence[Any], found: Found) -> Table:
    """Accuracy at each value of one axis, a block for all else alike: mean over the tasks that every value has."""
    learners = learners_of(found)
    columns = (
        Column(axis),
        Column("tasks", "count"),
        *(Column(learner_style(key).title, "points", short=SHORT.get(key, "")) for key in learners),
    )
    by_rest: dict[str, Found] = {}
    for group, result in found:
        if axis in group.options:
            rest = {name: value for name, value in group.options.items() if name != axis}
            by_rest.setdefault(slice_name(group.model_copy(update={"options": rest})), []).append((group, result))
    rows = []
    for name, own in by_rest.items():
        at = {option_text(value): [each for each in own if each[0].options[axis] == value] for value in values}
        tasks = set.intersection(*({group.task for group, _ in each} for each in at.values() if each))
        block = []
        for text, each in at.items():
            shared = [(group, result) for group, result in each if group.task in tasks]
            if shared:
                cells = (_mean(over_tasks(shared, accuracy_of(key), SHARE)) for key in learners)
                block.append(Row((Cell(text), Cell(len(tasks), "count"), *cells)))
        if block:
            rows += [_group(name, len(columns)), *block]
    note = "Per cent. Over the tasks that were run at every value; the interval is over tasks, from three on."
    return Table(f"Accuracy against {axis}", columns, tuple(rows), note=note)


def _group(name: str, columns: int) -> Row:
    return Row((Cell(name), *(BLANK,) * (columns - 1)), style="group")


def spread_table(found: Found) -> Table:
    """How far seeds lie apart, and each learner's most frequent answer, for the learners that demonstrations change."""
    keys = [key for key in learners_of(found) if key != "zsl"]
    columns = [Column("group"), Column("seeds", "count")]
    for _ in keys:
        columns += [Column("lowest to highest, %", "points"), Column("top answer", "share")]
    rows = []
    for group, result in found:
        fallen = collapsed(result)
        cells: list[Cell] = []
        for key in keys:
            spread, predictions = seed_spread(result, key), result.predictions.get(key)
            notes = (f"SD {points(spread[2])}",) if spread and spread[2] is not None else ()
            shown = points_interval(spread[:2]) if spread else MISSING
            top = predictions.majority_share if predictions else None
            flag = "collapsed" if key in fallen else ""
            cells += [Cell(None, "points", shown=shown, notes=notes), Cell(top, "share", shown=percent(top), flag=flag)]
        seeds = max((len(each.per_seed) for each in result.accuracy.values()), default=0)
        rows.append(Row((_linked(group), Cell(seeds, "count"), *cells)))
    groups = (("", 2), *((learner_style(key).title, 2) for key in keys))
    note = "SD: standard deviation over seeds, in points, from three seeds on; of so few it is a rough number."
    return Table("Spread of accuracy over seeds", tuple(columns), tuple(rows) if keys else (), note=note, groups=groups)


def _linked(group: SweepGroup) -> Cell:
    return Cell(group_name(group), link=href(group))


def similarity_table(key: str, found: Found) -> Table:
    """One measure by model and task: score, floor, ceiling and the place between them."""
    columns = (
        Column("group"),
        Column("score", "score", interval=True),
        Column("n", "count"),
        Column("floor", "score"),
        Column("ceiling", "score"),
        Column("calibrated", "ratio"),
    )
    rows = []
    for group, result in found:
        similarity, place = result.similarity.get(key), result.calibrated.get(key)
        if similarity is None:
            continue
        scale = (BLANK,) * 3
        if place is not None:
            scale = (
                Cell(place.floor, "score", notes=(control_of(place.control).title,)),
                Cell(place.ceiling, "score"),
                Cell(place.mean, "ratio", place.ci95, place.n),
            )
        rows.append(Row((_linked(group), score_cell(key, similarity), Cell(similarity.n, "count"), *scale)))
    table = Table(measure_of(key).title, columns, tuple(rows))
    if any(key in result.calibrated for _, result in found):
        return table
    return without_columns(table, ["floor", "ceiling", "calibrated"])


def cost_table(found: Found) -> Table:
    """What each learner costs, a block for each model (with its options): means over tasks."""
    columns = (
        Column("learner"),
        Column("to adapt, s", "seconds"),
        Column("search for a rate, s", "seconds"),
        Column("a query, ms", "number"),
        Column("tokens a query", "count"),
        Column("GFLOP a query", "number"),
        Column("cheaper after, read anew", "count"),
        Column("cheaper after, kept", "count"),
    )
    rows = []
    for name, own in slices(found).items():
        block = []
        for key in learners_of(own):
            there = [(group, result) for group, result in own if key in result.cost]
            if there:
                mean = partial(_mean_cost, there, key)
                block.append(
                    Row(
                        (
                            learner_cell(key),
                            Cell(mean("adapt_seconds"), "seconds"),
                            Cell(mean("search_seconds"), "seconds"),
                            Cell(mean("query_seconds", 1e3), "number"),
                            Cell(mean("tokens"), "count"),
                            Cell(mean("flops", 1e-9), "number"),
                            _after(there, key, kept=False),
                            _after(there, key, kept=True),
                        )
                    )
                )
        if block:
            tasks = plural(len({group.task for group, _ in own}), "task")
            rows += [_group(f"{name}, mean over {tasks}", len(columns)), *block]
    note = (
        "Seconds are those of the workers, which share the machine: compare them within this sweep only. Tokens and "
        "GFLOP are "
        "of one query when nothing is shared. Cheaper after: queries from which on adapting once and answering takes "
        "fewer "
        "operations than a prompt that is read anew for every query, or whose keys and values are kept; median over "
        "tasks."
    )
    return Table("Cost by model", columns, tuple(rows), note=note)


def _mean_cost(found: Found, key: str, field: str, factor: float = 1.0) -> float | None:
    mean = over_tasks(found, lambda result: scaled(getattr(result.cost[key], field), factor))
    return None if mean is None else mean.mean


def _after(found: Found, key: str, *, kept: bool) -> Cell:
    """Median over the groups of the queries after which a learner is cheaper; `never` comes after any number."""
    told = [break_even(result, key, kept=kept) for _, result in found if key in result.against_icl]
    known_ = [text for text in told if text != MISSING]
    if not known_:
        return BLANK if key == "icl" else Cell(None, "count")
    order = sorted(known_, key=lambda text: float("inf") if text == "never" else float(text.replace(",", "")))
    # The upper of two in the middle: no mean with a `never` exists.
    middle = order[len(order) // 2]
    return Cell(None if middle == "never" else float(middle.replace(",", "")), "count", shown=middle)


def studies_table(sweep: SweepResult) -> Table:
    """Groups that are no comparisons, and whether each has a result."""
    columns = (Column("study"), Column("group"), Column("result"))
    rows = tuple(
        Row(
            (
                Cell(study_name(group)),
                Cell(group_name(group)),
                Cell("no" if group.result is None else f"{group.name}/report.html"),
            )
        )
        for group in sweep.groups
        if study_name(group) != "comparison"
    )
    return Table("Other studies", columns, rows)


def failures_table(sweep: SweepResult) -> Table:
    """Cells that failed, with their message; tracebacks are on the page and in the store."""
    columns = (Column("group"), Column("seed"), Column("why"), Column("attempts", where="page"))
    rows = []
    for cell in cells_by_status(sweep)["failed"]:
        failure = cell.failure
        attempts = (
            "" if failure is None else plural(failure.attempts, "attempt") + (", worker lost" if failure.lost else "")
        )
        rows.append(
            Row(
                (
                    Cell(cell.group),
                    Cell(MISSING if cell.seed is None else str(cell.seed)),
                    Cell(failure.message if failure else "no reason was kept"),
                    Cell(attempts),
                )
            )
        )
    return Table("What failed", columns, tuple(rows), blocks=True)


def cells_table(sweep: SweepResult) -> Table:
    """Every cell with its status, seconds and key."""
    columns = (Column("group"), Column("seed"), Column("status"), Column("seconds", "seconds"), Column("key"))
    rows = tuple(
        Row(
            (
                Cell(cell.group),
                Cell(MISSING if cell.seed is None else str(cell.seed)),
                Cell(cell.status, tone="bad" if cell.status == "failed" else ""),
                Cell(cell.seconds, "seconds"),
                Cell(cell.key[:12]),
            )
        )
        for cell in sweep.cells
    )
    return Table("Cells", columns, rows)

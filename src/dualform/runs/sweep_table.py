"""The tables of a sweep, for the terminal, the page, files and data frames."""

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
    SHARE_RANGE,
    TaskMean,
    accuracy_of,
    cells_by_status,
    comparison_results,
    group_by_model,
    group_name,
    learners_of,
    mean_over_tasks,
    model_and_options,
    option_text,
    seed_spread,
    study_name,
)
from dualform.studies.against_words import break_even, compare_accuracy
from dualform.studies.baseline_words import collapsed, majority_level
from dualform.sweep_result import SweepGroup, SweepResult

GroupResults = list[tuple[SweepGroup, Result]]

SHORT = {"zsl": "ZSL", "icl": "ICL", "ft": "FT", "probe": "probe", "fold": "fold"}
"""Short names of learners for narrow columns; other learners keep their title."""


def sweep_tables(sweep: SweepResult) -> list[Table]:
    """All non-empty tables for the terminal, in the order in which they are printed."""
    return [table for table in (grid_table(sweep), studies_table(sweep), failures_table(sweep)) if table.row_count]


def href(group: SweepGroup) -> str:
    """Address of a group's report, relative to the sweep's folder."""
    # Quoted, so that a name cannot point to another address.
    return f"./{quote(group.name, safe='')}/report.html"


def grid_table(sweep: SweepResult) -> Table:
    """Accuracy of each learner, one row per group. The highest accuracy of a row and collapsed learners are marked.

    The page also marks accuracies that are not significantly different from the highest, and has the share of the
    most common label, agreement with ICL, and each model's mean over tasks.
    """
    results = comparison_results(sweep)
    learners, agreeing = learners_of(results), agreeing_learners(results)
    columns = (
        Column("model", where="terminal"),
        Column("task"),
        Column("most common label", "points", where="page"),
        *(Column(learner_style(key).title, "points", short=SHORT.get(key, "")) for key in learners),
        *(Column(f"{learner_style(key).title}: agrees with ICL", "points", where="page") for key in agreeing),
    )
    # A group without a result keeps its row, in the order of the sweep.
    with_accuracy = {id(group) for group, _ in results}
    blocks: dict[str, list[SweepGroup]] = {}
    for group in sweep.groups:
        if id(group) in with_accuracy or (group.result is None and study_name(group) == "comparison"):
            blocks.setdefault(model_and_options(group), []).append(group)
    rows = []
    for name, groups in blocks.items():
        blank = (BLANK,) * (len(columns) - 2)
        rows.append(Row((BLANK, Cell(name), *blank), style="group", where="page"))
        rows += [_grid_row(name if place == 0 else "", group, learners, agreeing) for place, group in enumerate(groups)]
        model_results = [(group, group.result) for group in groups if group.result is not None]
        rows += _mean_rows(model_results, learners, agreeing)
    note = (
        "Means over tasks weight all tasks equally and include only tasks on which every learner was run; their "
        "intervals are over tasks."
    )
    table = Table("Accuracy, % (* highest in its row, ! collapsed)", columns, tuple(rows), note=note)
    has_majority = any(majority_level(result) is not None for _, result in results)
    return table if has_majority else without_columns(table, ["most common label"])


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
    collapsed_learners = collapsed(result)
    cells = []
    for key in learners:
        accuracy = result.accuracy.get(key)
        if accuracy is None:
            cells.append(BLANK)
            continue
        similar = (
            highest is not None and key != highest and key in means and compare_accuracy(result, highest, key) == 0
        )
        cells.append(_accuracy(accuracy, best=key == highest, similar=similar, is_collapsed=key in collapsed_learners))
    agreement = [result.against_icl[key].agreement if key in result.against_icl else None for key in agreeing]
    shares = [BLANK if each is None else _points_or_count(each) for each in agreement]
    return Row((Cell(name), task, Cell(majority_level(result), "points"), *cells, *shares))


def _accuracy(accuracy: Accuracy, *, best: bool, similar: bool, is_collapsed: bool) -> Cell:
    """An accuracy in per cent, after `≈` if it is not significantly different from the highest of its row."""
    text = share(accuracy) if is_few(accuracy) else points(accuracy.mean)
    return Cell(
        accuracy.mean,
        "points",
        None if is_few(accuracy) else accuracy.ci95,
        accuracy.n,
        f"≈ {text}" if similar else text,
        short=text,
        flag="collapsed" if is_collapsed else "",
        tone="best" if best else "",
    )


def _points_or_count(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, "points", n=estimate.n, override=share(estimate) if is_few(estimate) else None)


def _mean_rows(model_results: GroupResults, learners: Sequence[str], agreeing: Sequence[str]) -> list[Row]:
    """The row of means over the tasks on which all learners were run; no row for fewer than two such tasks."""
    shared = [
        (group, result)
        for group, result in model_results
        if all(accuracy_of(key)(result) is not None for key in learners)
    ]
    means = [mean_over_tasks(shared, accuracy_of(key), SHARE_RANGE) for key in learners]
    usable = [mean for mean in means if mean is not None and mean.n >= 2]
    if not means or len(usable) < len(means):
        return []
    agreement = [mean_over_tasks(shared, agreement_of(key), SHARE_RANGE) for key in agreeing]
    cells = (Cell(f"mean over {usable[0].n} tasks"), BLANK, *map(_mean, means))
    shares = (BLANK if mean is None else Cell(mean.mean, "points") for mean in agreement)
    return [Row((BLANK, *cells, *shares), style="reference", where="page")]


def _mean(mean: TaskMean | None) -> Cell:
    return BLANK if mean is None else Cell(mean.mean, "points", mean.ci95, mean.n)


def agreement_of(key: str) -> Callable[[Result], float | None]:
    """A function that reads a learner's agreement with ICL from a result."""
    return lambda result: finite(result.against_icl[key].agreement.mean) if key in result.against_icl else None


def agreeing_learners(results: GroupResults) -> list[str]:
    """Learners for which a table has a column of agreement with ICL."""
    return [key for key in ("ft", "fold") if any(key in result.against_icl for _, result in results)]


def option_table(axis: str, values: Sequence[Any], results: GroupResults) -> Table:
    """Mean accuracy at each value of one axis, over the tasks that were run at every value.

    Each block holds the groups that have the same model and the same other options.
    """
    learners = learners_of(results)
    columns = (
        Column(axis),
        Column("tasks", "count"),
        *(Column(learner_style(key).title, "points", short=SHORT.get(key, "")) for key in learners),
    )
    by_rest: dict[str, GroupResults] = {}
    for group, result in results:
        if axis in group.options:
            rest = {name: value for name, value in group.options.items() if name != axis}
            by_rest.setdefault(model_and_options(group.model_copy(update={"options": rest})), []).append(
                (group, result)
            )
    rows = []
    for name, block_results in by_rest.items():
        by_value = {
            option_text(value): [each for each in block_results if each[0].options[axis] == value] for value in values
        }
        tasks = set.intersection(*({group.task for group, _ in each} for each in by_value.values() if each))
        block = []
        for text, each in by_value.items():
            shared = [(group, result) for group, result in each if group.task in tasks]
            if shared:
                cells = (_mean(mean_over_tasks(shared, accuracy_of(key), SHARE_RANGE)) for key in learners)
                block.append(Row((Cell(text), Cell(len(tasks), "count"), *cells)))
        if block:
            rows += [_group(name, len(columns)), *block]
    note = "Per cent, means over the tasks that were run at every value, with intervals over at least three tasks."
    return Table(f"Accuracy against {axis}", columns, tuple(rows), note=note)


def _group(name: str, columns: int) -> Row:
    return Row((Cell(name), *(BLANK,) * (columns - 1)), style="group")


def spread_table(results: GroupResults) -> Table:
    """Range of accuracy over seeds and share of the most frequent answer, for all learners except zero-shot."""
    keys = [key for key in learners_of(results) if key != "zsl"]
    columns = [Column("group"), Column("seeds", "count")]
    for _ in keys:
        columns += [Column("lowest to highest, %", "points"), Column("top answer", "share")]
    rows = []
    for group, result in results:
        collapsed_learners = collapsed(result)
        cells: list[Cell] = []
        for key in keys:
            spread, predictions = seed_spread(result, key), result.predictions.get(key)
            notes = (f"SD {points(spread[2])}",) if spread and spread[2] is not None else ()
            text = points_interval(spread[:2]) if spread else MISSING
            top = predictions.majority_share if predictions else None
            flag = "collapsed" if key in collapsed_learners else ""
            cells += [
                Cell(None, "points", override=text, notes=notes),
                Cell(top, "share", override=percent(top), flag=flag),
            ]
        seeds = max((len(each.per_seed) for each in result.accuracy.values()), default=0)
        rows.append(Row((_linked(group), Cell(seeds, "count"), *cells)))
    groups = (("", 2), *((learner_style(key).title, 2) for key in keys))
    note = (
        "SD: standard deviation over seeds, in points, for at least three seeds; with few seeds it is a rough estimate."
    )
    return Table("Spread of accuracy over seeds", tuple(columns), tuple(rows) if keys else (), note=note, groups=groups)


def _linked(group: SweepGroup) -> Cell:
    return Cell(group_name(group), link=href(group))


def similarity_table(key: str, results: GroupResults) -> Table:
    """One measure by model and task: score, floor, ceiling and the score scaled between them."""
    columns = (
        Column("group"),
        Column("score", "score", interval=True),
        Column("n", "count"),
        Column("floor", "score"),
        Column("ceiling", "score"),
        Column("calibrated", "ratio"),
    )
    rows = []
    for group, result in results:
        similarity, calibrated = result.similarity.get(key), result.calibrated.get(key)
        if similarity is None:
            continue
        scale = (BLANK,) * 3
        if calibrated is not None:
            scale = (
                Cell(calibrated.floor, "score", notes=(control_of(calibrated.control).title,)),
                Cell(calibrated.ceiling, "score"),
                Cell(calibrated.mean, "ratio", calibrated.ci95, calibrated.n),
            )
        rows.append(Row((_linked(group), score_cell(key, similarity), Cell(similarity.n, "count"), *scale)))
    table = Table(measure_of(key).title, columns, tuple(rows))
    if any(key in result.calibrated for _, result in results):
        return table
    return without_columns(table, ["floor", "ceiling", "calibrated"])


def cost_table(results: GroupResults) -> Table:
    """Costs of each learner, means over tasks, in one block per model (with its options)."""
    columns = (
        Column("learner"),
        Column("to adapt, s", "seconds"),
        Column("learning-rate search, s", "seconds"),
        Column("per query, ms", "number"),
        Column("tokens per query", "count"),
        Column("GFLOP per query", "number"),
        Column("cheaper after (prompt re-read)", "count"),
        Column("cheaper after (prompt cached)", "count"),
    )
    rows = []
    for name, model_results in group_by_model(results).items():
        block = []
        for key in learners_of(model_results):
            with_cost = [(group, result) for group, result in model_results if key in result.cost]
            if with_cost:
                mean = partial(_mean_cost, with_cost, key)
                block.append(
                    Row(
                        (
                            learner_cell(key),
                            Cell(mean("adapt_seconds"), "seconds"),
                            Cell(mean("search_seconds"), "seconds"),
                            Cell(mean("query_seconds", 1e3), "number"),
                            Cell(mean("tokens"), "count"),
                            Cell(mean("flops", 1e-9), "number"),
                            _break_even(with_cost, key, cached=False),
                            _break_even(with_cost, key, cached=True),
                        )
                    )
                )
        if block:
            tasks = plural(len({group.task for group, _ in model_results}), "task")
            rows += [_group(f"{name}, mean over {tasks}", len(columns)), *block]
    note = (
        "Seconds were measured in workers that share the machine, so compare them only within this sweep. Tokens and "
        "GFLOP are those of a query processed on its own. Cheaper after: number of queries after which adapting once "
        "and answering takes fewer operations than a prompt that is re-read for every query, or whose keys and values "
        "are cached; median over tasks."
    )
    return Table("Cost by model", columns, tuple(rows), note=note)


def _mean_cost(results: GroupResults, key: str, field: str, factor: float = 1.0) -> float | None:
    mean = mean_over_tasks(results, lambda result: scaled(getattr(result.cost[key], field), factor))
    return None if mean is None else mean.mean


def _break_even(results: GroupResults, key: str, *, cached: bool) -> Cell:
    """Median over the groups of the number of queries after which a learner is cheaper; `never` counts as infinity."""
    all_texts = [break_even(result, key, cached=cached) for _, result in results if key in result.against_icl]
    texts = [text for text in all_texts if text != MISSING]
    if not texts:
        return BLANK if key == "icl" else Cell(None, "count")
    order = sorted(texts, key=lambda text: float("inf") if text == "never" else float(text.replace(",", "")))
    # The upper of the two middle values, because a mean with `never` does not exist.
    middle = order[len(order) // 2]
    return Cell(None if middle == "never" else float(middle.replace(",", "")), "count", override=middle)


def studies_table(sweep: SweepResult) -> Table:
    """Groups of other studies, with the path of each one's report."""
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
    """Cells that failed, with their error message; tracebacks are on the page and in the store."""
    columns = (Column("group"), Column("seed"), Column("error"), Column("attempts", where="page"))
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
                    Cell(failure.message if failure else "no error message was stored"),
                    Cell(attempts),
                )
            )
        )
    return Table("Failed cells", columns, tuple(rows), blocks=True)


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

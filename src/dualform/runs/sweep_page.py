"""A sweep as one HTML file that needs no network: who wins where, how sure, at what cost, and what is missing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from dualform.report.measures import control_of, measure_of, score, score_interval
from dualform.report.numerals import (
    MISSING,
    count,
    decimal,
    finite,
    known,
    percent,
    percent_interval,
    scaled,
    significant,
)
from dualform.report.palette import learner_style
from dualform.report.phrases import (
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    is_few,
    plural,
    points,
    points_interval,
    share,
)
from dualform.report.shell import DescribedChart, card, commands_again, render_shell
from dualform.result import Estimate, Result
from dualform.runs import sweep_charts
from dualform.runs.sweep_words import (
    GAP,
    SHARE,
    TaskMean,
    accuracy_of,
    axes_of,
    cell_sentence,
    cells_by_status,
    compared,
    decided,
    difference_of,
    group_name,
    judged_measures,
    learners_of,
    option_text,
    over_tasks,
    seed_spread,
    slice_name,
    slices,
    study_name,
    sweep_verdict,
)
from dualform.studies.against_words import break_even, stands
from dualform.studies.baseline_words import majority_level
from dualform.studies.comparison.words import collapsed
from dualform.studies.study import study_of_result
from dualform.sweep_result import SweepGroup, SweepResult

CHARTS: dict[str, DescribedChart] = {
    "accuracy": (
        sweep_charts.accuracy_by_task_chart,
        "Mean accuracy of each learner on each task with its 95 % interval and one point a seed, one panel a model.",
    ),
    "gain": (
        sweep_charts.gain_chart,
        "Heat maps of model and task, one a learner: accuracy less that of zero-shot, in points.",
    ),
    "majority": (
        sweep_charts.majority_share_chart,
        "Share of the most frequent answer of each learner on each task, one panel a model.",
    ),
    "likeness": (
        sweep_charts.likeness_by_task_chart,
        "Each measure of likeness by task and model with its interval on one scale: 0 is its floor, 1 its ceiling.",
    ),
    "cost": (
        sweep_charts.cost_by_model_chart,
        "Mean accuracy over tasks of each learner and model against the floating-point operations of a query.",
    ),
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("group", "One model, one task and one set of options: all cells that differ in nothing but the seed."),
    ("cell", "One seed of a group, or for studies other than comparisons one whole run."),
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    ("seed", "Decides which demonstrations are drawn and in what order."),
    (
        "95 % interval",
        "In a group: bootstrap over seeds and, independently, over the queries that all seeds share. Over tasks: "
        "Student's, each task one number, as if tasks were drawn from many like them; from three tasks on.",
    ),
    (
        "decides",
        "A group decides between prompting, finetuning and folding where its paired tests (without tests: its "
        "intervals) put one of them above the two others.",
    ),
    ("collapsed", "A learner that gives one answer to more than 90 % of the queries."),
    ("agreement with ICL", "Share of queries that a learner answers as in-context learning does."),
    (
        "calibrated",
        "(score - floor) / (ceiling - floor): 0 is the highest control in which nothing is learned from these "
        "demonstrations, 1 what the same thing twice scores. Noise can carry it below 0 or above 1.",
    ),
    (
        "cheaper after",
        "Queries after which adapting and asking takes fewer operations than a prompt; median over tasks.",
    ),
)

Found = list[tuple[SweepGroup, Result]]


def render_sweep(sweep: SweepResult) -> str:
    """The report of a sweep as one HTML document, ready to be written as UTF-8.

    Args:
        sweep: Finished or not; sections without data are left out. Groups are linked to as `GROUP/report.html`, beside
            the page.

    Returns:
        The whole page, charts' libraries included, readable offline and printable.
    """
    found = compared(sweep)
    axes = axes_of(found)
    by_status = cells_by_status(sweep)
    by_axis: dict[str, DescribedChart] = {
        f"option-{number}": (partial(sweep_charts.option_chart, axis=axis), f"Accuracy of each learner against {axis}.")
        for number, axis in enumerate(axes, 1)
    }
    learners = learners_of(found)
    return render_shell(
        "dualform.runs:sweep.html.j2",
        sweep,
        title=f"dualform: sweep {sweep.name}",
        charts=CHARTS | by_axis,
        styles=["study.css", "dualform.runs:sweep.css"],
        verdict=sweep_verdict(sweep),
        cards=_cards(sweep, found),
        commands=_commands(sweep),
        glossary=_glossary(found),
        learners=[learner_style(key) for key in learners],
        grid=_grid(sweep, found, learners),
        has_majority=any(majority_level(result) is not None for _, result in found),
        beside=[learner_style(key) for key in _agreeing(found)],
        spread=_spread(found),
        likeness=[_likeness(key, found) for key in judged_measures(found)],
        cost=_cost(found),
        options=[_option(number, axis, values, found) for number, (axis, values) in enumerate(axes.items(), 1)],
        studies=_studies(sweep),
        failures=[
            {
                "group": cell.group,
                "seed": cell.seed,
                "message": cell.failure.message if cell.failure else "no reason was kept",
                "traceback": cell.failure.traceback.strip() if cell.failure else "",
                "attempts": plural(cell.failure.attempts, "attempt") if cell.failure else "",
                "lost": bool(cell.failure and cell.failure.lost),
            }
            for cell in by_status["failed"]
        ],
        pending=_pending(sweep),
        cells=[
            {
                "key": cell.key[:12],
                "group": cell.group,
                "seed": MISSING if cell.seed is None else str(cell.seed),
                "status": cell.status,
                "seconds": significant(cell.seconds),
            }
            for cell in sweep.cells
        ],
        cell_sentence=cell_sentence(sweep),
        n_models=len(slices(found)),
    )


def href(group: SweepGroup) -> str:
    """Where a group's own page lies, beside the sweep's."""
    # The name is a folder's, whatever it holds: quoted it can be no other address.
    return f"./{quote(group.name, safe='')}/report.html"


def _cards(sweep: SweepResult, found: Found) -> list[dict[str, str]]:
    by_status = cells_by_status(sweep)
    done = len(by_status["finished"]) + len(by_status["reused"])
    cards = []
    by_learner = decided(found)
    n = sum(map(len, by_learner.values()))
    if n:
        shares = [
            f"{name} {len(by_learner[key])}"
            for key, name in (("icl", "ICL"), ("ft", "FT"), ("fold", "fold"))
            if any(key in result.accuracy for _, result in found)
        ]
        cards.append(card("groups that decide", f"{n - len(by_learner[None])} of {n}", f"ahead: {', '.join(shares)}"))
    for first, second in (("icl", "ft"), ("icl", "zsl")):
        both = [(group, result) for group, result in found if difference_of(first, second)(result) is not None]
        gap = over_tasks(both, difference_of(first, second), GAP)
        if gap is not None:
            where = f"points, mean over {plural(gap.n, 'task')}"
            where += f", {difference_interval(gap.ci95)}" if known(gap.ci95) else ""
            name = {"ft": "ICL less finetuning", "zsl": "ICL less zero-shot"}[second]
            cards.append(card(name, difference(gap.mean), where))
    agreement = over_tasks(found, _agreement_of("fold"), SHARE)
    if agreement is not None:
        where = f"mean over {plural(agreement.n, 'task')}"
        where += f", {percent_interval(agreement.ci95)}" if known(agreement.ci95) else ""
        cards.append(card("Fold answers as ICL", percent(agreement.mean), where))
    cards.append(card("cells finished", f"{done:,}", f"of {len(sweep.cells):,}, {sweep.engine}"))
    return cards


def _commands(sweep: SweepResult) -> list[tuple[str, str]]:
    again = commands_again(sweep, ("Run it again, or go on where it stopped", "dualform sweep sweep.yaml --resume"))
    unfinished = [cell for cell in sweep.cells if cell.status in ("failed", "pending")]
    typed = str(sweep.environment.get("command") or "")
    if unfinished and typed and "--resume" not in typed:
        again.append(("Go on where it stopped; what is finished is not run again", f"{typed} --resume"))
    return again


def _grid(sweep: SweepResult, found: Found, learners: Sequence[str]) -> list[dict[str, Any]]:
    """A block for each model (with its options): a row a task, and their mean."""
    # By identity: a group without a result has a row too, in its place.
    there = {id(group) for group, _ in found}
    blocks: dict[str, list[SweepGroup]] = {}
    for group in sweep.groups:
        if id(group) in there or (group.result is None and study_name(group) == "comparison"):
            blocks.setdefault(slice_name(group), []).append(group)
    agreeing = _agreeing(found)
    grid = []
    for name, groups in blocks.items():
        own = [(group, group.result) for group in groups if group.result is not None]
        grid.append(
            {
                "name": name,
                "rows": [_grid_row(group, learners, agreeing) for group in groups],
                "mean": _mean_row(own, learners, agreeing),
            }
        )
    return grid


def _grid_row(group: SweepGroup, learners: Sequence[str], agreeing: Sequence[str]) -> dict[str, Any]:
    result = group.result
    missing = f"seed {', '.join(map(str, group.missing_seeds))} missing" if group.missing_seeds else ""
    row: dict[str, Any] = {
        "task": group.task or MISSING,
        "href": None,
        "under": missing,
        "cells": [],
        "beside": [],
        "majority": "",
    }
    if result is None:
        return row | {"under": missing or "no result yet"}
    means = {key: mean for key in learners if (mean := accuracy_of(key)(result)) is not None}
    highest = max(means, key=means.__getitem__) if means else None
    fallen = collapsed(result)
    row["href"] = href(group)
    row["majority"] = points(majority_level(result))
    for key in learners:
        accuracy = result.accuracy.get(key)
        row["cells"].append(
            {
                "mean": _points_or_count(accuracy),
                "interval": points_interval(accuracy.ci95)
                if accuracy and known(accuracy.ci95) and not is_few(accuracy)
                else "",
                "best": key == highest,
                "level": highest is not None and key != highest and key in means and _level(result, highest, key),
                "collapsed": key in fallen,
            }
        )
    row["beside"] = [
        _points_or_count(result.against_icl[key].agreement) if key in result.against_icl else "" for key in agreeing
    ]
    return row


def _points_or_count(accuracy: Estimate | None) -> str:
    if accuracy is None:
        return ""
    return share(accuracy) if is_few(accuracy) else points(accuracy.mean)


def _level(result: Result, highest: str, key: str) -> bool:
    return stands(result, highest, key) == 0


def _mean_row(own: Found, learners: Sequence[str], agreeing: Sequence[str]) -> dict[str, Any] | None:
    """Means over the tasks that all learners have; None with fewer than two."""
    shared = [(group, result) for group, result in own if all(accuracy_of(key)(result) is not None for key in learners)]
    means = [over_tasks(shared, accuracy_of(key), SHARE) for key in learners]
    if not means or any(mean is None or mean.n < 2 for mean in means):
        return None
    return {
        "n": means[0].n if means[0] is not None else 0,
        "cells": [_mean_cell(mean) for mean in means],
        "beside": [
            points(mean.mean) if (mean := over_tasks(shared, _agreement_of(key), SHARE)) is not None else ""
            for key in agreeing
        ],
    }


def _mean_cell(mean: TaskMean | None) -> dict[str, str]:
    if mean is None:
        return {"mean": "", "interval": ""}
    return {"mean": points(mean.mean), "interval": points_interval(mean.ci95) if known(mean.ci95) else ""}


def _agreement_of(key: str) -> Callable[[Result], float | None]:
    return lambda result: finite(result.against_icl[key].agreement.mean) if key in result.against_icl else None


def _agreeing(found: Found) -> list[str]:
    """Learners whose agreement with ICL has a column."""
    return [key for key in ("ft", "fold") if any(key in result.against_icl for _, result in found)]


def _spread(found: Found) -> dict[str, Any]:
    """How far seeds lie apart, for the learners that demonstrations change."""
    keys = [key for key in learners_of(found) if key != "zsl"]
    rows = []
    for group, result in found:
        cells = []
        for key in keys:
            spread, predictions = seed_spread(result, key), result.predictions.get(key)
            share = predictions.majority_share if predictions else None
            cells.append(
                {
                    "range": points_interval(spread[:2]) if spread else MISSING,
                    "sd": f"SD {points(spread[2])}" if spread and spread[2] is not None else "",
                    "share": percent(share),
                    "collapsed": key in collapsed(result),
                }
            )
        seeds = max((len(each.per_seed) for each in result.accuracy.values()), default=0)
        rows.append({"name": group_name(group), "href": href(group), "seeds": seeds, "cells": cells})
    return {"learners": [learner_style(key) for key in keys], "rows": rows if keys else []}


def _likeness(key: str, found: Found) -> dict[str, Any]:
    """One measure by model and task: score, band, place in it."""
    measure = measure_of(key)
    rows = []
    for group, result in found:
        similarity, place = result.similarity.get(key), result.calibrated.get(key)
        if similarity is None:
            continue
        rows.append(
            {
                "name": group_name(group),
                "href": href(group),
                "mean": score(key, similarity),
                "interval": score_interval(key, similarity).replace(MISSING, ""),
                "n": count(similarity.n),
                "floor": decimal(place.floor) if place else "",
                "control": control_of(place.control).title if place else "",
                "ceiling": decimal(place.ceiling) if place else "",
                "place": hundredths(place.mean) if place else "",
                "place_interval": hundredths_interval(place.ci95) if place and known(place.ci95) else "",
            }
        )
    has_scale = any(key in result.calibrated for _, result in found)
    clear = [
        result.calibrated[key]
        for _, result in found
        if key in result.calibrated and (ends := known(result.calibrated[key].ci95)) is not None and ends[0] > 0
    ]
    placed = sum(key in result.calibrated for _, result in found)
    return {
        "key": key,
        "title": measure.title,
        "meaning": measure.meaning,
        "caution": measure.caution,
        "has_scale": has_scale,
        "stands": f"clearly above its floor in {len(clear)} of {plural(placed, 'group')}" if has_scale else "",
        "rows": rows,
    }


def _cost(found: Found) -> list[dict[str, Any]]:
    """A block for each model (with its options): means over tasks."""
    blocks = []
    for name, own in slices(found).items():
        rows = []
        for key in learners_of(own):
            there = [(group, result) for group, result in own if key in result.cost]
            if not there:
                continue
            mean = partial(_mean_cost, there, key)
            rows.append(
                {
                    "style": learner_style(key),
                    "adapt_seconds": significant(mean("adapt_seconds")),
                    "search_seconds": significant(mean("search_seconds")),
                    "query_milliseconds": significant(mean("query_seconds", 1e3)),
                    "tokens": count(mean("tokens")),
                    "gflop": significant(mean("flops", 1e-9)),
                    "anew": _after(there, key, kept=False),
                    "kept": _after(there, key, kept=True),
                }
            )
        if rows:
            blocks.append({"name": name, "rows": rows, "tasks": len({group.task for group, _ in own})})
    return blocks


def _mean_cost(found: Found, key: str, field: str, factor: float = 1.0) -> float | None:
    mean = over_tasks(found, lambda result: scaled(getattr(result.cost[key], field), factor))
    return None if mean is None else mean.mean


def _after(found: Found, key: str, *, kept: bool) -> str:
    """Median over the groups of the queries after which a learner is cheaper; `never` comes after any number."""
    told = [break_even(result, key, kept=kept) for _, result in found if key in result.against_icl]
    known_ = [text for text in told if text != MISSING]
    if not known_:
        return "" if key == "icl" else MISSING
    order = sorted(known_, key=lambda text: float("inf") if text == "never" else float(text.replace(",", "")))
    # The upper of two in the middle: no mean with a `never` exists.
    return order[len(order) // 2]


def _option(number: int, axis: str, values: Sequence[Any], found: Found) -> dict[str, Any]:
    """Accuracy at each value of one axis, a block for all else alike: mean over the tasks that every value has."""
    learners = learners_of(found)
    by_rest: dict[str, Found] = {}
    for group, result in found:
        if axis in group.options:
            rest = {name: value for name, value in group.options.items() if name != axis}
            by_rest.setdefault(slice_name(group.model_copy(update={"options": rest})), []).append((group, result))
    blocks = []
    for name, own in by_rest.items():
        at = {option_text(value): [each for each in own if each[0].options[axis] == value] for value in values}
        tasks = set.intersection(*({group.task for group, _ in each} for each in at.values() if each))
        rows = []
        for text, each in at.items():
            shared = [(group, result) for group, result in each if group.task in tasks]
            if shared:
                cells = [_mean_cell(over_tasks(shared, accuracy_of(key), SHARE)) for key in learners]
                rows.append({"value": text, "tasks": len(tasks), "cells": cells})
        if rows:
            blocks.append({"name": name, "rows": rows})
    return {"chart": f"option-{number}", "axis": axis, "blocks": blocks}


def _studies(sweep: SweepResult) -> list[dict[str, Any]]:
    """Groups that are no comparisons, each with what it says itself."""
    rows = []
    for group in sweep.groups:
        if study_name(group) == "comparison":
            continue
        said = list(study_of_result(group.result).view.headlines(group.result)) if group.result else []
        rows.append(
            {
                "name": group_name(group),
                "study": study_name(group),
                "href": href(group) if group.result is not None else None,
                "lead": said[0] if said else "" if group.result is not None else "no result yet",
                "rest": said[1:],
            }
        )
    return rows


def _pending(sweep: SweepResult) -> list[dict[str, str]]:
    by_group: dict[str, list[str]] = {}
    for cell in cells_by_status(sweep)["pending"]:
        by_group.setdefault(cell.group, []).append("" if cell.seed is None else str(cell.seed))
    return [{"group": group, "seeds": ", ".join(filter(None, seeds))} for group, seeds in by_group.items()]


def _glossary(found: Found) -> list[tuple[str, str]]:
    terms = [(learner_style(key).title, learner_style(key).meaning) for key in learners_of(found)]
    needed = set() if found else {"95 % interval", "decides", "collapsed", "demonstration"}
    if not _agreeing(found):
        needed |= {"agreement with ICL"}
    if not any(result.calibrated for _, result in found):
        needed |= {"calibrated"}
    if not any(result.cost for _, result in found):
        needed |= {"cheaper after"}
    return [*terms, *((term, meaning) for term, meaning in GLOSSARY if term not in needed)]

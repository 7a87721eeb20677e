"""The tables of similarity: measures, controls, Rec2FTP, the fold's update and the paper's numbers."""

from typing import Any

from dualform.report.measures import (
    KINDS,
    control_of,
    controls_in_order,
    in_order,
    measure_of,
)
from dualform.report.numerals import Interval, count, decimal, finite, known
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import hundredths, is_few
from dualform.report.table import (
    BLANK,
    Cell,
    Column,
    Kind,
    Row,
    Table,
    estimate_cell,
    score_cell,
    without_columns,
)
from dualform.result import FEWEST_FOR_INTERVAL, Calibrated, Result, Similarity
from dualform.studies.published import MODELS, compare_with_paper

_SHORT = {"icl": "ICL", "ft": "FT"}


def fold_table(result: Result) -> Table:
    """Similarity of the fold's update to the updates by ICL and by finetuning, one row a measure."""
    similarity = result.fold.similarity if result.fold is not None else {}
    others = learners_in_order(similarity)
    keys = in_order(dict.fromkeys(key for other in others for key in similarity[other]))
    columns = (
        Column("measure"),
        *(Column(f"to {_SHORT.get(other, learner_style(other).title)}", "score", interval=True) for other in others),
    )
    rows = tuple(
        Row((Cell(measure_of(key).title), *(estimate_cell(similarity[other].get(key)) for other in others)))
        for key in keys
        if any(each is not None and finite(each.mean) is not None for each in (similarity[o].get(key) for o in others))
    )
    note = (
        "Similarity of the fold's update to the updates by ICL and by finetuning. The fold is fitted to ICL's update, "
        "so a high similarity to ICL shows only that folding worked."
    )
    return Table("The fold's update", columns, rows, note=note)


def similarity_table(result: Result) -> Table:
    """Each measure with its floor, ceiling and calibrated value; its companion numbers in the rows below it.

    Without calibrated values, the random direction's mean takes their place.
    """
    random = result.controls.get("random", {})
    has_scale = bool(set(result.calibrated) & set(result.similarity))
    further: tuple[Column, ...]
    if has_scale:
        further = (
            Column("floor", "score"),
            Column("ceiling", "score"),
            Column("calibrated", "ratio"),
            Column("smallest detectable difference", "score", where="page"),
        )
    else:
        further = (Column("random direction", "score", short="random"),)
    columns = (
        # Long names wrap, so that the numbers fit on 80 columns.
        Column("measure", widest=17 if has_scale else None),
        Column("mean", "score", interval=True),
        Column("n", "count", where="page" if has_scale else "everywhere"),
        *further,
    )
    rows = []
    for key in in_order(result.similarity):
        similarity, measure = result.similarity[key], measure_of(key)
        heading = Cell(measure.title, notes=tuple(text for text in (measure.meaning, measure.caution) if text))
        random_cell = Cell(random[key].mean, "score") if key in random else BLANK
        rows.append(
            Row(
                (
                    heading,
                    score_cell(key, similarity, notes=_by_rounding(similarity.rounding)),
                    Cell(similarity.n, "count"),
                    *(_scale_cells(result.calibrated.get(key)) if has_scale else (random_cell,)),
                )
            )
        )
        for name, mean, ends, n in companions(key, similarity):
            blanks = [BLANK] * len(further)
            rows.append(Row((Cell(name), Cell(mean, "score", ends, n), Cell(n, "count"), *blanks), style="companion"))
    table = Table("Similarity of context and finetuning", columns, tuple(rows))
    if not has_scale:
        return table if random else without_columns(table, ["random direction"])
    note = (
        f"Floor, ceiling, calibrated value and smallest detectable difference are computed from the "
        f"{_n_of_scales(result)} (seed, query) pairs on which controls were read."
    )
    return Table(table.title, columns, table.rows, caption=_floors_caption(result), note=note)


def _floors_caption(result: Result) -> str:
    """The caption that names each measure's floor: the most common first, others with their measures."""
    floors: dict[str, list[str]] = {}
    for key in in_order(result.calibrated):
        if key in result.similarity:
            floors.setdefault(control_of(result.calibrated[key].control).title, []).append(measure_of(key).title)
    most_common_first = sorted(floors.items(), key=lambda item: -len(item[1]))
    caption = "calibrated: 0 = floor (the highest control without learning), 1 = ceiling"
    if not most_common_first:
        return caption
    names = [f"{floor} ({'; '.join(titles)})" for floor, titles in most_common_first[1:]]
    return f"{caption}. Floor: {'; '.join([most_common_first[0][0], *names])}"


def _n_of_scales(result: Result) -> str:
    """The number of pairs that the scales are computed from, as `500` or `140 to 500`."""
    n = [each.n for key, each in result.calibrated.items() if key in result.similarity]
    if not n:
        return ""
    return count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def _scale_cells(place: Calibrated | None) -> tuple[Cell, ...]:
    """Floor, ceiling, calibrated value and smallest detectable difference."""
    if place is None:
        return (BLANK,) * 4
    return (
        Cell(place.floor, "score", notes=(control_of(place.control).title,)),
        Cell(place.ceiling, "score"),
        Cell(place.mean, "ratio", place.ci95, place.n, notes=_by_rounding(place.rounding, 0.005)),
        Cell(place.minimum_detectable, "score"),
    )


def _by_rounding(moved: float | None, least: float = 0.0005) -> tuple[str, ...]:
    """How much rounding changes a number, as `± 0.004 by rounding`; empty if that is too small to display."""
    number = finite(moved)
    if number is None or number < least:
        return ()
    return (f"± {decimal(number) if least < 0.001 else hundredths(number)} by rounding",)


def controls_used(result: Result) -> list[str]:
    """Controls that have values for a measure of the result or for accuracy, grouped by kind."""
    measures = {*result.similarity, "accuracy"}
    used = [key for key in controls_in_order(result.controls) if set(result.controls[key]) & measures]
    return [key for kind, _ in KINDS for key in used if control_of(key).kind == kind]


def controls_table(result: Result) -> Table:
    """Each measure that has a control, next to all controls; the last row gives their learners' accuracies."""
    controls = controls_used(result)
    rows = []
    for key in in_order(result.similarity):
        scores = [result.controls[control].get(key) for control in controls]
        if any(scores):
            cells = [score_cell(key, each) if each else BLANK for each in [result.similarity[key], *scores]]
            rows.append(Row((Cell(measure_of(key).title), *cells)))
    accuracies = [result.controls[control].get("accuracy") for control in controls]
    if any(accuracies):
        cells = [BLANK, *(estimate_cell(each, "share") for each in accuracies)]
        rows.append(Row((Cell("accuracy of the control's learner"), *cells)))
    kinds = [control_of(control).kind for control in controls]
    columns = (
        Column("measure"),
        Column("this run", "score"),
        *(Column(control_of(control).title, "score") for control in controls),
    )
    groups = (("", 2), *((name, kinds.count(kind)) for kind, name in KINDS if kind in kinds))
    return Table("All controls by measure", columns, tuple(rows), groups=groups)


def rec2ftp_table(result: Result) -> Table:
    """Rec2FTP with its counts, its chance level, and two ratios that also count answers that became wrong."""
    columns = (Column("number"), Column("value", "share"), Column("counts", "count"))
    recovered = result.similarity.get("rec2ftp")
    if recovered is None:
        return Table("Rec2FTP", columns, ())
    details, few = recovered.details, is_few(recovered)
    meaning = "zero-shot wrong, finetuning and ICL right / zero-shot wrong, finetuning right"
    value = Cell(None if few else recovered.mean, "share", None if few else recovered.ci95, recovered.n)
    counts = _counts(details, "numerator", "denominator") or f"n = {count(recovered.n)}"
    rows = [Row((Cell("Rec2FTP", notes=(meaning,)), value, Cell(None, "count", override=counts)))]
    for key, name, meaning in (
        ("chance", "chance level", "zero-shot wrong, ICL right / zero-shot wrong, whatever finetuning did"),
        ("lift", "lift", "Rec2FTP minus its chance level; 0 if ICL's corrections do not depend on finetuning's"),
        (
            "reverse",
            "reverse (became wrong)",
            "zero-shot right, finetuning and ICL wrong / zero-shot right, finetuning wrong",
        ),
        ("jaccard", "Jaccard", "answers whose correctness both changed / answers whose correctness either changed"),
    ):
        if key not in details:
            continue
        # A ratio of few answers is shown as counts only; the lift is computed from those of Rec2FTP.
        denominator = recovered.n if key == "lift" else finite(details.get(f"{key}_denominator"))
        few = denominator is not None and denominator < FEWEST_FOR_INTERVAL
        value = Cell(None if few else details[key], "share")
        if key == "lift":
            value = _lift_cell(None if few else details[key], None if few else details.get("lift_ci95"))
        counts = _counts(details, f"{key}_numerator", f"{key}_denominator")
        rows.append(Row((Cell(name, notes=(meaning,)), value, Cell(None, "count", override=counts))))
    return Table("Rec2FTP", columns, tuple(rows))


def _lift_cell(value: Any, interval: Any) -> Cell:
    """A difference of two shares, with its unit because its column holds shares: `+14.8 points`."""
    cell = Cell(finite(value), "difference")
    ends = Cell(0.0, "difference", _ends(interval)).interval
    notes = (f"{ends} points",) if ends else ()
    return Cell(
        finite(value), "difference", override=cell.text if finite(value) is None else f"{cell.text} points", notes=notes
    )


def _ends(interval: Any) -> Interval | None:
    return known(list(interval)) if isinstance(interval, list | tuple) else None


def _counts(details: dict[str, Any], numerator: str, denominator: str) -> str:
    k, n = finite(details.get(numerator)), finite(details.get(denominator))
    return "" if k is None or n is None else f"{count(k)} of {count(n)}"


def published_table(result: Result) -> Table:
    """This run's numbers next to the paper's; without rows unless it followed the paper's protocol."""
    columns = (
        Column("number"),
        Column("this run", "share", interval=True),
        *(Column(f"paper, {name}", "share") for name in MODELS),
        Column("tasks in the paper"),
    )
    rows = []
    for each in compare_with_paper(result):
        kind: Kind = "share" if each.share else "score"
        run = Cell(None, "share") if each.run is None else Cell(each.run.mean, kind, each.run.ci95, each.run.n)
        rows.append(Row((Cell(each.title), run, *(Cell(value, kind) for value in each.published), Cell(each.tasks))))
    return Table("The paper's numbers", columns, tuple(rows))


def companions(key: str, similarity: Similarity) -> list[tuple[str, float | None, Interval | None, int | None]]:
    """Name, mean, interval and n of each number in a measure's details; none for Rec2FTP, which has its own table."""
    if key == "rec2ftp":
        return []
    rows: list[tuple[str, float | None, Interval | None, int | None]] = []
    titles = measure_of(key).details
    for name, value in similarity.details.items():
        title = titles.get(name, name)
        if isinstance(value, dict) and "mean" in value:
            n = finite(value.get("n"))
            ends = _ends(value.get("ci95"))
            rows.append((title, finite(value["mean"]), ends, None if n is None else int(n)))
        elif finite(value) is not None:
            rows.append((title, finite(value), None, None))
    return rows

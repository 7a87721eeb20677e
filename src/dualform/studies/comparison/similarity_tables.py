"""The tables of similarity: measures on their scales, controls, Rec2FTP, the fold's update, the paper's numbers."""

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
    """Each measure of the similarity of the fold's update to those by context and by finetuning."""
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
        "Similarity of the fold's update to those by context and by finetuning, by the measures that compare these "
        "two. It was made to be like ICL's, so a high similarity to that one shows that the fold worked, and no more."
    )
    return Table("The fold's update", columns, rows, note=note)


def similarity_table(result: Result) -> Table:
    """Each measure with its floor, its ceiling and its place between them; companions below their measure.

    Without calibrated values: the random control's mean instead.
    """
    random = result.controls.get("random", {})
    scaled_ = bool(set(result.calibrated) & set(result.similarity))
    further: tuple[Column, ...]
    if scaled_:
        further = (
            Column("floor", "score"),
            Column("ceiling", "score"),
            Column("calibrated", "ratio"),
            Column("smallest detectable difference", "score", where="page"),
        )
    else:
        further = (Column("random direction", "score", short="random"),)
    columns = (
        # As wide as the numbers leave it: a longer name takes a second line.
        Column("measure", widest=17 if scaled_ else None),
        Column("mean", "score", interval=True),
        Column("n", "count", where="page" if scaled_ else "everywhere"),
        *further,
    )
    rows = []
    for key in in_order(result.similarity):
        each, measure = result.similarity[key], measure_of(key)
        heading = Cell(measure.title, notes=tuple(text for text in (measure.meaning, measure.caution) if text))
        beside: tuple[Cell, ...] = (Cell(random[key].mean, "score"),) if key in random else (BLANK,)
        rows.append(
            Row(
                (
                    heading,
                    score_cell(key, each, notes=_by_rounding(each.rounding)),
                    Cell(each.n, "count"),
                    *(_place(result.calibrated.get(key)) if scaled_ else beside),
                )
            )
        )
        for name, mean, ends, n in companions(key, each):
            more = [BLANK] * len(further)
            rows.append(Row((Cell(name), Cell(mean, "score", ends, n), Cell(n, "count"), *more), style="companion"))
    table = Table("Similarity of context and finetuning", columns, tuple(rows))
    if not scaled_:
        return table if random else without_columns(table, ["random direction"])
    note = (
        f"Floor, ceiling, calibrated value and smallest detectable difference are computed from the {_scale_n(result)} "
        "(seed, query) pairs on which controls were read."
    )
    return Table(table.title, columns, table.rows, caption=_floors_caption(result), note=note)


def _floors_caption(result: Result) -> str:
    """Which floor each measure has, the one that most have first; the rest name their measures."""
    floors: dict[str, list[str]] = {}
    for key in in_order(result.calibrated):
        if key in result.similarity:
            floors.setdefault(control_of(result.calibrated[key].control).title, []).append(measure_of(key).title)
    told = sorted(floors.items(), key=lambda item: -len(item[1]))
    caption = "calibrated: 0 = floor, the highest control; 1 = ceiling"
    if not told:
        return caption
    named = [f"{floor} ({'; '.join(titles)})" for floor, titles in told[1:]]
    return f"{caption}. Floor: {'; '.join([told[0][0], *named])}"


def _scale_n(result: Result) -> str:
    """How many pairs the scales rest on: `500`, or `140 to 500`."""
    n = [each.n for key, each in result.calibrated.items() if key in result.similarity]
    if not n:
        return ""
    return count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def _place(place: Calibrated | None) -> tuple[Cell, ...]:
    """A measure on its scale: floor, ceiling, place between them, and what difference could have been found."""
    if place is None:
        return (BLANK,) * 4
    return (
        Cell(place.floor, "score", notes=(control_of(place.control).title,)),
        Cell(place.ceiling, "score"),
        Cell(place.mean, "ratio", place.ci95, place.n, notes=_by_rounding(place.rounding, 0.005)),
        Cell(place.minimum_detectable, "score"),
    )


def _by_rounding(moved: float | None, least: float = 0.0005) -> tuple[str, ...]:
    """How far rounding moves a number, as `± 0.004 by rounding`; nothing where the digits shown would not show it."""
    number = finite(moved)
    if number is None or number < least:
        return ()
    return (f"± {decimal(number) if least < 0.001 else hundredths(number)} by rounding",)


def controls_used(result: Result) -> list[str]:
    """Controls with something to show, kind by kind."""
    shown = {*result.similarity, "accuracy"}
    used = [key for key in controls_in_order(result.controls) if set(result.controls[key]) & shown]
    return [key for kind, _ in KINDS for key in used if control_of(key).kind == kind]


def controls_table(result: Result) -> Table:
    """Each measure that has a control, next to all of them; last, how often the controls' own learners are right."""
    controls = controls_used(result)
    rows = []
    for key in in_order(result.similarity):
        found = [result.controls[control].get(key) for control in controls]
        if any(found):
            cells = [score_cell(key, each) if each else BLANK for each in [result.similarity[key], *found]]
            rows.append(Row((Cell(measure_of(key).title), *cells)))
    answered = [result.controls[control].get("accuracy") for control in controls]
    if any(answered):
        cells = [BLANK, *(estimate_cell(each, "share") for each in answered)]
        rows.append(Row((Cell("accuracy of the control's learner"), *cells)))
    kinds = [control_of(control).kind for control in controls]
    columns = (
        Column("measure"),
        Column("this run", "score"),
        *(Column(control_of(control).title, "score") for control in controls),
    )
    groups = (("", 2), *((name, kinds.count(kind)) for kind, name in KINDS if kind in kinds))
    return Table("All controls, measure by measure", columns, tuple(rows), groups=groups)


def rec2ftp_table(result: Result) -> Table:
    """Rec2FTP with its counts, its chance level, and two ratios that count wrong turns too."""
    columns = (Column("number"), Column("value", "share"), Column("counts", "count"))
    found = result.similarity.get("rec2ftp")
    if found is None:
        return Table("Rec2FTP", columns, ())
    details = found.details
    meaning = "finetuning right, ICL right, zero-shot wrong / finetuning right, zero-shot wrong"
    first = Cell(None if is_few(found) else found.mean, "share", None if is_few(found) else found.ci95, found.n)
    counts = _counts(details, "numerator", "denominator") or f"n = {count(found.n)}"
    rows = [Row((Cell("Rec2FTP", notes=(meaning,)), first, Cell(None, "count", shown=counts)))]
    for key, name, meaning in (
        ("chance", "chance level", "ICL right / zero-shot wrong, whatever finetuning did"),
        ("lift", "lift", "Rec2FTP less its chance level; 0 if context fixed answers whether or not finetuning did"),
        (
            "reverse",
            "flips the other way",
            "finetuning wrong, ICL wrong, zero-shot right / finetuning wrong, zero-shot right",
        ),
        ("jaccard", "Jaccard", "answers whose correctness both changed / answers whose correctness either changed"),
    ):
        if key not in details:
            continue
        # A ratio of few answers is its counts alone; the lift has those of Rec2FTP.
        under = found.n if key == "lift" else finite(details.get(f"{key}_denominator"))
        few = under is not None and under < FEWEST_FOR_INTERVAL
        value = Cell(None if few else details[key], "share")
        if key == "lift":
            value = _lift(None if few else details[key], None if few else details.get("lift_ci95"))
        counts = _counts(details, f"{key}_numerator", f"{key}_denominator")
        rows.append(Row((Cell(name, notes=(meaning,)), value, Cell(None, "count", shown=counts))))
    return Table("Rec2FTP", columns, tuple(rows))


def _lift(value: Any, interval: Any) -> Cell:
    """A difference of two shares in a column of shares, with its unit: `+14.8 points`."""
    cell = Cell(finite(value), "difference")
    ends = Cell(0.0, "difference", _ends(interval)).interval
    notes = (f"{ends} points",) if ends else ()
    return Cell(
        finite(value), "difference", shown=cell.text if finite(value) is None else f"{cell.text} points", notes=notes
    )


def _ends(interval: Any) -> Interval | None:
    return known(list(interval)) if isinstance(interval, list | tuple) else None


def _counts(details: dict[str, Any], numerator: str, denominator: str) -> str:
    over, under = finite(details.get(numerator)), finite(details.get(denominator))
    return "" if over is None or under is None else f"{count(over)} of {count(under)}"


def published_table(result: Result) -> Table:
    """This run next to the paper's numbers; without rows unless it followed the paper's protocol."""
    columns = (
        Column("number"),
        Column("this run", "share", interval=True),
        *(Column(f"paper, {name}", "share") for name in MODELS),
        Column("the paper's is of"),
    )
    rows = []
    for each in compare_with_paper(result):
        kind: Kind = "share" if each.share else "score"
        run = Cell(None, "share") if each.run is None else Cell(each.run.mean, kind, each.run.ci95, each.run.n)
        rows.append(Row((Cell(each.title), run, *(Cell(value, kind) for value in each.published), Cell(each.tasks))))
    return Table("The paper's numbers", columns, tuple(rows))


def companions(key: str, similarity: Similarity) -> list[tuple[str, float | None, Interval | None, int | None]]:
    """The numbers in a measure's details that deserve a row of their own.

    Args:
        key: The measure. Rec2FTP's details are counts with a table of their own, so it has none here.
        similarity: Its record.

    Returns:
        Name, mean, interval and n of each.
    """
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

"""The charts of a folding study, one for each axis; None if there is nothing to draw.

Values on a numeric scale are joined by a line, named values are rows of dots. Zero-shot and FT are dashed lines; ICL
too, or a dotted curve where demonstrations vary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt

from dualform.report.categories import category
from dualform.report.charts.axes import Hint, Names, Numbers, interval_hints
from dualform.report.charts.colours import learner_colours, legend
from dualform.report.charts.dots import interval_row
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Plot
from dualform.report.numerals import finite, known
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Estimate
from dualform.studies.folding.result import FoldingResult, FoldPoint
from dualform.studies.folding.words import LOGARITHMIC, axis_name, is_scale, points_on, positions, value_as_number

NAME_GAP = 130
"""Width in pixels of the names left of a panel."""
NUMBER_GAP = 56
"""Width in pixels of a numeric axis."""
ROW = 30

FOLD = "fold"


@dataclass(frozen=True)
class _Panel:
    """One quantity of the points, and what it is compared with."""

    title: str
    format: str
    read: Callable[[FoldPoint], Estimate | None]
    references: dict[str, Estimate]
    """Learner -> its value, drawn as a dashed line."""
    unchanged_value: float | None = None
    """The value for an unchanged model, drawn as a thin line."""


def axis_chart(result: FoldingResult, axis: str) -> alt.TopLevelMixin | None:
    """Accuracy, agreement with ICL and, if known, the ratio of perplexities along one axis.

    Args:
        result: The result of the study.
        axis: As in `FoldPoint.axis`.

    Returns:
        A panel for each quantity; None without points that have numbers.
    """
    if result.folding is None:
        return None
    points = points_on(result.folding, axis)
    on_scale = is_scale(axis, points)
    charts = []
    with_numbers = [panel for panel in _panels(result) if any(_has_number(panel.read(point)) for point in points)]
    keys = learners_in_order(
        {FOLD, *(["icl"] if on_scale else []), *(key for panel in with_numbers for key in panel.references)}
    )
    for panel in with_numbers:
        charts.append(_curve(axis, points, panel, keys) if on_scale else _dots(points, panel, keys))
    if on_scale:
        return panels(charts, columns=3, gap=NUMBER_GAP, row_gap=84)
    return panels(charts, columns=2, gap=NAME_GAP, row_gap=74)


def _panels(result: FoldingResult) -> list[_Panel]:
    folding = result.folding
    assert folding is not None
    references = {"zsl": folding.zero_shot, "icl": folding.icl} | ({"ft": folding.ft} if folding.ft is not None else {})
    agreeing = {key: each.agreement for key, each in result.against_icl.items() if key in ("zsl", "ft")}
    return [
        _Panel("accuracy", ".0%", lambda point: point.accuracy, _with_numbers(references)),
        _Panel("agreement with ICL", ".0%", lambda point: point.agreement, _with_numbers(agreeing)),
        _Panel("perplexity, folded / base", ".2f", _perplexity, {}, unchanged_value=1.0),
    ]


def _perplexity(point: FoldPoint) -> Estimate | None:
    ratio = finite(point.perplexity_ratio)
    return None if ratio is None else Estimate(mean=ratio, ci95=(None, None), n=0)


def _with_numbers(estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    return {key: each for key, each in estimates.items() if _has_number(each)}


def _has_number(estimate: Estimate | None) -> bool:
    return estimate is not None and finite(estimate.mean) is not None


def _row(point: FoldPoint, estimate: Estimate | None, learner: str) -> dict[str, Any] | None:
    row = interval_row(estimate)
    about = {
        "value": category(point.value),
        "learner": learner_style(learner).title,
        "strength": finite(point.strength),
        "adapt": finite(point.adapt_flops),
        "note": point.note,
    }
    return None if row is None else about | row


def _rows(points: Sequence[FoldPoint], panel: _Panel) -> list[dict[str, Any]]:
    rows = [_row(point, panel.read(point), FOLD) for point in points]
    return [row for row in rows if row is not None]


def _hover(panel: _Panel, rows: Sequence[dict[str, Any]], name: str) -> list[Hint]:
    spec = {".0%": ".1%", ".2f": ".3f"}[panel.format]
    *ends, n = interval_hints(spec)
    optional: list[tuple[str, Hint]] = [
        ("n", n),
        ("strength", ("strength", ".3~g", "ridge strength")),
        ("adapt", ("adapt", ".3s", "operations to fold")),
        ("note", "note"),
    ]
    present = [hint for field, hint in optional if any(row[field] for row in rows)]
    return ["learner", ("value", "", name), ("mean", spec, panel.title), *ends, *present]


def _colour(keys: Sequence[str]) -> alt.Color:
    return learner_colours(keys, legend(2, symbol="circle") if len(keys) > 1 else None)


def _add_references(plot: Plot, panel: _Panel) -> None:
    """Adds the learners' values as dashed lines and the value for an unchanged model as a thin grey line."""
    if panel.unchanged_value is not None:
        plot.thin(panel.unchanged_value)
    for key in learners_in_order(panel.references):
        each = panel.references[key]
        low, high = known(each.ci95) or (None, None)
        row = {"learner": learner_style(key).title, "at": finite(each.mean), "from": low, "to": high, "n": each.n}
        hover: list[Hint] = ["learner", ("at", ".1%", panel.title), ("from", ".1%", "95 % from"), ("to", ".1%")]
        plot.levels([row], [*hover, ("n", ",")])


def _dots(points: Sequence[FoldPoint], panel: _Panel, keys: Sequence[str]) -> alt.LayerChart:
    rows = _rows(points, panel)
    # All names in every panel, so that the rows of neighbouring panels are aligned.
    names = list(dict.fromkeys(category(point.value) for point in points))
    plot = Plot(
        Numbers("mean", format=panel.format, ticks=4, padding=6),
        Names("value", names, room=NAME_GAP - 6),
        colour=_colour(keys),
        hover=_hover(panel, rows, "fold"),
    )
    _add_references(plot, panel)
    plot.intervals(rows)
    plot.dots(rows)
    return plot.chart(width=240, height=ROW * len(names), title=panel.title)


def _curve(axis: str, points: Sequence[FoldPoint], panel: _Panel, keys: Sequence[str]) -> alt.LayerChart:
    at_positions = positions(axis, points)
    rows = _rows(points, panel)
    prompted = [row for point in points if (row := _row(point, point.icl, "icl")) is not None]
    if panel.title != "accuracy":
        prompted = []
    else:
        panel = replace(panel, references={key: each for key, each in panel.references.items() if key != "icl"})
    x: Names | Numbers
    if at_positions is None:
        x = Names("value", list(dict.fromkeys(category(point.value) for point in points)), axis_name(axis))
    else:
        at = dict(zip((category(point.value) for point in points), at_positions, strict=True))
        for row in [*rows, *prompted]:
            row["position"] = at[row["value"]]
        x = Numbers(
            "position",
            axis_name(axis),
            "~g",
            log=axis in LOGARITHMIC and min(at_positions) > 0,
            nice=False,
            padding=12,
            ticks=sorted(
                {
                    position
                    for point, position in zip(points, at_positions, strict=True)
                    if value_as_number(point) is not None
                }
            ),
            grid=False,
        )
    plot = Plot(
        x,
        Numbers("mean", format=panel.format, ticks=4),
        colour=_colour(keys),
        hover=_hover(panel, rows, axis_name(axis)),
    )
    _add_references(plot, panel)
    if prompted:
        plot.line(prompted, width=1.6, strokeDash=[2, 2])
        plot.dots(prompted, size=26)
    numeric = {point.value for point in points if value_as_number(point) is not None}
    if numbered := [row for row in rows if row["value"] in numeric]:
        plot.line(numbered)
        plot.dots(numbered, size=70)
    if named := [row for row in rows if row["value"] not in numeric]:
        # Values chosen by a rule are not joined by the line.
        plot.dots(named, size=110, shape="diamond")
        if at_positions is not None:
            plot.texts(named, "value", field="high", baseline="bottom", dy=-4, limit=120)
    plot.intervals(rows, width=2.5)
    return plot.chart(width=220, height=160, title=panel.title)

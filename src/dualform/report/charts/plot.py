"""Build a chart from two axes and layers of marks.

    plot = Plot(x=shares("mean", "accuracy", ends), y=Names("learner", names), colour=learner_colours(keys))
    plot.level(0.5, "chance")
    plot.intervals(rows)
    plot.dots(rows)
    chart = plot.chart(height=200)

Text from data sets is used only as data, never as a field name or an expression.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Literal, TypedDict, Unpack

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, hints
from dualform.report.charts.panels import WIDE, panel_title
from dualform.report.charts.theme import RULE_COLOUR
from dualform.report.palette import MEASURE_COLOUR

Rows = Sequence[Mapping[str, Any]]
Channel = alt.Color | alt.Detail | alt.Fill | alt.FillOpacity | alt.Opacity | alt.Shape | alt.Size | alt.StrokeDash
"""An encoding of a mark other than its position."""

NAME_HEIGHT = 12
"""Vertical distance between the names of two lines, in pixels."""
NAME_PART = 0.25
"""Share of an axis that the name of a line may take; the names of closer lines are placed above each other."""


_Encoding = Channel | alt.Text | alt.X | alt.X2 | alt.XOffset | alt.Y | alt.Y2 | alt.YOffset
_Mark = Literal["area", "bar", "line", "point", "rect", "rule", "text", "tick"]


class Size(TypedDict, total=False):
    """Size of a chart in pixels; see `Plot.chart`."""

    width: int
    height: int


class Look(TypedDict, total=False):
    """Properties of a mark, with their names in Vega-Lite; sizes and lengths are in pixels."""

    align: Literal["left", "center", "right"]
    baseline: Literal["top", "middle", "bottom"]
    clip: bool
    color: str
    dy: float
    fillOpacity: float
    filled: bool
    fontSize: float
    height: float
    limit: float
    opacity: float
    orient: Literal["horizontal", "vertical"]
    shape: str
    size: float
    strokeCap: Literal["butt", "round", "square"]
    strokeDash: Sequence[float]
    strokeOpacity: float
    strokeWidth: float
    thickness: float
    x2Offset: float
    xOffset: float
    yOffset: float


class Plot:
    """Layers of marks between two axes, drawn in the order in which they are added.

    Values run along x if y is an axis of names, and along y otherwise. Intervals are drawn along the axis of values,
    and levels across it.

    Args:
        x: The horizontal axis.
        y: The vertical axis.
        colour: Colour of all marks: an encoding or a CSS colour.
        hover: Content of the tooltips, for all marks without their own.
        lanes: Positions within a row or column of names: further names, or numbers in [0, 1].
        detail: Field that separates lines of the same colour.
    """

    def __init__(
        self,
        x: Numbers | Names,
        y: Numbers | Names,
        *,
        colour: alt.Color | str = MEASURE_COLOUR,
        hover: Sequence[Hint] = (),
        lanes: Names | Numbers | None = None,
        detail: str | None = None,
    ) -> None:
        self._upright = not isinstance(y, Names)
        self._values, self._places = (y, x) if self._upright else (x, y)
        self._colour, self._hover, self._lanes, self._detail = colour, hover, lanes, detail
        self._layers: list[alt.Chart] = []
        self._levels: list[tuple[float, int]] = []

    def intervals(
        self,
        rows: Rows,
        *,
        low: str = "low",
        high: str = "high",
        width: float = 3,
        hover: Sequence[Hint] = (),
        **look: Unpack[Look],
    ) -> None:
        """Draw a stroke for each row, from one field to another."""
        usual: Look = {"strokeWidth": width, "strokeCap": "round"}
        self._span(rows, "rule", low, high, hover, usual | look)

    def bands(self, rows: Rows, **look: Unpack[Look]) -> None:
        """Draw an area between `low` and `high`, unless no row has both, which would make Vega warn."""
        if any(row["low"] is not None and row["high"] is not None for row in rows):
            usual: Look = {"opacity": 0.2}
            self._span(rows, "area", "low", "high", (), usual | look)

    def dots(
        self,
        rows: Rows,
        *channels: Channel,
        hover: Sequence[Hint] = (),
        aside: float = 0,
        **look: Unpack[Look],
    ) -> None:
        """Draw a point for each row.

        Args:
            rows: The data.
            channels: Encodings of this layer.
            hover: Tooltips of this layer.
            aside: Distance from the centre of the row or column, in pixels.
            look: Further properties of the mark; its size is an area, in square pixels.
        """
        usual: Look = {"filled": True, "size": 100}
        if not any(isinstance(each, alt.Opacity) for each in channels):
            usual["opacity"] = 1
        offset: Look = {}
        if aside:
            offset = {"xOffset": aside} if self._upright else {"yOffset": aside}
        self._add(rows, "point", usual | look | offset, *channels, hover=hover)

    def line(self, rows: Rows, *channels: Channel, width: float = 2, **look: Unpack[Look]) -> None:
        """Draw a line through all rows of the same colour."""
        usual: Look = {"strokeWidth": width}
        self._add(rows, "line", usual | look, *channels, hover=None)

    def links(self, rows: Rows, end: str, *, width: float = 1, **look: Unpack[Look]) -> None:
        """Draw a stroke across the axis of values for each row, from its position to that in the field `end`."""
        usual: Look = {"strokeWidth": width}
        self._add(rows, "rule", usual | look, alt.X2(f"{end}:Q") if self._upright else alt.Y2(f"{end}:Q"), hover=None)

    def ticks(self, rows: Rows, *, field: str, hover: Sequence[Hint] = (), **look: Unpack[Look]) -> None:
        """Draw a short stroke across the axis of values for each row, at the value in `field`."""
        usual: Look = {"orient": "vertical"}
        self._add(rows, "tick", usual | look, field=field, hover=hover)

    def texts(
        self,
        rows: Rows,
        words: str,
        *channels: Channel,
        field: str | None = None,
        hover: Sequence[Hint] = (),
        **look: Unpack[Look],
    ) -> None:
        """Draw a text for each row, with the same tooltip as the mark below it.

        Args:
            rows: The data.
            words: Field of the text.
            channels: Encodings of this layer.
            field: Field of the value at which the text is placed; by default that of the axis.
            hover: Tooltips of this layer.
            look: Further properties of the mark.
        """
        self._add(rows, "text", look, alt.Text(f"{words}:N"), *channels, field=field, hover=hover)

    def bars(
        self,
        rows: Rows,
        *channels: Channel,
        start: str = "start",
        end: str = "end",
        hover: Sequence[Hint] = (),
        **look: Unpack[Look],
    ) -> None:
        """Draw a bar for each row, from one field to another."""
        self._span(rows, "bar", start, end, hover, look, *channels)

    def cells(self, rows: Rows, *channels: Channel, **look: Unpack[Look]) -> None:
        """Draw a coloured cell for each row, between two axes of names."""
        self._add(rows, "rect", look, *channels)

    def level(self, value: float, name: str, spec: str = ".1%") -> None:
        """Draw a dashed line across the axis of values, with its name above the plot."""
        base = self._level(value)
        line = base.mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR, strokeWidth=1.5)
        row = self._free_row(value)
        self._levels.append((value, row))
        above = 4 + NAME_HEIGHT * row
        text = base.mark_text(align="center", baseline="bottom", color=MEASURE_COLOUR, fontSize=11)
        self._layers += [
            line.encode(tooltip=alt.Tooltip("at:Q", format=spec, title=name)),
            text.encode(y=alt.value(-above), text=alt.value(name)),
        ]

    def thin(self, value: float = 0.0, **look: Unpack[Look]) -> None:
        """Draw a line without a name across the axis of values."""
        usual: Look = {"strokeWidth": 1, "color": RULE_COLOUR}
        self._layers.append(self._level(value, "level").mark_rule(**(usual | look)))

    def levels(self, rows: Rows, hover: Sequence[Hint]) -> None:
        """Draw a dashed line at `at` for each row, in the row's colour."""
        look: Look = {"strokeDash": [5, 4], "strokeWidth": 1.6}
        base = self._data(rows, hover).mark_rule(**(look | self._ink()))
        self._layers.append(base.encode(self._channel(self._values, "at"), *self._colours()))

    def across(self, places: Sequence[float]) -> None:
        """Draw dashed lines along the axis of values, at positions of the other axis."""
        base = self._data([{"at": place} for place in places]).encode(self._channel(self._places, "at"))
        self._layers.append(base.mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR))

    def chart(self, *, width: int = WIDE, height: int, title: str | None = None, offset: int = 20) -> alt.LayerChart:
        """The finished chart.

        Args:
            width: Width of the plot in pixels.
            height: Height of the plot in pixels.
            title: Heading.
            offset: Distance from the heading to the plot, in pixels; names of levels are placed between them.
        """
        above = offset + NAME_HEIGHT * max((row for _, row in self._levels), default=0)
        heading = alt.Undefined if title is None else panel_title(title, above)
        return alt.LayerChart(layer=self._layers, width=width, height=height, title=heading)

    def _span(
        self, rows: Rows, mark: _Mark, low: str, high: str, hover: Sequence[Hint], look: Look, *channels: Channel
    ) -> None:
        end = alt.Y2(f"{high}:Q") if self._upright else alt.X2(f"{high}:Q")
        self._add(rows, mark, look, end, *channels, field=low, hover=hover)

    def _add(
        self,
        rows: Rows,
        mark: _Mark,
        look: Look,
        *channels: _Encoding,
        field: str | None = None,
        hover: Sequence[Hint] | None = (),
    ) -> None:
        """Add a layer whose values are in `field`; `hover=None` means no tooltips, () the plot's own."""
        encodings: list[_Encoding] = [self._channel(self._places), self._channel(self._values, field), *channels]
        if not ("color" in look or any(isinstance(each, alt.Color) for each in channels)):
            encodings += self._colours()
            look = self._ink() | look
        if self._lanes is not None:
            encodings.append(self._lane(alt.XOffset if self._upright else alt.YOffset, self._lanes))
        if self._detail is not None:
            encodings.append(alt.Detail(f"{self._detail}:N"))
        base = self._data(rows, () if hover is None else hover or self._hover)
        self._layers.append(getattr(base, f"mark_{mark}")(**look).encode(*encodings))

    def _lane(self, kind: type[alt.XOffset] | type[alt.YOffset], lanes: Names | Numbers) -> alt.XOffset | alt.YOffset:
        if isinstance(lanes, Numbers):
            return kind(f"{lanes.field}:Q", scale=alt.Scale(domain=[0, 1], nice=False, zero=False))
        ruled = isinstance(self._places, Names) and self._places.ruled
        scale = alt.Scale(domain=[*lanes.names], paddingOuter=0.7 if ruled else alt.Undefined)
        return kind(f"{lanes.field}:N", sort=[*lanes.names], scale=scale)

    def _free_row(self, value: float) -> int:
        """The lowest row in which the name of a level does not overlap with another."""
        domain = self._values.domain if isinstance(self._values, Numbers) else None
        near = math.inf if domain is None else NAME_PART * (domain[1] - domain[0])
        taken = {row for other, row in self._levels if abs(value - other) < near}
        return next(row for row in count() if row not in taken)

    def _level(self, value: float, field: str = "at") -> alt.Chart:
        return self._data([{field: value}]).encode(self._channel(self._values, field))

    def _data(self, rows: Rows, hover: Sequence[Hint] = ()) -> alt.Chart:
        # altair copies a chart's lists row by row whenever it is layered or concatenated, but does not copy tuples.
        base = alt.Chart(alt.Data(values=tuple(dict(row) for row in rows)))
        return base.encode(tooltip=hints(*hover)) if hover else base

    def _channel(self, axis: Numbers | Names, field: str | None = None) -> alt.X | alt.Y:
        return axis.channel(alt.Y if (axis is self._values) is self._upright else alt.X, field)

    def _ink(self) -> Look:
        return {"color": self._colour} if isinstance(self._colour, str) else {}

    def _colours(self) -> list[alt.Color]:
        return [] if isinstance(self._colour, str) else [self._colour]

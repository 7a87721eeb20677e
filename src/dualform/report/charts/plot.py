"""A chart in the making: two axes, given once, and the marks that are laid over one another between them.

    plot = Plot(x=shares("mean", "accuracy", ends), y=Names("learner", names), colour=learner_colours(keys))
    plot.level(0.5, "chance")
    plot.intervals(rows)
    plot.dots(rows)
    chart = plot.chart(height=200)

Text from data sets enters as data only, never as a field name or an expression.
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
Channel = alt.Color | alt.Detail | alt.Fill | alt.FillOpacity | alt.Opacity | alt.Shape | alt.StrokeDash
"""An encoding that a mark has for itself, beyond its places."""

NAME_HEIGHT = 12
"""Pixels from the name of one line to that of the next above it."""
NAME_PART = 0.25
"""Part of an axis that the name of a line may take; lines that are closer have their names above one another."""


_Encoding = Channel | alt.Text | alt.X | alt.X2 | alt.XOffset | alt.Y | alt.Y2 | alt.YOffset
_Mark = Literal["area", "bar", "line", "point", "rect", "rule", "text", "tick"]


class Size(TypedDict, total=False):
    """Of a chart, as for `Plot.chart`."""

    width: int
    height: int


class Look(TypedDict, total=False):
    """Properties of a mark, named as in Vega-Lite; sizes and lengths are in pixels."""

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
    """Marks between two axes, in the order in which they are added.

    Values run along x where y holds names, and along y otherwise: intervals lie in that direction, and levels stand
    across it.

    Args:
        x: The axis below.
        y: The axis on the left.
        colour: Of all marks: an encoding, or a CSS colour.
        hover: What is shown for a mark under the pointer; the same for all marks that are given no hints of their own.
        lanes: What stands side by side within a row or column of names: further names, or numbers in [0, 1] for places.
        detail: Field that tells lines apart which nothing else does.
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
        """A stroke for each row, between two fields."""
        usual: Look = {"strokeWidth": width, "strokeCap": "round"}
        self._span(rows, "rule", low, high, hover, usual | look)

    def bands(self, rows: Rows, **look: Unpack[Look]) -> None:
        """An area between `low` and `high`; none where no row has both, of which Vega would warn."""
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
        """A point for each row.

        Args:
            rows: The data.
            channels: Encodings of its own.
            hover: Hints of its own.
            aside: Pixels by which it stands beside its row or column.
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
        """A line through all rows of a colour."""
        usual: Look = {"strokeWidth": width}
        self._add(rows, "line", usual | look, *channels, hover=None)

    def links(self, rows: Rows, end: str, *, width: float = 1, **look: Unpack[Look]) -> None:
        """A stroke along the axis of places, from a row's own place to that in the field `end`."""
        usual: Look = {"strokeWidth": width}
        self._add(rows, "rule", usual | look, alt.X2(f"{end}:Q") if self._upright else alt.Y2(f"{end}:Q"), hover=None)

    def ticks(self, rows: Rows, *, field: str, hover: Sequence[Hint] = (), **look: Unpack[Look]) -> None:
        """A short stroke across the axis of values for each row, at the value in a field."""
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
        """The text in the field `words`, for each row; hints show over it as over what it stands on.

        Args:
            rows: The data.
            words: The field of the text.
            channels: Encodings of its own.
            field: The field of the value at which it stands; that of the axis without it.
            hover: Hints of its own.
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
        """A bar from one field to another."""
        self._span(rows, "bar", start, end, hover, look, *channels)

    def cells(self, rows: Rows, *channels: Channel, **look: Unpack[Look]) -> None:
        """A coloured cell for each row of a map between two axes of names."""
        self._add(rows, "rect", look, *channels)

    def level(self, value: float, name: str, spec: str = ".1%") -> None:
        """A dashed line across the axis of values, with its name above; above that those of lines close by."""
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
        """A line without a name across the axis of values."""
        usual: Look = {"strokeWidth": 1, "color": RULE_COLOUR}
        self._layers.append(self._level(value, "level").mark_rule(**(usual | look)))

    def levels(self, rows: Rows, hover: Sequence[Hint]) -> None:
        """A dashed line at `at` for each row, in the row's colour."""
        look: Look = {"strokeDash": [5, 4], "strokeWidth": 1.6}
        base = self._data(rows, hover).mark_rule(**(look | self._ink()))
        self._layers.append(base.encode(self._channel(self._values, "at"), *self._colours()))

    def across(self, places: Sequence[float]) -> None:
        """Dashed lines along the axis of values, at places of the other axis."""
        base = self._data([{"at": place} for place in places]).encode(self._channel(self._places, "at"))
        self._layers.append(base.mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR))

    def chart(self, *, width: int = WIDE, height: int, title: str | None = None, offset: int = 20) -> alt.LayerChart:
        """The chart.

        Args:
            width: Pixels of the plot.
            height: Pixels of the plot.
            title: Its heading.
            offset: Pixels from the heading to the plot; names of levels stand between them.
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
        """Add a layer; its values are in `field`, and without `hover` (None) it shows no hints."""
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
        """The lowest row in which the name of a level meets no other."""
        domain = self._values.domain if isinstance(self._values, Numbers) else None
        near = math.inf if domain is None else NAME_PART * (domain[1] - domain[0])
        taken = {row for other, row in self._levels if abs(value - other) < near}
        return next(row for row in count() if row not in taken)

    def _level(self, value: float, field: str = "at") -> alt.Chart:
        return self._data([{field: value}]).encode(self._channel(self._values, field))

    def _data(self, rows: Rows, hover: Sequence[Hint] = ()) -> alt.Chart:
        # altair copies a chart whenever it is layered or concatenated: lists row by row, a tuple not at all.
        base = alt.Chart(alt.Data(values=tuple(dict(row) for row in rows)))
        return base.encode(tooltip=hints(*hover)) if hover else base

    def _channel(self, axis: Numbers | Names, field: str | None = None) -> alt.X | alt.Y:
        return axis.channel(alt.Y if (axis is self._values) is self._upright else alt.X, field)

    def _ink(self) -> Look:
        return {"color": self._colour} if isinstance(self._colour, str) else {}

    def _colours(self) -> list[alt.Color]:
        return [] if isinstance(self._colour, str) else [self._colour]

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
from typing import Any

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, hints
from dualform.report.charts.panels import WIDE, panel_title
from dualform.report.charts.theme import RULE_COLOUR
from dualform.report.palette import MEASURE_COLOUR

Rows = Sequence[Mapping[str, Any]]

NAME_HEIGHT = 12
"""Pixels from the name of one line to that of the next above it."""
NAME_PART = 0.25
"""Part of an axis that the name of a line may take; lines that are closer have their names above one another."""


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

    def intervals(self, rows: Rows, *, width: float = 3, **mark: Any) -> None:
        """A stroke from `low` to `high`, or between two other fields that are named so, for each row."""
        look: dict[str, Any] = {"strokeWidth": width, "strokeCap": "round"}
        self._span(rows, "rule", **(look | mark))

    def bands(self, rows: Rows, *, opacity: float = 0.2, **mark: Any) -> None:
        """An area between `low` and `high`; none where no row has both, of which Vega would warn."""
        if any(row["low"] is not None and row["high"] is not None for row in rows):
            self._span(rows, "area", opacity=opacity, **mark)

    def dots(self, rows: Rows, *, size: float = 100, hover: Sequence[Hint] = (), aside: float = 0, **mark: Any) -> None:
        """A point for each row.

        Args:
            rows: The data.
            size: Its area in square pixels.
            hover: Hints of its own.
            aside: Pixels by which it stands beside its row or column.
            mark: Further properties of the mark; an encoding under the name of its channel.
        """
        offset = {"xOffset" if self._upright else "yOffset": aside} if aside else {}
        self._at(rows, "point", hover, **({"filled": True, "opacity": 1} | mark | offset), size=size)

    def line(self, rows: Rows, *, width: float = 2, **mark: Any) -> None:
        """A line through all rows of a colour."""
        self._at(rows, "line", None, strokeWidth=width, **mark)

    def links(self, rows: Rows, end: str, *, width: float = 1, **mark: Any) -> None:
        """A stroke along the axis of places, from a row's own place to that in the field `end`."""
        to = {"y2" if not self._upright else "x2": f"{end}:Q"}
        self._add(rows, "rule", None, None, {"strokeWidth": width} | mark, to)

    def ticks(self, rows: Rows, **mark: Any) -> None:
        """A short stroke across the axis of values for each row."""
        hover = mark.pop("hover", ())
        self._at(rows, "tick", hover, **({"orient": "vertical"} | mark))

    def texts(self, rows: Rows, words: str, *, hover: Sequence[Hint] = (), **mark: Any) -> None:
        """The text in the field `words`, for each row; hints show over it as over what it stands on."""
        self._at(rows, "text", hover, text=alt.Text(f"{words}:N"), **mark)

    def bars(self, rows: Rows, *, start: str = "start", end: str = "end", **mark: Any) -> None:
        """A bar from one field to another."""
        self._span(rows, "bar", low=start, high=end, **mark)

    def cells(self, rows: Rows, **mark: Any) -> None:
        """A coloured cell for each row of a map between two axes of names."""
        self._at(rows, "rect", (), **mark)

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

    def thin(self, value: float = 0.0, **mark: Any) -> None:
        """A line without a name across the axis of values."""
        self._layers.append(self._level(value, "level").mark_rule(**({"strokeWidth": 1, "color": RULE_COLOUR} | mark)))

    def levels(self, rows: Rows, hover: Sequence[Hint], **mark: Any) -> None:
        """A dashed line at `at` for each row, in the row's colour."""
        place = {"y" if self._upright else "x": self._channel(self._values, "at")}
        base = self._data(rows, hover).mark_rule(**({"strokeDash": [5, 4], "strokeWidth": 1.6} | self._ink() | mark))
        self._layers.append(base.encode(**place, **self._colours()))

    def across(self, places: Sequence[float], **mark: Any) -> None:
        """Dashed lines along the axis of values, at places of the other axis."""
        field = {"x" if self._upright else "y": self._channel(self._places, "at")}
        base = alt.Chart(alt.Data(values=[{"at": place} for place in places])).encode(**field)
        self._layers.append(base.mark_rule(**({"strokeDash": [4, 4], "color": MEASURE_COLOUR} | mark)))

    def chart(self, *, width: int = WIDE, height: int, title: str | None = None, offset: int = 20) -> alt.LayerChart:
        """The chart.

        Args:
            width: Pixels of the plot.
            height: Pixels of the plot.
            title: Its heading.
            offset: Pixels from the heading to the plot; names of levels stand between them.
        """
        above = offset + NAME_HEIGHT * max((row for _, row in self._levels), default=0)
        heading = {} if title is None else {"title": panel_title(title, above)}
        return alt.layer(*self._layers).properties(width=width, height=height, **heading)

    def _span(self, rows: Rows, mark: str, *, low: str = "low", high: str = "high", **properties: Any) -> None:
        end = {"y2" if self._upright else "x2": f"{high}:Q"}
        self._add(rows, mark, properties.pop("hover", ()), low, properties, end)

    def _at(self, rows: Rows, mark: str, hover: Sequence[Hint] | None, **properties: Any) -> None:
        self._add(rows, mark, hover, properties.pop("field", None), properties, {})

    def _add(
        self,
        rows: Rows,
        mark: str,
        hover: Sequence[Hint] | None,
        field: str | None,
        properties: dict[str, Any],
        end: dict[str, Any],
    ) -> None:
        channels = {key: each for key, each in properties.items() if isinstance(each, alt.SchemaBase)}
        ink = {} if "color" in properties else self._ink()
        look = ink | {key: each for key, each in properties.items() if key not in channels}
        values, places = ("y", "x") if self._upright else ("x", "y")
        encoding = {
            places: self._channel(self._places),
            values: self._channel(self._values, field),
            **({} if "color" in properties else self._colours()),
            **end,
            **channels,
        }
        if self._lanes is not None:
            encoding[f"{places}Offset"] = self._lane(alt.XOffset if self._upright else alt.YOffset, self._lanes)
        if self._detail is not None:
            encoding["detail"] = f"{self._detail}:N"
        base = self._data(rows, None if hover is None else hover or self._hover)
        self._layers.append(getattr(base, f"mark_{mark}")(**look).encode(**encoding))

    def _lane(self, kind: type[alt.XOffset] | type[alt.YOffset], lanes: Names | Numbers) -> alt.XOffset | alt.YOffset:
        if isinstance(lanes, Numbers):
            return kind(f"{lanes.field}:Q", scale=alt.Scale(domain=[0, 1], nice=False, zero=False))
        ruled = isinstance(self._places, Names) and self._places.ruled
        scale = alt.Scale(domain=[*lanes.names], **({"paddingOuter": 0.7} if ruled else {}))
        return kind(f"{lanes.field}:N", sort=[*lanes.names], scale=scale)

    def _free_row(self, value: float) -> int:
        """The lowest row in which the name of a level meets no other."""
        domain = self._values.domain if isinstance(self._values, Numbers) else None
        near = math.inf if domain is None else NAME_PART * (domain[1] - domain[0])
        taken = {row for other, row in self._levels if abs(value - other) < near}
        return next(row for row in count() if row not in taken)

    def _level(self, value: float, field: str = "at") -> alt.Chart:
        place = {"y" if self._upright else "x": self._channel(self._values, field)}
        return alt.Chart(alt.Data(values=[{field: value}])).encode(**place)

    def _data(self, rows: Rows, hover: Sequence[Hint] | None) -> alt.Chart:
        base = alt.Chart(alt.Data(values=[dict(row) for row in rows]))
        return base.encode(tooltip=hints(*hover)) if hover else base

    def _channel(self, axis: Numbers | Names, field: str | None = None) -> alt.X | alt.Y:
        return axis.channel(alt.Y if (axis is self._values) is self._upright else alt.X, field)

    def _ink(self) -> dict[str, Any]:
        return {"color": self._colour} if isinstance(self._colour, str) else {}

    def _colours(self) -> dict[str, Any]:
        return {} if isinstance(self._colour, str) else {"color": self._colour}

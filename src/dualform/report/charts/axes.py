"""Axes of numbers and of names, and tooltips."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

Hint = str | tuple[str, str] | tuple[str, str, str]
"""A line of a tooltip: a field, optionally with its format (empty for text) and its title."""


@dataclass(frozen=True)
class Numbers:
    """An axis of numbers."""

    field: str
    title: str | None = None
    format: str | None = None
    domain: Sequence[float] | None = None
    """Both ends; None to determine them from the data."""
    log: bool = False
    zero: bool = False
    """Whether the axis always includes zero."""
    nice: bool = True
    """Whether the axis ends at a tick."""
    padding: int = 0
    """Free space at both ends, in pixels."""
    ticks: int | Sequence[float] = 5
    """Approximate number of ticks, or their values."""
    grid: bool = True
    clamp: bool = False
    """Whether values outside the domain are drawn at its edge."""
    labels: str | None = None
    """A Vega expression for the labels of ticks, instead of a format."""

    def channel(self, kind: type[alt.X] | type[alt.Y], field: str | None = None) -> alt.X | alt.Y:
        """The encoding of the axis, optionally for a layer that uses another field."""
        scale = alt.Scale(
            type="log" if self.log else "linear",
            zero=alt.Undefined if self.log else self.zero,
            domain=alt.Undefined if self.domain is None else [*self.domain],
            clamp=True if self.clamp and self.domain is not None else alt.Undefined,
            nice=self.nice,
            padding=self.padding,
        )
        axis = alt.Axis(
            title=self.title,
            grid=self.grid,
            tickCount=self.ticks if isinstance(self.ticks, int) else alt.Undefined,
            values=alt.Undefined if isinstance(self.ticks, int) else [*self.ticks],
            format=self.format if self.format and not self.labels else alt.Undefined,
            labelExpr=self.labels or alt.Undefined,
            labelOverlap="greedy",
            labelFlush=False,
        )
        return kind(f"{field or self.field}:Q", title=self.title, scale=scale, axis=axis)


@dataclass(frozen=True)
class Names:
    """An axis of names, with one row or column for each, in the given order."""

    field: str
    names: Sequence[str] | Sequence[int]
    title: str | None = None
    room: int = 200
    """Maximum width of a name in pixels."""
    angle: int = 0
    """Rotation of the names, in degrees."""
    ruled: bool = False
    """Whether lines separate the rows."""
    labelled: Sequence[str] | Sequence[int] | None = None
    """Names that get a label; None for all."""

    def channel(self, kind: type[alt.X] | type[alt.Y], field: str | None = None) -> alt.X | alt.Y:
        """The encoding of the axis, optionally for a layer that uses another field."""
        padding = 0 if self.ruled else alt.Undefined
        axis = alt.Axis(
            title=self.title,
            grid=self.ruled,
            ticks=False,
            tickBand="extent" if self.ruled else alt.Undefined,
            values=alt.Undefined if self.labelled is None else [*self.labelled],
            labelLimit=self.room,
            labelPadding=6,
            labelAngle=self.angle if kind is alt.X else alt.Undefined,
        )
        return kind(
            f"{field or self.field}:N",
            sort=[*self.names],
            title=self.title,
            scale=alt.Scale(domain=[*self.names], paddingInner=padding, paddingOuter=padding),
            axis=axis,
        )


def shares(field: str, title: str | None, values: Iterable[float], **others: Any) -> Numbers:
    """An axis of shares that covers the range of `values`, with a margin but within [0, 1]."""
    low, high = _ends(values)
    margin = max(0.02, 0.05 * (high - low))
    domain = (max(0.0, low - margin), min(1.0, high + margin))
    return Numbers(field, title, ".0%", domain, ticks=6, **others)


def around(values: Iterable[float], *, least: float = 0.02, part: float = 0.05) -> tuple[float, float]:
    """Both ends of an axis that covers `values` with a margin: `part` of their range, but at least `least`."""
    low, high = _ends(values)
    margin = max(least, part * (high - low))
    return low - margin, high + margin


def hints(*fields: Hint) -> list[alt.Tooltip]:
    """The lines of a tooltip."""
    lines = []
    for each in fields:
        field, spec, title = (*((each,) if isinstance(each, str) else each), "", "")[:3]
        kind = "Q" if spec else "N"
        lines.append(alt.Tooltip(f"{field}:{kind}", format=spec or alt.Undefined, title=title or alt.Undefined))
    return lines


def interval_hints(spec: str, n: str = "n") -> tuple[Hint, ...]:
    """The lines of a tooltip for a 95 % interval and its n."""
    return ("low", spec, "95 % from"), ("high", spec, "to"), ("n", ",", n)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    values = [*values]
    return min(values, default=0.0), max(values, default=1.0)

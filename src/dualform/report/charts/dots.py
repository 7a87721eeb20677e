"""Means as dots with their intervals, one row each; seeds as small dots below them, levels to compare with as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dualform.report.charts.panels import WIDE, baseline_lines
from dualform.report.numerals import finite, known
from dualform.result import Estimate

ROW_HEIGHT = 36
"""Pixels of a row."""


def dot_rows(named: Mapping[str, Estimate], row: str = "learner", value: str = "accuracy") -> list[dict[str, Any]]:
    """The data of `dot_chart`: a row an estimate that has a mean.

    Args:
        named: Estimates by what stands on the axis.
        row: Field that holds the name.
        value: Field that holds the mean.
    """
    rows = []
    for name, estimate in named.items():
        mean = finite(estimate.mean)
        if mean is not None:
            # Without an interval the rule shrinks to the dot.
            low, high = known(estimate.ci95) or (mean, mean)
            rows.append({row: name, value: mean, "low": low, "high": high, "n": estimate.n})
    return rows


def dot_chart(
    rows: Sequence[Mapping[str, Any]],
    *,
    colour: alt.Color,
    axis_title: str,
    row: str = "learner",
    value: str = "accuracy",
    value_title: str = "mean accuracy",
    seeds: Sequence[Mapping[str, Any]] = (),
    levels: Sequence[tuple[float, str]] = (),
    offsets: Sequence[str] = (),
    row_height: int = ROW_HEIGHT,
    tooltip: Sequence[alt.Tooltip] = (),
) -> alt.LayerChart:
    """Shares in [0, 1] as dots with intervals.

    Args:
        rows: As `dot_rows` makes them.
        colour: Of rule and dot.
        axis_title: Below the axis of shares.
        row: Field with the name on the other axis.
        value: Field with the mean.
        value_title: Its name in a tooltip.
        seeds: Single runs, with the fields `row`, `value` and `seed`.
        levels: Values drawn as dashed lines, each with its name.
        offsets: Names, in the field `learner`, that stand side by side within a row; without them a row holds one dot.
        row_height: Pixels of a row.
        tooltip: What a tooltip shows beyond name, mean, interval and n.
    """
    shown = [float(each[end]) for each in rows for end in ("low", "high")]
    shown += [float(each[value]) for each in seeds] + [level for level, _ in levels]
    lowest, highest = min(shown), max(shown)
    margin = max(0.02, 0.06 * (highest - lowest))
    scale = alt.Scale(domain=[max(0, lowest - margin), min(1, highest + margin)], zero=False, nice=True)
    axis = alt.Axis(format=".0%", title=axis_title, tickCount=6, labelOverlap=True)
    names = list(dict.fromkeys(str(each[row]) for each in rows))
    y = alt.Y(f"{row}:N", sort=names, title=None, axis=alt.Axis(labelLimit=200))
    beside: dict[str, Any] = {"yOffset": alt.YOffset("learner:N", sort=list(offsets))} if offsets else {}
    hover = [
        *([alt.Tooltip(f"{row}:N")] if row != "learner" else []),
        alt.Tooltip("learner:N"),
        alt.Tooltip(f"{value}:Q", format=".1%", title=value_title),
        alt.Tooltip("low:Q", format=".1%", title="95 % from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", format=","),
        *tooltip,
    ]
    x = alt.X(f"{value}:Q", scale=scale, axis=axis)
    base = alt.Chart(alt.Data(values=[dict(each) for each in rows])).encode(y=y, color=colour, tooltip=hover, **beside)
    layers: list[alt.Chart] = [
        *baseline_lines(levels, scale, axis),
        base.mark_rule(strokeWidth=3, strokeCap="round").encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"),
        base.mark_point(filled=True, size=70 if offsets else 130, opacity=1).encode(x=x),
    ]
    if seeds:
        layers.append(
            alt.Chart(alt.Data(values=[dict(each) for each in seeds]))
            # Below the interval, so that neither hides the other.
            .mark_point(filled=True, size=26, opacity=0.55, yOffset=11)
            .encode(
                x=x,
                y=y,
                color=colour,
                tooltip=[
                    alt.Tooltip(f"{row}:N"),
                    alt.Tooltip("seed:N"),
                    alt.Tooltip(f"{value}:Q", format=".1%"),
                ],
            )
        )
    return alt.layer(*layers).properties(width=WIDE, height=row_height * len(names) + 10)

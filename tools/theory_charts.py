"""Draw the figures of docs/theory.md into docs/images: `python tools/theory_charts.py`.

Each point is computed by the library's own functions; lines are the formulas that the page derives.
"""

from pathlib import Path

import altair as alt
import torch
from torch import Tensor

from dualform.ops.constructions import descend_by_layers, gd_layer
from dualform.ops.dual_form import outer_product_update, relaxation
from dualform.ops.momentum import momentum_naive
from dualform.ops.momentum_dual import momentum_linear_attention
from dualform.ops.rounding import last_place_move
from dualform.ops.similarity import sim_aou, sim_aou_raw
from dualform.report.charts.saving import save_chart

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#8A8F98"]
Rows = list[dict[str, str | float]]


def random(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def chart(
    rows: Rows, x: alt.X, y: alt.Y, legend: str, order: list[str], marks: dict[str, str] | None = None
) -> alt.Chart:
    """A line a series; series that `marks` calls "point" are drawn as points."""
    marks = marks or {}
    colour = alt.Color("series:N", title=legend, sort=order, scale=alt.Scale(domain=order, range=COLOURS))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, color=colour).properties(width=420, height=210)
    points = [name for name in order if marks.get(name) == "point"]
    lines = base.transform_filter(alt.FieldOneOfPredicate("series", [name for name in order if name not in points]))
    layers = [lines.mark_line(strokeWidth=2, clip=True)]
    if points:
        kept = base.transform_filter(alt.FieldOneOfPredicate("series", points))
        layers.append(kept.mark_point(filled=True, size=45, opacity=1, clip=True))
    return alt.layer(*layers).configure(background="white").configure_axis(grid=False).configure_view(stroke=None)


def descent() -> alt.Chart:
    """Error against the number of constructed layers, and of explicit steps."""
    generator = torch.Generator().manual_seed(0)
    dimension, examples, tasks, rate = 5, 20, 200, 0.7
    x, queries = random(generator, tasks, examples, dimension), random(generator, tasks, 1, dimension)
    w = random(generator, tasks, dimension, 1) / dimension**0.5
    y, answers = x @ w, queries @ w
    zero = torch.zeros(1, dimension, dtype=torch.float64)
    layer = gd_layer(zero, rate, examples)
    rows: Rows = []
    weights = torch.zeros_like(w)
    for steps in range(9):
        error = (queries @ weights - answers).square().mean().item()
        rows.append({"x": steps, "y": error, "series": "gradient descent"})
        predicted = descend_by_layers([layer] * steps, x, y, queries) if steps else torch.zeros_like(answers)
        rows.append({"x": steps, "y": (predicted - answers).square().mean().item(), "series": "linear attention"})
        weights = weights - rate / examples * x.mT @ (x @ weights - y)
    softmax = (queries @ x.mT).softmax(-1) @ y
    rows.append({"x": 1, "y": (softmax - answers).square().mean().item(), "series": "one softmax layer"})
    return chart(
        rows,
        alt.X("x:Q", title="layers, or steps"),
        alt.Y("y:Q", title="mean squared error", scale=alt.Scale(type="log")),
        "prediction of",
        ["linear attention", "gradient descent", "one softmax layer"],
        {"linear attention": "point", "one softmax layer": "point"},
    )


def linear_form() -> alt.Chart:
    """Cosine of the linear form with softmax attention's output."""
    generator = torch.Generator().manual_seed(0)
    rows: Rows = []
    for mean in (0.0, 0.1, 0.3, 1.0):
        for step in range(13):
            size = 0.01 * 10 ** (step / 4)
            k, v = random(generator, 500, 24, 16), random(generator, 500, 24, 16)
            v = v - v.mean(dim=1, keepdim=True) + mean
            q = size * random(generator, 500, 16) / 4
            weights = torch.softmax((k @ q[..., None])[..., 0], dim=-1)
            output = (weights[..., None] * v).sum(dim=1)
            update = outer_product_update(v, k)[:, None]
            cosine = relaxation(update, torch.zeros_like(update), q[:, None], output[:, None]).cosine.mean().item()
            rows.append({"x": size, "y": cosine, "series": f"{mean:g}"})
    return chart(
        rows,
        alt.X("x:Q", title="standard deviation of the scores", scale=alt.Scale(type="log")),
        alt.Y("y:Q", title="cosine with the true output", scale=alt.Scale(domain=[0, 1])),
        "mean value",
        ["0", "0.1", "0.3", "1"],
    )


def momentum() -> alt.Chart:
    """The weight of a token in what a later token reads, against their distance."""
    eta, length = 0.4, 13
    # One value of 1 at the first token, and keys and queries of 1: what token t reads is the first token's weight.
    ones = torch.ones(1, 1, length, 1, dtype=torch.float64)
    first = torch.zeros_like(ones)
    first[0, 0, 0] = 1
    series = {
        "heavy ball": momentum_linear_attention(ones, ones, first, eta),
        "Nesterov": momentum_linear_attention(ones, ones, first, eta, "nesterov"),
        "the paper's average": momentum_naive(first, eta).term,
    }
    rows: Rows = [
        {"x": distance, "y": weights[0, 0, distance, 0].item(), "series": name}
        for name, weights in series.items()
        for distance in range(length)
    ]
    return chart(
        rows,
        alt.X("x:Q", title="distance of the token"),
        alt.Y("y:Q", title="weight"),
        f"momentum, eta {eta}",
        list(series),
    )


def normalising() -> alt.Chart:
    """SimAOU of two independent noises."""
    generator = torch.Generator().manual_seed(0)
    h = torch.nn.functional.normalize(random(generator, 40, 1, 4096), dim=-1)
    rows: Rows = []
    for step in range(25):
        ratio = 0.05 * 10 ** (step / 8)
        s = (1 + ratio) ** 0.5
        rows.append({"x": ratio, "y": (s - 1) ** 2 / ((s - 1) ** 2 + ratio), "series": "formula"})
        if step % 2 == 0:
            icl, ft = (h + random(generator, 40, 1, 4096) * (ratio / 4096) ** 0.5 for _ in range(2))
            rows.append({"x": ratio, "y": sim_aou(h, icl, ft).mean().item(), "series": "SimAOU"})
            rows.append({"x": ratio, "y": sim_aou_raw(h, icl, ft).mean().item(), "series": "SimAOU, raw"})
    return chart(
        rows,
        alt.X("x:Q", title="squared norm of each noise, over the output's", scale=alt.Scale(type="log")),
        alt.Y("y:Q", title="score of unrelated changes"),
        "measure",
        ["SimAOU", "SimAOU, raw", "formula"],
        {"SimAOU": "point", "SimAOU, raw": "point"},
    )


def rounding() -> alt.Chart:
    """How a difference in the last place grows under descent on a square."""
    rows: Rows = []
    rates = (3.0, 2.05, 1.95, 1.5)
    for rate in rates:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(100, generator=generator)
        difference = last_place_move(weights, generator).double()
        for step in range(41):
            rows.append({"x": step, "y": difference.norm().item(), "series": f"{rate:g}"})
            difference = difference - rate * difference
    return chart(
        rows,
        alt.X("x:Q", title="step"),
        alt.Y(
            "y:Q", title="norm of the difference", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=6)
        ),
        "rate x curvature",
        [f"{rate:g}" for rate in rates],
    )


CHARTS = {
    "descent": descent,
    "relaxation": linear_form,
    "momentum": momentum,
    "sim-aou": normalising,
    "rounding": rounding,
}


def main() -> None:
    """Write every figure."""
    for name, draw in CHARTS.items():
        save_chart(draw(), IMAGES / f"theory-{name}.svg")


if __name__ == "__main__":
    main()

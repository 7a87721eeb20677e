"""A made-up laboratory with every kind of number that a page must bear, for the tests of the report."""

import math
from typing import Any

from dualform.result import Estimate
from dualform.studies.laboratory.result import (
    Claim,
    LabChart,
    LabCurve,
    Laboratory,
    LaboratoryResult,
    LabRow,
    LabStudy,
    LabTable,
)

SEEDS = [1, 2, 3, 4, 5]


def example_laboratory(**changes: Any) -> LaboratoryResult:
    """Four studies, one claim of which does not hold; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "regression",
        "config": {"studies": ["constructed", "trained", "phases", "layers"], "seeds": SEEDS, "dimension": 10}
        | {"points": 10, "steps": 1.0},
        "environment": {"python": "3.11.9", "device": "cpu", "seconds": 412.3, "command": "dualform regress"},
        "laboratory": Laboratory(studies=[constructed(), trained(), phases(), layers()]),
        "warnings": ["One thing to know."],
    }
    return LaboratoryResult(**(fields | changes))


def laboratory(*studies: LabStudy, **changes: Any) -> LaboratoryResult:
    """A result of these studies."""
    return example_laboratory(laboratory=Laboratory(studies=list(studies)), **changes)


def estimate(mean: float | None, half: float | None = None, n: int = 5) -> Estimate:
    """A mean in the middle of its interval; without `half`, without one."""
    ends = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return Estimate(mean=mean, ci95=ends, n=n)


def claim(says: str = "Two things are one.", found: Estimate | None = None, holds: bool = True, **more: Any) -> Claim:
    """A claim that was found to be so."""
    fields: dict[str, Any] = {"expected": "below 1e-12", "source": "arXiv:2212.07677v2, proposition 1"}
    return Claim(says=says, found=found or estimate(3.3e-16, None, n=1), holds=holds, **(fields | more))


def curve(
    name: str, values: list[float | None], half: float | None = None, x: list[float] | None = None, **more: Any
) -> LabCurve:
    """One line, its points at 1, 2, 3 ... unless `x` says where."""
    at = x if x is not None else [float(place) for place in range(1, len(values) + 1)]
    return LabCurve(name=name, x=at, y=[estimate(value, half) for value in values], **more)


def chart(*curves: LabCurve, **more: Any) -> LabChart:
    """A chart of error by examples seen."""
    fields: dict[str, Any] = {"title": "Error by examples", "x": "examples seen", "y": "squared error"}
    return LabChart(curves=list(curves), **(fields | more))


def study(name: str = "constructed", **more: Any) -> LabStudy:
    """A study without anything but its question and its answer."""
    fields: dict[str, Any] = {"question": "Is it so?", "answer": "It is so."}
    return LabStudy(name=name, **(fields | more))


def constructed() -> LabStudy:
    """All claims hold, those that must fail do not, and a number is exactly zero on a log axis."""
    return study(
        question="Is a constructed layer of linear attention one step of gradient descent?",
        answer="It is, to rounding; with softmax in its place it is not.",
        claims=[
            claim("The constructed layer makes the prediction of one step of gradient descent."),
            claim("Sensitivities to the query point the same way.", estimate(1.0, None, 1), expected="1 within 1e-12"),
            claim("The update of nothing is nothing.", estimate(0.0, None, 1)),
            claim("The same with softmax.", estimate(0.231, 0.012), holds=False, must_fail=True, source=""),
            claim("The same with labels permuted.", estimate(1.4e9, 2e8), holds=False, must_fail=True),
        ],
        charts=[
            chart(
                curve("largest difference", [3e-16, 0.0, 4e-16, 8e-16, 1.2e-15]),
                title="Rounding by depth",
                x="layers",
                y="largest relative difference",
                log_y=True,
            )
        ],
    )


def trained() -> LabStudy:
    """A claim that does not hold, one that holds where it must not, and curves beside exact predictors."""
    steps = [float(100 * 2**place) for place in range(12)]
    loss: list[float | None] = [0.2 + 0.22 * math.exp(-place / 2) for place in range(12)]
    return study(
        "trained",
        question="Does training find that layer by itself?",
        answer="One layer reaches the loss of one optimal step; two reach GD++.",
        claims=[
            claim(
                "A trained layer of linear attention reaches the loss of one optimal step.",
                estimate(0.2071, 0.0011),
                expected="0.207 within 1 %",
            ),
            claim("Two recurrent layers reach GD++", estimate(0.1312, 0.0042), expected="at most 0.110", holds=False),
            claim("A layer of a wrong rate does so too.", estimate(0.2073, 0.001), must_fail=True),
            claim("What has no number.", estimate(None), expected="any number", holds=False, source=""),
        ],
        charts=[
            chart(
                curve("linear attention", loss, 0.01, steps),
                curve("softmax attention", [0.9 * (value or 0) + 0.03 for value in loss], 0.012, steps),
                curve("one step of gradient descent", [0.207] * 12, None, steps, reference=True),
                curve("zero", [0.417] * 12, None, steps, reference=True),
                title="Loss while training",
                x="training steps",
                y="half the mean squared error",
                log_x=True,
                note="Mean over 10,000 sequences that training never saw.",
            ),
            chart(
                curve("linear attention", [0.94, 0.97, 0.99, 0.995, 0.998], 0.004),
                curve("softmax attention", [0.9, 0.91, None, 0.93, 0.92], 0.02),
                title="Cosine of sensitivities",
                y="cosine",
            ),
        ],
        tables=[
            LabTable(
                title="Loss by depth",
                columns=["trained", "GD", "GD++"],
                rows=[
                    LabRow(name="1 layer", cells=[estimate(0.2071, 0.0011), estimate(0.207, None, 1), None]),
                    LabRow(name="2 layers", cells=[estimate(0.1312, 0.0042), estimate(0.155), estimate(0.11)]),
                ],
                note="GD++ has no first layer of its own.",
            )
        ],
        notes=["Depth 5 was trained for half the steps."],
    )


def phases() -> LabStudy:
    """No claims; least squares that falls to rounding on a log axis."""
    falling: list[float | None] = [math.exp(-0.3 * place) for place in range(1, 21)]
    return study(
        "phases",
        question="Which exact predictor is a transformer nearest to, by depth?",
        answer="",
        charts=[
            chart(
                *(curve(f"depth {n}", [f * 1.1**-n for f in falling if f is not None], 0.02) for n in (1, 2, 4, 8)),
                curve("least squares", [*falling[:9], *([1e-30] * 11)], None, reference=True),
                curve("ridge, lambda = sigma^2/tau^2", [1.1 * (f or 0) for f in falling], None, reference=True),
                log_y=True,
            )
        ],
    )


def layers() -> LabStudy:
    """More curves than there are colours to tell apart at a glance."""
    names = ("softmax", "linear-attention", "momentum", "delta", "gated-delta", "longhorn", "mesa", "ttt-linear")
    return study(
        "layers",
        question="Do layers made for gradient descent at inference do it better?",
        answer="Mesa does; the others lie between.",
        claims=[claim("Mesa is ridge regression.", estimate(2.2e-15, None, 1))],
        charts=[
            chart(
                *(
                    curve(name, [math.exp(-(0.05 + 0.02 * place) * seen) for seen in range(24)], 0.03)
                    for place, name in enumerate((*names, "titans"))
                ),
                curve("least squares", [1.0, *[math.exp(-0.3 * seen) for seen in range(1, 24)]], reference=True),
                curve("Bayes", [1.0, *[math.exp(-0.35 * seen) for seen in range(1, 24)]], reference=True),
                title="Loss by number of examples",
            )
        ],
    )

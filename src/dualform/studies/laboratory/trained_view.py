"""Charts and tables of the study `trained`."""

from collections.abc import Callable

from dualform.lab.predictors import DescentPlusPlus, Zero
from dualform.lab.self_attention import PredictFunction
from dualform.result import Estimate
from dualform.studies.laboratory.claims import ratios
from dualform.studies.laboratory.result import LabChart, LabCurve, LabRow, LabTable
from dualform.studies.laboratory.trained_measured import (
    ARCHITECTURES,
    FIVE,
    INTERPOLATED,
    LINEAR,
    Architecture,
    Kind,
    TrainedMeasurements,
    beside,
    between_loss,
    construction,
    counterparts,
    descent_name,
)
from dualform.studies.seed_statistics import over_seeds

SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(11))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def trained_charts(found: TrainedMeasurements) -> list[LabChart]:
    """Training, interpolation, and inputs of another scale; none without a curve."""
    charts = [
        _while_training(found, "loss"),
        _while_training(found, "cosine"),
        _between(found),
        *(_by_scale(found, architecture) for architecture in LINEAR),
    ]
    return [chart for chart in charts if chart.curves]


def trained_tables(found: TrainedMeasurements) -> list[LabTable]:
    """Losses, and distances to descent."""
    return [_losses(found), _beside_descent(found)]


def _while_training(found: TrainedMeasurements, what: str) -> LabChart:
    curves = []
    for architecture, models in found.models.items():
        kind, steps = construction(architecture), models.at[-1]
        by_time = []
        for time in range(len(models.at)):
            values = []
            for seed, new in found.new.items():
                ask, few = found.model(architecture, seed, time).ask, new.charted
                values.append(few.loss(ask) if what == "loss" else beside(ask, found.best[kind], few).cosine)
            by_time.append(over_seeds(values))
        curves.append(LabCurve(name=architecture.name, x=[at / steps for at in models.at], y=by_time))
    if what == "loss":
        for kind, loss in found.descent.items():
            y = [over_seeds(loss)] * 2
            curves.append(LabCurve(name=descent_name(kind), x=[0.0, 1.0], y=y, reference=True))
    return LabChart(
        title="Loss while training" if what == "loss" else "Cosine of sensitivities while training",
        x="share of the training steps",
        y="half the mean squared error" if what == "loss" else "cosine of dy/dx to the construction's",
        log_y=what == "loss",
        curves=curves,
        note=""
        if what == "loss"
        else "Compared with one step of GD for one layer, and with as many steps of GD++ as there are layers for more.",
    )


def _between(found: TrainedMeasurements) -> LabChart:
    return LabChart(
        title="Between trained and constructed weights",
        x="share of the constructed weights",
        y="half the mean squared error",
        log_y=True,
        curves=[
            LabCurve(
                name=f"{architecture.name} to {descent_name(construction(architecture))}",
                x=list(SHARES),
                y=[over_seeds(between_loss(found, architecture, share)) for share in SHARES],
            )
            for architecture in INTERPOLATED
            if architecture in found.models
        ],
        note="Products P W_V and W_K^T W_Q of each layer are interpolated, once the trained ones are rescaled so that "
        "the diagonal of W_K^T W_Q over the inputs has mean 1, as in the construction.",
    )


def _by_scale(found: TrainedMeasurements, architecture: Architecture) -> LabChart:
    few = {seed: new.charted for seed, new in found.new.items()}

    def curve(name: str, ask: Callable[[int], PredictFunction], reference: bool) -> LabCurve:
        losses = [over_seeds([new.scaled(scale).loss(ask(seed)) for seed, new in few.items()]) for scale in SCALES]
        return LabCurve(name=name, x=list(SCALES), y=losses, reference=reference)

    def descent(kind: Kind) -> LabCurve:
        return curve(descent_name(kind), lambda seed: found.best[kind], reference=True)

    own = [architecture] if architecture in found.models else []
    return LabChart(
        title=f"Inputs of another scale: {architecture.name}",
        x="scale of the inputs, over that in training",
        y="half the mean squared error",
        log_y=True,
        curves=[
            *(curve(one.name, lambda seed: found.model(architecture, seed).ask, reference=False) for one in own),
            *(descent(kind) for kind in counterparts(architecture)),
        ],
        note="Rates (and gamma) are those that are best at scale 1.",
    )


def _losses(found: TrainedMeasurements) -> LabTable:
    def median(predictor: PredictFunction) -> Estimate:
        return over_seeds([new.median_loss(predictor) for new in found.new.values()])

    rows = [
        LabRow(name=one.name, cells=[over_seeds(found.loss[one]), over_seeds(found.median[one]), None, None])
        if one in found.models
        else LabRow(name=one.name, cells=[None] * 4)
        for one in ARCHITECTURES
    ]
    for kind, loss in found.descent.items():
        best = found.best[kind]
        gamma = over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None
        rows.append(
            LabRow(name=descent_name(kind), cells=[over_seeds(loss), median(best), over_seeds([best.rate]), gamma])
        )
    rows.append(_row_for_median(found))
    zero = over_seeds([new.loss(Zero()) for new in found.new.values()])
    rows.append(LabRow(name=Zero().name, cells=[zero, median(Zero()), None, None]))
    return LabTable(
        title="Loss on new tasks",
        columns=["half the mean squared error", "that of the median task", "best rate", "best gamma"],
        rows=rows,
        note="Trained models and descent on the same tasks, each seed with its own. Descent's steps share one rate "
        "(and gamma), the best on average over other tasks, and in one row on the median of these.",
    )


def _row_for_median(found: TrainedMeasurements) -> LabRow:
    best = found.for_median
    return LabRow(
        name=f"{descent_name(construction(FIVE))}, best on the median task",
        cells=[
            over_seeds([new.loss(best) for new in found.new.values()]),
            over_seeds(found.descent_median),
            over_seeds([best.rate]),
            over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None,
        ],
    )


def _beside_descent(found: TrainedMeasurements) -> LabTable:
    rows = []
    for architecture in ARCHITECTURES:
        for kind in counterparts(architecture):
            cells: list[Estimate | None] = [None] * 4
            if architecture in found.models:
                seeds = found.beside[architecture, kind]
                cells = [
                    over_seeds([one.prediction for one in seeds]),
                    over_seeds([one.cosine for one in seeds]),
                    over_seeds([one.sensitivity for one in seeds]),
                    over_seeds(ratios(found.loss[architecture], found.descent[kind])),
                ]
            rows.append(LabRow(name=f"{architecture.name}, and {descent_name(kind)}", cells=cells))
    return LabTable(
        title="Trained models and descent",
        columns=[
            "L2 distance of predictions",
            "cosine of sensitivities",
            "L2 distance of sensitivities",
            "ratio of mean losses",
        ],
        rows=rows,
        note="Sensitivity: dy/dx, how the prediction moves with the query's input. Means over new tasks.",
    )

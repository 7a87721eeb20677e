"""Charts and tables of the study `trained`."""

from collections.abc import Mapping

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
    between_loss,
    construction,
    counterparts,
    descent_name,
    prediction_distance,
)
from dualform.studies.seed_statistics import over_seeds

SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(11))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def trained_charts(measurements: TrainedMeasurements) -> list[LabChart]:
    """Charts of training, interpolated weights and scaled inputs; charts without a curve are left out."""
    charts = [
        _while_training(measurements, "loss"),
        _while_training(measurements, "cosine"),
        _between(measurements),
        *(_by_scale(measurements, architecture) for architecture in LINEAR),
    ]
    return [chart for chart in charts if chart.curves]


def trained_tables(measurements: TrainedMeasurements) -> list[LabTable]:
    """Tables of losses and of distances to gradient descent."""
    return [_losses(measurements), _distances_to_descent(measurements)]


def _while_training(measurements: TrainedMeasurements, what: str) -> LabChart:
    curves = []
    for architecture, models in measurements.models.items():
        kind, steps = construction(architecture), models.at[-1]
        by_time = []
        for time in range(len(models.at)):
            values = []
            for seed, new in measurements.new.items():
                predict, few = measurements.model(architecture, seed, time).predict, new.charted
                if what == "loss":
                    values.append(few.loss(predict))
                else:
                    values.append(prediction_distance(predict, measurements.best[kind], few).cosine)
            by_time.append(over_seeds(values))
        curves.append(LabCurve(name=architecture.name, x=[at / steps for at in models.at], y=by_time))
    if what == "loss":
        for kind, loss in measurements.descent.items():
            y = [over_seeds(loss)] * 2
            curves.append(LabCurve(name=descent_name(kind), x=[0.0, 1.0], y=y, reference=True))
    return LabChart(
        title="Loss during training" if what == "loss" else "Cosine of derivatives dy/dx during training",
        x="share of the training steps",
        y="half the mean squared error" if what == "loss" else "cosine of dy/dx between model and construction",
        log_y=what == "loss",
        curves=curves,
        note=""
        if what == "loss"
        else "One layer is compared with one step of GD, more layers with as many steps of GD++.",
    )


def _between(measurements: TrainedMeasurements) -> LabChart:
    return LabChart(
        title="Between trained and constructed weights",
        x="share of the constructed weights",
        y="half the mean squared error",
        log_y=True,
        curves=[
            LabCurve(
                name=f"{architecture.name} to {descent_name(construction(architecture))}",
                x=list(SHARES),
                y=[over_seeds(between_loss(measurements, architecture, share)) for share in SHARES],
            )
            for architecture in INTERPOLATED
            if architecture in measurements.models
        ],
        note="The products P W_V and W_K^T W_Q of each layer are interpolated. The trained ones are first rescaled so "
        "that the diagonal of W_K^T W_Q over the inputs has mean 1, as in the construction.",
    )


def _by_scale(measurements: TrainedMeasurements, architecture: Architecture) -> LabChart:
    new_tasks = {seed: new.charted for seed, new in measurements.new.items()}

    def curve(name: str, predictors: Mapping[int, PredictFunction], reference: bool) -> LabCurve:
        y = [
            over_seeds([new.scaled(scale).loss(predictors[seed]) for seed, new in new_tasks.items()])
            for scale in SCALES
        ]
        return LabCurve(name=name, x=list(SCALES), y=y, reference=reference)

    def descent(kind: Kind) -> LabCurve:
        return curve(descent_name(kind), dict.fromkeys(new_tasks, measurements.best[kind]), reference=True)

    own = []
    if architecture in measurements.models:
        models = {seed: measurements.model(architecture, seed).predict for seed in new_tasks}
        own = [curve(architecture.name, models, reference=False)]
    return LabChart(
        title=f"Inputs of another scale: {architecture.name}",
        x="scale of the inputs, relative to training",
        y="half the mean squared error",
        log_y=True,
        curves=[*own, *(descent(kind) for kind in counterparts(architecture))],
        note="Descent uses the rates (and gamma) that are best at scale 1.",
    )


def _losses(measurements: TrainedMeasurements) -> LabTable:
    def median(predictor: PredictFunction) -> Estimate:
        return over_seeds([new.median_loss(predictor) for new in measurements.new.values()])

    rows = []
    for architecture in ARCHITECTURES:
        cells: list[Estimate | None] = [None] * 4
        if architecture in measurements.models:
            cells[:2] = [over_seeds(measurements.loss[architecture]), over_seeds(measurements.median[architecture])]
        rows.append(LabRow(name=architecture.name, cells=cells))
    for kind, loss in measurements.descent.items():
        best = measurements.best[kind]
        gamma = over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None
        rows.append(
            LabRow(name=descent_name(kind), cells=[over_seeds(loss), median(best), over_seeds([best.rate]), gamma])
        )
    rows.append(_row_for_median(measurements))
    zero = over_seeds([new.loss(Zero()) for new in measurements.new.values()])
    rows.append(LabRow(name=Zero().name, cells=[zero, median(Zero()), None, None]))
    return LabTable(
        title="Loss on new tasks",
        columns=["half the mean squared error", "on the median task", "best rate", "best gamma"],
        rows=rows,
        note="Trained models and gradient descent on the same tasks; each seed has its own. All steps of descent share "
        "one rate (and gamma), which was chosen on other tasks: for the least mean loss, in one row for the least loss "
        "on the median task.",
    )


def _row_for_median(measurements: TrainedMeasurements) -> LabRow:
    best = measurements.for_median
    return LabRow(
        name=f"{descent_name(construction(FIVE))}, best on the median task",
        cells=[
            over_seeds([new.loss(best) for new in measurements.new.values()]),
            over_seeds(measurements.descent_median),
            over_seeds([best.rate]),
            over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None,
        ],
    )


def _distances_to_descent(measurements: TrainedMeasurements) -> LabTable:
    rows = []
    for architecture in ARCHITECTURES:
        for kind in counterparts(architecture):
            cells: list[Estimate | None] = [None] * 4
            if architecture in measurements.models:
                distances = measurements.distances[architecture, kind]
                cells = [
                    over_seeds([distance.prediction for distance in distances]),
                    over_seeds([distance.cosine for distance in distances]),
                    over_seeds([distance.sensitivity for distance in distances]),
                    over_seeds(ratios(measurements.loss[architecture], measurements.descent[kind])),
                ]
            rows.append(LabRow(name=f"{architecture.name}, and {descent_name(kind)}", cells=cells))
    return LabTable(
        title="Trained models and gradient descent",
        columns=[
            "L2 distance of predictions",
            "cosine of dy/dx",
            "L2 distance of dy/dx",
            "ratio of mean losses",
        ],
        rows=rows,
        note="dy/dx is the derivative of the prediction with respect to the query's input. Means over new tasks.",
    )

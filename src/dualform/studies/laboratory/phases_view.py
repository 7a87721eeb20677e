"""Charts and tables of the study `phases`."""

from collections.abc import Sequence

import torch

from dualform.lab.decoder import Decoders, InContextPredictor
from dualform.lab.predictor_distance import implied_weights
from dualform.ops.streams import stream
from dualform.studies.laboratory.causal_transformers import TransformerShape, distance
from dualform.studies.laboratory.claims import geometric
from dualform.studies.laboratory.curves import LEAST_SHOWN, exact_curve, seed_curve
from dualform.studies.laboratory.phases_compared import DEPTHS, WIDTHS, PhaseComparison, widest
from dualform.studies.laboratory.result import LabChart, LabCurve, LabRow, LabTable
from dualform.studies.laboratory.ridge_strength import RidgeProfile
from dualform.studies.seed_statistics import over_seeds

CONTEXTS = 256
"""In which implied weights are compared."""


def phases_charts(
    silent: Sequence[PhaseComparison], noisy: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]
) -> list[LabChart]:
    """Distances by examples, depth and strength of ridge, and losses."""
    return [
        *(_distance_by_points(one) for one in (*widest(silent)[:: len(DEPTHS) - 1], *noisy[-1:])),
        *(_distance_by_depth(silent, width) for width in WIDTHS),
        _profile_chart(noisy, profiles),
        _loss_chart("Loss by examples in context, no noise", widest(silent)),
        *(_loss_chart(f"Loss by examples in context, noise {one.shape.noise:g}", [one]) for one in noisy),
    ]


def phases_tables(
    silent: Sequence[PhaseComparison],
    noisy: Sequence[PhaseComparison],
    models: dict[TransformerShape, Decoders],
    profiles: dict[TransformerShape, RidgeProfile],
) -> list[LabTable]:
    """Distances between predictions, and between the weights that they imply."""
    return [
        _distances(silent, profiles, "Distance between predictions (SPD), no noise"),
        _distances(noisy, profiles, "Distance between predictions (SPD), with noise"),
        _implied(models, silent, "Distance between implied weights (ILWD), no noise"),
        _implied(models, noisy, "Distance between implied weights (ILWD), with noise"),
    ]


def _distance_by_points(one: PhaseComparison) -> LabChart:
    points = [float(n) for n in range(1, one.own.shape[-1])]
    return LabChart(
        title=f"Distance to each predictor by examples in context, {one.shape.name}",
        x="examples in context",
        y="SPD, in units of the mean square of y",
        log_y=True,
        curves=[seed_curve(name, points, distance(one.own, exact)[:, 1:]) for name, exact in one.exact.items()],
        note="Rates of SGD and descent are those that predict best over all points of other sequences."
        + " Least squares peaks where there are as many examples as dimensions, if y is noisy." * bool(one.shape.noise),
    )


def _distance_by_depth(silent: Sequence[PhaseComparison], width: int) -> LabChart:
    rows = [one for one in silent if one.shape.width == width]
    return LabChart(
        title=f"Distance to each predictor by depth, width {width}, no noise",
        x="layers",
        y="SPD, in units of the mean square of y",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=name, x=[float(one.shape.layers) for one in rows], y=[over_seeds(one.spd(name)) for one in rows]
            )
            for name in rows[0].exact
        ],
        note="Mean over points with an example before them.",
    )


def _profile_chart(noisy: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]) -> LabChart:
    return LabChart(
        title="Distance to ridge by its strength, with noise",
        x="lambda over sigma^2 / tau^2",
        y="SPD, in units of the clean mean square of y",
        log_x=True,
        log_y=True,
        curves=[
            seed_curve(
                one.shape.name,
                [strength / one.theory for strength in profiles[one.shape].strengths],
                profiles[one.shape].apart.T,
            )
            for one in noisy
        ],
        note="Theory says that it is least at 1.",
    )


def _loss_chart(title: str, rows: Sequence[PhaseComparison]) -> LabChart:
    points = [float(n) for n in range(rows[0].own.shape[-1])]
    clean = rows[0].sequences.clean
    return LabChart(
        title=title,
        x="examples in context",
        y="squared error to the clean y, in units of its mean square",
        log_y=True,
        curves=[
            *(seed_curve(one.shape.name, points, distance(one.own, clean)) for one in rows),
            *(
                exact_curve(name, points, (exact - clean).square().mean(0).tolist(), LEAST_SHOWN)
                for name, exact in rows[0].exact.items()
                if not name.startswith("ridge")
            ),
        ],
        note=f"Errors below {LEAST_SHOWN:g} are drawn there.",
    )


def _distances(rows: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile], title: str) -> LabTable:
    return LabTable(
        title=title,
        columns=[*rows[0].exact, "lambda of the nearest ridge", "SPD to it", "loss"],
        rows=[
            LabRow(
                name=one.shape.name,
                cells=[
                    *(over_seeds(one.spd(name)) for name in one.exact),
                    geometric(profiles[one.shape].nearest),
                    over_seeds(profiles[one.shape].apart.amin(0).tolist()),
                    over_seeds(distance(one.own, one.sequences.clean)[:, 1:].mean(1).tolist()),
                ],
            )
            for one in rows
        ],
        note="Means over points with an example before them; the loss is the squared error to the clean y. Lambdas "
        f"are averaged as logarithms, intervals too.{''.join(_bounds(rows, profiles))}",
    )


def _bounds(rows: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]) -> list[str]:
    """A sentence for each row whose nearest ridge is at the end of the strengths that were tried."""
    return [
        f" Of {one.shape.name} lambda is {profiles[one.shape].bound.strip()} the number here: no "
        f"{'weaker' if profiles[one.shape].at_most else 'stronger'} ridge was tried than that nearest in some seed."
        for one in rows
        if profiles[one.shape].bound
    ]


def _implied(models: dict[TransformerShape, Decoders], rows: Sequence[PhaseComparison], title: str) -> LabTable:
    table = []
    for one in rows:
        x, y = one.sequences.x[:CONTEXTS, :-1], one.sequences.y[:CONTEXTS, :-1]
        asked = torch.randn(len(x), 4 * x.shape[-1], x.shape[-1], generator=stream("queries", 0), dtype=x.dtype)
        own = [
            implied_weights(InContextPredictor(one.shape.name, models[one.shape].only(seed))(x, y, asked), asked)
            for seed in models[one.shape].seeds
        ]
        exact = [implied_weights(predictor(x, y, asked), asked) for predictor in one.predictors.values()]
        apart = [[float((w - v).square().sum(-1).mean()) for w in own] for v in exact]
        table.append(LabRow(name=one.shape.name, cells=[over_seeds(of) for of in apart]))
    return LabTable(
        title=title,
        columns=list(rows[0].predictors),
        rows=table,
        note="Squared distance of the weights that fit predictions best, after all examples, each from predictions at "
        f"four times as many inputs as dimensions, in {CONTEXTS} contexts.",
    )

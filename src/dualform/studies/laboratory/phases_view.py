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
"""Number of contexts in which implied weights are compared."""


def phases_charts(
    noiseless: Sequence[PhaseComparison],
    noisy: Sequence[PhaseComparison],
    profiles: dict[TransformerShape, RidgeProfile],
) -> list[LabChart]:
    """Charts of distances by number of examples, depth and strength of ridge, and of losses."""
    return [
        *(_distance_by_points(comparison) for comparison in (*widest(noiseless)[:: len(DEPTHS) - 1], *noisy[-1:])),
        *(_distance_by_depth(noiseless, width) for width in WIDTHS),
        _profile_chart(noisy, profiles),
        _loss_chart("Loss by examples in context, no noise", widest(noiseless)),
        *(
            _loss_chart(f"Loss by examples in context, noise {comparison.shape.noise:g}", [comparison])
            for comparison in noisy
        ),
    ]


def phases_tables(
    noiseless: Sequence[PhaseComparison],
    noisy: Sequence[PhaseComparison],
    models: dict[TransformerShape, Decoders],
    profiles: dict[TransformerShape, RidgeProfile],
) -> list[LabTable]:
    """Tables of distances between predictions, and between the weights that they imply."""
    return [
        _distances(noiseless, profiles, "Distance between predictions (SPD), no noise"),
        _distances(noisy, profiles, "Distance between predictions (SPD), with noise"),
        _implied(models, noiseless, "Distance between implied weights (ILWD), no noise"),
        _implied(models, noisy, "Distance between implied weights (ILWD), with noise"),
    ]


def _distance_by_points(comparison: PhaseComparison) -> LabChart:
    points = [float(n) for n in range(1, comparison.own.shape[-1])]
    return LabChart(
        title=f"Distance to each predictor by examples in context, {comparison.shape.name}",
        x="examples in context",
        y="SPD, in units of the mean square of y",
        log_y=True,
        curves=[
            seed_curve(name, points, distance(comparison.own, exact)[:, 1:]) for name, exact in comparison.exact.items()
        ],
        note="The rates of SGD and descent are the best ones over all points of other sequences."
        + " With noisy y, least squares peaks where there are as many examples as dimensions."
        * bool(comparison.shape.noise),
    )


def _distance_by_depth(noiseless: Sequence[PhaseComparison], width: int) -> LabChart:
    rows = [comparison for comparison in noiseless if comparison.shape.width == width]
    return LabChart(
        title=f"Distance to each predictor by depth, width {width}, no noise",
        x="layers",
        y="SPD, in units of the mean square of y",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=name,
                x=[float(comparison.shape.layers) for comparison in rows],
                y=[over_seeds(comparison.spd(name)) for comparison in rows],
            )
            for name in rows[0].exact
        ],
        note="Mean over all points but the first.",
    )


def _profile_chart(noisy: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]) -> LabChart:
    return LabChart(
        title="Distance to ridge by its strength, with noise",
        x="lambda divided by sigma^2 / tau^2",
        y="SPD, in units of the mean square of the clean y",
        log_x=True,
        log_y=True,
        curves=[
            seed_curve(
                comparison.shape.name,
                [strength / comparison.theory for strength in profiles[comparison.shape].strengths],
                profiles[comparison.shape].distances.T,
            )
            for comparison in noisy
        ],
        note="In theory the minimum is at 1.",
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
            *(seed_curve(comparison.shape.name, points, distance(comparison.own, clean)) for comparison in rows),
            *(
                exact_curve(name, points, (exact - clean).square().mean(0).tolist(), LEAST_SHOWN)
                for name, exact in rows[0].exact.items()
                if not name.startswith("ridge")
            ),
        ],
        note=f"Errors below {LEAST_SHOWN:g} are drawn at {LEAST_SHOWN:g}.",
    )


def _distances(rows: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile], title: str) -> LabTable:
    return LabTable(
        title=title,
        columns=[*rows[0].exact, "lambda of the nearest ridge", "SPD to it", "loss"],
        rows=[
            LabRow(
                name=comparison.shape.name,
                cells=[
                    *(over_seeds(comparison.spd(name)) for name in comparison.exact),
                    geometric(profiles[comparison.shape].nearest),
                    over_seeds(profiles[comparison.shape].distances.amin(0).tolist()),
                    over_seeds(distance(comparison.own, comparison.sequences.clean)[:, 1:].mean(1).tolist()),
                ],
            )
            for comparison in rows
        ],
        note="Means over all points but the first; the loss is the squared error to the clean y. Means and intervals "
        f"of lambda are geometric.{''.join(_bounds(rows, profiles))}",
    )


def _bounds(rows: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]) -> list[str]:
    """A sentence for each row whose nearest ridge is at an end of the grid of strengths."""
    sentences = []
    for comparison in rows:
        profile = profiles[comparison.shape]
        if profile.bound:
            end = "weakest" if profile.at_most else "strongest"
            sentences.append(
                f" For {comparison.shape.name} lambda is {profile.bound.strip()} the value given: in some seed "
                f"the {end} ridge of the grid was nearest."
            )
    return sentences


def _implied(models: dict[TransformerShape, Decoders], rows: Sequence[PhaseComparison], title: str) -> LabTable:
    table = []
    for comparison in rows:
        x, y = comparison.sequences.x[:CONTEXTS, :-1], comparison.sequences.y[:CONTEXTS, :-1]
        queries = torch.randn(len(x), 4 * x.shape[-1], x.shape[-1], generator=stream("queries", 0), dtype=x.dtype)
        own = [
            implied_weights(
                InContextPredictor(comparison.shape.name, models[comparison.shape].only(seed))(x, y, queries), queries
            )
            for seed in models[comparison.shape].seeds
        ]
        exact = [implied_weights(predictor(x, y, queries), queries) for predictor in comparison.predictors.values()]
        distances = [[float((w - v).square().sum(-1).mean()) for w in own] for v in exact]
        table.append(LabRow(name=comparison.shape.name, cells=[over_seeds(values) for values in distances]))
    return LabTable(
        title=title,
        columns=list(rows[0].predictors),
        rows=table,
        note="Squared distance between the weights that fit the predictions best, after all examples. The weights are "
        f"fitted at four times as many query inputs as dimensions, in {CONTEXTS} contexts.",
    )

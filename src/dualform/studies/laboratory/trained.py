"""Does self-attention, trained on in-context regression, do gradient descent on the examples?

Trained linear self-attention is compared with as many steps of gradient descent as it has layers, on new tasks:
predictions, their derivatives with respect to the query, weights interpolated between the two, and inputs larger or
smaller than in training.

Source:
    arXiv:2212.07677v2, section 3 and appendix A, with the setting of the authors' released code: d = N = 10, inputs
    uniform in (-0.5, 0.5), weights of variance 1, loss half the mean squared error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from dualform.errors import TrainingError
from dualform.lab.in_context_training import QUERIES, TrainedModels, self_attention_training, train_together
from dualform.lab.regression_tasks import RegressionTasks
from dualform.result import Estimate
from dualform.studies.laboratory.claims import claim_in_seeds, ratios
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.result import Claim, LabStudy
from dualform.studies.laboratory.trained_measured import (
    ANCHORS,
    ARCHITECTURES,
    FIVE,
    ONE,
    SOFTMAX,
    TWO,
    Architecture,
    Kind,
    TrainedMeasurements,
    best_rates,
    between_loss,
    construction,
    descent_name,
    median_rates,
    new_tasks,
    tasks_of,
)
from dualform.studies.laboratory.trained_view import trained_charts, trained_tables
from dualform.studies.pieces import PieceContent, PieceStore, load_or_make
from dualform.studies.seed_statistics import over_seeds

SOURCE = "arXiv:2212.07677, section 3"
WITHIN = 0.01
"""Tolerance for a trained layer's loss, as a share of what one step of descent gains on predicting 0. (A tolerance
relative to the loss itself would be met by any predictor where a step gains little.) A step at c times the best rate
deviates by (c - 1)^2 in this unit, so that the tolerance corresponds to a rate that is wrong by a tenth."""
WRONG = 1.5
"""This multiple of the best rate must be distinguished from it: its loss deviates by a quarter of the gain, 25 times
`WITHIN`. At twice the best rate the loss would be that of predicting 0."""
COSINE = 0.99
"""Least mean cosine of sensitivities at which two predictors count as the same."""
ANCHORED_WITHIN = 0.02
"""Relative tolerance for `ANCHORS`. The rounding of 0.051 accounts for 1 %, and rare tasks with large errors of GD++
move the mean over tens of thousands by another."""
KEPT = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Shares of the training after which a model is measured, besides the end."""
_Advance = Callable[[float, str], None]


def pieces(config: RegressionConfig) -> int:
    """Number of trainings; each trains all seeds at once."""
    return len(ARCHITECTURES)


def trained(config: RegressionConfig, store: PieceStore, advance: _Advance = lambda amount, doing: None) -> LabStudy:
    """Train each architecture and compare it with gradient descent.

    Args:
        config: Settings of the laboratory.
        store: Stores each finished training.
        advance: Called with 1 after each training.
    """
    tasks = tasks_of(config)
    models, failed = {}, []
    for architecture in ARCHITECTURES:
        outcome = _models(config, store, architecture, tasks)
        if isinstance(outcome, str):
            failed.append(f"{architecture.name}: {outcome} It is left out.")
        else:
            models[architecture] = outcome
        advance(1.0, architecture.name)
    new = {seed: new_tasks("test", seed, tasks) for seed in config.seeds}
    best = best_rates(tasks)
    measurements = TrainedMeasurements(config, models, best, median_rates(tasks, best[construction(FIVE)]), new)
    claims = [*_anchors(measurements), *_claims(measurements), *_must_fail_claims(measurements)]
    return LabStudy(
        name="trained",
        question="Does self-attention that is trained on in-context regression do gradient descent?",
        answer=_answer(measurements),
        claims=claims,
        charts=trained_charts(measurements),
        tables=trained_tables(measurements),
        notes=failed + _notes(measurements),
    )


def _models(
    config: RegressionConfig, store: PieceStore, architecture: Architecture, tasks: RegressionTasks
) -> TrainedModels | str:
    """Trained models of all seeds, or the error message of a failed training, which does not stop the others."""
    shape, steps = architecture.config(tasks.dimension), config.scaled(architecture.steps)
    keep = sorted({round(share * steps) for share in KEPT} | {steps})
    inputs = (
        f"{shape} {tasks} {steps} {keep} {architecture.learning_rate} {architecture.batch} {QUERIES} {config.seeds}"
    )

    def make() -> PieceContent:
        training = self_attention_training(steps, architecture.batch, architecture.learning_rate)
        try:
            return train_together(shape, tasks, training, config.seeds, keep=keep).weights, {"failed": ""}
        except TrainingError as error:
            return {}, {"failed": str(error)}

    piece = load_or_make(store, architecture.name, inputs, make)
    if piece.about["failed"]:
        return str(piece.about["failed"])
    return TrainedModels(shape, config.seeds, tuple(keep), piece.tensors)


def _anchors(measurements: TrainedMeasurements) -> list[Claim]:
    """Claims about the losses of gradient descent in the paper's setting; none in another setting."""
    if (measurements.config.dimension, measurements.config.points) != (10, 10):
        return []
    # More tasks than for the models, because rare ones dominate the mean of GD++.
    tasks = tasks_of(measurements.config)
    losses: dict[Kind, list[float]] = {kind: [] for kind in ANCHORS}
    for seed in measurements.new:
        new = new_tasks("anchors", seed, tasks, many=True)
        for kind in ANCHORS:
            losses[kind].append(new.loss(measurements.best[kind]))
    claims = []
    for kind, anchor in ANCHORS.items():
        loss = over_seeds(losses[kind])
        claims.append(
            Claim(
                says=f"{descent_name(kind)}, with the best shared rate{' and gamma' if kind[1] else ''}, has the same "
                "loss as in the paper's released code.",
                expected=f"{anchor} within {ANCHORED_WITHIN:.0%}, half the mean squared error, mean over seeds",
                found=loss,
                holds=abs(_mean_of(loss) / anchor - 1) <= ANCHORED_WITHIN,
                source=SOURCE,
            )
        )
    return claims


def _claims(measurements: TrainedMeasurements) -> list[Claim]:
    two, five = construction(TWO), construction(FIVE)
    midway = between_loss(measurements, ONE, 0.5)
    return [
        _same_loss(
            "A trained linear layer has the same loss as one optimal step of gradient descent.",
            measurements.excess(measurements.loss.get(ONE, []), measurements.best[1, False]),
        ),
        _same_direction(
            "The derivative of a trained linear layer's prediction with respect to the query is that of one step of "
            "gradient descent.",
            measurements.cosine(ONE),
        ),
        _no_higher(
            f"{TWO.name}, trained: the mean loss is no higher than that of {descent_name(two)}.",
            ratios(measurements.loss.get(TWO, []), measurements.descent[two]),
        ),
        # The median, because the deepest model may explode on one sequence in thousands.
        _no_higher(
            f"{FIVE.name}, trained: the loss on the median task is no higher than that of {descent_name(five)} with "
            "the rate and gamma that are best on the median task.",
            ratios(measurements.median.get(FIVE, []), measurements.descent_median),
        ),
        _same_loss(
            "Weights halfway between a trained linear layer's and the construction's also have the loss of the step.",
            measurements.excess(midway, measurements.best[1, False], charted=True),
        ),
    ]


def _must_fail_claims(measurements: TrainedMeasurements) -> list[Claim]:
    """Cases that are not gradient descent; a comparison that passed them too would be no evidence."""
    best = measurements.best[1, False]
    permuted = []
    if ONE in measurements.models:
        permuted = [
            new.permuted().loss(measurements.model(ONE, seed).predict) for seed, new in measurements.new.items()
        ]
    return [
        _same_direction(
            "The derivative of a trained softmax layer's prediction with respect to the query is that of one step of "
            "gradient descent.",
            measurements.cosine(SOFTMAX),
            must_fail=True,
        ),
        _same_loss(
            f"A trained linear layer has the same loss as one step of gradient descent at {WRONG:g} times the best "
            "rate.",
            measurements.excess(measurements.loss.get(ONE, []), replace(best, rate=WRONG * best.rate)),
            must_fail=True,
        ),
        _same_loss(
            "A trained linear layer whose context pairs each y with another example's x has the same loss as one "
            "optimal step of gradient descent.",
            measurements.excess(permuted, best),
            must_fail=True,
        ),
    ]


def _same_loss(says: str, excess: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"difference of losses, at most {WITHIN:.0%} of what the best step gains on predicting 0"
    return _in_every_seed(says, expected, excess, [abs(value) <= WITHIN for value in excess], must_fail)


def _no_higher(says: str, ratios: Sequence[float]) -> Claim:
    expected = f"ratio of losses, at most {1 + WITHIN:g}"
    return _in_every_seed(says, expected, ratios, [ratio <= 1 + WITHIN for ratio in ratios])


def _same_direction(says: str, cosines: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"mean cosine of dy/dx, at least {COSINE}"
    return _in_every_seed(says, expected, cosines, [cosine >= COSINE for cosine in cosines], must_fail)


def _in_every_seed(
    says: str, expected: str, values: Sequence[float], met: Sequence[bool], must_fail: bool = False
) -> Claim:
    expected = f"{expected}, in {'any' if must_fail else 'every'} seed"
    return claim_in_seeds(says, expected, values, met, must_fail=must_fail, source=SOURCE)


def _mean_of(estimate: Estimate) -> float:
    return math.nan if estimate.mean is None else estimate.mean


def _seed_mean(values: Sequence[float]) -> float:
    return _mean_of(over_seeds(values))


def _answer(measurements: TrainedMeasurements) -> str:
    sentences = []
    if ONE in measurements.models:
        ratio = _seed_mean(ratios(measurements.loss[ONE], measurements.descent[1, False]))
        sentences.append(
            f"One trained linear layer has {ratio:.3f} times the mean loss of one optimal step of gradient descent, "
            f"and a cosine of {_seed_mean(measurements.cosine(ONE)):.3f} between their derivatives dy/dx."
        )
    if SOFTMAX in measurements.models:
        sentences.append(f"For a trained softmax layer this cosine is {_seed_mean(measurements.cosine(SOFTMAX)):.3f}.")
    if TWO in measurements.models:
        kind = construction(TWO)
        own, descent = _seed_mean(measurements.loss[TWO]), _seed_mean(measurements.descent[kind])
        sentences.append(
            f"Two recurrent layers have mean loss {own:.3f}, compared with {descent:.3f} for {descent_name(kind)}."
        )
    if FIVE in measurements.models:
        own, descent = _seed_mean(measurements.median[FIVE]), _seed_mean(measurements.descent_median)
        sentences.append(
            f"Five layers have loss {own:.3f} on the median task, compared with {descent:.3f} for "
            f"{descent_name(construction(FIVE))}."
        )
    failed = [architecture.name for architecture in ARCHITECTURES if architecture not in measurements.models]
    if failed:
        sentences.append(f"Without numbers, because their training failed: {'; '.join(failed)}.")
    return " ".join(sentences)


def _notes(measurements: TrainedMeasurements) -> list[str]:
    steps = ", ".join(
        f"{architecture.name} {measurements.config.scaled(architecture.steps):,} of {architecture.batch}"
        for architecture in ARCHITECTURES
    )
    notes = [
        f"Training steps, and sequences in each step: {steps}, with {QUERIES} queries a sequence. The paper's "
        "released code takes 10,000 steps of 512 sequences with one query by default.",
        "W_Q starts as a copy of W_K. With independent draws about a quarter of the seeds stayed on a plateau for "
        "thousands of steps, because some directions of W_K^T W_Q had the wrong sign.",
    ]
    for architecture, losses in measurements.loss.items():
        far = sum(loss > 10 * median for loss, median in zip(losses, measurements.median[architecture], strict=True))
        if far:
            notes.append(
                f"{architecture.name}: for {far} of {len(losses)} models the mean loss is more than ten times the loss "
                "on the median task. A few sequences with exploding predictions dominate the mean."
            )
    if measurements.config.steps < 1:
        notes.append(
            f"Trained for {measurements.config.steps:g} of the usual steps, so that claims about trained models may "
            "fail."
        )
    if (measurements.config.dimension, measurements.config.points) != (10, 10):
        notes.append(
            "The paper's losses of gradient descent are for 10 dimensions and 10 examples and are not compared here."
        )
    return notes

"""Does self-attention, trained on in-context regression, do what gradient descent on the examples does?

Trained linear self-attention is compared with as many steps of gradient descent as it has layers, on tasks that it was
not trained on: what each predicts, how the prediction moves with the query, what weights between the two do, and what
becomes of both where inputs are larger or smaller than any seen in training.

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
"""How near a trained layer's loss must come to a step of descent, as a share of what the step gains on predicting 0. A
share of the loss itself would be met by anything where a step gains little. The loss of a step at c times the best rate
is further off by (c - 1)^2, whatever the tasks, so that this much is a rate that is wrong by a tenth."""
WRONG = 1.5
"""Times the best rate is a rate that must be distinguished from it: off by a quarter of the gain, 25 times `WITHIN`. At
twice the best rate the loss would be that of predicting 0."""
COSINE = 0.99
ANCHORED_WITHIN = 0.02
"""How near descent must come to `ANCHORS`. Of 0.051 rounding alone may be 1 %, and rare tasks on which GD++ is far off
move a mean over tens of thousands by another."""
KEPT = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Shares of the training after which a model is looked at, besides the end."""
_Advance = Callable[[float, str], None]


def pieces(config: RegressionConfig) -> int:
    """Trainings, each of all seeds at once."""
    return len(ARCHITECTURES)


def trained(config: RegressionConfig, store: PieceStore, advance: _Advance = lambda amount, doing: None) -> LabStudy:
    """Train every architecture, and compare it with descent.

    Args:
        config: Seeds, dimension, points, and the share of the steps that is taken.
        store: Keeps each finished training.
        advance: Called with 1 as each is done.
    """
    tasks = tasks_of(config)
    models, failed = {}, []
    for architecture in ARCHITECTURES:
        done = _models(config, store, architecture, tasks)
        if isinstance(done, str):
            failed.append(f"{architecture.name}: {done} It is left out.")
        else:
            models[architecture] = done
        advance(1.0, architecture.name)
    new = {seed: new_tasks("test", seed, tasks) for seed in config.seeds}
    best = best_rates(tasks)
    found = TrainedMeasurements(config, models, best, median_rates(tasks, best[construction(FIVE)]), new)
    claims = [*_anchors(found), *_claims(found), *_failing(found)]
    return LabStudy(
        name="trained",
        question="Does self-attention that is trained on in-context regression do gradient descent?",
        answer=_answer(found),
        claims=claims,
        charts=trained_charts(found),
        tables=trained_tables(found),
        notes=failed + _notes(found),
    )


def _models(
    config: RegressionConfig, store: PieceStore, architecture: Architecture, tasks: RegressionTasks
) -> TrainedModels | str:
    """Models of all seeds; or why there are none, which must not keep the other architectures from having theirs."""
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


def _anchors(found: TrainedMeasurements) -> list[Claim]:
    """Descent's own losses, where the paper's code has them."""
    if (found.config.dimension, found.config.points) != (10, 10):
        return []
    # Many more tasks than models are measured on, for the sake of the rare ones.
    tasks = tasks_of(found.config)
    losses: dict[Kind, list[float]] = {kind: [] for kind in ANCHORS}
    for seed in found.new:
        new = new_tasks("anchors", seed, tasks, many=True)
        for kind in ANCHORS:
            losses[kind].append(new.loss(found.best[kind]))
    claims = []
    for kind, anchor in ANCHORS.items():
        loss = over_seeds(losses[kind])
        claims.append(
            Claim(
                says=f"{descent_name(kind)}, with the best shared rate{' and gamma' if kind[1] else ''}, has the loss "
                "that it has in the paper's released code.",
                expected=f"{anchor} within {ANCHORED_WITHIN:.0%}, half the mean squared error, mean over seeds",
                found=loss,
                holds=abs(_mean_of(loss) / anchor - 1) <= ANCHORED_WITHIN,
                source=SOURCE,
            )
        )
    return claims


def _claims(found: TrainedMeasurements) -> list[Claim]:
    two, five = construction(TWO), construction(FIVE)
    midway = between_loss(found, ONE, 0.5)
    return [
        _same_loss(
            "A trained linear layer has the loss of one optimal step of gradient descent.",
            found.off(found.loss.get(ONE, []), found.best[1, False]),
        ),
        _same_direction(
            "A trained linear layer's prediction moves with the query as that of one step of gradient descent.",
            found.cosine(ONE),
        ),
        _no_higher(
            f"{TWO.name}, trained: the mean loss is that of {descent_name(two)}, or lower.",
            ratios(found.loss.get(TWO, []), found.descent[two]),
        ),
        # The deepest model, which multiplies what it reads five times over, may explode on one sequence in thousands.
        _no_higher(
            f"{FIVE.name}, trained: on the median task the loss is that of {descent_name(five)} with the rate and "
            "gamma that are best on the median task, or lower.",
            ratios(found.median.get(FIVE, []), found.descent_median),
        ),
        _same_loss(
            "Weights halfway between a trained linear layer's and the construction's have the loss of the step too.",
            found.off(midway, found.best[1, False], charted=True),
        ),
    ]


def _failing(found: TrainedMeasurements) -> list[Claim]:
    """Cases that are not gradient descent: a comparison that passed them too would say nothing."""
    best = found.best[1, False]
    permuted = []
    if ONE in found.models:
        permuted = [new.permuted().loss(found.model(ONE, seed).ask) for seed, new in found.new.items()]
    return [
        _same_direction(
            "A softmax layer, trained alike: its prediction moves with the query as that of one step of gradient "
            "descent.",
            found.cosine(SOFTMAX),
            must_fail=True,
        ),
        _same_loss(
            f"A trained linear layer has the loss of one step of gradient descent at {WRONG:g} times the best rate.",
            found.off(found.loss.get(ONE, []), replace(best, rate=WRONG * best.rate)),
            must_fail=True,
        ),
        _same_loss(
            "A trained linear layer has the loss of one optimal step of gradient descent although each y in its "
            "context is paired with another's x.",
            found.off(permuted, best),
            must_fail=True,
        ),
    ]


def _same_loss(says: str, off: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"a loss off by at most {WITHIN:.0%} of what the best step gains on predicting 0"
    return _in_every_seed(says, expected, off, [abs(one) <= WITHIN for one in off], must_fail)


def _no_higher(says: str, ratios: Sequence[float]) -> Claim:
    return _in_every_seed(
        says, f"a ratio of losses of at most {1 + WITHIN:g}", ratios, [one <= 1 + WITHIN for one in ratios]
    )


def _same_direction(says: str, cosines: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"a mean cosine of dy/dx of {COSINE} or more"
    return _in_every_seed(says, expected, cosines, [one >= COSINE for one in cosines], must_fail)


def _in_every_seed(
    says: str, expected: str, values: Sequence[float], met: Sequence[bool], must_fail: bool = False
) -> Claim:
    expected = f"{expected}, in {'any' if must_fail else 'every'} seed"
    return claim_in_seeds(says, expected, values, met, must_fail=must_fail, source=SOURCE)


def _mean_of(found: Estimate) -> float:
    return math.nan if found.mean is None else found.mean


def _answer(found: TrainedMeasurements) -> str:
    sentences = []
    if ONE in found.models:
        ratio = _mean_of(over_seeds(ratios(found.loss[ONE], found.descent[1, False])))
        sentences.append(
            f"One trained linear layer has {ratio:.3f} times the mean loss of one optimal step of gradient descent, "
            f"and its sensitivities have cosine {_mean_of(over_seeds(found.cosine(ONE))):.3f} to that step's."
        )
    if SOFTMAX in found.models:
        sentences.append(f"A softmax layer's have cosine {_mean_of(over_seeds(found.cosine(SOFTMAX))):.3f} to it.")
    if TWO in found.models:
        own, theirs = (_mean_of(over_seeds(one)) for one in (found.loss[TWO], found.descent[construction(TWO)]))
        sentences.append(
            f"Mean loss of two recurrent layers: {own:.3f}, against {theirs:.3f} of {descent_name(construction(TWO))}, "
            "best on average."
        )
    if FIVE in found.models:
        own, theirs = (_mean_of(over_seeds(one)) for one in (found.median[FIVE], found.descent_median))
        sentences.append(
            f"Loss of five layers on the median task: {own:.3f}, against {theirs:.3f} of "
            f"{descent_name(construction(FIVE))}, best on the median task."
        )
    dead = [one.name for one in ARCHITECTURES if one not in found.models]
    if dead:
        sentences.append(f"Without numbers, as their training failed: {'; '.join(dead)}.")
    return " ".join(sentences)


def _notes(found: TrainedMeasurements) -> list[str]:
    steps = ", ".join(f"{one.name} {found.config.scaled(one.steps):,} of {one.batch}" for one in ARCHITECTURES)
    notes = [
        f"Steps of training, and sequences of each: {steps}, with {QUERIES} queries a sequence. The paper's "
        "released code takes 10,000 steps of 512 with one query, by default.",
        "W_Q begins as a copy of W_K. Where each was drawn by itself, about a quarter of seeds stayed for thousands of "
        "steps where some directions of W_K^T W_Q had the wrong sign.",
    ]
    for architecture, losses in found.loss.items():
        far = sum(loss > 10 * median for loss, median in zip(losses, found.median[architecture], strict=True))
        if far:
            notes.append(
                f"{architecture.name}: of {far} of {len(losses)} models the mean loss is over ten times the median "
                "task's. A few sequences on which what layers multiply explodes make up most of it."
            )
    if found.config.steps < 1:
        notes.append(
            f"Trained for {found.config.steps:g} of the usual steps: claims about trained models may not hold."
        )
    if (found.config.dimension, found.config.points) != (10, 10):
        notes.append("The paper's losses of descent are for 10 dimensions and 10 examples, and are not compared with.")
    return notes

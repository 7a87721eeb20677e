"""Finetuning without a backward pass: gradients are estimated from losses at two points on a random line."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, TrainingError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.finetuned import require_learning_rate
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import RandomDirection, WeightChange, Work, encode, read
from dualform.models.editing.edit import WeightDelta, applied, key_value_rows
from dualform.models.loading.offloading import runs_on
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import row_axis


@dataclass(frozen=True)
class MezoAtRate:
    """Zeroth-order SGD on W_K and W_V of every layer, with two forward passes per step and no gradients.

    A step draws z ~ N(0, 1) for every trained weight, and moves by -learning_rate * g * z, where
    g = (L(theta + epsilon z) - L(theta - epsilon z)) / (2 epsilon) estimates the slope of the loss L along z. L is the
    mean negative log-probability of the answers' tokens. z is not stored but drawn again from the same generator
    state. Learning rate 0 gives zero-shot, bit for bit.

    Source:
        MeZO (memory-efficient SPSA), arXiv:2305.17333, section 2, definition 1 and algorithm 1, with the same epsilon.
        The paper changes all weights in place; here only W_K and W_V change, through temporary deltas, so that theta
        is restored exactly. The paper takes 20,000 steps or more with batches of 16 or 64; the defaults here suit a few
        dozen demonstrations and a few minutes.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    epsilon: float = 1e-3
    """Distance in either direction at which the loss is evaluated, in units of z."""
    steps: int = 100
    seed: int = 0
    """Seed of directions and batches."""
    batch: int | None = 8
    """Number of demonstrations in a step, drawn without replacement in each step; None for all."""
    name: str = "fold"

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)
        mistakes = []
        if not 0 < self.epsilon < math.inf:
            mistakes.append(f"epsilon {self.epsilon} must be above 0, and finite")
        if self.steps < 0:
            mistakes.append(f"steps {self.steps} must be 0 or more")
        if self.batch is not None and self.batch < 1:
            mistakes.append(f"batch {self.batch} must be at least 1, or None for all demonstrations")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    @torch.no_grad()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Take the steps, with weight changes applied only during forward passes.

        Returns:
            The adapted model. Its `losses` are the means of the two losses of each step, which equal the loss before
            the step up to terms in epsilon squared.

        Raises:
            TrainingError: A loss or weight became NaN or infinite; the message names rate and step.
            ModelError: W_K and W_V were not found in this model.
        """
        start = time.perf_counter()
        weights = _zero_deltas(lm)
        generator = torch.Generator().manual_seed(self.seed)
        examples = _as_queries(demonstrations)
        losses: list[float] = []
        work = Work()
        for step in range(1, self.steps + 1 if examples else 1):
            batch = examples
            if self.batch is not None and self.batch < len(examples):
                batch = [
                    examples[i]
                    for i in sorted(torch.randperm(len(examples), generator=generator).tolist()[: self.batch])
                ]
            weights, loss = self._stepped(lm, batch, weights, generator, step)
            losses.append(loss)
            work += read(batch, 0) * 2
        if not all(torch.isfinite(change.delta).all() for change in weights):
            raise TrainingError(f"learning rate {self.learning_rate:g}: the weights became infinite. Use a lower one.")
        # Keys and values of the opening depend on the weights.
        with applied(lm.model, weights):
            prefix = lm.encode(self.opening)
        cost = AdaptationCost.of(work, lm.shape, time.perf_counter() - start)
        return AdaptedModel(self.name, lm, prefix, cost, weights, tuple(losses))

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Reading a batch twice per step; for random batches, the expected work."""
        examples = _as_queries(demonstrations)
        opening = (encode(len(self.opening)) + Work.of(WeightChange())).uncharged
        if not examples:
            return opening
        share = min(self.batch or len(examples), len(examples)) / len(examples)
        # A direction is drawn three times: for both sides, and for the step.
        moving = (Work.of(RandomDirection()) * 3 + Work.of(WeightChange()) * 2).uncharged
        return (read(examples, 0) * (2 * share) + moving) * self.steps + opening

    def _stepped(
        self,
        lm: LanguageModel,
        batch: Sequence[Query],
        weights: tuple[WeightDelta, ...],
        generator: torch.Generator,
        step: int,
    ) -> tuple[tuple[WeightDelta, ...], float]:
        """The weights after a step, and the loss before it."""
        state = generator.get_state()

        def along(by: float) -> tuple[WeightDelta, ...]:
            generator.set_state(state)
            return _moved(weights, by, generator)

        slope, loss = slope_and_mean(lambda by: self._loss(lm, batch, along(by), step), self.epsilon)
        return along(-self.learning_rate * slope), loss

    def _loss(self, lm: LanguageModel, examples: Sequence[Query], deltas: Sequence[WeightDelta], step: int) -> float:
        where = f"at step {step} of {self.steps}"
        try:
            loss = _mean_loss(lm, examples, deltas)
        except NumericalError as error:
            raise TrainingError(f"{self._rate}: the loss is nan {where}. Use a lower one.") from error
        if not math.isfinite(loss):
            raise TrainingError(f"{self._rate}: the loss is {loss} {where}. Use a lower one.")
        return loss

    @property
    def _rate(self) -> str:
        return f"learning rate {self.learning_rate:g}"


@dataclass(frozen=True)
class MezoTrials:
    """Trials of several learning rates on the same demonstrations, with the same directions."""

    best: AdaptedModel
    """The model trained at the chosen rate; its cost does not include the search."""
    learning_rate: float
    final_losses: dict[float, float]
    """Rate -> loss on all demonstrations with the final weights, nats per token; NaN if training diverged."""


@dataclass(frozen=True)
class Mezo:
    """`MezoAtRate` at the learning rate with the lowest final loss on the demonstrations, without further labels."""

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rates: tuple[float, ...] = (1e-7, 1e-6, 1e-5)
    """Rates to try; ties go to the lower one. They must be much lower than for finetuning, because a step moves
    millions of weights at once."""
    epsilon: float = 1e-3
    """As in `MezoAtRate`."""
    steps: int = 100
    """As in `MezoAtRate`."""
    seed: int = 0
    """As in `MezoAtRate`."""
    batch: int | None = 8
    """As in `MezoAtRate`."""
    name: str = "fold"

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise ConfigError("learning_rates is empty: give at least one")
        for rate in self.learning_rates:
            self._at(rate)

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train at the best rate; see `search`.

        Raises:
            TrainingError: Every rate diverged.
            ModelError: W_K and W_V were not found in this model.
        """
        if len(self.learning_rates) == 1:
            return self._at(self.learning_rates[0]).adapt(lm, demonstrations)
        return self.search(lm, demonstrations).best

    @torch.no_grad()
    def search(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> MezoTrials:
        """Try every rate, in ascending order.

        Raises:
            TrainingError: Every rate diverged.
            ModelError: W_K and W_V were not found in this model.
        """
        examples = _as_queries(demonstrations)
        final_losses: dict[float, float] = {}
        best: tuple[float, float, AdaptedModel] | None = None
        for rate in sorted(set(self.learning_rates)):
            final_losses[rate] = math.nan
            try:
                adapted = self._at(rate).adapt(lm, demonstrations)
                loss = _mean_loss(lm, examples, adapted.deltas)
            except NumericalError:
                continue
            if not math.isfinite(loss):
                continue
            final_losses[rate] = loss
            if best is None or loss < best[0]:
                best = loss, rate, adapted
        if best is None:
            rates = ", ".join(f"{rate:g}" for rate in final_losses)
            raise TrainingError(f"the loss diverged at every learning rate ({rates}). Give lower ones.")
        _, rate, adapted = best
        return MezoTrials(adapted, rate, final_losses)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Training at one rate; further rates and their final losses are overhead."""
        rates = len(set(self.learning_rates))
        once = self._at(self.learning_rates[0]).work(shape, demonstrations)
        if rates == 1:
            return once
        losses = read(_as_queries(demonstrations), 0) * rates
        return once + (once * (rates - 1) + losses).uncharged

    def _at(self, rate: float) -> MezoAtRate:
        return MezoAtRate(self.opening, rate, self.epsilon, self.steps, self.seed, self.batch, self.name)


def slope_and_mean(loss_at: Callable[[float], float], epsilon: float) -> tuple[float, float]:
    """Central difference of a loss along a direction, and the mean of the two losses.

    Args:
        loss_at: The loss as a function of the distance along the direction.
        epsilon: Distance of the two points, above 0.

    Returns:
        The slope at 0, with an error of epsilon^2 / 6 times the third derivative (exact for quadratic functions); and
        the mean of both losses.

    Source:
        SPSA as in arXiv:2305.17333, definition 1: the projected gradient.
    """
    above, below = loss_at(epsilon), loss_at(-epsilon)
    return (above - below) / (2 * epsilon), (above + below) / 2


def demonstration_loss(
    lm: LanguageModel, demonstrations: EncodedDemonstrations, deltas: Sequence[WeightDelta] = ()
) -> float:
    """Mean negative log-probability of the answers' tokens, nats per token, with each demonstration read alone.

    Averaged over the tokens of each demonstration, then over demonstrations; NaN without demonstrations.

    Args:
        lm: The model.
        demonstrations: The demonstrations.
        deltas: Weight changes to apply.

    Raises:
        NumericalError: A log-probability is NaN.
    """
    return _mean_loss(lm, _as_queries(demonstrations), deltas)


def _mean_loss(lm: LanguageModel, examples: Sequence[Query], deltas: Sequence[WeightDelta]) -> float:
    with torch.no_grad(), applied(lm.model, deltas):
        scores = lm.log_probabilities(lm.encode(()), examples)
    return -float(scores.mean())


def _as_queries(demonstrations: EncodedDemonstrations) -> list[Query]:
    """The demonstrations as queries: opening and prompt, with the demonstrated answer as the only one."""
    return [
        Query(ids[:-n_answer], (ids[-n_answer:],))
        for ids, n_answer in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    ]


def _zero_deltas(lm: LanguageModel) -> tuple[WeightDelta, ...]:
    """Zero changes of every weight and bias in the rows of W_K and W_V, in a fixed order."""

    def deltas() -> Iterator[WeightDelta]:
        for module_name, index in key_value_rows(lm.model, lm.anatomy).items():
            module = lm.model.get_submodule(module_name)
            for kind, axis in (("weight", row_axis(module)), ("bias", 0)):
                parameter = getattr(module, kind, None)
                if parameter is None:
                    continue
                shape = list(parameter.shape)
                if index is not None:
                    shape[axis] = len(index)
                zeros = torch.zeros(shape, dtype=torch.float32, device=runs_on(module))
                yield WeightDelta(f"{module_name}.{kind}", axis, index, zeros)

    return tuple(deltas())


def _moved(weights: Sequence[WeightDelta], by: float, generator: torch.Generator) -> tuple[WeightDelta, ...]:
    """Move every weight by `by` times z, where z is drawn for one parameter after the other."""

    def step(change: WeightDelta) -> Tensor:
        # Drawn on the CPU, so that a seed gives the same directions on every device.
        z = torch.randn(change.delta.shape, generator=generator, dtype=torch.float32)
        return change.delta + by * z.to(change.delta.device)

    return tuple(replace(change, delta=step(change)) for change in weights)

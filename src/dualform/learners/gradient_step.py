"""One explicit step of gradient descent on a linear layer, written into the weight that keeps it.

For models of the laboratory, whose inputs and targets are known: the step is taken on them alone, and nothing of it
comes from attention. What attention to the same demonstrations does can then be laid beside it.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.finetuned import require_learning_rate
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.loading.offloading import weight_of
from dualform.models.reading.capture import stack_layers
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import forward_rows, observing_attention
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch


@dataclass(frozen=True)
class _LinearStep:
    """A step of least squares on a linear layer."""

    tokens: float
    examples: int
    weights: int
    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """Prediction, and the gradient's outer products."""
        return 4.0 * self.examples * self.weights


@dataclass(frozen=True)
class GradientStep:
    """W <- W - eta dL/dW at W_0, with L = 1 / 2N sum_i ||W x_i - y_i||^2 over the demonstrations.

    x_i is the vector of a demonstration's last prompt token, y_i that of its label word.

    Source:
        The step of arXiv:2212.07677v2, section 2.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    rate: float
    """eta."""
    parameter: str
    """Full name of the weight in which W is kept."""
    rows: slice
    """Where in it: W's output features."""
    columns: slice
    """And its input features."""
    inputs: Tensor
    """x of every token, `(vocab, d)`."""
    targets: Tensor
    """y of every token, `(vocab, d_y)`."""
    name: str = "gd"

    def __post_init__(self) -> None:
        require_learning_rate(self.rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Take the step; attention queries at the demonstrations' tokens are recorded as finetuning does.

        Raises:
            ConfigError: There are no demonstrations, or an answer is not one token.
        """
        start = time.perf_counter()
        if not demonstrations.sequences or set(demonstrations.n_answer_tokens) != {1}:
            raise ConfigError(
                "a gradient step needs demonstrations with answers of one token each; given "
                f"{len(demonstrations.sequences)}, with {sorted(set(demonstrations.n_answer_tokens))} tokens. "
                "Give one at least, and label words that are single tokens."
            )
        weight = weight_of(lm.model, self.parameter)
        W = weight[self.rows, self.columns].clone().requires_grad_()
        pairs = torch.tensor([ids[-2:] for ids in demonstrations.sequences])
        x, y = self.inputs[pairs[:, 0]].to(W), self.targets[pairs[:, 1]].to(W)
        loss = (x @ W.mT - y).square().sum() / (2 * len(pairs))
        (gradient,) = torch.autograd.grad(loss, W)
        # In the weight's own precision: the likeness to context is checked to its last digits.
        delta = torch.zeros_like(weight)
        delta[self.rows, self.columns] = -self.rate * gradient
        deltas = (WeightDelta(self.parameter, 0, None, delta),)
        training_q = self._queries(lm, demonstrations)
        with applied(lm.model, deltas):
            prefix = lm.encode(self.opening)
        seconds = time.perf_counter() - start
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, seconds)
        return AdaptedModel(self.name, lm, prefix, cost, deltas, (float(loss.detach()),), training_q)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The step alone: the demonstrations are read by the model to record attention queries, not to learn."""
        tokens = sum(map(len, demonstrations.sequences))
        return Work.of(_LinearStep(tokens, len(demonstrations.sequences), self.inputs.shape[1] * self.targets.shape[1]))

    def _queries(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> Tensor:
        """At every token of `content`, each sequence read alone, `(layer, demo_pos, head, d_head)`."""
        found = []
        for number, ids in enumerate(demonstrations.sequences):
            layers: dict[int, Tensor] = {}

            def keep(layer: int, query: Tensor, key: Tensor, value: Tensor, into: dict[int, Tensor] = layers) -> None:
                into[layer] = query

            tokens = torch.tensor([ids], device=lm.device)
            with observing_attention(lm.model, lm.anatomy, keep):
                forward_rows(lm.model, tokens.new_tensor([len(ids) - 1]), input_ids=tokens, use_cache=False)
            opening = len(ids) - demonstrations.demonstration_of.count(number)
            queries = [layers[i][:, opening:].transpose(0, 1) for i in range(len(lm.anatomy.layers))]
            found.append(stack_layers(queries, dim=0))
        return torch.cat(found, dim=1)

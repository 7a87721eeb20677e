"""One explicit step of gradient descent on a linear layer, applied to the weight that stores it.

For models of the laboratory, whose inputs and targets are known. The step does not use attention, so it can be compared
with what attention to the same demonstrations does.
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
from dualform.models.reading.forward import observing_attention, run_layers
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch


@dataclass(frozen=True)
class _LinearStep:
    """A gradient step of least squares on a linear layer."""

    tokens: float
    examples: int
    weights: int
    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """Predictions, and outer products of the gradient."""
        return 4.0 * self.examples * self.weights


@dataclass(frozen=True)
class GradientStep:
    """W <- W - eta dL/dW at W_0, with L = 1 / 2N sum_i ||W x_i - y_i||^2 over the demonstrations.

    x_i is the vector of a demonstration's last prompt token, y_i that of its label word.

    Source:
        arXiv:2212.07677v2, section 2.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    rate: float
    """eta."""
    parameter: str
    """Full name of the weight that contains W."""
    rows: slice
    """Rows of W in that weight (output features)."""
    columns: slice
    """Columns of W in that weight (input features)."""
    inputs: Tensor
    """Vector x of every token, `(vocab, d)`."""
    targets: Tensor
    """Vector y of every token, `(vocab, d_y)`."""
    name: str = "gd"

    def __post_init__(self) -> None:
        require_learning_rate(self.rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Take the step, and record attention queries at the demonstrations' tokens as in finetuning.

        Raises:
            ConfigError: There are no demonstrations, or an answer has more than one token.
        """
        start = time.perf_counter()
        if not demonstrations.sequences or set(demonstrations.n_answer_tokens) != {1}:
            raise ConfigError(
                "a gradient step needs demonstrations with answers of one token each; given: "
                f"{len(demonstrations.sequences)} demonstrations, with answers of "
                f"{sorted(set(demonstrations.n_answer_tokens))} tokens. Give at least one demonstration, and label "
                "words that are single tokens."
            )
        weight = weight_of(lm.model, self.parameter)
        W = weight[self.rows, self.columns].clone().requires_grad_()
        pairs = torch.tensor([ids[-2:] for ids in demonstrations.sequences])
        x, y = self.inputs[pairs[:, 0]].to(W), self.targets[pairs[:, 1]].to(W)
        loss = (x @ W.mT - y).square().sum() / (2 * len(pairs))
        (gradient,) = torch.autograd.grad(loss, W)
        # In the weight's own precision, because tests compare the step with in-context learning to the last digits.
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
        """The step only: the model's forwards serve to record attention queries, not to learn."""
        tokens = sum(map(len, demonstrations.sequences))
        return Work.of(_LinearStep(tokens, len(demonstrations.sequences), self.inputs.shape[1] * self.targets.shape[1]))

    def _queries(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> Tensor:
        """Attention queries at every token of `content`, `(layer, demo_pos, head, d_head)`; sequences read alone."""
        sequences = []
        for number, ids in enumerate(demonstrations.sequences):
            layers: dict[int, Tensor] = {}

            def keep(layer: int, query: Tensor, key: Tensor, value: Tensor, into: dict[int, Tensor] = layers) -> None:
                into[layer] = query

            tokens = torch.tensor([ids], device=lm.device)
            with observing_attention(lm.model, lm.anatomy, keep):
                run_layers(lm.model, input_ids=tokens, use_cache=False)
            opening = len(ids) - demonstrations.demonstration_of.count(number)
            queries = [layers[i][:, opening:].transpose(0, 1) for i in range(len(lm.anatomy.layers))]
            sequences.append(stack_layers(queries, dim=0))
        return torch.cat(sequences, dim=1)

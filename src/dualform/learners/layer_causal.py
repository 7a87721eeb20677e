"""Layer-causal gradient descent: each layer is trained on its own output only."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptedModel
from dualform.learners.finetuned import LossOn, require_learning_rate, token_loss, train, trained_model
from dualform.learners.training_work import training_work
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.editing.edit import KeyValueTraining
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.models.structure.blocks import Blocks, find_blocks


@dataclass(frozen=True)
class LayerCausal:
    """W_K and W_V of every layer, each trained on the loss of the layer's own output after unembedding.

    No gradient flows from a layer to an earlier one, just as in a prompt information flows only from lower to higher
    layers. Everything else is as in `Finetuned`: demonstrations, order, tokens in the loss, SGD, one pass, batch size
    1. `AdaptedModel.losses` are the last layer's, which are the model's own.

    Source:
        LCGD, arXiv:2311.07772v4, "Layer Causality". As in the released code, all layers see one forward with the
        weights from before the step, take their step together, and are unembedded through the final norm.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    """Choose it separately: a rate that suits finetuning may not suit this learner."""
    loss_on: LossOn = "all"
    name: str = "lcgd"
    moved: int | None = None
    """As in `Finetuned`."""

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, compute the weight changes, and restore the weights.

        Raises:
            TrainingError: A loss became NaN or infinite; the message names rate and step.
            ModelError: W_K and W_V were not found in this model, or its logits cannot be computed layer by layer.
        """
        start = time.perf_counter()
        blocks = find_blocks(lm.model, lm.anatomy)
        with KeyValueTraining(lm.model, lm.anatomy) as training:
            if self.moved is not None:
                training.move_by_rounding_(torch.Generator().manual_seed(self.moved))
            optimiser = torch.optim.SGD(training.parameters, lr=self.learning_rate)
            losses, training_q = train(
                lm,
                demonstrations,
                optimiser,
                self.loss_on,
                self.learning_rate,
                losses_of=partial(layer_losses, blocks),
            )
            deltas = training.deltas()
        seconds = time.perf_counter() - start
        return trained_model(self, lm, demonstrations, deltas, losses, seconds, training_q)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """A training step for every demonstration, with a loss for every layer."""
        return training_work(demonstrations, self.loss_on, opening=len(self.opening), layer_causal=True)


def layer_losses(
    blocks: Blocks, lm: LanguageModel, tokens: Tensor, learned: Tensor, watch: AbstractContextManager[None]
) -> Iterator[Tensor]:
    """Each layer's own loss, last layer first, from one forward pass.

    The graph of each loss ends at its layer's input, so the gradients are separate. The logits of only one layer are
    in memory at a time.

    Args:
        blocks: Blocks of the model.
        lm: The model.
        tokens: One sequence, `(1, pos)`.
        learned: Positions of the tokens in the loss, `(learned,)`.
        watch: Context in which to run the forward pass.

    Yields:
        Mean cross-entropy of these tokens, nats per token.
    """
    with blocks.detached() as outputs, watch:
        logits, _ = forward_rows(lm.model, learned - 1, gradients=True, input_ids=tokens, use_cache=False)
    targets = tokens[0, learned]
    last = token_loss(logits, targets)
    # Free a layer's logits and graph before the next layer.
    del logits
    outputs.pop()
    yield last
    del last
    while outputs:
        with torch.enable_grad():
            loss = token_loss(blocks.unembed(outputs.pop()[0, learned - 1]), targets)
        yield loss
        del loss

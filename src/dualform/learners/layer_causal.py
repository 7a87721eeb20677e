"""Layer-causal gradient descent: each layer learns from its own output alone, as context can only work."""

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
    """W_K and W_V of every layer, each trained on the loss that the layer's own output has when it is unembedded.

    A layer's input is cut off from what came before, so that no gradient flows from a layer to an earlier one; in a
    prompt, too, information only flows upwards. All else is as in `Finetuned`: same demonstrations, order, tokens
    learned, SGD, one pass, batch of one. `AdaptedModel.losses` are the last layer's, which are the model's own.

    Source:
        LCGD, arXiv:2311.07772v4, "Layer Causality". As in the released code, all layers see one forward with the
        weights from before the step, take their step together, and are unembedded through the final norm.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    """To be chosen for itself: the rate that suits finetuning need not suit this."""
    loss_on: LossOn = "all"
    name: str = "lcgd"
    moved: int | None = None
    """As in `Finetuned`."""

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, read off the deltas, put the weights back.

        Raises:
            TrainingError: A loss became NaN or infinite; the message names rate and step.
            ModelError: W_K and W_V of this model are not known, or its logits cannot be computed layer by layer.
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
        """A step on every demonstration, with a loss of every layer."""
        return training_work(demonstrations, self.loss_on, opening=len(self.opening), layer_causal=True)


def layer_losses(
    blocks: Blocks, lm: LanguageModel, tokens: Tensor, learned: Tensor, watch: AbstractContextManager[None]
) -> Iterator[Tensor]:
    """Each layer's own loss, last layer first, from one forward.

    Their gradients are apart by construction: the graph of each ends at its layer's input. Logits of one layer at a
    time are held.

    Args:
        blocks: Of the model.
        lm: The model.
        tokens: One sequence, `(1, pos)`.
        learned: Positions of the tokens to be predicted, `(learned,)`.
        watch: A block to run the forward in.

    Yields:
        Mean cross-entropy of the learned tokens, nats.
    """
    with blocks.detached() as outputs, watch:
        logits, _ = forward_rows(lm.model, learned - 1, gradients=True, input_ids=tokens, use_cache=False)
    targets = tokens[0, learned]
    last = token_loss(logits, targets)
    # Held here, a layer's logits and graph would outlive its turn.
    del logits
    outputs.pop()
    yield last
    del last
    while outputs:
        with torch.enable_grad():
            loss = token_loss(blocks.unembed(outputs.pop()[0, learned - 1]), targets)
        yield loss
        del loss

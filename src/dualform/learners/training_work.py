"""The work of one training pass over the demonstrations, and the tokens in its loss."""

from dualform.learners.options import LossOn
from dualform.models.cost.work import (
    FINDING_BLOCKS,
    TrainedWeights,
    Training,
    WeightChange,
    Work,
    encode,
    short_forwards,
)
from dualform.models.reading.encoding import EncodedDemonstrations


def training_work(
    demonstrations: EncodedDemonstrations,
    loss_on: LossOn = "all",
    weights: TrainedWeights = "key_value",
    *,
    opening: int,
    layer_causal: bool = False,
) -> Work:
    """Work of one training pass over the demonstrations, and of reading the opening with the changed weights.

    Args:
        demonstrations: The training sequences.
        loss_on: Which tokens count in the loss.
        weights: The weights that are trained.
        opening: Number of tokens before every query.
        layer_causal: Every layer has its own loss, for which the blocks must be found first.
    """
    steps = [
        Training(len(ids), len(learned_positions(ids, n, loss_on)), weights, layer_causal)
        for ids, n in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    ]
    blocks = short_forwards(FINDING_BLOCKS if layer_causal else 0)
    return Work.of(*steps) + blocks + (encode(opening) + Work.of(WeightChange())).uncharged


def learned_positions(ids: tuple[int, ...], n_answer: int, loss_on: LossOn) -> range:
    """Positions of the tokens in the loss; the first token cannot be predicted."""
    return range(1 if loss_on == "all" else max(1, len(ids) - n_answer), len(ids))

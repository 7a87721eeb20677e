"""What one pass of training over the demonstrations computes, and which tokens it learns."""

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
    """One pass of training over the demonstrations, and the opening read anew with the changed weights.

    Args:
        demonstrations: In the order of training.
        loss_on: Which tokens are learned.
        weights: What is trained.
        opening: Tokens before every query.
        layer_causal: Every layer has a loss of its own, for which the blocks are found first.
    """
    steps = [
        Training(len(ids), len(learned_positions(ids, n, loss_on)), weights, layer_causal)
        for ids, n in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    ]
    blocks = short_forwards(FINDING_BLOCKS if layer_causal else 0)
    return Work.of(*steps) + blocks + (encode(opening) + Work.of(WeightChange())).uncharged


def learned_positions(ids: tuple[int, ...], n_answer: int, loss_on: LossOn) -> range:
    """Positions of the tokens to be predicted; the first token has nothing before it."""
    return range(1 if loss_on == "all" else max(1, len(ids) - n_answer), len(ids))

"""Training in epochs of shuffled batches by AdamW, the one loop of all practised finetuning.

A batch is a few padded forwards of sequences of similar length, whose gradients are summed. Its loss is the mean over
all tokens of the batch that count, so that it is the same however the batch is divided.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from dualform.errors import TrainingError
from dualform.learners.training_settings import TrainingSettings
from dualform.learners.training_work import learned_positions
from dualform.models.cost.work import BatchTraining, TrainedWeights, WeightChange, Work, encode
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.rounding import at_least_float32

MOST_TOKENS = 4096
"""Most tokens of one forward, padding included, unless a single sequence is longer."""
MOST_PADDING = 0.25
"""Most padding of one forward, as a share of its real tokens."""


def batches(n: int, settings: TrainingSettings, seed: int) -> list[tuple[int, ...]]:
    """Indices of the examples in each step; every epoch is a shuffle of all of them, its last batch may be smaller."""
    generator = random.Random(f"{seed}/batches")
    size = settings.batch_size
    steps = []
    for _ in range(settings.epochs_for(n)):
        order = generator.sample(range(n), n)
        steps += [tuple(order[first : first + size]) for first in range(0, n, size)]
    return steps


def pieces(lengths: Sequence[int], batch: Sequence[int]) -> list[list[int]]:
    """A batch divided into forwards, shortest sequences first, so that little is padded.

    Args:
        lengths: Number of tokens of every sequence.
        batch: Indices of the batch's sequences.
    """
    divided: list[list[int]] = []
    real = 0
    for index in sorted(batch, key=lambda index: (lengths[index], index)):
        padded = (len(divided[-1]) + 1) * lengths[index] if divided else 0
        if divided and padded <= MOST_TOKENS and padded <= (1 + MOST_PADDING) * (real + lengths[index]):
            divided[-1].append(index)
            real += lengths[index]
        else:
            divided.append([index])
            real = lengths[index]
    return divided


def train_in_batches(
    lm: LanguageModel,
    demonstrations: EncodedDemonstrations,
    parameters: Sequence[nn.Parameter],
    settings: TrainingSettings,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train parameters of a model on the tokens of demonstrations.

    Args:
        lm: The model.
        demonstrations: The training data.
        parameters: The trainable parameters.
        settings: Epochs, batches, schedule and loss.
        learning_rate: Largest learning rate, reached after the warm-up.
        seed: Seed of the order of the examples, and of dropout.

    Returns:
        Loss of each batch before its step, nats per token.

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    sequences = demonstrations.sequences
    learned = [
        list(learned_positions(ids, n, settings.loss_on))
        for ids, n in zip(sequences, demonstrations.n_answer_tokens, strict=True)
    ]

    def summed_loss(piece: Sequence[int]) -> Tensor:
        return _summed_loss(lm, [sequences[i] for i in piece], [learned[i] for i in piece])

    lengths, counted = [len(ids) for ids in sequences], [len(own) for own in learned]
    return minimise_in_batches(summed_loss, lengths, counted, parameters, settings, learning_rate, seed)


def minimise_in_batches(
    summed_loss: Callable[[Sequence[int]], Tensor],
    lengths: Sequence[int],
    counted: Sequence[int],
    parameters: Sequence[nn.Parameter],
    settings: TrainingSettings,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train parameters to minimise a loss, of which each sequence contributes the sum over some of its tokens.

    Args:
        summed_loss: Function from the indices of some sequences to the sum of their losses, with its graph.
        lengths: Number of tokens of every sequence.
        counted: Number of tokens of every sequence that the loss sums over.
        parameters: The trainable parameters.
        settings: Epochs, batches and schedule.
        learning_rate: Largest learning rate, reached after the warm-up.
        seed: Seed of the order of the sequences, and of dropout.

    Returns:
        Loss of each batch before its step, per counted token.

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    steps = batches(len(lengths), settings, seed)
    optimiser = torch.optim.AdamW(_groups(parameters, settings.weight_decay), lr=learning_rate)
    schedule = get_linear_schedule_with_warmup(optimiser, int(settings.warmup * len(steps)), len(steps))
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step, batch in enumerate(steps, start=1):
            optimiser.zero_grad()
            n_counted = sum(counted[index] for index in batch)
            loss = 0.0
            for piece in pieces(lengths, batch):
                part = summed_loss(piece) / n_counted
                loss += float(part.detach())
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"learning rate {learning_rate:g}: the loss is {loss} at step {step} of {len(steps)}. Use a "
                        "lower one."
                    )
                torch.autograd.backward([part], inputs=list(parameters))
            losses.append(loss)
            if settings.clip:
                nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            schedule.step()
    return losses


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameters for AdamW: matrices with weight decay, biases and norms without."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _summed_loss(lm: LanguageModel, sequences: Sequence[tuple[int, ...]], learned: Sequence[Sequence[int]]) -> Tensor:
    """Sum of the cross-entropies, nats, of the learned tokens of several sequences."""
    logits = padded_logits(lm, sequences, [[position - 1 for position in own] for own in learned])
    targets = [ids[position] for ids, own in zip(sequences, learned, strict=True) for position in own]
    return F.cross_entropy(at_least_float32(logits), torch.tensor(targets, device=logits.device), reduction="sum")


def padded_logits(
    lm: LanguageModel, sequences: Sequence[tuple[int, ...]], positions: Sequence[Sequence[int]]
) -> Tensor:
    """Next-token logits at some positions of several sequences, with their graph, in one forward padded on the right.

    Padding is behind all tokens of a sequence, so a causal model's real tokens do not see it, and their positions are
    those of the sequence alone.

    Args:
        lm: The model.
        sequences: Token ids.
        positions: Positions of each sequence, 0 for its first token.

    Returns:
        `(row, vocab)`, sequence by sequence.
    """
    longest = max(map(len, sequences))
    # Padded with each sequence's last token, because a padding token means something else in some families.
    tokens = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in sequences], device=lm.device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences], device=lm.device)
    padded = {} if bool(mask.all()) else {"attention_mask": mask}
    places = [number * longest + position for number, own in enumerate(positions) for position in own]
    rows = torch.tensor(places, device=lm.device)
    logits, _ = forward_rows(lm.model, rows, gradients=True, input_ids=tokens, use_cache=False, **padded)
    return logits


def batch_work(
    demonstrations: EncodedDemonstrations,
    settings: TrainingSettings,
    weights: TrainedWeights,
    *,
    seed: int,
    opening: int,
    rank: int = 0,
    targets: str = "",
) -> Work:
    """Work of `train_in_batches`, and of reading the opening with the changed weights.

    Args:
        demonstrations: The training data.
        settings: Epochs, batches and loss.
        weights: The weights that are trained.
        seed: Seed of the order of the examples.
        opening: Number of tokens before every query.
        rank: Rank of the adapters, for `adapters`.
        targets: Modules with adapters.
    """
    lengths = [len(ids) for ids in demonstrations.sequences]
    learned = [
        len(learned_positions(ids, n, settings.loss_on))
        for ids, n in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    ]
    steps = steps_work(lengths, learned, settings, weights, seed=seed, rank=rank, targets=targets)
    return steps + opening_work(opening)


def steps_work(
    lengths: Sequence[int],
    counted: Sequence[int],
    settings: TrainingSettings,
    weights: TrainedWeights,
    *,
    seed: int,
    rank: int = 0,
    targets: str = "",
) -> Work:
    """Work of `minimise_in_batches`, if each piece is one padded forward; see `batch_work` for the arguments."""
    steps = Counter(
        BatchTraining(len(piece), lengths[piece[-1]], sum(counted[i] for i in piece), weights, rank, targets)
        for batch in batches(len(lengths), settings, seed)
        for piece in pieces(lengths, batch)
    )
    return Work(tuple((float(times), step) for step, times in steps.items()))


def opening_work(opening: int) -> Work:
    """Overhead of reading the opening with the changed weights."""
    return (encode(opening) + Work.of(WeightChange())).uncharged

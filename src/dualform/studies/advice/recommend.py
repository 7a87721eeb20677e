"""Recommendations from answers: pure functions of which queries each learner answers rightly.

Accuracies of neighbouring budgets are averaged before learners are compared, because a learning curve is smooth and the
accuracy of one budget is noisy: the highest of several noisy numbers is too high on average, and often another
learner's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

RESAMPLES = 400
"""Bootstrap resamples behind a probability."""
HALVES = 100
"""Random halves of the queries behind a regret."""
REACH = 2.0
"""Doublings of the number of labels beyond which another budget has no weight; at one doubling it has half."""


def smoothed(accuracies: Tensor, budgets: Sequence[int]) -> Tensor:
    """Accuracies averaged with those of neighbouring budgets.

    Args:
        accuracies: `(..., budget)`.
        budgets: Numbers of labels, ascending.

    Returns:
        The same shape: each budget with weight 1, others with a weight that falls linearly with the number of
        doublings between the two, to 0 at `REACH`.
    """
    doublings = torch.tensor(budgets, dtype=accuracies.dtype).log2()
    weights = (1 - (doublings[:, None] - doublings).abs() / REACH).clamp(min=0)
    return accuracies @ (weights / weights.sum(1, keepdim=True)).T


def best_learners(right: Tensor, budgets: Sequence[int]) -> Tensor:
    """Index of the learner with the highest smoothed accuracy for each budget, `(budget,)`; the first in a tie.

    Args:
        right: 1.0 for a right answer, else 0.0, `(learner, budget, seed, example)`.
        budgets: Numbers of labels, ascending.
    """
    return smoothed(right.mean((2, 3)), budgets).argmax(0)


def probability_of_best(right: Tensor, budgets: Sequence[int], chosen: Tensor, seed: int = 0) -> Tensor:
    """Share of bootstrap resamples in which no other learner has a higher smoothed accuracy, `(budget,)`.

    Args:
        right: As in `best_learners`. Draws and queries are resampled independently, the same for all learners.
        budgets: Numbers of labels, ascending.
        chosen: The learner of each budget, `(budget,)`.
        seed: Seed of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    n_seeds, n_examples = right.shape[2:]
    wins = torch.zeros(right.shape[1], dtype=torch.float64)
    for _ in range(RESAMPLES):
        seeds = torch.randint(n_seeds, (n_seeds,), generator=generator)
        examples = torch.randint(n_examples, (n_examples,), generator=generator)
        means = smoothed(right[:, :, seeds][..., examples].mean((2, 3)), budgets)
        wins += (means.gather(0, chosen[None])[0] >= means.max(0).values).double()
    return wins / RESAMPLES


def regrets(right: Tensor, budgets: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Accuracy lost by following the advice, and by always using one learner.

    The queries are divided at random. One half gives the advice; on the other half, the loss is the accuracy of its
    best learner minus that of the advised one.

    Args:
        right: As in `best_learners`, with at least two examples.
        budgets: Numbers of labels, ascending.
        seed: Seed of the divisions.

    Returns:
        Loss of the advice, `(budget,)`, and of each learner, `(learner, budget)`, means over `HALVES` divisions.
    """
    generator = torch.Generator().manual_seed(seed)
    n = right.shape[3]
    advised = torch.zeros(right.shape[1], dtype=torch.float64)
    always = torch.zeros(right.shape[:2], dtype=torch.float64)
    for _ in range(HALVES):
        order = torch.randperm(n, generator=generator)
        first, second = right[..., order[: n // 2]], right[..., order[n // 2 :]].mean((2, 3))
        best = second.max(0).values
        advised += best - second.gather(0, best_learners(first, budgets)[None])[0]
        always += best - second
    return advised / HALVES, always / HALVES


def break_even(
    budgets: Sequence[int], prompting: Mapping[str, Tensor], training: Mapping[str, Tensor]
) -> tuple[str, str, int | None, int | None]:
    """From how many labels on training is at least as accurate as prompting.

    Args:
        budgets: Numbers of labels, ascending.
        prompting: Learner -> accuracy of each draw, `(budget, seed)`, at least one learner.
        training: The same for learners that train.

    Returns:
        The best learner of each kind with the largest budget; the first budget from which on the mean accuracy of
        training is at least that of prompting; and the same for training's mean minus its standard deviation over draws
        and prompting's mean plus its own. None if there is no such budget, or, for the second, with one draw.
    """
    # The best with the most labels, where the question is decided.
    prompt = max(prompting, key=lambda name: float(prompting[name][-1].mean()))
    trained = max(training, key=lambda name: float(training[name][-1].mean()))
    first, second = prompting[prompt], training[trained]
    means = second.mean(1) >= first.mean(1)
    spread = torch.zeros(len(budgets), dtype=torch.bool)
    if first.shape[1] > 1:
        spread = second.mean(1) - second.std(1) >= first.mean(1) + first.std(1)
    return prompt, trained, _from_then_on(budgets, means), _from_then_on(budgets, spread)


def _from_then_on(budgets: Sequence[int], holds: Tensor) -> int | None:
    """The smallest budget from which on something holds at every budget."""
    start = None
    for budget, held in zip(reversed(budgets), reversed(holds.tolist()), strict=True):
        if not held:
            break
        start = budget
    return start

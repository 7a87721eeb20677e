"""The trials of a selection study: their answers, their cost, and the tables from which choices are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform.result import Trial
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.facts import TaskDescription
from dualform.studies.selection.choosing import SETS, QuerySet, SelectOn, TrialAnswers, TrialTables
from dualform.tasks.task import Example


@dataclass(frozen=True)
class SeedTrials:
    """All trials of one demonstration seed."""

    seed: int
    rows: tuple[int, ...]
    """Row numbers of the demonstrations in the train split, in the order drawn."""
    prefix_tokens: int
    """Tokens of the prompt with all demonstrations, which an ICL trial reads once."""
    training_tokens: int
    """Tokens of the separate demonstrations, on which an FT trial trains."""
    icl: dict[QuerySet, Tensor]
    """Log-probabilities of the answers in nats, `(order, example, answer)`."""
    ft: dict[QuerySet, Tensor]
    """The same for FT at each rate of `rates`, `(rate, example, answer)`."""
    rates: tuple[float, ...]
    """Learning rates that did not diverge, in ascending order."""
    trials: tuple[Trial, ...]
    """The trials of FT, including those that diverged."""
    measures: dict[str, Tensor]
    """Each measure of ICL in the order drawn and FT at each rate, `(rate, example)`, on the queries for similarity."""


@dataclass(frozen=True)
class Budget:
    """What the searches read, in tokens of forward passes; a backward pass counts as two."""

    orders: dict[SelectOn, int]
    """Number of orders of each seed within ICL's budget, by the selecting queries."""
    icl: dict[SelectOn, dict[int, float]]
    """Tokens of all of ICL's trials with one seed, by selecting queries and seed."""
    ft: dict[SelectOn, dict[int, float]]
    """Tokens of all of FT's trials with one seed, including those that diverge."""


@dataclass(frozen=True)
class AllTrials:
    """The trials of all seeds, and the queries that they answer."""

    examples: Mapping[QuerySet, tuple[Example, ...]]
    seeds: tuple[SeedTrials, ...]
    """In the order of the seeds in the settings."""
    zsl: Tensor
    """Zero-shot log-probabilities on the report queries, `(example, answer)`."""
    budget: Budget
    facts: dict[str, Any]
    """See `Result.model`."""
    notes: tuple[str, ...]
    """Notes on the sets of queries."""

    @property
    def ascending(self) -> tuple[SeedTrials, ...]:
        """In ascending order of seeds, as in the tables."""
        return tuple(sorted(self.seeds, key=lambda trials: trials.seed))

    def tables(self, grid: Sequence[float]) -> TrialTables:
        """Correct answers and log-probabilities of all trials; `grid` holds FT's rates in ascending order."""
        labels = {
            name: torch.tensor([example.label for example in examples]) for name, examples in self.examples.items()
        }
        seeds = self.ascending
        n_orders = len(seeds[0].icl["report"])
        icl, ft = {}, {}
        finished = torch.tensor([[rate in trials.rates for rate in grid] for trials in seeds])
        for name in SETS:
            # No choice is made on untouched queries, so they have no budget of their own.
            affordable = self.budget.orders["report" if name == "untouched" else name]
            answers = torch.stack([trials.icl[name] for trials in seeds])
            compared = (torch.arange(n_orders) < affordable).expand(len(seeds), n_orders)
            icl[name] = _trial_answers(answers, labels[name], compared)
            n, width = answers.shape[2:]
            answers = torch.full((len(seeds), len(grid), n, width), -torch.inf, dtype=torch.float64)
            for index, trials in enumerate(seeds):
                answers[index, finished[index]] = trials.ft[name]
            ft[name] = _trial_answers(answers, labels[name], finished)
        first = seeds.index(self.seeds[0])
        return TrialTables(icl, ft, first, middle_index(finished[first].tolist()))


def _trial_answers(answers: Tensor, labels: Tensor, compared: Tensor) -> TrialAnswers:
    right = (answers.argmax(dim=3) == labels).double()
    at = labels.expand(answers.shape[:3])[..., None]
    return TrialAnswers(right, answers.gather(3, at)[..., 0], compared)


def middle_index(finished: Sequence[bool]) -> int:
    """The middle index (the lower of two) or the nearest finished one, first among lower rates, which diverge less."""
    middle = (len(finished) - 1) // 2
    indices = [*range(middle, -1, -1), *range(middle + 1, len(finished))]
    return next(index for index in indices if finished[index])


def trials_table(description: TaskDescription, trials: AllTrials) -> pa.Table:
    """One row for each trial and query.

    Returns:
        Columns `learner`, `seed`, `order` (null for FT), `learning_rate` (null for ICL), `set` (validation, report,
        untouched), and those of `answers_table`. Zero-shot has rows for the report queries only, with the first seed.
    """
    runs: list[tuple[str, int, int | None, float | None, QuerySet, Tensor]] = []
    runs.append(("zsl", trials.seeds[0].seed, None, None, "report", trials.zsl))
    for of_seed in trials.seeds:
        seed = of_seed.seed
        for name in SETS:
            runs += [("icl", seed, order, None, name, table) for order, table in enumerate(of_seed.icl[name])]
            ft = zip(of_seed.rates, of_seed.ft[name], strict=True)
            runs += [("ft", seed, None, rate, name, table) for rate, table in ft]
    columns = ("learner", "seed", "order", "learning_rate", "set")
    blocks = [AnswerRows(dict(zip(columns, run, strict=False)), trials.examples[run[4]], run[5]) for run in runs]
    return answers_table(description, blocks, {"order": pa.int64(), "learning_rate": pa.float64()})

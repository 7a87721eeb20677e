"""All trials of a selection study: their answers, what they cost, and the tables that choices are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform.result import (
    Trial,
)
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.facts import TaskDescription
from dualform.studies.selection.choosing import SETS, QuerySet, SelectOn, TrialAnswers, TrialTables
from dualform.tasks.task import Example


@dataclass(frozen=True)
class SeedTrials:
    """All trials of one demonstration seed."""

    seed: int
    rows: tuple[int, ...]
    """Demonstrations' row numbers in the train split, in the order drawn."""
    prefix_tokens: int
    """Tokens of the demonstrations in a row: what an ICL trial reads once."""
    training_tokens: int
    """Tokens of the demonstrations one by one: what an FT trial trains on."""
    icl: dict[QuerySet, Tensor]
    """Log-probabilities of answers, nats, `(order, example, answer)`."""
    ft: dict[QuerySet, Tensor]
    """`(rate, example, answer)`, the rates of `rates`."""
    rates: tuple[float, ...]
    """Those that did not diverge, ascending."""
    trials: tuple[Trial, ...]
    """FT's, diverged ones included."""
    measures: dict[str, Tensor]
    """Measure -> its value for ICL in the order drawn and FT at each rate, `(rate, example)`, over the queries on
    which similarity is measured."""


@dataclass(frozen=True)
class Budget:
    """What a search may read, in forward tokens; a backward pass counts as two forward ones."""

    orders: dict[SelectOn, int]
    """Orders of each seed that ICL's budget pays for, by the set on which it is searched."""
    icl: dict[SelectOn, dict[int, float]]
    """Tokens of all of ICL's trials on one seed, by set and seed."""
    ft: dict[SelectOn, dict[int, float]]
    """Tokens of all of FT's trials on one seed. A trial that diverges is paid for like any other."""


@dataclass(frozen=True)
class AllTrials:
    """All that a selection study's numbers are made of."""

    examples: Mapping[QuerySet, tuple[Example, ...]]
    seeds: tuple[SeedTrials, ...]
    """In the order of the settings."""
    zsl: Tensor
    """Zero-shot log-probabilities on the report queries, `(example, answer)`."""
    budget: Budget
    facts: dict[str, Any]
    """See `Result.model`."""
    notes: tuple[str, ...]
    """What a reader must know about the sets of queries."""

    @property
    def ascending(self) -> tuple[SeedTrials, ...]:
        """By seed: the order of the tables."""
        return tuple(sorted(self.seeds, key=lambda one: one.seed))

    def tables(self, grid: Sequence[float]) -> TrialTables:
        """Right and wrong, of all trials.

        Args:
            grid: FT's rates, ascending; the settings of its tables.
        """
        labels = {name: torch.tensor([example.label for example in some]) for name, some in self.examples.items()}
        seeds = self.ascending
        n_orders = len(seeds[0].icl["report"])
        icl, ft = {}, {}
        finished = torch.tensor([[rate in one.rates for rate in grid] for one in seeds])
        for name in SETS:
            # Nothing is compared on untouched queries.
            paid = self.budget.orders["report" if name == "untouched" else name]
            answers = torch.stack([one.icl[name] for one in seeds])
            icl[name] = _answered(answers, labels[name], (torch.arange(n_orders) < paid).expand(len(seeds), n_orders))
            n, width = answers.shape[2:]
            answers = torch.full((len(seeds), len(grid), n, width), -torch.inf, dtype=torch.float64)
            for place, one in enumerate(seeds):
                answers[place, finished[place]] = one.ft[name]
            ft[name] = _answered(answers, labels[name], finished)
        first = seeds.index(self.seeds[0])
        return TrialTables(icl, ft, first, middle_place(finished[first].tolist()))


def _answered(answers: Tensor, labels: Tensor, compared: Tensor) -> TrialAnswers:
    right = (answers.argmax(dim=3) == labels).double()
    at = labels.expand(answers.shape[:3])[..., None]
    return TrialAnswers(right, answers.gather(3, at)[..., 0], compared)


def middle_place(finished: Sequence[bool]) -> int:
    """The middle place (the lower of two), or the nearest finished one: lower ones first, as higher ones diverge."""
    middle = (len(finished) - 1) // 2
    places = [*range(middle, -1, -1), *range(middle + 1, len(finished))]
    return next(place for place in places if finished[place])


def trials_table(asked: TaskDescription, found: AllTrials) -> pa.Table:
    """One row for each trial and query.

    Returns:
        Columns `learner`, `seed`, `order` (null for FT), `learning_rate` (null for ICL), `set` (validation, report,
        untouched), and those of `answers_table`. Zero-shot, under the first seed, has read the report queries alone.
    """
    runs: list[tuple[str, int, int | None, float | None, QuerySet, Tensor]] = []
    runs.append(("zsl", found.seeds[0].seed, None, None, "report", found.zsl))
    for one in found.seeds:
        for name in SETS:
            runs += [("icl", one.seed, order, None, name, table) for order, table in enumerate(one.icl[name])]
            runs += [
                ("ft", one.seed, None, rate, name, table) for rate, table in zip(one.rates, one.ft[name], strict=True)
            ]
    columns = ("learner", "seed", "order", "learning_rate", "set")
    blocks = [AnswerRows(dict(zip(columns, run, strict=False)), found.examples[run[4]], run[5]) for run in runs]
    return answers_table(asked, blocks, {"order": pa.int64(), "learning_rate": pa.float64()})

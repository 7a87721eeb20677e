"""From every trial's answers to a `Selection`: what each way of choosing takes, and how much it flatters.

A trial is one learner with one demonstration seed and one setting: ICL's order of the demonstrations, FT's rate.

Choices. `none` takes the first seed, the order drawn and the middle rate of the grid. `icl` takes the seed and order
with the best accuracy of ICL; FT gets that seed, and the rate that is best for it there. `ft` takes the seed and rate
with the best accuracy of FT; ICL gets that seed in the order drawn. `both` takes the seed with the best mean of both
learners' best accuracies, with that order and that rate. Ties go to the higher mean log-probability of the right
answer (of both trials together, where both count), then to the lower seed, order and rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import pyarrow as pa
import torch
from torch import Tensor

from dualform.result import (
    FEWEST_FOR_INTERVAL,
    Accuracy,
    Choice,
    ChoiceScore,
    Estimate,
    Result,
    Selection,
    Trial,
)
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.common_warnings import few_demonstrations, low_precision, slow_route
from dualform.studies.facts import Asked, baselines_of, demonstration_report, task_facts, task_result
from dualform.studies.selection.config import SelectionConfig
from dualform.studies.statistics import Statistics
from dualform.tasks.task import Example

QuerySet = Literal["validation", "report", "untouched"]
SETS: tuple[QuerySet, ...] = get_args(QuerySet)

Select = Literal["none", "icl", "ft", "both"]
SelectOn = Literal["validation", "report"]

CHOICES: tuple[tuple[Select, SelectOn], ...] = (
    ("none", "report"),
    ("icl", "validation"),
    ("icl", "report"),
    ("ft", "validation"),
    ("ft", "report"),
    ("both", "validation"),
    ("both", "report"),
)
"""By whose accuracy, on which queries. Where nothing is chosen the report queries stand in for those chosen on."""

COUNTED = ("rec2ftp", "agreement")
"""Measures that are shares of answers."""

# Mean log-probabilities nearer than this, nats, are equal: rounding must not decide between equal trials.
_TIED = 1e-9


@dataclass(frozen=True)
class Answered:
    """How all trials of one learner answered one set of queries."""

    right: Tensor
    """1 where right, `(seed, setting, example)`; seeds and settings ascend."""
    log_probability: Tensor
    """Of the right answer, nats, `(seed, setting, example)`."""
    compared: Tensor
    """Which trials the budget of this set pays for and did not diverge, `(seed, setting)`."""

    def standing(self, weights: Tensor) -> "Standing":
        """Scores by resample.

        Args:
            weights: How often each query counts, `(resample, example)`.
        """
        n = weights.sum(dim=1)[:, None, None]
        hits = torch.einsum("re,ste->rst", weights, self.right)
        # Impossible answers must not turn a query that was not drawn into 0 * -inf.
        log_probability = torch.einsum("re,ste->rst", weights, self.log_probability.clamp(min=-1e6)) / n
        return Standing(
            hits.masked_fill(~self.compared, -1.0), (log_probability / _TIED).round().masked_fill(~self.compared, 0.0)
        )

    def accuracy(self, weights: Tensor, seed: Tensor, setting: Tensor) -> Tensor:
        """Of one trial in each resample.

        Args:
            weights: How often each query counts, `(resample, example)`.
            seed: Place of its seed, `(resample,)`.
            setting: Place of its order or rate, `(resample,)`.

        Returns:
            Shares of right answers, `(resample,)`.
        """
        of_all = torch.einsum("re,ste->rst", weights, self.right) / weights.sum(dim=1)[:, None, None]
        return of_all[torch.arange(len(of_all)), seed, setting]


@dataclass(frozen=True)
class Standing:
    """What trials are compared by, first the one, then the other, `(resample, seed, setting)`."""

    hits: Tensor
    """Right answers; -1 for trials that are not compared."""
    log_probability: Tensor
    """Mean log-probability of the right answer, in units of what counts as a tie."""

    def __add__(self, other: "Standing") -> "Standing":
        return Standing(self.hits + other.hits, self.log_probability + other.log_probability)

    def best(self) -> Tensor:
        """Place of the best along the last axis, the first of equals."""
        top = self.hits == self.hits.amax(dim=-1, keepdim=True)
        return self.log_probability.masked_fill(~top, -torch.inf).argmax(dim=-1)

    def at(self, place: Tensor) -> "Standing":
        """One place of the last axis."""
        return Standing(*(each.gather(-1, place[..., None])[..., 0] for each in (self.hits, self.log_probability)))


@dataclass(frozen=True)
class Picks:
    """What was chosen in each resample, as places in the tables, each `(resample,)`."""

    seed: Tensor
    order: Tensor
    rate: Tensor

    def setting(self, learner: str) -> Tensor:
        """ICL's order or FT's rate."""
        return self.order if learner == "icl" else self.rate


@dataclass(frozen=True)
class Tables:
    """All trials' answers on all sets."""

    icl: Mapping[QuerySet, Answered]
    ft: Mapping[QuerySet, Answered]
    first: int
    """Place of the first seed: `none` takes it."""
    middle: int
    """Place of the middle rate, or of the nearest that did not diverge with the first seed."""

    def of(self, learner: str) -> Mapping[QuerySet, Answered]:
        """One learner's."""
        return self.icl if learner == "icl" else self.ft

    def everything(self) -> dict[QuerySet, Tensor]:
        """Weights that count every query once, `(1, example)` a set."""
        return {name: torch.ones(1, table.right.shape[2], dtype=torch.float64) for name, table in self.icl.items()}

    def resampled(self, n_resamples: int) -> dict[QuerySet, Tensor]:
        """Weights of resamples with replacement, each set by itself, `(resample, example)` a set."""
        generator = torch.Generator().manual_seed(0)
        found = {}
        for name, once in self.everything().items():
            n = once.shape[1]
            drawn = torch.randint(n, (n_resamples, n), generator=generator)
            found[name] = torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
                1, drawn, once.expand(n_resamples, n)
            )
        return found

    def choose(self, select: Select, select_on: SelectOn, weights: Mapping[QuerySet, Tensor]) -> Picks:
        """What a way of choosing takes, once for each resample; the rule stands at the head of this file.

        Only the tables of `select_on` are looked at.
        """
        icl, ft = (self.of(learner)[select_on].standing(weights[select_on]) for learner in ("icl", "ft"))
        n_resamples = len(icl.hits)
        if select == "none":
            seed = torch.full((n_resamples,), self.first)
            return Picks(seed, torch.zeros_like(seed), torch.full_like(seed, self.middle))
        orders, rates = icl.best(), ft.best()
        by_seed = {"icl": icl.at(orders), "ft": ft.at(rates)}
        seed = (by_seed["icl"] + by_seed["ft"] if select == "both" else by_seed[select]).best()
        order, rate = (places.gather(1, seed[:, None])[:, 0] for places in (orders, rates))
        return Picks(seed, torch.zeros_like(order) if select == "ft" else order, rate)

    def optimism(self, select: Select, select_on: SelectOn, learner: str, weights: Mapping[QuerySet, Tensor]) -> Tensor:
        """Accuracy of what is chosen where it is chosen, less its accuracy on untouched queries, `(resample,)`.

        The choice is made anew in every resample.
        """
        picks = self.choose(select, select_on, weights)
        selected, untouched = (
            self.of(learner)[name].accuracy(weights[name], picks.seed, picks.setting(learner))
            for name in (select_on, SETS[-1])
        )
        return selected - untouched

    def optimism_estimate(
        self, select: Select, select_on: SelectOn, learner: str, resamples: Mapping[QuerySet, Tensor]
    ) -> Estimate:
        """Optimism with its 95 % interval.

        The estimate has no bias: what was chosen knows nothing of the untouched queries. Its resamples have one. Each
        draws luck of its own on top of the luck that the trials already have, and choosing anew takes both: among
        many equal trials resampled optimism is larger by a factor of about the square root of 2. So the resamples
        tell the spread alone, and are moved until their mean is the estimate.

        How often the interval holds the expected optimism, measured with 200 queries and 400 untouched ones (300
        repetitions, standard error about 1 %): 99 % for 56 trials that are equally good, 99 % where they differ
        widely, 94 % for one trial. Percentiles left where they are hold it as often, but lie too high: among equal
        trials by more than a third of the estimate.

        Args:
            select: By whose accuracy.
            select_on: On which queries.
            learner: Whose optimism.
            resamples: See `resampled`.
        """
        found = float(self.optimism(select, select_on, learner, self.everything()))
        resampled = self.optimism(select, select_on, learner, resamples)
        low, high = (resampled - resampled.mean()).quantile(resampled.new_tensor([0.025, 0.975])).tolist()
        n = min(self.of(learner)[name].right.shape[2] for name in (select_on, SETS[-1]))
        if n < FEWEST_FOR_INTERVAL:
            return Estimate(mean=found, ci95=(None, None), n=n)
        return Estimate(mean=found, ci95=(max(-1.0, found + low), min(1.0, found + high)), n=n)


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
    which likeness is measured."""


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
class Found:
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

    def tables(self, grid: Sequence[float]) -> Tables:
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
        return Tables(icl, ft, first, _middle(finished[first].tolist()))


def _answered(answers: Tensor, labels: Tensor, compared: Tensor) -> Answered:
    right = (answers.argmax(dim=3) == labels).double()
    at = labels.expand(answers.shape[:3])[..., None]
    return Answered(right, answers.gather(3, at)[..., 0], compared)


def _middle(finished: Sequence[bool]) -> int:
    """The middle place (the lower of two), or the nearest finished one: lower ones first, as higher ones diverge."""
    middle = (len(finished) - 1) // 2
    places = [*range(middle, -1, -1), *range(middle + 1, len(finished))]
    return next(place for place in places if finished[place])


def summarise_selection(config: SelectionConfig, asked: Asked, found: Found, environment: dict[str, Any]) -> Result:
    """All trials as one result.

    Args:
        config: The settings.
        asked: The report queries.
        found: At least one seed's trials.
        environment: See `Result.environment`.

    Returns:
        The result; equal trials give equal numbers, intervals included. `accuracy` is on the report queries, over all
        seeds, with nothing chosen: ICL in the order drawn, FT at the middle rate (or the nearest that finished).
    """
    summary = _Summary(config, found, found.tables(config.grid))
    made = [summary.choice(select, select_on) for select, select_on in CHOICES]
    choices = [one.choice for one in made]
    sizes = {name: len(examples) for name, examples in found.examples.items()}
    return task_result(
        "selection",
        config,
        asked,
        model=found.facts,
        environment=environment,
        warnings=_warnings(config, asked, found, choices),
        task={**task_facts(asked), "n_untouched": sizes["untouched"]},
        demonstrations=demonstration_report(config.k, {one.seed: (one.rows, one.prefix_tokens) for one in found.seeds}),
        accuracy=summary.unchosen(asked.task.label_words),
        trials=summary.trials(),
        selection=Selection(
            choices=choices,
            similarity_range=summary.ranges(made),
            n_validation=sizes["validation"],
            n_report=sizes["report"],
            n_untouched=sizes["untouched"],
            baselines={name: baselines_of(asked.task, examples) for name, examples in found.examples.items()},
        ),
    )


def trials_table(asked: Asked, found: Found) -> pa.Table:
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


@dataclass(frozen=True)
class _Made:
    """A choice, and what its similarity is made of."""

    choice: Choice
    shares: dict[str, Tensor]
    """Measure -> what each query adds above and below the line, `(example, 2)`."""


@dataclass(frozen=True)
class _Summary:
    config: SelectionConfig
    found: Found
    tables: Tables

    @cached_property
    def _resamples(self) -> dict[QuerySet, Tensor]:
        return self.tables.resampled(self.config.resamples)

    def choice(self, select: Select, select_on: SelectOn) -> _Made:
        """One way of choosing: what it takes, what that scores, how alike ICL and FT are then."""
        picks = self.tables.choose(select, select_on, self.tables.everything())
        seed, order, rate = int(picks.seed), int(picks.order), int(picks.rate)
        taken = self.found.ascending[seed]
        stats = Statistics(self.config.resamples, (str(taken.seed),))
        scores = {}
        for learner, setting in (("icl", order), ("ft", rate)):
            tables = self.tables.of(learner)
            tokens, trials = self.search(learner, select, select_on, seed)
            scores[learner] = ChoiceScore(
                selected=stats.share(tables[select_on].right[seed, setting][None]),
                untouched=stats.share(tables["untouched"].right[seed, setting][None]),
                optimism=self.tables.optimism_estimate(select, select_on, learner, self._resamples),
                tokens=tokens,
                trials=trials,
            )
        shares = self.shares(seed, order, rate)
        return _Made(
            Choice(
                select=select,
                select_on=select_on,
                seed=taken.seed,
                order=order,
                learning_rate=self.config.grid[rate],
                scores=scores,
                similarity={name: _ratio(name, columns, stats) for name, columns in shares.items()},
            ),
            shares,
        )

    def search(self, learner: str, select: Select, select_on: SelectOn, seed: int) -> tuple[float, int]:
        """Tokens that were read in search of a learner's setting, and trials that were compared; one is no search."""
        budget = self.found.budget
        paid = (budget.icl if learner == "icl" else budget.ft)[select_on]
        compared = self.tables.of(learner)[select_on].compared
        if select in (learner, "both"):
            return sum(paid.values()), int(compared.sum())
        if select == "icl":
            # FT's rate is chosen for the seed that ICL took.
            return paid[self.found.ascending[seed].seed], int(compared[seed].sum())
        return 0.0, 1

    def shares(self, seed: int, order: int, rate: int) -> dict[str, Tensor]:
        """Every measure as a ratio of totals over queries.

        ICL in the order drawn stands beside FT, whichever order was chosen: FT was trained in that order, and the
        likeness of two updates by different orders is that of their orders too. Rec2FTP alone, made of answers, is
        that of the very trials chosen.
        """
        one = self.found.ascending[seed]
        place = one.rates.index(self.config.grid[rate])
        found = {}
        labels = torch.tensor([example.label for example in self.found.examples["report"]])
        fixed = self.tables.ft["report"].right[seed, rate] * (self.found.zsl.argmax(dim=1) != labels)
        found["rec2ftp"] = torch.stack([fixed * self.tables.icl["report"].right[seed, order], fixed], dim=-1)
        for name, values in one.measures.items():
            there = values[place].isfinite()
            found[name] = torch.stack([values[place].where(there, 0.0), there.double()], dim=-1)
        return found

    def ranges(self, made: Sequence[_Made]) -> dict[str, Estimate]:
        """Highest less lowest value of each measure over the choices; the interval resamples queries, choices stay.

        A range is never below 0, and noise alone makes it larger: it is to be read beside the choices' own intervals.
        """
        found = {}
        for name in made[0].shares:
            columns: list[Tensor] = []
            for one in made:
                mine = one.shares[name]
                # Choices that took the same are one: their difference is 0, not what rounding leaves of it.
                if bool(mine[:, 1].sum() > 0) and not any(torch.equal(mine, other) for other in columns):
                    columns.append(mine)
            if not columns:
                found[name] = Estimate(mean=None, ci95=(None, None), n=0)
                continue
            together = torch.cat(columns, dim=-1)
            ends = Statistics(self.config.resamples, ()).interval_of(_range, together[None])
            mean = float(_range(together.sum(dim=0, keepdim=True)))
            n = int(min(each[:, 1].sum() for each in columns))
            few = name in COUNTED and n < FEWEST_FOR_INTERVAL
            found[name] = Estimate(mean=mean, ci95=(None, None) if few else ends, n=n)
        return found

    def unchosen(self, label_words: Sequence[str] | None) -> dict[str, Accuracy]:
        """Accuracy on the report queries over all seeds, with nothing chosen."""
        seeds = self.found.ascending
        stats = Statistics(self.config.resamples, tuple(str(one.seed) for one in seeds))
        labels = torch.tensor([example.label for example in self.found.examples["report"]])
        middle = [self.config.grid[_middle(there.tolist())] for there in self.tables.ft["report"].compared]
        tables = {
            "zsl": [self.found.zsl] * len(seeds),
            "icl": [one.icl["report"][0] for one in seeds],
            "ft": [one.ft["report"][one.rates.index(rate)] for one, rate in zip(seeds, middle, strict=True)],
        }
        return {
            learner: stats.accuracy(learner, torch.stack([each.argmax(dim=1) for each in answers]), labels, label_words)
            for learner, answers in tables.items()
        }

    def trials(self) -> list[Trial]:
        """FT's trials; of each seed the best on the validation queries is marked."""
        table = self.tables.ft["validation"]
        best = table.standing(self.tables.everything()["validation"]).best()[0]
        chosen = {one.seed: self.config.grid[int(place)] for one, place in zip(self.found.ascending, best, strict=True)}
        return [
            trial.model_copy(update={"chosen": trial.learning_rate == chosen[one.seed]})
            for one in self.found.seeds
            for trial in one.trials
        ]


def _ratio(measure: str, columns: Tensor, stats: Statistics) -> Estimate:
    """`(example, 2)` -> the ratio of its totals."""
    above, below = columns.sum(dim=0).tolist()
    interval = stats.share_interval if measure in COUNTED else stats.ratio
    ends = interval(columns[None, :, 0], columns[None, :, 1])
    return Estimate(mean=above / below if below else None, ci95=ends, n=int(below))


def _range(totals: Tensor) -> Tensor:
    """Totals above and below the line in turn, `(resample, column)` -> highest less lowest ratio, `(resample,)`."""
    ratios = totals[..., ::2] / totals[..., 1::2]
    return ratios.amax(dim=-1) - ratios.amin(dim=-1)


def _warnings(config: SelectionConfig, asked: Asked, found: Found, choices: Sequence[Choice]) -> list[str]:
    said = few_demonstrations(config.k, {one.seed: len(one.rows) for one in found.seeds}, asked.context)
    if len(found.seeds) == 1:
        said.append("One demonstration seed: ICL's order and FT's rate were chosen, but no demonstrations.")
    diverged = [trial for one in found.seeds for trial in one.trials if trial.status == "diverged"]
    if diverged:
        shown = ", ".join(f"{trial.learning_rate:g} (seed {trial.seed})" for trial in diverged)
        said.append(f"The loss became NaN or infinite, and these of FT's trials were dropped: {shown}.")
    edges = {config.grid[0], config.grid[-1]}
    at_edge = sorted({choice.learning_rate for choice in choices if choice.select != "none"} & edges)
    if len(config.grid) > 1 and at_edge:
        shown = ", ".join(f"{rate:g}" for rate in at_edge)
        said.append(f"Some choices took a learning rate at the edge of its grid ({shown}). Widen the grid.")
    return [*said, *low_precision(config.dtype), *slow_route(found.facts["route"], found.facts["refused_routes"])]

"""From every trial's answers to a `Selection`: what each way of choosing takes, and how much it flatters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dualform.result import FEWEST_FOR_INTERVAL, Accuracy, Estimate, Trial
from dualform.studies.common_warnings import few_demonstrations, low_precision, slow_route
from dualform.studies.facts import TaskDescription, baselines_of, demonstration_report, task_facts, task_result
from dualform.studies.selection.choosing import CHOICES, QuerySet, Select, SelectOn, TrialTables
from dualform.studies.selection.config import SelectionConfig
from dualform.studies.selection.result import Choice, ChoiceScore, Selection, SelectionResult
from dualform.studies.selection.trials import AllTrials, middle_place
from dualform.studies.statistics import Statistics

COUNTED = ("rec2ftp", "agreement")
"""Measures that are shares of answers."""


def summarise_selection(
    config: SelectionConfig, asked: TaskDescription, found: AllTrials, environment: dict[str, Any]
) -> SelectionResult:
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
        SelectionResult,
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


@dataclass(frozen=True)
class _ChoiceMeasures:
    """A choice, and what its similarity is made of."""

    choice: Choice
    shares: dict[str, Tensor]
    """Measure -> what each query adds above and below the line, `(example, 2)`."""


@dataclass(frozen=True)
class _Summary:
    config: SelectionConfig
    found: AllTrials
    tables: TrialTables

    @cached_property
    def _resamples(self) -> dict[QuerySet, Tensor]:
        return self.tables.resampled(self.config.resamples)

    def choice(self, select: Select, select_on: SelectOn) -> _ChoiceMeasures:
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
        return _ChoiceMeasures(
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
        similarity of two updates by different orders is that of their orders too. Rec2FTP alone, made of answers, is
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

    def ranges(self, made: Sequence[_ChoiceMeasures]) -> dict[str, Estimate]:
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
        middle = [self.config.grid[middle_place(there.tolist())] for there in self.tables.ft["report"].compared]
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


def _warnings(
    config: SelectionConfig, asked: TaskDescription, found: AllTrials, choices: Sequence[Choice]
) -> list[str]:
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

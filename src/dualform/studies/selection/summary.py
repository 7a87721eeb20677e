"""Computes the results of a selection study from the answers of all trials."""

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
from dualform.studies.selection.trials import AllTrials, middle_index
from dualform.studies.statistics import Statistics

COUNTED = ("rec2ftp", "agreement")
"""Measures that are shares of answers, which get no interval for few answers."""


def summarise_selection(
    config: SelectionConfig, description: TaskDescription, trials: AllTrials, environment: dict[str, Any]
) -> SelectionResult:
    """The result of the study. It is deterministic, including the intervals.

    Its `accuracy` is on the report queries over all seeds without a choice: ICL in the order drawn, FT at the middle
    rate or the nearest one that did not diverge.

    Args:
        config: The settings.
        description: The task and its report queries.
        trials: The trials of at least one seed.
        environment: See `Result.environment`.
    """
    summary = _Summary(config, trials, trials.tables(config.grid))
    measured = [summary.choice(select, select_on) for select, select_on in CHOICES]
    choices = [each.choice for each in measured]
    sizes = {name: len(examples) for name, examples in trials.examples.items()}
    return task_result(
        SelectionResult,
        "selection",
        config,
        description,
        model=trials.facts,
        environment=environment,
        warnings=_warnings(config, description, trials, choices),
        task={**task_facts(description), "n_untouched": sizes["untouched"]},
        demonstrations=demonstration_report(
            config.k, {each.seed: (each.rows, each.prefix_tokens) for each in trials.seeds}
        ),
        accuracy=summary.unchosen(description.task.label_words),
        trials=summary.trials(),
        selection=Selection(
            choices=choices,
            similarity_range=summary.ranges(measured),
            n_validation=sizes["validation"],
            n_report=sizes["report"],
            n_untouched=sizes["untouched"],
            baselines={name: baselines_of(description.task, examples) for name, examples in trials.examples.items()},
        ),
    )


@dataclass(frozen=True)
class _ChoiceMeasures:
    """A choice, and the terms of its similarity measures."""

    choice: Choice
    shares: dict[str, Tensor]
    """Measure -> what each query adds to its numerator and denominator, `(example, 2)`."""


@dataclass(frozen=True)
class _Summary:
    config: SelectionConfig
    all_trials: AllTrials
    tables: TrialTables

    @cached_property
    def _resamples(self) -> dict[QuerySet, Tensor]:
        return self.tables.resampled(self.config.resamples)

    def choice(self, select: Select, select_on: SelectOn) -> _ChoiceMeasures:
        """One choice with its scores and the similarity of ICL and FT."""
        picks = self.tables.choose(select, select_on, self.tables.unit_weights())
        seed, order, rate = int(picks.seed), int(picks.order), int(picks.rate)
        trials_of_seed = self.all_trials.ascending[seed]
        stats = Statistics(self.config.resamples, (str(trials_of_seed.seed),))
        scores = {}
        for learner, setting in (("icl", order), ("ft", rate)):
            tables = self.tables.of(learner)
            tokens, n_trials = self.search(learner, select, select_on, seed)
            scores[learner] = ChoiceScore(
                selected=stats.share(tables[select_on].right[seed, setting][None]),
                untouched=stats.share(tables["untouched"].right[seed, setting][None]),
                optimism=self.tables.optimism_estimate(select, select_on, learner, self._resamples),
                tokens=tokens,
                trials=n_trials,
            )
        shares = self.shares(seed, order, rate)
        return _ChoiceMeasures(
            Choice(
                select=select,
                select_on=select_on,
                seed=trials_of_seed.seed,
                order=order,
                learning_rate=self.config.grid[rate],
                scores=scores,
                similarity={name: _ratio(name, columns, stats) for name, columns in shares.items()},
            ),
            shares,
        )

    def search(self, learner: str, select: Select, select_on: SelectOn, seed: int) -> tuple[float, int]:
        """Tokens read to choose a learner's setting, and the number of trials compared; 1 without a search."""
        budget = self.all_trials.budget
        tokens = (budget.icl if learner == "icl" else budget.ft)[select_on]
        compared = self.tables.of(learner)[select_on].compared
        if select in (learner, "both"):
            return sum(tokens.values()), int(compared.sum())
        if select == "icl":
            # FT's rate is chosen for ICL's seed only.
            return tokens[self.all_trials.ascending[seed].seed], int(compared[seed].sum())
        return 0.0, 1

    def shares(self, seed: int, order: int, rate: int) -> dict[str, Tensor]:
        """Numerator and denominator of every measure for each query, `(example, 2)`.

        FT is compared with ICL in the order drawn, in which it was trained, since another order would lower the
        similarity. Only Rec2FTP, which is computed from answers, uses ICL in the chosen order.
        """
        trials = self.all_trials.ascending[seed]
        rate_index = trials.rates.index(self.config.grid[rate])
        shares = {}
        labels = torch.tensor([example.label for example in self.all_trials.examples["report"]])
        fixed = self.tables.ft["report"].right[seed, rate] * (self.all_trials.zsl.argmax(dim=1) != labels)
        shares["rec2ftp"] = torch.stack([fixed * self.tables.icl["report"].right[seed, order], fixed], dim=-1)
        for name, values in trials.measures.items():
            defined = values[rate_index].isfinite()
            shares[name] = torch.stack([values[rate_index].where(defined, 0.0), defined.double()], dim=-1)
        return shares

    def ranges(self, measured: Sequence[_ChoiceMeasures]) -> dict[str, Estimate]:
        """Highest minus lowest value of each measure over the choices; queries are resampled, with fixed choices.

        A range is never negative and grows with noise, so it must be read together with the intervals of the choices.
        """
        ranges = {}
        for name in measured[0].shares:
            columns: list[Tensor] = []
            for each in measured:
                shares = each.shares[name]
                # Equal choices are kept once: their difference is exactly 0, not a rounding error.
                if bool(shares[:, 1].sum() > 0) and not any(torch.equal(shares, other) for other in columns):
                    columns.append(shares)
            if not columns:
                ranges[name] = Estimate(mean=None, ci95=(None, None), n=0)
                continue
            together = torch.cat(columns, dim=-1)
            ends = Statistics(self.config.resamples, ()).interval_of(_range, together[None])
            mean = float(_range(together.sum(dim=0, keepdim=True)))
            n = int(min(each[:, 1].sum() for each in columns))
            few = name in COUNTED and n < FEWEST_FOR_INTERVAL
            ranges[name] = Estimate(mean=mean, ci95=(None, None) if few else ends, n=n)
        return ranges

    def unchosen(self, label_words: Sequence[str] | None) -> dict[str, Accuracy]:
        """Accuracy on the report queries over all seeds, without a choice."""
        seeds = self.all_trials.ascending
        stats = Statistics(self.config.resamples, tuple(str(each.seed) for each in seeds))
        labels = torch.tensor([example.label for example in self.all_trials.examples["report"]])
        middle = [self.config.grid[middle_index(finished.tolist())] for finished in self.tables.ft["report"].compared]
        tables = {
            "zsl": [self.all_trials.zsl] * len(seeds),
            "icl": [each.icl["report"][0] for each in seeds],
            "ft": [each.ft["report"][each.rates.index(rate)] for each, rate in zip(seeds, middle, strict=True)],
        }
        return {
            learner: stats.accuracy(learner, torch.stack([each.argmax(dim=1) for each in answers]), labels, label_words)
            for learner, answers in tables.items()
        }

    def trials(self) -> list[Trial]:
        """FT's trials; the best of each seed on the validation queries is marked as chosen."""
        table = self.tables.ft["validation"]
        best = table.scores(self.tables.unit_weights()["validation"]).best()[0]
        seeds = self.all_trials.ascending
        chosen = {each.seed: self.config.grid[int(rate)] for each, rate in zip(seeds, best, strict=True)}
        return [
            trial.model_copy(update={"chosen": trial.learning_rate == chosen[each.seed]})
            for each in self.all_trials.seeds
            for trial in each.trials
        ]


def _ratio(measure: str, columns: Tensor, stats: Statistics) -> Estimate:
    """The ratio of the totals of two columns, `(example, 2)`."""
    numerator, denominator = columns.sum(dim=0).tolist()
    interval = stats.share_interval if measure in COUNTED else stats.ratio
    ends = interval(columns[None, :, 0], columns[None, :, 1])
    return Estimate(mean=numerator / denominator if denominator else None, ci95=ends, n=int(denominator))


def _range(totals: Tensor) -> Tensor:
    """Highest minus lowest ratio, `(resample,)`, from alternating numerators and denominators, `(resample, column)`."""
    ratios = totals[..., ::2] / totals[..., 1::2]
    return ratios.amax(dim=-1) - ratios.amin(dim=-1)


def _warnings(
    config: SelectionConfig, description: TaskDescription, trials: AllTrials, choices: Sequence[Choice]
) -> list[str]:
    warnings = few_demonstrations(config.k, {each.seed: len(each.rows) for each in trials.seeds}, description.context)
    if len(trials.seeds) == 1:
        warnings.append("Only one demonstration seed: ICL's order and FT's rate were chosen, but no demonstrations.")
    diverged = [trial for each in trials.seeds for trial in each.trials if trial.status == "diverged"]
    if diverged:
        names = ", ".join(f"{trial.learning_rate:g} (seed {trial.seed})" for trial in diverged)
        warnings.append(f"The loss of FT became NaN or infinite at these learning rates, which were left out: {names}.")
    edges = {config.grid[0], config.grid[-1]}
    at_edge = sorted({choice.learning_rate for choice in choices if choice.select != "none"} & edges)
    if len(config.grid) > 1 and at_edge:
        rates = ", ".join(f"{rate:g}" for rate in at_edge)
        warnings.append(f"The chosen learning rate is sometimes at the edge of its grid ({rates}). Widen the grid.")
    route, refused = trials.facts["route"], trials.facts["refused_routes"]
    return [*warnings, *low_precision(config.dtype), *slow_route(route, refused)]

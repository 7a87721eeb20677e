"""From runs to a `Stability`: spreads, collapse, calibration, the split of variance, and who is less stable."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import torch
from scipy.stats import binomtest
from torch import Tensor

from dualform.ops.agreement import prediction_entropy
from dualform.ops.calibration import contextual_calibration
from dualform.ops.choosing import Chooser, chosen_gap
from dualform.ops.variance import spread_interval, spread_ratio, variance_split
from dualform.result import FEWEST_FOR_INTERVAL, Estimate, Trial
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.baseline_words import COLLAPSED_ABOVE
from dualform.studies.common_warnings import slow_route
from dualform.studies.facts import TaskDescription, task_result
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.result import (
    Behaviour,
    Contrast,
    FairGap,
    LearnerStability,
    ModelStability,
    RunBehaviour,
    Spread,
    Stability,
    StabilityResult,
    StabilityRun,
    VarianceSplit,
)
from dualform.studies.statistics import Statistics

_CHOOSERS: dict[str, Chooser] = {"none": "none", "icl": "first", "ft": "second", "both": "both"}


@dataclass(frozen=True)
class RunAnswers:
    """One learner adapted to one demonstration set in one order: its answers."""

    learner: str
    seed: int
    order: int
    labels: str
    answers: Tensor
    """Log-probabilities, nats, `(example, answer)`."""
    content_free: Tensor
    """The same of the content-free inputs, `(content_free, answer)`; no rows for free-text choices."""
    rate: float | None
    """FT's learning rate."""

    @property
    def calibrated(self) -> Tensor | None:
        """Answers after contextual calibration, `(example, answer)`."""
        return contextual_calibration(self.answers, self.content_free) if len(self.content_free) else None


@dataclass(frozen=True)
class ModelRuns:
    """All runs of one model."""

    name: str
    facts: dict[str, Any]
    runs: tuple[RunAnswers, ...]
    trials: tuple[Trial, ...]


def summarise_stability(
    config: StabilityConfig, asked: TaskDescription, models: Sequence[ModelRuns], environment: dict[str, Any]
) -> StabilityResult:
    """All models' runs as one result.

    Args:
        config: The settings.
        asked: The queries.
        models: At least one model's runs.
        environment: See `Result.environment`.

    Returns:
        The result; equal runs give equal numbers, intervals included.
    """
    summary = _Summary(config, asked)
    by_size = sorted(models, key=lambda one: (one.facts["parameters"], one.name))
    return task_result(
        StabilityResult,
        "stability",
        config,
        asked,
        model={"name": ", ".join(one.name for one in by_size)},
        environment=environment,
        warnings=_warnings(config, asked, by_size),
        stability=Stability(
            models={one.name: summary.model(one) for one in by_size},
            contrasts=[*summary.learners_compared(by_size), *summary.sizes_compared(by_size)],
        ),
    )


def runs_table(asked: TaskDescription, models: Sequence[ModelRuns]) -> pa.Table:
    """One row for each model, run and query.

    Returns:
        Columns `model`, `learner`, `seed`, `order`, `labels`, those of `answers_table`, and `calibrated_prediction`
        (null without calibration).
    """
    blocks = []
    for one in models:
        for run in one.runs:
            about = {name: getattr(run, name) for name in ("learner", "seed", "order", "labels")}
            calibrated = run.calibrated
            answers = [None] * len(asked.examples) if calibrated is None else calibrated.argmax(dim=1).tolist()
            more = {"calibrated_prediction": answers}
            blocks.append(AnswerRows({"model": one.name, **about}, asked.examples, run.answers, more))
    return answers_table(asked, blocks, {"calibrated_prediction": pa.int64()})


@dataclass(frozen=True)
class _Answers:
    """What some runs of a learner answered, `(set, order, ...)`."""

    predicted: Tensor
    """Label numbers, `(set, order, example)`."""
    right: Tensor
    """1 where right, `(set, order, example)`."""
    share: Tensor
    """Share of the most frequent prediction, `(set, order)`."""
    entropy: Tensor
    """`(set, order)`."""

    @property
    def accuracy(self) -> Tensor:
        """`(set, order)`."""
        return self.right.mean(dim=2)


@dataclass(frozen=True)
class _Summary:
    config: StabilityConfig
    asked: TaskDescription

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    @property
    def _labels(self) -> Tensor:
        return self.asked.labels

    def model(self, one: ModelRuns) -> ModelStability:
        learners = {name: self.learner(one, name) for name in _learners(one)}
        return ModelStability(model=one.facts, learners=learners, trials=list(one.trials), fairness=self.fairness(one))

    def fairness(self, one: ModelRuns) -> list[FairGap]:
        """What choosing one of the sets, for one learner or for both, does to ICL's lead."""
        right: dict[str, dict[int, Tensor]] = {"icl": {}, "ft": {}}
        for run in one.runs:
            if run.learner in right and run.order == 0 and run.labels == "true":
                right[run.learner][run.seed] = (run.answers.argmax(dim=1) == self._labels).double()
        seeds = [seed for seed in self.config.seeds if all(seed in found for found in right.values())]
        if len(seeds) < 2 or len(self.asked.examples) < 2:
            return []
        icl, ft = (torch.stack([found[seed] for seed in seeds]) for found in right.values())
        gaps = []
        for select, chooser in _CHOOSERS.items():
            found = chosen_gap(icl, ft, chooser, n_resamples=self.config.resamples, generator=self._generator())
            here, there = (
                Estimate(mean=gap, ci95=ends, n=len(seeds)) for gap, ends in zip(found.gap, found.gap_ci95, strict=True)
            )
            gaps.append(
                FairGap(
                    select=select,
                    icl_chosen_on=found.first[0],
                    icl_untouched=found.first[1],
                    ft_chosen_on=found.second[0],
                    ft_untouched=found.second[1],
                    gap_chosen_on=here,
                    gap_untouched=there,
                )
            )
        return gaps

    def learner(self, one: ModelRuns, name: str) -> LearnerStability:
        runs = [run for run in one.runs if run.learner == name]
        true = _grid(runs)
        rates = {run.rate for run in runs if run.rate is not None}
        plain = self.answers([[run.answers for run in row] for row in true])
        calibrated = None
        if all(len(run.content_free) for run in runs):
            calibrated = self.answers([[_there(run.calibrated) for run in row] for row in true])
        labels, effects = self.by_labels(runs)
        return LearnerStability(
            plain=self.behaviour(plain),
            calibrated=None if calibrated is None else self.behaviour(calibrated),
            labels=labels,
            label_effects=effects,
            learning_rate=max(rates) if rates else None,
            runs=[
                StabilityRun(
                    seed=run.seed,
                    order=run.order,
                    labels=run.labels,
                    plain=self.run(run.answers),
                    calibrated=None if run.calibrated is None else self.run(run.calibrated),
                )
                for run in runs
            ],
        )

    def answers(self, tables: list[list[Tensor]]) -> _Answers:
        """Tables by set and order -> what they say."""
        answers = torch.stack([torch.stack(row) for row in tables])
        predicted = answers.argmax(dim=3)
        counts = torch.nn.functional.one_hot(predicted, answers.shape[3]).sum(dim=2)
        return _Answers(
            predicted=predicted,
            right=(predicted == self._labels).double(),
            share=counts.amax(dim=2).double() / predicted.shape[2],
            entropy=prediction_entropy(answers.flatten(0, 2)).view(predicted.shape).nanmean(dim=2),
        )

    def run(self, answers: Tensor) -> RunBehaviour:
        """One run's behaviour from its answers, `(example, answer)`."""
        said = self.answers([[answers]])
        counts = torch.bincount(answers.argmax(dim=1))
        return RunBehaviour(
            accuracy=float(said.accuracy),
            majority_share=float(said.share),
            majority_label=(
                None if self.asked.task.is_multiple_choice else self.asked.answer_name(int(counts.argmax()))
            ),
            entropy=float(said.entropy),
        )

    def behaviour(self, said: _Answers) -> Behaviour:
        """A learner's behaviour over its runs."""
        n_sets, n_orders = said.accuracy.shape
        ranges = said.accuracy.amax(dim=1) - said.accuracy.amin(dim=1)
        variance = None
        if n_sets > 1:
            parts = variance_split(said.right, n_resamples=self.config.resamples, generator=self._generator())
            variance = VarianceSplit(
                set=parts.set,
                order=parts.order,
                residual=parts.residual,
                total=parts.total,
                set_ci95=parts.set_ci95,
                order_ci95=parts.order_ci95,
            )
        stats = Statistics(self.config.resamples, ())
        # Orders of a set are not drawn independently: each set gives one number a query.
        by_set, names = said.right.mean(dim=1), self.asked.task.label_words
        return Behaviour(
            accuracy=self.spread(said.accuracy),
            majority_share=self.spread(said.share),
            entropy=self.spread(said.entropy),
            collapse_rate=self.share_of_runs(said.share > COLLAPSED_ABOVE),
            order_range=(
                self.over_sets(ranges, n_sets) if n_orders > 1 else Estimate(mean=None, ci95=(None, None), n=0)
            ),
            variance=variance,
            over_majority=stats.over_majority(by_set, self._labels),
            macro_f1=None if names is None else stats.macro_f1(said.predicted, self._labels),
            per_label={} if names is None else stats.per_label(by_set, self._labels, names),
        )

    def spread(self, values: Tensor) -> Spread:
        """`(set, order)` -> how they are spread."""
        low, high = spread_interval(values, n_resamples=self.config.resamples, generator=self._generator())
        at = torch.quantile(values.flatten(), values.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
        return Spread(
            mean=float(values.mean()),
            sd=float(values.std()) if values.numel() > 1 else None,
            sd_ci95=(low, high) if len(values) > 1 else (None, None),
            low=at[0],
            q25=at[1],
            median=at[2],
            q75=at[3],
            high=at[4],
            n=values.numel(),
        )

    def over_sets(self, values: Tensor, n: int) -> Estimate:
        """`(set,)` -> mean with an interval that resamples sets."""
        statistics = Statistics(self.config.resamples, ())
        found = statistics.estimate(values[:, None])
        ends = found.ci95 if len(values) > 1 else (None, None)
        return Estimate(mean=found.mean, ci95=ends, n=n)

    def share_of_runs(self, fallen: Tensor) -> Estimate:
        """Share of the runs, `(set, order)`, in which something happened, with an interval over sets."""
        found = self.over_sets(fallen.double().mean(dim=1), fallen.numel())
        if found.n < FEWEST_FOR_INTERVAL:
            return found.model_copy(update={"ci95": (None, None)})
        if found.mean in (0.0, 1.0):
            # Orders of a set are not independent, so each set counts once.
            exact = binomtest(len(fallen) if found.mean else 0, len(fallen)).proportion_ci(0.95, "exact")
            return found.model_copy(update={"ci95": (float(exact.low), float(exact.high))})
        return found

    def by_labels(self, runs: Sequence[RunAnswers]) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        """Accuracy by the labels shown, and what each rule changes, on the sets that were run with all of them."""
        rules = list(dict.fromkeys(run.labels for run in runs))
        if len(rules) < 2:
            return {}, {}
        shown = {(run.labels, run.seed): run for run in runs if run.order == 0}
        seeds = [seed for seed in self.config.seeds if all((rule, seed) in shown for rule in rules)]
        statistics = Statistics(self.config.resamples, tuple(map(str, seeds)))
        right = {
            rule: torch.stack([(shown[rule, seed].answers.argmax(dim=1) == self._labels).double() for seed in seeds])
            for rule in rules
        }
        accuracy = {rule: statistics.share(values) for rule, values in right.items()}
        effects = {
            rule: statistics.difference(values - right["true"]) for rule, values in right.items() if rule != "true"
        }
        return accuracy, effects

    def learners_compared(self, models: Sequence[ModelRuns]) -> list[Contrast]:
        """FT beside ICL within each model, plain and calibrated."""
        found = []
        for one in models:
            for name in (name for name in _learners(one) if name.startswith("ft")):
                found += self._contrasts("ft_beside_icl", name, (one, name), (one, "icl"))
        return found

    def sizes_compared(self, models: Sequence[ModelRuns]) -> list[Contrast]:
        """Each model beside the next smaller one, for ICL and FT."""
        found = []
        for smaller, larger in pairwise(models):
            for name in ("icl", "ft"):
                if all(any(run.learner == name for run in one.runs) for one in (smaller, larger)):
                    found += self._contrasts("size", name, (larger, name), (smaller, name))
        return found

    def _contrasts(
        self, question: str, learner: str, above: tuple[ModelRuns, str], below: tuple[ModelRuns, str]
    ) -> list[Contrast]:
        """Two spreads over the runs that both have."""
        sides = [[run for run in one.runs if run.learner == name] for one, name in (above, below)]
        first, second = (_grid(runs) for runs in sides)
        n_sets, n_orders = min(len(first), len(second)), min(len(first[0]), len(second[0]))
        if n_sets < 2:
            return []
        found = []
        for calibrated in (False, True):
            if calibrated and not all(len(run.content_free) for runs in sides for run in runs):
                continue
            accuracies = []
            for grid in (first, second):
                tables = [
                    [_there(run.calibrated) if calibrated else run.answers for run in row[:n_orders]]
                    for row in grid[:n_sets]
                ]
                accuracies.append(self.answers(tables).accuracy)
            ratio, low, high = spread_ratio(*accuracies, n_resamples=self.config.resamples, generator=self._generator())
            found.append(
                Contrast(
                    question=question,
                    learner=learner,
                    first=above[0].name,
                    second=below[0].name,
                    sd_first=float(accuracies[0].std()),
                    sd_second=float(accuracies[1].std()),
                    ratio=ratio,
                    ci95=(low, high),
                    n=n_sets,
                    calibrated=calibrated,
                )
            )
        return found


def _learners(one: ModelRuns) -> list[str]:
    """Names of a model's learners; a further rate that turned out to be the one chosen is not told twice."""
    chosen = {f"ft@{trial.learning_rate:g}" for trial in one.trials if trial.chosen}
    return [name for name in dict.fromkeys(run.learner for run in one.runs) if name not in chosen]


def _grid(runs: Sequence[RunAnswers]) -> list[list[RunAnswers]]:
    """Runs with true labels by set and order, as they were drawn."""
    rows: dict[int, list[RunAnswers]] = {}
    for run in runs:
        if run.labels == "true":
            rows.setdefault(run.seed, []).append(run)
    return list(rows.values())


def _there(table: Tensor | None) -> Tensor:
    assert table is not None
    return table


def _warnings(config: StabilityConfig, asked: TaskDescription, models: Sequence[ModelRuns]) -> list[str]:
    found = []
    for one in models:
        if one.facts["k_effective"] < config.k:
            found.append(
                f"{one.name}: {config.k} demonstrations were asked for, but only {one.facts['k_effective']} of some "
                f"sets fit a context of {asked.context} tokens beside the longest query. ICL and FT got the same."
            )
        wanted = max(config.orders, config.ft_orders)
        if one.facts["orders"] < wanted:
            found.append(
                f"{one.name}: {wanted} orders of each set were requested, but some sets have only "
                f"{one.facts['orders']}, because few of their demonstrations fit or some of them are equal. Every set "
                f"was run in {one.facts['orders']}."
            )
        diverged = sorted({f"{trial.learning_rate:g}" for trial in one.trials if trial.status == "diverged"})
        if diverged:
            found.append(
                f"{one.name}: the loss became NaN or infinite at the rates {', '.join(diverged)}; such a run was made "
                "again at the next lower rate."
            )
        rates = sorted(config.rates)
        chosen = [trial.learning_rate for trial in one.trials if trial.chosen]
        if len(rates) > 1 and any(rate in (rates[0], rates[-1]) for rate in chosen):
            found.append(f"{one.name}: FT's learning rate ({chosen[0]:g}) is at the edge of its grid. Widen the grid.")
        found += [f"{one.name}: {note}" for note in one.facts.get("notes", ())]
        found += slow_route(one.facts["route"], one.facts["refused_routes"], one.name)
    if len(config.seeds) < 8:
        found.append(f"{len(config.seeds)} demonstration sets: intervals of spreads over so few are too narrow.")
    return found

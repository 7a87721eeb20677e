"""Computes the results of a stability study from the answers of its runs."""

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
    """The answers of one learner adapted to one demonstration set in one order."""

    learner: str
    seed: int
    order: int
    labels: str
    answers: Tensor
    """Log-probabilities of shape `(example, answer)`, in nats."""
    content_free: Tensor
    """The same for the content-free queries, `(content_free, answer)`; no rows for multiple choice."""
    rate: float | None
    """FT's learning rate; None for other learners."""

    @property
    def calibrated(self) -> Tensor | None:
        """Log-probabilities after contextual calibration, `(example, answer)`; None without content-free queries."""
        return contextual_calibration(self.answers, self.content_free) if len(self.content_free) else None


@dataclass(frozen=True)
class ModelRuns:
    """All runs of one model."""

    name: str
    facts: dict[str, Any]
    runs: tuple[RunAnswers, ...]
    trials: tuple[Trial, ...]


def summarise_stability(
    config: StabilityConfig, description: TaskDescription, models: Sequence[ModelRuns], environment: dict[str, Any]
) -> StabilityResult:
    """The result of the study. It is deterministic, including the intervals.

    Args:
        config: The settings.
        description: The task and its reported queries.
        models: The runs of at least one model.
        environment: See `Result.environment`.
    """
    summary = _Summary(config, description)
    by_size = sorted(models, key=lambda model: (model.facts["parameters"], model.name))
    return task_result(
        StabilityResult,
        "stability",
        config,
        description,
        model={"name": ", ".join(model.name for model in by_size)},
        environment=environment,
        warnings=_warnings(config, description, by_size),
        stability=Stability(
            models={model.name: summary.model(model) for model in by_size},
            contrasts=[*summary.learner_contrasts(by_size), *summary.size_contrasts(by_size)],
        ),
    )


def runs_table(description: TaskDescription, models: Sequence[ModelRuns]) -> pa.Table:
    """One row for each model, run and query.

    Returns:
        Columns `model`, `learner`, `seed`, `order`, `labels`, those of `answers_table`, and `calibrated_prediction`
        (null without calibration).
    """
    blocks = []
    for model in models:
        for run in model.runs:
            about = {name: getattr(run, name) for name in ("learner", "seed", "order", "labels")}
            calibrated = run.calibrated
            answers = [None] * len(description.examples) if calibrated is None else calibrated.argmax(dim=1).tolist()
            more = {"calibrated_prediction": answers}
            blocks.append(AnswerRows({"model": model.name, **about}, description.examples, run.answers, more))
    return answers_table(description, blocks, {"calibrated_prediction": pa.int64()})


@dataclass(frozen=True)
class _Answers:
    """The predictions of a learner's runs."""

    predicted: Tensor
    """Label indices, `(set, order, example)`."""
    right: Tensor
    """1 for a correct prediction, else 0, `(set, order, example)`."""
    share: Tensor
    """Share of the most frequent prediction, `(set, order)`."""
    entropy: Tensor
    """Mean entropy of the label distributions in nats, `(set, order)`."""

    @property
    def accuracy(self) -> Tensor:
        """Accuracy of each run, `(set, order)`."""
        return self.right.mean(dim=2)


@dataclass(frozen=True)
class _Summary:
    config: StabilityConfig
    description: TaskDescription

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    @property
    def _labels(self) -> Tensor:
        return self.description.labels

    def model(self, model: ModelRuns) -> ModelStability:
        learners = {name: self.learner(model, name) for name in _learners(model)}
        return ModelStability(
            model=model.facts, learners=learners, trials=list(model.trials), fairness=self.fairness(model)
        )

    def fairness(self, model: ModelRuns) -> list[FairGap]:
        """ICL minus FT if one of the sets is chosen by the accuracy of one learner or of both."""
        right: dict[str, dict[int, Tensor]] = {"icl": {}, "ft": {}}
        for run in model.runs:
            if run.learner in right and run.order == 0 and run.labels == "true":
                right[run.learner][run.seed] = (run.answers.argmax(dim=1) == self._labels).double()
        seeds = [seed for seed in self.config.seeds if all(seed in by_seed for by_seed in right.values())]
        if len(seeds) < 2 or len(self.description.examples) < 2:
            return []
        icl, ft = (torch.stack([by_seed[seed] for seed in seeds]) for by_seed in right.values())
        gaps = []
        for select, chooser in _CHOOSERS.items():
            gap = chosen_gap(icl, ft, chooser, n_resamples=self.config.resamples, generator=self._generator())
            selecting, other = (
                Estimate(mean=mean, ci95=ends, n=len(seeds)) for mean, ends in zip(gap.gap, gap.gap_ci95, strict=True)
            )
            gaps.append(
                FairGap(
                    select=select,
                    icl_chosen_on=gap.first[0],
                    icl_untouched=gap.first[1],
                    ft_chosen_on=gap.second[0],
                    ft_untouched=gap.second[1],
                    gap_chosen_on=selecting,
                    gap_untouched=other,
                )
            )
        return gaps

    def learner(self, model: ModelRuns, name: str) -> LearnerStability:
        runs = [run for run in model.runs if run.learner == name]
        true = _grid(runs)
        rates = {run.rate for run in runs if run.rate is not None}
        plain = self.answers([[run.answers for run in row] for row in true])
        calibrated = None
        if all(len(run.content_free) for run in runs):
            calibrated = self.answers([[_calibrated(run) for run in row] for row in true])
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
        """The predictions from log-probabilities `(example, answer)` by set and order."""
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
        """The behaviour of one run from its log-probabilities, `(example, answer)`."""
        run = self.answers([[answers]])
        counts = torch.bincount(answers.argmax(dim=1))
        return RunBehaviour(
            accuracy=float(run.accuracy),
            majority_share=float(run.share),
            majority_label=(
                None if self.description.task.is_multiple_choice else self.description.answer_name(int(counts.argmax()))
            ),
            entropy=float(run.entropy),
        )

    def behaviour(self, answers: _Answers) -> Behaviour:
        """The behaviour of a learner over its runs."""
        n_sets, n_orders = answers.accuracy.shape
        ranges = answers.accuracy.amax(dim=1) - answers.accuracy.amin(dim=1)
        variance = None
        if n_sets > 1:
            parts = variance_split(answers.right, n_resamples=self.config.resamples, generator=self._generator())
            variance = VarianceSplit(
                set=parts.set,
                order=parts.order,
                residual=parts.residual,
                total=parts.total,
                set_ci95=parts.set_ci95,
                order_ci95=parts.order_ci95,
            )
        stats = Statistics(self.config.resamples, ())
        # Orders of a set are not independent, so each set contributes one number per query.
        by_set, names = answers.right.mean(dim=1), self.description.task.label_words
        return Behaviour(
            accuracy=self.spread(answers.accuracy),
            majority_share=self.spread(answers.share),
            entropy=self.spread(answers.entropy),
            collapse_rate=self.share_of_runs(answers.share > COLLAPSED_ABOVE),
            order_range=(
                self.over_sets(ranges, n_sets) if n_orders > 1 else Estimate(mean=None, ci95=(None, None), n=0)
            ),
            variance=variance,
            over_majority=stats.over_majority(by_set, self._labels),
            macro_f1=None if names is None else stats.macro_f1(answers.predicted, self._labels),
            per_label={} if names is None else stats.per_label(by_set, self._labels, names),
        )

    def spread(self, values: Tensor) -> Spread:
        """The distribution of `values`, `(set, order)`."""
        low, high = spread_interval(values, n_resamples=self.config.resamples, generator=self._generator())
        quartiles = torch.quantile(values.flatten(), values.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
        return Spread(
            mean=float(values.mean()),
            sd=float(values.std()) if values.numel() > 1 else None,
            sd_ci95=(low, high) if len(values) > 1 else (None, None),
            low=quartiles[0],
            q25=quartiles[1],
            median=quartiles[2],
            q75=quartiles[3],
            high=quartiles[4],
            n=values.numel(),
        )

    def over_sets(self, values: Tensor, n: int) -> Estimate:
        """Mean of `values`, `(set,)`; sets are resampled for its interval."""
        statistics = Statistics(self.config.resamples, ())
        estimate = statistics.estimate(values[:, None])
        ends = estimate.ci95 if len(values) > 1 else (None, None)
        return Estimate(mean=estimate.mean, ci95=ends, n=n)

    def share_of_runs(self, happened: Tensor) -> Estimate:
        """Share of the runs in which something happened, from booleans `(set, order)`."""
        estimate = self.over_sets(happened.double().mean(dim=1), happened.numel())
        if estimate.n < FEWEST_FOR_INTERVAL:
            return estimate.model_copy(update={"ci95": (None, None)})
        if estimate.mean in (0.0, 1.0):
            # Orders of a set are not independent, so each set counts once.
            n_sets = len(happened)
            exact = binomtest(n_sets if estimate.mean else 0, n_sets).proportion_ci(0.95, "exact")
            return estimate.model_copy(update={"ci95": (float(exact.low), float(exact.high))})
        return estimate

    def by_labels(self, runs: Sequence[RunAnswers]) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        """Accuracy by label rule and its difference from true labels, on the sets that were run with every rule."""
        rules = list(dict.fromkeys(run.labels for run in runs))
        if len(rules) < 2:
            return {}, {}
        by_rule = {(run.labels, run.seed): run for run in runs if run.order == 0}
        seeds = [seed for seed in self.config.seeds if all((rule, seed) in by_rule for rule in rules)]
        statistics = Statistics(self.config.resamples, tuple(map(str, seeds)))
        right = {
            rule: torch.stack([(by_rule[rule, seed].answers.argmax(dim=1) == self._labels).double() for seed in seeds])
            for rule in rules
        }
        accuracy = {rule: statistics.share(values) for rule, values in right.items()}
        effects = {
            rule: statistics.difference(values - right["true"]) for rule, values in right.items() if rule != "true"
        }
        return accuracy, effects

    def learner_contrasts(self, models: Sequence[ModelRuns]) -> list[Contrast]:
        """FT compared with ICL within each model, before and after calibration."""
        contrasts = []
        for model in models:
            for name in (name for name in _learners(model) if name.startswith("ft")):
                contrasts += self._contrasts("ft_beside_icl", name, (model, name), (model, "icl"))
        return contrasts

    def size_contrasts(self, models: Sequence[ModelRuns]) -> list[Contrast]:
        """Each model compared with the next smaller one, for ICL and FT."""
        contrasts = []
        for smaller, larger in pairwise(models):
            for name in ("icl", "ft"):
                if all(any(run.learner == name for run in model.runs) for model in (smaller, larger)):
                    contrasts += self._contrasts("size", name, (larger, name), (smaller, name))
        return contrasts

    def _contrasts(
        self, question: str, learner: str, numerator: tuple[ModelRuns, str], denominator: tuple[ModelRuns, str]
    ) -> list[Contrast]:
        """The ratio of two spreads over the runs that both have, before and after calibration."""
        sides = [[run for run in model.runs if run.learner == name] for model, name in (numerator, denominator)]
        first, second = (_grid(runs) for runs in sides)
        n_sets, n_orders = min(len(first), len(second)), min(len(first[0]), len(second[0]))
        if n_sets < 2:
            return []
        contrasts = []
        for calibrated in (False, True):
            if calibrated and not all(len(run.content_free) for runs in sides for run in runs):
                continue
            accuracies = []
            for grid in (first, second):
                tables = [
                    [_calibrated(run) if calibrated else run.answers for run in row[:n_orders]] for row in grid[:n_sets]
                ]
                accuracies.append(self.answers(tables).accuracy)
            ratio, low, high = spread_ratio(*accuracies, n_resamples=self.config.resamples, generator=self._generator())
            contrasts.append(
                Contrast(
                    question=question,
                    learner=learner,
                    first=numerator[0].name,
                    second=denominator[0].name,
                    sd_first=float(accuracies[0].std()),
                    sd_second=float(accuracies[1].std()),
                    ratio=ratio,
                    ci95=(low, high),
                    n=n_sets,
                    calibrated=calibrated,
                )
            )
        return contrasts


def _learners(model: ModelRuns) -> list[str]:
    """Names of a model's learners, without a further rate that equals the chosen one."""
    chosen = {f"ft@{trial.learning_rate:g}" for trial in model.trials if trial.chosen}
    return [name for name in dict.fromkeys(run.learner for run in model.runs) if name not in chosen]


def _grid(runs: Sequence[RunAnswers]) -> list[list[RunAnswers]]:
    """Runs with true labels, a row for each set and a column for each order."""
    rows: dict[int, list[RunAnswers]] = {}
    for run in runs:
        if run.labels == "true":
            rows.setdefault(run.seed, []).append(run)
    return list(rows.values())


def _calibrated(run: RunAnswers) -> Tensor:
    assert run.calibrated is not None
    return run.calibrated


def _warnings(config: StabilityConfig, description: TaskDescription, models: Sequence[ModelRuns]) -> list[str]:
    warnings = []
    for model in models:
        if model.facts["k_effective"] < config.k:
            warnings.append(
                f"{model.name}: {config.k} demonstrations were requested, but for some sets only "
                f"{model.facts['k_effective']} fit a context of {description.context} tokens together with the longest "
                "query. ICL and FT used the same demonstrations."
            )
        requested = max(config.orders, config.ft_orders)
        if model.facts["orders"] < requested:
            warnings.append(
                f"{model.name}: {requested} orders of each set were requested, but some sets have only "
                f"{model.facts['orders']}, because few of their demonstrations fit or some are equal. Every set was "
                f"run in {model.facts['orders']}."
            )
        diverged = sorted({f"{trial.learning_rate:g}" for trial in model.trials if trial.status == "diverged"})
        if diverged:
            warnings.append(
                f"{model.name}: the loss became NaN or infinite at the learning rates {', '.join(diverged)}; these "
                "runs were repeated at the next lower rate."
            )
        rates = sorted(config.rates)
        chosen = [trial.learning_rate for trial in model.trials if trial.chosen]
        if len(rates) > 1 and any(rate in (rates[0], rates[-1]) for rate in chosen):
            warnings.append(
                f"{model.name}: FT's learning rate ({chosen[0]:g}) is at the edge of its grid. Widen the grid."
            )
        warnings += [f"{model.name}: {note}" for note in model.facts.get("notes", ())]
        warnings += slow_route(model.facts["route"], model.facts["refused_routes"], model.name)
    if len(config.seeds) < 8:
        warnings.append(f"Only {len(config.seeds)} demonstration sets: the intervals of spreads are too narrow.")
    return warnings

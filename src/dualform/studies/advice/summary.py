"""The result of advice from its cells: curves, recommendations, break-even."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualform.learners.base import LEARNERS
from dualform.ops.classification import log_loss
from dualform.result import Estimate, LabelCount, Trial
from dualform.studies.advice import recommend
from dualform.studies.advice.config import AdviceConfig
from dualform.studies.advice.result import Advice, AdvicePoint, AdviceResult, BreakEven, Recommendation
from dualform.studies.common_warnings import few_seeds, low_precision
from dualform.studies.experiment import Experiment
from dualform.studies.facts import TaskDescription, demonstration_report, environment, model_facts, task_result
from dualform.studies.statistics import Statistics, counted_once

if TYPE_CHECKING:
    from dualform.studies.advice.run import AdviceCell


def summarise(
    config: AdviceConfig,
    experiment: Experiment[AdviceConfig],
    description: TaskDescription,
    cells: Sequence["AdviceCell"],
    budgets: Sequence[int],
    seconds: float,
) -> AdviceResult:
    """The result of advice.

    Args:
        config: The settings.
        experiment: Model, task and queries.
        description: The task and its reported queries.
        cells: All draws of all budgets.
        budgets: Numbers of labels, ascending.
        seconds: Wall-clock time of the run.
    """
    stats = Statistics(config.resamples, tuple(map(str, config.seeds)))
    labels = description.labels
    by_place = {(cell.seed, cell.budget): cell for cell in cells}
    names = list(cells[0].tables)
    tables = {
        name: torch.stack(
            [torch.stack([by_place[seed, budget].tables[name] for seed in config.seeds]) for budget in budgets]
        )
        for name in names
    }
    """Learner -> `(budget, seed, example, answer)`."""
    right = {name: (table.argmax(3) == labels).double() for name, table in tables.items()}
    curves = {
        name: [
            _point(
                name,
                budget,
                tables[name][place],
                labels,
                stats,
                description,
                [by_place[seed, budget] for seed in config.seeds],
            )
            for place, budget in enumerate(budgets)
        ]
        for name in names
    }
    largest = [by_place[seed, budgets[-1]] for seed in config.seeds]
    advice = Advice(
        budgets=list(budgets),
        curves=curves,
        recommendations=_recommendations(names, budgets, right, curves, stats),
        break_even=_break_even(budgets, right),
    )
    return task_result(
        AdviceResult,
        "advice",
        config,
        description,
        model={**model_facts(experiment.lm)},
        environment=environment(experiment.lm.device, seconds),
        warnings=_warnings(config, advice),
        demonstrations=demonstration_report(
            experiment.config.k, {cell.seed: (cell.rows[: cell.n_shown], 0) for cell in largest}
        ),
        trials=[Trial(**trial) for cell in cells for trial in cell.trials],
        advice=advice,
    )


def _point(
    name: str,
    budget: int,
    table: Tensor,
    labels: Tensor,
    stats: Statistics,
    description: TaskDescription,
    cells: Sequence["AdviceCell"],
) -> AdvicePoint:
    """A learner's numbers with one budget, from its answers `(seed, example, answer)`."""
    right = (table.argmax(2) == labels).double()
    by_draw = counted_once(name, right).mean(1)

    def mean(field: str) -> float:
        return sum(cell.costs[name][field] for cell in cells) / len(cells)

    return AdvicePoint(
        labels=budget,
        accuracy=stats.accuracy(name, table.argmax(2), labels, description.task.label_words),
        spread=float(by_draw.std()) if len(by_draw) > 1 else None,
        log_loss=float(log_loss(table, labels).nanmean()),
        used=LabelCount(**{field: max(cell.labels[name][field] for cell in cells) for field in cells[0].labels[name]}),
        adapt_seconds=mean("adapt_seconds"),
        adapt_flops=mean("adapt_flops"),
        query_seconds=mean("query_seconds"),
        query_flops=mean("query_flops"),
    )


def prompts(name: str) -> bool:
    """Whether a learner changes only the prompt, or how its answers are read."""
    learner = LEARNERS[name]
    return learner.trains_on == "nothing"


def _recommendations(
    names: Sequence[str],
    budgets: Sequence[int],
    right: dict[str, Tensor],
    curves: dict[str, list[AdvicePoint]],
    stats: Statistics,
) -> list[Recommendation]:
    """The recommended learner of each budget."""
    stacked = torch.stack([right[name] for name in names])
    chosen = recommend.best_learners(stacked, budgets)
    probabilities = recommend.probability_of_best(stacked, budgets, chosen)
    losses = recommend.regrets(stacked, budgets) if stacked.shape[3] > 1 else None
    recommendations = []
    for place, budget in enumerate(budgets):
        best = names[int(chosen[place])]
        differences = {
            name: stats.difference(right[best][place] - right[name][place]) for name in names if name != best
        }
        prompting = [name for name in names if prompts(name) and name != best]
        as_good = [name for name, each in differences.items() if _is_as_good(each)]
        over = None
        if prompting and not prompts(best):
            top = max(prompting, key=lambda name: float(right[name][place].mean()))
            over = differences[top]
        recommendations.append(
            Recommendation(
                labels=budget,
                learner=best,
                accuracy=Estimate(**curves[best][place].accuracy.model_dump(include=set(Estimate.model_fields))),
                probability=float(probabilities[place]),
                as_good=sorted(as_good, key=lambda name: (curves[name][place].query_flops or 0.0, name)),
                over_prompting=over,
                regret=None if losses is None else float(losses[0][place]),
                regret_of={}
                if losses is None
                else {name: float(losses[1][number, place]) for number, name in enumerate(names)},
            )
        )
    return recommendations


def _is_as_good(difference: Estimate) -> bool:
    """Whether a difference of accuracies is known not to be significantly above 0."""
    low = difference.ci95[0]
    return difference.mean == 0 if low is None else low <= 0


def _warnings(config: AdviceConfig, advice: Advice) -> list[str]:
    """What to consider before relying on the advice."""
    warnings = [*few_seeds(len(config.seeds)), *low_precision(config.dtype)]
    last = advice.recommendations[-1]
    over = advice.curves[last.learner][-1].accuracy.over_majority
    low = None if over is None else over.ci95[0]
    if low is None or low <= 0:
        warnings.append(
            f"With {last.labels} labels, the recommended learner is not significantly more accurate than always giving "
            "the most frequent label."
        )
    return warnings


def _break_even(budgets: Sequence[int], right: dict[str, Tensor]) -> BreakEven | None:
    by_draw = {name: values.mean(2) for name, values in right.items()}
    prompting = {name: values for name, values in by_draw.items() if prompts(name)}
    training = {name: values for name, values in by_draw.items() if not prompts(name)}
    if not prompting or not training:
        return None
    prompt, trained, labels, with_spread = recommend.break_even(budgets, prompting, training)
    return BreakEven(prompting=prompt, training=trained, labels=labels, labels_with_spread=with_spread)

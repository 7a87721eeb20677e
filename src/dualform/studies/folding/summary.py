"""Computes the results of a folding study from the answers of its folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform.models.reading.perplexity import perplexity
from dualform.result import Estimate, Trial
from dualform.studies.against import recovered
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.common_warnings import few_seeds
from dualform.studies.experiment import DemonstrationSet
from dualform.studies.facts import TaskDescription, demonstration_report, task_result
from dualform.studies.fold_settings import READS_PROMPT
from dualform.studies.folding.config import FoldingConfig, FoldVariant, PlannedPoint
from dualform.studies.folding.result import Composition, Folding, FoldingResult, FoldPoint, Perplexity, Transfer
from dualform.studies.statistics import Statistics, majority_label


@dataclass(frozen=True)
class FoldMeasurement:
    """The answers of one fold with one seed."""

    tensors: dict[str, Tensor]
    """`answers`, `(example, answer)`, and `plain`, `(text, 2)`, if plain text was read; empty if the fold failed."""
    about: dict[str, Any]
    """Facts about the fold; `failed` holds the reason if it failed."""


@dataclass(frozen=True)
class SeedFolds:
    """The answers of all learners with one seed."""

    seed: int
    demonstrations: dict[int, DemonstrationSet]
    """Requested number of demonstrations -> demonstrations."""
    prompted: dict[int, Tensor]
    """Requested number of demonstrations -> ICL's answers, `(example, answer)`."""
    ft: Tensor | None
    trials: tuple[Trial, ...]
    folds: dict[FoldVariant, FoldMeasurement]
    elsewhere: dict[str, dict[str, Tensor]]
    """Other task -> answers of the study's fold (`transfer`), the task's own fold (`alone`) and their sum (`sum`), and
    answers of the sum to the study's queries (`sum_here`), as far as requested."""


def summarise_folding(
    config: FoldingConfig,
    description: TaskDescription,
    base: Mapping[str, Tensor],
    seeds: Sequence[SeedFolds],
    labels: Mapping[str, Tensor],
    model: dict[str, Any],
    environment: dict[str, Any],
) -> FoldingResult:
    """The result of the study.

    Args:
        config: The settings.
        description: The task and its reported queries.
        base: Answers of the base model: `answers/` for the study's task, `answers/OTHER` for other tasks, and `plain`.
        seeds: The answers with each seed, at least one.
        labels: Other task -> correct answers, `(example,)`.
        model: See `Result.model`; its `n_layers` determines the sets of layers.
        environment: See `Result.environment`.
    """
    stats = Statistics(config.resamples, tuple(str(each.seed) for each in seeds))
    own_labels = torch.tensor([example.label for example in description.examples])

    def right(tables: Sequence[Tensor], task: str = "") -> Tensor:
        """1 for correct answers, else 0, `(seed, example)`, from the answers with every seed."""
        truth = labels[task] if task else own_labels
        return torch.stack([(table.argmax(dim=1) == truth).double() for table in tables])

    def zero_shot(task: str = "") -> Tensor:
        return right([base[f"answers/{task}"]] * len(seeds), task)

    def majority(task: str) -> float:
        return float((labels[task] == majority_label(labels[task])).double().mean())

    default = config.default
    points, warnings = [], []
    for planned in config.points(int(model["n_layers"])):
        about = [each.folds[planned.fold].about for each in seeds]
        failures = [facts["failed"] for facts in about if "failed" in facts]
        if failures:
            warnings.append(f"{planned.axis} {planned.value} could not be folded: {failures[0]}")
            continue
        points.append(_point(planned, seeds, right, zero_shot(), base, stats))
    transfer = []
    for task in config.transfer:
        folded = right([each.elsewhere[task]["transfer"] for each in seeds], task)
        before = zero_shot(task)
        transfer.append(
            Transfer(
                task=task,
                zero_shot=stats.share(before[:1]),
                folded=stats.share(folded),
                difference=stats.difference(folded - before),
                majority=majority(task),
            )
        )
    alone = stats.share(right([each.folds[default].tensors["answers"] for each in seeds]))
    compositions = [
        Composition(
            parts=[config.task, task],
            accuracy={
                config.task: stats.share(right([each.elsewhere[task]["sum_here"] for each in seeds])),
                task: stats.share(right([each.elsewhere[task]["sum"] for each in seeds], task)),
            },
            alone={
                config.task: alone,
                task: stats.share(right([each.elsewhere[task]["alone"] for each in seeds], task)),
            },
            majority={config.task: description.baselines.majority, task: majority(task)},
        )
        for task in config.compose
    ]
    finetuned = [each.ft for each in seeds if each.ft is not None]
    demonstration_sets = {each.seed: each.demonstrations[config.k] for each in seeds}
    return task_result(
        FoldingResult,
        "folding",
        config,
        description,
        model=model,
        environment=environment,
        warnings=[*warnings, *few_seeds(len(seeds))],
        demonstrations=demonstration_report(
            config.k,
            {seed: (each.demonstrations.rows, len(each.encoded.prefix)) for seed, each in demonstration_sets.items()},
        ),
        folding=Folding(
            zero_shot=stats.share(zero_shot()[:1]),
            icl=stats.share(right([each.prompted[config.k] for each in seeds])),
            ft=stats.share(right(finetuned)) if len(finetuned) == len(seeds) else None,
            points=points,
            perplexity=_perplexity(config, base, [each.folds[default] for each in seeds], stats),
            transfer=transfer,
            compositions=compositions,
        ),
        trials=[trial for each in seeds for trial in each.trials],
    )


def _point(
    planned: PlannedPoint,
    seeds: Sequence[SeedFolds],
    right: Any,
    zero_shot: Tensor,
    base: Mapping[str, Tensor],
    stats: Statistics,
) -> FoldPoint:
    fold = planned.fold
    outcomes = [each.folds[fold] for each in seeds]
    tables = [outcome.tensors["answers"] for outcome in outcomes]
    prompted = [each.prompted[fold.k] for each in seeds]
    same = torch.stack([(a.argmax(1) == b.argmax(1)).double() for a, b in zip(tables, prompted, strict=True)])
    ratio = None
    if all("plain" in outcome.tensors for outcome in outcomes):
        # From the tokens of all seeds, as for `Perplexity.ratio`.
        ratio = perplexity(torch.cat([outcome.tensors["plain"] for outcome in outcomes])) / perplexity(base["plain"])
    strengths = [outcome.about["strength"] for outcome in outcomes]
    fitting = min(len(each.demonstrations[fold.k].demonstrations.rows) for each in seeds)
    n_texts = {outcome.about["texts"] for outcome in outcomes}
    notes = []
    if fitting < fold.k:
        notes.append(f"only {fitting} demonstrations fit")
    if planned.axis == "source" and {outcome.about["source"] for outcome in outcomes} != {planned.value}:
        notes.append("the train split has too few other rows, so the model generated the texts")
    if fold.settings.method in READS_PROMPT:
        notes.append(READS_PROMPT[fold.settings.method])
    if planned.axis == "texts" and max(n_texts) < fold.settings.texts:
        notes.append(f"only {max(n_texts)} texts were available")
    return FoldPoint(
        axis=planned.axis,
        value=planned.value,
        accuracy=stats.share(right(tables)),
        icl=stats.share(right(prompted)),
        agreement=stats.share(same),
        recovered=recovered(right(tables), zero_shot, right(prompted), stats),
        gained=round(float((right(prompted) - zero_shot).sum())),
        strength=None if None in strengths else sum(strengths) / len(strengths),
        adapt_flops=sum(outcome.about["adapt_flops"] for outcome in outcomes) / len(outcomes),
        query_tokens=sum(outcome.about["tokens"] for outcome in outcomes) / len(outcomes),
        perplexity_ratio=ratio,
        note="; ".join(notes),
    )


def _perplexity(
    config: FoldingConfig, base: Mapping[str, Tensor], outcomes: Sequence[FoldMeasurement], stats: Statistics
) -> Perplexity | None:
    if "plain" not in base or any("plain" not in outcome.tensors for outcome in outcomes):
        return None
    before = base["plain"]
    after = torch.stack([outcome.tensors["plain"] for outcome in outcomes])
    perplexities = torch.tensor([perplexity(losses) for losses in after], dtype=torch.float64)
    # Losses of both models in nats and number of tokens, `(seed, text, 3)`; the ratio is computed from their totals.
    columns = torch.cat([after[..., :1], before.expand(len(after), -1, -1)], dim=-1)

    def ratio(totals: Tensor) -> Tensor:
        return ((totals[..., 0] - totals[..., 1]) / totals[..., 2]).exp()

    assert config.perplexity is not None
    return Perplexity(
        source=config.perplexity.replace("\\", "/").rpartition("/")[2],
        tokens=int(before[:, 1].sum()),
        before=perplexity(before),
        after=stats.estimate(perplexities[:, None]),
        ratio=Estimate(
            mean=float(ratio(columns.flatten(0, 1).sum(0))),
            ci95=stats.interval_of(ratio, columns),
            n=before.shape[0],
        ),
    )


def folding_table(description: TaskDescription, base: Mapping[str, Tensor], seeds: Sequence[SeedFolds]) -> pa.Table:
    """One row for each seed, learner and query of the study's own task.

    Returns:
        Columns `seed`, `learner` (`zsl`, `icl k=32`, `ft`, `fold METHOD k=32 ...`), and those of `answers_table`.
    """
    rows: list[tuple[int, str, Tensor]] = []
    for each in seeds:
        rows.append((each.seed, "zsl", base["answers/"]))
        rows += [(each.seed, f"icl k={k}", table) for k, table in each.prompted.items()]
        if each.ft is not None:
            rows.append((each.seed, "ft", each.ft))
        for fold, outcome in each.folds.items():
            if "answers" in outcome.tensors:
                changed = fold.settings.model_dump(exclude_defaults=True)
                settings = "".join(f" {name}={value}" for name, value in changed.items() if name != "method")
                rows.append(
                    (each.seed, f"fold {fold.settings.method} k={fold.k}{settings}", outcome.tensors["answers"])
                )
    blocks = (
        AnswerRows({"seed": seed, "learner": learner}, description.examples, table) for seed, learner, table in rows
    )
    return answers_table(description, blocks)

"""From the answers of many folds to the numbers of a `Folding`."""

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
    """What one fold of one seed brought."""

    tensors: dict[str, Tensor]
    """`answers`, `(example, answer)`, and where it was read `plain`, `(text, 2)`; empty where the fold failed."""
    about: dict[str, Any]
    """`failed` says why it did."""


@dataclass(frozen=True)
class SeedFolds:
    """All that one seed brought."""

    seed: int
    demonstrations: dict[int, DemonstrationSet]
    """By the number asked for."""
    prompted: dict[int, Tensor]
    """ICL's answers `(example, answer)`, by that number."""
    ft: Tensor | None
    trials: tuple[Trial, ...]
    folds: dict[FoldVariant, FoldMeasurement]
    elsewhere: dict[str, dict[str, Tensor]]
    """Other task -> `transfer`, `alone`, `sum` and `sum_here` (the sum asked the study's own queries), where asked."""


def summarise_folding(
    config: FoldingConfig,
    asked: TaskDescription,
    base: Mapping[str, Tensor],
    seeds: Sequence[SeedFolds],
    labels: Mapping[str, Tensor],
    model: dict[str, Any],
    environment: dict[str, Any],
) -> FoldingResult:
    """The whole study as a result.

    Args:
        config: The settings.
        asked: The queries.
        base: The base model's `answers/` (the study's task), `answers/OTHER` and `plain`.
        seeds: At least one.
        labels: Other task -> right answers, `(example,)`.
        model: See `Result.model`; its `n_layers` says what the axis `layers` means.
        environment: See `Result.environment`.
    """
    stats = Statistics(config.resamples, tuple(str(one.seed) for one in seeds))
    own = torch.tensor([example.label for example in asked.examples])

    def right(tables: Sequence[Tensor], task: str = "") -> Tensor:
        """Answers of every seed -> 1 where right, `(seed, example)`."""
        truth = labels[task] if task else own
        return torch.stack([(table.argmax(dim=1) == truth).double() for table in tables])

    def zero_shot(task: str = "") -> Tensor:
        return right([base[f"answers/{task}"]] * len(seeds), task)

    def majority(task: str) -> float:
        return float((labels[task] == majority_label(labels[task])).double().mean())

    default = config.default
    points, notes = [], []
    for planned in config.points(int(model["n_layers"])):
        failed = [one.folds[planned.fold].about["failed"] for one in seeds if "failed" in one.folds[planned.fold].about]
        if failed:
            notes.append(f"{planned.axis} {planned.value} could not be folded: {failed[0]}")
            continue
        points.append(_point(planned, seeds, right, zero_shot(), base, stats))
    transfer = []
    for task in config.transfer:
        folded = right([one.elsewhere[task]["transfer"] for one in seeds], task)
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
    alone = stats.share(right([one.folds[default].tensors["answers"] for one in seeds]))
    compositions = [
        Composition(
            parts=[config.task, task],
            accuracy={
                config.task: stats.share(right([one.elsewhere[task]["sum_here"] for one in seeds])),
                task: stats.share(right([one.elsewhere[task]["sum"] for one in seeds], task)),
            },
            alone={
                config.task: alone,
                task: stats.share(right([one.elsewhere[task]["alone"] for one in seeds], task)),
            },
            majority={config.task: asked.baselines.majority, task: majority(task)},
        )
        for task in config.compose
    ]
    trained = [one.ft for one in seeds if one.ft is not None]
    drawn = {one.seed: one.demonstrations[config.k] for one in seeds}
    return task_result(
        FoldingResult,
        "folding",
        config,
        asked,
        model=model,
        environment=environment,
        warnings=[*notes, *few_seeds(len(seeds))],
        demonstrations=demonstration_report(
            config.k, {seed: (one.demonstrations.rows, len(one.encoded.prefix)) for seed, one in drawn.items()}
        ),
        folding=Folding(
            zero_shot=stats.share(zero_shot()[:1]),
            icl=stats.share(right([one.prompted[config.k] for one in seeds])),
            ft=stats.share(right(trained)) if len(trained) == len(seeds) else None,
            points=points,
            perplexity=_perplexity(config, base, [one.folds[default] for one in seeds], stats),
            transfer=transfer,
            compositions=compositions,
        ),
        trials=[trial for one in seeds for trial in one.trials],
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
    outcomes = [one.folds[fold] for one in seeds]
    tables = [outcome.tensors["answers"] for outcome in outcomes]
    prompted = [one.prompted[fold.k] for one in seeds]
    same = torch.stack([(a.argmax(1) == b.argmax(1)).double() for a, b in zip(tables, prompted, strict=True)])
    ratio = None
    if all("plain" in outcome.tensors for outcome in outcomes):
        # Over all seeds' tokens, as `Perplexity.ratio`.
        ratio = perplexity(torch.cat([outcome.tensors["plain"] for outcome in outcomes])) / perplexity(base["plain"])
    strengths = [outcome.about["strength"] for outcome in outcomes]
    fitted = min(len(one.demonstrations[fold.k].demonstrations.rows) for one in seeds)
    read = {outcome.about["texts"] for outcome in outcomes}
    said = []
    if fitted < fold.k:
        said.append(f"{fitted} demonstrations fit")
    if planned.axis == "source" and {outcome.about["source"] for outcome in outcomes} != {planned.value}:
        said.append("the train split has too few other rows, so the model wrote the texts")
    if fold.settings.method in READS_PROMPT:
        said.append(READS_PROMPT[fold.settings.method])
    if planned.axis == "texts" and max(read) < fold.settings.texts:
        said.append(f"{max(read)} texts were to be had")
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
        note="; ".join(said),
    )


def _perplexity(
    config: FoldingConfig, base: Mapping[str, Tensor], outcomes: Sequence[FoldMeasurement], stats: Statistics
) -> Perplexity | None:
    if "plain" not in base or any("plain" not in outcome.tensors for outcome in outcomes):
        return None
    before = base["plain"]
    after = torch.stack([outcome.tensors["plain"] for outcome in outcomes])
    each = torch.tensor([perplexity(one) for one in after], dtype=torch.float64)
    # Nats of both models and tokens, `(seed, text, 3)`: their totals make the ratio of perplexities.
    columns = torch.cat([after[..., :1], before.expand(len(after), -1, -1)], dim=-1)

    def ratio(totals: Tensor) -> Tensor:
        return ((totals[..., 0] - totals[..., 1]) / totals[..., 2]).exp()

    assert config.perplexity is not None
    return Perplexity(
        source=config.perplexity.replace("\\", "/").rpartition("/")[2],
        tokens=int(before[:, 1].sum()),
        before=perplexity(before),
        after=stats.estimate(each[:, None]),
        ratio=Estimate(
            mean=float(ratio(columns.flatten(0, 1).sum(0))),
            ci95=stats.interval_of(ratio, columns),
            n=before.shape[0],
        ),
    )


def folding_table(asked: TaskDescription, base: Mapping[str, Tensor], seeds: Sequence[SeedFolds]) -> pa.Table:
    """One row for each seed, learner and query of the study's own task.

    Returns:
        Columns `seed`, `learner` (`zsl`, `icl k=32`, `ft`, `fold METHOD k=32 ...`), and those of `answers_table`.
    """
    rows: list[tuple[int, str, Tensor]] = []
    for one in seeds:
        rows.append((one.seed, "zsl", base["answers/"]))
        rows += [(one.seed, f"icl k={k}", table) for k, table in one.prompted.items()]
        if one.ft is not None:
            rows.append((one.seed, "ft", one.ft))
        for fold, outcome in one.folds.items():
            if "answers" in outcome.tensors:
                changed = fold.settings.model_dump(exclude_defaults=True)
                more = "".join(f" {name}={value}" for name, value in changed.items() if name != "method")
                rows.append((one.seed, f"fold {fold.settings.method} k={fold.k}{more}", outcome.tensors["answers"]))
    blocks = (AnswerRows({"seed": seed, "learner": learner}, asked.examples, table) for seed, learner, table in rows)
    return answers_table(asked, blocks)

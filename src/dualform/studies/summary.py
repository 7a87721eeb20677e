"""From query-by-query outcomes to the numbers of a `Result`: means, intervals, counts, and what to beware of."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform._version import __version__
from dualform.models.language_model import LanguageModel
from dualform.ops.agreement import prediction_entropy, rec2ftp
from dualform.ops.bootstrap import (
    clustered_bootstrap,
    clustered_bootstrap_of,
    clustered_bootstrap_ratio,
    clustered_mean,
)
from dualform.result import (
    Accuracy,
    Cost,
    DemonstrationReport,
    Estimate,
    Predictions,
    Result,
    Similarity,
)
from dualform.studies.comparison_config import ComparisonConfig
from dualform.studies.outcome import SeedOutcome
from dualform.tasks.task import Example, Task


@dataclass(frozen=True)
class Asked:
    """What the model was asked."""

    task: Task
    examples: tuple[Example, ...]
    """The reported queries, in the order of every `(example, ...)` tensor."""
    n_selection: int
    report_split: str
    selection_split: str
    prompt_tokens: float
    """Mean length of a query's prompt, tokens."""
    context: int
    """Longest sequence, tokens: the setting, or the model's own limit."""
    notes: tuple[str, ...]
    """What a reader must know about the protocol."""

    def answer_name(self, label: int) -> str:
        """What to call a label in tables: its word, or its number among free-text choices."""
        words = self.task.label_words
        return str(label) if words is None else words[label]


def summarise(
    config: ComparisonConfig, lm: LanguageModel, asked: Asked, outcomes: Sequence[SeedOutcome], seconds: float
) -> Result:
    """All seeds' outcomes as one result.

    Args:
        config: The settings.
        lm: The model that was compared.
        asked: The queries.
        outcomes: At least one seed's.
        seconds: Wall-clock time of the run.

    Returns:
        The result; equal outcomes give equal numbers, intervals included.
    """
    stats = _Statistics(config.resamples, tuple(str(outcome.seed) for outcome in outcomes))
    labels = torch.tensor([example.label for example in asked.examples])
    learners = list(outcomes[0].log_probabilities)
    tables = {name: torch.stack([outcome.log_probabilities[name] for outcome in outcomes]) for name in learners}
    right = {name: (table.argmax(dim=2) == labels).double() for name, table in tables.items()}
    similarity, controls = _similarities(outcomes, stats)
    if {"zsl", "icl", "ft"} <= right.keys():
        similarity["rec2ftp"] = _recovered(right["zsl"].bool(), right["icl"].bool(), right["ft"].bool(), stats)
        agreement = similarity["agreement"]
        chance = _chance_agreement(tables["icl"].argmax(dim=2), tables["ft"].argmax(dim=2))
        similarity["agreement"] = agreement.model_copy(update={"details": {"chance": chance, **agreement.details}})
    return Result(
        dualform=__version__,
        study="comparison",
        config=config.model_dump(mode="json"),
        environment=_environment(lm, seconds),
        model={**_model_facts(lm), "inputs": outcomes[0].inputs},
        task=_task_facts(asked),
        demonstrations=_demonstrations(config, outcomes),
        accuracy={name: stats.accuracy(name, values) for name, values in right.items()},
        predictions={name: _predictions(asked, name, table) for name, table in tables.items()},
        similarity=similarity,
        controls=controls,
        cost={name: _cost(name, outcomes) for name in learners},
        trials=[trial for outcome in outcomes for trial in outcome.trials],
        warnings=[*asked.notes, *asked.task.notes, *_warnings(config, lm, asked, outcomes)],
    )


def examples_table(asked: Asked, outcomes: Sequence[SeedOutcome]) -> pa.Table:
    """One row for each seed, learner and query.

    Returns:
        Columns `seed`, `learner`, `query` (row number in the report split's file), `label`, `prediction` (label
        numbers), and one `log_probability:WORD` for each label (nats a token; null where a query has fewer choices).
    """
    n_answers = max(table.shape[1] for outcome in outcomes for table in outcome.log_probabilities.values())
    columns: dict[str, list[Any]] = {name: [] for name in ("seed", "learner", "query", "label", "prediction")}
    answers: list[list[float | None]] = [[] for _ in range(n_answers)]
    for outcome in outcomes:
        for learner, table in outcome.log_probabilities.items():
            for example, row, prediction in zip(
                asked.examples, table.tolist(), table.argmax(dim=1).tolist(), strict=True
            ):
                columns["seed"].append(outcome.seed)
                columns["learner"].append(learner)
                columns["query"].append(example.row)
                columns["label"].append(example.label)
                columns["prediction"].append(prediction)
                n_choices = len(asked.task.answers(example))
                for i, column in enumerate(answers):
                    column.append(row[i] if i < n_choices else None)
    named = {
        f"log_probability:{asked.answer_name(i)}": pa.array(column, pa.float64()) for i, column in enumerate(answers)
    }
    return pa.table({**columns, **named})


@dataclass(frozen=True)
class _Statistics:
    resamples: int
    seeds: tuple[str, ...]

    def _generator(self) -> torch.Generator:
        # The same resamples for every number: intervals of related numbers can then be compared.
        return torch.Generator().manual_seed(0)

    def interval(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return clustered_bootstrap(values, n_resamples=self.resamples, generator=self._generator())

    def estimate(self, values: Tensor) -> Estimate:
        """`(seed, example)` -> mean and interval."""
        low, high = self.interval(values)
        n = int(values.isfinite().sum())
        return Estimate(mean=float(clustered_mean(values)), ci95=(float(low), float(high)), n=n)

    def ratio(self, numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
        low, high = clustered_bootstrap_ratio(
            numerator, denominator, n_resamples=self.resamples, generator=self._generator()
        )
        return float(low), float(high)

    def per_seed(self, values: Tensor) -> dict[str, float | None]:
        return {seed: float(row.nanmean()) for seed, row in zip(self.seeds, values, strict=True)}

    def accuracy(self, learner: str, right: Tensor) -> Accuracy:
        # Zero-shot does not depend on the seed; counting it once for each would feign more queries.
        estimate = self.estimate(right[:1] if learner == "zsl" else right)
        return Accuracy(**estimate.model_dump(), per_seed=self.per_seed(right))

    def similarity(self, values: Tensor) -> Similarity:
        """`(seed, example)`, `(seed, example, layer)` or `(seed, example, layer, head)` -> the full record."""
        per_head = clustered_mean(values).tolist() if values.dim() == 4 else None
        by_layer = values.nanmean(dim=3) if values.dim() == 4 else values
        overall = by_layer.nanmean(dim=2) if values.dim() > 2 else by_layer
        estimate = self.estimate(overall)
        layers, intervals = None, None
        if values.dim() > 2:
            low, high = self.interval(by_layer)
            layers = clustered_mean(by_layer).tolist()
            intervals = list(zip(low.tolist(), high.tolist(), strict=True))
        return Similarity(
            **estimate.model_dump(),
            per_seed=self.per_seed(overall),
            per_layer=layers,
            per_layer_ci95=intervals,
            per_head=per_head,
        )


def _similarities(
    outcomes: Sequence[SeedOutcome], stats: _Statistics
) -> tuple[dict[str, Similarity], dict[str, dict[str, Similarity]]]:
    names = [name for name in outcomes[0].measures if all(name in outcome.measures for outcome in outcomes)]
    stacked = {name: torch.stack([outcome.measures[name] for outcome in outcomes]) for name in names}
    similarity = {name: stats.similarity(values) for name, values in stacked.items() if "." not in name}
    controls: dict[str, dict[str, Similarity]] = {}
    for name, values in stacked.items():
        first, _, rest = name.partition(".")
        if first == "control":
            control, _, measure = rest.partition(".")
            controls.setdefault(control, {})[measure] = stats.similarity(values)
        elif rest:
            overall = values.flatten(2).nanmean(dim=2) if values.dim() > 2 else values
            companion = {rest: stats.estimate(overall).model_dump(mode="json")}
            details = {**similarity[first].details, **companion}
            similarity[first] = similarity[first].model_copy(update={"details": details})
    return similarity, controls


def _recovered(zsl: Tensor, icl: Tensor, ft: Tensor, stats: _Statistics) -> Similarity:
    """Rec2FTP over all seeds' queries together, `(seed, example)` bools."""
    whole = rec2ftp(zsl.flatten(), icl.flatten(), ft.flatten())
    fixed = (ft & ~zsl).double()
    columns = torch.stack([(fixed.bool() & icl).double(), fixed, (icl & ~zsl).double(), (~zsl).double()], dim=-1)
    low, high = clustered_bootstrap_of(
        lambda totals: totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3],
        columns,
        n_resamples=stats.resamples,
        generator=torch.Generator().manual_seed(0),
    )
    details: dict[str, Any] = {
        name: getattr(whole, name)
        for name in (
            "numerator",
            "denominator",
            "chance",
            "chance_numerator",
            "chance_denominator",
            "lift",
            "reverse",
            "reverse_numerator",
            "reverse_denominator",
            "jaccard",
            "jaccard_numerator",
            "jaccard_denominator",
        )
    }
    details = {name: None if value != value else value for name, value in details.items()}
    details["lift_ci95"] = [None if value != value else value for value in (float(low), float(high))]
    return Similarity(
        mean=whole.value,
        ci95=stats.ratio(columns[..., 0], columns[..., 1]),
        n=whole.denominator,
        per_seed={seed: rec2ftp(z, i, f).value for seed, z, i, f in zip(stats.seeds, zsl, icl, ft, strict=True)},
        details=details,
    )


def _chance_agreement(icl: Tensor, ft: Tensor) -> float:
    """Agreement of two independent answerers with these label frequencies, mean over seeds."""
    shares = []
    for a, b in zip(icl, ft, strict=True):
        n_labels = int(max(a.max(), b.max())) + 1
        p, q = (torch.bincount(x, minlength=n_labels).double() / len(x) for x in (a, b))
        shares.append(float((p * q).sum()))
    return sum(shares) / len(shares)


def _predictions(asked: Asked, learner: str, table: Tensor) -> Predictions:
    answers = table[:1] if learner == "zsl" else table
    predicted = answers.argmax(dim=2).flatten()
    counts = torch.bincount(predicted, minlength=asked.task.n_labels).tolist()
    majority = max(range(len(counts)), key=counts.__getitem__)
    return Predictions(
        majority_share=counts[majority] / len(predicted),
        majority_label=None if asked.task.is_multiple_choice else asked.answer_name(majority),
        entropy=float(prediction_entropy(answers.flatten(0, 1)).nanmean()),
        counts={asked.answer_name(label): count for label, count in enumerate(counts)},
    )


def _cost(learner: str, outcomes: Sequence[SeedOutcome]) -> Cost:
    costs = [outcome.costs[learner] for outcome in outcomes]
    mean = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
    # A search that was done once for all seeds is charged once, not averaged away.
    mean["search_seconds"] = sum(cost["search_seconds"] for cost in costs)
    return Cost(**mean)


def _demonstrations(config: ComparisonConfig, outcomes: Sequence[SeedOutcome]) -> DemonstrationReport:
    return DemonstrationReport(
        k_requested=config.k,
        k_effective=min(len(outcome.rows) for outcome in outcomes),
        k_effective_per_seed={str(outcome.seed): len(outcome.rows) for outcome in outcomes},
        rows={str(outcome.seed): list(outcome.rows) for outcome in outcomes},
        tokens={str(outcome.seed): outcome.n_tokens for outcome in outcomes},
    )


def _warnings(config: ComparisonConfig, lm: LanguageModel, asked: Asked, outcomes: Sequence[SeedOutcome]) -> list[str]:
    found = []
    fitted = {outcome.seed: len(outcome.rows) for outcome in outcomes}
    if min(fitted.values()) < config.k:
        shown = ", ".join(f"seed {seed}: {k}" for seed, k in fitted.items())
        found.append(
            f"{config.k} demonstrations were asked for, but fewer fit the context of {asked.context} tokens beside "
            f"the longest query ({shown}). All learners got these."
        )
    if len(outcomes) == 1:
        found.append("One demonstration seed: the intervals say nothing about other demonstrations.")
    elif len(outcomes) < 8:
        found.append(f"{len(outcomes)} demonstration seeds: bootstrap intervals over so few are somewhat too narrow.")
    diverged = sorted(
        {f"{t.learner} at {t.learning_rate:g}" for o in outcomes for t in o.trials if t.status == "diverged"}
    )
    if diverged:
        found.append(f"The loss became NaN or infinite, and these rates were dropped: {', '.join(diverged)}.")
    trials = [trial for outcome in outcomes for trial in outcome.trials]
    at_edge = {
        f"{trial.learner} ({trial.learning_rate:g})": None
        for trial in trials
        for grid in [sorted(config.rates if trial.learner == "ft" else config.lora_rates)]
        if trial.chosen and len(grid) > 1 and trial.learning_rate in (grid[0], grid[-1])
    }
    if at_edge:
        found.append(f"The learning rate chosen is at the edge of its grid: {', '.join(at_edge)}. Widen the grid.")
    if config.dtype in ("bfloat16", "float16"):
        found.append(
            f"The model ran in {config.dtype}: small updates are rounded away, so similarities are not to be used."
        )
    if lm.refused:
        found.append(f"Read by the route '{lm.route.name}', slower than others that failed: {'; '.join(lm.refused)}.")
    return found


def _model_facts(lm: LanguageModel) -> dict[str, Any]:
    return {
        "name": lm.name,
        "architecture": type(lm.model).__name__,
        "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
        "n_layers": len(lm.anatomy.layers),
        "n_heads": lm.anatomy.n_heads,
        "d_model": int(lm.model.get_input_embeddings().weight.shape[1]),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "route": lm.route.name,
        "revision": getattr(lm.model.config, "_commit_hash", None),
        "vocabulary": int(lm.model.get_input_embeddings().weight.shape[0]),
    }


def _task_facts(asked: Asked) -> dict[str, Any]:
    task = asked.task
    return {
        "name": task.name,
        "source": task.source,
        "label_words": None if task.label_words is None else list(task.label_words),
        "prompt": task.template.render(asked.examples[0]),
        "prompt_tokens": asked.prompt_tokens,
        "n_report": len(asked.examples),
        "report_split": asked.report_split,
        "n_selection": asked.n_selection,
        "selection_split": asked.selection_split,
    }


def _environment(lm: LanguageModel, seconds: float) -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "scikit-learn", "scipy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(lm.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": _command(),
    }


def _command() -> str | None:
    """The command line that is running, to be pasted again; None when it is not ours."""
    if not sys.argv or Path(sys.argv[0]).stem != "dualform":
        return None
    return shlex.join(["dualform", *sys.argv[1:]])

"""Summary of trained arms as a `MomentumReport`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform._version import __version__
from dualform.studies.experiment import sample
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.result import (
    CurvePoint,
    MomentumArm,
    MomentumRegression,
    MomentumReport,
    MomentumResult,
    PretrainedMomentum,
    TaskScore,
)
from dualform.studies.seed_statistics import over_seeds, paired_difference
from dualform.studies.statistics import Statistics
from dualform.tasks.task import Example, Task


@dataclass(frozen=True)
class ArmRun:
    """Numbers of one run of one arm."""

    answers: dict[str, Tensor]
    """Task -> log-probabilities `(example, answer)`."""
    about: dict[str, Any]
    """`losses` by length, `curve`, `parameters`, `learned_eta`, `k` by task, `notes`."""

    @property
    def finished(self) -> bool:
        """Whether there is a trained model; False if training diverged."""
        return bool(self.about["losses"])


def summarise_momentum(
    config: MomentumConfig,
    runs: Mapping[tuple[Arm, int], ArmRun],
    step_ratios: Mapping[Arm, float],
    tasks: Mapping[str, Task],
    environment: dict[str, Any],
    inputs: str,
    regression: MomentumRegression | None,
    pretrained: list[PretrainedMomentum],
    notes_of_models: Sequence[str] = (),
) -> MomentumResult:
    """The result of the whole study.

    Args:
        config: Settings of the study.
        runs: All runs by arm and seed.
        step_ratios: Arm -> duration of a training step divided by its baseline's.
        tasks: Tasks on which the models were tested, by name.
        environment: See `Result.environment`.
        inputs: Digest of texts, recipe and tasks.
        regression: Results of in-context regression, or None.
        pretrained: Results on models that were trained without momentum.
        notes_of_models: Notes from loading those models.
    """
    recipe = config.recipe_of(config.seeds[0])
    notes = list(dict.fromkeys((*notes_of_models, *(note for run in runs.values() for note in run.about["notes"]))))
    for name in tasks:
        fitted = [int(run.about["k"][name]) for run in runs.values() if name in run.about["k"]]
        if fitted and min(fitted) < config.k:
            number = min(fitted) if min(fitted) == max(fitted) else f"{min(fitted)} to {max(fitted)}"
            notes.append(f"{name}: {number} of {config.k} demonstrations fit the training length of {recipe.length}.")
    if len(config.seeds) == 1:
        notes.append("One seed has no interval: train several, with --seeds 1..5.")
    elif len(config.seeds) < 5:
        notes.append(
            f"{len(config.seeds)} seeds: Student's intervals over so few seeds are wide and assume a normal "
            "distribution."
        )
    return MomentumResult(
        dualform=__version__,
        study="momentum",
        config=config.model_dump(mode="json"),
        environment=environment,
        model={
            "name": Path(config.recipe).stem,
            "architecture": str(recipe.model.get("model_type")),
            "recipe": recipe.model_dump(mode="json", exclude={"seed", "data_seed"}),
            "inputs": inputs,
        },
        momentum=MomentumReport(
            recipe=Path(config.recipe).stem,
            tokens=recipe.steps * recipe.batch_tokens,
            length=recipe.length,
            arms=[_arm(config, arm, runs, step_ratios.get(arm), tasks) for arm in config.arms],
            regression=regression,
            pretrained=pretrained,
        ),
        warnings=notes,
    )


def _arm(
    config: MomentumConfig,
    arm: Arm,
    runs: Mapping[tuple[Arm, int], ArmRun],
    step_ratio: float | None,
    tasks: Mapping[str, Task],
) -> MomentumArm:
    own = _finished(config, runs, arm)
    baseline = None if arm.baseline is None else _finished(config, runs, arm.baseline)
    both = [seed for seed in own if baseline is not None and seed in baseline]
    lengths = [str(length) for length in config.lengths()]
    learned = [run.about["learned_eta"] for run in own.values()]

    def losses(by_seed: Mapping[int, ArmRun], seeds: Iterable[int], length: str) -> list[float]:
        return [by_seed[seed].about["losses"][length] for seed in seeds]

    return MomentumArm(
        name=arm.name,
        kind=arm.kind,
        eta=arm.eta,
        baseline=None if arm.baseline is None else arm.baseline.name,
        parameters=int(runs[arm, config.seeds[0]].about["parameters"]),
        step_ratio=step_ratio,
        perplexity={length: over_seeds([math.exp(loss) for loss in losses(own, own, length)]) for length in lengths},
        difference={}
        if baseline is None
        else {
            length: paired_difference(both, losses(own, both, length), losses(baseline, both, length))
            for length in lengths
        },
        curve=[
            CurvePoint(tokens=int(points[0][0]), loss=sum(loss for _, loss in points) / len(points))
            for points in zip(*(run.about["curve"] for run in own.values()), strict=True)
        ],
        learned_eta=[sum(layer) / len(layer) for layer in zip(*learned, strict=True)],
        tasks=[
            _task(config, name, task, own, baseline)
            for name, task in tasks.items()
            if own and all(name in run.answers for run in own.values())
        ],
    )


def _finished(config: MomentumConfig, runs: Mapping[tuple[Arm, int], ArmRun], arm: Arm) -> dict[int, ArmRun]:
    """Runs of an arm that did not diverge, by seed."""
    return {seed: runs[arm, seed] for seed in config.seeds if runs[arm, seed].finished}


def _task(
    config: MomentumConfig, name: str, task: Task, own: Mapping[int, ArmRun], baseline: Mapping[int, ArmRun] | None
) -> TaskScore:
    truth = torch.tensor([example.label for example in queries_of(config, task)])

    def correct(runs: Mapping[int, ArmRun]) -> dict[int, Tensor]:
        return {seed: (run.answers[name].argmax(1) == truth).double() for seed, run in runs.items()}

    own_correct, baseline_correct = correct(own), correct(baseline or {})
    both = [seed for seed in own_correct if seed in baseline_correct]
    return TaskScore(
        task=name,
        k=min(int(run.about["k"][name]) for run in own.values()),
        chance=float(truth.bincount().max() / len(truth)),
        accuracy=Statistics(config.resamples, tuple(map(str, own))).share(torch.stack(list(own_correct.values()))),
        difference=None
        if baseline is None
        else paired_difference(
            both,
            [float(own_correct[seed].mean()) for seed in both],
            [float(baseline_correct[seed].mean()) for seed in both],
        ),
    )


def queries_of(config: MomentumConfig, task: Task) -> tuple[Example, ...]:
    """Queries of a task on which models are tested."""
    return sample(task.split(task.report_split), config.limit)


def momentum_table(
    config: MomentumConfig, runs: Mapping[tuple[Arm, int], ArmRun], tasks: Mapping[str, Task]
) -> pa.Table:
    """One row for each arm, seed and length, and one for each arm, seed, task and query.

    Returns:
        Columns `arm`, `seed`; `length` and `loss` (nats a token); `task`, `query`, `label` and `prediction`. Missing
        values are null.
    """
    rows: list[dict[str, Any]] = []
    for (arm, seed), run in runs.items():
        own = {"arm": arm.name, "seed": seed}
        rows += [{**own, "length": int(length), "loss": loss} for length, loss in run.about["losses"].items()]
        for name, table in run.answers.items():
            for example, prediction in zip(queries_of(config, tasks[name]), table.argmax(1).tolist(), strict=True):
                more = {"task": name, "query": example.row, "label": example.label, "prediction": prediction}
                rows.append({**own, **more})
    columns = ("arm", "seed", "length", "loss", "task", "query", "label", "prediction")
    return pa.table({name: [row.get(name) for row in rows] for name in columns})

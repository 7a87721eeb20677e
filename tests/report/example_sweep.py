"""A made-up but plausible sweep, holes included: two models, six tasks, three seeds."""

import random
from typing import Any, Literal

from dualform.result import (
    Accuracy,
    Calibrated,
    Cost,
    DemonstrationReport,
    Estimate,
    PairedTest,
    Predictions,
    PromptingComparison,
    Result,
    Similarity,
)
from dualform.sweep_result import CellFailure, SweepCell, SweepGroup, SweepResult
from tests.report.example_selection import example_selection
from tests.report.example_stability import example_stability

SEEDS = (1, 2, 3)
MODELS = ("smollm2-135m", "gemma3-270m")
TASKS = ("sst2", "sst5", "mr", "subj", "agnews", "cb")
LABELS = {"sst5": 5, "agnews": 4, "cb": 3}
LEARNERS = ("zsl", "icl", "ft", "lora", "probe", "fold")
N = 600

TRACEBACK = """Traceback (most recent call last):
  File "dualform/studies/comparison/run.py", line 212, in compare_seed
    outcome = learner.adapt(model, demonstrations)
  File "dualform/learners/finetuned.py", line 88, in adapt
    raise TrainingError(f"finetuning on seed {seed} gave NaN at step {step}")
dualform.errors.TrainingError: finetuning on seed 2 gave NaN at step 3
"""

# How far each learner lies above zero-shot on each task, points, for the first model; the second is somewhat better.
_GAINS = {
    "sst2": (21, 17, 12, 11, 19),
    "sst5": (7, 6, 4, 5, 6),
    "mr": (18, 19, 13, 11, 14),
    "subj": (1, 12, 9, 14, 0),
    "agnews": (25, 20, 14, 21, 22),
    "cb": (-1, 2, 0, 1, -2),
}


def example_sweep(**changes: Any) -> SweepResult:
    """Twelve comparisons, one of which lost a seed and one all; `changes` replace whole fields."""
    groups = [
        SweepGroup(name=f"{model}-{task}", study="compare", model=model, task=task, result=group_result(model, task))
        for model in MODELS
        for task in TASKS
    ]
    lost = groups[-1]
    groups[3] = groups[3].model_copy(update={"missing_seeds": (2,), "result": group_result(MODELS[0], "subj", (1, 3))})
    groups[-1] = lost.model_copy(update={"result": None})
    cells = [_cell(group, seed, number) for number, group in enumerate(groups) for seed in SEEDS]
    cells[-3:] = [
        cells[-3],
        *(each.model_copy(update={"status": "pending", "seconds": None}) for each in cells[-2:]),
    ]
    failed = CellFailure(
        message="TrainingError: finetuning on seed 2 gave NaN at step 3", traceback=TRACEBACK, attempts=2
    )
    died = CellFailure(message="the worker died (signal 9)", traceback="", lost=True, attempts=3)
    cells[10] = cells[10].model_copy(update={"status": "failed", "failure": failed})
    cells[-3] = cells[-3].model_copy(update={"status": "failed", "seconds": None, "failure": died})
    fields: dict[str, Any] = {
        "dualform": "0.8.0",
        "name": "six-tasks",
        "config": {
            "name": "six-tasks",
            "study": "compare",
            "models": list(MODELS),
            "tasks": list(TASKS),
            "seeds": "1..3",
            "settings": {"limit": 200, "controls": "all"},
        },
        "environment": {
            "python": "3.12.3",
            "libraries": {"torch": "2.7.0", "transformers": "5.2.0"},
            "command": "dualform sweep six-tasks.yaml --engine ray --workers 2",
        },
        "engine": "ray, 2 workers",
        "groups": groups,
        "cells": cells,
        "seconds": 5123.4,
    }
    return SweepResult(**(fields | changes))


def sweep_over_k(**changes: Any) -> SweepResult:
    """One model, two tasks, four numbers of demonstrations and two ways of folding."""
    groups = [
        SweepGroup(
            name=f"smollm2-135m-{task}-k-{k}-method-{method}",
            study="compare",
            model=MODELS[0],
            task=task,
            options={"k": k, "fold.method": method},
            result=group_result(MODELS[0], task, share=k / 32),
        )
        for task in ("sst2", "agnews")
        for k in (16, 4, 8, 32)
        for method in ("ridge", "mean")
    ]
    cells = [_cell(group, seed, number) for number, group in enumerate(groups) for seed in SEEDS]
    return example_sweep(**({"name": "over-k", "groups": groups, "cells": cells} | changes))


def mixed_sweep(**changes: Any) -> SweepResult:
    """Studies other than comparisons, and one comparison."""
    groups = [
        SweepGroup(
            name="stability-sst2", study="stability", model="smollm2-135m", task="sst2", result=example_stability()
        ),
        SweepGroup(name="selection", study="selection", model="smollm2-135m", task="mr", result=example_selection()),
        SweepGroup(name="regress", study="regress", model=None, task=None, options={"n": 20}, result=None),
        SweepGroup(
            name="smollm2-135m-sst2",
            study="compare",
            model="smollm2-135m",
            task="sst2",
            result=group_result("smollm2-135m", "sst2"),
        ),
    ]
    cells = [
        SweepCell(key=f"{number:064x}", group=group.name, seed=None, status="reused", seconds=3.0)
        for number, group in enumerate(groups)
    ]
    return example_sweep(**({"name": "mixed", "groups": groups, "cells": cells} | changes))


def empty_sweep(**changes: Any) -> SweepResult:
    """A sweep stopped before its first cell."""
    group = SweepGroup(name="a-b", study="compare", model="a", task="b", result=None)
    cells = [SweepCell(key="0" * 64, group="a-b", seed=seed, status="pending") for seed in SEEDS]
    return example_sweep(**({"name": "empty", "groups": [group], "cells": cells} | changes))


def group_result(model: str, task: str, seeds: tuple[int, ...] = SEEDS, share: float = 1.0) -> Result:
    """One group's comparison.

    Args:
        model: Name.
        task: One of `TASKS`.
        seeds: Those that finished.
        share: Of the gain over zero-shot that these demonstrations bring.
    """
    rng = random.Random(f"{model} {task} {share}")
    labels = LABELS.get(task, 2)
    base = 1 / labels + 0.03 + 0.03 * MODELS.index(model)
    bonus = 1.0 + 0.15 * MODELS.index(model)
    means = {"zsl": base}
    for learner, gain in zip(LEARNERS[1:], _GAINS[task], strict=True):
        means[learner] = base + 0.01 * gain * bonus * share + rng.gauss(0, 0.01)
    n = N * len(seeds) // len(SEEDS)
    accuracy = {key: _accuracy(mean, 0.0 if key == "zsl" else 0.03, seeds, n, rng) for key, mean in means.items()}
    words = [f" {word}" for word in ("Bad", "Good", "Fair", "Great", "Poor")[:labels]]
    fallen = {"zsl": 0.93, "icl": 0.97 if task == "cb" else 0.55, "ft": 0.93 if task == "cb" else 0.6}
    likeness = 0.9 if task == "agnews" else rng.uniform(0.02, 0.6)
    return Result(
        dualform="0.8.0",
        study="comparison",
        config={"model": model, "task": task, "seeds": list(seeds)},
        environment={"python": "3.12.3", "seconds": 300.0},
        model={"name": model, "parameters": 135_000_000 * (1 + MODELS.index(model))},
        task={"name": task, "label_words": words, "n_report": 200, "report_split": "test"},
        demonstrations=DemonstrationReport(
            k_requested=32,
            k_effective=32,
            k_effective_per_seed=dict.fromkeys(map(str, seeds), 32),
            rows={str(seed): list(range(32)) for seed in seeds},
            tokens=dict.fromkeys(map(str, seeds), 900),
        ),
        accuracy=accuracy,
        predictions={key: _predictions(fallen.get(key, 0.5 + rng.random() / 4), words, n) for key in LEARNERS},
        similarity={
            "sim_aou": _similarity(0.25 * likeness + 0.1, n),
            "sim_aou_raw": _similarity(0.2 * likeness, n),
            "sim_am_delta": _similarity(0.1 * likeness + 0.02, n),
            "kendall": _similarity(0.3 * likeness - 0.1, n),
            "rec2ftp": Similarity(mean=0.8, ci95=(0.74, 0.85), n=143, details={"chance": 0.7, "lift_ci95": [0.0, 0.2]}),
            "agreement": Similarity(mean=0.7 + 0.1 * likeness, ci95=(0.66, 0.84), n=n),
        },
        controls={"random": {"sim_aou_raw": _similarity(0.0, n)}, "untrained": {"sim_aou_raw": _similarity(0.01, n)}},
        calibrated={
            "sim_aou": _calibrated(likeness - 0.05, n),
            "sim_aou_raw": _calibrated(likeness, n),
            "sim_am_delta": _calibrated(likeness / 2, n),
            "kendall": _calibrated(None if task == "mr" else likeness - 0.3, n),
        },
        tests=_tests(accuracy, n),
        cost={key: _cost(key, 1 + MODELS.index(model), rng) for key in LEARNERS},
        against_icl={key: _against(key, rng, n) for key in LEARNERS if key != "icl"},
    )


def _cell(group: SweepGroup, seed: int, number: int) -> SweepCell:
    key = f"{number * 10 + seed:08x}".ljust(64, "a")
    status: Literal["reused", "finished"] = "reused" if number < 2 else "finished"
    return SweepCell(key=key, group=group.name, seed=seed, status=status, seconds=100.0 + number)


def _accuracy(mean: float, spread: float, seeds: tuple[int, ...], n: int, rng: random.Random) -> Accuracy:
    half = spread + 0.025
    per_seed: dict[str, float | None] = {str(seed): mean + rng.gauss(0, spread) for seed in seeds}
    return Accuracy(mean=mean, ci95=(mean - half, mean + half), n=n, per_seed=per_seed)


def _predictions(share: float, words: list[str], n: int) -> Predictions:
    top = round(share * n)
    counts = dict.fromkeys(words, (n - top) // (len(words) - 1)) | {words[0]: top}
    return Predictions(majority_share=share, majority_label=words[0], entropy=0.4, counts=counts)


def _similarity(mean: float, n: int) -> Similarity:
    return Similarity(mean=mean, ci95=(mean - 0.02, mean + 0.02), n=n)


def _calibrated(place: float | None, n: int) -> Calibrated:
    floor, ceiling = 0.05, 0.3
    return Calibrated(
        mean=place,
        ci95=(None, None) if place is None else (place - 0.12, place + 0.12),
        n=n // 2,
        score=None if place is None else floor + place * (ceiling - floor),
        control="position_shift",
        floor=floor,
        ceiling=ceiling if place is not None else 0.04,
        minimum_detectable=0.02,
    )


def _tests(accuracy: dict[str, Accuracy], n: int) -> list[PairedTest]:
    tests = []
    for place, first in enumerate(LEARNERS):
        for second in LEARNERS[place + 1 :]:
            gap = (accuracy[first].mean or 0.0) - (accuracy[second].mean or 0.0)
            sure = abs(gap) > 0.035
            tests.append(
                PairedTest(
                    first=first,
                    second=second,
                    difference=gap,
                    ci95=(gap - 0.03, gap + 0.03),
                    n=n,
                    p_queries=0.003 if sure else 0.3,
                    p_seeds=0.25,
                    minimum_detectable=0.04,
                )
            )
    return tests


def _cost(learner: str, size: int, rng: random.Random) -> Cost:
    prompt = learner == "icl"
    adapt = {"zsl": 0.0, "icl": 1.1, "ft": 9.5, "lora": 12.0, "probe": 0.4, "fold": 31.0}[learner]
    return Cost(
        adapt_seconds=adapt * size,
        search_seconds=120.0 * size if learner in ("ft", "lora") else 0.0,
        query_seconds=(0.018 if prompt else 0.011) * size,
        tokens=(950 if prompt else 31) + rng.randrange(10),
        flops=(3.1e11 if prompt else 8.4e9) * size,
        adapt_flops=adapt * 1e11,
        kept_flops=1.2e10 * size if prompt else 8.4e9 * size,
    )


def _against(learner: str, rng: random.Random, n: int) -> PromptingComparison:
    agreement = {"zsl": 0.55, "ft": 0.78, "lora": 0.74, "probe": 0.7, "fold": 0.88}[learner] + rng.gauss(0, 0.02)
    return PromptingComparison(
        agreement=Estimate(mean=agreement, ci95=(agreement - 0.03, agreement + 0.03), n=n),
        recovered=Estimate(mean=0.8, ci95=(0.6, 1.0), n=n),
        break_even={"zsl": 0, "ft": 3, "lora": 4, "probe": None, "fold": 12}[learner],
        break_even_kept={"zsl": 0, "ft": 240, "lora": None, "probe": None, "fold": 1080}[learner],
    )

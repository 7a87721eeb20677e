"""One learner of a finished run: finding it in the result, and checking that it still answers as it did."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dualform.configuration import checked
from dualform.errors import ConfigError, ModelError
from dualform.result import Accuracy, Result
from dualform.studies.experiment import Experiment
from dualform.studies.learner_config import LearnersConfig
from dualform.studies.study import study_of_result

_SAME = 0.02
"""Largest difference of log-probabilities, nats, of a learner that is adapted again. Rounding alone makes some, since
training repeats it; an answer of another learner or of changed data differs by more."""


@dataclass(frozen=True)
class LearnerOfRun:
    """One adapted learner of a run."""

    config: LearnersConfig
    learner: str
    seed: int
    budget: int | None
    rate: float | None
    """The learning rate that the run used; None if the run does not say."""
    accuracy: float | None
    """Its accuracy in the run, in [0, 1]."""


def find_learner(result: Result, learner: str, seed: int | None, labels: int | None) -> LearnerOfRun:
    """Find a learner in a run's result.

    Args:
        result: The run's result.
        learner: Name of the learner.
        seed: Seed of the demonstrations; None for the run's first.
        labels: Budget of labels; None for the run's largest, or if it has only one.

    Raises:
        ConfigError: The run did not measure that.
    """
    study = study_of_result(result)
    kind = None if study is None else study.config()
    if kind is None or not issubclass(kind, LearnersConfig):
        raise ConfigError(
            f"a learner cannot be saved from the study {result.study!r}: give the folder of a run of compare or advise"
        )
    config = checked(kind, result.config, "the run's settings: ")
    measured = _accuracies(result)
    if learner not in measured:
        raise ConfigError(f"the run did not measure the learner {learner!r}. It measured {', '.join(measured)}.")
    seeds = [int(name) for name in measured[learner][-1].per_seed]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(f"the run has no seed {seed}. Its seeds are {', '.join(map(str, seeds))}.")
    budgets = _budgets(result)
    known = budgets or [n for n in [config.label_budget] if n is not None]
    if labels is not None and labels not in known:
        remedy = f"Give one of {', '.join(map(str, known))}." if known else "Leave out --labels."
        raise ConfigError(f"the run has no budget of {labels} labels. {remedy}")
    if budgets:
        labels = budgets[-1] if labels is None else labels
        with_budget: Callable[[int], LearnersConfig] = config.with_budget  # type: ignore[attr-defined]
        config = with_budget(labels)
    rates = {
        trial.learning_rate
        for trial in result.trials
        if trial.learner == learner and trial.seed == seed and trial.chosen
    }
    # A run with several budgets does not say which rate belongs to which, so it is chosen again, in the same way.
    rate = rates.pop() if len(rates) == 1 and not budgets else None
    accuracy = measured[learner][budgets.index(labels) if labels in budgets else 0].per_seed[str(seed)]
    return LearnerOfRun(config, learner, seed, config.label_budget, rate, accuracy)


def require_same_answers(
    run: Path, experiment: Experiment[LearnersConfig], choice: LearnerOfRun, table: Tensor
) -> None:
    """Check that the learner answers as in the run.

    Raises:
        ModelError: It does not, because the model, the data or dualform have changed.
    """
    path = run / "examples.parquet"
    if not path.is_file():
        raise ConfigError(f"{run} has no examples.parquet, with which the saved learner's answers are compared")
    rows = pq.read_table(path)
    wanted: list[tuple[str, Any]] = [("learner", choice.learner), ("seed", choice.seed)]
    if "labels" in rows.column_names:
        wanted.append(("labels", choice.budget))
    for column, value in wanted:
        rows = rows.filter(pc.equal(rows[column], value))
    names = [name for name in rows.column_names if name.startswith("log_probability:")]
    known = {row["query"]: [row[name] for name in names] for row in rows.to_pylist()}
    for example, ours in zip(experiment.examples, table.tolist(), strict=False):
        theirs = known.get(example.row)
        if theirs is None or not torch.allclose(
            torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=_SAME
        ):
            raise ModelError(
                f"the learner {choice.learner} answers {example.place} otherwise than in the run, so its accuracy "
                "there is not that of what would be saved. The model, the data, the machine or dualform have "
                "changed: repeat the run, then save."
            )


def _budgets(result: Result) -> list[int]:
    """The budgets of labels of a result with several; empty for other results."""
    return list(getattr(getattr(result, "advice", None), "budgets", []))


def _accuracies(result: Result) -> dict[str, list[Accuracy]]:
    """Learner -> its accuracy, or with several budgets that of each of them."""
    advice: Any = getattr(result, "advice", None)
    if advice is None:
        return {learner: [accuracy] for learner, accuracy in result.accuracy.items()}
    return {learner: [point.accuracy for point in points] for learner, points in advice.curves.items()}

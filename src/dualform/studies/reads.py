"""What a study of a model and a task reads besides its settings."""

from typing import Any

from dualform.studies.study import Reads


def models_of(config: Any) -> tuple[str, ...]:
    """Names of the models of a configuration, one or several."""
    return tuple(getattr(config, "models", None) or (config.model,))


def reads_of_task_study(config: Any) -> Reads:
    """Models, the task, other tasks and files that the settings of such a study name.

    Args:
        config: A `StudyConfig` of any study.
    """
    other = getattr(config, "other_task", None)
    others = (*((other,) if other else ()), *getattr(config, "transfer", ()), *getattr(config, "compose", ()))
    fold = getattr(config, "fold", None)
    files = [] if fold is None else [fold.calibration, fold.plain]
    files += [name for name in (getattr(config, "perplexity", None),) if name]
    # These words stand where a file could be named.
    files = [name for name in files if name not in ("train", "generated", "none")]
    return Reads(models_of(config), True, others, tuple(files))

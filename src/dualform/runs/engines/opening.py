"""Opens an engine by name."""

from typing import get_args

from dualform.errors import ConfigError
from dualform.runs.engines.base import PERFORM, Engine, EngineName, EngineOptions


def open_engine(
    name: str,
    *,
    workers: int | None = None,
    threads: int | None = None,
    options: EngineOptions | None = None,
    perform: str = PERFORM,
) -> Engine:
    """Open an engine; the caller must close it.

    Args:
        name: `local`, `ray` or `slurm`.
        workers: Jobs at a time. The default is as many workers as the GPUs suffice for, if `options` assigns GPUs, and
            else one for every two cores, see `share_cores` (slurm: 16).
        threads: Threads per worker; by default the number of cores divided by the workers (slurm: 4).
        options: Resources of the workers; None for the defaults.
        perform: The function that runs a job, as `module:function`.

    Raises:
        ConfigError: The engine is unknown, a setting is invalid, a package is not installed, or a cluster does not
            answer.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"unknown engine {name!r}: choose one of {', '.join(get_args(EngineName))}")
    for what, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise ConfigError(f"{what} {number} must be 1 or more")
    options = options or EngineOptions()
    if name == "ray":
        from dualform.runs.engines.ray_engine import RayEngine

        return RayEngine(workers, threads, options, perform)
    if name == "slurm":
        from dualform.runs.engines.slurm_engine import SlurmEngine

        return SlurmEngine(workers, threads, options, perform)
    from dualform.runs.engines.local_engine import LocalEngine

    return LocalEngine(workers, threads, options, perform)

"""An engine by its name."""

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
    """An engine, ready for work. Close it.

    Args:
        name: `local`, `ray` or `slurm`.
        workers: Works at a time; None: as many as the GPUs are enough for, where a worker asks for some, else one for
            every two cores, see `share_cores` (slurm: 16).
        threads: Of each worker; None: the cores divided by the workers (slurm: 4).
        options: What a worker gets; None for the defaults.
        perform: The function that does the work, as `module:function`.

    Raises:
        ConfigError: No such engine, a setting that cannot be, a package that is not installed, or a cluster that does
            not answer.
    """
    if name not in get_args(EngineName):
        raise ConfigError(f"engine {name!r} is none of {', '.join(get_args(EngineName))}")
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

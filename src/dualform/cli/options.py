"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.errors import ConfigError
from dualform.option import MACHINE as MACHINE
from dualform.option import OUTPUT as OUTPUT
from dualform.option import PROTOCOL


def option(text: str, panel: str, *names: str) -> Any:
    """An option that shows no default, because defaults are in the study's configuration."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


Overwrite = Annotated[bool, option("Allow --out to hold the result of other settings", OUTPUT)]
AsJson = Annotated[bool, option("Print result.json to standard output", OUTPUT, "--json")]
Track = Annotated[str, option("Trackers: trackio, wandb, mlflow; numbers stay on this machine (none)", OUTPUT)]
TrustRemoteCode = Annotated[bool, option("Run code that comes with the checkpoint", MACHINE)]
MaxCells = Annotated[int | None, option("Largest number of cells of a sweep (10000)", PROTOCOL, "--max-cells")]


def store_url(given: str | None) -> str:
    """The store of finished cells: the given one, else `$DUALFORM_STORE`, else `runs/store`."""
    return given or os.environ.get("DUALFORM_STORE") or "runs/store"


def cell_limit(given: int | None) -> int:
    """Largest number of cells of a sweep: the given one, else the default.

    Raises:
        ConfigError: It is less than one.
    """
    from dualform.runs.sweep_config import MOST_CELLS

    if given is not None and given < 1:
        raise ConfigError(f"max-cells {given} must be 1 or more")
    return given or MOST_CELLS


def default_folder(models: tuple[str, ...], task: str, *more: str) -> Path:
    """`runs/MODEL-TASK`, where paths are reduced to their last part."""
    parts = [*(Path(model).resolve().name for model in models), Path(task).resolve().stem, *more]
    return Path("runs") / "-".join(part.replace(":", "-") for part in parts)

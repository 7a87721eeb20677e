"""How values are written on the command line, and the options that every study has."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.errors import ConfigError
from dualform.option import MACHINE as MACHINE
from dualform.option import OUTPUT as OUTPUT
from dualform.option import PROTOCOL


def option(text: str, panel: str, *names: str) -> Any:
    """An option without a default of its own: settings have their defaults in the study's configuration."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


Overwrite = Annotated[bool, option("Allow --out to hold the result of other settings", OUTPUT)]
AsJson = Annotated[bool, option("Print result.json to standard output", OUTPUT, "--json")]
Track = Annotated[str, option("Of trackio,wandb,mlflow; they keep the numbers on this machine (none)", OUTPUT)]
TrustRemoteCode = Annotated[bool, option("Run code that comes with the checkpoint", MACHINE)]
MaxCells = Annotated[int | None, option("Most cells that the file may ask for (10000)", PROTOCOL, "--max-cells")]


def store_url(given: str | None) -> str:
    """Where finished cells of sweeps lie: as given, else `$DUALFORM_STORE`, else `runs/store`."""
    return given or os.environ.get("DUALFORM_STORE") or "runs/store"


def cell_limit(given: int | None) -> int:
    """Most cells of a sweep: as given, else the usual limit.

    Raises:
        ConfigError: Less than one.
    """
    from dualform.runs.sweep_config import MOST_CELLS

    if given is not None and given < 1:
        raise ConfigError(f"max-cells {given} must be 1 or more")
    return given or MOST_CELLS


def default_folder(models: tuple[str, ...], task: str, *more: str) -> Path:
    """`runs/MODEL-TASK`, paths cut to their last name."""
    parts = [*(Path(model).resolve().name for model in models), Path(task).resolve().stem, *more]
    return Path("runs") / "-".join(part.replace(":", "-") for part in parts)

"""Commands of studies that other packages register: made from the study's record alone."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.study import STUDIES


def added_studies() -> list[str]:
    """Names of the studies that are not dualform's own."""
    return [name for name in STUDIES.names() if name not in STUDIES.own]


def command_of(name: str) -> Callable[..., None]:
    """The command of a study, with an option for each of its settings.

    Raises:
        ConfigError: The package that registers it cannot be used.
    """
    study = STUDIES[name]

    def command(settings: dict[str, Any], run: RunOptions) -> None:
        config = study.configure(**settings)
        names = (*study.models(config), *([config.task] if hasattr(config, "task") else []))
        default = default_folder(names[:-1], names[-1], name) if len(names) > 1 else Path("runs") / name
        run_study(name, config, run, default=default, kept="pieces")

    command.__name__ = name
    command.__doc__ = inspect.getdoc(study.config()) or f"The study {name}."
    return study_command(study.config(), folder=f"MODEL-TASK-{name}")(command)


class GroupWithStudies(TyperGroup):
    """Commands, and those of added studies, which are imported only when they are named or listed."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Dualform's own command of this name, else the study's."""
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in added_studies():
            return found
        holder = typer.Typer(add_completion=False)
        holder.command(cmd_name)(self.made_from(command_of(cmd_name), cmd_name))
        return typer.main.get_command(holder)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, added ones last."""
        return [*super().list_commands(ctx), *added_studies()]

    def made_from(self, command: Callable[..., None], name: str) -> Callable[..., None]:
        """The command as it is offered here."""
        return command

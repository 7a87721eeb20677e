"""Commands by name, each imported when it is called or listed.

The command of a study is the function or group with the study's name in `dualform.cli` if there is one; otherwise, and
for studies of other packages, it is generated from the study.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.study import STUDIES

Command = Callable[..., None] | typer.Typer
"""A command, or a group of commands."""


def study_commands(name: str) -> Command:
    """The command of a study, or the group of its commands.

    Raises:
        ConfigError: The package that registers it cannot be used.
    """
    if name in STUDIES.own:
        module = import_module(f"dualform.cli.{name}")
        command: Command = getattr(module, name, None) or module.app
        return command
    return command_of(name)


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


class CommandGroup(TyperGroup):
    """The commands of all studies that are installed, and further ones."""

    further: ClassVar[Mapping[str, str]] = {}
    """Commands that belong to no study: `module:name` of a function or a group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._built: dict[str, Any] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """All names: those of this package, then those of other packages."""
        added = [name for name in STUDIES.names() if name not in STUDIES.own]
        return [*STUDIES.own, *self.further, *added]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command with this name, or None."""
        if cmd_name not in self._built:
            if cmd_name in self.further:
                module, _, name = self.further[cmd_name].partition(":")
                command = getattr(import_module(module), name)
            elif cmd_name in STUDIES.names():
                command = self.of_study(study_commands(cmd_name), cmd_name)
            else:
                return None
            self._built[cmd_name] = _built(command, cmd_name)
        return self._built[cmd_name]

    def of_study(self, command: Command, name: str) -> Command:
        """The command to offer for a study's command; subclasses can change it."""
        return command


def _built(command: Command, name: str) -> Any:
    """Convert a command to a click command."""
    holder = typer.Typer(add_completion=False)
    if isinstance(command, typer.Typer):
        holder.add_typer(command, name=name)
        return typer.main.get_group(holder).commands[name]
    holder.command(name)(command)
    return typer.main.get_command(holder)

"""The command `dualform` with all its subcommands."""

from collections.abc import Mapping
from typing import ClassVar

import typer

from dualform._version import __version__
from dualform.cli.commands import CommandGroup


class _Dualform(CommandGroup):
    further: ClassVar[Mapping[str, str]] = {
        "plan": "dualform.cli.plan:app",
        "sweep": "dualform.cli.sweep:sweep",
        "results": "dualform.cli.results:results",
        "report": "dualform.cli.report:report",
        "save": "dualform.cli.save:save",
        "push": "dualform.cli.push:push",
        "models": "dualform.cli.listing:models",
        "tasks": "dualform.cli.listing:tasks",
        "learners": "dualform.cli.listing:learners",
        "doctor": "dualform.cli.doctor:doctor",
    }


app = typer.Typer(
    name="dualform",
    cls=_Dualform,
    help="Does this model learn from its prompt as it would from gradients, and which should you use?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass

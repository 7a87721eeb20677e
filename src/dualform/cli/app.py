"""All commands of `dualform`, gathered."""

from collections.abc import Callable

import typer

from dualform._version import __version__
from dualform.cli.compare import compare
from dualform.cli.doctor import doctor
from dualform.cli.fold import fold
from dualform.cli.folding import folding
from dualform.cli.listing import models, tasks
from dualform.cli.momentum import app as momentum
from dualform.cli.plan import app as plan
from dualform.cli.push import push
from dualform.cli.registered import GroupWithStudies
from dualform.cli.regress import regress
from dualform.cli.report import report
from dualform.cli.results import results
from dualform.cli.selection import selection
from dualform.cli.stability import stability
from dualform.cli.sweep import sweep

app = typer.Typer(
    name="dualform",
    cls=GroupWithStudies,
    help="Does this model learn from its prompt as it would from gradients, and which should you use?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_STUDIES: tuple[Callable[..., None], ...] = (compare, stability, selection, fold, folding, regress)
_AROUND: tuple[Callable[..., None], ...] = (sweep, results, report, push, models, tasks, doctor)
for command in (*_STUDIES, *_AROUND):
    app.command()(command)
app.add_typer(momentum)
app.add_typer(plan)


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

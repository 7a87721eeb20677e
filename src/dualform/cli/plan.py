"""`dualform plan`: what a command will cost, before it runs."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

from dualform.cli.commands import Command, CommandGroup
from dualform.cli.guard import guarded, quiet_transformers, say
from dualform.cli.options import MACHINE, OUTPUT, AsJson, MaxCells, cell_limit, option, store_url
from dualform.cli.planning import planning
from dualform.cli.task_data import check_sweep_tasks


class _Planned(CommandGroup):
    """Plans of the commands of all studies, and of sweeps."""

    further: ClassVar[Mapping[str, str]] = {"sweep": "dualform.cli.plan:sweep"}

    def of_study(self, command: Command, name: str) -> Command:
        """What says what the study's command, or each of its commands, would cost."""
        if not isinstance(command, typer.Typer):
            return _planned(command, name)
        group = typer.Typer(help=f"The same of {name}.", no_args_is_help=True)
        for each in command.registered_commands:
            assert each.callback is not None
            group.command(each.name)(_planned(each.callback, f"{name} {each.name or each.callback.__name__}"))
        return group


app = typer.Typer(
    name="plan",
    cls=_Planned,
    help="Tokens, operations, memory and time of a command, before it runs; and what would fit where it does not.",
    no_args_is_help=True,
)


@app.callback()
def _no_options() -> None:
    pass


Measure = Annotated[bool, option("Measure this machine anew", MACHINE, "--measure")]

# Where a run's files go says nothing about its cost.
_LEFT_OUT = {"out", "overwrite", "to", "track", "cost"}


def _planned(command: Callable[..., Any], called: str) -> Callable[..., None]:
    """A command that takes the options of another, and says what that one would cost."""
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    kept = [one.replace(annotation=hints[name]) for name, one in given.items() if name not in _LEFT_OUT]
    own = [("measure", Measure), *([] if "as_json" in given else [("as_json", AsJson)])]
    kept += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=what) for name, what in own
    ]
    # What is left out may have no default; it is not looked at.
    needed = {name: Path("nowhere") for name in ("to",) if name in given}

    @guarded
    def plan(**options: Any) -> None:
        measure, as_json = options.pop("measure"), options["as_json"]
        if "as_json" not in given:
            options.pop("as_json")

        def tell(what: Any) -> None:
            from dualform.studies.plan import machine_for, plan_of

            quiet_transformers()
            # A training that is no study has a function in place of a configuration.
            if callable(what):
                made = what(machine_for(None, measure=measure))
            else:
                made = plan_of(what, measure=measure, announce=say)
            show(made, as_json)

        with planning(tell):
            # The exit code and the message of a mistake are those of the command.
            command(**needed, **options)

    shown = [one.replace(annotation=one.annotation) for one in kept]
    plan.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    plan.__annotations__ = {one.name: one.annotation for one in kept}
    plan.__name__ = command.__name__
    plan.__doc__ = _help(command, called)
    # Typer would look through to the wrapped function, which takes anything.
    del plan.__wrapped__  # type: ignore[attr-defined]
    return plan


def _help(command: Callable[..., Any], called: str) -> str:
    first, _, examples = inspect.cleandoc(command.__doc__ or "").partition("Examples:\n")
    told = f"What `dualform {called}` with these options will cost: {first.splitlines()[0][0].lower()}"
    told += first.splitlines()[0][1:]
    # Of the options left out only these stand in an example.
    shown = [
        re.sub(r" --(?:to|out) \S+| --cost\b", "", line).replace(f"dualform {called}", f"dualform plan {called}")
        for line in examples.splitlines()
        if line.strip()
    ][:2]
    return told + ("\n\nExamples:\n" + "\n\n".join(shown) if shown else "")


@guarded
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML grid, a Python file, or the folder of a sweep")],
    workers: Annotated[int | None, option("Cells at a time (one for every two cores, two at least)", MACHINE)] = None,
    store: Annotated[
        str | None, option("Folder or URL of finished cells ($DUALFORM_STORE, else runs/store)", OUTPUT)
    ] = None,
    max_cells: MaxCells = None,
    as_json: AsJson = False,
) -> None:
    """What a sweep will cost: all its cells, less those that are finished.

    Examples:
      dualform plan sweep grid.yaml

      dualform plan sweep grid.yaml --workers 8
    """
    check_sweep_tasks(file)
    from dualform.runs.sweep_config import read_sweep_file

    quiet_transformers()
    config, groups = read_sweep_file(file, max_cells=cell_limit(max_cells))
    print_sweep_plan(config, groups, store_url(store), workers, as_json)


def print_sweep_plan(config: Any, groups: Sequence[Any], store: str, workers: int | None, as_json: bool) -> None:
    """Print what a sweep will cost.

    Args:
        config: The sweep's.
        groups: Its groups.
        store: URL of the store, where finished cells are found.
        workers: Cells at a time; None for what the local engine takes by itself.
        as_json: Print the plan as JSON instead of tables.
    """
    from dualform.runs.sweep_plan import plan_groups

    show(plan_groups(config.name, groups, store, workers, say), as_json)


def show(plan: Any, as_json: bool) -> None:
    """Print a plan: a table of its parts, memory, and what would fit where it does not."""
    if as_json:
        sys.stdout.write(json.dumps(plan.as_dict(), indent=2) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole

    console = PlainConsole()
    parts = Table("part", title=Text(plan.command), title_justify="left")
    for heading in ("tokens", "of them backwards", "TFLOP", "time"):
        parts.add_column(heading, justify="right")
    for part in plan.parts:
        cost = part.cost
        parts.add_row(Text(part.name), *_numbers(cost), _range(part))
    parts.add_section()
    parts.add_row("all", *_numbers(plan.cost), spoken(plan.seconds))
    console.print(parts)
    if plan.memory:
        memory = Table("memory at the peak", title_justify="left")
        memory.add_column("GiB", justify="right")
        for what, n in plan.memory.items():
            memory.add_row(Text(what), f"{n / 2**30:.2f}")
        memory.add_section()
        memory.add_row("all", f"{plan.peak / 2**30:.2f}")
        console.print(memory)
    for sentence in sentences(plan):
        console.print(Text(sentence))
    for note in plan.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    say("\nNothing was run but samples to estimate from." if plan.sampled else "\nNothing was run.")


def sentences(plan: Any) -> list[str]:
    """What a plan comes to, in words."""
    least, most = plan.seconds_range
    told = f"It will take about {spoken(plan.seconds)}"
    if most > 1.05 * least:
        why = f": {'; '.join(plan.why)}" if plan.why else ""
        told += f" ({spoken(least)} to {spoken(most)}{why})"
    machine = plan.machine
    if machine is not None:
        told += f", with {machine.threads} thread{'s' if machine.threads != 1 else ''} on {machine.device}"
        if machine.ram and not machine.gpu:
            told += f", and {plan.peak / 2**30:.1f} of {machine.ram / 2**30:.1f} GiB of memory"
    found = [told + "."]
    fit = plan.fit
    if fit is None or fit.fits:
        return found
    found.append(
        f"It does not fit: {fit.needed / 2**30:.1f} GiB are needed and there are {fit.room / 2**30:.1f} GiB of "
        f"{fit.where}."
    )
    for each in fit.options:
        verdict = "would fit" if each.fits else "would not fit either"
        more = f" ({each.note})" if each.note else ""
        found.append(f"  {each.how}: {each.bytes / 2**30:.1f} GiB, {verdict}{more}")
    if not any(each.fits for each in fit.options):
        found.append("Take a smaller model, or a machine with more memory.")
    return found


def _numbers(cost: Any) -> tuple[str, str, str]:
    def whole(n: float) -> str:
        return f"{n:,.0f}" if n else ""

    return whole(cost.forwards), whole(cost.backwards), f"{cost.flops / 1e12:,.3f}" if cost.flops else ""


def _range(part: Any) -> str:
    told = spoken(part.cost.seconds)
    if part.least is None or part.least.seconds > 0.95 * part.cost.seconds:
        return told
    return f"{spoken(part.least.seconds)} to {spoken((part.most or part.cost).seconds)}"


def spoken(seconds: float) -> str:
    """A time to be read at a glance."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"

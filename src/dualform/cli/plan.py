"""`dualform plan`: estimates the cost of a command before it is run."""

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
        """The command, or group of commands, that plans a study's command."""
        if not isinstance(command, typer.Typer):
            return _planned(command, name)
        group = typer.Typer(help=f"Plan the commands of {name}.", no_args_is_help=True)
        for each in command.registered_commands:
            assert each.callback is not None
            group.command(each.name)(_planned(each.callback, f"{name} {each.name or each.callback.__name__}"))
        return group


app = typer.Typer(
    name="plan",
    cls=_Planned,
    help="Estimate tokens, operations, memory and time of a command before it is run; if it does not fit, list what "
    "would.",
    no_args_is_help=True,
)


@app.callback()
def _no_options() -> None:
    pass


Measure = Annotated[bool, option("Measure the speed of this machine again", MACHINE, "--measure")]

_LEFT_OUT = {"out", "overwrite", "to", "track", "cost"}
"""Options of a command that do not affect its cost."""


def _planned(command: Callable[..., Any], name: str) -> Callable[..., None]:
    """A command that takes the options of another one and estimates its cost."""
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    parameters = [each.replace(annotation=hints[key]) for key, each in given.items() if key not in _LEFT_OUT]
    own = [("measure", Measure), *([] if "as_json" in given else [("as_json", AsJson)])]
    parameters += [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind) for key, kind in own
    ]
    # A required option that is left out needs a value, which is not used.
    unused = {key: Path("unused") for key in ("to",) if key in given}

    @guarded
    def plan(**options: Any) -> None:
        measure, as_json = options.pop("measure"), options["as_json"]
        if "as_json" not in given:
            options.pop("as_json")

        def planner(settings: Any) -> None:
            from dualform.studies.plan import machine_for, plan_of

            quiet_transformers()
            # Training outside a study passes a function instead of a configuration.
            if callable(settings):
                result = settings(machine_for(None, measure=measure))
            else:
                result = plan_of(settings, measure=measure, announce=say)
            show(result, as_json)

        with planning(planner):
            # The command reports errors in its options itself.
            command(**unused, **options)

    plan.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    plan.__annotations__ = {each.name: each.annotation for each in parameters}
    plan.__name__ = command.__name__
    plan.__doc__ = _help(command, name)
    # Otherwise typer would use the signature of the wrapped function.
    del plan.__wrapped__  # type: ignore[attr-defined]
    return plan


def _help(command: Callable[..., Any], name: str) -> str:
    description, _, examples = inspect.cleandoc(command.__doc__ or "").partition("Examples:\n")
    first_line = description.splitlines()[0]
    text = f"Estimate the cost of `dualform {name}` with these options: {first_line[0].lower()}{first_line[1:]}"
    # No other options that are left out occur in the examples.
    lines = [
        re.sub(r" --(?:to|out) \S+| --cost\b", "", line).replace(f"dualform {name}", f"dualform plan {name}")
        for line in examples.splitlines()
        if line.strip()
    ][:2]
    return text + ("\n\nExamples:\n" + "\n\n".join(lines) if lines else "")


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
    """Estimate the cost of a sweep: all its cells, except those that are finished.

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
    """Print the estimated cost of a sweep.

    Args:
        config: Settings of the sweep.
        groups: Groups of the sweep.
        store: URL of the store of finished cells.
        workers: Cells at a time; None for the default of the local engine.
        as_json: Print the plan as JSON instead of tables.
    """
    from dualform.runs.sweep_plan import plan_groups

    show(plan_groups(config.name, groups, store, workers, say), as_json)


def show(plan: Any, as_json: bool) -> None:
    """Print a plan: a table of its parts, its memory, and options if it does not fit."""
    if as_json:
        sys.stdout.write(json.dumps(plan.as_dict(), indent=2) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole

    console = PlainConsole()
    parts = Table("part", title=Text(plan.command), title_justify="left")
    for heading in ("tokens", "backward tokens", "TFLOP", "time"):
        parts.add_column(heading, justify="right")
    for part in plan.parts:
        cost = part.cost
        parts.add_row(Text(part.name), *_numbers(cost), _range(part))
    parts.add_section()
    parts.add_row("all", *_numbers(plan.cost), format_seconds(plan.seconds))
    console.print(parts)
    if plan.memory:
        memory = Table("peak memory", title_justify="left")
        memory.add_column("GiB", justify="right")
        for name, n in plan.memory.items():
            memory.add_row(Text(name), f"{n / 2**30:.2f}")
        memory.add_section()
        memory.add_row("all", f"{plan.peak / 2**30:.2f}")
        console.print(memory)
    for sentence in sentences(plan):
        console.print(Text(sentence))
    for note in plan.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    say("\nNothing was run except samples for the estimates." if plan.sampled else "\nNothing was run.")


def sentences(plan: Any) -> list[str]:
    """A plan's time and memory in sentences, with options if it does not fit."""
    least, most = plan.seconds_range
    time = f"It will take about {format_seconds(plan.seconds)}"
    if most > 1.05 * least:
        why = f": {'; '.join(plan.why)}" if plan.why else ""
        time += f" ({format_seconds(least)} to {format_seconds(most)}{why})"
    machine = plan.machine
    if machine is not None:
        time += f", with {machine.threads} thread{'s' if machine.threads != 1 else ''} on {machine.device}"
        if machine.ram and not machine.gpu:
            time += f", and {plan.peak / 2**30:.1f} of {machine.ram / 2**30:.1f} GiB of memory"
    lines = [time + "."]
    fit = plan.fit
    if fit is None or fit.fits:
        return lines
    lines.append(
        f"It does not fit: {fit.needed / 2**30:.1f} GiB are needed, but only {fit.room / 2**30:.1f} GiB of "
        f"{fit.where} are available."
    )
    for each in fit.options:
        verdict = "would fit" if each.fits else "would not fit either"
        note = f" ({each.note})" if each.note else ""
        lines.append(f"  {each.how}: {each.bytes / 2**30:.1f} GiB, {verdict}{note}")
    if not any(each.fits for each in fit.options):
        lines.append("Use a smaller model, or a machine with more memory.")
    return lines


def _numbers(cost: Any) -> tuple[str, str, str]:
    def rounded(n: float) -> str:
        return f"{n:,.0f}" if n else ""

    return rounded(cost.forwards), rounded(cost.backwards), f"{cost.flops / 1e12:,.3f}" if cost.flops else ""


def _range(part: Any) -> str:
    if part.least is None or part.least.seconds > 0.95 * part.cost.seconds:
        return format_seconds(part.cost.seconds)
    return f"{format_seconds(part.least.seconds)} to {format_seconds((part.most or part.cost).seconds)}"


def format_seconds(seconds: float) -> str:
    """A time in a suitable unit: `9.0 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"

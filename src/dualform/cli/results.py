"""`dualform results`: lists, filters, exports, checks and removes the cells of a store."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualform.cli.guard import guarded, say
from dualform.cli.options import store_url

if TYPE_CHECKING:
    import pyarrow as pa

    from dualform.runs.cell_store import CellStore, FailedCell


@guarded
def results(
    store: Annotated[
        str | None,
        typer.Argument(
            help="Store of sweeps, a folder or a URL ($DUALFORM_STORE, else runs/store)", show_default=False
        ),
    ] = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="Only cells with NAME=VALUE (also !=, <, <=, >, >=; a,b for either, 1..3 for a range, * for any "
            "letters); can be repeated, and all conditions must hold",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns, separated by commas; * for any letters", show_default=False)
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            "--sort",
            help="Columns to sort by, -NAME for descending order; by default model, task, seed",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Write a .parquet, .csv, .tex, .md or .jsonl file", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON, all columns")] = False,
    all_columns: Annotated[bool, typer.Option("--all", help="All columns")] = False,
    long: Annotated[bool, typer.Option("--long", help="All columns, one per line")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="List failed cells with their error messages")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="As --failed, with tracebacks")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files, check their hashes and list damaged cells")
    ] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the cells selected by --where or --failed")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --drop: remove them; otherwise they are only counted")
    ] = False,
) -> None:
    """List, filter and export the cells of a store.

    Examples:
      dualform results

      dualform results --where model=smollm2-135m --where 'accuracy.icl>0.7' --sort -accuracy.icl

      dualform results s3://bucket/store --where seed=1..3 --where task!=mr --to results.parquet

      dualform results --columns 'model,task,accuracy.*' --to table.tex

      dualform results --failed --traceback

      dualform results --verify

      dualform results --where source!=a1b2c3d4e5f60718 --drop --yes
    """
    from dualform.errors import ConfigError
    from dualform.plain_text import plain
    from dualform.runs.cell_store import CellStore
    from dualform.runs.exports import export, records
    from dualform.runs.results import failures_table, of_other_source, overview, results_table, select, sort, where
    from dualform.source_digest import source_digest

    if drop and not (conditions or failed or traceback):
        raise ConfigError("--drop needs --where or --failed to select cells (--where 'key=*' selects all).")
    cell_store = CellStore(store_url(store), writable=drop and yes)
    present = sum(1 for _ in cell_store.digests())
    if not present:
        raise ConfigError(f"{cell_store.redacted_url} holds no cells. Give the store of a sweep: a folder or a URL.")
    if verify:
        _verify(cell_store, present)
        return

    failures = {cell.digest: cell for cell in cell_store.failures()}
    finished = [] if failed or traceback else list(cell_store.cells())
    all_cells = failures_table(failures.values()) if failed or traceback else results_table(finished)
    table = where(all_cells, conditions or [])
    if table.num_rows:
        default_order = [name for name in ("study", "model", "task", "group", "seed") if name in table.column_names]
        table = sort(table, _split(order) if order else default_order)
    selected = table
    if table.num_rows and columns:
        selected = select(table, _split(columns))
    elif not (all_columns or long or as_json or (to is not None and to.suffix.lower() not in (".tex", ".md"))):
        selected = overview(table)

    if to is not None:
        export(selected, to)
        say(f"{_count(selected.num_rows, 'row')}: {plain(str(to))}")
    elif as_json:
        print(json.dumps(records(selected), indent=2))
    elif not table.num_rows:
        kind = "failed" if failed or traceback else "finished"
        say(f"No {kind} cell{' matches' if conditions and all_cells.num_rows else ''}.")
    elif traceback:
        _print_failures([failures[key] for key in table.column("key").to_pylist()])
    elif long:
        _print_long(selected)
    else:
        _print_table(selected)
    if drop:
        _drop(cell_store, table.column("key").to_pylist(), yes)
    elif not as_json and to is None:
        say(_summary(cell_store, present, table.num_rows, len(failures), failed or traceback, len(finished)))
        others = 0 if failed or traceback else of_other_source(table)
        if others:
            say(
                f"{_count(others, 'cell')} of these {'was' if others == 1 else 'were'} computed by other source code, "
                f"so a sweep does not reuse {'it' if others == 1 else 'them'} (--where 'source!={source_digest()}' "
                "lists such cells)"
            )


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(store: "CellStore", present: int, matching: int, failed: int, of_failures: bool, finished: int) -> str:
    total = failed if of_failures else finished
    parts = [f"{_count(matching, 'cell')}{f' of {total}' if matching != total else ''} in {store.redacted_url}"]
    if failed and not of_failures:
        parts.append(f"{failed} failed (list them with --failed)")
    if not of_failures and present > finished + failed:
        parts.append(f"{present - finished - failed} incomplete or damaged (check with --verify)")
    return "; ".join(parts)


def _print_table(table: "pa.Table") -> None:
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.runs.exports import short

    output = Table()
    for name in table.column_names:
        is_text = str(table.schema.field(name).type) in ("string", "bool")
        output.add_column(Text(short(name)), justify="left" if is_text else "right", overflow="fold")
    for row in table.to_pylist():
        # As Text, because square brackets in strings would be read as markup.
        output.add_row(*(Text(_cut(short(row[name]), 12 if name == "key" else 60)) for name in table.column_names))
    PlainConsole().print(output)


def _cut(text: str, length: int) -> str:
    # A fact can be very long; --long prints it in full.
    return text if len(text) <= length else text[: length - 1] + "…"


def _print_long(table: "pa.Table") -> None:
    from dualform.runs.exports import short

    for number, row in enumerate(table.to_pylist()):
        if number:
            print()
        for name, value in row.items():
            if value is not None:
                print(f"{short(name)}: {short(value)}")


def _print_failures(failures: "list[FailedCell]") -> None:
    from dualform.plain_text import plain

    for cell in failures:
        names = [
            str(cell.facts[name]) for name in ("study", "model", "task", "seed") if cell.facts.get(name) is not None
        ]
        print(plain(f"{' '.join(names) or 'cell'} ({cell.digest[:12]}): {cell.failure.get('message', '')}"))
        text = plain(str(cell.failure.get("traceback") or ""), lines=True).rstrip("\n")
        if text:
            print("\n".join(f"    {line}" for line in text.split("\n")))


def _verify(store: "CellStore", present: int) -> None:
    damaged = 0
    for error in store.damage():
        damaged += 1
        print(error)
    say(f"{_count(present, 'cell')} checked: {damaged or 'none'} damaged.")
    if damaged:
        raise typer.Exit(1)


def _drop(store: "CellStore", keys: list[str], yes: bool) -> None:
    if not yes:
        say(f"This would remove {_count(len(keys), 'cell')}. Add --yes to remove {'it' if len(keys) == 1 else 'them'}.")
        return
    for key in keys:
        store.drop(key)
    say(f"Removed {_count(len(keys), 'cell')}.")

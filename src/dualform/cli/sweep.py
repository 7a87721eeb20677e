"""`dualform sweep`: runs a grid of settings."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from dualform.cli.guard import guarded, quiet_transformers, say
from dualform.cli.options import OUTPUT, MaxCells, Track, TrustRemoteCode, cell_limit, option, store_url
from dualform.cli.task_data import check_sweep_tasks
from dualform.configuration import checked
from dualform.errors import ConfigError

RUNNING = "Running"
CLUSTER = "Cluster"


@guarded
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML grid, a Python file, or the folder of a sweep")],
    engine: Annotated[str, option("local, ray or slurm (local)", RUNNING)] = "local",
    workers: Annotated[int | None, option("Cells at a time (one for every two cores, at least two)", RUNNING)] = None,
    threads: Annotated[int | None, option("Threads per worker (cores divided by workers)", RUNNING)] = None,
    resume: Annotated[
        bool, option("Continue a sweep that was started before; an error if there is none", RUNNING, "--resume")
    ] = False,
    dry_run: Annotated[bool, option("Estimate the cost of the sweep, and stop", RUNNING, "--dry-run")] = False,
    retries: Annotated[int, option("Retries of a cell whose worker died (2)", RUNNING)] = 2,
    max_cells: MaxCells = None,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path | None, option("Folder of the sweep. Default: runs/sweep-NAME", OUTPUT, "--out")] = None,
    overwrite: Annotated[bool, option("Replace another sweep in --out", OUTPUT)] = False,
    store: Annotated[
        str | None,
        option("Folder or URL in which finished cells are stored ($DUALFORM_STORE, else runs/store)", OUTPUT),
    ] = None,
    as_json: Annotated[bool, option("Print sweep.json to standard output", OUTPUT, "--json")] = False,
    track: Track = "none",
    address: Annotated[str | None, option("Ray cluster, such as auto or ray://HOST:10001", CLUSTER)] = None,
    gpus: Annotated[float | None, option("GPUs per worker (0)", CLUSTER)] = None,
    memory: Annotated[str | None, option("Memory per worker, such as 8GB", CLUSTER)] = None,
    partition: Annotated[str | None, option("Slurm partition", CLUSTER)] = None,
    minutes: Annotated[int | None, option("Slurm's time limit for a cell (240)", CLUSTER)] = None,
    slurm: Annotated[
        list[str] | None, option("A Slurm parameter, such as account=NAME; can be repeated", CLUSTER)
    ] = None,
) -> None:
    """Run a study over models, tasks, seeds and settings; finished cells are not computed again.

    Examples:
      dualform sweep grid.yaml

      dualform sweep grid.yaml --dry-run

      dualform sweep grid.yaml --engine ray --workers 8 --gpus 1 --address auto

      dualform sweep runs/sweep-grid --resume

    A grid:
      models: [smollm2-135m, gemma3-270m]

      tasks: [sst2, mr]

      seeds: 1..3

      settings: {data_dir: data, learners: [zsl, icl, ft]}

      grid: {k: [4, 16]}
    """
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    check_sweep_tasks(file)
    from dualform.cli.printing import print_json
    from dualform.cli.sweep_table import show_progress
    from dualform.models.loading.placement import size_in_bytes
    from dualform.runs.cell_store import CellStore
    from dualform.runs.engines.base import EngineName, EngineOptions
    from dualform.runs.engines.lazy_engine import LazyEngine
    from dualform.runs.engines.opening import open_engine
    from dualform.runs.flat_numbers import numbers_of_sweep
    from dualform.runs.sweep_config import folder_name, read_sweep_file
    from dualform.runs.sweep_run import run_sweep
    from dualform.runs.trackers import check_tracker, open_tracker

    config, groups = read_sweep_file(file, trust_remote_code=trust_remote_code, max_cells=cell_limit(max_cells))
    folder = out or (file if file.is_dir() else Path("runs") / f"sweep-{folder_name(config.name)}")
    if resume and not (folder / "sweep.yaml").exists():
        raise ConfigError(
            f"{folder} holds no sweep to resume: leave --resume out, or give the sweep's folder with --out."
        )
    quiet_transformers()
    if dry_run:
        _dry_run(config, groups, store_url(store), workers, as_json)
        return
    check_tracker(track)
    if retries < 0:
        raise ConfigError(f"retries {retries} must be 0 or more")
    given: dict[str, Any] = {
        "log_dir": folder / "workers",
        "address": address,
        "gpus": gpus,
        "memory": None if memory is None else size_in_bytes(memory, "memory"),
        "partition": partition,
        "minutes": minutes,
        "slurm": dict(_parameter(text) for text in slurm) if slurm else None,
    }
    options = checked(EngineOptions, {name: value for name, value in given.items() if value is not None})
    if engine not in get_args(EngineName):
        raise ConfigError(f"unknown engine {engine!r}: choose one of {', '.join(get_args(EngineName))}")
    cells = CellStore(store_url(store))
    lazy_engine = LazyEngine(engine, lambda: open_engine(engine, workers=workers, threads=threads, options=options))
    kill = True
    facts = {"sweep": config.name, "groups": len(groups)}
    try:
        with (
            open_tracker(track, project="dualform", run_name=folder.name, config=facts, folder=folder) as tracker,
            show_progress() as observer,
        ):
            result = run_sweep(
                config,
                groups,
                lazy_engine,
                out=folder,
                store=cells,
                retries=retries,
                observer=observer,
                overwrite=overwrite,
            )
            tracker.finish(numbers_of_sweep(result), [folder / name for name in ("report.html", "sweep.json")])
        kill = False
    except KeyboardInterrupt:
        say("Finished cells are kept; run the same command to resume.")
        raise
    finally:
        lazy_engine.close(kill=kill)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)
    say(f"\nReport: {folder / 'report.html'}")
    for hint in tracker.where:
        say(hint)
    if any(cell.status == "failed" for cell in result.cells):
        # The other results are written, but a script must be able to notice failures.
        raise typer.Exit(1)


def _parameter(text: str) -> tuple[str, Any]:
    from dualform.yaml_text import parse_yaml

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--slurm {text!r} is not NAME=VALUE: write for example --slurm account=NAME")
    return name.strip(), parse_yaml(value, ConfigError, f"--slurm {name.strip()}: not a value in YAML")


def _print(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.runs.sweep_table import sweep_tables
    from dualform.runs.sweep_words import sweep_headlines, sweep_notes

    print_study(sweep_headlines(result), sweep_tables(result), (*result.warnings, *sweep_notes(result)))


def _dry_run(config: Any, groups: Any, store: str, workers: int | None, as_json: bool) -> None:
    from dualform.cli.plan import print_sweep_plan

    print_sweep_plan(config, groups, store, workers, as_json)

"""What every study's command does around its one call: folder, progress bar, files, tables or JSON."""

import contextlib
import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dualform.cli.guard import quiet_transformers, say
from dualform.cli.options import AsJson, Overwrite, Track, option
from dualform.cli.planning import only_planned
from dualform.errors import DualformError
from dualform.option import OUTPUT


@dataclass(frozen=True)
class RunOptions:
    """The options of a command that leaves a folder with what it found."""

    out: Path | None
    """Folder of the run, if one was named."""
    overwrite: bool
    """Allow `out` to hold the result of other settings."""
    as_json: bool
    """Print the result instead of showing it."""
    track: str
    """Trackers that get the numbers, see `open_tracker`."""


def run_options(folder: str) -> tuple[inspect.Parameter, ...]:
    """Parameters of a command for the fields of `RunOptions`.

    Args:
        folder: What the run's folder is called unless `--out` names another.
    """
    out = Annotated[Path | None, option(f"Folder of the run. Default: runs/{folder}", OUTPUT, "--out")]
    declared: tuple[tuple[str, Any, Any], ...] = (
        ("out", out, None),
        ("overwrite", Overwrite, False),
        ("as_json", AsJson, False),
        ("track", Track, "none"),
    )
    return tuple(
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in declared
    )


def run_study(
    name: str,
    config: Any,
    options: RunOptions,
    *,
    task: Any = None,
    default: Path,
    kept: str,
) -> None:
    """Run a study into its folder and print what it found.

    Args:
        name: The study's.
        config: Its settings.
        options: Where the folder goes and how the result is shown.
        task: The task, if it was read to check it.
        default: The folder if none was named; where another run's result lies there, a few letters are added to its
            name.
        kept: What finished pieces are called, in the plural.
    """
    if only_planned(config):
        return
    # Loading these takes a second or two, which `--help` need not wait for.
    from dualform.cli.printing import print_json, print_study
    from dualform.cli.progress import progress_bar
    from dualform.runs.flat_numbers import numbers_of
    from dualform.runs.store import RunFolder, free_folder
    from dualform.runs.trackers import check_tracker, open_tracker
    from dualform.studies.study import STUDIES, LoadOnDemand, StudyContext

    # A slip is told before a folder is made.
    check_tracker(options.track)
    study = STUDIES[name]
    path = options.out or free_folder(default, config)
    made = _missing(path)
    folder = RunFolder(path, config, overwrite=options.overwrite)
    quiet_transformers()
    settings = config.model_dump(mode="json")
    with open_tracker(
        options.track, project="dualform", run_name=folder.path.resolve().name, config=settings, folder=folder.path
    ) as tracker:
        try:
            with progress_bar() as bar:
                found = study.run(config, StudyContext(folder, bar, folder.path, LoadOnDemand(task)))
        except KeyboardInterrupt:
            say(f"Finished {kept} are kept: the same command goes on where it stopped.")
            raise
        except DualformError:
            _remove_unused(made)
            raise
        result = found.result
        folder.finish(result, found.answers, found.attention)
        tracker.finish(numbers_of(result), [folder.path / name for name in ("report.html", "result.json")])
    if options.as_json:
        print_json(result.to_json())
    else:
        print_study(study.view.headlines(result), study.view.tables(result), result.warnings)
    say(f"\nThe page: {folder.path / 'report.html'}")
    for how in tracker.where:
        say(how)


def _missing(folder: Path) -> list[Path]:
    """`folder` and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def _remove_unused(made: list[Path]) -> None:
    """Remove folders made for a run that failed before it kept anything but its log."""
    if not made or not made[0].is_dir() or {path.name for path in made[0].iterdir()} > {"log.txt"}:
        return
    with contextlib.suppress(OSError):
        (made[0] / "log.txt").unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()

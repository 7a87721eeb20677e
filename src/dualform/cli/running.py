"""Runs a study for its command: folder, progress bar, files, and the printed result."""

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
    """Options of all commands that write a run's folder."""

    out: Path | None
    """Folder of the run; None for the default."""
    overwrite: bool
    """Whether the result of other settings in `out` may be overwritten."""
    as_json: bool
    """Print the result as JSON instead of tables."""
    track: str
    """Trackers that receive the numbers, see `open_tracker`."""


def run_options(folder: str) -> tuple[inspect.Parameter, ...]:
    """Parameters of a command for the fields of `RunOptions`.

    Args:
        folder: Default name of the run's folder, for `--help`.
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
    """Run a study, write its results and page to a folder, and print a summary.

    With `dualform plan` the study is only planned, and nothing is run or written.

    Args:
        name: Name of the study in `STUDIES`, such as `compare`.
        config: Settings of the study.
        options: The options that the user gave for the folder, the form of the output, and trackers.
        task: The task, if it has already been loaded; None to load it when the study needs it.
        default: Folder to use without `--out`; if it holds the result of other settings, a digest is added to its name.
        kept: What the study stores as it goes, as a plural noun such as `seeds`. If the user interrupts the run, a
            message says that the finished ones are kept.

    Raises:
        DualformError: A mistake of the user, or a file that cannot be written. Folders created for this run are removed
            again if nothing but a log was written to them.
        KeyboardInterrupt: The user interrupted the run.
    """
    if only_planned(config):
        return
    # Imported here, because these take a second or two and `--help` does not need them.
    from dualform.cli.printing import print_json, print_study
    from dualform.cli.progress import progress_bar
    from dualform.runs.flat_numbers import numbers_of
    from dualform.runs.store import RunFolder, free_folder
    from dualform.runs.trackers import check_tracker, open_tracker
    from dualform.studies.study import STUDIES, LoadOnDemand, StudyContext

    # Checked before a folder is created.
    check_tracker(options.track)
    study = STUDIES[name]
    path = options.out or free_folder(default, config)
    new_folders = _missing(path)
    folder = RunFolder(path, config, overwrite=options.overwrite)
    quiet_transformers()
    settings = config.model_dump(mode="json")
    with open_tracker(
        options.track, project="dualform", run_name=folder.path.resolve().name, config=settings, folder=folder.path
    ) as tracker:
        try:
            with progress_bar() as bar:
                output = study.run(config, StudyContext(folder, bar, folder.path, LoadOnDemand(task)))
        except KeyboardInterrupt:
            say(f"Finished {kept} are kept; run the same command to resume.")
            raise
        except DualformError:
            _remove_unused(new_folders)
            raise
        result = output.result
        folder.finish(result, output.answers, output.attention)
        tracker.finish(numbers_of(result), [folder.path / name for name in ("report.html", "result.json")])
    if options.as_json:
        print_json(result.to_json())
    else:
        view = study.view
        print_study(view.headlines(result), view.tables(result), (*result.warnings, *view.notes(result)))
    say(f"\nReport: {folder.path / 'report.html'}")
    for hint in tracker.where:
        say(hint)


def _missing(folder: Path) -> list[Path]:
    """`folder` and its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def _remove_unused(folders: list[Path]) -> None:
    """Remove the folders created for a run that failed before it wrote anything but its log."""
    if not folders or not folders[0].is_dir() or {path.name for path in folders[0].iterdir()} > {"log.txt"}:
        return
    with contextlib.suppress(OSError):
        (folders[0] / "log.txt").unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()

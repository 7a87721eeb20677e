"""What every study's command does around its one call: folder, progress bar, files, tables or JSON."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualform.cli.guard import quiet_transformers, say
from dualform.cli.planning import only_planned
from dualform.errors import DualformError


def run_study(
    config: Any,
    run: Callable[[Any, Any], tuple[Any, ...]],
    *,
    out: Path | None,
    default: Path,
    overwrite: bool,
    kept: str,
    as_json: bool,
    show: Callable[[Any], None],
    track: str = "none",
) -> None:
    """Run a study into its folder and print what it found.

    Args:
        config: Its settings.
        run: Does it, given where finished pieces are kept and the progress bar; returns the result, the table of
            all answers, and what else `RunFolder.finish` takes.
        out: Folder of the run, if one was named.
        default: The folder otherwise; where another run's result lies there, a few letters are added to its name.
        overwrite: Allow `out` to hold the result of other settings.
        kept: What finished pieces are called, in the plural.
        as_json: Print the result instead of showing it.
        show: Prints tables.
        track: Trackers that get the numbers, see `open_tracker`.
    """
    if only_planned(config):
        return
    # Loading these takes a second or two, which `--help` need not wait for.
    from dualform.cli.printing import print_json
    from dualform.cli.progress import progress_bar
    from dualform.runs.flat_numbers import numbers_of
    from dualform.runs.store import RunFolder, free_folder
    from dualform.runs.trackers import check_tracker, open_tracker

    # A slip is told before a folder is made.
    check_tracker(track)
    path = out or free_folder(default, config)
    made = _missing(path)
    folder = RunFolder(path, config, overwrite=overwrite)
    quiet_transformers()
    settings = config.model_dump(mode="json")
    name = folder.path.resolve().name
    with open_tracker(track, project="dualform", run_name=name, config=settings, folder=folder.path) as tracker:
        try:
            with progress_bar() as bar:
                result, *found = run(folder, bar)
        except KeyboardInterrupt:
            say(f"Finished {kept} are kept: the same command goes on where it stopped.")
            raise
        except DualformError:
            _remove_unused(made)
            raise
        folder.finish(result, *found)
        tracker.finish(numbers_of(result), [folder.path / name for name in ("report.html", "result.json")])
    if as_json:
        print_json(result.to_json())
    else:
        show(result)
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

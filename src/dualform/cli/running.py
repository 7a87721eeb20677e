"""What every study's command does around its one call: folder, progress bar, files, tables or JSON."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualform.cli.guard import quiet_transformers, say


def run_study(
    config: Any,
    run: Callable[[Any, Any], tuple[Any, Any]],
    *,
    out: Path | None,
    default: Path,
    overwrite: bool,
    kept: str,
    as_json: bool,
    show: Callable[[Any], None],
) -> None:
    """Run a study into its folder and print what it found.

    Args:
        config: Its settings.
        run: Does it, given where finished pieces are kept and the progress bar; returns the result and the table of
            all answers.
        out: Folder of the run, if one was named.
        default: The folder otherwise; where another run's result lies there, a few letters are added to its name.
        overwrite: Allow `out` to hold the result of other settings.
        kept: What finished pieces are called, in the plural.
        as_json: Print the result instead of showing it.
        show: Prints tables.
    """
    # Loading these takes a second or two, which `--help` need not wait for.
    from dualform.cli.progress import progress_bar
    from dualform.runs.store import RunFolder, free_folder

    folder = RunFolder(out or free_folder(default, config), config, overwrite=overwrite)
    quiet_transformers()
    try:
        with progress_bar() as bar:
            result, examples = run(folder, bar)
    except KeyboardInterrupt:
        say(f"Finished {kept} are kept: the same command goes on where it stopped.")
        raise
    folder.finish(result, examples)
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        show(result)
    say(f"\nThe page: {folder.path / 'report.html'}")

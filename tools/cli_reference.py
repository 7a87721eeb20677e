"""Print the reference of the command line: what `--help` says of every command.

    python tools/cli_reference.py > docs/cli.md

The text depends on the commands alone, not on the terminal: 100 columns, no colours.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

COLUMNS = 100

HEAD = """# Command line

What `--help` prints, command by command. `python tools/cli_reference.py > docs/cli.md` writes this page, and a test
compares the two.

A command exits with 0 on success, 2 on a mistake that it can name (the message says what was given, what was expected
and what to do next), 130 on ctrl-C, and 1 on a fault of dualform's own. Tables and `--json` go to standard output;
notes, errors and the progress bar go to standard error, so a pipe stays clean.
"""


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that name `command` and each command below it, in the order of `--help`."""
    yield path
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from paths(command.get_command(None, name), (*path, name))


def reference() -> str:
    """The page, in Markdown. Call it in a fresh process: typer looks at the terminal once, when it is imported."""
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        os.environ.pop(name, None)
    os.environ |= {"TERMINAL_WIDTH": str(COLUMNS), "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}

    import typer
    from typer.testing import CliRunner

    from dualform.cli.main import app

    sections = [HEAD]
    for path in paths(typer.main.get_command(app)):
        help_text = CliRunner().invoke(app, [*path, "--help"], prog_name="dualform", catch_exceptions=False).stdout
        text = "\n".join(line.rstrip() for line in help_text.splitlines()).strip("\n")
        sections.append(f"## `{' '.join(['dualform', *path])}`\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


def main() -> None:
    """Print the page, in UTF-8 whatever the terminal's own encoding is."""
    sys.stdout.buffer.write(reference().encode())


if __name__ == "__main__":
    main()

"""Print the reference of the command line: what `--help` says of every command.

    python tools/cli_reference.py > docs/cli.md

The text depends on the commands alone, not on the terminal: 100 columns, no colours.
"""

import os
import sys

COLUMNS = 100

HEAD = """# Command line

What `--help` prints, command by command. `python tools/cli_reference.py > docs/cli.md` writes this page, and a test
compares the two.

Every command exits with 0 on success, 2 on a mistake that it can name (the message says what was given, what was
expected and what to do next), 130 on ctrl-C and 1 on a fault of dualform's own. Messages and progress go to standard
error, so `--json` and pipes stay clean.
"""


def reference() -> str:
    """The page, in Markdown."""
    # typer looks at these when it is imported, and only then.
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        os.environ.pop(name, None)
    os.environ |= {"TERMINAL_WIDTH": str(COLUMNS), "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}

    from typer.testing import CliRunner

    from dualform.cli.main import app

    sections = [HEAD]
    names = [command.name or getattr(command.callback, "__name__", "?") for command in app.registered_commands]
    for arguments in ([], *([name] for name in names)):
        printed = CliRunner().invoke(app, [*arguments, "--help"], prog_name="dualform", catch_exceptions=False).stdout
        lines = [line.rstrip() for line in printed.splitlines()]
        title = " ".join(["dualform", *arguments])
        text = "\n".join(lines).strip("\n")
        sections.append(f"## `{title}`\n\n```text\n{text}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(reference())

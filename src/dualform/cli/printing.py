"""Prints results to the terminal.

Texts from models and data sets may contain control characters: escape sequences that change colours, rename the window
or hide a link, or marks that reverse the writing direction. All output goes through this module or `guard.say`, which
print such characters in an escaped form.
"""

import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from dualform.plain_text import plain
from dualform.report.table import Table


class PlainConsole(Console):
    """A console that escapes control characters in texts; only rich's own styles reach the terminal."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Render as rich does, and escape the text of each segment, to which rich adds colours later."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else plain(segment.text, lines=True)
            yield segment if text == segment.text else Segment(text, segment.style, segment.control)


def print_study(verdict: Iterable[str], tables: Iterable[Table | RichTable], warnings: Iterable[str]) -> None:
    """Print a study's sentences, tables, and those warnings that are not among the sentences."""
    console = PlainConsole()
    verdict = list(verdict)
    for sentence in verdict:
        console.print(Text(plain(sentence)))
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table.terminal() if isinstance(table, Table) else table)
    for warning in dict.fromkeys(each for each in warnings if each not in verdict):
        console.print(Text(f"Note: {plain(warning)}", style="yellow"))


def print_json(text: str) -> None:
    """Print JSON to standard output, with control characters as JSON escapes.

    Args:
        text: Valid JSON, in which such characters occur only within strings.
    """
    sys.stdout.write(re.sub(r"[^\n\x20-\x7e]", _escape, text) + "\n")


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if plain(character) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

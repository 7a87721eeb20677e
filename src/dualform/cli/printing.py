"""A study on the terminal: what it found in words, its tables, what to beware of.

Names and words of models and data sets may hold what steers a terminal: escape sequences that recolour it, rename its
window or hide a link, marks that turn the direction of writing. Whatever is printed goes through here or `guard.say`,
which show such characters for what they are.
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
    """A console on which only rich's own colours steer the terminal, whatever the text."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """As rich, with the text of each piece made plain; colours are added later, from the pieces' styles."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else plain(segment.text, lines=True)
            yield segment if text == segment.text else Segment(text, segment.style, segment.control)


def print_study(verdict: Iterable[str], tables: Iterable[Table | RichTable], warnings: Iterable[str]) -> None:
    """Print to standard output; text from models and data sets is no markup and steers nothing."""
    console = PlainConsole()
    for sentence in verdict:
        console.print(Text(plain(sentence)))
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table.terminal() if isinstance(table, Table) else table)
    for warning in warnings:
        console.print(Text(f"Note: {plain(warning)}", style="yellow"))


def print_json(text: str) -> None:
    """Print JSON to standard output, every character that steers a terminal as the escape that JSON has for it.

    Args:
        text: Valid JSON; such characters stand only within its strings, so its meaning stays as it was.
    """
    sys.stdout.write(re.sub(r"[^\n\x20-\x7e]", _as_json, text) + "\n")


def _as_json(found: re.Match[str]) -> str:
    character = found.group()
    if plain(character) == character:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

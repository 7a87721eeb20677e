"""A study on the terminal: what it found in words, its tables, what to beware of."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_study(verdict: Iterable[str], tables: Iterable[Table], warnings: Iterable[str]) -> None:
    """Print to standard output; text from models and data sets is no markup."""
    console = Console()
    for sentence in verdict:
        console.print(Text(sentence))
    for table in tables:
        if table.row_count:
            console.print()
            console.print(table)
    for warning in warnings:
        console.print(Text(f"Note: {warning}", style="yellow"))

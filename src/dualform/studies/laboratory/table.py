"""The laboratory's claims on the terminal, a table a study."""

from rich.table import Table
from rich.text import Text

from dualform.report.numerals import MISSING
from dualform.result import Claim, LabStudy, Result
from dualform.studies.laboratory.words import as_it_should, mark, number, number_interval


def claim_tables(result: Result) -> list[Table]:
    """A table for each study that makes claims; none without a laboratory."""
    studies = result.laboratory.studies if result.laboratory is not None else []
    return [claim_table(study) for study in studies if study.claims]


def claim_table(study: LabStudy) -> Table:
    """What a study says, what was expected, what was found, and whether that agrees."""
    table = Table(title=Text(f"{study.name}: {study.question}"), title_justify="left", show_lines=True)
    for name, width in (("claim", 27), ("expected", 15)):
        table.add_column(name, overflow="fold", width=width)
    table.add_column("found", justify="right", overflow="fold", width=14)
    table.add_column("stands", overflow="fold", width=11)
    for claim in study.claims:
        # What is amiss can be told apart without colour, too: it is the words that say so.
        style = "" if as_it_should(claim) else "bold red"
        table.add_row(Text(claim.says), Text(claim.expected), _found(claim), Text(mark(claim), style=style))
    return table


def _found(claim: Claim) -> Text:
    lines = [number(claim.found.mean)]
    interval = number_interval(claim.found.ci95)
    if interval != MISSING:
        low, _, high = interval.partition(" to ")
        lines += [f"{low} to", high]
    return Text("\n".join(lines))

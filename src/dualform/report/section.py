"""A section of a page: sentences, charts, tables, and sections within it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from dualform.report.table import Table

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader needs beside it."""

    name: str
    """Its name in links and in files saved from the page."""
    chart: "alt.TopLevelMixin | None"
    """None where the result has nothing to draw: the figure is then left out."""
    description: str
    """One sentence for a reader who cannot see it."""
    caption: str = ""
    title: str = ""
    """A heading of its own, where a section has several; such figures stand side by side."""


@dataclass(frozen=True)
class Section:
    """One idea of a page; left out where it holds nothing but notes."""

    id: str
    """Its anchor."""
    title: str
    sentences: Sequence[str] = ()
    """What was found."""
    charts: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    note: str = ""
    """How to read it, in softer print, before everything else; alone no reason to show the section."""
    as_list: bool = False
    """Whether its sentences are items of a list."""
    sections: Sequence["Section"] = ()
    detail: bool = True
    """Whether it is closed until the reader, or a link, opens it."""
    link: str = ""
    """Address of a page of its own, relative to this one."""
    body: Markup = field(default_factory=lambda: Markup(""))
    """Markup that this kit does not make, such as an interactive view; whoever gives it has escaped it."""

    def shown(self) -> "Section | None":
        """The section without figures, tables and sections that are empty; None where nothing is left."""
        charts = [figure for figure in self.charts if figure.chart is not None]
        tables = [table for table in self.tables if table]
        sections = [part for each in self.sections if (part := each.shown()) is not None]
        if not (self.sentences or charts or tables or sections or self.body):
            return None
        return replace(self, charts=charts, tables=tables, sections=sections)

    def figures(self) -> list[Figure]:
        """Its figures and those of the sections within it."""
        return [*self.charts, *(figure for each in self.sections for figure in each.figures())]

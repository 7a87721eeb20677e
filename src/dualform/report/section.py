"""Sections of a page, with their sentences, charts, tables and subsections."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from dualform.report.table import Table

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class Figure:
    """A chart with its texts."""

    name: str
    """Name in links and in files saved from the page."""
    chart: "alt.TopLevelMixin | None"
    """None if the result has no data for it; the figure is then left out."""
    description: str
    """Description in one sentence for readers who cannot see the chart."""
    caption: str = ""
    title: str = ""
    """Heading. Several figures of a section that have one are placed side by side."""


@dataclass(frozen=True)
class Section:
    """A section of a page; a section with nothing but a note is left out."""

    id: str
    """Anchor of the section."""
    title: str
    sentences: Sequence[str] = ()
    """Findings."""
    charts: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    note: str = ""
    """How to read the section; displayed in a lighter colour before everything else."""
    as_list: bool = False
    """Whether the sentences are displayed as a list."""
    sections: Sequence["Section"] = ()
    detail: bool = True
    """Whether the section is closed until the reader, or a link, opens it."""
    link: str = ""
    """Relative address of a separate page about this section."""
    body: Markup = field(default_factory=lambda: Markup(""))
    """Further markup, such as an interactive view. It is inserted unchanged, so the caller must escape it."""

    def without_empty_parts(self) -> "Section | None":
        """The section without empty figures, tables and subsections; None if nothing is left."""
        charts = [figure for figure in self.charts if figure.chart is not None]
        tables = [table for table in self.tables if table]
        sections = [part for each in self.sections if (part := each.without_empty_parts()) is not None]
        if not (self.sentences or charts or tables or sections or self.body):
            return None
        return replace(self, charts=charts, tables=tables, sections=sections)

    def figures(self) -> list[Figure]:
        """Figures of the section and its subsections."""
        return [*self.charts, *(figure for each in self.sections for figure in each.figures())]

    def all_tables(self) -> list[Table]:
        """Tables of the section and its subsections."""
        return [*self.tables, *(table for each in self.sections for table in each.all_tables())]

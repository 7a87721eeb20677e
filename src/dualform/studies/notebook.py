"""A study's result in Python and in notebooks: as a data frame, as charts, and as HTML."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from altair.utils.schemapi import debug_mode
from markupsafe import Markup

from dualform.errors import ConfigError
from dualform.plain_text import plain
from dualform.report.page import Page, pages_rendered_by, titled
from dualform.report.table import Table
from dualform.result import Result
from dualform.studies.study import Study

if TYPE_CHECKING:
    import altair as alt

STYLE = Markup(
    "<style>.dualform .under{display:block;opacity:.7;font-size:.85em} .dualform .number{text-align:right} "
    ".dualform .swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em} "
    ".dualform .reference{font-style:italic} .dualform th{text-align:left} "
    ".dualform th,.dualform td{padding:.2em .7em}</style>"
)
"""Style of a result in a notebook, which has no style sheet for the tables of pages."""


def charts_of(study: Study, result: Result) -> "dict[str, alt.TopLevelMixin]":
    """The charts of a result's page by the names of their figures, in the order of the page; empty without any."""
    page = _content(study, result)
    if page is None:
        return {}
    figures = [*page.charts, *(figure for section in page.sections for figure in section.figures())]
    return {figure.name: figure.chart for figure in figures if figure.chart is not None}


def frame_of(study: Study, result: Result, table: str | None) -> Any:
    """A result as a `pandas.DataFrame`; see `Result.to_pandas`.

    Raises:
        ConfigError: pandas is not installed, or the result has no such table.
    """
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise ConfigError("a data frame needs pandas, which is not installed: pip install pandas") from error
    if table is None and study.view.frame is not None:
        return study.view.frame(result)
    tables = _tables(study, result)
    if table is None:
        if not tables:
            raise ConfigError(f"this result of the study {result.study} has no table, because it holds no numbers")
        return next(iter(tables.values())).frame()
    if table not in tables:
        known = ", ".join(map(repr, tables)) or "none"
        raise ConfigError(f"this result of the study {result.study} has no table {table!r}; choose among: {known}")
    return tables[table].frame()


def html_of(study: Study, result: Result) -> str:
    """The first finding of a result, its first table and its warnings, as HTML for a notebook; all text is escaped."""
    model, task = result.model.get("name"), result.task.get("name")
    title = titled(study.noun.capitalize(), model, task)
    parts = [
        STYLE,
        Markup("<p><strong>{}</strong></p>").format(_visible(title)),
        *(Markup("<p>{}</p>").format(_visible(sentence)) for sentence in study.view.headlines(result)[:1]),
        *(table.html() for table in list(_titled(study.view.tables(result)).values())[:1]),
    ]
    if result.warnings:
        items = Markup("").join(Markup("<li>{}</li>").format(_visible(warning)) for warning in result.warnings)
        summary = Markup("<summary>{}</summary>").format("Before relying on the numbers")
        parts.append(Markup("<details>{}<ul>{}</ul></details>").format(summary, items))
    return str(Markup('<div class="dualform">{}</div>').format(Markup("\n").join(parts)))


def _content(study: Study, result: Result) -> Page | None:
    """The content of the result's page; None for a study without a page of its own."""
    page = study.view.page
    if page is None:
        return None
    with debug_mode(False):
        pages = pages_rendered_by(lambda: page(result))
    return pages[0] if pages else None


def _tables(study: Study, result: Result) -> dict[str, Table]:
    """Title -> table, those for the terminal first, then those of the page."""
    page = _content(study, result)
    sections = page.sections if page is not None else ()
    return _titled([*study.view.tables(result), *(table for each in sections for table in each.all_tables())])


def _titled(tables: Iterable[object]) -> dict[str, Table]:
    """Tables by their titles; those without a title or without rows are left out."""
    named: dict[str, Table] = {}
    for table in tables:
        if isinstance(table, Table) and table.title and table:
            named.setdefault(table.title, table)
    return named


def _visible(text: str) -> str:
    return plain(text, lines=True)

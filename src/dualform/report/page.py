"""The HTML page of a result: the answer, warnings, the main charts, and further sections that can be opened.

All pages use one template. The file is self-contained and loads nothing from the network.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from dualform.report.charts.theme import OF_PAGE, config
from dualform.report.html import (
    asset,
    chart_engine,
    chart_for_script,
    content_policy,
    fill,
    preformatted,
    still_picture,
)
from dualform.report.numerals import MISSING, count, significant
from dualform.report.section import Figure, Section
from dualform.report.table import facts_table
from dualform.result import Result
from dualform.sweep_result import SweepResult


@dataclass(frozen=True)
class Fact:
    """A key number of the page."""

    name: str
    value: str
    detail: str
    """Its uncertainty, or the total that it is a part of."""


@dataclass(frozen=True)
class Page:
    """The content of a page, from top to bottom."""

    title: str
    answer: str
    """The result in one sentence."""
    about: str = ""
    """A line below the title that names the kind of result."""
    version: str = ""
    warnings: Sequence[str] = ()
    charts: Sequence[Figure] = ()
    """Charts of the first screen."""
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()
    glossary: Sequence[tuple[str, str]] = ()
    """Terms and their meanings; a term without a meaning is left out."""
    styles: Sequence[str] = ()
    """Additional style sheets, named as for `asset`."""
    scripts: Sequence[str] = ()
    """Additional scripts, named as for `asset`."""


_COLLECTED: ContextVar[list[Page] | None] = ContextVar("_COLLECTED", default=None)


def pages_rendered_by(render: Callable[[], object]) -> list[Page]:
    """The content of the pages that `render` makes, with all charts and tables, without turning it into HTML."""
    pages: list[Page] = []
    token = _COLLECTED.set(pages)
    try:
        render()
    finally:
        _COLLECTED.reset(token)
    return pages


def render(page: Page) -> str:
    """The page as one self-contained HTML document of about 1 MB, with the chart libraries; write it as UTF-8."""
    if (collected := _COLLECTED.get()) is not None:
        collected.append(page)
        return ""
    charts = [figure for figure in page.charts if figure.chart is not None]
    sections = [section for each in page.sections if (section := each.without_empty_parts()) is not None]
    # Charts that are visible before any section is opened.
    open_charts = [*charts, *(figure for section in sections if not section.detail for figure in section.charts)]
    figures = [*charts, *(figure for section in sections for figure in section.figures())]
    # The chart libraries take a megabyte, so a page without charts leaves them out.
    engine = Markup(chart_engine()) if figures else Markup("")
    scripts = [asset("page.js"), *(asset(name) for name in page.scripts)]
    glossary = [(term, meaning) for term, meaning in page.glossary if meaning]
    contents = [(each.id, each.title) for each in sections]
    return str(
        fill(
            "page.html.j2",
            page=page,
            css=Markup("".join(asset(name) for name in ("page.css", *page.styles))),
            engine=engine,
            theme=json.dumps(config(OF_PAGE)),
            scripts=[Markup(text) for text in scripts],
            policy=content_policy([*([engine] if engine else []), *scripts]),
            charts=charts,
            stills={figure.name: still_picture(figure.chart) for figure in open_charts if figure.chart is not None},
            specs={figure.name: chart_for_script(figure.chart) for figure in figures if figure.chart is not None},
            sections=sections,
            glossary=glossary,
            contents=[*contents, *([("glossary", "Glossary")] if glossary else [])],
        )
    )


def study_page(
    result: Result,
    *,
    title: str,
    sentences: Sequence[str],
    nothing: str,
    answer: str = "",
    charts: Sequence[Figure] = (),
    facts: Sequence[Fact] = (),
    first: Sequence[Section] = (),
    sections: Sequence[Section] = (),
    described: Sequence[Section] | None = None,
    command: Sequence[str] = (),
    glossary: Sequence[tuple[str, str]] = (),
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """The page of a study's result as one HTML document, including the sections that all studies have.

    Args:
        result: The result; sections without data are left out.
        title: Title of the page, after the program's name.
        sentences: All findings.
        nothing: The answer for a result without any numbers of the study.
        answer: The answer; by default the first finding.
        charts: See `Page`.
        facts: See `Page`.
        first: Sections before the findings.
        sections: Sections after the findings.
        described: Sections that describe what was run; by default one about the model.
        command: Words of a command that repeats the study, shown if the result does not record the command that was
            typed.
        glossary: See `Page`.
        styles: See `Page`.
        scripts: See `Page`.
    """
    again = ("Repeat the run (other settings are under “Config” below)", shlex.join(command)) if command else None
    if described is None:
        described = [facts_section("model", "Model", result.model)]
    page = Page(
        title=f"dualform: {title}",
        answer=answer or next(iter(sentences), nothing),
        about=about_line(result),
        version=result.dualform,
        warnings=result.warnings,
        charts=charts,
        facts=facts,
        sections=[
            *first,
            findings(sentences),
            *sections,
            run_section(result, commands_again(result, again), described),
        ],
        glossary=glossary,
        styles=styles,
        scripts=scripts,
    )
    return render(page)


def titled(study: str, model: object, task: object) -> str:
    """A title such as `selection for smollm2-135m on reviews`, with the model and the task if they are known."""
    return f"{study}{f' for {model}' if model else ''}{f' on {task}' if task else ''}"


def about_line(result: Result) -> str:
    """A line such as `Comparison, 500 queries of the test split`."""
    n = result.task.get("n_report")
    queries = f", {n} queries of the {result.task.get('report_split') or 'report'} split" if n else ""
    return f"{result.study.capitalize()}{queries}"


def findings(sentences: Sequence[str]) -> Section:
    """The section that lists all findings, including the page's answer."""
    return Section("verdict", "All findings", sentences, as_list=True)


def run_section(
    result: Result | SweepResult, commands: Sequence[tuple[str, str]], sections: Sequence[Section] = ()
) -> Section:
    """The section about what was run: commands, further sections, task, config and environment.

    Args:
        result: Result of a study or a sweep.
        commands: Pairs of a description and a command.
        sections: Further sections, such as the model and the demonstrations.
    """
    body = Markup("").join(
        Markup('<p class="note">{}:</p>\n{}').format(name, preformatted(command)) for name, command in commands
    )
    # The tasks of a sweep are described on the pages of its groups.
    task = result.task if isinstance(result, Result) else {}
    prompt = str(task.get("prompt") or "")
    read = Markup('<p class="note">Example of a prompt, exactly as the model reads it:</p>\n') if prompt else Markup("")
    environment = {key: value for key, value in result.environment.items() if key != "command"}
    named = {key: value for key, value in task.items() if key != "prompt"}
    parts = [
        *sections,
        facts_section("task", "Task", named, read + preformatted(prompt, "prompt")),
        Section("settings", "Config", body=preformatted(yaml_text(result.config), "config"), detail=False),
        facts_section("environment", "Environment", environment),
    ]
    return Section("run", "What was run", sections=parts, body=body)


def facts_section(id: str, title: str, mapping: Mapping[str, Any], body: Markup | None = None) -> Section:
    """A section that lists a mapping as a table of names and values."""
    rows = facts(mapping)
    return Section(id, title, tables=[facts_table(rows)] if rows else [], body=body or Markup(""), detail=False)


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of name and text for a mapping; nested values are written as YAML."""
    rows = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            text = yaml_text(value)
        elif isinstance(value, list | tuple):
            text = ", ".join(each.strip() or repr(each) if isinstance(each, str) else _plain(each) for each in value)
        else:
            text = _plain(value)
        if text:
            rows.append((str(key).replace("_", " "), text))
    return rows


def yaml_text(value: Any) -> str:
    """`value` as YAML; an empty text for an empty value."""
    if not value:
        return ""
    # Converting to JSON turns paths and tuples into texts and lists, which safe YAML supports.
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None).rstrip()


def commands_again(result: Result | SweepResult, otherwise: tuple[str, str] | None = None) -> list[tuple[str, str]]:
    """Commands that rebuild the page and repeat the run, each with a description.

    Args:
        result: The result, which may record the command that was typed.
        otherwise: Description and command to use if none was recorded.
    """
    commands = [("Rebuild this page from the run's folder", "dualform report DIR")]
    typed = result.environment.get("command")
    if typed:
        return [*commands, ("Repeat the run", str(typed))]
    return [*commands, otherwise] if otherwise else commands


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, float):
        return significant(value)
    return MISSING if value is None else str(value)

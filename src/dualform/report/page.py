"""A page: the answer, what to beware of, the charts of the first screen, and all else in sections that open.

One template serves every page. The file holds all it needs and asks the network for nothing.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
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
    """One of the few numbers that a reader looks for first."""

    name: str
    value: str
    detail: str
    """How sure it is, or what it is a part of."""


@dataclass(frozen=True)
class Page:
    """What a page shows, in the order of reading."""

    title: str
    answer: str
    """The sentence that a reader with ten seconds needs."""
    about: str = ""
    """What kind of result this is, in a line below the title."""
    version: str = ""
    warnings: Sequence[str] = ()
    charts: Sequence[Figure] = ()
    """On the first screen."""
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()
    glossary: Sequence[tuple[str, str]] = ()
    """Terms with their meanings; those without a meaning are left out."""
    styles: Sequence[str] = ()
    """Style sheets that follow the page's own, as `asset` names files."""
    scripts: Sequence[str] = ()
    """Scripts that follow the page's own."""


def render(page: Page) -> str:
    """The page as one HTML document, ready to be written as UTF-8.

    Returns:
        The whole page, charts' libraries included: about 1 MB, readable offline and printable.
    """
    charts = [figure for figure in page.charts if figure.chart is not None]
    sections = [shown for each in page.sections if (shown := each.shown()) is not None]
    # These are seen before anything is opened.
    open_charts = [*charts, *(figure for section in sections if not section.detail for figure in section.charts)]
    figures = [*charts, *(figure for section in sections for figure in section.figures())]
    # Without charts their libraries would be a megabyte for nothing.
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
            contents=[*contents, *([("glossary", "Words used here")] if glossary else [])],
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
    """The page of a study's result as one HTML document, with what the pages of all studies have.

    Args:
        result: The result; sections without data are left out.
        title: Of the page, behind the program's name.
        sentences: All that was found.
        nothing: The answer of a result without any of the study's numbers.
        answer: The answer; the first sentence where not given.
        charts: As in `Page`.
        facts: As in `Page`.
        first: Sections before the one with all sentences.
        sections: Sections behind it.
        described: Sections that describe what was run; the model where not given.
        command: Words of a command that runs the study again, shown where the result does not record the one typed.
        glossary: As in `Page`.
        styles: As in `Page`.
        scripts: As in `Page`.
    """
    again = ("Run it again (other settings as under “config” below)", shlex.join(command)) if command else None
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
    """`selection for smollm2-135m on reviews`, as far as model and task are known."""
    return f"{study}{f' for {model}' if model else ''}{f' on {task}' if task else ''}"


def about_line(result: Result) -> str:
    """`Comparison, 500 queries of the test split`."""
    n = result.task.get("n_report")
    queries = f", {n} queries of the {result.task.get('report_split') or 'report'} split" if n else ""
    return f"{result.study.capitalize()}{queries}"


def findings(sentences: Sequence[str]) -> Section:
    """All that was found in sentences, the page's answer among them."""
    return Section("verdict", "What was found, sentence by sentence", sentences, as_list=True)


def run_section(
    result: Result | SweepResult, commands: Sequence[tuple[str, str]], sections: Sequence[Section] = ()
) -> Section:
    """What was run: commands, the sections given, the task, config and environment.

    Args:
        result: A study's result or a sweep's.
        commands: What each command does, and the command.
        sections: What the study adds, such as its model and demonstrations.
    """
    body = Markup("").join(
        Markup('<p class="note">{}:</p>\n{}').format(name, preformatted(command)) for name, command in commands
    )
    # A sweep has many tasks, and the pages of its groups describe them.
    task = result.task if isinstance(result, Result) else {}
    prompt = str(task.get("prompt") or "")
    read = Markup('<p class="note">One prompt as the model reads it:</p>\n') if prompt else Markup("")
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
    """A section that lists any mapping by name and value."""
    rows = facts(mapping)
    return Section(id, title, tables=[facts_table(rows)] if rows else [], body=body or Markup(""), detail=False)


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of name and text for any mapping; what lies nested is written as YAML."""
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
    """`value` as YAML; empty where there is nothing in it."""
    if not value:
        return ""
    # By way of JSON: paths and tuples become text and lists, which safe YAML knows.
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None).rstrip()


def commands_again(result: Result | SweepResult, otherwise: tuple[str, str] | None = None) -> list[tuple[str, str]]:
    """What to type to get this page, or these numbers, again.

    Args:
        result: The result; the command line that it records, as it was typed, is shown as it stands.
        otherwise: What is shown where none was recorded: what it does, and the command.
    """
    commands = [("Rebuild this page from the run's folder", "dualform report DIR")]
    typed = result.environment.get("command")
    if typed:
        return [*commands, ("Run it again", str(typed))]
    return [*commands, otherwise] if otherwise else commands


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, float):
        return significant(value)
    return MISSING if value is None else str(value)

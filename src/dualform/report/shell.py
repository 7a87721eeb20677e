"""The page of a study that has a template of its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import altair as alt
from markupsafe import Markup

from dualform.report.html import asset, chart_engine, chart_for_script, content_policy, json_for_script, templates
from dualform.report.page import commands_again, facts, yaml_text
from dualform.result import Result
from dualform.sweep_result import SweepResult

__all__ = ["DescribedChart", "asset", "card", "commands_again", "facts", "json_for_script", "render_shell", "yaml_text"]

DescribedChart = tuple[Callable[[Any], "alt.TopLevelMixin | None"], str]
"""What draws a chart of the result that the page is about, and a sentence for those who cannot see it."""


def render_shell(
    template: str,
    result: Result | SweepResult,
    *,
    title: str,
    charts: Mapping[str, DescribedChart],
    verdict: Sequence[str],
    cards: Sequence[Mapping[str, str]],
    commands: Sequence[tuple[str, str]],
    glossary: Iterable[tuple[str, str]],
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    **sections: Any,
) -> str:
    """One page of a study: `template`, which extends `shell.html.j2`, filled in.

    Args:
        template: The study's own template, as `asset` names files.
        result: A study's result or a sweep's; its warnings, task, config and environment are shown on every page.
        title: Heading and title of the window.
        charts: The charts by the name that the template calls them; those without data are left out.
        verdict: Sentences, the most important first.
        cards: As `card` makes them.
        commands: What each command does, and the command.
        glossary: Terms with their meanings; those without a meaning are left out.
        styles: Style sheets that follow `page.css`.
        scripts: Scripts that the page runs, charts or none.
        sections: What else the template names.

    Returns:
        The whole page, charts' libraries included: about 1 MB, readable offline and printable.
    """
    engine, boot = chart_engine(), asset("page.js")
    drawn = _drawn(result, charts)
    own = [asset(name) for name in scripts]
    # A sweep has many tasks, and its groups' own pages tell of them.
    about = result.task if isinstance(result, Result) else {}
    return (
        templates()
        .get_template(template)
        .render(
            result=result,
            title=title,
            css=Markup("".join(asset(name) for name in ("page.css", *styles))),
            # Without charts their libraries would be a megabyte for nothing.
            engine=Markup(engine) if drawn else None,
            boot=Markup(boot),
            scripts=[Markup(text) for text in own],
            policy=content_policy([*([engine, boot] if drawn else []), *own]),
            charts=drawn,
            verdict=list(verdict),
            cards=list(cards),
            commands=list(commands),
            glossary=[(term, meaning) for term, meaning in glossary if meaning],
            about=about,
            task=facts({key: value for key, value in about.items() if key != "prompt"}),
            environment=facts({key: value for key, value in result.environment.items() if key != "command"}),
            config=yaml_text(result.config),
            **sections,
        )
    )


def card(name: str, value: str, beside: str) -> dict[str, str]:
    """One of the few numbers that a reader looks for first: what it is, its value, how sure."""
    return {"name": name, "value": value, "beside": beside}


def _drawn(result: Result | SweepResult, charts: Mapping[str, DescribedChart]) -> dict[str, dict[str, Any]]:
    """Each chart that has data, as JSON for a script tag and a sentence for those who cannot see it."""
    drawn = {}
    for name, (draw, description) in charts.items():
        chart = draw(result)
        if chart is not None:
            drawn[name] = {"description": description, "spec": chart_for_script(chart)}
    return drawn

"""What every page is made of, whatever the study: one HTML file that needs no network.

Whatever comes from data sets, models or the user is escaped: in the text by jinja2, in the charts' JSON by writing
`<` as an escape of JSON. Beyond that the page's own policy lets no script run but the two whose digests it names,
and lets nothing be loaded.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import altair as alt
import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from dualform.plain_text import plain
from dualform.report.numerals import MISSING, count, percent, significant
from dualform.result import Result
from dualform.sweep_result import SweepResult

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
    engine, boot = _scripts()
    drawn = _drawn(result, charts)
    own = [asset(name) for name in scripts]
    # A sweep has many tasks, and its groups' own pages tell of them.
    about = result.task if isinstance(result, Result) else {}
    return (
        _jinja()
        .get_template(template)
        .render(
            result=result,
            title=title,
            css=Markup("".join(asset(name) for name in ("page.css", *styles))),
            # Without charts their libraries would be a megabyte for nothing.
            engine=Markup(engine) if drawn else None,
            boot=Markup(boot),
            scripts=[Markup(text) for text in own],
            policy=_policy([*([engine, boot] if drawn else []), *own]),
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


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end the script tag around it, nor open a comment in it.

    Raises:
        ValueError: A number in it is not finite, for which JSON has no word.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def asset(name: str) -> str:
    """The text of a file that comes with a package: `PACKAGE:FILE`, or only `FILE` for those of this package."""
    package, _, file = name.rpartition(":")
    return resources.files(package or __package__).joinpath(file).read_text(encoding="utf-8")


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, float):
        return significant(value)
    return MISSING if value is None else str(value)


def _drawn(result: Result | SweepResult, charts: Mapping[str, DescribedChart]) -> dict[str, dict[str, Any]]:
    """Each chart that has data, as JSON for a script tag and a sentence for those who cannot see it."""
    drawn = {}
    for name, (draw, description) in charts.items():
        chart = draw(result)
        # Checking a chart against the schema takes as long as all the rest, and the tests do it.
        if chart is not None:
            drawn[name] = {"description": description, "spec": json_for_script(_compact(chart.to_dict(validate=False)))}
    return drawn


def _compact(value: Any) -> Any:
    """Numbers at six digits: a third of the page's size, and more than a screen can show.

    Text as elsewhere on the page: with a control character in it, a chart saved as SVG would be no XML.
    """
    if isinstance(value, str):
        return plain(value, lines=True)
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _compact(each) for key, each in value.items()}
    return [_compact(each) for each in value] if isinstance(value, list) else value


@lru_cache(maxsize=1)
def _scripts() -> tuple[str, str]:
    """The charts' libraries (Vega, Vega-Lite, Vega-Embed), and what draws the charts of this page."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    engine = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # Inside a script's text "</script" would end it and "<!--" begin a comment; neither means anything else there.
    return engine.replace("</script", "<\\/script").replace("<!--", "<\\!--"), asset("page.js")


def _policy(scripts: Iterable[str]) -> str:
    """The page's content security policy: nothing is loaded, no script runs but these.

    `unsafe-eval` is for Vega, which compiles its expressions; the expressions are ours, the data are not code.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), "'unsafe-eval'"]) if digests else "'none'"
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


def _visible(value: Any) -> Any:
    """What a template inserts, with characters that steer instead of being seen written out; our own pages stay."""
    return plain(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=1)
def _jinja() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment

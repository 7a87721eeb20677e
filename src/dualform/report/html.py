"""What a page is written with: templates that escape, data for scripts, the charts' libraries, the page's own policy.

Whatever comes from data sets, models or the user is escaped: in the text by jinja2 and markupsafe, in the charts' JSON
by writing `<` as an escape of JSON. Beyond that the page's policy lets no script run but those whose digests it names,
and lets nothing be loaded.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from dualform.plain_text import plain
from dualform.report.charts.theme import OF_PAGE, config

STILL_WIDTH = 620
"""Pixels of a picture of the first screen, until it is drawn as wide as there is room."""


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end the script tag around it, nor open a comment in it.

    Raises:
        ValueError: A number in it is not finite, for which JSON has no word.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def chart_for_script(chart: alt.TopLevelMixin) -> Markup:
    """A chart as JSON for a script tag, its colours left to the page."""
    # Checking a chart against the schema takes as long as all the rest, and the tests do it.
    spec = _compact(chart.to_dict(validate=False))
    spec.pop("config", None)
    datasets: dict[str, Any] = {}
    spec = _shared(spec, datasets, {})
    return json_for_script(spec | ({"datasets": datasets} if datasets else {}))


def still_picture(chart: alt.TopLevelMixin, width: int = STILL_WIDTH) -> Markup:
    """A chart as SVG, in colours of the page's style sheet: what a reader sees before any script has run.

    Args:
        chart: The chart; one without panels is drawn as wide as said.
        width: Pixels, labels of the axes included.
    """
    spec = _compact(chart.to_dict(validate=False)) | {"config": config(OF_PAGE)}
    if "width" in spec:
        spec |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    return Markup(_drawn(json.dumps(spec, allow_nan=False)))


@lru_cache(maxsize=64)
def _drawn(spec: str) -> str:
    return vl_convert.vegalite_to_svg(spec)


def asset(name: str) -> str:
    """The text of a file that comes with a package: `PACKAGE:FILE`, or only `FILE` for those of this package."""
    package, _, file = name.rpartition(":")
    return resources.files(package or __package__).joinpath(file).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def chart_engine() -> str:
    """The charts' libraries (Vega, Vega-Lite, Vega-Embed) as one script."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    engine: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # Inside a script's text "</script" would end it and "<!--" begin a comment; neither means anything else there.
    return engine.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def content_policy(scripts: Iterable[str]) -> str:
    """The page's content security policy: nothing is loaded, no script runs but these.

    `unsafe-eval` is for Vega, which compiles its expressions; the expressions are ours, the data are not code.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), "'unsafe-eval'"]) if digests else "'none'"
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The templates' environment; a template is named as `asset` names files."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fill(template: str, **values: Any) -> Markup:
    """A template's markup, every value escaped."""
    return Markup(templates().get_template(template).render(**values))


def preformatted(text: str, id: str = "") -> Markup:
    """Text as it stands, in a box; empty without any."""
    if not text:
        return Markup("")
    anchor = Markup(' id="{}"').format(id) if id else Markup("")
    return Markup("<pre{}>{}</pre>\n").format(anchor, plain(text, lines=True))


def _visible(value: Any) -> Any:
    """What a template inserts, with characters that steer instead of being seen written out; our own markup stays."""
    return plain(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


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


def _shared(value: Any, datasets: dict[str, Any], names: dict[str, str]) -> Any:
    """A specification whose layers refer to their rows by name: several layers show the same ones."""
    if isinstance(value, list):
        return [_shared(each, datasets, names) for each in value]
    if not isinstance(value, dict):
        return value
    if (
        isinstance(value.get("values"), list)
        and value.keys() == {"values"}
        and all(isinstance(row, dict) for row in value["values"])
    ):
        text = json.dumps(value["values"])
        name = names.setdefault(text, f"rows-{len(names)}")
        datasets[name] = value["values"]
        return {"name": name}
    return {key: _shared(each, datasets, names) for key, each in value.items()}

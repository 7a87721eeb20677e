"""Building blocks of pages: escaping templates, data for scripts, the chart libraries, the content security policy.

Text from data sets, models and the user is escaped: in the page's text by jinja2 and markupsafe, in the JSON of charts
by writing `<` as a JSON escape. In addition, the content security policy allows only the scripts whose digests it lists
and forbids loading anything.
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
"""Width in pixels of a picture on the first screen, before a script draws it at the available width."""


def json_for_script(value: Any) -> Markup:
    """JSON that can be placed in a script tag: it can neither end the tag nor begin a comment.

    Raises:
        ValueError: A number is not finite, which JSON cannot represent.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def chart_for_script(chart: alt.TopLevelMixin) -> Markup:
    """A chart as JSON for a script tag, without its theme, which the page adds."""
    # Validation takes as long as everything else, and the tests do it.
    spec = _compact(chart.to_dict(validate=False))
    spec.pop("config", None)
    datasets: dict[str, Any] = {}
    spec = _shared(spec, datasets, {})
    return json_for_script(spec | ({"datasets": datasets} if datasets else {}))


def still_picture(chart: alt.TopLevelMixin, width: int = STILL_WIDTH) -> Markup:
    """A chart as SVG in the colours of the page's style sheet, which is visible before any script has run.

    Args:
        chart: The chart.
        width: Width in pixels, including the labels of axes; ignored for a chart with several panels.
    """
    spec = _compact(chart.to_dict(validate=False)) | {"config": config(OF_PAGE)}
    if "width" in spec:
        spec |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    return Markup(_drawn(json.dumps(spec, allow_nan=False)))


@lru_cache(maxsize=64)
def _drawn(spec: str) -> str:
    return vl_convert.vegalite_to_svg(spec)


def asset(name: str) -> str:
    """The text of a file in a package, named `PACKAGE:FILE`, or `FILE` for a file of this package."""
    package, _, file = name.rpartition(":")
    return resources.files(package or __package__).joinpath(file).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def chart_engine() -> str:
    """The chart libraries (Vega, Vega-Lite, Vega-Embed) as one script."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    engine: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # In the text of a script, "</script" would end it and "<!--" would begin a comment.
    return engine.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def content_policy(scripts: Iterable[str]) -> str:
    """A content security policy that forbids loading anything and running any other script.

    `unsafe-eval` is needed by Vega, which compiles expressions. All expressions come from dualform, never from data.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), "'unsafe-eval'"]) if digests else "'none'"
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


@lru_cache(maxsize=1)
def templates() -> jinja2.Environment:
    """The environment of the templates, which are named as for `asset`."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fill(template: str, **values: Any) -> Markup:
    """Render a template, escaping every value."""
    return Markup(templates().get_template(template).render(**values))


def preformatted(text: str, id: str = "") -> Markup:
    """Text in a preformatted box; no markup for an empty text."""
    if not text:
        return Markup("")
    anchor = Markup(' id="{}"').format(id) if id else Markup("")
    return Markup("<pre{}>{}</pre>\n").format(anchor, plain(text, lines=True))


def _visible(value: Any) -> Any:
    """A value to insert in a template: control characters in a text are escaped, markup is unchanged."""
    return plain(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _compact(value: Any) -> Any:
    """Round numbers to six digits, which saves a third of the page, and escape control characters.

    A chart with control characters would be invalid XML when saved as SVG.
    """
    if isinstance(value, str):
        return plain(value, lines=True)
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _compact(each) for key, each in value.items()}
    return [_compact(each) for each in value] if isinstance(value, list) else value


def _shared(value: Any, datasets: dict[str, Any], names: dict[str, str]) -> Any:
    """Replace the rows in a specification by named data sets, so that layers with equal rows share them."""
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

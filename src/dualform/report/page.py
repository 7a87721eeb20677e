"""A result as one HTML file that needs no network: numbers, charts and what they do not say.

Whatever comes from data sets, models or the user is escaped: in the text by jinja2, in the charts' JSON by writing
`<` as an escape of JSON. Beyond that the page's own policy lets no script run but the two whose digests it names,
and lets nothing be loaded.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import altair as alt
import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from dualform.report import charts
from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import (
    MISSING,
    count,
    decimal,
    decimal_interval,
    finite,
    known,
    percent,
    percent_interval,
    scaled,
    significant,
)
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.table import companions
from dualform.report.words import best_learners, chance_level, collapsed, cost_sentence, verdict
from dualform.result import Estimate, Result


def render_page(result: Result) -> str:
    """The report as one HTML document, ready to be written as UTF-8.

    Args:
        result: Any result; sections without data are left out.

    Returns:
        The whole page, charts' libraries included: about 1 MB, readable offline and printable.
    """
    engine, boot = _scripts()
    template = _environment().get_template("page.html.j2")
    drawn = _charts(result)
    return template.render(
        result=result,
        title=_title(result),
        css=Markup(_asset("page.css")),
        # Without charts their libraries would be a megabyte for nothing.
        engine=Markup(engine) if drawn else None,
        boot=Markup(boot),
        policy=_policy([engine, boot] if drawn else []),
        charts=drawn,
        verdict=verdict(result),
        cards=_cards(result),
        chance=chance_level(result),
        accuracy=_accuracy_rows(result),
        similarity=_similarity_rows(result),
        has_random=bool(set(result.controls.get("random", {})) & set(result.similarity)),
        controls=_control_table(result),
        rec2ftp=_rec2ftp_rows(result),
        cost=_cost_rows(result),
        cost_sentence=cost_sentence(result),
        trials=_trial_rows(result),
        model=_facts(result.model),
        task=_facts({key: value for key, value in result.task.items() if key != "prompt"}),
        environment=_facts({key: value for key, value in result.environment.items() if key != "command"}),
        config=_yaml(result.config),
        commands=_commands(result),
        glossary=_glossary(result),
    )


def _title(result: Result) -> str:
    model, task = result.model.get("name"), result.task.get("name")
    if model and task:
        return f"dualform: {model} on {task}"
    return f"dualform: {model or task or result.study}"


def _cards(result: Result) -> list[dict[str, str]]:
    """The few numbers that a reader looks for first: value, what it is, how sure."""
    cards = []
    best = best_learners(result)
    if len(best) == 1:
        top = result.accuracy[best[0]]
        name = learner_style(best[0]).title
        cards.append(_card("highest accuracy", percent(top.mean), f"{name}, {percent_interval(top.ci95)}"))
    icl, ft = (finite(result.accuracy[key].mean) if key in result.accuracy else None for key in ("icl", "ft"))
    if icl is not None and ft is not None:
        cards.append(_card("ICL less finetuning", f"{100 * (icl - ft):+.1f}", "points of accuracy"))
    rec2ftp = result.similarity.get("rec2ftp")
    if rec2ftp is not None:
        chance = finite(rec2ftp.details.get("chance"))
        beside = f"chance level {percent(chance)}, n = {rec2ftp.n}" if chance is not None else f"n = {rec2ftp.n}"
        cards.append(_card("Rec2FTP", percent(rec2ftp.mean), beside))
    sim_aou = result.similarity.get("sim_aou")
    if sim_aou is not None:
        random = result.controls.get("random", {}).get("sim_aou")
        beside = f"random direction {decimal(random.mean)}" if random else decimal_interval(sim_aou.ci95)
        cards.append(_card("SimAOU", decimal(sim_aou.mean), beside))
    if result.demonstrations is not None:
        asked, used = result.demonstrations.k_requested, result.demonstrations.k_effective
        seeds = len(result.demonstrations.rows)
        beside = f"of {asked} requested" if used != asked else f"{seeds} seed{'s' if seeds != 1 else ''}"
        cards.append(_card("demonstrations", str(used), beside))
    return cards


def _card(name: str, value: str, beside: str) -> dict[str, str]:
    return {"name": name, "value": value, "beside": beside}


def _accuracy_rows(result: Result) -> list[dict[str, Any]]:
    rows = []
    fallen = collapsed(result)
    for key in learners_in_order(dict.fromkeys([*result.accuracy, *result.predictions])):
        accuracy, predictions = result.accuracy.get(key), result.predictions.get(key)
        seeds = (
            [value for each in accuracy.per_seed.values() if (value := finite(each)) is not None] if accuracy else []
        )
        label = predictions.majority_label if predictions else None
        rows.append(
            {
                "style": learner_style(key),
                "mean": percent(accuracy.mean) if accuracy else MISSING,
                "interval": percent_interval(accuracy.ci95) if accuracy else MISSING,
                "range": f"{100 * min(seeds):.1f} to {100 * max(seeds):.1f} %" if len(seeds) > 1 else MISSING,
                "n": count(accuracy.n) if accuracy else MISSING,
                "share": percent(predictions.majority_share) if predictions else MISSING,
                "label": label.strip() if label else None,
                "entropy": decimal(predictions.entropy) if predictions else MISSING,
                "collapsed": key in fallen,
            }
        )
    return rows


def _controls_used(result: Result) -> list[str]:
    return [key for key in controls_in_order(result.controls) if set(result.controls[key]) & set(result.similarity)]


def _similarity_rows(result: Result) -> list[dict[str, Any]]:
    random = result.controls.get("random", {})
    return [
        {
            "measure": measure_of(key),
            "mean": decimal(result.similarity[key].mean),
            "interval": decimal_interval(result.similarity[key].ci95),
            "n": count(result.similarity[key].n),
            "random": decimal(random[key].mean) if key in random else "",
            "companions": [
                {"name": name, "mean": decimal(mean), "interval": interval, "n": n}
                for name, mean, interval, n in companions(key, result.similarity[key])
            ],
        }
        for key in in_order(result.similarity)
    ]


def _control_table(result: Result) -> dict[str, Any]:
    """Each measure that has a control, beside all of them."""
    controls = _controls_used(result)
    rows = []
    for key in in_order(result.similarity):
        beside = [result.controls[control].get(key) for control in controls]
        if any(beside):
            cells = [_cell(each) for each in [result.similarity[key], *beside]]
            rows.append({"title": measure_of(key).title, "cells": cells})
    return {"titles": [control_of(control).title for control in controls], "rows": rows}


def _cell(estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    interval = decimal_interval(estimate.ci95) if known(estimate.ci95) else ""
    return {"mean": decimal(estimate.mean), "interval": interval}


def _rec2ftp_rows(result: Result) -> list[dict[str, str]]:
    found = result.similarity.get("rec2ftp")
    if found is None:
        return []
    details = found.details
    rows = [
        {
            "name": "Rec2FTP",
            "meaning": "finetuning right, ICL right, zero-shot wrong / finetuning right, zero-shot wrong",
            "value": percent(found.mean),
            "counts": _counts(details, "numerator", "denominator") or f"n = {count(found.n)}",
            "interval": percent_interval(found.ci95),
        }
    ]
    for key, name, meaning in (
        ("chance", "chance level", "ICL right / zero-shot wrong, whatever finetuning did"),
        ("lift", "lift", "Rec2FTP less its chance level; 0 if context fixed answers whether or not finetuning did"),
        (
            "reverse",
            "flips the other way",
            "finetuning wrong, ICL wrong, zero-shot right / finetuning wrong, zero-shot right",
        ),
        ("jaccard", "Jaccard", "answers whose correctness both changed / answers whose correctness either changed"),
    ):
        if key not in details:
            continue
        value = details[key]
        rows.append(
            {
                "name": name,
                "meaning": meaning,
                "value": _points(value) if key == "lift" else percent(value),
                "counts": _counts(details, f"{key}_numerator", f"{key}_denominator"),
                "interval": _points_interval(details.get(f"{key}_ci95")) if key == "lift" else "",
            }
        )
    return rows


def _points(difference: Any) -> str:
    """A difference of two shares, as `+14.8 points`."""
    number = finite(difference)
    return MISSING if number is None else f"{100 * number:+.1f} points"


def _points_interval(interval: Any) -> str:
    """An interval of such a difference, as `-2.0 to +31.5 points`; empty without one."""
    ends = [finite(end) for end in interval or ()]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return ""
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"


def _counts(details: Mapping[str, Any], numerator: str, denominator: str) -> str:
    over, under = finite(details.get(numerator)), finite(details.get(denominator))
    return "" if over is None or under is None else f"{count(over)} of {count(under)}"


def _cost_rows(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "style": learner_style(key),
            "adapt_seconds": significant(result.cost[key].adapt_seconds),
            "search_seconds": significant(result.cost[key].search_seconds),
            "query_milliseconds": significant(scaled(result.cost[key].query_seconds, 1e3)),
            "tokens": count(result.cost[key].tokens),
            "gflop": significant(scaled(result.cost[key].flops, 1e-9)),
        }
        for key in learners_in_order(result.cost)
    ]


def _trial_rows(result: Result) -> list[dict[str, str]]:
    """For each learner: how many rates were tried and dropped, and what was chosen."""
    rows = []
    for key in learners_in_order(dict.fromkeys(trial.learner for trial in result.trials)):
        trials = [trial for trial in result.trials if trial.learner == key]
        chosen = [trial.learning_rate for trial in trials if trial.chosen]
        rates = {trial.learning_rate for trial in trials}
        on_the_edge = len(rates) > 1 and any(rate in (min(rates), max(rates)) for rate in chosen)
        rows.append(
            {
                "name": learner_style(key).title,
                "tried": str(len(rates)),
                "range": f"{min(rates):.3g} to {max(rates):.3g}",
                "chosen": ", ".join(f"{rate:.3g}" for rate in sorted(set(chosen))) or MISSING,
                "diverged": str(sum(trial.status == "diverged" for trial in trials)),
                "skipped": str(sum(trial.status == "skipped" for trial in trials)),
                "edge": "yes" if on_the_edge else "",
            }
        )
    return rows


def _facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of name and text for any mapping; what lies nested is written as YAML."""
    rows = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            text = _yaml(value)
        elif isinstance(value, list | tuple):
            text = ", ".join(each.strip() or repr(each) if isinstance(each, str) else _plain(each) for each in value)
        else:
            text = _plain(value)
        if text:
            rows.append((str(key).replace("_", " "), text))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if isinstance(value, float):
        return significant(value)
    return MISSING if value is None else str(value)


def _yaml(value: Any) -> str:
    if not value:
        return ""
    # By way of JSON: paths and tuples become text and lists, which safe YAML knows.
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None).rstrip()


def _commands(result: Result) -> list[tuple[str, str]]:
    """What to type to get this page, or these numbers, again."""
    commands = [("Rebuild this page from the run's folder", "dualform report DIR")]
    typed = result.environment.get("command")
    if typed:
        return [*commands, ("Run it again", str(typed))]
    model, task = result.model.get("name"), result.task.get("name")
    if result.study == "comparison" and model and task:
        words = ["dualform", "compare", str(model), str(task)]
        if result.demonstrations is not None and result.demonstrations.rows:
            words += ["--seeds", ",".join(result.demonstrations.rows)]
        commands.append(("Run it again (other settings as under “config” below)", shlex.join(words)))
    return commands


def _glossary(result: Result) -> list[tuple[str, str]]:
    """The words that this page uses and a newcomer may not know."""
    learners = learners_in_order(dict.fromkeys([*result.accuracy, *result.cost, *result.predictions]))
    terms = [(learner_style(key).title, learner_style(key).meaning) for key in learners]
    terms += [(control_of(key).title, control_of(key).meaning) for key in _controls_used(result)]
    if result.demonstrations is not None or learners:
        terms += [
            ("demonstration", "A labelled example that every learner may use: in the prompt or as training data.")
        ]
    if result.accuracy or result.similarity:
        terms += [
            ("query", "An example whose label is to be predicted."),
            ("seed", "Decides which demonstrations are drawn and in what order."),
            (
                "95 % interval",
                "Bootstrap over seeds and, independently, over the queries that all seeds share. Two that overlap are "
                "not told apart here.",
            ),
            ("n", "Numbers that a mean stands on: (seed, query) pairs, or the denominator of a ratio."),
        ]
    return [(term, meaning) for term, meaning in terms if meaning]


def _charts(result: Result) -> dict[str, dict[str, Any]]:
    """Each chart that has data, as JSON for a script tag and a sentence for those who cannot see it."""
    described = {
        "accuracy": (
            charts.accuracy_chart,
            "Mean accuracy of each learner with its 95 % interval and one point a seed.",
        ),
        "predictions": (charts.prediction_chart, "Share of each label among the predictions of each learner."),
        "controls": (charts.controls_chart, "Each measure of likeness beside its controls."),
        "layers": (charts.similarity_by_layer_chart, "Each measure of likeness over the layers, with its interval."),
        "heads": (charts.head_map_chart, "Each measure of likeness by layer and head, as a heat map."),
        "trials": (charts.trials_chart, "Accuracy on the selection split against learning rate, one line a seed."),
    }
    drawn = {}
    for name, (draw, description) in described.items():
        chart = draw(result)
        # Checking a chart against the schema takes as long as all the rest, and the tests do it.
        if chart is not None:
            drawn[name] = {"description": description, "spec": json_for_script(_compact(chart.to_dict(validate=False)))}
    return drawn


def _compact(value: Any) -> Any:
    """Numbers at six digits: a third of the page's size, and more than a screen can show."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _compact(each) for key, each in value.items()}
    return [_compact(each) for each in value] if isinstance(value, list) else value


def json_for_script(value: Any) -> Markup:
    """JSON that cannot end the script tag around it, nor open a comment in it.

    Raises:
        ValueError: A number in it is not finite, for which JSON has no word.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


@lru_cache(maxsize=1)
def _scripts() -> tuple[str, str]:
    """The charts' libraries (Vega, Vega-Lite, Vega-Embed), and what draws the charts of this page."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    engine = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # Inside a script's text "</script" would end it and "<!--" begin a comment; neither means anything else there.
    return engine.replace("</script", "<\\/script").replace("<!--", "<\\!--"), _asset("page.js")


def _policy(scripts: Iterable[str]) -> str:
    """The page's content security policy: nothing is loaded, no script runs but these.

    `unsafe-eval` is for Vega, which compiles its expressions; the expressions are ours, the data are not code.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), "'unsafe-eval'"]) if digests else "'none'"
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def _asset(name: str) -> str:
    return resources.files("dualform.report").joinpath(name).read_text(encoding="utf-8")

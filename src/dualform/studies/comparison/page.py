"""A comparison as one HTML file that needs no network: numbers, charts and what they do not say."""

import shlex
from collections.abc import Mapping
from typing import Any

from dualform.attention_record import AttentionRecord
from dualform.report.measures import KINDS, control_of, controls_in_order, in_order, measure_of, score, score_interval
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
from dualform.report.phrases import (
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    is_few,
    points,
    share,
    share_interval,
)
from dualform.report.shell import DescribedChart, card, commands_again, facts, render_shell
from dualform.result import FEWEST_FOR_INTERVAL, Accuracy, Calibrated, Estimate, Result
from dualform.studies.baseline_words import baseline_rows, baselines_text, majority_level
from dualform.studies.comparison import charts, control_charts
from dualform.studies.comparison.against_charts import cost_accuracy_chart
from dualform.studies.comparison.against_page import GLOSSARY as AGAINST_GLOSSARY
from dualform.studies.comparison.against_page import against_section
from dualform.studies.comparison.explorer import explorer_section
from dualform.studies.comparison.rounding_words import rounding_section
from dualform.studies.comparison.table import companions
from dualform.studies.comparison.words import (
    best_learners,
    collapsed,
    cost_sentence,
    judged_by,
    layers_above_floor,
    p_text,
    pair_sentences,
    seeds_note,
    verdict,
)
from dualform.studies.fold.words import fold_verdict
from dualform.studies.published import MODELS, beside_the_paper

CHARTS: dict[str, DescribedChart] = {
    "against": (
        cost_accuracy_chart,
        "Accuracy of each learner with its 95 % interval against the floating-point operations of a thousand queries.",
    ),
    "accuracy": (
        charts.accuracy_chart,
        "Mean accuracy of each learner with its 95 % interval and one point a seed, chance and the majority baseline.",
    ),
    "predictions": (
        charts.prediction_chart,
        "Share of each label among the right answers and among the predictions of each learner.",
    ),
    "bands": (
        control_charts.band_chart,
        "Each measure of likeness with its interval, in the band from its floor to its ceiling, beside all controls.",
    ),
    "calibrated": (
        control_charts.calibrated_chart,
        "Each measure of likeness with its interval on one scale: 0 is its floor, 1 its ceiling.",
    ),
    "layers": (charts.similarity_by_layer_chart, "Each measure of likeness over the layers, with its interval."),
    "heads": (charts.head_map_chart, "Each measure of likeness by layer and head, as a heat map."),
    "sweep": (
        control_charts.sweep_chart,
        "Accuracy of finetuning, length of its change and each measure of likeness against the learning rate.",
    ),
    "trials": (charts.trials_chart, "Accuracy on the selection split against learning rate, one line a seed."),
}


def render_comparison(result: Result, attention: AttentionRecord | None = None) -> str:
    """The page of a comparison, ready to be written as UTF-8.

    Args:
        result: What it found; sections without data are left out.
        attention: Where its learners looked, for the explorer.
    """
    return render_shell(
        "dualform.studies.comparison:page.html.j2",
        result,
        title=_title(result),
        charts=CHARTS,
        styles=["dualform.studies.comparison:explorer.css"] if attention else [],
        scripts=["dualform.studies.comparison:explorer.js"] if attention else [],
        explorer=explorer_section(attention),
        verdict=[*fold_verdict(result), *verdict(result)],
        cards=_cards(result),
        commands=_commands(result),
        glossary=_glossary(result),
        baselines=baselines_text(result),
        baseline_rows=[{"name": name, "mean": percent(level)} for name, level in baseline_rows(result)],
        n_queries=count(result.baselines.n) if result.baselines is not None else MISSING,
        has_over=any(each.over_majority is not None for each in result.accuracy.values()),
        has_f1=any(each.macro_f1 is not None for each in result.accuracy.values()),
        by_label=_by_label(result),
        against=against_section(result),
        accuracy=_accuracy_rows(result),
        pairs=_pair_rows(result),
        pair_sentences=pair_sentences(result),
        seeds_note=seeds_note(result),
        similarity=_similarity_rows(result),
        has_scale=bool(set(result.calibrated) & set(result.similarity)),
        scale_n=_scale_n(result),
        has_random=bool(set(result.controls.get("random", {})) & set(result.similarity)),
        controls=_control_table(result),
        layers_above=layers_above_floor(result),
        layers_tested=any(each.per_layer_q for each in result.similarity.values()),
        published=_published_rows(result),
        published_models=MODELS,
        rounding=rounding_section(result),
        rec2ftp=_rec2ftp_rows(result),
        cost=_cost_rows(result),
        cost_sentence=cost_sentence(result),
        trials=_trial_rows(result),
        model=facts(result.model),
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
        cards.append(card("highest accuracy", share(top), f"{name}, {share_interval(top)}"))
    levels = baseline_rows(result)
    if majority_level(result) is not None:
        name, level = levels[-1]
        cards.append(card("majority baseline", percent(level), name))
    icl, ft = (finite(result.accuracy[key].mean) if key in result.accuracy else None for key in ("icl", "ft"))
    if icl is not None and ft is not None:
        cards.append(card("ICL less finetuning", f"{100 * (icl - ft):+.1f}", "points of accuracy"))
    folded = result.against_icl.get("fold")
    if folded is not None:
        cards.append(card("Fold answers as ICL", share(folded.agreement), share_interval(folded.agreement)))
    rec2ftp = result.similarity.get("rec2ftp")
    if rec2ftp is not None:
        chance = finite(rec2ftp.details.get("chance"))
        beside = f"chance level {percent(chance)}, n = {rec2ftp.n}" if chance is not None else f"n = {rec2ftp.n}"
        cards.append(card("Rec2FTP", share(rec2ftp), beside))
    sim_aou, judged = result.similarity.get("sim_aou"), judged_by(result)
    if judged is not None:
        key, name = judged
        place = result.calibrated[key]
        beside = f"0: {control_of(place.control).title}, 1: ceiling; raw score {decimal(place.score)}"
        cards.append(card(f"{name}, calibrated", hundredths(place.mean), beside))
    elif sim_aou is not None:
        random = result.controls.get("random", {}).get("sim_aou")
        beside = f"random direction {decimal(random.mean)}" if random else decimal_interval(sim_aou.ci95)
        cards.append(card("SimAOU", decimal(sim_aou.mean), beside))
    if result.demonstrations is not None:
        asked, used = result.demonstrations.k_requested, result.demonstrations.k_effective
        seeds = len(result.demonstrations.rows)
        beside = f"of {asked} requested" if used != asked else f"{seeds} seed{'s' if seeds != 1 else ''}"
        cards.append(card("demonstrations", str(used), beside))
    return cards


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
                "mean": share(accuracy) if accuracy else MISSING,
                "interval": share_interval(accuracy) if accuracy else MISSING,
                "over": difference(accuracy.over_majority.mean) if accuracy and accuracy.over_majority else MISSING,
                "over_interval": _over_interval(accuracy),
                "f1": decimal(accuracy.macro_f1.mean) if accuracy and accuracy.macro_f1 else MISSING,
                "f1_interval": _f1_interval(accuracy),
                "range": f"{100 * min(seeds):.1f} to {100 * max(seeds):.1f} %" if len(seeds) > 1 else MISSING,
                "n": count(accuracy.n) if accuracy else MISSING,
                "share": percent(predictions.majority_share) if predictions else MISSING,
                "true_share": _true_share(result, label),
                "label": label.strip() if label else None,
                "entropy": decimal(predictions.entropy) if predictions else MISSING,
                "collapsed": key in fallen,
            }
        )
    return rows


def _over_interval(accuracy: Accuracy | None) -> str:
    over = accuracy.over_majority if accuracy is not None else None
    return difference_interval(over.ci95) if over is not None and known(over.ci95) else ""


def _f1_interval(accuracy: Accuracy | None) -> str:
    f1 = accuracy.macro_f1 if accuracy is not None else None
    return decimal_interval(f1.ci95) if f1 is not None and known(f1.ci95) else ""


def _true_share(result: Result, label: str | None) -> str:
    """How often a label is the right answer."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return MISSING
    return percent(baselines.label_counts[label] / baselines.n)


def _by_label(result: Result) -> dict[str, Any]:
    """How often each learner is right on each label's queries, a row a label."""
    keys = [key for key in learners_in_order(result.accuracy) if result.accuracy[key].per_label]
    labels = dict.fromkeys(label for key in keys for label in result.accuracy[key].per_label)
    counts = result.baselines.label_counts if result.baselines is not None else {}
    rows = []
    for label in labels:
        found = [result.accuracy[key].per_label.get(label) for key in keys]
        cells = [
            {"mean": "", "interval": ""}
            if each is None
            else {"mean": share(each), "interval": share_interval(each).replace(MISSING, "")}
            for each in found
        ]
        rows.append({"label": label.strip(), "queries": count(counts.get(label)), "cells": cells})
    return {"learners": [learner_style(key) for key in keys], "rows": rows}


def _pair_rows(result: Result) -> list[dict[str, str]]:
    return [
        {
            "name": f"{learner_style(test.first).title} less {learner_style(test.second).title}",
            "difference": difference(test.difference),
            "interval": difference_interval(test.ci95),
            "p_queries": p_text(test.p_queries).removeprefix("p ").removeprefix("= "),
            "p_seeds": p_text(test.p_seeds).removeprefix("p ").removeprefix("= "),
            "detectable": points(test.minimum_detectable),
            "n": count(test.n),
        }
        for test in result.tests
    ]


def _controls_used(result: Result) -> list[str]:
    """Controls with something to show, kind by kind."""
    shown = {*result.similarity, "accuracy"}
    used = [key for key in controls_in_order(result.controls) if set(result.controls[key]) & shown]
    return [key for kind, _ in KINDS for key in used if control_of(key).kind == kind]


def _similarity_rows(result: Result) -> list[dict[str, Any]]:
    random = result.controls.get("random", {})
    return [
        {
            "measure": measure_of(key),
            "mean": score(key, result.similarity[key]),
            "interval": score_interval(key, result.similarity[key]).replace(MISSING, ""),
            "rounding": _by_rounding(result.similarity[key].rounding),
            "n": count(result.similarity[key].n),
            "random": decimal(random[key].mean) if key in random else "",
            "place": _place(result.calibrated.get(key)),
            "companions": [
                {"name": name, "mean": decimal(mean), "interval": interval.replace(MISSING, ""), "n": n}
                for name, mean, interval, n in companions(key, result.similarity[key])
            ],
        }
        for key in in_order(result.similarity)
    ]


def _by_rounding(moved: float | None, least: float = 0.0005) -> str:
    """How far rounding moves a number, as `± 0.004 by rounding`; empty where the digits shown would not show it."""
    number = finite(moved)
    if number is None or number < least:
        return ""
    return f"± {decimal(number) if least < 0.001 else hundredths(number)} by rounding"


def _place(place: Calibrated | None) -> dict[str, str]:
    """A measure on its scale: floor, ceiling, place between them, and what difference could have been found."""
    if place is None:
        return dict.fromkeys(("floor", "control", "ceiling", "mean", "interval", "rounding", "detectable"), "")
    return {
        "floor": decimal(place.floor),
        "control": control_of(place.control).title,
        "ceiling": decimal(place.ceiling),
        "mean": hundredths(place.mean),
        "interval": hundredths_interval(place.ci95) if known(place.ci95) else "",
        "rounding": _by_rounding(place.rounding, 0.005),
        "detectable": decimal(place.minimum_detectable),
    }


def _scale_n(result: Result) -> str:
    """How many pairs the scales stand on: `500`, or `140 to 500`."""
    n = [each.n for key, each in result.calibrated.items() if key in result.similarity]
    if not n:
        return ""
    return count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def _control_table(result: Result) -> dict[str, Any]:
    """Each measure that has a control, beside all of them; last, how often the controls' own learners are right."""
    controls = _controls_used(result)
    rows = []
    for key in in_order(result.similarity):
        beside = [result.controls[control].get(key) for control in controls]
        if any(beside):
            cells = [_cell(key, each) for each in [result.similarity[key], *beside]]
            rows.append({"title": measure_of(key).title, "cells": cells})
    answered = [result.controls[control].get("accuracy") for control in controls]
    if any(answered):
        cells = [{"mean": "", "interval": ""}, *(_cell("accuracy", each) for each in answered)]
        rows.append({"title": "accuracy of the control's learner", "cells": cells})
    kinds = [control_of(control).kind for control in controls]
    return {
        "kinds": [(name, kinds.count(kind)) for kind, name in KINDS if kind in kinds],
        "titles": [control_of(control).title for control in controls],
        "rows": rows,
    }


def _cell(measure: str, estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    if measure == "accuracy":
        return {"mean": share(estimate), "interval": share_interval(estimate).replace(MISSING, "")}
    return {"mean": score(measure, estimate), "interval": score_interval(measure, estimate).replace(MISSING, "")}


def _published_rows(result: Result) -> list[dict[str, Any]]:
    rows = []
    for each in beside_the_paper(result):
        number, ends = (percent, percent_interval) if each.share else (decimal, decimal_interval)
        rows.append(
            {
                "title": each.title,
                "tasks": each.tasks,
                "run": MISSING if each.run is None else number(each.run.mean),
                "interval": ends(each.run.ci95) if each.run is not None and known(each.run.ci95) else "",
                "published": [number(value) for value in each.published],
            }
        )
    return rows


def _rec2ftp_rows(result: Result) -> list[dict[str, str]]:
    found = result.similarity.get("rec2ftp")
    if found is None:
        return []
    details = found.details
    rows = [
        {
            "name": "Rec2FTP",
            "meaning": "finetuning right, ICL right, zero-shot wrong / finetuning right, zero-shot wrong",
            "value": MISSING if is_few(found) else percent(found.mean),
            "counts": _counts(details, "numerator", "denominator") or f"n = {count(found.n)}",
            "interval": share_interval(found),
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
        # A ratio of few answers is its counts alone; the lift has those of Rec2FTP.
        under = found.n if key == "lift" else finite(details.get(f"{key}_denominator"))
        few = under is not None and under < FEWEST_FOR_INTERVAL
        value = None if few else details[key]
        rows.append(
            {
                "name": name,
                "meaning": meaning,
                "value": _points(value) if key == "lift" else percent(value),
                "counts": _counts(details, f"{key}_numerator", f"{key}_denominator"),
                "interval": _points_interval(details.get(f"{key}_ci95")) if key == "lift" and not few else "",
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
                "name": charts.trained_name(key),
                "tried": str(len(rates)),
                "range": f"{min(rates):.3g} to {max(rates):.3g}",
                "chosen": ", ".join(f"{rate:.3g}" for rate in sorted(set(chosen))) or MISSING,
                "diverged": str(sum(trial.status == "diverged" for trial in trials)),
                "skipped": str(sum(trial.status == "skipped" for trial in trials)),
                "edge": "yes" if on_the_edge else "",
            }
        )
    return rows


def _commands(result: Result) -> list[tuple[str, str]]:
    model, task = result.model.get("name"), result.task.get("name")
    if result.study != "comparison" or not model or not task:
        return commands_again(result)
    words = ["dualform", "compare", str(model), str(task)]
    if result.demonstrations is not None and result.demonstrations.rows:
        words += ["--seeds", ",".join(result.demonstrations.rows)]
    return commands_again(result, ("Run it again (other settings as under “config” below)", shlex.join(words)))


def _glossary(result: Result) -> list[tuple[str, str]]:
    """The words that this page uses and a newcomer may not know."""
    learners = learners_in_order(dict.fromkeys([*result.accuracy, *result.cost, *result.predictions]))
    terms = [(learner_style(key).title, learner_style(key).meaning) for key in learners]
    controls = _controls_used(result)
    # The floor of a measure may be a level that no control of the run holds.
    named = dict.fromkeys([*controls, *(each.control for each in result.calibrated.values())])
    terms += [(control_of(key).title, control_of(key).meaning) for key in controls_in_order(named)]
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
            (
                "n",
                "Numbers that a mean is taken over: (seed, query) pairs, or the denominator of a ratio. A share of "
                f"fewer than {FEWEST_FOR_INTERVAL} is shown as a count, without an interval.",
            ),
        ]
    if majority_level(result) is not None:
        terms.append(
            (
                "majority baseline",
                "Accuracy of always giving the answer that is right most often among the reported queries themselves: "
                "what a learner must exceed before its accuracy shows that anything was learned.",
            )
        )
    if any(each.macro_f1 is not None for each in result.accuracy.values()):
        terms.append(
            (
                "macro-F1",
                "Mean over labels of the F1 score, 2 right / (answered + true): one answer to everything scores low on "
                "it however common its label is.",
            )
        )
    if result.against_icl:
        terms += AGAINST_GLOSSARY
    if any(control_of(key).kind == "floor" for key in named):
        terms.append(
            (
                "floor",
                "What a measure scores where nothing is learned from these demonstrations. On a calibrated scale: the "
                "highest-scoring of these controls.",
            )
        )
    if result.calibrated or any(control_of(key).kind == "ceiling" for key in named):
        terms.append(
            (
                "ceiling",
                "What a measure scores for the same thing twice, under another order of the demonstrations: geometric "
                "mean of ICL beside itself and FT beside itself.",
            )
        )
    if result.calibrated:
        terms.append(
            (
                "calibrated",
                "(score - floor) / (ceiling - floor), all over the same (seed, query) pairs: 0 is what nothing scores, "
                "1 what the same thing twice scores. Noise can carry it below 0 or above 1.",
            )
        )
    if result.calibrated or result.tests:
        terms.append(
            (
                "smallest detectable difference",
                "The smallest true difference (of a score: from its floor) that a run of this size finds four times in "
                "five, at the 5 % level. “No difference” says nothing about smaller ones.",
            )
        )
    if result.tests:
        terms.append(
            (
                "p over queries, over seeds",
                "How often chance alone gives a difference at least as large, by flipping the signs of the differences "
                "of single queries, or of whole seeds.",
            )
        )
    if any(each.per_layer_q for each in result.similarity.values()):
        terms.append(
            (
                "false discovery rate",
                "Among the layers called above the floor, the share expected to be so called by chance "
                "(Benjamini-Hochberg, over the layers of one measure): here less than 5 %, q < 0.05.",
            )
        )
    return [(term, meaning) for term, meaning in terms if meaning]

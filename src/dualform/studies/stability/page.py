"""A stability study as one HTML file that needs no network."""

import shlex
from collections.abc import Mapping
from typing import Any

from dualform.report.numerals import MISSING, count, decimal, known, percent, percent_interval
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    plural,
    points,
    points_interval,
)
from dualform.report.shell import DescribedChart, card, commands_again, facts, render_shell
from dualform.result import Behaviour, ModelStability, Result
from dualform.studies.baseline_words import baselines_text
from dualform.studies.stability import charts as stability_charts
from dualform.studies.stability.table import SELECTED_BY, contrast_name, labels_in_order
from dualform.studies.stability.words import (
    COLLAPSED_ABOVE,
    gain_over_zero_shot,
    runs_with_true_labels,
    stability_answers,
    variance_shares,
)

CHARTS: dict[str, DescribedChart] = {
    "accuracy": (
        stability_charts.accuracy_runs_chart,
        "Accuracy of every run of each learner and model, before and after contextual calibration.",
    ),
    "majority": (
        stability_charts.majority_runs_chart,
        "Share of the most frequent answer in every run, before and after contextual calibration.",
    ),
    "variance": (
        stability_charts.variance_chart,
        "Variance of accuracy of each learner and model, split by set, order and residual.",
    ),
    "size": (
        stability_charts.size_chart,
        "Standard deviation of accuracy against the model's number of parameters.",
    ),
    "labels": (
        stability_charts.labels_chart,
        "Accuracy of each learner with true, random and flipped labels in the demonstrations.",
    ),
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    ("set", "The demonstrations that one seed draws."),
    ("order", "One arrangement of a set; order 0 is that in which it was drawn."),
    ("run", "A learner adapted to one set in one order, answering all queries."),
    ("by order", "Best less worst order of a set, mean over sets, in points."),
    ("top answer", "Share of the queries that get a run's most frequent answer, mean over runs."),
    ("entropy", "Mean entropy of the label distribution, in nats: near 0 where a learner is sure of its answers."),
    ("SD", "Standard deviation of accuracy over runs, in points (hundredths)."),
    (
        "collapse",
        f"A run that gives one label to more than {100 * COLLAPSED_ABOVE:.0f} % of the queries, whatever they say.",
    ),
    (
        "contextual calibration",
        "Each label's probability divided by the one that it gets for texts that say nothing, so that a label is not "
        "preferred before a query is read (arXiv:2102.09690).",
    ),
    (
        "residual",
        "The part of the variance that comes from how these very queries fall out under a prompt: more queries would "
        "average it away.",
    ),
    ("random labels", "The same demonstrations, each shown with a label drawn at random, the true one included."),
    ("flipped labels", "The same demonstrations, each shown with a wrong label."),
    (
        "95 % interval",
        "Bootstrap over sets (for accuracies by labels shown, over sets and queries). Two that overlap are not told "
        "apart here.",
    ),
)


def render_stability(result: Result) -> str:
    """The report of a stability study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    models = result.stability.models if result.stability is not None else {}
    answers = stability_answers(result)
    return render_shell(
        "dualform.studies.stability:page.html.j2",
        result,
        title=_title(result),
        charts=CHARTS,
        styles=["study.css"],
        verdict=[sentence for key in ("stable", "fair", "size", "standing") for sentence in answers.get(key, [])],
        cards=_cards(models),
        commands=_commands(result),
        glossary=[*_learners(models), *GLOSSARY] if models else [],
        answers=answers,
        baselines=baselines_text(result),
        tables=[{"name": name, "rows": _behaviour_rows(model)} for name, model in models.items()],
        variance=_variance_rows(models),
        labels=_label_rows(models),
        contrasts=_contrast_rows(result),
        fairness=_fairness_rows(models),
        models=[{"name": name, "facts": facts(model.model)} for name, model in models.items()],
    )


def _fairness_rows(models: Mapping[str, ModelStability]) -> list[dict[str, str]]:
    return [
        {
            "model": name,
            "select": SELECTED_BY.get(each.select, each.select),
            "icl_here": percent(each.icl_chosen_on),
            "icl_there": percent(each.icl_untouched),
            "ft_here": percent(each.ft_chosen_on),
            "ft_there": percent(each.ft_untouched),
            "here": difference(each.gap_chosen_on.mean),
            "here_interval": difference_interval(each.gap_chosen_on.ci95),
            "there": difference(each.gap_untouched.mean),
            "there_interval": difference_interval(each.gap_untouched.ci95),
            "n": count(each.gap_untouched.n),
        }
        for name, model in models.items()
        for each in model.fairness
    ]


def _title(result: Result) -> str:
    models = result.stability.models if result.stability is not None else {}
    named = ", ".join(models) or str(result.model.get("name") or "")
    task = result.task.get("name")
    return f"dualform: stability{f' of {named}' if named else ''}{f' on {task}' if task else ''}"


def _learners(models: dict[str, ModelStability]) -> list[tuple[str, str]]:
    keys = learners_in_order(dict.fromkeys(key for model in models.values() for key in model.learners))
    return [(learner_style(key).title, learner_style(key).meaning) for key in keys]


def _cards(models: dict[str, ModelStability]) -> list[dict[str, str]]:
    """For each model: how far ICL and FT spread, and how often ICL collapses."""
    cards = []
    for name, model in models.items():
        beside = f"{name}: " if len(models) > 1 else ""
        for key, title in (("icl", "SD of ICL's accuracy"), ("ft", "SD of FT's accuracy")):
            if key in model.learners:
                spread = model.learners[key].plain.accuracy
                runs = f"points, {points_interval(spread.sd_ci95)}, {plural(spread.n, 'run')}"
                cards.append(card(title, points(spread.sd), beside + runs))
        if "icl" in model.learners:
            icl = model.learners["icl"]
            after = f"{percent(icl.calibrated.collapse_rate.mean)} calibrated" if icl.calibrated else "not calibrated"
            cards.append(card("ICL's runs collapsed", percent(icl.plain.collapse_rate.mean), beside + after))
        gain = gain_over_zero_shot(model, "ft")
        if gain is not None:
            cards.append(card("FT less zero-shot", difference(gain), f"{beside}points of accuracy"))
    return cards


def _behaviour_rows(model: ModelStability) -> list[dict[str, Any]]:
    rows = []
    for key in learners_in_order(model.learners):
        learner = model.learners[key]
        runs = runs_with_true_labels(learner)
        sets, orders = len({run.seed for run in runs}), len({run.order for run in runs})
        rate = f"rate {learner.learning_rate:.3g}" if learner.learning_rate is not None and "@" not in key else ""
        rows.append(
            {
                "name": learner_style(key).title,
                "colour": learner_style(key).colour,
                "under": rate,
                "runs": f"{plural(sets, 'set')}, {plural(orders, 'order')}" if key != "zsl" else "1 run",
                **_behaviour(learner.plain),
            }
        )
        if learner.calibrated is not None:
            rows.append({"name": None, **_behaviour(learner.calibrated)})
    return rows


def _behaviour(behaviour: Behaviour) -> dict[str, Any]:
    accuracy = behaviour.accuracy
    several = accuracy.n > 1
    return {
        "mean": percent(accuracy.mean),
        "sd": points(accuracy.sd),
        "sd_interval": points_interval(accuracy.sd_ci95) if known(accuracy.sd_ci95) else "",
        "range": percent_interval((accuracy.low, accuracy.high)) if several else MISSING,
        "share": percent(behaviour.majority_share.mean),
        "entropy": decimal(behaviour.entropy.mean),
        "collapsed": percent(behaviour.collapse_rate.mean),
        "collapsed_interval": percent_interval(behaviour.collapse_rate.ci95) if several else "",
        "order_range": points(behaviour.order_range.mean),
    }


def _variance_rows(models: dict[str, ModelStability]) -> list[dict[str, str]]:
    rows = []
    for name, model in models.items():
        for key in learners_in_order(model.learners):
            learner = model.learners[key]
            for behaviour, after in ((learner.plain, ""), (learner.calibrated, ", calibrated")):
                split = behaviour.variance if behaviour is not None else None
                if split is None:
                    continue
                shares = variance_shares(split)
                rows.append(
                    {
                        "model": name,
                        "learner": learner_style(key).title + after,
                        "colour": learner_style(key).colour,
                        "sd": points(split.total**0.5 if split.total is not None and split.total >= 0 else None),
                        **{part: percent(shares.get(part), 0) for part in ("set", "order", "residual")},
                    }
                )
    return rows


def _label_rows(models: dict[str, ModelStability]) -> list[dict[str, str]]:
    return [
        {
            "model": name,
            "learner": learner_style(key).title,
            "colour": learner_style(key).colour,
            "labels": rule,
            "mean": percent(learner.labels[rule].mean),
            "interval": percent_interval(learner.labels[rule].ci95),
            "n": count(learner.labels[rule].n),
        }
        for name, model in models.items()
        for key in learners_in_order(model.learners)
        for learner in [model.learners[key]]
        for rule in labels_in_order(learner.labels)
    ]


def _contrast_rows(result: Result) -> list[dict[str, str]]:
    return [
        {
            "name": contrast_name(each),
            "first": points(each.sd_first),
            "second": points(each.sd_second),
            "ratio": hundredths(each.ratio),
            "interval": hundredths_interval(each.ci95),
            "n": count(each.n),
        }
        for each in (result.stability.contrasts if result.stability is not None else [])
    ]


def _commands(result: Result) -> list[tuple[str, str]]:
    models, task = result.config.get("models"), result.task.get("name")
    if not isinstance(models, list | tuple) or not models or not task:
        return commands_again(result)
    words = ["dualform", "stability", *map(str, models), "--task", str(task)]
    return commands_again(result, ("Run it again (other settings as under “config” below)", shlex.join(words)))

"""A stability study as one HTML file that needs no network."""

from dualform.report.numerals import percent
from dualform.report.page import Fact, facts_section, study_page, titled
from dualform.report.phrases import difference, plural, points, points_interval
from dualform.report.section import Figure, Section
from dualform.studies.baseline_words import COLLAPSED_ABOVE, baselines_text
from dualform.studies.glossary import DEMONSTRATION, learner_terms
from dualform.studies.stability import charts
from dualform.studies.stability.contrast_words import gain_over_zero_shot
from dualform.studies.stability.result import ModelStability, StabilityResult
from dualform.studies.stability.table import (
    behaviour_table,
    contrasts_table,
    fairness_table,
    labels_table,
    variance_table,
)
from dualform.studies.stability.words import stability_answers

GLOSSARY: tuple[tuple[str, str], ...] = (
    DEMONSTRATION,
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


def render(result: StabilityResult) -> str:
    """The report of a stability study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    models = result.stability.models if result.stability is not None else {}
    answers = stability_answers(result)
    # What the sections say of their own question is said there.
    said = [sentence for key in ("stable", "size", "standing") for sentence in answers.get(key, ())]
    several = len(models) > 1
    return study_page(
        result,
        title=titled("stability", ", ".join(models) or result.model.get("name"), result.task.get("name")),
        sentences=said,
        nothing="This result holds no stability study.",
        charts=[
            Figure(
                "accuracy",
                charts.accuracy_runs_chart(result),
                "Accuracy of every run of each learner and model, before and after contextual calibration.",
                "Each dot is a run. Filled: as answered; open, below: after contextual calibration. Box: middle half; "
                "thick line: median.",
            )
        ],
        facts=_facts(models),
        sections=_sections(result, models, answers),
        described=[
            facts_section(f"model-{number}", f"Model {name}" if several else "Model", model.model)
            for number, (name, model) in enumerate(models.items(), 1)
        ],
        command=_command(result),
        glossary=[*learner_terms(key for model in models.values() for key in model.learners), *GLOSSARY]
        if models
        else [],
    )


def _sections(
    result: StabilityResult, models: dict[str, ModelStability], answers: dict[str, list[str]]
) -> list[Section]:
    baselines = baselines_text(result)
    return [
        Section(
            "runs",
            "Accuracy over sets and orders",
            note="Every run is one demonstration set in one order, all queries "
            f"answered{f'; {baselines}' if baselines else ''}.",
            tables=[behaviour_table(name, model) for name, model in models.items()],
        ),
        Section(
            "contrasts",
            "Who is less stable",
            note="Standard deviations of accuracy over the runs that both have. A ratio whose interval lies below 1 "
            "means that the one above the line is more stable.",
            tables=[contrasts_table(result)],
            sections=[
                Section(
                    "size",
                    "By size",
                    charts=[
                        Figure(
                            "size",
                            charts.size_chart(result),
                            "Standard deviation of accuracy against the model's number of parameters.",
                            "Standard deviation over all of a learner's runs, with its 95 % interval. Models differ in "
                            "more than size.",
                        )
                    ],
                    detail=False,
                )
            ],
        ),
        Section(
            "fair",
            "Is the comparison fair when a set is chosen?",
            answers.get("fair", ()),
            tables=[fairness_table(result)],
            note="One set is chosen by its accuracy on a random half of the queries, and both learners take it. On the "
            "half that chose it the chosen learner looks better than it is; the other half shows by how much. Means "
            "over many halves; a set in the order drawn.",
            as_list=True,
        ),
        Section(
            "collapse",
            "Collapse into one class",
            answers.get("collapse", ()),
            charts=[
                Figure(
                    "majority",
                    charts.majority_runs_chart(result),
                    "Share of the most frequent answer in every run, before and after contextual calibration.",
                    "The same runs by the share of their most frequent answer; a run beyond the line has collapsed.",
                )
            ],
            as_list=True,
        ),
        Section(
            "variance",
            "Where the variance comes from",
            answers.get("variance", ()),
            charts=[
                Figure(
                    "variance",
                    charts.variance_chart(result),
                    "Variance of accuracy of each learner and model, split by set, order and residual.",
                    "Length of a bar: variance of a run's accuracy. Upper bar: as answered; lower, pale: after "
                    "contextual calibration.",
                )
            ],
            tables=[variance_table(result)],
            as_list=True,
        ),
        Section(
            "labels",
            "Do the labels shown matter?",
            answers.get("labels", ()),
            charts=[
                Figure(
                    "labels",
                    charts.labels_chart(result),
                    "Accuracy of each learner with true, random and flipped labels in the demonstrations.",
                    "Mean accuracy on the same sets in the order drawn, with 95 % intervals.",
                )
            ],
            tables=[labels_table(result)],
            as_list=True,
        ),
    ]


def _facts(models: dict[str, ModelStability]) -> list[Fact]:
    """For each model: how far ICL and FT spread, and how often ICL collapses."""
    cards = []
    for name, model in models.items():
        beside = f"{name}: " if len(models) > 1 else ""
        for key, title in (("icl", "SD of ICL's accuracy"), ("ft", "SD of FT's accuracy")):
            if key in model.learners:
                spread = model.learners[key].plain.accuracy
                runs = f"points, {points_interval(spread.sd_ci95)}, {plural(spread.n, 'run')}"
                cards.append(Fact(title, points(spread.sd), beside + runs))
        if "icl" in model.learners:
            icl = model.learners["icl"]
            after = f"{percent(icl.calibrated.collapse_rate.mean)} calibrated" if icl.calibrated else "not calibrated"
            cards.append(Fact("ICL's runs collapsed", percent(icl.plain.collapse_rate.mean), beside + after))
        gain = gain_over_zero_shot(model, "ft")
        if gain is not None:
            cards.append(Fact("FT less zero-shot", difference(gain), f"{beside}points of accuracy"))
    return cards


def _command(result: StabilityResult) -> list[str]:
    models, task = result.config.get("models"), result.task.get("name")
    if not isinstance(models, list | tuple) or not models or not task:
        return []
    return ["dualform", "stability", *map(str, models), "--task", str(task)]

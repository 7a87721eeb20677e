"""The HTML report of a stability study."""

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
    ("order", "The order of the demonstrations in the prompt; order 0 is the one in which they were drawn."),
    ("run", "A learner adapted to one set in one order, answering all queries."),
    ("by order", "Accuracy in the best minus that in the worst order of a set, mean over sets, in points."),
    ("top answer", "Share of the queries that get a run's most frequent answer, mean over runs."),
    ("entropy", "Mean entropy of the predicted label distribution, in nats; near 0 for a confident learner."),
    ("SD", "Standard deviation of accuracy over runs, in percentage points."),
    (
        "collapse",
        f"A run collapses if it gives the same label to more than {100 * COLLAPSED_ABOVE:.0f} % of the queries.",
    ),
    (
        "contextual calibration",
        "Each label's probability divided by its probability for content-free texts such as “N/A”, which removes a "
        "preference for a label that does not depend on the query (arXiv:2102.09690).",
    ),
    (
        "residual",
        "The part of the variance that comes from the limited number of queries; it shrinks with more queries.",
    ),
    ("random labels", "The same demonstrations, each with a label drawn at random, which may be the true one."),
    ("flipped labels", "The same demonstrations, each with a wrong label."),
    (
        "95 % interval",
        "Bootstrap over sets (for accuracy by demonstration labels, over sets and queries). Where two "
        "intervals overlap, the difference does not count as significant.",
    ),
)


def render(result: StabilityResult) -> str:
    """A self-contained HTML page that needs no network; sections without data are left out."""
    models = result.stability.models if result.stability is not None else {}
    answers = stability_answers(result)
    # The other findings appear in their own sections.
    verdict = [sentence for key in ("stable", "size", "basis") for sentence in answers.get(key, ())]
    several = len(models) > 1
    return study_page(
        result,
        title=titled("stability", ", ".join(models) or result.model.get("name"), result.task.get("name")),
        sentences=verdict,
        nothing="This result holds no stability study.",
        charts=[
            Figure(
                "accuracy",
                charts.accuracy_runs_chart(result),
                "Accuracy of every run of each learner and model, before and after contextual calibration.",
                "Each dot is a run. Filled dots: before contextual calibration; open dots below: after. Box: middle "
                "half of the runs; thick line: median.",
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
            note="In each run, a learner answers all queries with one demonstration set in one order"
            f"{f'; {baselines}' if baselines else ''}.",
            tables=[behaviour_table(name, model) for name, model in models.items()],
        ),
        Section(
            "contrasts",
            "Which is more stable?",
            note="Standard deviations of accuracy over the sets and orders that both have. If the interval of the "
            "ratio lies below 1, the first of the two is more stable.",
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
                            "Standard deviation over all runs of a learner, with 95 % intervals. Models differ in more "
                            "than size.",
                        )
                    ],
                    detail=False,
                )
            ],
        ),
        Section(
            "fair",
            "Is the comparison fair if a set is chosen?",
            answers.get("fair", ()),
            tables=[fairness_table(result)],
            note="One set is chosen by accuracy on a random half of the queries, and both learners use it. On that "
            "half, the learner whose accuracy was used looks better than it is; the other half shows by how much. "
            "Means over many random halves; demonstrations in the order drawn.",
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
                    "The same runs by the share of their most frequent answer; runs right of the line have collapsed.",
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
                    "Length of a bar: variance of accuracy over runs. Upper bar: before contextual calibration; lower, "
                    "pale bar: after.",
                )
            ],
            tables=[variance_table(result)],
            as_list=True,
        ),
        Section(
            "labels",
            "Do the demonstrations' labels matter?",
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
    """For each model: the SD of ICL and FT, how often ICL collapses, and what FT gains over zero-shot."""
    cards = []
    for name, model in models.items():
        prefix = f"{name}: " if len(models) > 1 else ""
        for key, title in (("icl", "SD of ICL's accuracy"), ("ft", "SD of FT's accuracy")):
            if key in model.learners:
                spread = model.learners[key].plain.accuracy
                runs = f"points, {points_interval(spread.sd_ci95)}, {plural(spread.n, 'run')}"
                cards.append(Fact(title, points(spread.sd), prefix + runs))
        if "icl" in model.learners:
            icl = model.learners["icl"]
            after = f"{percent(icl.calibrated.collapse_rate.mean)} calibrated" if icl.calibrated else "not calibrated"
            cards.append(Fact("ICL's runs collapsed", percent(icl.plain.collapse_rate.mean), prefix + after))
        gain = gain_over_zero_shot(model, "ft")
        if gain is not None:
            cards.append(Fact("FT minus zero-shot", difference(gain), f"{prefix}points of accuracy"))
    return cards


def _command(result: StabilityResult) -> list[str]:
    models, task = result.config.get("models"), result.task.get("name")
    if not isinstance(models, list | tuple) or not models or not task:
        return []
    return ["dualform", "stability", *map(str, models), "--task", str(task)]

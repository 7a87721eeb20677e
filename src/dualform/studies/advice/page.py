"""The HTML page of advice."""

from dualform.report.page import study_page, titled
from dualform.report.section import Figure, Section
from dualform.studies.advice import charts
from dualform.studies.advice.result import AdviceResult
from dualform.studies.advice.table import cost_table, curve_table, detail_table, recommendation_table
from dualform.studies.advice.words import headlines
from dualform.studies.glossary import learner_terms

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("labels", "Labelled examples: those in the prompt, in training and in the choice of settings count alike."),
    ("draw", "One random choice of the labelled examples; each larger budget contains the smaller ones."),
    (
        "probability of being best",
        "Share of bootstrap resamples of draws and queries in which no other learner is more accurate.",
    ),
    ("break-even", "The number of labels from which on training is at least as accurate as prompting."),
)


def render(result: AdviceResult) -> str:
    """A self-contained HTML page that needs no network."""
    sentences, advice = headlines(result), result.advice
    nothing = "This result holds no advice."
    if advice is None:
        return study_page(result, title="advice", sentences=sentences, nothing=nothing)
    return study_page(
        result,
        title=titled("advice", result.model.get("name"), result.task.get("name")),
        sentences=sentences,
        nothing=nothing,
        charts=[
            Figure(
                "curves",
                charts.learning_curves(advice),
                "Accuracy of each learner against the number of labels, with 95 % intervals.",
                "Each budget is used for demonstrations, training and the choice of settings together; means over "
                "draws, with 95 % intervals.",
            )
        ],
        sections=[
            Section("recommended", "What to use", tables=[recommendation_table(advice)], detail=False),
            Section("accuracy", "Accuracy", tables=[curve_table(advice)]),
            Section(
                "cost",
                "Cost",
                charts=[
                    Figure(
                        "cost",
                        charts.cost_chart(advice),
                        "Accuracy of each learner against the seconds of a thousand queries.",
                        "A line for each learner, a dot for each budget.",
                    )
                ],
                tables=[cost_table(advice)],
            ),
            Section("details", "Labels, spread and probabilities", tables=[detail_table(advice)]),
        ],
        command=["dualform", "advise", str(result.config.get("model")), str(result.config.get("task"))],
        glossary=[*learner_terms(advice.curves), *GLOSSARY],
    )

"""The laboratory as one HTML file that needs no network."""

import re
from collections.abc import Sequence

from dualform.report.numerals import count
from dualform.report.page import Fact, Page, about_line, commands_again, findings, render, run_section
from dualform.report.phrases import capital
from dualform.report.section import Figure, Section
from dualform.studies.laboratory.charts import curve_styles, describe_chart, lab_chart, remarks
from dualform.studies.laboratory.result import LabChart, LaboratoryResult, LabStudy
from dualform.studies.laboratory.table import claim_table, lab_table, overview_table
from dualform.studies.laboratory.words import Count, count_claims, count_sentence, laboratory_verdict

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("claim", "A statement of theory or of a paper, tested here with a tolerance that was set beforehand."),
    (
        "must fail",
        "A case constructed so that the claim is false: a wrong rate, softmax, permuted labels. If the claim held here "
        "too, the measure could not distinguish the claim from its opposite.",
    ),
    (
        "could not be measured",
        "The number is missing in at least one seed. This is no evidence for or against the claim, and a case that "
        "must fail does not count as failing.",
    ),
    (
        "exact predictor",
        "Computed from the examples by a formula, not trained: nearest neighbours, gradient descent, least squares, "
        "ridge regression, Bayes. Trained models are compared with them.",
    ),
    (
        "GD, GD++",
        "Steps of gradient descent on the examples in context; GD++ also transforms the inputs between steps, which a "
        "second layer can do.",
    ),
    (
        "OLS, ridge, Bayes",
        "Least squares; least squares with a penalty on the weights; the Bayes-optimal prediction.",
    ),
    (
        "SPD, ILWD",
        "Squared difference between two predictors' predictions, and between the linear weights that their "
        "predictions imply; 0 where they are equal.",
    ),
    ("seed", "Each seed draws new initial weights and new tasks."),
    (
        "95 % interval",
        "Student's, over seeds. A number without one is exact or from a single seed. The interval covers other seeds, "
        "not other sizes of model or task.",
    ),
    ("n", "Number of seeds; 1 for a number that does not depend on the seed."),
)


def render_regression(result: LaboratoryResult) -> str:
    """The report of the laboratory as one HTML document, to be written as UTF-8; it needs no network."""
    studies = result.laboratory.studies if result.laboratory is not None else []
    ids = _ids(studies)
    verdict = laboratory_verdict(result)
    return render(
        Page(
            title="dualform: the laboratory",
            about=about_line(result),
            version=result.dualform,
            answer=verdict[0] if verdict else "This result holds no study of the laboratory.",
            warnings=result.warnings,
            facts=_facts(result, count_claims(claim for study in studies for claim in study.claims)) if studies else [],
            sections=[
                Section("overview", "The studies", tables=[overview_table(result, ids)], detail=False),
                findings(verdict),
                *(_section(name, study) for name, study in zip(ids, studies, strict=True)),
                run_section(result, commands_again(result)),
            ],
            glossary=GLOSSARY if studies else (),
        )
    )


def _ids(studies: Sequence[LabStudy]) -> list[str]:
    """An anchor for each study: its name where that is a unique plain word, else `study-1`, `study-2`, ..."""
    plain = [study.name if re.fullmatch(r"[a-z]+", study.name) else "" for study in studies]
    return [
        name if name and plain.count(name) == 1 and name not in TAKEN else f"study-{place}"
        for place, name in enumerate(plain, 1)
    ]


TAKEN = frozenset(
    {"top", "overview", "verdict", "warnings", "run", "task", "prompt", "settings", "config", "environment", "glossary"}
)
"""Anchors that the page uses for its other parts."""


def _chart_name(study: str, place: int) -> str:
    return f"{study}-{place}"


def _facts(result: LaboratoryResult, claims: Count) -> list[Fact]:
    """Facts at the top of the page: how many claims hold, how many cases fail as they must, how many seeds."""
    cards = []
    if claims.claims:
        cards.append(Fact("claims that hold", f"{claims.hold} of {claims.claims}", ""))
    if claims.must_fail:
        cards.append(Fact("cases that must fail, and do", f"{claims.fail} of {claims.must_fail}", ""))
    seeds = result.config.get("seeds")
    if isinstance(seeds, list):
        cards.append(Fact("seeds", count(len(seeds)), ""))
    for name, meaning in (("dimension", "dimension of inputs"), ("points", "examples in context")):
        if isinstance(result.config.get(name), int):
            # A study may use fewer and then says so in its notes.
            cards.append(Fact(meaning, count(result.config[name]), "requested"))
    return cards


def _section(name: str, study: LabStudy) -> Section:
    """One study: its question and answer, claims, curves, tables and notes."""
    styles = curve_styles(study.charts)
    rendered = [(chart, lab_chart(chart, styles)) for chart in study.charts]
    figures = [
        Figure(_chart_name(name, place), drawing, describe_chart(chart), _caption(chart), capital(chart.title))
        for place, (chart, drawing) in enumerate(rendered)
    ]
    empty = [
        f"{capital(chart.title)}: There is nothing to draw. {_caption(chart)}"
        for chart, drawing in rendered
        if drawing is None
    ]
    claims = [claim_table(study)] if study.claims else []
    return Section(
        name,
        capital(study.name),
        [study.question, *([study.answer] if study.answer else [])],
        sections=[
            Section(
                f"{name}-claims",
                "Claims",
                tables=claims,
                note=count_sentence(count_claims(study.claims)),
                detail=False,
            ),
            Section(
                f"{name}-curves",
                "Curves",
                empty,
                charts=figures,
                note="Bands are 95 % intervals over seeds; dashed grey lines are exact predictors.",
                detail=False,
            ),
            *(
                Section(f"{name}-table-{place}", each.title, tables=[lab_table(each)], detail=False)
                for place, each in enumerate(study.tables, 1)
            ),
            Section(f"{name}-notes", "Notes", study.notes, as_list=True, detail=False),
        ],
    )


def _caption(chart: LabChart) -> str:
    scales = [axis for axis, log in ((chart.x, chart.log_x), (chart.y, chart.log_y)) if log]
    log = [f"Log scale: {', '.join(scales)}."] if scales else []
    return " ".join([*log, *remarks(chart), *([chart.note] if chart.note else [])])

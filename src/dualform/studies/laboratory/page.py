"""The laboratory as one HTML file that needs no network."""

import re
from collections.abc import Sequence

from dualform.report.numerals import count
from dualform.report.page import Fact, Page, about_line, commands_again, findings, render, run_section
from dualform.report.phrases import capital
from dualform.report.section import Figure, Section
from dualform.studies.laboratory.charts import described, lab_chart, looks, remarks
from dualform.studies.laboratory.result import LabChart, LaboratoryResult, LabStudy
from dualform.studies.laboratory.table import claim_table, lab_table, overview_table
from dualform.studies.laboratory.words import Count, count_sentence, counted, laboratory_verdict

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("claim", "What theory, or a paper, says must be found here, with the tolerance that was set beforehand."),
    (
        "must fail",
        "A case made so that the claim is false: a wrong rate, softmax, permuted labels. If it held there too, the "
        "measure could not tell the claim from its opposite.",
    ),
    (
        "could not be measured",
        "The number does not exist, in one seed at least: that speaks neither for the claim nor against it, and a case "
        "that must fail has not failed by it.",
    ),
    (
        "exact predictor",
        "Computed from the examples by a formula, not trained: nearest neighbours, gradient descent, least squares, "
        "ridge regression, Bayes. Trained models are compared with them.",
    ),
    (
        "GD, GD++",
        "Steps of gradient descent on the examples in context; GD++ transforms the inputs between them, which is what "
        "a second layer can do.",
    ),
    ("OLS, ridge, Bayes", "Least squares; least squares with a penalty on the weights; the best that can be known."),
    (
        "SPD, ILWD",
        "Squared difference of two predictors' predictions, and of the linear weights that their predictions imply; 0 "
        "where they are the same.",
    ),
    ("seed", "Draws initial weights and tasks anew."),
    (
        "95 % interval",
        "Student's, over seeds. A number without one is exact, or of a single seed. It speaks of other seeds, and not "
        "of other sizes.",
    ),
    ("n", "Seeds behind a number; 1 for one without chance."),
)


def render_regression(result: LaboratoryResult) -> str:
    """The report of the laboratory as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; studies that were not run are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    ids = _ids(studies)
    said = laboratory_verdict(result)
    return render(
        Page(
            title="dualform: the laboratory",
            about=about_line(result),
            version=result.dualform,
            answer=said[0] if said else "This result holds no study of the laboratory.",
            warnings=result.warnings,
            facts=_facts(result, counted(claim for study in studies for claim in study.claims)) if studies else [],
            sections=[
                Section("overview", "The studies", tables=[overview_table(result, ids)], detail=False),
                findings(said),
                *(_section(name, study) for name, study in zip(ids, studies, strict=True)),
                run_section(result, commands_again(result)),
            ],
            glossary=GLOSSARY if studies else (),
        )
    )


def _ids(studies: Sequence[LabStudy]) -> list[str]:
    """A name for each study that may stand in a link: its own where that is a plain word of its own."""
    plain = [study.name if re.fullmatch(r"[a-z]+", study.name) else "" for study in studies]
    return [
        name if name and plain.count(name) == 1 and name not in TAKEN else f"study-{place}"
        for place, name in enumerate(plain, 1)
    ]


TAKEN = frozenset(
    {"top", "overview", "verdict", "warnings", "run", "task", "prompt", "settings", "config", "environment", "glossary"}
)
"""Names that the page gives to other parts."""


def _chart_name(study: str, place: int) -> str:
    return f"{study}-{place}"


def _facts(result: LaboratoryResult, claims: Count) -> list[Fact]:
    """What a reader looks for first: how many claims hold, whether they could have failed, how many seeds."""
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
            # A study may take fewer, which its notes then say.
            cards.append(Fact(meaning, count(result.config[name]), "requested"))
    return cards


def _section(name: str, study: LabStudy) -> Section:
    """One study: its question and answer, what it claims, its curves, tables and notes."""
    styles = looks(study.charts)
    drawn = [(each, lab_chart(each, styles)) for each in study.charts]
    figures = [
        Figure(_chart_name(name, place), chart, described(each), _caption(each), capital(each.title))
        for place, (each, chart) in enumerate(drawn)
    ]
    empty = [
        f"{capital(each.title)}: There is nothing to draw. {_caption(each)}" for each, chart in drawn if chart is None
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
                note=count_sentence(counted(study.claims)),
                detail=False,
            ),
            Section(
                f"{name}-curves",
                "Curves",
                empty,
                charts=figures,
                note="Bands are 95 % intervals over seeds; dashed in grey, exact predictors.",
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

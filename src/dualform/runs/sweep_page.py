"""A sweep as one HTML file that needs no network: who wins where, how sure, at what cost, and what is missing."""

from dualform.report.html import preformatted
from dualform.report.measures import measure_of
from dualform.report.numerals import known, percent, percent_interval
from dualform.report.page import Fact, Page, commands_again, findings, render, run_section
from dualform.report.palette import learner_style
from dualform.report.phrases import difference, difference_interval, plural
from dualform.report.section import Figure, Section
from dualform.runs import sweep_charts
from dualform.runs.sweep_table import (
    Found,
    agreeing_learners,
    agreement_of,
    cells_table,
    cost_table,
    failures_table,
    grid_table,
    href,
    option_table,
    similarity_table,
    spread_table,
)
from dualform.runs.sweep_words import (
    GAP,
    SHARE,
    axes_of,
    cell_sentence,
    cells_by_status,
    compared,
    decided,
    difference_of,
    group_name,
    judged_measures,
    learners_of,
    over_tasks,
    study_name,
    sweep_verdict,
)
from dualform.studies.baseline_words import majority_level
from dualform.studies.study import study_of_result
from dualform.sweep_result import SweepResult

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("group", "One model, one task and one set of options: all cells that differ in nothing but the seed."),
    ("cell", "One seed of a group, or for studies other than comparisons one whole run."),
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    ("seed", "Decides which demonstrations are drawn and in what order."),
    (
        "95 % interval",
        "In a group: bootstrap over seeds and, independently, over the queries that all seeds share. Over tasks: "
        "Student's, each task one number, as if tasks were drawn from many like them; from three tasks on.",
    ),
    (
        "decides",
        "A group decides between prompting, finetuning and folding where its paired tests (without tests: its "
        "intervals) put one of them above the two others.",
    ),
    ("collapsed", "A learner that gives one answer to more than 90 % of the queries."),
    ("agreement with ICL", "Share of queries that a learner answers as in-context learning does."),
    (
        "calibrated",
        "(score - floor) / (ceiling - floor): 0 is the highest control in which nothing is learned from these "
        "demonstrations, 1 what the same thing twice scores. Noise can carry it below 0 or above 1.",
    ),
    (
        "cheaper after",
        "Queries after which adapting once and answering takes fewer operations than a prompt; median over tasks.",
    ),
)


def render_sweep(sweep: SweepResult) -> str:
    """The report of a sweep as one HTML document, ready to be written as UTF-8.

    Args:
        sweep: Finished or not; sections without data are left out. Groups are linked to as `GROUP/report.html`,
            relative to the page.

    Returns:
        The whole page, charts' libraries included, readable offline and printable.
    """
    found = compared(sweep)
    said = sweep_verdict(sweep)
    gain = Figure(
        "gain",
        sweep_charts.gain_chart(sweep),
        "Heat maps of model and task, one a learner: accuracy less that of zero-shot, in points.",
        "What each learner adds to zero-shot: accuracy less zero-shot's, in points; orange above zero, blue below. "
        "All maps "
        "have one scale.",
    )
    return render(
        Page(
            title=f"dualform: sweep {sweep.name}",
            about="Sweep",
            version=sweep.dualform,
            answer=said[0] if said else "This sweep holds no groups.",
            warnings=sweep.warnings,
            charts=[gain],
            facts=_facts(sweep, found),
            sections=[
                findings(said),
                _accuracy(sweep, found),
                *_options(sweep, found),
                _stability(sweep, found),
                _similarity(sweep, found),
                Section(
                    "cost",
                    "Cost",
                    charts=[
                        Figure(
                            "cost",
                            sweep_charts.cost_by_model_chart(sweep),
                            "Mean accuracy over tasks of each learner and model against the floating-point operations "
                            "of a "
                            "query.",
                            "Means over tasks. Colour: learner; shape: model. Operations on a log scale.",
                        )
                    ],
                    tables=[cost_table(found)],
                ),
                _studies(sweep),
                _failures(sweep),
                Section("pending", "What has not begun", _pending(sweep), as_list=True),
                Section("cells", "Cells", [cell_sentence(sweep)], tables=[cells_table(sweep)]),
                run_section(sweep, _commands(sweep)),
            ],
            glossary=_glossary(found),
        )
    )


def _accuracy(sweep: SweepResult, found: Found) -> Section:
    common = "“Commonest label”: accuracy of always giving it. "
    has_majority = any(majority_level(result) is not None for _, result in found)
    return Section(
        "accuracy",
        "Accuracy by model and task",
        charts=[
            Figure(
                "accuracy",
                sweep_charts.accuracy_by_task_chart(sweep),
                "Mean accuracy of each learner on each task with its 95 % interval and one point a seed, one panel a "
                "model.",
                "Large dots are means, bars 95 % intervals; small dots are demonstration seeds. All panels have one "
                "scale.",
            )
        ],
        tables=[grid_table(sweep)],
        note=f"Per cent of queries answered correctly, with the group's own 95 % interval. "
        f"{common if has_majority else ''}"
        "Shaded and bold: the highest mean of a row. ≈: not significantly different from it by the group's paired "
        "tests, or by its intervals where there are none. Each task's name leads to its own page.",
    )


def _options(sweep: SweepResult, found: Found) -> list[Section]:
    return [
        Section(
            f"option-{number}-section",
            f"Accuracy against {axis}",
            charts=[
                Figure(
                    f"option-{number}",
                    sweep_charts.option_chart(sweep, axis),
                    f"Accuracy of each learner against {axis}.",
                    "Means with 95 % intervals of each group; all else is alike in a panel.",
                )
            ],
            tables=[option_table(axis, values, found)],
        )
        for number, (axis, values) in enumerate(axes_of(found).items(), 1)
    ]


def _stability(sweep: SweepResult, found: Found) -> Section:
    return Section(
        "stability",
        "Stability over seeds",
        charts=[
            Figure(
                "majority",
                sweep_charts.majority_share_chart(sweep),
                "Share of the most frequent answer of each learner on each task, one panel a model.",
                "Share of the most frequent answer among all predictions of a group.",
            )
        ],
        tables=[spread_table(found)],
        note="A seed draws the demonstrations. A learner whose most frequent answer takes nearly all queries has "
        "collapsed "
        "into one class, and is stable for that reason alone.",
    )


def _similarity(sweep: SweepResult, found: Found) -> Section:
    keys = judged_measures(found)
    return Section(
        "likeness",
        "Similarity of context and finetuning",
        charts=[
            Figure(
                "likeness",
                sweep_charts.similarity_by_task_chart(sweep),
                "Each measure of similarity by task and model with its interval on one scale: 0 is its floor, 1 its "
                "ceiling.",
                "Dots with 95 % intervals. Below the left line nothing is learned; the right line is what the same "
                "thing "
                "twice scores. The axis ends at -1 and 2 at the latest.",
            )
        ]
        if keys
        else [],
        note="Do the demonstrations change the model alike from the prompt and through gradients? Each score is "
        "placed in its "
        "own band: from its highest control (0), in which nothing is learned from these demonstrations, to its "
        "ceiling (1), "
        "the same thing twice.",
        sections=[_measure(number, key, found) for number, key in enumerate(keys)],
    )


def _measure(number: int, key: str, found: Found) -> Section:
    """One measure over all groups, headed by how often it lies clearly above its floor."""
    measure = measure_of(key)
    places = [result.calibrated[key] for _, result in found if key in result.calibrated]
    clear = [place for place in places if (ends := known(place.ci95)) is not None and ends[0] > 0]
    above = f": clearly above its floor in {len(clear)} of {plural(len(places), 'group')}" if places else ""
    return Section(
        f"likeness-{number + 1}",
        f"{measure.title}{above}",
        tables=[similarity_table(key, found)],
        note=f"{measure.meaning} {measure.caution}".strip(),
        detail=number > 0,
    )


def _studies(sweep: SweepResult) -> Section:
    """Groups that are no comparisons, each with what it says itself."""
    parts = []
    for number, group in enumerate((each for each in sweep.groups if study_name(each) != "comparison"), 1):
        result = group.result
        study = None if result is None else study_of_result(result)
        said = [] if study is None or result is None else list(study.view.headlines(result))
        missing = "no result yet" if result is None else "no sentences of its own; see its page"
        parts.append(
            Section(
                f"study-{number}",
                group_name(group),
                said or [missing],
                note=study_name(group).capitalize(),
                link=href(group) if result is not None else "",
                detail=False,
            )
        )
    return Section("studies", "Other studies", sections=parts)


def _failures(sweep: SweepResult) -> Section:
    tracebacks = [
        Section(
            f"traceback-{number}",
            f"Traceback: {cell.group}{'' if cell.seed is None else f', seed {cell.seed}'}",
            body=preformatted(cell.failure.traceback.strip() if cell.failure else ""),
        )
        for number, cell in enumerate(cells_by_status(sweep)["failed"], 1)
    ]
    return Section("failures", "What failed", tables=[failures_table(sweep)], sections=tracebacks)


def _facts(sweep: SweepResult, found: Found) -> list[Fact]:
    by_status = cells_by_status(sweep)
    done = len(by_status["finished"]) + len(by_status["reused"])
    cards = []
    by_learner = decided(found)
    n = sum(map(len, by_learner.values()))
    if n:
        shares = [
            f"{name} {len(by_learner[key])}"
            for key, name in (("icl", "ICL"), ("ft", "FT"), ("fold", "fold"))
            if any(key in result.accuracy for _, result in found)
        ]
        cards.append(Fact("groups that decide", f"{n - len(by_learner[None])} of {n}", f"ahead: {', '.join(shares)}"))
    for first, second in (("icl", "ft"), ("icl", "zsl")):
        both = [(group, result) for group, result in found if difference_of(first, second)(result) is not None]
        gap = over_tasks(both, difference_of(first, second), GAP)
        if gap is not None:
            where = f"points, mean over {plural(gap.n, 'task')}"
            where += f", {difference_interval(gap.ci95)}" if known(gap.ci95) else ""
            name = {"ft": "ICL less finetuning", "zsl": "ICL less zero-shot"}[second]
            cards.append(Fact(name, difference(gap.mean), where))
    agreement = over_tasks(found, agreement_of("fold"), SHARE)
    if agreement is not None:
        where = f"mean over {plural(agreement.n, 'task')}"
        where += f", {percent_interval(agreement.ci95)}" if known(agreement.ci95) else ""
        cards.append(Fact("Fold answers as ICL", percent(agreement.mean), where))
    cards.append(Fact("cells finished", f"{done:,}", f"of {len(sweep.cells):,}, {sweep.engine}"))
    return cards


def _commands(sweep: SweepResult) -> list[tuple[str, str]]:
    again = commands_again(sweep, ("Run it again, or go on where it stopped", "dualform sweep sweep.yaml --resume"))
    unfinished = [cell for cell in sweep.cells if cell.status in ("failed", "pending")]
    typed = str(sweep.environment.get("command") or "")
    if unfinished and typed and "--resume" not in typed:
        again.append(("Go on where it stopped; what is finished is not run again", f"{typed} --resume"))
    return again


def _pending(sweep: SweepResult) -> list[str]:
    """`gemma3-270m-cb, seed 2, 3`, one a group."""
    by_group: dict[str, list[str]] = {}
    for cell in cells_by_status(sweep)["pending"]:
        by_group.setdefault(cell.group, []).append("" if cell.seed is None else str(cell.seed))
    named = {group: ", ".join(filter(None, seeds)) for group, seeds in by_group.items()}
    return [f"{group}, seed {seeds}" if seeds else group for group, seeds in named.items()]


def _glossary(found: Found) -> list[tuple[str, str]]:
    terms = [(learner_style(key).title, learner_style(key).meaning) for key in learners_of(found)]
    needed = set() if found else {"95 % interval", "decides", "collapsed", "demonstration"}
    if not agreeing_learners(found):
        needed |= {"agreement with ICL"}
    if not any(result.calibrated for _, result in found):
        needed |= {"calibrated"}
    if not any(result.cost for _, result in found):
        needed |= {"cheaper after"}
    return [*terms, *((term, meaning) for term, meaning in GLOSSARY if term not in needed)]

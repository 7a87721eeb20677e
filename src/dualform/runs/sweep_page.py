"""The report of a sweep: one HTML file that can be read offline."""

from dualform.report.html import preformatted
from dualform.report.measures import measure_of
from dualform.report.numerals import known, percent, percent_interval
from dualform.report.page import Fact, Page, commands_again, findings, render, run_section
from dualform.report.palette import learner_style
from dualform.report.phrases import difference, difference_interval, plural
from dualform.report.section import Figure, Section
from dualform.runs import sweep_charts
from dualform.runs.sweep_table import (
    GroupResults,
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
    DIFFERENCE_RANGE,
    SHARE_RANGE,
    cell_sentence,
    cells_by_status,
    comparison_results,
    difference_of,
    group_name,
    groups_by_winner,
    judged_measures,
    learners_of,
    mean_over_tasks,
    study_name,
    sweep_verdict,
    varied_axes,
)
from dualform.studies.baseline_words import majority_level
from dualform.studies.study import study_of_result
from dualform.sweep_result import SweepResult

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("group", "One model, one task and one set of options, with all its seeds."),
    ("cell", "The run of one seed of a group; in studies other than comparisons, one whole run."),
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    ("seed", "Determines which demonstrations are drawn and in what order."),
    (
        "95 % interval",
        "In a group: bootstrap over seeds and, independently, over the queries that all seeds share. Over tasks: "
        "Student's t interval over one number per task, computed for at least three tasks; it treats the tasks as a "
        "random sample of similar ones.",
    ),
    (
        "significantly the most accurate",
        "One of prompting, finetuning and folding is above both others by the group's paired tests, or by its "
        "intervals where there are no tests.",
    ),
    ("collapsed", "A learner that gives the same answer to more than 90 % of the queries."),
    ("agreement with ICL", "Share of queries to which a learner gives the same answer as in-context learning."),
    (
        "calibrated",
        "(score - floor) / (ceiling - floor). 0 is the score of the highest control, in which nothing is learned from "
        "these demonstrations; 1 is the score of two repetitions of the same procedure. With noise, values can lie "
        "below 0 or above 1.",
    ),
    (
        "cheaper after",
        "Number of queries after which adapting once and answering takes fewer operations than a prompt; median over "
        "tasks.",
    ),
)


def render_sweep(sweep: SweepResult) -> str:
    """The report of a sweep as one HTML document, ready to be written as UTF-8.

    Args:
        sweep: A finished or unfinished sweep; sections without data are left out. The page links to the groups'
            reports as `GROUP/report.html`, relative to its own folder.

    Returns:
        The complete page, which includes the libraries that its charts need.
    """
    results = comparison_results(sweep)
    verdict = sweep_verdict(sweep)
    gain = Figure(
        "gain",
        sweep_charts.gain_chart(sweep),
        "Heat maps of model and task, one for each learner: accuracy minus zero-shot accuracy, in points.",
        "Gain over zero-shot: accuracy minus zero-shot accuracy, in points; orange above zero, blue below. All maps "
        "share one scale.",
    )
    return render(
        Page(
            title=f"dualform: sweep {sweep.name}",
            about="Sweep",
            version=sweep.dualform,
            answer=verdict[0] if verdict else "This sweep has no groups.",
            warnings=sweep.warnings,
            charts=[gain],
            facts=_facts(sweep, results),
            sections=[
                findings(verdict),
                _accuracy(sweep, results),
                *_options(sweep, results),
                _stability(sweep, results),
                _similarity(sweep, results),
                Section(
                    "cost",
                    "Cost",
                    charts=[
                        Figure(
                            "cost",
                            sweep_charts.cost_by_model_chart(sweep),
                            "Mean accuracy over tasks of each learner and model against the floating-point operations "
                            "per query.",
                            "Means over tasks. Colour: learner; shape: model. Operations are on a log scale.",
                        )
                    ],
                    tables=[cost_table(results)],
                ),
                _studies(sweep),
                _failures(sweep),
                Section("pending", "Cells not started", _pending(sweep), as_list=True),
                Section("cells", "Cells", [cell_sentence(sweep)], tables=[cells_table(sweep)]),
                run_section(sweep, _commands(sweep)),
            ],
            glossary=_glossary(results),
        )
    )


def _accuracy(sweep: SweepResult, results: GroupResults) -> Section:
    majority_note = "“Most common label”: accuracy of always answering with that label. "
    has_majority = any(majority_level(result) is not None for _, result in results)
    return Section(
        "accuracy",
        "Accuracy by model and task",
        charts=[
            Figure(
                "accuracy",
                sweep_charts.accuracy_by_task_chart(sweep),
                "Mean accuracy of each learner on each task with its 95 % interval and one point per seed, one panel "
                "per model.",
                "Large dots are means, bars are 95 % intervals, small dots are demonstration seeds. All panels share "
                "one scale.",
            )
        ],
        tables=[grid_table(sweep)],
        note=f"Percentage of queries answered correctly, with the group's own 95 % interval. "
        f"{majority_note if has_majority else ''}"
        "Shaded and bold: the highest mean of a row. ≈: not significantly different from it by the group's paired "
        "tests, or by its intervals where there are no tests. A task's name links to the group's report.",
    )


def _options(sweep: SweepResult, results: GroupResults) -> list[Section]:
    return [
        Section(
            f"option-{number}-section",
            f"Accuracy against {axis}",
            charts=[
                Figure(
                    f"option-{number}",
                    sweep_charts.option_chart(sweep, axis),
                    f"Accuracy of each learner against {axis}.",
                    f"Means with 95 % intervals of each group. Within a panel, only {axis} differs.",
                )
            ],
            tables=[option_table(axis, values, results)],
        )
        for number, (axis, values) in enumerate(varied_axes(results).items(), 1)
    ]


def _stability(sweep: SweepResult, results: GroupResults) -> Section:
    return Section(
        "stability",
        "Stability over seeds",
        charts=[
            Figure(
                "majority",
                sweep_charts.majority_share_chart(sweep),
                "Share of the most frequent answer of each learner on each task, one panel per model.",
                "Share of the most frequent answer among all predictions of a group.",
            )
        ],
        tables=[spread_table(results)],
        note="A seed determines the demonstrations. A learner that gives nearly all queries the same answer has "
        "collapsed into one class; its low variation between seeds is then no sign of stability.",
    )


def _similarity(sweep: SweepResult, results: GroupResults) -> Section:
    keys = judged_measures(results)
    return Section(
        "similarity",
        "Similarity of in-context learning and finetuning",
        charts=[
            Figure(
                "similarity",
                sweep_charts.similarity_by_task_chart(sweep),
                "Each measure of similarity by task and model with its interval on one scale, where 0 is its floor "
                "and 1 its ceiling.",
                "Dots with 95 % intervals. Left line: the floor, the highest control without learning; right line: "
                "the ceiling, two repetitions of the same procedure. Values below -1 or above 2 are drawn at the edge.",
            )
        ]
        if keys
        else [],
        note="Do demonstrations change the model in the same way from the prompt and through gradients? Each score is "
        "scaled between its floor (0), the highest control in which nothing is learned from these demonstrations, and "
        "its ceiling (1), two repetitions of the same procedure.",
        sections=[_measure(number, key, results) for number, key in enumerate(keys)],
    )


def _measure(number: int, key: str, results: GroupResults) -> Section:
    """One measure over all groups; the heading counts the groups in which it is significantly above its floor."""
    measure = measure_of(key)
    scores = [result.calibrated[key] for _, result in results if key in result.calibrated]
    above = [score for score in scores if (ends := known(score.ci95)) is not None and ends[0] > 0]
    count = f": significantly above its floor in {len(above)} of {plural(len(scores), 'group')}" if scores else ""
    return Section(
        f"similarity-{number + 1}",
        f"{measure.title}{count}",
        tables=[similarity_table(key, results)],
        note=f"{measure.meaning} {measure.caution}".strip(),
        detail=number > 0,
    )


def _studies(sweep: SweepResult) -> Section:
    """Groups of other studies, each with the sentences of its own report."""
    parts = []
    for number, group in enumerate((each for each in sweep.groups if study_name(each) != "comparison"), 1):
        result = group.result
        study = None if result is None else study_of_result(result)
        headlines = [] if study is None or result is None else list(study.view.headlines(result))
        missing = "no result yet" if result is None else "no summary; see its report"
        parts.append(
            Section(
                f"study-{number}",
                group_name(group),
                headlines or [missing],
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
    return Section("failures", "Failed cells", tables=[failures_table(sweep)], sections=tracebacks)


def _facts(sweep: SweepResult, results: GroupResults) -> list[Fact]:
    by_status = cells_by_status(sweep)
    done = len(by_status["finished"]) + len(by_status["reused"])
    cards = []
    by_learner = groups_by_winner(results)
    n = sum(map(len, by_learner.values()))
    if n:
        shares = [
            f"{name} {len(by_learner[key])}"
            for key, name in (("icl", "ICL"), ("ft", "FT"), ("fold", "fold"))
            if any(key in result.accuracy for _, result in results)
        ]
        winners = f"{n - len(by_learner[None])} of {n}"
        cards.append(Fact("groups with a significantly best learner", winners, ", ".join(shares)))
    for first, second in (("icl", "ft"), ("icl", "zsl")):
        both = [(group, result) for group, result in results if difference_of(first, second)(result) is not None]
        mean = mean_over_tasks(both, difference_of(first, second), DIFFERENCE_RANGE)
        if mean is not None:
            about = f"points, mean over {plural(mean.n, 'task')}"
            about += f", {difference_interval(mean.ci95)}" if known(mean.ci95) else ""
            name = {"ft": "ICL minus finetuning", "zsl": "ICL minus zero-shot"}[second]
            cards.append(Fact(name, difference(mean.mean), about))
    agreement = mean_over_tasks(results, agreement_of("fold"), SHARE_RANGE)
    if agreement is not None:
        about = f"mean over {plural(agreement.n, 'task')}"
        about += f", {percent_interval(agreement.ci95)}" if known(agreement.ci95) else ""
        cards.append(Fact("agreement of fold with ICL", percent(agreement.mean), about))
    cards.append(Fact("cells finished", f"{done:,}", f"of {len(sweep.cells):,}, {sweep.engine}"))
    return cards


def _commands(sweep: SweepResult) -> list[tuple[str, str]]:
    commands = commands_again(sweep, ("Run the sweep again, or resume it", "dualform sweep sweep.yaml --resume"))
    unfinished = [cell for cell in sweep.cells if cell.status in ("failed", "pending")]
    command = str(sweep.environment.get("command") or "")
    if unfinished and command and "--resume" not in command:
        commands.append(("Resume the sweep; finished cells are not computed again", f"{command} --resume"))
    return commands


def _pending(sweep: SweepResult) -> list[str]:
    """`gemma3-270m-cb, seed 2, 3` for each group with pending cells."""
    by_group: dict[str, list[str]] = {}
    for cell in cells_by_status(sweep)["pending"]:
        by_group.setdefault(cell.group, []).append("" if cell.seed is None else str(cell.seed))
    seeds_of = {group: ", ".join(filter(None, seeds)) for group, seeds in by_group.items()}
    return [f"{group}, seed {seeds}" if seeds else group for group, seeds in seeds_of.items()]


def _glossary(results: GroupResults) -> list[tuple[str, str]]:
    terms = [(learner_style(key).title, learner_style(key).meaning) for key in learners_of(results)]
    comparison_terms = {"95 % interval", "significantly the most accurate", "collapsed", "demonstration"}
    unused = set() if results else comparison_terms
    if not agreeing_learners(results):
        unused |= {"agreement with ICL"}
    if not any(result.calibrated for _, result in results):
        unused |= {"calibrated"}
    if not any(result.cost for _, result in results):
        unused |= {"cheaper after"}
    return [*terms, *((term, meaning) for term, meaning in GLOSSARY if term not in unused)]

"""The report page of a comparison: one HTML file that works offline."""

from markupsafe import Markup

from dualform.attention_record import AttentionRecord
from dualform.report.html import fill
from dualform.report.measures import control_of, controls_in_order
from dualform.report.numerals import count, finite, percent
from dualform.report.page import Fact, facts_section, study_page
from dualform.report.palette import learners_in_order
from dualform.report.section import Figure, Section
from dualform.result import FEWEST_FOR_INTERVAL, Result
from dualform.studies.against_words import choice_heading, choice_sentences, fold_sentences
from dualform.studies.baseline_words import baseline_rows, baselines_text, majority_level
from dualform.studies.comparison import charts, class_charts, control_charts, similarity_tables, table
from dualform.studies.comparison.against_charts import QUERIES, cost_accuracy_chart
from dualform.studies.comparison.answer import MOST_MEASURES, acts_alike, first_measures, which_to_use
from dualform.studies.comparison.calibration_words import calibration_sentences
from dualform.studies.comparison.explorer import explorer_section
from dualform.studies.comparison.rounding_words import rounding_section
from dualform.studies.comparison.similarity_words import layers_above_floor
from dualform.studies.comparison.words import cost_sentence, findings
from dualform.studies.fold import words as fold_words
from dualform.studies.glossary import DEMONSTRATION, SEEDS_AND_QUERIES, learner_terms
from dualform.studies.paired_words import pair_sentences, seeds_note

EXPLORER = "dualform.studies.comparison:explorer"

AGAINST_GLOSSARY: tuple[tuple[str, str], ...] = (
    ("agreement with ICL", "Share of the queries to which a learner gives the same answer as ICL, right or wrong."),
    (
        "share of ICL's gain",
        "(accuracy - zero-shot's accuracy) / (ICL's accuracy - zero-shot's accuracy); 100 % is all that the prompt "
        "gained. It is unreliable if the prompt gained little, and undefined outside 0 to 150 %.",
    ),
    (
        "cheaper after",
        "Number of queries after which adapting once and answering have taken fewer operations than prompting; "
        "“never” if a query costs at least as much as a prompted one.",
    ),
    (
        "re-read, cached",
        "The demonstrations of a prompt are either re-read with every query, or read once and their keys and values "
        "cached in memory; then only the query's own tokens are read, and they attend to the cache.",
    ),
)

PROBABILITY_GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "log-loss",
        "Mean of minus the logarithm of the right label's probability; guessing scores log(number of labels). A "
        "probability of 0 counts as 2.2e-16, which is 36 nats.",
    ),
    (
        "Brier score",
        "Mean over queries of the squared distance between the labels' probabilities and the right answer, from 0 to "
        "2; guessing scores 1 - 1 / number of labels.",
    ),
    ("confidence", "Probability of the predicted label."),
    (
        "calibration error",
        "Expected calibration error (ECE): mean difference between accuracy and confidence, over ten bins of "
        "confidence. By chance: what it would be if every answer were right as often as its confidence says.",
    ),
)


def render(result: Result, attention: AttentionRecord | None = None) -> str:
    """The page of a comparison, ready to be written as UTF-8.

    Args:
        result: Result of a comparison; sections without data are omitted.
        attention: The learners' attention on a few queries, for the explorer.
    """
    first_chart = _first_chart(result)
    return study_page(
        result,
        title=_title(result),
        sentences=[*fold_words.findings(result), *findings(result)],
        nothing="This result holds no accuracies and no measures of similarity.",
        answer=which_to_use(result),
        charts=[first_chart],
        facts=_facts(result),
        first=[_acts_alike(result)],
        sections=[
            _against(result),
            _accuracy(result, with_chart=first_chart.name != "accuracy-first"),
            _predictions(result),
            _similarity(result),
            _explorer(attention),
            _sweep(result),
            rounding_section(result),
            Section(
                "rec2ftp",
                "Rec2FTP and its counts",
                note="Of the answers that zero-shot had wrong and finetuning corrected, how many does ICL correct too?",
                tables=[similarity_tables.rec2ftp_table(result)],
            ),
            _published(result),
            _trials(result),
            Section(
                "cost",
                "Cost",
                sentences=[sentence] if (sentence := cost_sentence(result)) else [],
                tables=[table.cost_table(result)],
            ),
        ],
        described=[facts_section("model", "Model", result.model), _demonstrations(result)],
        command=_command(result),
        glossary=_glossary(result),
        styles=[f"{EXPLORER}.css"] if attention else [],
        scripts=[f"{EXPLORER}.js"] if attention else [],
    )


def _title(result: Result) -> str:
    model, task = result.model.get("name"), result.task.get("name")
    if model and task:
        return f"{model} on {task}"
    return str(model or task or result.study)


def _first_chart(result: Result) -> Figure:
    """Accuracy against cost, or accuracy alone if costs are unknown."""
    chart = cost_accuracy_chart(result)
    if chart is None:
        return _accuracy_figure(result, "accuracy-first")
    return Figure(
        "against",
        chart,
        "Accuracy of each learner with its 95 % interval against the floating-point operations of a thousand queries.",
        f"Accuracy with 95 % intervals against the cost of {QUERIES:,} queries, without the one-time cost of adapting. "
        "Hollow: the same prompt with cached keys and values.",
    )


def _accuracy_figure(result: Result, name: str = "accuracy") -> Figure:
    return Figure(
        name,
        charts.accuracy_chart(result),
        "Mean accuracy of each learner with its 95 % interval and one point a seed, chance and the majority baseline.",
        "Large dots: means, with 95 % intervals. Small dots: demonstration seeds. Dashed: chance, and always giving "
        "the most common label.",
    )


def _facts(result: Result) -> list[Fact]:
    """The size of the run, for the page's first screen."""
    facts = []
    if result.demonstrations is not None:
        requested, used = result.demonstrations.k_requested, result.demonstrations.k_effective
        seeds = len(result.demonstrations.rows)
        detail = f"of {requested} requested" if used != requested else "in each prompt"
        facts.append(Fact("demonstrations", count(used), detail))
        facts.append(Fact("demonstration seeds", count(seeds), "draws of demonstrations"))
    levels = baseline_rows(result)
    if majority_level(result) is not None:
        name, level = levels[-1]
        facts.append(Fact("majority baseline", percent(level), name))
    if result.baselines is not None and result.baselines.n:
        facts.append(Fact("queries", count(result.baselines.n), "answered by every learner"))
    return facts


def _acts_alike(result: Result) -> Section:
    """Whether context acts like finetuning: one sentence and a chart of at most five measures."""
    keys = first_measures(result)
    chart = control_charts.calibrated_chart(result, keys)
    figure = Figure(
        "alike",
        chart,
        "The main measures of similarity with their intervals on one scale from the floor, 0, to the ceiling, 1.",
        "Each measure on a scale from its floor (its score if nothing is learned) to its ceiling (its score for the "
        "same learner twice), with 95 % intervals. “How similar context and finetuning are” shows all measures.",
    )
    sentence = acts_alike(result)
    return Section("alike", "Does context act like finetuning?", [sentence] if sentence else [], [figure], detail=False)


def _against(result: Result) -> Section:
    fold = result.fold
    folded = Section(
        "fold",
        "How the prompt was folded",
        [" ".join(fold_sentences(fold))] if fold is not None else [],
        tables=[similarity_tables.fold_table(result)],
        detail=False,
    )
    return Section(
        "against",
        choice_heading(result),
        choice_sentences(result),
        tables=[table.against_table(result)],
        sections=[folded],
    )


def _accuracy(result: Result, with_chart: bool) -> Section:
    """Accuracies and their paired tests; without the chart if the first screen has it already."""
    if not result.accuracy:
        return Section("accuracy", "")
    baselines = baselines_text(result)
    tests = len(result.tests)
    several = f" The p-values are not corrected for the {tests} comparisons." if tests > 1 else ""
    return Section(
        "accuracy",
        "Accuracy",
        note=f"Share of queries answered correctly{f'; {baselines}' if baselines else ''}. Every learner was given the "
        "same demonstrations.",
        charts=[_accuracy_figure(result)] if with_chart else [],
        tables=[table.accuracy_table(result), table.scores_table(result)],
        sections=[
            Section(
                "by-label",
                "Per class",
                charts=[
                    Figure(
                        "labels",
                        charts.by_label_chart(result),
                        "Accuracy of each learner on the queries of each label, with 95 % intervals.",
                        "Recall: share of each label's queries answered correctly, with 95 % intervals.",
                    ),
                    Figure(
                        "confusion",
                        class_charts.confusion_chart(result),
                        "For each learner, how often each label was predicted for the queries of each label.",
                        "Rows: right answers; columns: predictions. Share of the row, over all seeds; right answers "
                        "are on the diagonal. Hover over a cell for its count.",
                    ),
                ],
                tables=[table.class_table(result) if result.classification else table.label_table(result)],
            ),
            Section(
                "calibration",
                "Are the probabilities reliable?",
                calibration_sentences(result),
                note="Whether a learner is right as often as the probability of its answer says. If not, do not use "
                "its probabilities as they are, for example to pass uncertain texts to a person.",
                charts=[
                    Figure(
                        "reliability",
                        class_charts.reliability_chart(result),
                        "Accuracy of each learner against its confidence, in ten bins, with the diagonal.",
                        "One dot a bin of answers, larger with more answers, with its 95 % interval. Below the dashed "
                        "diagonal: right less often than its confidence says. ECE: expected calibration error.",
                    )
                ],
                as_list=True,
            ),
            Section(
                "pairs",
                "Which differences hold",
                pair_sentences(result),
                tables=[table.pairs_table(result)],
                note="Sign-flip tests of two learners on the same queries and seeds. Over queries: would other queries "
                "with these demonstrations show the difference? Over seeds: would other demonstrations? "
                f"{seeds_note(result)}{several}",
                as_list=True,
                detail=False,
            ),
        ],
    )


def _predictions(result: Result) -> Section:
    return Section(
        "predictions",
        "Predictions",
        note="The learners' answers, right or wrong. A learner that gives one answer to nearly every query has "
        "collapsed into one class: its accuracy is then that class's share of the queries.",
        charts=[
            Figure(
                "predictions",
                charts.prediction_chart(result),
                "Share of each label among the right answers and among the predictions of each learner.",
                "Share of each label among the predictions of all seeds; first row: among the right answers.",
            )
        ],
        tables=[table.predictions_table(result)],
    )


def _similarity(result: Result) -> Section:
    if not result.similarity:
        return Section("similarity", "")
    has_scale = bool(set(result.calibrated) & set(result.similarity))
    band = " Band: from the floor, named above it, to the ceiling, both over the queries on which controls were read."
    marks = " Small marks: all controls; hover over one for its name." if result.controls else ""
    tested = any(each.per_layer_q for each in result.similarity.values())
    placed = [
        key for key, each in result.calibrated.items() if key in result.similarity and finite(each.mean) is not None
    ]
    return Section(
        "similarity",
        "How similar context and finetuning are",
        note="Compare each number with its controls. A floor is the score if nothing is learned from these "
        "demonstrations, a ceiling the score of the same learner compared with itself.",
        charts=[
            Figure(
                "bands",
                control_charts.band_chart(result),
                "Each measure of similarity with its interval, in the band from its floor to its ceiling, next to all "
                "controls.",
                f"Large dots: this run, with 95 % intervals.{band if has_scale else ''}{marks} Measures outside -1 to "
                "1 are in the table only.",
            ),
            Figure(
                "calibrated",
                # With few measures the page's first chart of similarity shows them all.
                control_charts.calibrated_chart(result) if len(placed) > MOST_MEASURES else None,
                "Each measure of similarity with its interval on one scale from its floor, 0, to its ceiling, 1.",
                "The same scores on a scale from each measure's own floor, 0, to its ceiling, 1, with 95 % intervals. "
                "The axis ends at -1 and 2; a triangle at its edge marks a value beyond.",
            ),
        ],
        tables=[similarity_tables.similarity_table(result)],
        sections=[
            Section("controls", "All controls by measure", tables=[similarity_tables.controls_table(result)]),
            Section(
                "layers",
                "Layer by layer",
                charts=[
                    Figure(
                        "layers",
                        charts.similarity_by_layer_chart(result),
                        "Each measure of similarity over the layers, with its interval.",
                        "Mean over queries with its 95 % interval. Dashed: mean over layers. Dotted: the measure's "
                        "floor, or the random direction if it has none. A gap is a layer without a number. Scales "
                        "differ. Hover over a line for its numbers.",
                    )
                ],
                note="Filled points: layers above the measure's floor at a false discovery rate of 5 % over its "
                "layers. Hollow points: layers not significantly above it."
                if tested
                else "",
                sections=[
                    Section("layers-counted", "Layers above their floor", layers_above_floor(result), as_list=True)
                ],
            ),
            Section(
                "heads",
                "Head by head",
                charts=[
                    Figure(
                        "heads",
                        charts.head_map_chart(result),
                        "Each measure of similarity by layer and head, as a heat map.",
                        "Orange: above zero. Blue: below zero. Grey: no number. Each map has its own scale.",
                    )
                ],
            ),
        ],
    )


def _explorer(attention: AttentionRecord | None) -> Section:
    explorer = explorer_section(attention)
    body = fill(f"{EXPLORER}.html.j2", explorer=explorer) if explorer else Markup("")
    return Section("attention", "What each learner attends to", body=body)


def _sweep(result: Result) -> Section:
    return Section(
        "sweep",
        "Similarity by learning rate",
        note="Finetuning on the same demonstrations at each learning rate. Similarity depends on the learning rate, so "
        "the numbers above hold for the rate that was chosen for accuracy, and runs at different rates may differ for "
        "that reason alone.",
        charts=[
            Figure(
                "sweep",
                control_charts.sweep_chart(result),
                "Accuracy of finetuning, length of its update and each measure of similarity against the learning "
                "rate.",
                "Means with 95 % intervals over the queries on which controls were read. Dashed: the chosen rates. "
                "The panels have different scales.",
            )
        ],
    )


def _published(result: Result) -> Section:
    return Section(
        "published",
        "Compared with the paper",
        note="The numbers that arXiv:2212.10559v3 reports for the same protocol. Do not expect equal numbers: the "
        "paper used two other models. Its random update is drawn uniformly from 0 to 1; the one here has mean zero and "
        "the length of finetuning's update.",
        tables=[similarity_tables.published_table(result)],
    )


def _trials(result: Result) -> Section:
    return Section(
        "trials",
        "Learning rates tried",
        charts=[
            Figure(
                "trials",
                charts.trials_chart(result),
                "Accuracy on the selection split against learning rate, one line a seed.",
                "One line a seed. Large dots: chosen. Crosses at the bottom: diverged. Triangles: skipped.",
            )
        ],
        tables=[table.trials_table(result)],
    )


def _demonstrations(result: Result) -> Section:
    demonstrations = result.demonstrations
    note = ""
    if demonstrations is not None:
        note = (
            f"{count(demonstrations.k_requested)} requested, {count(demonstrations.k_effective)} used. Row numbers of "
            "the train split, from 0, in the order of the prompt."
        )
    tables = [table.demonstrations_table(result)]
    return Section("demonstrations", "Demonstrations", note=note, tables=tables, detail=False)


def _command(result: Result) -> list[str]:
    model, task = result.model.get("name"), result.task.get("name")
    if result.study != "comparison" or not model or not task:
        return []
    words = ["dualform", "compare", str(model), str(task)]
    if result.demonstrations is not None and result.demonstrations.rows:
        words += ["--seeds", ",".join(result.demonstrations.rows)]
    return words


def _glossary(result: Result) -> list[tuple[str, str]]:
    """Definitions of the terms that this page uses."""
    learners = learners_in_order(dict.fromkeys([*result.accuracy, *result.cost, *result.predictions]))
    terms = learner_terms(learners)
    controls = similarity_tables.controls_used(result)
    # The floor of a measure may be a chance level and not one of the run's controls.
    named = dict.fromkeys([*controls, *(each.control for each in result.calibrated.values())])
    terms += [(control_of(key).title, control_of(key).meaning) for key in controls_in_order(named)]
    if result.demonstrations is not None or learners:
        terms.append(DEMONSTRATION)
    if result.accuracy or result.similarity:
        terms += [
            ("query", "An example whose label is to be predicted."),
            ("seed", "Decides which demonstrations are drawn and in what order."),
            SEEDS_AND_QUERIES,
            (
                "n",
                "How many numbers a mean is taken over: (seed, query) pairs, or the denominator of a ratio. A share of "
                f"fewer than {FEWEST_FOR_INTERVAL} is shown as a count, without an interval.",
            ),
        ]
    if majority_level(result) is not None:
        terms.append(
            (
                "majority baseline",
                "Accuracy of always giving the most common right answer of the reported queries. A learner must exceed "
                "it before its accuracy shows that anything was learned.",
            )
        )
    if any(each.macro_f1 is not None for each in result.accuracy.values()):
        terms.append(
            (
                "macro-F1",
                "Mean over labels of the F1 score, 2 right / (answered + true). Always giving one answer scores low, "
                "however common its label is.",
            )
        )
    if any(each.balanced_accuracy is not None for each in result.classification.values()):
        terms.append(
            ("balanced accuracy", "Mean over labels of the recall: the accuracy if all labels were as frequent.")
        )
    if result.classification:
        terms += PROBABILITY_GLOSSARY
    if result.against_icl:
        terms += AGAINST_GLOSSARY
    if any(control_of(key).kind == "floor" for key in named):
        terms.append(
            (
                "floor",
                "Score of a control in which nothing is learned from these demonstrations. On a calibrated scale: the "
                "highest of these scores.",
            )
        )
    if result.calibrated or any(control_of(key).kind == "ceiling" for key in named):
        terms.append(
            (
                "ceiling",
                "Score of the same learner twice, with two orders of the demonstrations: geometric mean of ICL "
                "compared with ICL and FT compared with FT.",
            )
        )
    if result.calibrated:
        terms.append(
            (
                "calibrated",
                "(score - floor) / (ceiling - floor), over the same (seed, query) pairs: 0 is the score if nothing is "
                "learned, 1 that of the same learner twice. Because of noise it may lie below 0 or above 1.",
            )
        )
    if result.calibrated or result.tests:
        terms.append(
            (
                "smallest detectable difference",
                "The smallest true difference (of a score: from its floor) that a run of this size detects with 80 % "
                "power at the 5 % level. A smaller difference may exist and not be detected.",
            )
        )
    if result.tests:
        terms.append(
            (
                "p over queries, over seeds",
                "Probability of a difference at least as large by chance, estimated by flipping the signs of the "
                "differences of single queries, or of whole seeds.",
            )
        )
    if any(each.per_layer_q for each in result.similarity.values()):
        terms.append(
            (
                "false discovery rate",
                "Expected share of layers that are only by chance among those called above the floor "
                "(Benjamini-Hochberg, over the layers of one measure): here less than 5 %, q < 0.05.",
            )
        )
    return [(term, meaning) for term, meaning in terms if meaning]

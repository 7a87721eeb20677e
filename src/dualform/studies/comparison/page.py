"""A comparison as one HTML file that needs no network: numbers, charts and what they do not say."""

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
from dualform.studies.comparison import charts, control_charts, similarity_tables, table
from dualform.studies.comparison.against_charts import QUERIES, cost_accuracy_chart
from dualform.studies.comparison.answer import MOST_MEASURES, acts_alike, first_measures, which_to_use
from dualform.studies.comparison.explorer import explorer_section
from dualform.studies.comparison.rounding_words import rounding_section
from dualform.studies.comparison.similarity_words import layers_above_floor
from dualform.studies.comparison.words import cost_sentence, headlines
from dualform.studies.fold import words as fold_words
from dualform.studies.glossary import DEMONSTRATION, SEEDS_AND_QUERIES, learner_terms
from dualform.studies.paired_words import pair_sentences, seeds_note

EXPLORER = "dualform.studies.comparison:explorer"

AGAINST_GLOSSARY: tuple[tuple[str, str], ...] = (
    ("agreement with ICL", "Share of the queries that a learner answers as ICL does, rightly or wrongly."),
    (
        "recovered",
        "(accuracy - zero-shot's) / (ICL's - zero-shot's): 100 % is all that the prompt gained. It swings widely where "
        "the prompt gained little, and is undefined outside 0 to 150 %.",
    ),
    (
        "cheaper after",
        "Queries after which adapting once and answering has taken fewer operations than prompting; “never” where a "
        "query costs no less than a prompted one.",
    ),
    (
        "read anew, kept",
        "A prompt's demonstrations can be read again with every query, or once, their keys and values kept in memory: "
        "a query then reads its own tokens alone and attends to what is kept.",
    ),
)


def render(result: Result, attention: AttentionRecord | None = None) -> str:
    """The page of a comparison, ready to be written as UTF-8.

    Args:
        result: What it found; sections without data are left out.
        attention: Where its learners looked, for the explorer.
    """
    first = _first_chart(result)
    return study_page(
        result,
        title=_title(result),
        sentences=[*fold_words.headlines(result), *headlines(result)],
        nothing="This result holds no accuracies and no measures of similarity.",
        answer=which_to_use(result),
        charts=[first],
        facts=_facts(result),
        first=[_alike(result)],
        sections=[
            _against(result),
            _accuracy(result, again=first.name != "accuracy-first"),
            _predictions(result),
            _similarity(result),
            _explorer(attention),
            _sweep(result),
            rounding_section(result),
            Section(
                "rec2ftp",
                "Rec2FTP and its counts",
                note="Answers that zero-shot had wrong and finetuning put right: does context put the same ones right?",
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
    """Accuracy against cost; accuracy alone where costs are not known."""
    against = cost_accuracy_chart(result)
    if against is None:
        return _accuracy_figure(result, "accuracy-first")
    return Figure(
        "against",
        against,
        "Accuracy of each learner with its 95 % interval against the floating-point operations of a thousand queries.",
        f"Accuracy with 95 % intervals against the cost of {QUERIES:,} queries; adapting, done once, comes on top. "
        "Hollow: the same prompt with its keys and values kept.",
    )


def _accuracy_figure(result: Result, name: str = "accuracy") -> Figure:
    return Figure(
        name,
        charts.accuracy_chart(result),
        "Mean accuracy of each learner with its 95 % interval and one point a seed, chance and the majority baseline.",
        "Large dots are means, bars 95 % intervals; small dots are demonstration seeds. Dashed: chance, and always "
        "giving the commonest label.",
    )


def _facts(result: Result) -> list[Fact]:
    """What the numbers of the page rest on."""
    found = []
    if result.demonstrations is not None:
        requested, used = result.demonstrations.k_requested, result.demonstrations.k_effective
        seeds = len(result.demonstrations.rows)
        detail = f"of {requested} requested" if used != requested else "in each prompt"
        found.append(Fact("demonstrations", count(used), detail))
        found.append(Fact("demonstration seeds", count(seeds), "draws of demonstrations"))
    levels = baseline_rows(result)
    if majority_level(result) is not None:
        name, level = levels[-1]
        found.append(Fact("majority baseline", percent(level), name))
    if result.baselines is not None and result.baselines.n:
        found.append(Fact("queries", count(result.baselines.n), "answered by every learner"))
    return found


def _alike(result: Result) -> Section:
    """Whether context acts like finetuning: one sentence, one chart of at most five measures."""
    keys = first_measures(result)
    chart = control_charts.calibrated_chart(result, keys)
    figure = Figure(
        "alike",
        chart,
        "The most telling measures of similarity with their intervals on one scale: 0 is the floor, 1 the ceiling.",
        "Each measure between its own floor (what is scored where nothing is learned) and its ceiling (the same thing "
        "twice), with 95 % intervals. All measures are under “How similar context and finetuning are”.",
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


def _accuracy(result: Result, again: bool) -> Section:
    """Accuracies and what tells them apart; the chart is left out where the first screen shows it already."""
    if not result.accuracy:
        return Section("accuracy", "")
    baselines = baselines_text(result)
    tests = len(result.tests)
    several = f" No correction is made for there being {tests} pairs." if tests > 1 else ""
    return Section(
        "accuracy",
        "Accuracy",
        note=f"Share of queries answered correctly{f'; {baselines}' if baselines else ''}. Every learner had the same "
        "demonstrations.",
        charts=[_accuracy_figure(result)] if again else [],
        tables=[table.accuracy_table(result)],
        sections=[
            Section(
                "by-label",
                "Accuracy label by label",
                charts=[
                    Figure(
                        "labels",
                        charts.by_label_chart(result),
                        "Accuracy of each learner on the queries of each label, with 95 % intervals.",
                        "Share of each label's queries answered correctly (recall), with 95 % intervals.",
                    )
                ],
                tables=[table.label_table(result)],
            ),
            Section(
                "pairs",
                "Which differences hold",
                pair_sentences(result),
                tables=[table.pairs_table(result)],
                note="Two learners on the same queries under the same seeds, by sign-flip tests. Over queries: would "
                "other queries, under these very demonstrations, show the difference? Over seeds: would other "
                f"demonstrations? {seeds_note(result)}{several}",
                as_list=True,
                detail=False,
            ),
        ],
    )


def _predictions(result: Result) -> Section:
    return Section(
        "predictions",
        "Predictions",
        note="What each learner answers, rightly or wrongly. A learner that gives one answer to nearly everything has "
        "collapsed into one class: its accuracy is then that class's share of the queries.",
        charts=[
            Figure(
                "predictions",
                charts.prediction_chart(result),
                "Share of each label among the right answers and among the predictions of each learner.",
                "Share of each label among all predictions, all seeds together; first row: among the right answers.",
            )
        ],
        tables=[table.predictions_table(result)],
    )


def _similarity(result: Result) -> Section:
    if not result.similarity:
        return Section("similarity", "")
    scaled = bool(set(result.calibrated) & set(result.similarity))
    band = " Band: from the floor, named above it, to the ceiling, both over the queries on which controls were read."
    marks = " Small marks: all controls; point at one for its name." if result.controls else ""
    tested = any(each.per_layer_q for each in result.similarity.values())
    placed = [
        key for key, each in result.calibrated.items() if key in result.similarity and finite(each.mean) is not None
    ]
    layers = charts.similarity_by_layer_chart(result)
    counted = layers_above_floor(result)
    return Section(
        "similarity",
        "How similar context and finetuning are",
        note="Compare each number with its controls. Floors show what it would be if nothing were learned from these "
        "demonstrations, ceilings what the same thing twice scores.",
        charts=[
            Figure(
                "bands",
                control_charts.band_chart(result),
                "Each measure of similarity with its interval, in the band from its floor to its ceiling, next to all "
                "controls.",
                f"Large dots: this run, with 95 % interval.{band if scaled else ''}{marks} A measure outside -1 to 1 "
                "is in the table alone.",
            ),
            Figure(
                "calibrated",
                # With few measures the page's first chart of similarity shows them all.
                control_charts.calibrated_chart(result) if len(placed) > MOST_MEASURES else None,
                "Each measure of similarity with its interval on one scale: 0 is its floor, 1 its ceiling.",
                "The same scores on one scale, with 95 % intervals: 0 is each measure's own floor, 1 its ceiling. The "
                "axis ends at -1 and 2; a triangle at its edge marks what lies beyond.",
            ),
        ],
        tables=[similarity_tables.similarity_table(result)],
        sections=[
            Section("controls", "All controls, measure by measure", tables=[similarity_tables.controls_table(result)]),
            Section(
                "layers",
                "Layer by layer",
                charts=[
                    Figure(
                        "layers",
                        layers,
                        "Each measure of similarity over the layers, with its interval.",
                        "Mean over queries with its 95 % interval; dashed, the mean over layers; dotted, the measure's "
                        "floor (without one, the random direction) where it has layers. Scales differ. Point at a line "
                        "to read its numbers; a gap is a layer without a number.",
                    )
                ],
                note="Filled points are layers above the measure's floor at a false discovery rate of 5 % over its "
                "layers; hollow ones are not told apart from it."
                if tested
                else "",
                sections=[Section("layers-counted", "Layers above their floor, counted", counted, as_list=True)],
            ),
            Section(
                "heads",
                "Head by head",
                charts=[
                    Figure(
                        "heads",
                        charts.head_map_chart(result),
                        "Each measure of similarity by layer and head, as a heat map.",
                        "Orange above zero, blue below, grey where there is no number. Each map has its own scale.",
                    )
                ],
            ),
        ],
    )


def _explorer(attention: AttentionRecord | None) -> Section:
    explorer = explorer_section(attention)
    body = fill(f"{EXPLORER}.html.j2", explorer=explorer) if explorer else Markup("")
    return Section("attention", "Where they look", body=body)


def _sweep(result: Result) -> Section:
    return Section(
        "sweep",
        "Similarity and the size of the step",
        note="Finetuning on the same demonstrations at each learning rate. Similarity moves with the size of the step, "
        "so a single number is that of the rate chosen for accuracy, and two runs at different rates differ for that "
        "reason alone.",
        charts=[
            Figure(
                "sweep",
                control_charts.sweep_chart(result),
                "Accuracy of finetuning, length of its change and each measure of similarity against the learning "
                "rate.",
                "Means with 95 % intervals over the queries on which controls were read; dashed, the rates chosen. "
                "Learning rates on a log scale; the other scales differ.",
            )
        ],
    )


def _published(result: Result) -> Section:
    return Section(
        "published",
        "Compared with the paper",
        note="What arXiv:2212.10559v3 reports for its protocol. Its model and size differ from the paper's two, so "
        "equal numbers are not to be expected; and the paper's random update is drawn from 0 to 1, of any length, "
        "where ours has mean zero and finetuning's length.",
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
                "One line a seed. Large dots: chosen. Crosses on the floor: diverged and dropped; triangles: skipped.",
            )
        ],
        tables=[table.trials_table(result)],
    )


def _demonstrations(result: Result) -> Section:
    found = result.demonstrations
    note = ""
    if found is not None:
        note = (
            f"{count(found.k_requested)} requested, {count(found.k_effective)} used. Row numbers count from 0 in the "
            "train split, in the order of the prompt."
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
    """The words that this page uses and a newcomer may not know."""
    learners = learners_in_order(dict.fromkeys([*result.accuracy, *result.cost, *result.predictions]))
    terms = learner_terms(learners)
    controls = similarity_tables.controls_used(result)
    # The floor of a measure may be a level that no control of the run holds.
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
                "mean of ICL compared with itself and FT with itself.",
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

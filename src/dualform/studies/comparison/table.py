"""The tables of a comparison, each declared once for the terminal, the page, files and data frames."""

import math
from typing import Any

from dualform.report.measures import (
    KINDS,
    control_of,
    controls_in_order,
    in_order,
    measure_of,
)
from dualform.report.numerals import MISSING, Interval, count, decimal, finite, known, scaled
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import hundredths, is_few, is_undefined
from dualform.report.table import (
    BLANK,
    Cell,
    Column,
    Kind,
    Row,
    Table,
    estimate_cell,
    learner_row,
    score_cell,
    without_columns,
)
from dualform.result import FEWEST_FOR_INTERVAL, Calibrated, Result, Similarity
from dualform.studies.against_words import break_even, recovered_share
from dualform.studies.baseline_words import baseline_rows, collapsed
from dualform.studies.comparison.against_charts import QUERIES
from dualform.studies.comparison.charts import trained_name
from dualform.studies.published import MODELS, beside_the_paper


def accuracy_table(result: Result) -> Table:
    """Accuracy of each learner and of the baselines, over the majority baseline, macro-F1 and range over seeds."""
    columns = (
        Column("learner"),
        Column("accuracy", "share", interval=True),
        Column("over majority, points", "difference", where="page"),
        Column("macro-F1", "score", where="page"),
        Column("over seeds", "share", where="page"),
        Column("n", "count"),
        Column("top answer", "share", where="terminal"),
        Column("as ICL", "share", where="terminal"),
    )
    fallen = collapsed(result)
    rows = []
    for key in learners_in_order(dict.fromkeys([*result.accuracy, *result.predictions])):
        each, against = result.accuracy.get(key), result.against_icl.get(key)
        seeds = [value for one in each.per_seed.values() if (value := finite(one)) is not None] if each else []
        ranged = f"{100 * min(seeds):.1f} to {100 * max(seeds):.1f} %" if len(seeds) > 1 else None
        top = result.predictions[key].majority_share if key in result.predictions else None
        rows.append(
            learner_row(
                key,
                estimate_cell(each, "share") if each else Cell(None, "share"),
                estimate_cell(each.over_majority, "difference") if each else BLANK,
                estimate_cell(each.macro_f1, "score") if each else BLANK,
                Cell(None, "share", shown=ranged),
                Cell(each.n if each else None, "count"),
                Cell(top, "share", flag="collapsed" if key in fallen else ""),
                Cell(against.agreement.mean, "share") if against else BLANK,
                where="everywhere" if each else "page",
            )
        )
    n = Cell(result.baselines.n, "count") if result.baselines is not None else BLANK
    rows += (
        [
            Row((Cell(name), Cell(level, "share"), BLANK, BLANK, BLANK, n, BLANK, BLANK), style="reference")
            for name, level in baseline_rows(result)
        ]
        if rows
        else []
    )
    table = Table("Accuracy", columns, tuple(rows))
    held = {
        "over majority, points": any(each.over_majority is not None for each in result.accuracy.values()),
        "macro-F1": any(each.macro_f1 is not None for each in result.accuracy.values()),
        "as ICL": bool(result.against_icl),
    }
    return without_columns(table, [title for title, there in held.items() if not there])


def by_label_table(result: Result) -> Table:
    """Macro-F1, and the label that is answered correctly least often; one row a learner.

    Without rows where answers are free-text choices, whose numbers are no classes.
    """
    columns = (
        Column("learner"),
        Column("macro-F1", "score", interval=True),
        Column("least right on"),
        Column("accuracy", "share", interval=True),
    )
    rows = []
    for key in learners_in_order(result.accuracy):
        each = result.accuracy[key]
        if each.macro_f1 is not None and each.per_label:
            label, worst = min(each.per_label.items(), key=lambda item: finite(item[1].mean) or 0.0)
            rows.append(
                learner_row(key, estimate_cell(each.macro_f1), Cell(label.strip()), estimate_cell(worst, "share"))
            )
    return Table("By label", columns, tuple(rows))


def label_table(result: Result) -> Table:
    """How often each learner is right on each label's queries (recall), a row a label."""
    keys = [key for key in learners_in_order(result.accuracy) if result.accuracy[key].per_label]
    labels = dict.fromkeys(label for key in keys for label in result.accuracy[key].per_label)
    counts = result.baselines.label_counts if result.baselines is not None else {}
    columns = (
        Column("label"),
        Column("queries", "count"),
        *(Column(learner_style(key).title, "share", interval=True) for key in keys),
    )
    rows = [
        Row(
            (
                Cell(label.strip()),
                Cell(counts.get(label), "count"),
                *(estimate_cell(result.accuracy[key].per_label.get(label), "share") for key in keys),
            )
        )
        for label in labels
    ]
    note = "Share of each label's queries answered correctly (recall), with its 95 % interval; of few queries a count."
    return Table("Accuracy label by label", columns, tuple(rows), note=note)


def pairs_table(result: Result) -> Table:
    """Each pair of learners: difference, p-values and the smallest difference that the run could have found."""
    columns = (
        Column("pair"),
        Column("difference, points", "difference", interval=True),
        Column("p over queries", "p"),
        Column("p over seeds", "p"),
        Column("smallest detectable, points", "points"),
        Column("n", "count"),
    )
    rows = tuple(
        Row(
            (
                Cell(f"{learner_style(test.first).title} less {learner_style(test.second).title}"),
                Cell(test.difference, "difference", test.ci95, test.n),
                Cell(test.p_queries, "p"),
                Cell(test.p_seeds, "p"),
                Cell(test.minimum_detectable, "points"),
                Cell(test.n, "count"),
            )
        )
        for test in result.tests
    )
    return Table("Paired tests", columns, rows)


def predictions_table(result: Result) -> Table:
    """Each learner's most frequent answer, how often it is the right one, and how sure the learner is."""
    columns = (
        Column("learner"),
        Column("most frequent answer", "share"),
        Column("which"),
        Column("how often right", "share"),
        Column("mean entropy, nats", "nats"),
    )
    rows = []
    fallen = collapsed(result)
    for key in learners_in_order(result.predictions):
        each = result.predictions[key]
        label = each.majority_label
        rows.append(
            learner_row(
                key,
                Cell(each.majority_share, "share", flag="collapsed" if key in fallen else ""),
                Cell(label.strip() if label else MISSING),
                Cell(_true_share(result, label), "share"),
                Cell(each.entropy, "nats"),
            )
        )
    return Table("Predictions", columns, tuple(rows))


def _true_share(result: Result, label: str | None) -> float | None:
    """How often a label is the right answer."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return None
    return baselines.label_counts[label] / baselines.n


def against_table(result: Result) -> Table:
    """Accuracy, agreement with ICL, its gain recovered, operations, and when a learner is cheaper than the prompt."""
    columns = (
        Column("learner"),
        Column("accuracy", "share", where="page"),
        Column("agreement with ICL", "share", short="as ICL", interval=True),
        Column("recovered of its gain", "share", short="recovered"),
        Column("to adapt, TFLOP", "number", where="page"),
        Column(f"{QUERIES:,} queries, TFLOP", "number", where="page"),
        Column("cheaper than read anew, after queries", "count", short="read anew"),
        Column("cheaper than kept, after queries", "count", short="kept"),
    )
    rows = []
    keys = [] if not result.against_icl else ["icl"] * ("icl" in result.accuracy)
    for key in learners_in_order(dict.fromkeys([*keys, *result.against_icl])):
        against, cost = result.against_icl.get(key), result.cost.get(key)
        kept = scaled(cost.kept_flops, QUERIES * 1e-12) if cost is not None and key == "icl" else None
        notes = () if kept is None else (f"kept: {Cell(kept, 'number').text}",)
        recovered = BLANK
        if against is not None:
            defined = known(against.recovered.ci95) and not is_undefined(against.recovered)
            recovered = Cell(
                against.recovered.mean,
                "share",
                against.recovered.ci95 if defined else None,
                against.recovered.n,
                recovered_share(against),
            )
        rows.append(
            learner_row(
                key,
                estimate_cell(result.accuracy.get(key), "share"),
                estimate_cell(against.agreement if against else None, "share"),
                recovered,
                Cell(scaled(cost.adapt_flops, 1e-12) if cost else None, "number"),
                Cell(scaled(cost.flops, QUERIES * 1e-12) if cost else None, "number", notes=notes),
                _break_even(result, key, kept=False) if against else BLANK,
                _break_even(result, key, kept=True) if against else BLANK,
                where="everywhere" if against else "page",
            )
        )
    note = (
        "“Cheaper after”: queries after which adapting once and answering has taken fewer operations than a prompt "
        "read anew for every query, or than one whose keys and values are kept. A search for a learning rate is not "
        "included."
    )
    return Table("Compared with prompting (cheaper: after how many queries)", columns, tuple(rows), note=note)


def _break_even(result: Result, key: str, *, kept: bool) -> Cell:
    against = result.against_icl[key]
    queries = finite(against.break_even_kept if kept else against.break_even)
    return Cell(None if queries is None else math.ceil(queries), "count", shown=break_even(result, key, kept=kept))


_SHORT = {"icl": "ICL", "ft": "FT"}


def fold_table(result: Result) -> Table:
    """Each measure of the similarity of the fold's update to those by context and by finetuning."""
    similarity = result.fold.similarity if result.fold is not None else {}
    others = learners_in_order(similarity)
    keys = in_order(dict.fromkeys(key for other in others for key in similarity[other]))
    columns = (
        Column("measure"),
        *(Column(f"to {_SHORT.get(other, learner_style(other).title)}", "score", interval=True) for other in others),
    )
    rows = tuple(
        Row((Cell(measure_of(key).title), *(estimate_cell(similarity[other].get(key)) for other in others)))
        for key in keys
        if any(each is not None and finite(each.mean) is not None for each in (similarity[o].get(key) for o in others))
    )
    note = (
        "Similarity of the fold's update to those by context and by finetuning, by the measures that compare these "
        "two. It was made to be like ICL's, so a high similarity to that one shows that the fold worked, and no more."
    )
    return Table("The fold's update", columns, rows, note=note)


def similarity_table(result: Result) -> Table:
    """Each measure with its floor, its ceiling and its place between them; companions below their measure.

    Without calibrated values: the random control's mean instead.
    """
    random = result.controls.get("random", {})
    scaled_ = bool(set(result.calibrated) & set(result.similarity))
    further: tuple[Column, ...]
    if scaled_:
        further = (
            Column("floor", "score"),
            Column("ceiling", "score"),
            Column("calibrated", "ratio"),
            Column("smallest detectable difference", "score", where="page"),
        )
    else:
        further = (Column("random direction", "score", short="random"),)
    columns = (
        # As wide as the numbers leave it: a longer name takes a second line.
        Column("measure", widest=17 if scaled_ else None),
        Column("mean", "score", interval=True),
        Column("n", "count", where="page" if scaled_ else "everywhere"),
        *further,
    )
    rows = []
    for key in in_order(result.similarity):
        each, measure = result.similarity[key], measure_of(key)
        heading = Cell(measure.title, notes=tuple(text for text in (measure.meaning, measure.caution) if text))
        beside: tuple[Cell, ...] = (Cell(random[key].mean, "score"),) if key in random else (BLANK,)
        rows.append(
            Row(
                (
                    heading,
                    score_cell(key, each, notes=_by_rounding(each.rounding)),
                    Cell(each.n, "count"),
                    *(_place(result.calibrated.get(key)) if scaled_ else beside),
                )
            )
        )
        for name, mean, ends, n in companions(key, each):
            more = [BLANK] * len(further)
            rows.append(Row((Cell(name), Cell(mean, "score", ends, n), Cell(n, "count"), *more), style="companion"))
    table = Table("Similarity of context and finetuning", columns, tuple(rows))
    if not scaled_:
        return table if random else without_columns(table, ["random direction"])
    note = (
        f"Floor, ceiling, calibrated value and smallest detectable difference are computed from the {_scale_n(result)} "
        "(seed, query) pairs on which controls were read."
    )
    return Table(table.title, columns, table.rows, caption=_floors_caption(result), note=note)


def _floors_caption(result: Result) -> str:
    """Which floor each measure has, the one that most have first; the rest name their measures."""
    floors: dict[str, list[str]] = {}
    for key in in_order(result.calibrated):
        if key in result.similarity:
            floors.setdefault(control_of(result.calibrated[key].control).title, []).append(measure_of(key).title)
    told = sorted(floors.items(), key=lambda item: -len(item[1]))
    caption = "calibrated: 0 = floor, the highest control; 1 = ceiling"
    if not told:
        return caption
    named = [f"{floor} ({'; '.join(titles)})" for floor, titles in told[1:]]
    return f"{caption}. Floor: {'; '.join([told[0][0], *named])}"


def _scale_n(result: Result) -> str:
    """How many pairs the scales rest on: `500`, or `140 to 500`."""
    n = [each.n for key, each in result.calibrated.items() if key in result.similarity]
    if not n:
        return ""
    return count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def _place(place: Calibrated | None) -> tuple[Cell, ...]:
    """A measure on its scale: floor, ceiling, place between them, and what difference could have been found."""
    if place is None:
        return (BLANK,) * 4
    return (
        Cell(place.floor, "score", notes=(control_of(place.control).title,)),
        Cell(place.ceiling, "score"),
        Cell(place.mean, "ratio", place.ci95, place.n, notes=_by_rounding(place.rounding, 0.005)),
        Cell(place.minimum_detectable, "score"),
    )


def _by_rounding(moved: float | None, least: float = 0.0005) -> tuple[str, ...]:
    """How far rounding moves a number, as `± 0.004 by rounding`; nothing where the digits shown would not show it."""
    number = finite(moved)
    if number is None or number < least:
        return ()
    return (f"± {decimal(number) if least < 0.001 else hundredths(number)} by rounding",)


def controls_used(result: Result) -> list[str]:
    """Controls with something to show, kind by kind."""
    shown = {*result.similarity, "accuracy"}
    used = [key for key in controls_in_order(result.controls) if set(result.controls[key]) & shown]
    return [key for kind, _ in KINDS for key in used if control_of(key).kind == kind]


def controls_table(result: Result) -> Table:
    """Each measure that has a control, next to all of them; last, how often the controls' own learners are right."""
    controls = controls_used(result)
    rows = []
    for key in in_order(result.similarity):
        found = [result.controls[control].get(key) for control in controls]
        if any(found):
            cells = [score_cell(key, each) if each else BLANK for each in [result.similarity[key], *found]]
            rows.append(Row((Cell(measure_of(key).title), *cells)))
    answered = [result.controls[control].get("accuracy") for control in controls]
    if any(answered):
        cells = [BLANK, *(estimate_cell(each, "share") for each in answered)]
        rows.append(Row((Cell("accuracy of the control's learner"), *cells)))
    kinds = [control_of(control).kind for control in controls]
    columns = (
        Column("measure"),
        Column("this run", "score"),
        *(Column(control_of(control).title, "score") for control in controls),
    )
    groups = (("", 2), *((name, kinds.count(kind)) for kind, name in KINDS if kind in kinds))
    return Table("All controls, measure by measure", columns, tuple(rows), groups=groups)


def rec2ftp_table(result: Result) -> Table:
    """Rec2FTP with its counts, its chance level, and two ratios that count wrong turns too."""
    columns = (Column("number"), Column("value", "share"), Column("counts", "count"))
    found = result.similarity.get("rec2ftp")
    if found is None:
        return Table("Rec2FTP", columns, ())
    details = found.details
    meaning = "finetuning right, ICL right, zero-shot wrong / finetuning right, zero-shot wrong"
    first = Cell(None if is_few(found) else found.mean, "share", None if is_few(found) else found.ci95, found.n)
    counts = _counts(details, "numerator", "denominator") or f"n = {count(found.n)}"
    rows = [Row((Cell("Rec2FTP", notes=(meaning,)), first, Cell(None, "count", shown=counts)))]
    for key, name, meaning in (
        ("chance", "chance level", "ICL right / zero-shot wrong, whatever finetuning did"),
        ("lift", "lift", "Rec2FTP less its chance level; 0 if context fixed answers whether or not finetuning did"),
        (
            "reverse",
            "flips the other way",
            "finetuning wrong, ICL wrong, zero-shot right / finetuning wrong, zero-shot right",
        ),
        ("jaccard", "Jaccard", "answers whose correctness both changed / answers whose correctness either changed"),
    ):
        if key not in details:
            continue
        # A ratio of few answers is its counts alone; the lift has those of Rec2FTP.
        under = found.n if key == "lift" else finite(details.get(f"{key}_denominator"))
        few = under is not None and under < FEWEST_FOR_INTERVAL
        value = Cell(None if few else details[key], "share")
        if key == "lift":
            value = _lift(None if few else details[key], None if few else details.get("lift_ci95"))
        counts = _counts(details, f"{key}_numerator", f"{key}_denominator")
        rows.append(Row((Cell(name, notes=(meaning,)), value, Cell(None, "count", shown=counts))))
    return Table("Rec2FTP", columns, tuple(rows))


def _lift(value: Any, interval: Any) -> Cell:
    """A difference of two shares in a column of shares, with its unit: `+14.8 points`."""
    cell = Cell(finite(value), "difference")
    ends = Cell(0.0, "difference", _ends(interval)).interval
    notes = (f"{ends} points",) if ends else ()
    return Cell(
        finite(value), "difference", shown=cell.text if finite(value) is None else f"{cell.text} points", notes=notes
    )


def _ends(interval: Any) -> Interval | None:
    return known(list(interval)) if isinstance(interval, list | tuple) else None


def _counts(details: dict[str, Any], numerator: str, denominator: str) -> str:
    over, under = finite(details.get(numerator)), finite(details.get(denominator))
    return "" if over is None or under is None else f"{count(over)} of {count(under)}"


def published_table(result: Result) -> Table:
    """This run next to the paper's numbers; without rows unless it followed the paper's protocol."""
    columns = (
        Column("number"),
        Column("this run", "share", interval=True),
        *(Column(f"paper, {name}", "share") for name in MODELS),
        Column("the paper's is of"),
    )
    rows = []
    for each in beside_the_paper(result):
        kind: Kind = "share" if each.share else "score"
        run = Cell(None, "share") if each.run is None else Cell(each.run.mean, kind, each.run.ci95, each.run.n)
        rows.append(Row((Cell(each.title), run, *(Cell(value, kind) for value in each.published), Cell(each.tasks))))
    return Table("The paper's numbers", columns, tuple(rows))


def trials_table(result: Result) -> Table:
    """For each learner how many rates were tried and dropped, and what was chosen."""
    columns = (
        Column("learner"),
        Column("rates", "count"),
        Column("from, to", "number"),
        Column("chosen", "number"),
        Column("diverged", "count"),
        Column("skipped", "count"),
        Column("chosen at the edge of the range", short="at the edge"),
    )
    rows = []
    for key in learners_in_order(dict.fromkeys(trial.learner for trial in result.trials)):
        trials = [trial for trial in result.trials if trial.learner == key]
        chosen = sorted({trial.learning_rate for trial in trials if trial.chosen})
        rates = {trial.learning_rate for trial in trials}
        on_the_edge = len(rates) > 1 and any(rate in (min(rates), max(rates)) for rate in chosen)
        rows.append(
            Row(
                (
                    Cell(trained_name(key)),
                    Cell(len(rates), "count"),
                    Cell(None, "number", shown=f"{min(rates):.3g} to {max(rates):.3g}"),
                    Cell(None, "number", shown=", ".join(f"{rate:.3g}" for rate in chosen) or None),
                    Cell(sum(trial.status == "diverged" for trial in trials), "count"),
                    Cell(sum(trial.status == "skipped" for trial in trials), "count"),
                    Cell("yes" if on_the_edge else ""),
                )
            )
        )
    return Table("Learning rates tried", columns, tuple(rows))


def cost_table(result: Result) -> Table:
    """Seconds to adapt and to search for a rate, milliseconds, tokens and GFLOP a query; one row a learner."""
    columns = (
        Column("learner"),
        Column("to adapt, s", "seconds", short="adapt s"),
        Column("search for a rate, s", "seconds", short="search s"),
        Column("a query, ms", "number", short="ms/query"),
        Column("tokens a query", "count", short="tokens"),
        Column("GFLOP a query", "number", short="GFLOP"),
    )
    rows = tuple(
        learner_row(
            key,
            Cell(each.adapt_seconds, "seconds"),
            Cell(each.search_seconds, "seconds"),
            Cell(scaled(each.query_seconds, 1e3), "number"),
            Cell(each.tokens, "count"),
            Cell(scaled(each.flops, 1e-9), "number"),
        )
        for key in learners_in_order(result.cost)
        if (each := result.cost[key])
    )
    note = (
        "Milliseconds are measured with the demonstrations already encoded and include the recording of the inside; "
        "tokens and GFLOP are those of a single query when nothing is shared."
    )
    return Table("Cost (tokens and GFLOP: one query, nothing shared)", columns, rows, note=note)


def demonstrations_table(result: Result) -> Table:
    """Each seed's demonstrations: how many were used, their tokens and their rows in the train split."""
    columns = (Column("seed"), Column("used", "count"), Column("tokens", "count"), Column("rows"))
    found = result.demonstrations
    rows = (
        []
        if found is None
        else [
            Row(
                (
                    Cell(seed),
                    Cell(found.k_effective_per_seed.get(seed), "count"),
                    Cell(found.tokens.get(seed), "count"),
                    Cell(", ".join(map(str, each))),
                )
            )
            for seed, each in found.rows.items()
        ]
    )
    return Table("Demonstrations", columns, tuple(rows))


def companions(key: str, similarity: Similarity) -> list[tuple[str, float | None, Interval | None, int | None]]:
    """The numbers in a measure's details that deserve a row of their own.

    Args:
        key: The measure. Rec2FTP's details are counts with a table of their own, so it has none here.
        similarity: Its record.

    Returns:
        Name, mean, interval and n of each.
    """
    if key == "rec2ftp":
        return []
    rows: list[tuple[str, float | None, Interval | None, int | None]] = []
    titles = measure_of(key).details
    for name, value in similarity.details.items():
        title = titles.get(name, name)
        if isinstance(value, dict) and "mean" in value:
            n = finite(value.get("n"))
            ends = _ends(value.get("ci95"))
            rows.append((title, finite(value["mean"]), ends, None if n is None else int(n)))
        elif finite(value) is not None:
            rows.append((title, finite(value), None, None))
    return rows


def tables(result: Result) -> tuple[Table, ...]:
    """What `dualform compare` prints."""
    return (
        accuracy_table(result),
        by_label_table(result),
        against_table(result),
        similarity_table(result),
        cost_table(result),
    )

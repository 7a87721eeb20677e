"""The tables of accuracy, answers and cost, each declared once for the terminal, the page, files and data frames."""

import math

from dualform.report.numerals import MISSING, finite, known, scaled
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import is_undefined
from dualform.report.table import (
    BLANK,
    Cell,
    Column,
    Row,
    Table,
    estimate_cell,
    learner_row,
    without_columns,
)
from dualform.result import Result
from dualform.studies.against_words import break_even, recovered_share
from dualform.studies.baseline_words import baseline_rows, collapsed
from dualform.studies.comparison.against_charts import QUERIES
from dualform.studies.comparison.charts import trained_name
from dualform.studies.comparison.similarity_tables import similarity_table


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
        Column("accuracy", "share", interval="below"),
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


def tables(result: Result) -> tuple[Table, ...]:
    """What `dualform compare` prints."""
    return (
        accuracy_table(result),
        by_label_table(result),
        against_table(result),
        similarity_table(result),
        cost_table(result),
    )

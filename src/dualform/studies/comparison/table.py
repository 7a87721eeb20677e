"""The tables of accuracy, answers and cost, for the terminal, the page, files and data frames."""

import math
from typing import Any

from dualform.report.numerals import MISSING, decimal, finite, known, percent, scaled
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import is_undefined
from dualform.report.table import (
    BLANK,
    Cell,
    Column,
    Row,
    Table,
    estimate_cell,
    learner_cell,
    learner_row,
    without_columns,
)
from dualform.result import Cost, Estimate, Result
from dualform.studies.against_words import break_even, recovered_share
from dualform.studies.baseline_words import baseline_rows, collapsed
from dualform.studies.comparison.against_charts import QUERIES
from dualform.studies.comparison.charts import trained_name
from dualform.studies.comparison.similarity_tables import similarity_table


def accuracy_table(result: Result) -> Table:
    """Accuracy, accuracy over the majority baseline and range over seeds, for each learner and baseline.

    Macro-F1 has a column only in results of older versions, which have no `scores_table`.
    """
    columns = (
        Column("learner"),
        Column("accuracy", "share", interval=True),
        Column("over majority, points", "difference", where="page"),
        Column("macro-F1", "score", where="page"),
        Column("range over seeds", "share", where="page"),
        Column("n", "count"),
        Column("top answer", "share", where="terminal"),
        Column("like ICL", "share", where="terminal"),
    )
    collapsed_learners = collapsed(result)
    rows = []
    for key in learners_in_order(dict.fromkeys([*result.accuracy, *result.predictions])):
        accuracy, against = result.accuracy.get(key), result.against_icl.get(key)
        per_seed = accuracy.per_seed.values() if accuracy else ()
        seeds = [value for each in per_seed if (value := finite(each)) is not None]
        seed_range = f"{100 * min(seeds):.1f} to {100 * max(seeds):.1f} %" if len(seeds) > 1 else None
        top = result.predictions[key].majority_share if key in result.predictions else None
        rows.append(
            learner_row(
                key,
                estimate_cell(accuracy, "share") if accuracy else Cell(None, "share"),
                estimate_cell(accuracy.over_majority, "difference") if accuracy else BLANK,
                estimate_cell(accuracy.macro_f1, "score") if accuracy else BLANK,
                Cell(None, "share", override=seed_range),
                Cell(accuracy.n if accuracy else None, "count"),
                Cell(top, "share", flag="collapsed" if key in collapsed_learners else ""),
                Cell(against.agreement.mean, "share") if against else BLANK,
                where="everywhere" if accuracy else "page",
            )
        )
    if rows:
        n = Cell(result.baselines.n, "count") if result.baselines is not None else BLANK
        rows += [
            Row((Cell(name), Cell(level, "share"), BLANK, BLANK, BLANK, n, BLANK, BLANK), style="reference")
            for name, level in baseline_rows(result)
        ]
    table = Table("Accuracy", columns, tuple(rows))
    has_values = {
        "over majority, points": any(each.over_majority is not None for each in result.accuracy.values()),
        "macro-F1": not result.classification and any(each.macro_f1 is not None for each in result.accuracy.values()),
        "like ICL": bool(result.against_icl),
    }
    return without_columns(table, [title for title, present in has_values.items() if not present])


def scores_table(result: Result) -> Table:
    """Each learner's accuracy, balanced accuracy, macro-F1, log-loss, Brier score and calibration error."""
    columns = (
        Column("learner"),
        Column("accuracy", "share", interval="below"),
        Column("balanced accuracy", "share", interval="below"),
        Column("macro-F1", "score", interval="below"),
        Column("log-loss, nats", "nats", interval="below", notes=True),
        Column("Brier score", "score", interval="below"),
        Column("calibration error", "score", interval="below", notes=True),
    )
    rows = []
    for key in learners_in_order(result.classification):
        scores = result.classification[key]
        zero, chance = finite(scores.zero_probability), finite(scores.ece_if_calibrated)
        rows.append(
            learner_row(
                key,
                estimate_cell(scores.accuracy, "share"),
                estimate_cell(scores.balanced_accuracy, "share"),
                estimate_cell(scores.macro_f1),
                estimate_cell(scores.log_loss, "nats", notes=[f"{percent(zero)} at probability 0"] if zero else []),
                estimate_cell(scores.brier),
                estimate_cell(scores.ece, notes=[] if chance is None else [f"{decimal(chance)} by chance"]),
            )
        )
    table = Table("Scores beyond accuracy", columns, tuple(rows))
    # Choices in free text are not classes.
    by_class = any(each.balanced_accuracy is not None for each in result.classification.values())
    return table if by_class else without_columns(table, ["balanced accuracy", "macro-F1"])


def by_label_table(result: Result) -> Table:
    """Each learner's macro-F1 and the label with its lowest recall; empty for tasks with free-text answers."""
    columns = (
        Column("learner"),
        Column("macro-F1", "score", interval=True),
        Column("worst label"),
        Column("its recall", "share", interval="below"),
    )
    rows = []
    for key in learners_in_order(result.accuracy):
        accuracy = result.accuracy[key]
        if accuracy.macro_f1 is not None and accuracy.per_label:
            label, worst = min(accuracy.per_label.items(), key=lambda item: finite(item[1].mean) or 0.0)
            rows.append(
                learner_row(key, estimate_cell(accuracy.macro_f1), Cell(label.strip()), estimate_cell(worst, "share"))
            )
    return Table("By label", columns, tuple(rows))


def label_table(result: Result) -> Table:
    """Each learner's recall on each label, one row a label."""
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
    note = "Share of each label's queries answered correctly (recall), with 95 % intervals; a count if there are few."
    return Table("Accuracy by label", columns, tuple(rows), note=note)


def class_table(result: Result) -> Table:
    """Each learner's precision, recall and F1 on each label, one row for each label and learner."""
    keys = [key for key in learners_in_order(result.classification) if result.classification[key].per_class]
    labels = dict.fromkeys(label for key in keys for label in result.classification[key].per_class)
    columns = (
        Column("label"),
        Column("learner"),
        Column("queries", "count"),
        Column("answers", "count"),
        Column("precision", "share", interval="below"),
        Column("recall", "share", interval="below"),
        Column("F1", "score", interval="below"),
    )
    rows = [
        Row(
            (
                Cell(label.strip()),
                learner_cell(key),
                Cell(scores.support, "count"),
                Cell(scores.predicted, "count"),
                estimate_cell(scores.precision, "share"),
                estimate_cell(scores.recall, "share"),
                estimate_cell(scores.f1),
            )
        )
        for label in labels
        for key in keys
        if (scores := result.classification[key].per_class.get(label)) is not None
    ]
    note = (
        "Precision: share of the answers with this label that are right. Recall: share of the label's queries answered "
        "correctly. F1: 2 right / (answers + queries), mean over seeds. With 95 % intervals; counts if there are few."
    )
    return Table("Scores by label", columns, tuple(rows), note=note)


def pairs_table(result: Result) -> Table:
    """Difference, p-values and smallest detectable difference of each pair of learners."""
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
                Cell(f"{learner_style(test.first).title} minus {learner_style(test.second).title}"),
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
    """Each learner's most frequent answer, how often that answer is right, and the entropy of its predictions."""
    columns = (
        Column("learner"),
        Column("share of the most frequent answer", "share"),
        Column("which"),
        Column("share for which it is right", "share"),
        Column("mean entropy, nats", "nats"),
    )
    rows = []
    collapsed_learners = collapsed(result)
    for key in learners_in_order(result.predictions):
        predictions = result.predictions[key]
        label = predictions.majority_label
        rows.append(
            learner_row(
                key,
                Cell(predictions.majority_share, "share", flag="collapsed" if key in collapsed_learners else ""),
                Cell(label.strip() if label else MISSING),
                Cell(_true_share(result, label), "share"),
                Cell(predictions.entropy, "nats"),
            )
        )
    return Table("Predictions", columns, tuple(rows))


def _true_share(result: Result, label: str | None) -> float | None:
    """Share of the queries for which a label is right."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return None
    return baselines.label_counts[label] / baselines.n


def against_table(result: Result) -> Table:
    """Each learner compared with prompting: agreement, share of its gain, operations, and when it is cheaper."""
    columns = (
        Column("learner"),
        Column("accuracy", "share", where="page"),
        Column("agreement with ICL", "share", short="like ICL", interval=True),
        Column("share of ICL's gain", "share", short="recovered"),
        Column("to adapt, TFLOP", "number", where="page"),
        Column(f"{QUERIES:,} queries, TFLOP", "number", where="page"),
        Column("cheaper than re-read prompt after, queries", "count", short="re-read"),
        Column("cheaper than cached prompt after, queries", "count", short="cached"),
    )
    rows = []
    keys = ["icl"] if result.against_icl and "icl" in result.accuracy else []
    for key in learners_in_order(dict.fromkeys([*keys, *result.against_icl])):
        against, cost = result.against_icl.get(key), result.cost.get(key)
        cached_flops = scaled(cost.kept_flops, QUERIES * 1e-12) if cost is not None and key == "icl" else None
        notes = () if cached_flops is None else (f"cached: {Cell(cached_flops, 'number').text}",)
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
                _break_even(result, key, cached=False) if against else BLANK,
                _break_even(result, key, cached=True) if against else BLANK,
                where="everywhere" if against else "page",
            )
        )
    note = (
        "“Cheaper after”: the number of queries after which adapting and answering have taken fewer operations than a "
        "prompt that is re-read with every query, or than one whose keys and values are cached. The learning rate "
        "search is not counted."
    )
    title = "Compared with prompting (re-read, cached: queries until the learner is cheaper)"
    return Table(title, columns, tuple(rows), note=note)


def _break_even(result: Result, key: str, *, cached: bool) -> Cell:
    against = result.against_icl[key]
    queries = finite(against.break_even_kept if cached else against.break_even)
    return Cell(
        None if queries is None else math.ceil(queries), "count", override=break_even(result, key, cached=cached)
    )


def trials_table(result: Result) -> Table:
    """Each learner's learning rates: how many were tried, diverged or were skipped, and which was chosen."""
    columns = (
        Column("learner"),
        Column("rates", "count"),
        Column("range", "number"),
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
                    Cell(None, "number", override=f"{min(rates):.3g} to {max(rates):.3g}"),
                    Cell(None, "number", override=", ".join(f"{rate:.3g}" for rate in chosen) or None),
                    Cell(sum(trial.status == "diverged" for trial in trials), "count"),
                    Cell(sum(trial.status == "skipped" for trial in trials), "count"),
                    Cell("yes" if on_the_edge else ""),
                )
            )
        )
    return Table("Learning rates tried", columns, tuple(rows))


def cost_table(result: Result) -> Table:
    """Each learner's seconds to adapt and to search for a rate, and milliseconds, tokens and GFLOP a query."""
    columns = (
        Column("learner"),
        Column("to adapt, s", "seconds", short="adapt s"),
        Column("learning rate search, s", "seconds", short="search s"),
        Column("a query, ms", "number", short="ms/query"),
        Column("tokens a query", "count", short="tokens"),
        Column("GFLOP a query", "number", short="GFLOP"),
    )
    rows = tuple(
        learner_row(
            key,
            Cell(cost.adapt_seconds, "seconds"),
            Cell(cost.search_seconds, "seconds"),
            Cell(scaled(cost.query_seconds, 1e3), "number"),
            Cell(cost.tokens, "count"),
            Cell(scaled(cost.flops, 1e-9), "number"),
        )
        for key in learners_in_order(result.cost)
        if (cost := result.cost[key])
    )
    note = (
        "Milliseconds are measured with the demonstrations already encoded and include recording the model's "
        "activations; tokens and GFLOP are those of one query read with its full prompt."
    )
    return Table("Cost (tokens and GFLOP: one query with its full prompt)", columns, rows, note=note)


def demonstrations_table(result: Result) -> Table:
    """Each seed's demonstrations: how many were used, their tokens and their row numbers in the train split."""
    columns = (Column("seed"), Column("used", "count"), Column("tokens", "count"), Column("rows"))
    demonstrations = result.demonstrations
    if demonstrations is None:
        return Table("Demonstrations", columns, ())
    rows = [
        Row(
            (
                Cell(seed),
                Cell(demonstrations.k_effective_per_seed.get(seed), "count"),
                Cell(demonstrations.tokens.get(seed), "count"),
                Cell(", ".join(map(str, numbers))),
            )
        )
        for seed, numbers in demonstrations.rows.items()
    ]
    return Table("Demonstrations", columns, tuple(rows))


def learners_frame(result: Result) -> Any:
    """A `pandas.DataFrame` with one row for each learner; see `Result.to_pandas`."""
    import pandas

    keys = learners_in_order(dict.fromkeys([*result.accuracy, *result.cost, *result.classification]))
    # One row too many, so that a frame without learners has the same columns.
    frame = pandas.DataFrame([_frame_row(result, key) for key in [*keys, ""]]).iloc[: len(keys)]
    numbers = frame.columns.drop(["learner", "n"])
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _frame_row(result: Result, key: str) -> dict[str, Any]:
    accuracy, scores, cost = result.accuracy.get(key), result.classification.get(key), result.cost.get(key)
    against, predictions = result.against_icl.get(key), result.predictions.get(key)
    macro_f1 = scores.macro_f1 if scores is not None else accuracy.macro_f1 if accuracy is not None else None
    return {
        "learner": key,
        **_number("accuracy", accuracy),
        "n": accuracy.n if accuracy is not None else 0,
        **_number("over_majority", accuracy.over_majority if accuracy is not None else None),
        **_number("balanced_accuracy", scores.balanced_accuracy if scores is not None else None),
        **_number("macro_f1", macro_f1),
        **_number("log_loss", scores.log_loss if scores is not None else None),
        "zero_probability": scores.zero_probability if scores is not None else None,
        **_number("brier", scores.brier if scores is not None else None),
        **_number("ece", scores.ece if scores is not None else None),
        "ece_if_calibrated": scores.ece_if_calibrated if scores is not None else None,
        "majority_share": predictions.majority_share if predictions is not None else None,
        **_number("agreement_with_icl", against.agreement if against is not None else None),
        **{name: getattr(cost, name, None) for name in Cost.model_fields},
    }


def _number(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """A mean and both ends of its interval, under names for columns."""
    low, high = (None, None) if estimate is None else estimate.ci95
    return {name: None if estimate is None else estimate.mean, f"{name}_low": low, f"{name}_high": high}


def tables(result: Result) -> tuple[Table, ...]:
    """The tables that `dualform compare` prints."""
    return (
        accuracy_table(result),
        by_label_table(result),
        against_table(result),
        similarity_table(result),
        cost_table(result),
    )

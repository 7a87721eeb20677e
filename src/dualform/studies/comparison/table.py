"""A result as compact tables for the terminal, at most 80 columns wide."""

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dualform.report.measures import DETAIL_TITLES, control_of, in_order, measure_of, score, score_interval
from dualform.report.numerals import (
    MISSING,
    count,
    decimal,
    decimal_interval,
    finite,
    percent,
    scaled,
    significant,
)
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import hundredths, share, share_interval
from dualform.result import Result, Similarity
from dualform.studies.against_words import break_even, recovered_share
from dualform.studies.baseline_words import baseline_rows
from dualform.studies.comparison.words import collapsed


def accuracy_table(result: Result) -> Table:
    """Learner, accuracy, interval, n, the share of its most frequent answer and of ICL's answers; one row a learner."""
    table = Table(title="Accuracy", title_justify="left")
    table.add_column("learner", overflow="fold")
    for name in ("accuracy", "95 % interval", "n", "top answer", *(["as ICL"] if result.against_icl else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for key in learners_in_order(result.accuracy):
        each = result.accuracy[key]
        top = result.predictions[key].majority_share if key in result.predictions else None
        against = result.against_icl.get(key)
        table.add_row(
            _name(learner_style(key).title),
            share(each),
            share_interval(each),
            count(each.n),
            # Said in a sign as well as in colour: a terminal may have none.
            Text(percent(top) + " !", style="bold red") if key in collapsed(result) else Text(percent(top)),
            *([share(against.agreement) if against else ""] if result.against_icl else []),
        )
    blank = [""] * (2 if result.against_icl else 1)
    for name, level in baseline_rows(result):
        n = count(result.baselines.n) if result.baselines is not None else ""
        table.add_row(_name(name), percent(level), "", n, *blank, style="italic")
    return table


def by_label_table(result: Result) -> Table:
    """Macro-F1, and the label that is answered rightly least often; one row a learner. The page has every label.

    Without rows where answers are free-text choices, whose numbers are no classes.
    """
    table = Table(title="By label", title_justify="left")
    table.add_column("learner", overflow="fold")
    for name in ("macro-F1", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("least right on", overflow="fold")
    for name in ("accuracy", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in learners_in_order(result.accuracy):
        each = result.accuracy[key]
        if each.macro_f1 is None or not each.per_label:
            continue
        label, worst = min(each.per_label.items(), key=lambda item: finite(item[1].mean) or 0.0)
        table.add_row(
            _name(learner_style(key).title),
            decimal(each.macro_f1.mean),
            decimal_interval(each.macro_f1.ci95),
            _name(label.strip()),
            share(worst),
            share_interval(worst),
        )
    return table


def against_table(result: Result) -> Table:
    """Agreement with ICL, its gain recovered, and the queries after which a learner is cheaper than the prompt."""
    table = Table(title="Beside prompting (cheaper: after how many queries)", title_justify="left")
    table.add_column("learner", overflow="fold")
    for name in ("as ICL", "95 % interval", "recovered", "read anew", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in learners_in_order(result.against_icl):
        each = result.against_icl[key]
        table.add_row(
            _name(learner_style(key).title),
            share(each.agreement),
            share_interval(each.agreement),
            recovered_share(each),
            break_even(result, key, kept=False),
            break_even(result, key, kept=True),
        )
    return table


def similarity_table(result: Result) -> Table:
    """Measure, mean, interval, floor, ceiling and place between them; companions indented below their measure.

    Without calibrated values: n and the random control's mean instead.
    """
    if result.calibrated:
        return _calibrated_table(result)
    random = result.controls.get("random", {})
    table = Table(title="Likeness of context and finetuning", title_justify="left")
    table.add_column("measure", overflow="fold")
    for name in ("mean", "95 % interval", "n", "random"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in in_order(result.similarity):
        each = result.similarity[key]
        control = decimal(random[key].mean) if key in random else ""
        interval = score_interval(key, each)
        table.add_row(_name(measure_of(key).title), score(key, each), interval, count(each.n), control)
        for name, mean, ends, n in companions(key, each):
            table.add_row(_name(f"  {name}"), decimal(mean), ends, n, "")
    return table


def _calibrated_table(result: Result) -> Table:
    floors: dict[str, list[str]] = {}
    for key in in_order(result.calibrated):
        if key in result.similarity:
            floors.setdefault(control_of(result.calibrated[key].control).title, []).append(measure_of(key).title)
    # By floor, the one that most measures have first; the rest name their measures.
    told = sorted(floors.items(), key=lambda item: -len(item[1]))
    named = [f"{floor} ({'; '.join(titles)})" for floor, titles in told[1:]]
    caption = "calibrated: 0 = floor, the highest control; 1 = ceiling"
    if told:
        caption += f". Floor: {'; '.join([told[0][0], *named])}" if named else f". Floor: {told[0][0]}"
    table = Table(
        title="Likeness of context and finetuning",
        title_justify="left",
        caption=_name(caption),
        caption_justify="left",
    )
    # As wide as the numbers leave it: a longer name takes a second line.
    table.add_column("measure", overflow="fold", max_width=17)
    for name in ("mean", "95 % interval", "floor", "ceiling", "calibrated"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in in_order(result.similarity):
        each, place = result.similarity[key], result.calibrated.get(key)
        scale = (
            ["", "", ""] if place is None else [decimal(place.floor), decimal(place.ceiling), hundredths(place.mean)]
        )
        table.add_row(_name(measure_of(key).title), score(key, each), score_interval(key, each), *scale)
        for name, mean, ends, _ in companions(key, each):
            # Not by spaces, so that a second line stands below the first.
            table.add_row(Padding(_name(name), (0, 0, 0, 2)), decimal(mean), ends, "", "", "")
    return table


def cost_table(result: Result) -> Table:
    """Seconds to adapt, milliseconds, tokens and GFLOP a query, and seconds of search; one row a learner."""
    table = Table(title="Cost (tokens and GFLOP: one query, nothing shared)", title_justify="left")
    table.add_column("learner", overflow="fold")
    for name in ("adapt s", "search s", "ms/query", "tokens", "GFLOP"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in learners_in_order(result.cost):
        each = result.cost[key]
        table.add_row(
            _name(learner_style(key).title),
            significant(each.adapt_seconds),
            significant(each.search_seconds),
            significant(scaled(each.query_seconds, 1e3)),
            count(each.tokens),
            significant(scaled(each.flops, 1e-9)),
        )
    return table


def companions(key: str, similarity: Similarity) -> list[tuple[str, float | None, str, str]]:
    """The numbers in a measure's details that deserve a row of their own.

    Args:
        key: The measure. Rec2FTP's details are counts with a section of their own, so it has none here.
        similarity: Its record.

    Returns:
        Name, mean, interval as text and n as text of each.
    """
    if key == "rec2ftp":
        return []
    rows = []
    for name, value in similarity.details.items():
        title = DETAIL_TITLES.get(name, name)
        if isinstance(value, dict) and "mean" in value:
            n = count(value.get("n"))
            rows.append((title, finite(value["mean"]), decimal_interval(value.get("ci95")), n))
        elif finite(value) is not None:
            rows.append((title, finite(value), MISSING, MISSING))
    return rows


def _name(text: str) -> Text:
    """`text` as it stands: square brackets in a name are no markup."""
    return Text(text)

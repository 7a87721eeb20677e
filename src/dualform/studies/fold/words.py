"""What a written fold is worth, in plain sentences: the same on the terminal and on the page."""

from dualform.report.numerals import MISSING, finite, known, percent, percent_interval
from dualform.report.phrases import OUTSIDE, is_few, is_undefined, plural, share
from dualform.report.table import Table
from dualform.result import FEWEST_FOR_INTERVAL, PromptingComparison, Result
from dualform.studies.against_words import break_even, compare_accuracy, recovered_share
from dualform.studies.baseline_words import collapsed
from dualform.studies.comparison.table import accuracy_table, against_table, cost_table


def headlines(result: Result) -> list[str]:
    """What was folded and how good it is; what takes the worth out of that comes first.

    Args:
        result: Of `dualform fold`.

    Returns:
        Plain sentences without markup; escape them before they go into a page. Empty where no fold was written.
    """
    if result.fold is None or result.fold.written is None or "fold" not in result.against_icl:
        return []
    return [*_cautions(result), *_agreement(result), *_cost(result), *_written(result)]


def _cautions(result: Result) -> list[str]:
    said = []
    fold, zero_shot = result.against_icl["fold"].agreement, result.against_icl["zsl"].agreement
    folded, plain = finite(fold.mean), finite(zero_shot.mean)
    if folded is not None and plain is not None and plain >= folded:
        said.append(
            f"Without any fold the model already answers as the prompted one on {percent(plain)} of the queries, "
            f"zero-shot; with it, on {percent(folded)}."
        )
    icl, zsl = result.accuracy["icl"], result.accuracy["zsl"]
    prompted, unprompted = finite(icl.mean), finite(zsl.mean)
    if prompted is not None and unprompted is not None:
        figures = f"{percent(prompted)} of the answers are right with it, {percent(unprompted)} without"
        if prompted <= unprompted:
            said.append(f"The prompt gained nothing: {figures}.")
        elif compare_accuracy(result, "icl", "zsl") != 1:
            said.append(
                f"The prompt is not shown to have gained anything: {figures}, on {plural(icl.n, 'query', 'queries')}."
            )
    if "icl" in collapsed(result):
        each = result.predictions["icl"]
        answer = "one answer" if each.majority_label is None else f"one answer, “{each.majority_label.strip()}”,"
        said.append(
            f"Prompted, the model gives {answer} to {percent(each.majority_share)} of the queries, so that agreeing "
            "with it says little."
        )
    return said


def _agreement(result: Result) -> list[str]:
    assert result.fold is not None
    against = result.against_icl["fold"]
    k = plural(result.demonstrations.k_effective if result.demonstrations else 0, "demonstration")
    answered, n = share(against.agreement), plural(against.agreement.n, "query", "queries")
    answered = f"{answered} queries" if is_few(against.agreement) else f"{answered} of {n}"
    said = (
        f"Folded {k} into {result.config.get('model')} ({result.fold.method}): it answers {answered} as the prompted "
        f"model does, zero-shot{_beside(result, against)}."
    )
    return [said, _recovered(result, against)]


def _beside(result: Result, against: PromptingComparison) -> str:
    """What agreement is to be compared with."""
    parts = []
    if finite(against.expected) is not None:
        parts.append(f"by chance {percent(against.expected)}")
    plain = result.against_icl["zsl"].agreement.mean
    if finite(plain) is not None:
        parts.append(f"without the fold {percent(plain)}")
    return f" ({', '.join(parts)})" if parts else ""


def _recovered(result: Result, against: PromptingComparison) -> str:
    recovered = against.recovered
    if is_undefined(recovered) or finite(recovered.mean) is None:
        why = OUTSIDE if is_undefined(recovered) else "there is no gain"
        return f"What it keeps of the prompt's gain over zero-shot is undefined, since {why}."
    ends = f" ({percent_interval(recovered.ci95)})" if known(recovered.ci95) else ""
    what = "right answers that" if against.gained is not None and 0 < against.gained < FEWEST_FOR_INTERVAL else "what"
    return f"Of {what} the prompt gains over zero-shot, {recovered_share(against)}{ends} are kept."


def _cost(result: Result) -> list[str]:
    anew, kept = (_when(break_even(result, "fold", kept=each)) for each in (False, True))
    return [
        f"Counted in operations, it costs less than a prompt that is read anew {anew}, and than one whose keys and "
        f"values are kept {kept}."
    ]


def _when(queries: str) -> str:
    if queries == MISSING:
        return "after a number of queries that is not known"
    exact = {"0": "from the first query", "1": "after 1 query", "never": "never"}
    return exact.get(queries, f"after {queries} queries")


def _written(result: Result) -> list[str]:
    assert result.fold is not None
    assert result.fold.written is not None
    written, said = result.fold.written, []
    if written.perplexity is not None:
        before, after = written.perplexity
        said.append(
            f"Perplexity on {result.config.get('perplexity')}: {before:.2f} before, {after:.2f} after "
            f"({after / before - 1:+.1%})."
        )
    if written.kept is not None:
        said.append(f"Rank {result.config.get('rank')} keeps {percent(written.kept)} of the change's squared norm.")
    if written.difference is not None:
        said.append(
            f"Loaded in a fresh process, its log-probabilities differ by at most {written.difference:.1e} nats."
        )
    return said


def tables(result: Result) -> tuple[Table, ...]:
    """What `dualform fold` prints: accuracy, agreement with the prompt, cost."""
    return accuracy_table(result), against_table(result), cost_table(result)

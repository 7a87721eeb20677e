"""Sentences on a written fold, for the terminal and the page."""

from dualform.report.numerals import MISSING, finite, known, percent, percent_interval
from dualform.report.phrases import OUTSIDE, is_few, is_undefined, leading_sentences, plural, share
from dualform.report.table import Table
from dualform.result import FEWEST_FOR_INTERVAL, PromptingComparison, Result
from dualform.studies.against_words import break_even, compare_accuracy, recovered_share
from dualform.studies.baseline_words import collapsed
from dualform.studies.comparison.table import accuracy_table, against_table, cost_table


def headlines(result: Result) -> list[str]:
    """At most four of the `findings`; empty where no fold was written."""
    return leading_sentences(*([sentence] for sentence in findings(result)))


def notes(result: Result) -> list[str]:
    """The `findings` that are in no table: reasons why the fold may be worth little, and what was written."""
    return [*_cautions(result), *_written(result)] if findings(result) else []


def findings(result: Result) -> list[str]:
    """What was folded and how good it is, after any reason why the fold may be worth little.

    Args:
        result: A result of `dualform fold`.

    Returns:
        Plain sentences without markup; escape them before they go into a page. Empty where no fold was written.
    """
    if result.fold is None or result.fold.written is None or "fold" not in result.against_icl:
        return []
    return [*_cautions(result), *_agreement(result), *_cost(result), *_written(result)]


def _cautions(result: Result) -> list[str]:
    sentences = []
    fold, zero_shot = result.against_icl["fold"].agreement, result.against_icl["zsl"].agreement
    folded, plain = finite(fold.mean), finite(zero_shot.mean)
    if folded is not None and plain is not None and plain >= folded:
        sentences.append(
            f"The unchanged model already agrees with the prompted one on {percent(plain)} of the queries, zero-shot; "
            f"the folded model agrees on {percent(folded)}."
        )
    icl, zsl = result.accuracy["icl"], result.accuracy["zsl"]
    prompted, unprompted = finite(icl.mean), finite(zsl.mean)
    if prompted is not None and unprompted is not None:
        figures = f"{percent(prompted)} of the answers are right with it, {percent(unprompted)} without"
        if prompted <= unprompted:
            sentences.append(f"The prompt gained nothing: {figures}.")
        elif compare_accuracy(result, "icl", "zsl") != 1:
            sentences.append(
                f"The prompt's gain is not significant: {figures}, on {plural(icl.n, 'query', 'queries')}."
            )
    if "icl" in collapsed(result):
        predictions = result.predictions["icl"]
        label = predictions.majority_label
        answer = "the same answer" if label is None else f"the same answer, “{label.strip()}”,"
        sentences.append(
            f"The prompted model gives {answer} to {percent(predictions.majority_share)} of the queries, so agreement "
            "with it is weak evidence."
        )
    return sentences


def _agreement(result: Result) -> list[str]:
    assert result.fold is not None
    comparison = result.against_icl["fold"]
    k = plural(result.demonstrations.k_effective if result.demonstrations else 0, "demonstration")
    agreed, n = share(comparison.agreement), plural(comparison.agreement.n, "query", "queries")
    agreed = f"{agreed} queries" if is_few(comparison.agreement) else f"{agreed} of {n}"
    sentence = (
        f"Folded {k} into {result.config.get('model')} ({result.fold.method}): zero-shot, it agrees with the prompted "
        f"model on {agreed}{_references(result, comparison)}."
    )
    return [sentence, _recovered(comparison)]


def _references(result: Result, comparison: PromptingComparison) -> str:
    """The agreement expected by chance, and that of the unchanged model, in parentheses."""
    parts = []
    if finite(comparison.expected) is not None:
        parts.append(f"by chance {percent(comparison.expected)}")
    unchanged = result.against_icl["zsl"].agreement.mean
    if finite(unchanged) is not None:
        parts.append(f"without the fold {percent(unchanged)}")
    return f" ({', '.join(parts)})" if parts else ""


def _recovered(comparison: PromptingComparison) -> str:
    recovered, gained = comparison.recovered, comparison.gained
    if is_undefined(recovered) or finite(recovered.mean) is None:
        reason = OUTSIDE if is_undefined(recovered) else "there is no gain"
        return f"The share that it keeps of the prompt's gain over zero-shot is undefined, since {reason}."
    if gained is not None and 0 < gained < FEWEST_FOR_INTERVAL:
        return f"It keeps {recovered_share(comparison)} right answers that the prompt gained over zero-shot."
    ends = f" ({percent_interval(recovered.ci95)})" if known(recovered.ci95) else ""
    return f"It keeps {recovered_share(comparison)}{ends} of the prompt's gain over zero-shot."


def _cost(result: Result) -> list[str]:
    reread, cached = (_when(break_even(result, "fold", cached=cached)) for cached in (False, True))
    return [
        f"Counted in operations, it costs less than a prompt that is read with every query {reread}, and less than one "
        f"whose keys and values are cached {cached}."
    ]


def _when(queries: str) -> str:
    if queries == MISSING:
        return "after an unknown number of queries"
    exact = {"0": "from the first query", "1": "after 1 query", "never": "never"}
    return exact.get(queries, f"after {queries} queries")


def _written(result: Result) -> list[str]:
    assert result.fold is not None
    assert result.fold.written is not None
    written, sentences = result.fold.written, []
    if written.perplexity is not None:
        before, after = written.perplexity
        sentences.append(
            f"Perplexity on {result.config.get('perplexity')}: {before:.2f} before, {after:.2f} after "
            f"({after / before - 1:+.1%})."
        )
    if written.kept is not None:
        rank = result.config.get("rank")
        sentences.append(f"The adapter of rank {rank} keeps {percent(written.kept)} of the change's squared norm.")
    if written.difference is not None:
        sentences.append(
            f"Loaded in a fresh process, its log-probabilities differ by at most {written.difference:.1e} nats."
        )
    return sentences


def tables(result: Result) -> tuple[Table, ...]:
    """The tables that `dualform fold` prints: accuracy, agreement with the prompt, cost."""
    return accuracy_table(result), against_table(result), cost_table(result)

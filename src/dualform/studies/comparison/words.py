"""The verdict of a comparison in plain sentences that claim no more than the intervals and tests support.

Two accuracies are compared by their paired test. Without a test they are called different only if their 95 % intervals
do not overlap. That is stricter than testing the difference, so overlapping intervals are no proof of equality.
Similarity is judged by its place between floor and ceiling where it has one. Numbers are rounded to the precision that
their intervals support.
"""

from dualform.report.numerals import finite, percent, scaled, significant
from dualform.report.palette import learner_noun, learner_nouns, learners_in_order
from dualform.report.phrases import (
    capital,
    compare_intervals,
    gap_in_prose,
    is_few,
    leading_sentences,
    share_with_named_interval,
)
from dualform.result import FEWEST_FOR_INTERVAL, Result
from dualform.studies.baseline_words import above_guessing, collapsed, guessing_sentences
from dualform.studies.comparison.rounding_words import rounding_sentences
from dualform.studies.comparison.similarity_words import (
    judged_by,
    similarity_caveats,
    similarity_headline,
    similarity_sentences,
)
from dualform.studies.paired_words import ahead_of, describe_test, paired_test

SMALL_BELOW = 100
"""The verdict warns about estimates computed from fewer answers than this."""


def headlines(result: Result) -> list[str]:
    """At most four of the `findings`: the best learner, ICL compared with finetuning, and their similarity."""
    best = _best_learner(result)
    comparisons = (_icl_compared_with_ft(result), similarity_headline(result))
    return leading_sentences(*([guessing_sentences(result)] if _may_guess(result) else []), best, *comparisons)


def notes(result: Result) -> list[str]:
    """The cautions among the `findings`."""
    if not headlines(result):
        return []
    judged = judged_by(result)
    return [
        *guessing_sentences(result),
        *similarity_caveats(result),
        *rounding_sentences(result, None if judged is None else judged[0]),
        *_collapsed_learners(result),
        *_sample_size_warnings(result),
    ]


def findings(result: Result) -> list[str]:
    """All sentences about the result, most important first.

    Args:
        result: Any result; missing parts are skipped.

    Returns:
        Sentences without markup, empty if the result has no numbers. They may contain text of the task (label words):
        escape them before inserting them into HTML.
    """
    sentences = _best_learner(result)
    guessing = guessing_sentences(result)
    sentences = guessing + sentences if _may_guess(result) else sentences + guessing
    sentences += _icl_compared_with_ft(result) + similarity_sentences(result)
    judged = judged_by(result)
    sentences += rounding_sentences(result, None if judged is None else judged[0])
    sentences += _collapsed_learners(result)
    return sentences + _sample_size_warnings(result) if sentences else []


def _may_guess(result: Result) -> bool:
    """Whether even the best learner may be guessing. That is said first, because everything else depends on it."""
    return bool(guessing_sentences(result)) and all(
        above_guessing(result, key) is not True for key in best_learners(result)
    )


def best_learners(result: Result) -> list[str]:
    """Keys of the learners with the highest mean accuracy: several if they tie, none if there are no numbers."""
    means = _means(result)
    return [key for key, mean in means.items() if mean == max(means.values())]


def _means(result: Result) -> dict[str, float]:
    means = {key: finite(result.accuracy[key].mean) for key in learners_in_order(result.accuracy)}
    return {key: mean for key, mean in means.items() if mean is not None}


_TOO_FEW = f"Fewer than {FEWEST_FOR_INTERVAL} answers are too few to compare learners."


def _best_learner(result: Result) -> list[str]:
    best = best_learners(result)
    if not best:
        return []
    accuracy = result.accuracy[best[0]]
    highest = f"the highest mean accuracy, {share_with_named_interval(accuracy)}."
    if len(best) > 1:
        return [f"{capital(learner_nouns(best))} share {highest}"]
    sentence = f"{capital(learner_noun(best[0]))} has {highest}"
    others = [key for key in _means(result) if key not in best]
    if is_few(accuracy):
        return [f"{sentence} {_TOO_FEW}"]
    orders = {key: compare_intervals(accuracy.ci95, result.accuracy[key].ci95) for key in others}
    overlapping = [key for key in others if orders[key] == 0]
    if not others:
        return [sentence]
    tests = {key: paired_test(result, best[0], key) for key in others}
    if all(tests.values()):
        return [f"{sentence} {ahead_of(tests)}"]
    if None in orders.values():
        return [f"{sentence} Some learners have no interval, so the difference may be due to chance."]
    if overlapping:
        return [f"{sentence} Its interval overlaps that of {learner_nouns(overlapping)}."]
    return [f"{sentence} Its interval overlaps that of no other learner."]


def _icl_compared_with_ft(result: Result) -> list[str]:
    if not {"icl", "ft"} <= set(_means(result)):
        return []
    icl, ft = result.accuracy["icl"], result.accuracy["ft"]
    if is_few(icl) or is_few(ft):
        return []
    gap = _means(result)["icl"] - _means(result)["ft"]
    test = paired_test(result, "icl", "ft")
    if gap == 0:
        comparison = "ICL and finetuning have the same mean accuracy"
    else:
        size = gap_in_prose(gap, None if test is None else test.ci95)
        comparison = f"ICL is {size} {'above' if gap > 0 else 'below'} finetuning"
    if test is not None:
        return [f"{comparison}{describe_test(test)}"]
    order = compare_intervals(icl.ci95, ft.ci95)
    if order is None:
        return [f"{comparison}; without intervals this may be due to chance."]
    if order == 0:
        return [f"{comparison}, and their 95 % intervals overlap, so this does not show a difference."]
    return [f"{comparison}, and their 95 % intervals do not overlap."]


def _collapsed_learners(result: Result) -> list[str]:
    sentences = []
    for key in collapsed(result):
        predictions = result.predictions[key]
        label = predictions.majority_label
        answer = "one label" if label is None else f"“{label.strip()}”"
        sentences.append(
            f"{capital(learner_noun(key))} has collapsed into one class: it answers {answer} to "
            f"{percent(predictions.majority_share)} of the queries{_true_share(result, label)}, so its accuracy means "
            "little."
        )
    return sentences


def _sample_size_warnings(result: Result) -> list[str]:
    sentences = []
    smallest = min((each.n for each in result.accuracy.values()), default=SMALL_BELOW)
    if smallest < SMALL_BELOW:
        sentences.append(f"Some accuracies are computed from only {smallest} answers: treat them as preliminary.")
    recovered = result.similarity.get("rec2ftp")
    if recovered is not None and FEWEST_FOR_INTERVAL <= recovered.n < SMALL_BELOW:
        sentences.append(f"Rec2FTP is computed from only {recovered.n} answers.")
    seeds = {len(each.per_seed) for each in result.accuracy.values()}
    if seeds == {1}:
        sentences.append(
            "There is only one demonstration seed, so the run does not show how much results depend on which "
            "demonstrations were drawn."
        )
    return sentences


def cost_sentence(result: Result) -> str | None:
    """How the cost of a query compares between ICL and finetuning; None if either cost is unknown."""
    if not {"icl", "ft"} <= set(result.cost):
        return None
    icl, ft = result.cost["icl"], result.cost["ft"]
    icl_tokens, ft_tokens = finite(icl.tokens), finite(ft.tokens)
    if not icl_tokens or not ft_tokens:
        return None
    sentence = (
        f"If each query is read with its full prompt, ICL reads {significant(icl_tokens / ft_tokens)} times as many "
        "tokens a query as the finetuned model"
    )
    icl_time, ft_time = scaled(icl.query_seconds, 1000), scaled(ft.query_seconds, 1000)
    if icl_time is not None and ft_time is not None:
        sentence += (
            f". With the demonstrations encoded only once, a query took {significant(icl_time)} ms with ICL and "
            f"{significant(ft_time)} ms with the finetuned model"
        )
    return sentence + "."


def _true_share(result: Result, label: str | None) -> str:
    """How often `label` is the right answer, in brackets; empty if that is unknown."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return ""
    return f" (right for {percent(baselines.label_counts[label] / baselines.n)} of them)"

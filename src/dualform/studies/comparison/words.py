"""The verdict: what a result says in plain sentences, and no more than its intervals allow.

Two accuracies are called apart where the paired tests say so. Without tests, and for all else, two estimates are
called apart only when their 95 % intervals do not touch. That is stricter than a test of the difference, so a sentence
that says "apart" can be believed and one that says "not separated" is no proof of equality. A similarity is judged by
its place between floor and ceiling where it has one. Numbers are rounded to what their intervals support; p-values and
power are in the tables.
"""

from dualform.report.numerals import finite, percent, scaled, significant
from dualform.report.palette import learner_noun, learner_nouns, learners_in_order
from dualform.report.phrases import (
    apart,
    capital,
    gap_in_prose,
    is_few,
    share_with_named_interval,
)
from dualform.result import FEWEST_FOR_INTERVAL, Result
from dualform.studies.baseline_words import above_guessing, collapsed, guessing_sentences
from dualform.studies.comparison.rounding_words import rounding_sentences
from dualform.studies.comparison.similarity_words import judged_by, similarity_sentences
from dualform.studies.paired_words import ahead_of, describe_test, paired_test

SMALL_BELOW = 100
"""An estimate that stands on fewer numbers than this is called small."""


def headlines(result: Result) -> list[str]:
    """What the run found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup. They may contain text of the task (label words), so escape them before
        they go into a page. Empty where the result holds no numbers.
    """
    sentences = _best_learner(result)
    guessing = guessing_sentences(result)
    # Where the best is no better than guessing, that comes first: all that follows depends on it.
    best = best_learners(result)
    if guessing and all(above_guessing(result, key) is not True for key in best):
        sentences = guessing + sentences
    else:
        sentences += guessing
    sentences += _icl_beside_ft(result) + similarity_sentences(result)
    judged = judged_by(result)
    sentences += rounding_sentences(result, None if judged is None else judged[0])
    sentences += _collapse(result)
    return sentences + _how_much_it_stands_on(result) if sentences else []


def best_learners(result: Result) -> list[str]:
    """Keys of the learners with the highest mean accuracy: one, or several that tie; none without numbers."""
    means = _means(result)
    return [key for key, mean in means.items() if mean == max(means.values())]


def _means(result: Result) -> dict[str, float]:
    found = {key: finite(result.accuracy[key].mean) for key in learners_in_order(result.accuracy)}
    return {key: mean for key, mean in found.items() if mean is not None}


_TOO_FEW = f"Fewer than {FEWEST_FOR_INTERVAL} answers are too few to compare learners by."


def _best_learner(result: Result) -> list[str]:
    best = best_learners(result)
    if not best:
        return []
    first = result.accuracy[best[0]]
    if len(best) > 1:
        return [f"{capital(learner_nouns(best))} share the highest mean accuracy, {share_with_named_interval(first)}."]
    sentence = f"{capital(learner_noun(best[0]))} has the highest mean accuracy, {share_with_named_interval(first)}."
    others = [key for key in _means(result) if key not in best]
    if is_few(first):
        return [f"{sentence} {_TOO_FEW}"]
    places = {key: apart(first.ci95, result.accuracy[key].ci95) for key in others}
    unknown = [key for key in others if places[key] is None]
    level = [key for key in others if places[key] == 0]
    if not others:
        return [sentence]
    tests = {key: paired_test(result, best[0], key) for key in others}
    if others and all(tests.values()):
        return [f"{sentence} {ahead_of(tests)}"]
    if unknown:
        return [f"{sentence} Without an interval for every learner, the run cannot say how sure that order is."]
    if level:
        return [f"{sentence} Its interval overlaps that of {learner_nouns(level)}: the run does not separate them."]
    return [f"{sentence} No other learner's interval reaches it."]


def _icl_beside_ft(result: Result) -> list[str]:
    if not {"icl", "ft"} <= set(_means(result)):
        return []
    icl, ft = result.accuracy["icl"], result.accuracy["ft"]
    if is_few(icl) or is_few(ft):
        return []
    gap = _means(result)["icl"] - _means(result)["ft"]
    test = paired_test(result, "icl", "ft")
    if gap == 0:
        place = "ICL and finetuning have the same mean accuracy"
    else:
        size = gap_in_prose(gap, None if test is None else test.ci95)
        place = f"ICL is {size} {'above' if gap > 0 else 'below'} finetuning"
    if test is not None:
        return [f"{place}{describe_test(test)}"]
    standing = apart(icl.ci95, ft.ci95)
    if standing is None:
        return [f"{place}; there are no intervals to weigh that by."]
    if standing == 0:
        return [f"{place}, and their 95 % intervals overlap: the run does not tell the two apart."]
    return [f"{place}, and their 95 % intervals do not overlap."]


def _collapse(result: Result) -> list[str]:
    sentences = []
    for key in collapsed(result):
        each = result.predictions[key]
        answer = "one label" if each.majority_label is None else f"“{each.majority_label.strip()}”"
        sentences.append(
            f"{capital(learner_noun(key))} has collapsed into one class: it answers {answer} to "
            f"{percent(each.majority_share)} of the queries{_true_share(result, each.majority_label)}, so its accuracy "
            "says little."
        )
    return sentences


def _how_much_it_stands_on(result: Result) -> list[str]:
    sentences = []
    smallest = min((each.n for each in result.accuracy.values()), default=SMALL_BELOW)
    if smallest < SMALL_BELOW:
        sentences.append(f"Some accuracies are computed from only {smallest} answers: read them as a first look.")
    recovered = result.similarity.get("rec2ftp")
    if recovered is not None and FEWEST_FOR_INTERVAL <= recovered.n < SMALL_BELOW:
        sentences.append(f"Rec2FTP is computed from {recovered.n} of them: a small number.")
    seeds = {len(each.per_seed) for each in result.accuracy.values()}
    if seeds == {1}:
        sentences.append("There is one demonstration seed, so nothing here tells how much the draw matters.")
    return sentences


def cost_sentence(result: Result) -> str | None:
    """How ICL and finetuning compare in what a query costs; None where either cost is unknown."""
    if not {"icl", "ft"} <= set(result.cost):
        return None
    icl, ft = result.cost["icl"], result.cost["ft"]
    icl_tokens, ft_tokens = finite(icl.tokens), finite(ft.tokens)
    if not icl_tokens or not ft_tokens:
        return None
    sentence = f"With nothing shared, a prompted query reads {significant(icl_tokens / ft_tokens)} times the tokens "
    sentence += "of a finetuned one"
    icl_time, ft_time = scaled(icl.query_seconds, 1000), scaled(ft.query_seconds, 1000)
    if icl_time is not None and ft_time is not None:
        sentence += "; with the demonstrations encoded once, "
        sentence += f"a prompted query took {significant(icl_time)} ms, a finetuned one {significant(ft_time)} ms"
    return sentence + "."


def _true_share(result: Result, label: str | None) -> str:
    """How often that answer is the right one; nothing where it is not known."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return ""
    return f" (right for {percent(baselines.label_counts[label] / baselines.n)} of them)"

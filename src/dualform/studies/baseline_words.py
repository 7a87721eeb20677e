"""Sentences that compare accuracies with guessing and with always giving the most common label."""

from collections.abc import Iterable, Sequence

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_nouns, learners_in_order
from dualform.report.phrases import capital, is_few
from dualform.result import Baselines, Estimate, Result

COLLAPSED_ABOVE = 0.9
"""Share of the most frequent answer above which a learner counts as collapsed into one class."""

SAME_WITHIN = 0.0005
"""Two levels closer than this print the same number, so they are drawn as one line."""


def chance_level(result: Result) -> float | None:
    """Accuracy of guessing uniformly; in older files 1 / number of labels, or None without a list of labels."""
    if result.baselines is not None:
        return finite(result.baselines.chance)
    label_words = result.task.get("label_words")
    return 1 / len(label_words) if isinstance(label_words, Sequence) and len(label_words) > 0 else None


def majority_level(result: Result) -> float | None:
    """Accuracy of always giving the answer that is right most often; None in older files."""
    return finite(result.baselines.majority) if result.baselines is not None else None


def is_free_text(result: Result) -> bool:
    """Whether the answers are free-text choices, which are counted by their position."""
    return result.task.get("label_words") is None


def majority_answer(result: Result, baselines: Baselines | None = None) -> str:
    """`always answering “Positive”`, or `always taking choice 2`."""
    baselines = baselines or result.baselines
    label = baselines.majority_label if baselines is not None else None
    if label is None:
        return "always giving the most common answer"
    return f"always taking choice {label}" if is_free_text(result) else f"always answering “{label.strip()}”"


def baseline_levels(result: Result) -> list[tuple[float, str]]:
    """The reference lines of accuracy charts with their names: none, one or two."""
    chance, majority = chance_level(result), majority_level(result)
    if chance is not None and majority is not None and abs(chance - majority) < SAME_WITHIN:
        return [(chance, "chance = majority")]
    named = ((chance, "chance"), (majority, "majority"))
    return [(level, name) for level, name in named if level is not None]


def baseline_rows(result: Result) -> list[tuple[str, float]]:
    """The same levels as rows of a table of accuracies: `guessing`, `always answering “Positive”`."""
    named = (("guessing", chance_level(result)), (majority_answer(result), majority_level(result)))
    return [(name, level) for name, level in named if level is not None]


def baselines_text(result: Result) -> str:
    """`guessing gives 50.0 %, always answering “Positive” (the most common label of these queries) 64.0 %`."""
    chance, majority = chance_level(result), majority_level(result)
    parts = [f"guessing gives {percent(chance)}"] if chance is not None else []
    if majority is not None:
        which = "right most often here" if is_free_text(result) else "the most common label of these queries"
        verb = "" if parts else " gives"
        parts.append(f"{majority_answer(result)} ({which}){verb} {percent(majority)}")
    return ", ".join(parts)


def above_baselines(
    accuracy: Estimate, chance: float | None, majority: float | None, over_majority: Estimate | None = None
) -> bool | None:
    """Whether an accuracy is shown to lie above guessing and above always giving the most common label.

    Args:
        accuracy: Share of right answers.
        chance: Accuracy of guessing, if it is known.
        majority: Accuracy of always giving the most common label, if it is known.
        over_majority: The accuracy minus that of the majority baseline, query by query. Where it is given, its
            interval decides, and a learner without an interval here is not above the majority baseline.

    Returns:
        None where no baseline is known or the accuracy has no interval.
    """
    ends = None if is_few(accuracy) else known(accuracy.ci95)
    if ends is None or (chance is None and majority is None):
        return None
    if chance is not None and ends[0] <= chance:
        return False
    if over_majority is not None:
        over = known(over_majority.ci95)
        return over is not None and over[0] > 0
    return majority is None or ends[0] > majority


def above_guessing(result: Result, learner: str) -> bool | None:
    """`above_baselines` for one learner of a result; None for a learner without an accuracy."""
    accuracy = result.accuracy.get(learner)
    if accuracy is None or finite(accuracy.mean) is None:
        return None
    return above_baselines(accuracy, chance_level(result), majority_level(result), accuracy.over_majority)


def not_above_guessing(result: Result, learners: Iterable[str] | None = None) -> list[str]:
    """Learners that are not significantly more accurate than guessing and the majority baseline, in the usual order."""
    keys = learners_in_order(result.accuracy) if learners is None else learners
    return [key for key in keys if above_guessing(result, key) is False]


def collapsed(result: Result) -> list[str]:
    """Learners whose most frequent prediction takes more than `COLLAPSED_ABOVE` of all, in the usual order."""
    shares = {key: finite(predictions.majority_share) for key, predictions in result.predictions.items()}
    return learners_in_order(key for key, share in shares.items() if share is not None and share > COLLAPSED_ABOVE)


def guessing_phrase(result: Result) -> str:
    """`both guessing (50 %) and always answering “yes”, the most common label among the reported queries (64 %)`."""
    chance, majority = chance_level(result), majority_level(result)
    parts = [f"guessing ({percent(chance)})"] if chance is not None else []
    if majority is not None:
        which = "right most often" if is_free_text(result) else "the most common label"
        parts.append(f"{majority_answer(result)}, {which} among the reported queries ({percent(majority)})")
    return f"both {' and '.join(parts)}" if len(parts) > 1 else "".join(parts)


def guessing_sentences(result: Result) -> list[str]:
    """Which learners are not shown to have learned the task; empty where all are, or where it is unknown."""
    level = not_above_guessing(result)
    sentences = []
    if majority_level(result) == 1.0 and result.baselines is not None and result.baselines.n > 1:
        sentences.append(
            f"Every reported query has the same right answer, so {majority_answer(result)} is right on all of them: "
            "accuracy here does not show whether anything was learned."
        )
    elif level:
        judged = [key for key in result.accuracy if above_guessing(result, key) is not None]
        if len(level) == len(judged) > 1:
            sentences.append(f"No learner is shown to answer better than {guessing_phrase(result)}.")
        else:
            be, have = ("is", "it has") if len(level) == 1 else ("are", "they have")
            sentences.append(
                f"{capital(learner_nouns(level))} {be} not significantly more accurate than "
                f"{guessing_phrase(result)}, so there is no evidence that {have} learned the task."
            )
    return sentences

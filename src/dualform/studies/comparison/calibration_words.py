"""Sentences on whether learners are right as often as their probabilities say."""

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_noun, learner_nouns, learners_in_order
from dualform.report.phrases import listed
from dualform.result import Classification, Result


def calibration_sentences(result: Result) -> list[str]:
    """Which learners are overconfident, underconfident or neither; empty without scores of probabilities."""
    over: list[str] = []
    under: list[str] = []
    neither: list[str] = []
    for key in learners_in_order(result.classification):
        scores = result.classification[key]
        error, confidence, accuracy = known(scores.ece.ci95), mean_confidence(scores), finite(scores.accuracy.mean)
        if error is None or confidence is None or accuracy is None:
            continue
        if error[0] <= 0:
            neither.append(key)
        else:
            named = f"{learner_noun(key)} ({percent(confidence, 0)} sure, {percent(accuracy, 0)} right)"
            (over if confidence > accuracy else under).append(named)
    sentences = []
    if over:
        sentences.append(f"Overconfident, so right less often than their probabilities say: {listed(over)}.")
    if under:
        sentences.append(f"Underconfident, so right more often than their probabilities say: {listed(under)}.")
    if neither:
        sentences.append(
            f"No calibration error was found for {learner_nouns(neither)}: it is no larger than chance explains."
        )
    return sentences


def mean_confidence(scores: Classification) -> float | None:
    """Mean probability of the predicted label; None without answers."""
    pairs = [(finite(each.confidence), each.accuracy.n) for each in scores.reliability]
    total = sum(n for _, n in pairs)
    return sum((confidence or 0.0) * n for confidence, n in pairs) / total if total else None

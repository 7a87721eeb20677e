"""Glossary entries that several studies share."""

from collections.abc import Iterable

from dualform.report.palette import learner_style, learners_in_order

DEMONSTRATION = ("demonstration", "A labelled example that every learner may use, in the prompt or as training data.")
SEEDS_AND_QUERIES = (
    "95 % interval",
    "Bootstrap over seeds and, independently, over the queries that all seeds share. Where two intervals overlap, the "
    "difference does not count as significant.",
)


def learner_terms(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Each learner's title and meaning, in the usual order."""
    return [(learner_style(key).title, learner_style(key).meaning) for key in learners_in_order(dict.fromkeys(keys))]

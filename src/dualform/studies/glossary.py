"""Terms that the pages of several studies explain."""

from collections.abc import Iterable

from dualform.report.palette import learner_style, learners_in_order

DEMONSTRATION = ("demonstration", "A labelled example that every learner may use: in the prompt or as training data.")
SEEDS_AND_QUERIES = (
    "95 % interval",
    "Bootstrap over seeds and, independently, over the queries that all seeds share. Two that overlap are not told "
    "apart here.",
)


def learner_terms(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Each learner's title and meaning, in the usual order."""
    return [(learner_style(key).title, learner_style(key).meaning) for key in learners_in_order(dict.fromkeys(keys))]

"""What a selection study found, as in its `result.json`."""

from typing import Literal

from dualform.result import Baselines, Estimate, Learner, Measure, Number, QuerySet, Record, Result


class ChoiceScore(Record):
    """What one way of choosing does for one learner."""

    selected: Estimate
    """Accuracy of what was chosen, on the queries that it was chosen on."""
    untouched: Estimate
    """Its accuracy on queries on which nothing was chosen."""
    optimism: Estimate
    """The first less the second; its interval repeats the choice in every resample."""
    tokens: Number
    """Tokens read in search of it; a backward pass counts as two forward ones, and no search as 0."""
    trials: int
    """How many were compared; 1 is no search."""


class Choice(Record):
    """One way of choosing: by whose accuracy, on which queries."""

    named_by = ("select", "select_on")

    select: str
    """By whose accuracy: `icl`, `ft`, `both` or `none` (the first seed, the order drawn and the middle rate)."""
    select_on: str
    """On which queries: `validation` or `report`; for `none`, `report` stands in."""
    seed: int
    """Demonstration seed chosen."""
    order: int
    """Order of ICL's demonstrations chosen."""
    learning_rate: float
    """FT's learning rate chosen."""
    scores: dict[Learner, ChoiceScore]
    """Scores of `icl` and `ft`."""
    similarity: dict[Measure, Estimate]
    """Value of each measure for the seed and rate chosen, ICL in the order drawn, which is FT's; `rec2ftp` is that of
    the very trials chosen."""


class Selection(Record):
    """What `dualform selection` found."""

    choices: list[Choice]
    """`none`, then `icl`, `ft` and `both`, each on `validation` and on `report`."""
    similarity_range: dict[Measure, Estimate]
    """Highest less lowest value of each measure over the choices, never below 0; its interval resamples queries, the
    choices stay."""
    n_validation: int
    """Queries to choose on, not reported."""
    n_report: int
    """Reported queries, to choose on as the paper does."""
    n_untouched: int
    """Queries on which nothing was chosen."""
    baselines: dict[QuerySet, Baselines] = {}
    """Chance and majority baseline of `validation`, `report` and `untouched`."""


class SelectionResult(Result):
    """What a selection study found."""

    study: Literal["selection"] = "selection"
    """Always `selection`."""
    selection: Selection | None = None
    """What a selection study found."""

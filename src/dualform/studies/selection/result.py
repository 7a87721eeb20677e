"""The schema of a selection study's `result.json`.

The study measures how much accuracy and similarity depend on what was chosen, by which accuracy and on which queries. A
trial is one run of a learner: ICL with one seed and order of the demonstrations, FT with one seed and learning rate. A
choice takes the seed, order and rate of the best trials.
"""

from typing import Literal

from dualform.result import Baselines, Estimate, Learner, Measure, Number, QuerySet, Record, Result


class ChoiceScore(Record):
    """For one choice and one learner: the accuracy of the chosen settings, and the cost of the search for them."""

    selected: Estimate
    """Accuracy of the chosen settings on the queries by which they were chosen."""
    untouched: Estimate
    """Accuracy of the chosen settings on queries that were not used for any choice."""
    optimism: Estimate
    """`selected` minus `untouched`. For the interval, the choice is repeated in every bootstrap resample of queries."""
    tokens: Number
    """Tokens read by all trials; a backward pass counts as two forward passes. 0 if nothing was chosen."""
    trials: int
    """Number of trials compared; 1 if nothing was chosen."""


class Choice(Record):
    """Settings chosen by one accuracy on one set of queries."""

    named_by = ("select", "select_on")

    select: str
    """Accuracy by which the choice is made: `icl`, `ft`, `both` (their mean) or `none` (no choice: first seed, order
    drawn, middle rate)."""
    select_on: str
    """Queries by which the choice is made: `validation` or `report`; always `report` for `none`."""
    seed: int
    """Chosen demonstration seed."""
    order: int
    """Chosen order of ICL's demonstrations."""
    learning_rate: float
    """Chosen learning rate of FT."""
    scores: dict[Learner, ChoiceScore]
    """Scores of `icl` and `ft`."""
    similarity: dict[Measure, Estimate]
    """Each measure for the chosen seed and rate, with ICL in the order drawn, which is also FT's; `rec2ftp` uses ICL in
    the chosen order."""


class Selection(Record):
    """Results of `dualform selection`."""

    choices: list[Choice]
    """`none`, then `icl`, `ft` and `both`, each on `validation` and on `report`."""
    similarity_range: dict[Measure, Estimate]
    """Highest minus lowest value of each measure over the choices, never negative. For the interval, queries are
    resampled, but the choices are not repeated."""
    n_validation: int
    """Number of validation queries, used for choices only."""
    n_report: int
    """Number of reported queries. Choices on `report` are made by these same queries, as in the paper."""
    n_untouched: int
    """Number of queries that were not used for any choice."""
    baselines: dict[QuerySet, Baselines] = {}
    """Chance and majority baseline of `validation`, `report` and `untouched`."""


class SelectionResult(Result):
    """Result of a selection study."""

    study: Literal["selection"] = "selection"
    """Always `selection`."""
    selection: Selection | None = None
    """Results of the selection study."""

"""The schema of a selection study's `result.json`."""

from typing import Literal

from dualform.result import Baselines, Estimate, Learner, Measure, Number, QuerySet, Record, Result


class ChoiceScore(Record):
    """The accuracy of one choice's settings for one learner, and the cost of the search."""

    selected: Estimate
    """Accuracy of the chosen settings on the queries by which they were chosen."""
    untouched: Estimate
    """Accuracy of the chosen settings on queries that were not used for any choice."""
    optimism: Estimate
    """`selected` minus `untouched`; the choice is repeated in every resample for the interval."""
    tokens: Number
    """Tokens read by the search; a backward pass counts as two forward passes; 0 without a search."""
    trials: int
    """Number of trials compared; 1 without a search."""


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
    """Highest minus lowest value of each measure over the choices, never negative; queries are resampled for the
    interval, with fixed choices."""
    n_validation: int
    """Number of validation queries, used for choices only."""
    n_report: int
    """Number of reported queries, by which choices are also made, as in the paper."""
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

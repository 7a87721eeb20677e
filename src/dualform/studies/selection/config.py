"""Settings of a selection study, validated before a model is loaded."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from dualform.configuration import MOST_ORDERS
from dualform.option import Option
from dualform.seeds import Seeds
from dualform.studies.settings import OneModelConfig


class SelectionConfig(OneModelConfig):
    """The seeds, orders and rates to choose among, and the numbers of queries for choosing and for evaluating.

    Every rate of `rates` is tried on every seed; early stopping (`patience`) does not apply.
    """

    without_options: ClassVar[frozenset[str]] = frozenset({"label_rule", "patience", "quantize"})

    seeds: Annotated[Seeds, Option(single="--seed")] = tuple(range(1, 9))
    """Demonstration seeds to choose among, such as 1..8 or 1,4,9. A single number is that seed alone."""
    orders: Annotated[int | None, Option(null="as many as FT's budget pays for")] = Field(
        default=None, ge=1, le=MOST_ORDERS
    )
    """Orders of each set in which ICL is tried, including the order drawn."""
    limit: Annotated[int | None, Option(null="half of the split")] = Field(default=200, ge=1)
    """Number of report queries, drawn at random from the report split with seed 0."""
    untouched_limit: Annotated[int | None, Option(null="all of the rest")] = Field(default=400, ge=1)
    """Number of untouched queries: further queries of the report split, not used for any choice."""
    similarity_limit: Annotated[int | None, Option(null="all")] = Field(default=64, ge=1)
    """Number of report queries on which similarity is measured."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.k == 0:
            problems.append("k 0 leaves no demonstrations to choose: set k to at least 1")
        return problems

    @property
    def grid(self) -> tuple[float, ...]:
        """FT's learning rates in ascending order, without duplicates."""
        return tuple(sorted(set(self.rates)))


def selection_config(model: str, task: str, **settings: Any) -> SelectionConfig:
    """A validated configuration of a selection study; see `StudyConfig.from_settings`."""
    return SelectionConfig.from_settings(model=model, task=task, **settings)

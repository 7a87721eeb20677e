"""Settings of a selection study, checked before a model loads."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from dualform.configuration import MOST_ORDERS
from dualform.option import Option
from dualform.seeds import Seeds
from dualform.studies.settings import OneModelConfig


class SelectionConfig(OneModelConfig):
    """What there is to choose among, on how many queries choices are made, and on how many others they are tested.

    Every rate of `rates` is tried on every seed: a search that stops early (`patience`) would not spend its budget.
    """

    without_options: ClassVar[frozenset[str]] = frozenset({"label_rule", "patience", "quantize"})

    seeds: Annotated[Seeds, Option(single="--seed")] = tuple(range(1, 9))
    """Demonstration seeds to choose among, such as 1..8 or 1,4,9. A number by itself is that seed alone."""
    orders: Annotated[int | None, Option(null="as many as FT's budget pays for")] = Field(
        default=None, ge=1, le=MOST_ORDERS
    )
    """Orders of each set in which ICL is tried, the drawn one included."""
    limit: Annotated[int | None, Option(null="half of the split")] = Field(default=200, ge=1)
    """Report queries, on which choices flatter. They are drawn at random from the report split with seed 0."""
    untouched_limit: Annotated[int | None, Option(null="all of the rest")] = Field(default=400, ge=1)
    """Queries of the rest of the report split, on which nothing is chosen."""
    similarity_limit: Annotated[int | None, Option(null="all")] = Field(default=64, ge=1)
    """Report queries on which similarity is measured."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.k == 0:
            problems.append("k 0 leaves nothing to choose among: ask for at least one demonstration")
        return problems

    @property
    def grid(self) -> tuple[float, ...]:
        """FT's rates, each once, ascending."""
        return tuple(sorted(set(self.rates)))


def selection_config(model: str, task: str, **settings: Any) -> SelectionConfig:
    """A checked configuration of a selection study, see `StudyConfig.from_settings`."""
    return SelectionConfig.from_settings(model=model, task=task, **settings)

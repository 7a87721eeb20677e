"""Settings of a stability study, validated before a model is loaded."""

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field

from dualform.configuration import MOST_ORDERS
from dualform.option import DATA, MACHINE, Option
from dualform.seeds import Seeds
from dualform.studies.settings import StudyConfig, problems_with_rates


class StabilityConfig(StudyConfig):
    """Models, and the demonstration sets and orders on which each learner is run."""

    without_options: ClassVar[frozenset[str]] = frozenset({"label_rule", "probe"})

    models: Annotated[tuple[str, ...], Option(MACHINE, argument=1)]
    """smollm2-135m, gemma3-270m, folders, .gguf files, hub ids."""
    task: Annotated[str, Option(DATA)]
    """reviews, sst2, a data file, a YAML file, a folder, a hub name. `dualform tasks` lists the names known."""
    seeds: Annotated[Seeds, Option(single="--seed")] = tuple(range(1, 21))
    """Seeds of the demonstration sets, such as 1..20 or 1,4,9. A single number is that seed alone."""
    orders: int = Field(default=10, ge=1, le=MOST_ORDERS)
    """Orders of each set in which ICL is run, including the order drawn."""
    ft_seeds: int = Field(default=10, ge=0)
    """Number of sets, starting with the first, on which FT is run too; 0 for none."""
    ft_orders: int = Field(default=2, ge=1, le=MOST_ORDERS)
    """Orders of each of these sets in which FT is run."""
    label_seeds: int = Field(default=10, ge=0)
    """Number of sets, starting with the first, that are also run with random and with flipped labels; 0 for none. They
    keep the order drawn."""
    further_rates: tuple[float, ...] = ()
    """Further learning rates at which FT is run besides the chosen one, since its stability depends on the rate."""
    limit: Annotated[int | None, Option(null="all")] = Field(default=100, ge=1)
    """Number of reported queries, drawn at random from the report split with seed 0."""

    @property
    def model(self) -> str:
        """The names of all models, joined by commas."""
        return ", ".join(self.models)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of all models."""
        return self.models

    def _reason_against_quantize(self) -> str | None:
        return "with ft, which changes weights: leave ft out with --ft-seeds 0" if self.ft_seeds else None

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not self.models or len(set(self.models)) != len(self.models):
            problems.append(f"models {list(self.models)}: give at least one model, and each only once")
        if self.further_rates:
            problems += problems_with_rates("further_rates", self.further_rates)
        if self.label_rule != "true":
            problems.append(
                f"label_rule {self.label_rule} cannot be set: this study always runs true, random and flipped labels"
            )
        if 0 < self.k < 10 and max(self.orders, self.ft_orders) > math.factorial(self.k):
            problems.append(
                f"orders {max(self.orders, self.ft_orders)}: {self.k} demonstrations have only "
                f"{math.factorial(self.k)} orders"
            )
        if self.k == 0:
            problems.append("k 0 leaves no demonstrations to draw or reorder: set k to at least 1")
        return problems


def stability_config(models: tuple[str, ...], task: str, **settings: Any) -> StabilityConfig:
    """A validated configuration of a stability study; see `StudyConfig.from_settings`."""
    return StabilityConfig.from_settings(models=models, task=task, **settings)

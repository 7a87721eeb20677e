"""Settings of a selection study, checked before a model loads."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from dualform.configuration import MOST_ORDERS, checked
from dualform.option import MACHINE, Option
from dualform.seeds import Seeds
from dualform.studies.settings import (
    StudyConfig,
    given_settings,
    problems_with_rates,
    problems_with_seeds,
    read_study_settings,
)


class SelectionConfig(StudyConfig):
    """What there is to choose among, and on how many queries choices are made and held against.

    Every rate of `rates` is tried on every seed: a search that stops early (`patience`) would not spend its budget.
    """

    without_options: ClassVar[frozenset[str]] = frozenset({"label_rule", "patience", "quantize"})

    model: Annotated[str, Option(MACHINE, argument=1)]
    """smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id."""
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_with_seeds("seeds", self.seeds) + problems_with_rates("rates", self.rates)
        if self.k == 0:
            problems.append("k 0 leaves nothing to choose among: ask for at least one demonstration")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def grid(self) -> tuple[float, ...]:
        """FT's rates, each once, ascending."""
        return tuple(sorted(set(self.rates)))


def selection_config(model: str, task: str, **settings: Any) -> SelectionConfig:
    """A checked configuration.

    Args:
        model: See `SelectionConfig.model`.
        task: See `StudyConfig.task`.
        settings: Fields of `SelectionConfig`; None means not given, and 0 for a limit means none.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    return checked(SelectionConfig, {**given_settings(settings), "model": model, "task": task})


def read_selection_config(path: Path, *, trust_remote_code: bool = False) -> SelectionConfig:
    """A configuration from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        trust_remote_code: Run code that comes with the checkpoint; the file cannot allow it.

    Raises:
        ConfigError: The file is missing, no YAML, or says something that cannot be used.
    """
    return checked(SelectionConfig, read_study_settings(path, trust_remote_code))

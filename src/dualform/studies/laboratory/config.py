"""Settings of the laboratory's studies, checked before anything is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.configuration import checked
from dualform.option import TRAINING, Option, parse_names
from dualform.seeds import Seeds
from dualform.studies.settings import given_settings, problems_with_seeds

LabName = Literal["constructed", "trained", "phases", "layers", "shift"]
LAB_NAMES: tuple[LabName, ...] = ("constructed", "trained", "phases", "layers", "shift")
"""Studies in the order in which they are run and reported."""


class RegressionConfig(BaseModel):
    """Settings of the laboratory: studies, seeds, size of the task and length of training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    studies: Annotated[tuple[LabName, ...], Option(names=("--study",), repeated=True, read=parse_names)] = Field(
        default=LAB_NAMES, min_length=1
    )
    """Studies to run: constructed, trained, phases, layers, shift. Repeat the option or separate names by commas."""
    seeds: Annotated[Seeds, Option(single="--seed")] = (1, 2, 3, 4, 5)
    """Seeds, such as 1..7 or 1,4,9. Each draws new initial weights and tasks."""
    dimension: int = Field(default=10, ge=2, le=64)
    """Dimension of the inputs."""
    points: int = Field(default=10, ge=2, le=256)
    """Number of examples in context."""
    steps: Annotated[float, Option(TRAINING)] = Field(default=1.0, gt=0, le=100)
    """Training steps, as a multiple of each study's default; 0.1 for a quick look."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_with_seeds("seeds", self.seeds)
        if len(set(self.studies)) != len(self.studies):
            problems.append(f"studies {list(self.studies)} must be different")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def scaled(self, steps: int) -> int:
        """Training steps after the setting `steps` is applied to a study's default; at least 1."""
        return max(1, round(steps * self.steps))


def regression_config(**settings: Any) -> RegressionConfig:
    """Settings from named values; those that are None keep their default.

    Raises:
        ConfigError: If a setting is invalid. The message names every such setting with its value.
    """
    return checked(RegressionConfig, given_settings(settings))

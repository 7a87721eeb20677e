"""Settings of the laboratory's studies, checked before anything is trained."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.configuration import checked
from dualform.seeds import Seeds
from dualform.studies.settings import given_settings, problems_with_seeds

LabName = Literal["constructed", "trained", "phases", "layers", "shift"]
LAB_NAMES: tuple[LabName, ...] = ("constructed", "trained", "phases", "layers", "shift")
"""In the order in which they are run and read."""


class RegressionConfig(BaseModel):
    """Which studies, over which seeds, and how long models are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    studies: tuple[LabName, ...] = Field(default=LAB_NAMES, min_length=1)
    """`constructed`, `trained`, `phases`, `layers`, `shift`."""
    seeds: Seeds = (1, 2, 3, 4, 5)
    """Each draws initial weights and tasks anew."""
    dimension: int = Field(default=10, ge=2, le=64)
    """Of inputs."""
    points: int = Field(default=10, ge=2, le=256)
    """Examples in context."""
    steps: float = Field(default=1.0, gt=0, le=100)
    """Training steps, as a multiple of what each study takes by itself; below 1 for a quick look."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_with_seeds("seeds", self.seeds)
        if len(set(self.studies)) != len(self.studies):
            problems.append(f"studies {list(self.studies)} must be different")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def scaled(self, steps: int) -> int:
        """Steps of a training that takes `steps` by itself; one at least."""
        return max(1, round(steps * self.steps))


def regression_config(**settings: Any) -> RegressionConfig:
    """Settings from named values; those that are None keep their default.

    Raises:
        ConfigError: Names every setting that is wrong, with its value.
    """
    return checked(RegressionConfig, given_settings(settings))

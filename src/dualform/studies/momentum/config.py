"""Settings of a comparison of momentum attention with ordinary attention, checked before anything is trained.

Momentum attention adds to each head's output a sum of past values, in which the weight of a value shrinks by the factor
eta with each further token. An arm of the comparison is one kind of attention, for which one model is trained for each
seed; `vanilla` is the arm without momentum.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dualform.configuration import MOST_RESAMPLES, checked
from dualform.errors import ConfigError
from dualform.option import DATA, MACHINE, TRAINING, Option
from dualform.seeds import Seeds
from dualform.studies.settings import given_settings, problems_with_seeds
from dualform.studies.study import StudyInputs
from dualform.yaml_text import parse_yaml

if TYPE_CHECKING:
    from dualform.lab.recipe import Recipe

ArmKind = Literal[
    "vanilla",
    "momentum",
    "normalised",
    "learned",
    "convolution",
    "linear",
    "linear-momentum",
    "heavy-ball",
    "nesterov",
]
Control = Literal["normalised", "learned", "convolution", "linear", "linear-momentum", "heavy-ball", "nesterov"]
LINEAR: tuple[ArmKind, ...] = ("linear", "linear-momentum", "heavy-ball", "nesterov")
"""Kinds without softmax; the first is the baseline of the others."""


@dataclass(frozen=True)
class Arm:
    """A kind of attention with which models are trained: `vanilla` (no momentum), or one that is compared with it."""

    kind: ArmKind
    eta: float | None = None
    """Decay of momentum for each token, in (0, 1); None for kinds without one."""

    @property
    def name(self) -> str:
        """Name in results, such as `momentum 0.3`."""
        # All digits of eta, because runs and folders are named after it.
        return self.kind if self.eta is None else f"{self.kind} {self.eta}"

    @property
    def baseline(self) -> "Arm | None":
        """The arm that this one is compared with; None for a baseline."""
        if self.kind in ("vanilla", "linear"):
            return None
        return Arm("linear") if self.kind in LINEAR else Arm("vanilla")


def read_recipe_fields(given: Sequence[str] | None) -> dict[str, Any]:
    """Fields of a recipe from `name=value` texts; values are YAML, and numbers may be written as 2e6.

    Raises:
        ConfigError: If a text is not such a pair, a field is given twice, or a recipe has no such field.
    """
    from dualform.lab.recipe import Recipe

    fields: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name or name in fields:
            raise ConfigError(f"--set {text!r} should look like tokens=2e6, each field once")
        if name not in Recipe.model_fields:
            raise ConfigError(f"--set {text!r}: a recipe has no field {name!r}, but {', '.join(Recipe.model_fields)}")
        # YAML reads 2e6 as text.
        number = re.fullmatch(r"(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value)
        fields[name] = float(value) if number else parse_yaml(value, ConfigError, f"--set {name}: not a value in YAML")
    return fields


class TrainingSettings(BaseModel):
    """Settings that every training has: a recipe, its text and a device."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    corpus: Annotated[tuple[str, ...], Option(DATA, argument=1)] = Field(min_length=1)
    """Text files (.txt, .jsonl, .gz) to train on, or one hub data set `owner/name[:config]`, of which the split `train`
    is read."""
    recipe: Annotated[str, Option(TRAINING)] = "tiny"
    """tiny, small, 124m, 350m, or a YAML file."""
    settings: Annotated[dict[str, Any], Option(TRAINING, ("--set",), repeated=True, read=read_recipe_fields)] = {}
    """Override a field of the recipe, such as tokens=2e6; repeat the option for more. In a comparison `seed` and
    `data_seed` are set by each run and may not be overridden."""
    device: Annotated[Literal["auto", "cpu"], Option(MACHINE)] = "auto"
    """auto (a GPU if there is one), or cpu."""


class TrainingConfig(TrainingSettings):
    """Settings for training a single model."""

    validation: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = ()
    """Text for validation losses during training. Of a data set on the hub, the split `validation` is read."""
    eta: Annotated[float, Option(TRAINING)] = 0.0
    """Decay of momentum for each token; 0 is vanilla."""
    learned: Annotated[bool, Option(TRAINING)] = False
    """Learn an eta for each head, starting at --eta."""
    normalised: Annotated[bool, Option(TRAINING)] = False
    """Normalise the weights of past values to sum to 1."""


class MomentumConfig(TrainingSettings):
    """Settings of a comparison: arms, texts, seeds and tests."""

    validation: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = Field(min_length=1)
    """Text for validation losses during training. Of a data set on the hub, the split `validation` is read."""
    test: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = Field(min_length=1)
    """Text on which perplexities are reported. Of a data set on the hub, the split `test` is read."""
    data_dir: Annotated[str | None, Option(DATA)] = None
    """Folder with data sets; $DUALFORM_DATA if not given."""

    etas: Annotated[tuple[float, ...], Option(TRAINING)] = (0.1, 0.3, 0.5, 0.9)
    """Decays of momentum; vanilla (eta 0) is always trained."""
    controls: Annotated[tuple[Control, ...], Option(TRAINING)] = ("convolution",)
    """Further arms: normalised, learned, convolution, linear, linear-momentum, heavy-ball, nesterov; or none. The
    weights of past values sum to 1 (`normalised`), the decay is `learned`, or the sum is replaced by a `convolution` of
    values; linear attention is plain (`linear`) or has the sum of values (`linear-momentum`) or the momentum of
    gradient descent (`heavy-ball`, `nesterov`)."""
    control_eta: Annotated[float, Option(TRAINING)] = 0.3
    """Decay of the controls; for learned the initial one."""

    seeds: Annotated[Seeds, Option(single="--seed")] = (1, 2, 3, 4, 5)
    """Seeds, such as 1..7 or 1,4,9. Each draws new initial weights and a new order of the text, the same for all
    arms."""
    test_tokens: int = Field(default=1 << 18, ge=1)
    """Largest number of tokens of test text at each length."""
    tasks: tuple[str, ...] = ()
    """Tasks on which the trained models are tested in context, such as sst5,mr,cb."""
    k: Annotated[int, Option(names=("-k", "--k"))] = Field(default=4, ge=0)
    """Demonstrations in a task's prompt; fewer if the training length has no room for them."""
    limit: Annotated[int | None, Option(null="all")] = Field(default=200, ge=1)
    """Largest number of queries of each task."""

    regress: bool = False
    """Also train on in-context regression."""
    regression_steps: int = Field(default=1000, ge=1)
    """Training steps for in-context regression."""
    pretrained: tuple[str, ...] = ()
    """Models that were trained without momentum and get it here, such as smollm2-135m."""
    pretrained_etas: tuple[float, ...] = (0.1, 0.3)
    """Decays of momentum for these models."""
    pretrained_steps: int = Field(default=30, ge=0)
    """Steps of a short finetune of these models, with and without momentum; 0 for none."""

    resamples: int = Field(default=1000, ge=10, le=MOST_RESAMPLES)
    """Bootstrap resamples for intervals of accuracy."""

    @field_validator("controls", mode="before")
    @classmethod
    def _no_controls(cls, given: Any) -> Any:
        return () if list(given or ()) == ["none"] else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_with_seeds("seeds", self.seeds)
        if wrong := [eta for eta in self.etas if not 0 < eta < 1]:
            problems.append(f"etas {wrong} must lie between 0 and 1; eta 0 is vanilla, which is always trained")
        if not 0 < self.control_eta < 1:
            problems.append(f"control_eta {self.control_eta} must lie between 0 and 1")
        if wrong := [eta for eta in self.pretrained_etas if not 0 < eta < 1]:
            problems.append(
                f"pretrained_etas {wrong} must lie between 0 and 1; each model is always measured without momentum too"
            )
        for name in ("etas", "controls", "tasks", "pretrained", "pretrained_etas"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                problems.append(f"{name} {list(given)} must be different")
        if own := sorted({"seed", "data_seed"} & self.settings.keys()):
            problems.append(f"settings may not contain {', '.join(own)}, which each run takes from seeds")
        if self.settings:
            from dualform.lab.recipe import Recipe

            if unknown := sorted(self.settings.keys() - Recipe.model_fields.keys()):
                problems.append(f"settings {unknown} are not fields of a recipe: {', '.join(Recipe.model_fields)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms; each baseline comes before the arms that are compared with it."""
        arms = [Arm("vanilla"), *(Arm("momentum", eta) for eta in self.etas)]
        for control in self.controls:
            if control in LINEAR and Arm("linear") not in arms:
                arms.append(Arm("linear"))
            arm = Arm(control, None if control in ("convolution", "linear") else self.control_eta)
            if arm not in arms:
                arms.append(arm)
        return tuple(arms)

    def recipe_of(self, seed: int) -> "Recipe":
        """The recipe of one seed's runs.

        Raises:
            ConfigError: If the recipe does not exist or has invalid values.
        """
        from dualform.lab.recipe import load_recipe

        return load_recipe(self.recipe, **{**self.settings, "seed": seed, "data_seed": seed})

    def lengths(self) -> tuple[int, ...]:
        """Lengths of text at which perplexities are reported: a quarter, a half and all of the training length."""
        length = self.recipe_of(self.seeds[0]).length
        return tuple(dict.fromkeys(max(1, math.floor(length * share)) for share in (0.25, 0.5, 1.0)))


def momentum_config(**settings: Any) -> MomentumConfig:
    """Settings from named values; those that are None keep their default.

    Args:
        settings: Fields of `MomentumConfig`. A limit of 0 means no limit.

    Raises:
        ConfigError: If a setting is invalid. The message names every such setting with its value.
    """
    config = checked(MomentumConfig, given_settings(settings))
    config.recipe_of(config.seeds[0])
    return config


def reads(config: MomentumConfig) -> StudyInputs:
    """Texts, tasks and models named in the settings; data sets of the hub by name only."""
    recipe = (config.recipe,) if Path(config.recipe).suffix in (".yaml", ".yml") else ()
    texts = (*config.corpus, *config.validation, *config.test)
    return StudyInputs(config.pretrained, False, config.tasks, (*recipe, *texts))

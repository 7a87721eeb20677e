"""Settings of a comparison of momentum attention with vanilla, checked before anything is trained."""

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
"""Kinds without softmax; the first is what the others are compared with."""


@dataclass(frozen=True)
class Arm:
    """One way of attending."""

    kind: ArmKind
    eta: float | None = None

    @property
    def name(self) -> str:
        """As results call it."""
        # All digits, because it distinguishes runs and their folders.
        return self.kind if self.eta is None else f"{self.kind} {self.eta}"

    @property
    def baseline(self) -> "Arm | None":
        """What it is compared with."""
        if self.kind in ("vanilla", "linear"):
            return None
        return Arm("linear") if self.kind in LINEAR else Arm("vanilla")


def read_recipe_fields(given: Sequence[str] | None) -> dict[str, Any]:
    """Fields of a recipe from `name=value` texts; values are YAML, and numbers may be written 2e6.

    Raises:
        ConfigError: A text is no such pair, two name the same field, or a recipe has no such field.
    """
    from dualform.lab.recipe import Recipe

    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            raise ConfigError(f"--set {text!r} should look like tokens=2e6, each field once")
        if name not in Recipe.model_fields:
            raise ConfigError(f"--set {text!r}: a recipe has no field {name!r}, but {', '.join(Recipe.model_fields)}")
        # YAML takes 2e6 for a word.
        number = re.fullmatch(r"(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value)
        found[name] = float(value) if number else parse_yaml(value, ConfigError, f"--set {name}: not a value in YAML")
    return found


class TrainingSettings(BaseModel):
    """What every training has: a recipe, its text, a device."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    corpus: Annotated[tuple[str, ...], Option(DATA, argument=1)] = Field(min_length=1)
    """Text files (.txt, .jsonl, .gz) to train on, or one hub data set. Of `owner/name[:config]` on the hub, the split
    `train` is read."""
    recipe: Annotated[str, Option(TRAINING)] = "tiny"
    """tiny, small, 124m, 350m, or a YAML file."""
    settings: Annotated[dict[str, Any], Option(TRAINING, ("--set",), repeated=True, read=read_recipe_fields)] = {}
    """A field of the recipe in place of its own, such as tokens=2e6; again for more. In a comparison not `seed` and
    `data_seed`, which are those of each run."""
    device: Annotated[Literal["auto", "cpu"], Option(MACHINE)] = "auto"
    """auto (a GPU where there is one), or cpu."""


class TrainingConfig(TrainingSettings):
    """One model that is trained by itself."""

    validation: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = ()
    """Text on which losses are taken while training. Of a data set on the hub, the split `validation`."""
    eta: Annotated[float, Option(TRAINING)] = 0.0
    """Decay of momentum a token; 0 is vanilla."""
    learned: Annotated[bool, Option(TRAINING)] = False
    """Learn eta, one a head, from --eta on."""
    normalised: Annotated[bool, Option(TRAINING)] = False
    """Let the weights of the past sum to 1."""


class MomentumConfig(TrainingSettings):
    """What is trained, on what, how often, and how it is then tested."""

    validation: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = Field(min_length=1)
    """Text on which losses are taken while training. Of a data set on the hub, the split `validation`."""
    test: Annotated[tuple[str, ...], Option(DATA, repeated=True)] = Field(min_length=1)
    """Text on which perplexities are reported. Of a data set on the hub, the split `test`."""
    data_dir: Annotated[str | None, Option(DATA)] = None
    """Folder with data sets; $DUALFORM_DATA when not given."""

    etas: Annotated[tuple[float, ...], Option(TRAINING)] = (0.1, 0.3, 0.5, 0.9)
    """Decays of momentum; vanilla, eta 0, is always trained."""
    controls: Annotated[tuple[Control, ...], Option(TRAINING)] = ("convolution",)
    """Of normalised, learned, convolution, linear, linear-momentum, heavy-ball, nesterov; or none. They are further
    arms: the past's weights `normalised` to 1, a `learned` decay, a `convolution` of values, and linear attention plain
    (`linear`), with the sum of values (`linear-momentum`), with the momentum of gradient descent (`heavy-ball`,
    `nesterov`)."""
    control_eta: Annotated[float, Option(TRAINING)] = 0.3
    """Decay of the controls, where learned begins too."""

    seeds: Annotated[Seeds, Option(single="--seed")] = (1, 2, 3, 4, 5)
    """Seeds, such as 1..7 or 1,4,9. Each draws initial weights and the order of the text anew, the same for all
    arms."""
    test_tokens: int = Field(default=1 << 18, ge=1)
    """Most tokens of test text at each length."""
    tasks: tuple[str, ...] = ()
    """Tasks that the trained models are asked in context, such as sst5,mr,cb."""
    k: Annotated[int, Option(names=("-k", "--k"))] = Field(default=4, ge=0)
    """Demonstrations of a task's prompt. Fewer where the trained length has no room."""
    limit: Annotated[int | None, Option(null="all")] = Field(default=200, ge=1)
    """Queries of each task."""

    regress: bool = False
    """Train on in-context regression too."""
    regression_steps: int = Field(default=1000, ge=1)
    """Steps of the training on regression."""
    pretrained: tuple[str, ...] = ()
    """Models trained without momentum to put it into, such as smollm2-135m."""
    pretrained_etas: tuple[float, ...] = (0.1, 0.3)
    """Decays that these models get."""
    pretrained_steps: int = Field(default=30, ge=0)
    """Steps of their short finetune, with and without momentum; 0 for none."""

    resamples: int = Field(default=1000, ge=10, le=MOST_RESAMPLES)
    """Bootstrap resamples behind intervals of accuracy."""

    @field_validator("controls", mode="before")
    @classmethod
    def _no_controls(cls, given: Any) -> Any:
        return () if list(given or ()) == ["none"] else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = problems_with_seeds("seeds", self.seeds)
        if wrong := [eta for eta in self.etas if not 0 < eta < 1]:
            problems.append(f"etas {wrong} must lie between 0 and 1; eta 0 is vanilla, which is trained in any case")
        if not 0 < self.control_eta < 1:
            problems.append(f"control_eta {self.control_eta} must lie between 0 and 1")
        if wrong := [eta for eta in self.pretrained_etas if not 0 < eta < 1]:
            problems.append(f"pretrained_etas {wrong} must lie between 0 and 1; without momentum each is read anyway")
        for name in ("etas", "controls", "tasks", "pretrained", "pretrained_etas"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                problems.append(f"{name} {list(given)} must be different")
        if own := sorted({"seed", "data_seed"} & self.settings.keys()):
            problems.append(f"settings may not hold {', '.join(own)}: seeds says what each run begins with")
        if self.settings:
            from dualform.lab.recipe import Recipe

            if unknown := sorted(self.settings.keys() - Recipe.model_fields.keys()):
                problems.append(f"settings {unknown} are no fields of a recipe: {', '.join(Recipe.model_fields)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All that is trained, baselines first of their kind."""
        found = [Arm("vanilla"), *(Arm("momentum", eta) for eta in self.etas)]
        for control in self.controls:
            if control in LINEAR and Arm("linear") not in found:
                found.append(Arm("linear"))
            arm = Arm(control, None if control in ("convolution", "linear") else self.control_eta)
            if arm not in found:
                found.append(arm)
        return tuple(found)

    def recipe_of(self, seed: int) -> "Recipe":
        """The recipe of one seed's runs.

        Raises:
            ConfigError: There is no such recipe, or it has values that cannot be used.
        """
        from dualform.lab.recipe import load_recipe

        return load_recipe(self.recipe, **{**self.settings, "seed": seed, "data_seed": seed})

    def lengths(self) -> tuple[int, ...]:
        """Tokens of text at which perplexities are reported: a quarter, half and all of the trained length."""
        length = self.recipe_of(self.seeds[0]).length
        return tuple(dict.fromkeys(max(1, math.floor(length * share)) for share in (0.25, 0.5, 1.0)))


def momentum_config(**settings: Any) -> MomentumConfig:
    """A checked configuration.

    Args:
        settings: Fields of `MomentumConfig`; None means not given, and 0 for a limit means none.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    config = checked(MomentumConfig, given_settings(settings))
    config.recipe_of(config.seeds[0])
    return config


def reads(config: MomentumConfig) -> StudyInputs:
    """Texts, tasks and models that the settings name. Data sets of the hub are known by their names alone."""
    recipe = (config.recipe,) if Path(config.recipe).suffix in (".yaml", ".yml") else ()
    texts = (*config.corpus, *config.validation, *config.test)
    return StudyInputs(config.pretrained, False, config.tasks, (*recipe, *texts))

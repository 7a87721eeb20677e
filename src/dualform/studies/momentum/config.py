"""Settings of a comparison of momentum attention with vanilla, checked before anything is trained."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.configuration import MOST_RESAMPLES, checked
from dualform.seeds import Seeds
from dualform.studies.settings import given_settings, problems_with_seeds

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
        # All digits, because runs and their folders are told apart by it.
        return self.kind if self.eta is None else f"{self.kind} {self.eta}"

    @property
    def baseline(self) -> "Arm | None":
        """What it is compared with."""
        if self.kind in ("vanilla", "linear"):
            return None
        return Arm("linear") if self.kind in LINEAR else Arm("vanilla")


class MomentumConfig(BaseModel):
    """What is trained, on what, how often, and what it is then asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = "tiny"
    """A recipe that dualform ships (tiny, small, 124m, 350m), or a YAML file of one's own."""
    settings: dict[str, Any] = {}
    """Fields of the recipe in place of its own; `seed` and `data_seed` are those of each run."""
    corpus: tuple[str, ...] = Field(min_length=1)
    """Text files, or the split `train` of a data set of the hub (`owner/name[:config]`), to train on."""
    validation: tuple[str, ...] = Field(min_length=1)
    """Text on which losses are taken while training; of the hub, the split `validation`."""
    test: tuple[str, ...] = Field(min_length=1)
    """Text on which perplexities are reported; of the hub, the split `test`."""
    test_tokens: int = Field(default=1 << 18, ge=1)
    """Most tokens of test text at each length."""

    etas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.9)
    """Decays of momentum; vanilla, eta 0, is always trained."""
    controls: tuple[Control, ...] = ("convolution",)
    """Further arms: `normalised`, `learned`, `convolution` (of values), and linear attention plain (`linear`), with the
    sum of values (`linear-momentum`), with the momentum of gradient descent (`heavy-ball`, `nesterov`)."""
    control_eta: float = 0.3
    """Decay of those, where `learned` begins too."""
    seeds: Seeds = (1, 2, 3, 4, 5)
    """Each draws initial weights and the order of the text anew, the same for all arms."""

    tasks: tuple[str, ...] = ()
    """Tasks on which the trained models are asked in context."""
    data_dir: str | None = None
    """Folder with data sets."""
    k: int = Field(default=4, ge=0)
    """Demonstrations of a task's prompt; fewer where the trained length has no room."""
    limit: int | None = Field(default=200, ge=1)
    """Queries of each task; null for all."""

    regress: bool = False
    """Train on in-context regression too."""
    regression_steps: int = Field(default=1000, ge=1)
    """Steps of that training."""
    pretrained: tuple[str, ...] = ()
    """Models that were trained without, to put momentum into."""
    pretrained_etas: tuple[float, ...] = (0.1, 0.3)
    """Decays that these get."""
    pretrained_steps: int = Field(default=30, ge=0)
    """Steps of the short finetune, with and without; 0 for none."""

    device: Literal["auto", "cpu"] = "auto"
    """auto: a GPU where there is one."""
    resamples: int = Field(default=1000, ge=10, le=MOST_RESAMPLES)
    """Bootstrap resamples behind intervals of accuracy."""

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

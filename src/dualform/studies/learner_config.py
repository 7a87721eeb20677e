"""The settings of learners, which all studies that run learners from the registry share."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from dualform.configuration import MOST_TEXTS
from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS, Learner
from dualform.learners.inner_splits import Selection
from dualform.learners.training_settings import LoraSettings, TrainingSettings
from dualform.option import PROMPTING, TRAINING, Option
from dualform.registry import Registry
from dualform.studies.fold_settings import FoldSettings
from dualform.studies.settings import OneModelConfig, problems_with_rates

CLASSIC = ("zsl", "icl", "ft", "lora", "probe", "fold")
"""The learners of a comparison by default."""

MOST_SHOWN = 32
"""Demonstrations in the prompt, unless a budget has fewer labels or the settings say otherwise."""

ONE_PASS_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates tried for lora with the recipe one-pass."""


class LearnersConfig(OneModelConfig):
    """Settings of a study that runs learners from the registry on one model."""

    learners: Annotated[tuple[str, ...], Option(default="zsl,icl,ft,lora,probe,fold")] = CLASSIC
    """Of those that `dualform learners` lists. Similarity needs zsl, icl and ft. Another package adds a learner by an
    entry point in `dualform.learners`."""
    labels: int | None = Field(default=None, ge=1)
    """Give every learner this many labels and nothing else: settings are chosen inside them. Demonstrations are then
    the first of a shuffle, because balanced ones would need the labels of others, and at most 32 of them are in the
    prompt. Not given: learners see k demonstrations, and settings are chosen on the selection split."""
    choose_inside: Selection = "cross-validation"
    """Choose settings inside a budget of labels by cross-validation or prequential. cross-validation holds out each
    fifth of the labels in turn; prequential (arXiv:2512.19879) predicts the labels block by block from those before,
    and trains less."""
    training: TrainingSettings = TrainingSettings()
    """How lora, full and bitfit are trained."""
    lora: LoraSettings = LoraSettings()
    """LoRA's adapters."""
    lora_rates: Annotated[tuple[float, ...], Option(TRAINING)] = (5e-4,)
    """Learning rates tried for lora (AdamW). With the recipe one-pass: 3e-5, 1e-4, 3e-4 and 1e-3."""
    full_rates: Annotated[tuple[float, ...], Option(TRAINING)] = (2e-5,)
    """Learning rates tried for full (AdamW)."""
    bitfit_rates: Annotated[tuple[float, ...], Option(TRAINING)] = (1e-3,)
    """Learning rates tried for bitfit (AdamW)."""
    knn_neighbours: Annotated[int, Option(PROMPTING)] = Field(default=8, ge=1)
    """Demonstrations that knn retrieves for each query, from all labelled examples of the seed."""
    ensemble_orders: Annotated[int, Option(PROMPTING)] = Field(default=4, ge=1)
    """Orders of the demonstrations over which icl_ensemble averages."""
    batch_texts: Annotated[int, Option(PROMPTING)] = Field(default=64, ge=1, le=MOST_TEXTS)
    """Unlabelled texts of the train split by which icl_batch calibrates its answers."""
    fold: FoldSettings = FoldSettings()
    """How the prompt is folded into the weights."""

    @property
    def label_budget(self) -> int | None:
        """See `labels`."""
        return self.labels

    def grid_of(self, learner: Learner) -> tuple[float, ...]:
        """Learning rates to search for a learner with a grid.

        Raises:
            ConfigError: The setting that the learner names is not a list of learning rates.
        """
        grid = getattr(self, learner.grid or "", None)
        if not isinstance(grid, tuple) or not all(isinstance(rate, float) for rate in grid):
            raise ConfigError(
                f"the learner {learner.name} takes its learning rates from the setting {learner.grid!r}, which is not "
                "a list of learning rates: name a setting such as rates"
            )
        return grid

    @model_validator(mode="before")
    @classmethod
    def _adjust_to_labels(cls, given: Any) -> Any:
        """With a budget of labels, defaults that would need others are replaced."""
        if not isinstance(given, dict) or not isinstance(labels := given.get("labels"), int):
            return given
        return {**cls._defaults_with_labels(labels), **given}

    @model_validator(mode="before")
    @classmethod
    def _adjust_to_recipe(cls, given: Any) -> Any:
        """One pass at a constant rate needs a search."""
        lora = given.get("lora") if isinstance(given, dict) else None
        recipe = lora.get("recipe") if isinstance(lora, dict) else getattr(lora, "recipe", None)
        return {"lora_rates": ONE_PASS_RATES, **given} if recipe == "one-pass" else given

    @classmethod
    def _defaults_with_labels(cls, labels: int) -> dict[str, Any]:
        """Defaults of other settings with a budget of labels."""
        return {"balanced": False, "k": min(labels, MOST_SHOWN)}

    @field_validator("learners")
    @classmethod
    def _check_learners(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return require_entries(LEARNERS, given)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        for name in ("lora_rates", "full_rates", "bitfit_rates"):
            problems += problems_with_rates(name, getattr(self, name))
        if not self.learners or len(set(self.learners)) != len(self.learners):
            problems.append(f"learners {list(self.learners)} must be different, at least one")
        if self.labels is not None:
            if self.balanced:
                problems.append(
                    "balanced demonstrations need the labels of the whole train split, and labels "
                    f"{self.labels} allows no others: draw them with --shuffled, or leave labels out"
                )
            if self.k > self.labels:
                problems.append(f"k {self.k} is more than the {self.labels} labels: lower k, or raise labels")
            if self.selection_limit != type(self).model_fields["selection_limit"].default:
                problems.append(
                    f"selection_limit {self.selection_limit} is for the selection split, which labels {self.labels} "
                    "excludes: leave one of them out"
                )
        if self.k == 0 and (excluded := [name for name in self.learners if LEARNERS[name].needs_demonstrations]):
            problems.append(
                f"k 0 leaves {' and '.join(excluded)} nothing to learn from: leave them out with --learners zsl,icl,ft"
            )
        return problems


def require_entries(registry: Registry[Any], given: tuple[str, ...]) -> tuple[str, ...]:
    """The given names of entries, after checking that each can be used.

    Raises:
        ValueError: One is unknown, or its package is broken.
    """
    if problems := registry.problems(given):
        raise ValueError("; ".join(problems))
    for name in given:
        # dualform's own are known to load, and loading them here would import torch.
        if name not in registry.own:
            try:
                registry[name]
            except ConfigError as error:
                raise ValueError(str(error)) from error
    return given

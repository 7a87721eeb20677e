"""Settings of a fold that is written to disk."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from dualform.configuration import MOST_TEXTS
from dualform.errors import ConfigError
from dualform.option import OUTPUT, Option
from dualform.seeds import Seeds
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.study import StudyInputs

Form = Literal["checkpoint", "lora"]


class FoldConfig(ComparisonConfig):
    """Settings of `dualform fold`, which folds the first seed's demonstrations."""

    without_options: ClassVar[frozenset[str]] = frozenset(
        {"preset", "select", "select_on", "learners", "tune", "controls", "kendall_scale"}
        | {
            "control_limit",
            "other_task",
            "rounding",
            "explore",
            "label_rule",
            "selection_limit",
            "rates",
            "patience",
            "labels",
            "choose_inside",
            "training",
            "lora",
            "lora_rates",
            "full_rates",
            "bitfit_rates",
        }
        | {"loss_on", "probe", "quantize"}
    )
    option_names: ClassVar[dict[str, tuple[str, ...]]] = {"fold.method": ("--method",)}

    form: Annotated[Form, Option(OUTPUT, ("--as",))] = "checkpoint"
    """checkpoint, or lora: an adapter for peft that goes with the base."""
    rank: Annotated[int, Option(OUTPUT)] = Field(default=16, ge=1, le=1 << 16)
    """Rank of the adapter. Each layer's change is cut to that many directions."""
    verify: Annotated[bool, Option(OUTPUT)] = False
    """Load the written model in a fresh process and compare its log-probabilities with those in memory."""
    perplexity: Annotated[str | None, Option(OUTPUT)] = None
    """File with plain text, one passage per line, on which perplexity is measured before and after."""
    perplexity_texts: Annotated[int, Option(OUTPUT)] = Field(default=64, ge=1, le=MOST_TEXTS)
    """Most passages of that file; the longest ones are taken."""
    seeds: Annotated[Seeds, Option(single="--seed", several=False)] = (1,)
    """Demonstration seed of the prompt that is folded. If several are given, the first is used."""

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """A checked configuration with fixed learners and controls, see `StudyConfig.from_settings`."""
        if settings.get("k") == 0:
            raise ConfigError("k 0 leaves nothing to fold: give at least one demonstration")
        fixed = {"learners": ("zsl", "icl", "fold"), "controls": (), "explore": 0}
        return super().from_settings(**{**settings, **fixed})

    def reads(self) -> StudyInputs:
        """The model, the task, and the files of texts for the fold and for perplexity."""
        perplexity = () if self.perplexity is None else (self.perplexity,)
        return StudyInputs(self.model_names, True, files=(*self.fold.files(), *perplexity))


def fold_config(model: str, task: str, **settings: Any) -> FoldConfig:
    """Checked settings of `dualform fold`, see `FoldConfig.from_settings`."""
    return FoldConfig.from_settings(model=model, task=task, **settings)

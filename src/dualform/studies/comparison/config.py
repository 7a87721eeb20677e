"""Settings of a comparison, validated before a model is loaded, with two presets: `default` and `dai2023`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from dualform.configuration import checked
from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS, Learner
from dualform.option import CONTROLS, OUTPUT, Option
from dualform.registry import Registry
from dualform.studies.controls import CONTROLS as KNOWN_CONTROLS
from dualform.studies.fold_settings import FoldSettings
from dualform.studies.settings import OneModelConfig, given_settings, problems_with_rates
from dualform.studies.study import StudyInputs

Tune = Literal["first", "each"]
Preset = Literal["default", "dai2023"]
Rounding = Literal["none", "report", "choose"]
Select = Literal["none", "icl", "ft", "both"]

ZERO_SHOT, IN_CONTEXT, FINETUNED = COMPARED = ("zsl", "icl", "ft")
"""The learners that the measures of similarity need: the model before, in context and finetuned."""

CHEAP_CONTROLS: tuple[str, ...] = (
    "random",
    "position_shift",
    "shuffled_labels",
    "other_demonstrations",
    "icl_order",
    "ft_order",
)
"""Default controls: floors and both ceilings, which together cost less than the comparison itself."""

# Ten rates a decade. The grid includes the rates that the paper reports as chosen, 1.6e-4 to 0.2.
_DAI2023_RATES = tuple(float(f"{10 ** (-4 + i / 10):.3g}") for i in range(36))


class ComparisonConfig(OneModelConfig):
    """Settings of a comparison."""

    preset: Preset = "default"
    """default, or dai2023: the paper's protocol. It reproduces arXiv:2212.10559 with its choices of split and probe."""

    select: Select = "none"
    """Keep only the seed that is best for icl, ft or both; none keeps all. It is the best on `select_on`; both is the
    mean of the two."""
    select_on: Literal["validation", "report"] = "validation"
    """Choose rates, and the seed if one is selected, on validation or report. report is the paper's choice, and biases
    accuracies upwards."""

    learners: Annotated[tuple[str, ...], Option(default="all")] = LEARNERS.own
    """Of zsl,icl,ft,lora,probe,fold. Similarity needs zsl, icl and ft. Another package adds a learner by an entry point
    in `dualform.learners`."""
    lora_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    """Learning rates tried for lora (AdamW)."""
    fold: FoldSettings = FoldSettings()
    """How the prompt is folded into the weights."""
    tune: Tune = "first"
    """Search rates on the first seed only, for all seeds, or on each seed."""

    controls: Annotated[tuple[str, ...], Option(CONTROLS, default="six cheap ones")] = CHEAP_CONTROLS
    """all, none or names of controls to compare the measures with. They need zsl, icl and ft; the guide describes
    each."""
    kendall_scale: Annotated[Literal["attention", "released"], Option(CONTROLS)] = "attention"
    """Scale finetuning's products of attention queries as attention does, or as the released code does. This is for
    Kendall's tau: attention scales scores as the layer does, released as the code of arXiv:2212.10559 does, by
    1 / d_head."""
    control_limit: Annotated[int | None, Option(CONTROLS, null="all")] = Field(default=100, ge=1)
    """Number of queries on which controls are read. They are chosen at random."""
    other_task: Annotated[str | None, Option(CONTROLS)] = None
    """Task whose demonstrations the control other_task uses. A packaged name, or one under the data directory. Not
    given: the same texts with the question whether they are short or long."""

    rounding: Rounding = "choose"
    """Repeat ft to measure the effect of rounding: choose, report, none. The repeat starts from weights changed by one
    unit in the last place: report repeats the training at the chosen rate; choose also prefers a stable rate among
    equally accurate ones; none does neither."""

    explore: Annotated[int, Option(OUTPUT)] = Field(default=8, ge=0, le=64)
    """Queries in the page's attention explorer; 0 for none. They are queries of the first seed, for which the attention
    of ICL and FT is kept, see `attention_view`."""

    @property
    def repeats_finetuning(self) -> bool:
        """Whether finetuning is repeated to measure the effect of rounding."""
        return self.rounding != "none" and FINETUNED in self.learners and self.k > 0

    @property
    def selecting(self) -> tuple[str, ...]:
        """Learners by whose accuracy the seed is chosen; empty if all seeds are reported."""
        return {"none": (), "both": (IN_CONTEXT, FINETUNED)}.get(self.select, (self.select,))

    @property
    def compares_inside(self) -> bool:
        """Whether all learners that the measures of similarity need are run."""
        return set(COMPARED) <= set(self.learners)

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

    @property
    def reads_paper_rows(self) -> bool:
        """Whether the rows of the paper's split are read, as with the preset dai2023."""
        return self.preset == "dai2023"

    def _reason_against_quantize(self) -> str | None:
        if any(LEARNERS[name].changes_weights for name in self.selecting):
            return f"with select {self.select}, which chooses by FT and so changes weights: choose icl or none"
        if all(LEARNERS[name].changes_weights for name in self.learners):
            return f"with learners {list(self.learners)}, which all change weights: add zsl, icl or probe"
        return None

    @field_validator("learners", "controls")
    @classmethod
    def _check_names(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        registry: Registry[Any] = LEARNERS if info.field_name == "learners" else KNOWN_CONTROLS
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

    @field_validator("controls", mode="before")
    @classmethod
    def _all_controls(cls, given: Any) -> Any:
        return (
            KNOWN_CONTROLS.names() if list(given or ()) == ["all"] else [] if list(given or ()) == ["none"] else given
        )

    def _problems(self) -> list[str]:
        problems = super()._problems() + problems_with_rates("lora_rates", self.lora_rates)
        if not self.learners or len(set(self.learners)) != len(self.learners):
            problems.append(f"learners {list(self.learners)} must be different, at least one")
        if len(set(self.controls)) != len(self.controls):
            problems.append(f"controls {list(self.controls)} must be different")
        if self.other_task is not None and "other_task" not in self.controls:
            problems.append(
                f"other_task {self.other_task} is for the control other_task, which is not among the controls: add it"
            )
        if self.k == 0 and (excluded := [name for name in self.learners if LEARNERS[name].needs_demonstrations]):
            problems.append(
                f"k 0 leaves {' and '.join(excluded)} nothing to learn from: leave them out with --learners zsl,icl,ft"
            )
        if missing := [name for name in self.selecting if name not in self.learners]:
            problems.append(
                f"select {self.select} chooses by accuracy, so learners must include {' and '.join(missing)}"
            )
        return problems

    @classmethod
    def from_settings(cls, *, preset: Preset = "default", **settings: Any) -> Self:
        """A validated configuration: the preset's settings, overridden by those given.

        Args:
            preset: Preset with the defaults to start from.
            settings: Other fields of the class; None means not given, and 0 for a limit means no limit.

        Raises:
            ConfigError: Settings are invalid; the message lists all problems.
        """
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        return checked(cls, {**PRESETS[preset], **given_settings(settings), "preset": preset})

    def reads(self) -> StudyInputs:
        """The model, the tasks and the files that a run reads."""
        others = () if self.other_task is None else (self.other_task,)
        return StudyInputs(self.model_names, True, others, self.fold.files())


PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "dai2023": {
        "balanced": False,
        "seeds": (1, 2, 3, 4, 5, 6, 7),
        "select": "icl",
        "limit": 2000,
        "select_on": "report",
        "selection_limit": None,
        "learners": ("zsl", "icl", "ft"),
        "rates": _DAI2023_RATES,
        "tune": "each",
        "patience": len(_DAI2023_RATES),
        "rounding": "report",
        "loss_on": "all",
        "probe": "label0",
        "kendall_scale": "released",
        "context": 2048,
    },
}


def comparison_config(model: str, task: str, *, preset: Preset = "default", **settings: Any) -> ComparisonConfig:
    """A validated configuration of a comparison, see `ComparisonConfig.from_settings`.

    Args:
        model: As in `ComparisonConfig`.
        task: As in `ComparisonConfig`.
        preset: `default`, or `dai2023` for the paper's protocol.
        settings: Other fields of `ComparisonConfig`; None means not given, and 0 for a limit means no limit.

    Raises:
        ConfigError: Settings are invalid; the message lists all problems.
    """
    return ComparisonConfig.from_settings(model=model, task=task, preset=preset, **settings)


def read_config(path: Path, *, trust_remote_code: bool = False) -> ComparisonConfig:
    """A configuration from a YAML file, such as a run's `config.yaml`.

    Args:
        path: The file.
        trust_remote_code: Whether to run code that comes with the checkpoint; the file cannot allow this.

    Raises:
        ConfigError: The file is missing, is not YAML, or has invalid settings.
    """
    return ComparisonConfig.read(path, trust_remote_code=trust_remote_code)

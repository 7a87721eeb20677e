"""Settings of a comparison, checked before a model loads, with two presets: `default` and `dai2023`."""

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
"""The learners whose insides the measures of similarity compare: before, in context, finetuned."""

CHEAP_CONTROLS: tuple[str, ...] = (
    "random",
    "position_shift",
    "shuffled_labels",
    "other_demonstrations",
    "icl_order",
    "ft_order",
)
"""What every comparison of ICL and FT runs: floors and both ceilings, for less than the comparison itself costs."""

# Ten rates a decade. The rates that the paper reports as chosen, 1.6e-4 to 0.2, are members of this grid.
_DAI2023_RATES = tuple(float(f"{10 ** (-4 + i / 10):.3g}") for i in range(36))


class ComparisonConfig(OneModelConfig):
    """What to compare, on what, and how."""

    preset: Preset = "default"
    """default, or dai2023: the paper's protocol. It reproduces arXiv:2212.10559 with its choices of split and probe."""

    select: Select = "none"
    """Keep only the seed that is best for icl, ft or both; none keeps all. It is the best on `select_on`; both is the
    mean of the two."""
    select_on: Literal["validation", "report"] = "validation"
    """Choose rates, and the seed where one is selected, on validation or report. report is the paper's choice, and
    flatters."""

    learners: Annotated[tuple[str, ...], Option(default="all")] = LEARNERS.own
    """Of zsl,icl,ft,lora,probe,fold. Similarity needs zsl, icl and ft. Another package adds a learner by an entry point
    in `dualform.learners`."""
    lora_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    """Learning rates of lora, which is AdamW."""
    fold: FoldSettings = FoldSettings()
    """How the prompt is folded into the weights."""
    tune: Tune = "first"
    """Search rates on the first seed, whose choice all use, or on each."""

    controls: Annotated[tuple[str, ...], Option(CONTROLS, default="six cheap ones")] = CHEAP_CONTROLS
    """all, none or names of controls, with which the measures are compared. They need zsl, icl and ft; the guide
    describes each."""
    kendall_scale: Annotated[Literal["attention", "released"], Option(CONTROLS)] = "attention"
    """Scale finetuning's products of attention queries as attention does, or as the released code does. This is before
    whole demonstrations are ranked: the layer scales its own scores, and the code released with arXiv:2212.10559 scales
    by 1 / d_head."""
    control_limit: Annotated[int | None, Option(CONTROLS, null="all")] = Field(default=100, ge=1)
    """Queries on which controls are read. They are the first so many of a shuffle."""
    other_task: Annotated[str | None, Option(CONTROLS)] = None
    """Task whose demonstrations the control other_task shows. A packaged name, or one under the data directory. Not
    given: the same texts, asked whether they are short or long."""

    rounding: Rounding = "choose"
    """Repeat ft from weights moved by rounding: choose, report, none. The repeat shows how far its numbers depend on
    rounding: report measures it at the rate chosen; choose also prefers a stable rate among equally accurate ones; none
    does neither."""

    explore: Annotated[int, Option(OUTPUT)] = Field(default=8, ge=0, le=64)
    """Queries in the page's attention explorer; 0 for none. They are queries of the first seed, for which is kept where
    ICL and FT look, see `attention_view`."""

    @property
    def repeats_finetuning(self) -> bool:
        """Whether finetuning is repeated from weights moved by rounding."""
        return self.rounding != "none" and FINETUNED in self.learners and self.k > 0

    @property
    def selecting(self) -> tuple[str, ...]:
        """Learners whose accuracy chooses the seed; empty where all seeds are reported."""
        return {"none": (), "both": (IN_CONTEXT, FINETUNED)}.get(self.select, (self.select,))

    @property
    def compares_inside(self) -> bool:
        """Whether all the learners are there whose insides are compared."""
        return set(COMPARED) <= set(self.learners)

    def grid_of(self, learner: Learner) -> tuple[float, ...]:
        """Learning rates to search for a learner that has any.

        Raises:
            ConfigError: The setting that the learner names is no list of learning rates.
        """
        grid = getattr(self, learner.grid or "", None)
        if not isinstance(grid, tuple) or not all(isinstance(rate, float) for rate in grid):
            raise ConfigError(
                f"the learner {learner.name} takes its learning rates from the setting {learner.grid!r}, which is no "
                "list of rates: name one such as rates"
            )
        return grid

    @property
    def reads_paper_rows(self) -> bool:
        """As the preset's protocol does."""
        return self.preset == "dai2023"

    def _changes_weights(self) -> str | None:
        if any(LEARNERS[name].changes_weights for name in self.selecting):
            return f"select {self.select} chooses by FT, which changes weights: choose icl or none"
        if all(LEARNERS[name].changes_weights for name in self.learners):
            return f"learners {list(self.learners)} all change weights: ask for zsl, icl or probe"
        return None

    @field_validator("learners", "controls")
    @classmethod
    def _check_names(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        registry: Registry[Any] = LEARNERS if info.field_name == "learners" else KNOWN_CONTROLS
        if problems := registry.problems(given):
            raise ValueError("; ".join(problems))
        for name in given:
            # Our own load torch, which checking settings should not wait for.
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
        if self.k == 0 and (idle := [name for name in self.learners if LEARNERS[name].needs_demonstrations]):
            problems.append(
                f"k 0 leaves {' and '.join(idle)} nothing to learn from: leave them out with --learners zsl,icl,ft"
            )
        if missing := [name for name in self.selecting if name not in self.learners]:
            problems.append(
                f"select {self.select} chooses by accuracy, so learners must include {' and '.join(missing)}"
            )
        return problems

    @classmethod
    def from_settings(cls, *, preset: Preset = "default", **settings: Any) -> Self:
        """A checked configuration: the preset's settings, then what was given.

        Args:
            preset: Which defaults to start from.
            settings: Other fields of the class; None means not given, and 0 for a limit means none.

        Raises:
            ConfigError: All that is wrong, in one message.
        """
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        return checked(cls, {**PRESETS[preset], **given_settings(settings), "preset": preset})

    def reads(self) -> StudyInputs:
        """The model, the task, another task for a control, and the fold's texts."""
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
    """A checked configuration of a comparison, see `ComparisonConfig.from_settings`.

    Args:
        model: As in `ComparisonConfig`.
        task: As in `ComparisonConfig`.
        preset: Which defaults to start from: `default`, or `dai2023`, the paper's protocol.
        settings: Other fields of `ComparisonConfig`; None means not given, and 0 for a limit means none.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    return ComparisonConfig.from_settings(model=model, task=task, preset=preset, **settings)


def read_config(path: Path, *, trust_remote_code: bool = False) -> ComparisonConfig:
    """A configuration from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        trust_remote_code: Run code that comes with the checkpoint; the file cannot allow it.

    Raises:
        ConfigError: The file is missing, no YAML, or says something that cannot be used.
    """
    return ComparisonConfig.read(path, trust_remote_code=trust_remote_code)

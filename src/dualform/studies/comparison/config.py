"""Settings of a comparison, validated before a model is loaded, with two presets: `default` and `dai2023`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from dualform.configuration import checked
from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS
from dualform.option import CONTROLS, OUTPUT, Option
from dualform.studies.controls import CONTROLS as KNOWN_CONTROLS
from dualform.studies.learner_config import LearnersConfig, require_entries
from dualform.studies.settings import given_settings
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


class ComparisonConfig(LearnersConfig):
    """Settings of a comparison."""

    preset: Preset = "default"
    """default, or dai2023: the paper's protocol. It reproduces arXiv:2212.10559 with its choices of split and probe."""

    select: Select = "none"
    """Keep only the seed that is best for icl, ft or both; none keeps all. It is the best on `select_on`; both is the
    mean of the two."""
    select_on: Literal["validation", "report"] = "validation"
    """Choose rates, and the seed if one is selected, on validation or report. report is the paper's choice, and biases
    accuracies upwards."""

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
    def prefers_stable_rates(self) -> bool:
        """Whether a search prefers learning rates at which finetuning does not depend on rounding."""
        return self.repeats_finetuning and self.rounding == "choose"

    @property
    def selecting(self) -> tuple[str, ...]:
        """Learners by whose accuracy the seed is chosen; empty if all seeds are reported."""
        return {"none": (), "both": (IN_CONTEXT, FINETUNED)}.get(self.select, (self.select,))

    @property
    def compares_inside(self) -> bool:
        """Whether all learners that the measures of similarity need are run."""
        return set(COMPARED) <= set(self.learners)

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

    @classmethod
    def _defaults_with_labels(cls, labels: int) -> dict[str, Any]:
        """What would use other labels is left out: controls, a stable rate, and rates chosen on another seed."""
        return {**super()._defaults_with_labels(labels), "controls": (), "rounding": "none", "tune": "each"}

    @field_validator("controls")
    @classmethod
    def _check_controls(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return require_entries(KNOWN_CONTROLS, given)

    @field_validator("controls", mode="before")
    @classmethod
    def _all_controls(cls, given: Any) -> Any:
        return (
            KNOWN_CONTROLS.names() if list(given or ()) == ["all"] else [] if list(given or ()) == ["none"] else given
        )

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if len(set(self.controls)) != len(self.controls):
            problems.append(f"controls {list(self.controls)} must be different")
        if self.other_task is not None and "other_task" not in self.controls:
            problems.append(
                f"other_task {self.other_task} is for the control other_task, which is not among the controls: add it"
            )
        if missing := [name for name in self.selecting if name not in self.learners]:
            problems.append(
                f"select {self.select} chooses by accuracy, so learners must include {' and '.join(missing)}"
            )
        if self.labels is not None:
            problems += self._problems_with_labels()
        return problems

    def _problems_with_labels(self) -> list[str]:
        """Settings that need labels outside the budget."""
        problems = []
        if self.controls:
            problems.append(
                f"controls {','.join(self.controls)} use labels outside the budget of {self.labels}: leave out one of "
                "the two"
            )
        if self.select != "none":
            problems.append(
                f"select {self.select} chooses the seed on labels outside the budget of {self.labels}: leave one of "
                "them out"
            )
        if self.select_on == "report" or self.preset == "dai2023":
            problems.append(
                f"labels {self.labels} cannot be used where settings are chosen on the reported queries (select_on "
                "report, preset dai2023)"
            )
        if self.tune == "first" and len(self.seeds) > 1:
            problems.append(
                f"tune first would choose the rates of every seed on the {self.labels} labels of the first: set tune "
                "to each"
            )
        if self.rounding == "choose":
            problems.append(
                f"rounding choose prefers stable rates on the selection split, which labels {self.labels} excludes: "
                "choose report or none"
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

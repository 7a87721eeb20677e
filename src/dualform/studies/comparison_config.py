"""Settings of a comparison, checked before a model loads, with two presets: `default` and `dai2023`."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualform.errors import ConfigError
from dualform.learners.finetuned import LARGEST_RATE, LossOn
from dualform.models.layout import Probe
from dualform.tasks.demonstrations import LabelRule

LearnerName = Literal["zsl", "icl", "ft", "lora", "probe"]
Tune = Literal["first", "each"]
Preset = Literal["default", "dai2023"]

# Ten rates a decade. The rates that the paper reports as chosen, 1.6e-4 to 0.2, are members of this grid.
_DAI2023_RATES = tuple(float(f"{10 ** (-4 + i / 10):.3g}") for i in range(36))


class ComparisonConfig(BaseModel):
    """What to compare, on what, and how. Each setting has its home here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Packaged name, checkpoint folder, GGUF file or hub id."""
    task: str
    """Packaged name, name under the data directory, file, YAML file or hub name."""
    preset: Preset = "default"
    """`dai2023` reproduces arXiv:2212.10559's protocol, its choices of split and probe included."""

    data_dir: str | None = None
    """Folder with data sets; `$DUALFORM_DATA` when not given."""
    text: str | None = None
    """Column that holds the text, for a file of one's own."""
    label: str | None = None
    """Column that holds the label."""
    choices: str | None = None
    """Column or columns that hold the candidate answers of a multiple-choice task."""
    prompt: str | None = None
    """Template in place of the task's own, such as `Review: {text}` and a line `Sentiment:`."""
    label_words: str | list[str] | dict[str, str] | None = None
    """Words in place of the task's own: `bad,good` or `0=bad,1=good`."""
    separator: str | None = None
    """Text between demonstrations; `eos` for the end-of-sequence token."""

    k: int = Field(default=32, ge=0)
    """Demonstrations asked for."""
    balanced: bool = True
    """Equal numbers of each class; false is the paper's rule, the first k of a shuffle."""
    label_rule: LabelRule = "true"
    """Labels shown: true, shuffled among the demonstrations, or random."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Demonstration seeds."""
    select_seed: bool = False
    """Keep only the seed that is best for ICL on the report split, as the paper does. Flatters ICL."""
    context: int = Field(default=2048, ge=8)
    """Longest sequence, tokens (the model's own limit if lower); demonstrations that do not fit are left out."""

    limit: int | None = Field(default=200, ge=1)
    """Queries of the report split, drawn at random with seed 0; null for all."""
    selection_limit: int | None = Field(default=100, ge=1)
    """Queries of the selection split on which rates are chosen; null for all."""
    select_on: Literal["validation", "report"] = "validation"
    """Where rates are chosen. `report` is the paper's choice, and flatters FT."""

    learners: tuple[LearnerName, ...] = get_args(LearnerName)
    """Which learners to run; similarity needs zsl, icl and ft."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates of ft (SGD)."""
    lora_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    """Learning rates of lora (AdamW)."""
    tune: Tune = "first"
    """`first`: choose the rate on the first seed's demonstrations and use it for all; `each`: search every time."""
    patience: int = Field(default=2, ge=1)
    """Stop a search after so many rates in a row that are worse than the best."""
    loss_on: LossOn = "all"
    """Finetune on all tokens of a sequence (the paper) or on the label word alone."""
    probe: Probe = "prompt"
    """Where the inside is read: the token that predicts the label, or the first label word (released code)."""

    device: str = "auto"
    """auto, cpu, cuda, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """float32 for everything that is compared."""
    route: Literal["packed", "packed-mask", "repeated", "naive"] | None = None
    """Insist on a way through the model; default: the fastest that passes its self-check."""
    trust_remote_code: bool = False
    """Run code that comes with a checkpoint."""
    resamples: int = Field(default=1000, ge=10)
    """Bootstrap resamples behind each interval."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if (
            not self.seeds
            or len(set(self.seeds)) != len(self.seeds)
            or not all(0 <= seed < 2**32 for seed in self.seeds)
        ):
            problems.append(f"seeds {list(self.seeds)} must be different numbers from 0 to 4294967295, at least one")
        if not self.learners or len(set(self.learners)) != len(self.learners):
            problems.append(f"learners {list(self.learners)} must be different, at least one")
        for name, rates in (("rates", self.rates), ("lora_rates", self.lora_rates)):
            if not rates or not all(0 <= rate <= LARGEST_RATE for rate in rates):
                problems.append(f"{name} {list(rates)} must lie between 0 and {LARGEST_RATE:g}, at least one")
        if self.k == 0 and "probe" in self.learners:
            problems.append("k 0 leaves the probe nothing to learn from: leave out probe with --learners zsl,icl,ft")
        if self.select_seed and "icl" not in self.learners:
            problems.append("select_seed chooses by ICL's accuracy, so learners must include icl")
        if problems:
            raise ValueError("; ".join(problems))
        return self


PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "dai2023": {
        "balanced": False,
        "seeds": (1, 2, 3, 4, 5, 6, 7),
        "select_seed": True,
        "limit": 2000,
        "select_on": "report",
        "selection_limit": None,
        "learners": ("zsl", "icl", "ft"),
        "rates": _DAI2023_RATES,
        "tune": "each",
        "patience": len(_DAI2023_RATES),
        "loss_on": "all",
        "probe": "label0",
        "context": 2048,
    },
}


def comparison_config(model: str, task: str, *, preset: Preset = "default", **settings: Any) -> ComparisonConfig:
    """A checked configuration: the preset's settings, then what was given.

    Args:
        model: See `ComparisonConfig.model`.
        task: See `ComparisonConfig.task`.
        preset: Which defaults to start from.
        settings: Fields of `ComparisonConfig`; None means not given, and 0 for `limit` or `selection_limit` means all.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    given = {name: value for name, value in settings.items() if value is not None}
    given |= {name: None for name in ("limit", "selection_limit") if settings.get(name) == 0}
    return _checked({**PRESETS[preset], **given, "model": model, "task": task, "preset": preset})


def read_config(path: Path) -> ComparisonConfig:
    """A configuration from YAML, such as a run's `config.yaml`.

    Raises:
        ConfigError: The file is missing, no YAML, or says something that cannot be used.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} should hold settings as `name: value` lines")
    return _checked(given)


def _checked(settings: dict[str, Any]) -> ComparisonConfig:
    try:
        return ComparisonConfig(**settings)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            given = f" (given {problem['input']!r})" if where and problem["type"] != "missing" else ""
            problems.append(f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{given}")
        raise ConfigError("; ".join(problems)) from error

"""Settings that every study of a model and a task has, and how wrong ones are told."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dualform.configuration import MOST_RESAMPLES, read_settings
from dualform.errors import ConfigError
from dualform.learners.options import LARGEST_RATE, LossOn
from dualform.models.options import Probe
from dualform.models.placement import placement
from dualform.seeds import Seeds
from dualform.tasks.demonstrations import LabelRule
from dualform.tasks.options import unescape
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task

if TYPE_CHECKING:
    from dualform.models.language_model import LanguageModel


class StudyConfig(BaseModel):
    """What is asked, of which rows, read how. Each setting has its home here or in the study that alone has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    """Packaged name, name under the data directory, file, YAML file or hub name."""

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
    opening: str = "auto"
    """What begins every sequence: auto (what the tokenizer itself puts in front of a text; where that is nothing, its
    beginning-of-sequence token, else its end-of-sequence token), none, bos, eos, or a text such as `[gMASK]<sop>`."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and count them in the warnings, instead of refusing the table."""
    truncate: bool = False
    """Cut texts that would leave no room in the context for a demonstration of each class, instead of refusing them."""

    k: int = Field(default=32, ge=0)
    """Demonstrations asked for."""
    balanced: bool = True
    """Equal numbers of each class; false is the paper's rule, the first k of a shuffle."""
    label_rule: LabelRule = "true"
    """Labels shown: true, shuffled among the demonstrations, random, or flipped."""
    seeds: Seeds = (1, 2, 3)
    """Demonstration seeds: a number is that seed alone, `1..7` a range, `1,4,9` or a list several."""
    context: int = Field(default=2048, ge=8)
    """Longest sequence, tokens (the model's own limit if lower); demonstrations that do not fit are left out."""

    limit: int | None = Field(default=200, ge=1)
    """Queries of the report split, drawn at random with seed 0; null for all."""
    selection_limit: int | None = Field(default=100, ge=1)
    """Queries of the selection split on which choices are made; null for all."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates of ft (SGD)."""
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
    device_map: str | dict[str, str | int] | None = None
    """Divide a model that one device cannot hold: auto, balanced, sequential, or a mapping from modules to cpu, disk or
    the number of a GPU. Numbers are those of the undivided model."""
    max_memory: str | dict[str | int, str | int] | None = None
    """Most weights on each device, such as `cpu=2GiB,0=10GiB`; what does not fit is read from disk as it is needed."""
    offload_folder: str | None = None
    """Where weights go that disk is to hold; a safetensors checkpoint is read where it lies and needs none."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Weights in so many bits, by bitsandbytes: for accuracy zero-shot and in context, and nothing else."""
    resamples: int = Field(default=1000, ge=10, le=MOST_RESAMPLES)
    """Bootstrap resamples behind each interval."""

    @field_validator("prompt", "separator")
    @classmethod
    def _read_line_breaks(cls, given: str | None) -> str | None:
        # YAML's single quotes and a shell's keep a backslash and an n where a line break is meant.
        return unescape(given)

    @field_validator("device_map", mode="before")
    @classmethod
    def _read_device_map(cls, given: Any) -> Any:
        # A shell has text only; the same map shall be the same setting.
        try:
            return json.loads(given) if isinstance(given, str) and given.lstrip().startswith("{") else given
        except ValueError:
            return given

    @field_validator("label_rule", mode="before")
    @classmethod
    def _read_rule(cls, given: Any) -> Any:
        # What YAML makes of a bare `true`.
        return "true" if given is True else given

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        try:
            placement(**self._placed)
        except ConfigError as error:
            # Told together with whatever else is wrong.
            raise ValueError(str(error)) from error
        if self.quantize is not None and (why := self._changes_weights()) is not None:
            raise ValueError(f"quantize {self.quantize} is for accuracy zero-shot and in context, and {why}")
        return self

    def _changes_weights(self) -> str | None:
        """What asks for weights that can be changed, in words; None where answers are all that is wanted."""
        return "this study changes weights: leave it out"

    @property
    def _placed(self) -> dict[str, Any]:
        names = ("device", "dtype", "device_map", "max_memory", "offload_folder", "quantize")
        return {name: getattr(self, name) for name in names}

    @property
    def reads_paper_rows(self) -> bool:
        """Whether a known task has the rows that the paper's released code reads, see `load_task`."""
        return False

    def load_task(self) -> Task:
        """The task that these settings describe.

        Raises:
            DualformError: It cannot be found or used.
        """
        return load_task(
            self.task,
            data_dir=self.data_dir,
            text=self.text,
            label=self.label,
            prompt=self.prompt,
            label_words=self.label_words,
            separator=self.separator,
            choices=self.choices,
            skip_bad_rows=self.skip_bad_rows,
            truncate=self.truncate,
            paper_rows=self.reads_paper_rows,
        )

    def load_model(self, name: str) -> "LanguageModel":
        """A model, on the device or devices and in the precision of these settings.

        Raises:
            DualformError: It cannot be found or read.
        """
        from dualform.models.load import load_model

        return load_model(name, route=self.route, trust_remote_code=self.trust_remote_code, **self._placed)


def read_study_settings(path: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Settings from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        trust_remote_code: Run code that comes with the checkpoint. The file cannot allow it: it may be somebody else's.

    Raises:
        ConfigError: The file is missing, no YAML mapping, or asks for `trust_remote_code` that was not given here.
    """
    settings = read_settings(path)
    if settings.get("trust_remote_code") and not trust_remote_code:
        raise ConfigError(
            f"{path} sets trust_remote_code, which runs whatever code comes with the checkpoint. If you trust it, give "
            "trust_remote_code=True to the function that reads the file; otherwise take the line out."
        )
    return settings | {"trust_remote_code": True} if trust_remote_code else settings


def problems_with_seeds(name: str, seeds: tuple[int, ...]) -> list[str]:
    """A sentence when they cannot be used."""
    if seeds and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds):
        return []
    return [f"{name} {list(seeds)} must be different numbers from 0 to 4294967295, at least one"]


def problems_with_rates(name: str, rates: tuple[float, ...]) -> list[str]:
    """A sentence when they cannot be used."""
    if rates and all(0 <= rate <= LARGEST_RATE for rate in rates):
        return []
    return [f"{name} {list(rates)} must lie between 0 and {LARGEST_RATE:g}, at least one"]


def given_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What was given: None means not given, and 0 for a limit means none."""
    given = {name: value for name, value in settings.items() if value is not None}
    return given | {name: None for name, value in given.items() if name.endswith("limit") and value == 0}

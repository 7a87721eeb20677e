"""The settings that all studies of a model and a task share, and their validation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dualform.configuration import MOST_RESAMPLES, checked, read_settings
from dualform.errors import ConfigError
from dualform.learners.options import LARGEST_RATE, LossOn
from dualform.models.loading.placement import placement
from dualform.models.reading.options import ChatSetting, Probe
from dualform.option import DATA, MACHINE, Option
from dualform.seeds import Seeds
from dualform.studies.study import StudyInputs
from dualform.tasks.demonstrations import LabelRule
from dualform.tasks.options import TaskOptions, unescape
from dualform.tasks.task import Task

if TYPE_CHECKING:
    from dualform.models.reading.language_model import LanguageModel


class StudyConfig(BaseModel):
    """The task, its rows, and how a model reads them. Each setting is declared once, here or in its study.

    A field's description is its help on the command line: `--help` prints the first sentence, the reference all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    without_options: ClassVar[frozenset[str]] = frozenset()
    """Fields that are not options of the study's command, because it does not use them or sets them itself."""
    option_names: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Path of a field -> names of its option that differ from those which the field declares."""

    task: Annotated[str, Option(DATA, argument=2)]
    """reviews, sst2, a data file, a YAML file, a folder, a hub name. `dualform tasks` lists the known names."""

    data_dir: Annotated[str | None, Option(DATA)] = None
    """Folder with data sets; $DUALFORM_DATA when not given."""
    text: Annotated[str | None, Option(DATA)] = None
    """Column that holds the text, for a file of your own."""
    label: Annotated[str | None, Option(DATA)] = None
    """Column that holds the label."""
    choices: Annotated[str | None, Option(DATA)] = None
    """Column or columns that hold the candidate answers of a multiple-choice task."""
    prompt: Annotated[str | None, Option(DATA)] = None
    r"""Template in place of the task's own, such as 'Review: {text}\nSentiment:'."""
    label_words: Annotated[str | list[str] | dict[str, str] | None, Option(DATA)] = None
    """Words in place of the task's own, such as bad,good or 0=bad,1=good."""
    separator: Annotated[str | None, Option(DATA)] = None
    """Text between demonstrations; eos for the end-of-sequence token."""
    opening: Annotated[str, Option(DATA)] = "auto"
    """What begins every sequence: auto, none, bos, eos, or a text such as [gMASK]<sop>. auto takes what the tokenizer
    itself puts in front of a text; if that is nothing, its beginning-of-sequence token or else its end-of-sequence
    token."""
    chat: Annotated[ChatSetting, Option(DATA)] = "off"
    """Write demonstrations and queries as turns of a chat, by the tokenizer's chat template: off, auto or on. auto does
    so if the tokenizer has a template and the generation config, the model card or the name says that the model follows
    instructions."""
    system: Annotated[str | None, Option(DATA)] = None
    """System message of the chat. Without it, the chat template decides whether there is one."""
    skip_bad_rows: Annotated[bool, Option(DATA, ("--skip-bad-rows",))] = False
    """Leave out rows that cannot be used, and count them in the warnings, instead of refusing the table."""
    truncate: Annotated[bool, Option(DATA, ("--truncate",))] = False
    """Cut texts that would leave no room in the context for a demonstration of each class, instead of stopping."""

    k: Annotated[int, Option(names=("-k", "--k"))] = Field(default=32, ge=0)
    """Number of demonstrations."""
    balanced: Annotated[bool, Option(names=("--balanced/--shuffled",))] = True
    """Equal numbers of each class, or the first k of a shuffle. The shuffle is the paper's rule."""
    label_rule: LabelRule = "true"
    """Labels shown: true, shuffled among the demonstrations, random, or flipped."""
    seeds: Annotated[Seeds, Option(single="--seed")] = (1, 2, 3)
    """Demonstration seeds, such as 1..7 or 1,4,9. A single number is that seed alone."""
    context: int = Field(default=2048, ge=8)
    """Longest sequence, tokens. The model's own limit holds where it is lower; demonstrations that do not fit are left
    out."""

    limit: Annotated[int | None, Option(null="all")] = Field(default=200, ge=1)
    """Number of reported queries. They are drawn at random from the report split with seed 0."""
    selection_limit: Annotated[int | None, Option(null="all")] = Field(default=100, ge=1)
    """Queries of the selection split on which choices are made."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates tried for ft (SGD)."""
    patience: int = Field(default=2, ge=1)
    """Stop a search after this many rates in a row that are worse than the best."""
    loss_on: LossOn = "all"
    """Finetune on all tokens of a sequence, or on the label word alone. The paper trains on all."""
    probe: Probe = "prompt"
    """Token at which activations are compared: prompt, which predicts the label, or label0, the first label word. The
    code released with the paper uses the label word."""
    resamples: int = Field(default=1000, ge=10, le=MOST_RESAMPLES)
    """Bootstrap resamples behind each interval."""

    device: Annotated[str, Option(MACHINE)] = "auto"
    """auto, cpu, cuda, mps."""
    dtype: Annotated[Literal["float32", "float64", "bfloat16", "float16"], Option(MACHINE)] = "float32"
    """float32, float64, bfloat16, float16. Use float32 for similarities."""
    route: Annotated[Literal["packed", "packed-mask", "repeated", "naive"] | None, Option(MACHINE)] = None
    """Route through the model: packed, packed-mask, repeated, naive. By default the fastest that passes its
    self-check."""
    trust_remote_code: Annotated[bool, Option(MACHINE)] = False
    """Run code that comes with the checkpoint."""
    device_map: Annotated[str | dict[str, str | int] | None, Option(MACHINE)] = None
    """Divide the model: auto, balanced, sequential, or JSON. JSON is a mapping from modules to cpu, disk or the number
    of a GPU. Results are the same as for the undivided model."""
    max_memory: Annotated[str | dict[str | int, str | int] | None, Option(MACHINE)] = None
    """Most weights on each device, such as cpu=2GiB,0=10GiB; the rest is read from disk."""
    offload_folder: Annotated[str | None, Option(MACHINE)] = None
    """Folder for weights that are read from disk. A safetensors checkpoint is read in place and needs none."""
    quantize: Annotated[Literal["8bit", "4bit"] | None, Option(MACHINE)] = None
    """8bit or 4bit weights, stored by bitsandbytes; only for the accuracy of zsl and icl."""

    @field_validator("prompt", "separator", "label_words", "opening", "system")
    @classmethod
    def _read_line_breaks(cls, value: Any) -> Any:
        # Single quotes in YAML and in a shell keep a backslash and an n as they are.
        return unescape(value) if isinstance(value, str) else value

    @field_validator("device_map", mode="before")
    @classmethod
    def _read_device_map(cls, value: Any) -> Any:
        # On the command line a mapping is JSON text.
        try:
            return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
        except ValueError:
            return value

    @field_validator("label_rule", mode="before")
    @classmethod
    def _read_rule(cls, value: Any) -> Any:
        # YAML reads a bare `true` as a boolean.
        return "true" if value is True else value

    @field_validator("chat", mode="before")
    @classmethod
    def _read_chat(cls, value: Any) -> Any:
        # YAML reads a bare `on` or `off` as a boolean.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        try:
            placement(**self._loading_options)
        except ConfigError as error:
            # pydantic reports a ValueError together with all other problems.
            raise ValueError(str(error)) from error
        if self.quantize is not None and (reason := self._reason_against_quantize()) is not None:
            raise ValueError(f"quantize {self.quantize} cannot be used {reason}")
        return self

    @model_validator(mode="after")
    def _check_all(self) -> Self:
        if problems := self._problems():
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """The problems of these settings, one sentence each; studies add their own."""
        return [
            *problems_with_seeds("seeds", self.seeds),
            *problems_with_rates("rates", self.rates),
            *self._problems_with_chat(),
        ]

    def _problems_with_chat(self) -> list[str]:
        if self.chat == "off":
            unused = "system is a chat's system message, but chat is off: set chat to on or auto, or leave system out"
            return [] if self.system is None else [unused]
        problems = [
            f"{name} {given!r} cannot be set with chat {self.chat}, because the chat template decides it: leave {name} "
            "out, or set chat to off"
            for name, given, default in (("separator", self.separator, None), ("opening", self.opening, "auto"))
            if given != default
        ]
        if self.system is not None and not self.system.strip():
            problems.append("system is empty: write the system message, or leave system out")
        return problems

    def _reason_against_quantize(self) -> str | None:
        """Why quantized weights cannot be used, as the end of a message; None if they can."""
        return "in a study that changes weights: leave out quantize"

    @property
    def _loading_options(self) -> dict[str, Any]:
        names = ("device", "dtype", "device_map", "max_memory", "offload_folder", "quantize")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """A checked configuration.

        Args:
            settings: Fields of the class; None means not given, and 0 for a limit means no limit.

        Raises:
            ConfigError: All problems, in one message.
        """
        return checked(cls, given_settings(settings))

    @classmethod
    def read(cls, path: Path, *, trust_remote_code: bool = False) -> Self:
        """A configuration from YAML, such as a run's `config.yaml`.

        Args:
            path: The file.
            trust_remote_code: Run code that comes with the checkpoint; the file cannot allow it.

        Raises:
            ConfigError: The file is missing, is not YAML, or has invalid settings.
        """
        return checked(cls, read_study_settings(path, trust_remote_code))

    @property
    def label_budget(self) -> int | None:
        """Number of labels that every learner may use for everything; None for the protocol with a selection split."""
        return None

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models of these settings."""
        return ()

    def reads(self) -> StudyInputs:
        """The models, tasks and files that these settings name."""
        return StudyInputs(self.model_names, task=True)

    @property
    def reads_paper_rows(self) -> bool:
        """Whether a known task uses the rows that the paper's released code reads, see `load_task`."""
        return False

    def load_local_task(self) -> Task | None:
        """The task that these settings describe, without the network.

        Returns:
            The task; None where it is only on the network.

        Raises:
            TaskError: It cannot be found or used.
        """
        # Imported here because neither `--help` nor checking settings needs it.
        from dualform.tasks.sources import load_local_task

        options = TaskOptions(
            text=self.text,
            label=self.label,
            prompt=self.prompt,
            label_words=self.label_words,
            separator=self.separator,
            choices=self.choices,
            skip_bad_rows=self.skip_bad_rows or None,
            truncate=self.truncate or None,
            paper_rows=self.reads_paper_rows,
        )
        return load_local_task(self.task, options, self.data_dir)

    def load_task(self) -> Task:
        """The task that these settings describe.

        Raises:
            DualformError: It cannot be found or used.
        """
        from dualform.tasks.sources import load_task

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
        """Load a model with the device and precision of these settings.

        Raises:
            DualformError: It cannot be found or read.
        """
        from dualform.models.loading.load import load_model

        if self.chat == "on":
            # Before the weights are read.
            from dualform.models.loading.load import load_tokenizer
            from dualform.models.reading.chat import require_template

            require_template(load_tokenizer(name, trust_remote_code=self.trust_remote_code), name)
        return load_model(name, route=self.route, trust_remote_code=self.trust_remote_code, **self._loading_options)


class OneModelConfig(StudyConfig):
    """Settings of a study of one model."""

    model: Annotated[str, Option(MACHINE, argument=1)]
    """smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """Name of the one model."""
        return (self.model,)


def read_study_settings(path: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Settings from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        trust_remote_code: Run code that comes with the checkpoint. The file alone cannot allow it.

    Raises:
        ConfigError: The file is missing, is not a YAML mapping, or sets `trust_remote_code` without the argument.
    """
    settings = read_settings(path)
    if settings.get("trust_remote_code") and not trust_remote_code:
        raise ConfigError(
            f"{path} sets trust_remote_code, which runs whatever code comes with the checkpoint. If you trust it, give "
            "trust_remote_code=True to the function that reads the file; otherwise take the line out."
        )
    return settings | {"trust_remote_code": True} if trust_remote_code else settings


def problems_with_seeds(name: str, seeds: tuple[int, ...]) -> list[str]:
    """One sentence if the seeds are invalid, else none."""
    if seeds and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds):
        return []
    return [f"{name} {list(seeds)} must be one or more different numbers from 0 to 4294967295"]


def problems_with_rates(name: str, rates: tuple[float, ...]) -> list[str]:
    """One sentence if the learning rates are invalid, else none."""
    if rates and all(0 <= rate <= LARGEST_RATE for rate in rates):
        return []
    return [f"{name} {list(rates)} must be one or more numbers between 0 and {LARGEST_RATE:g}"]


def given_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given: None means not given, and 0 for a limit means no limit."""
    given = {name: value for name, value in settings.items() if value is not None}
    return given | {name: None for name, value in given.items() if name.endswith("limit") and value == 0}

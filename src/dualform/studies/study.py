"""What a study is, and where studies are found.

A study asks one question of a model and a task, or of models that it trains itself. It is one record: its settings,
how it is run, what it costs, how its result is shown. With the record everything else works that dualform does with a
study: plans, sweeps on every engine, runs that continue where they stopped, trackers, reports. Nothing else names it.

Ours are in the folders next to this file; another package adds one by an entry point of the group `dualform.studies`.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from dualform.errors import ConfigError
from dualform.progress import Progress, SilentProgress
from dualform.registry import Registry
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, warn_of_cells

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table as RichTable

    from dualform.attention_record import AttentionRecord
    from dualform.learners.reading_cache import ReadingCache
    from dualform.models.cost.machine import Machine
    from dualform.models.reading.language_model import LanguageModel
    from dualform.report.table import Table
    from dualform.result import Result
    from dualform.studies.plan import Plan
    from dualform.tasks.task import Task


class ModelSource(Protocol):
    """Where a study gets its models and tasks: loaded when they are needed, or still in memory from another run."""

    @property
    def memory(self) -> "ReadingCache | None":
        """Zero-shot readings of the model at hand; None keeps none."""
        ...

    def load_model(self, config: Any, name: str) -> "LanguageModel":
        """The model of that name, loaded as the settings say."""
        ...

    def load_task(self, config: Any) -> "Task":
        """The task that the settings name."""
        ...

    def release(self) -> None:
        """Drop the model in memory, before a study loads several of its own."""
        ...


class LoadOnDemand:
    """Loads models and tasks anew.

    Args:
        task: A task at hand, read earlier from the same settings.
    """

    def __init__(self, task: "Task | None" = None) -> None:
        self._task = task

    @property
    def memory(self) -> "ReadingCache | None":
        """A command reads each model once, so nothing is kept."""
        return None

    def load_model(self, config: Any, name: str) -> "LanguageModel":
        """The model of that name."""
        model: LanguageModel = config.load_model(name)
        return model

    def load_task(self, config: Any) -> "Task":
        """The task at hand, or the one that the settings name."""
        task: Task = self._task or config.load_task()
        return task

    def release(self) -> None:
        """Nothing is kept here."""


@dataclass(frozen=True)
class StudyContext:
    """What a study is given to run with."""

    pieces: PieceStore = field(default_factory=NoPieceStore)
    """Keeps finished pieces, so that a killed run continues where it stopped."""
    progress: Progress = field(default_factory=SilentProgress)
    folder: Path | None = None
    """Where files that are too large for pieces lie while the study runs, such as models under training."""
    models: ModelSource = field(default_factory=LoadOnDemand)

    @property
    def cells(self) -> PieceStore:
        """Deprecated name of `pieces`."""
        warn_of_cells("StudyContext.cells")
        return self.pieces


@dataclass(frozen=True)
class StudyOutput:
    """What a run leaves."""

    result: "Result"
    answers: "pa.Table"
    """Every answer to every query, or whatever the numbers were computed from: `examples.parquet`."""
    attention: "AttentionRecord | None" = None
    """Where learners looked, for the page's attention explorer."""


@dataclass(frozen=True)
class View:
    """How a study's result is shown."""

    headlines: Callable[["Result"], Sequence[str]]
    """Sentences for the terminal, the most important first."""
    tables: Callable[["Result"], Sequence["Table | RichTable"]] = lambda result: ()
    """Tables for the terminal, at most 80 columns wide."""
    page: Callable[..., str] | None = None
    """One HTML document that needs no network, from the result; and from `StudyOutput.attention` for a study that has
    it. None for a page of the sentences and tables above."""


@dataclass(frozen=True)
class StudyInputs:
    """Everything outside its settings on which a study's numbers depend; a sweep's cells are known by its digests."""

    models: tuple[str, ...] = ()
    task: bool = False
    """Whether the task that the settings name is read (`config.load_task`)."""
    other_tasks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def common_result() -> "type[Result]":
    """The class of results that hold what all studies report, and perhaps numbers of their own in `Result.own`."""
    from dualform.result import Result

    return Result


@dataclass(frozen=True)
class SeedBySeed:
    """How a study runs its seeds one at a time, each a cell of a sweep that other sweeps share."""

    possible: Callable[[Any], bool]
    """Whether these settings allow it."""
    before: Callable[[Any, int], tuple[int, ...]]
    """The seeds that a seed depends on, in order, itself last."""
    run: Callable[[Any, int, StudyContext], tuple[Piece, "Result"]]
    """One seed: the piece that the whole study reads, and the result of this seed alone."""
    only_summary: frozenset[str] = frozenset({"seeds", "resamples"})
    """Settings on which no single seed depends."""


@dataclass(frozen=True)
class Study:
    """A study, as it is registered."""

    name: str
    """As the command line and sweep files name it."""
    noun: str
    """What it is called in a sentence, such as `comparison`."""
    config: Callable[[], type[BaseModel]]
    """The class of its settings; a function, so that it is imported only when it is needed."""
    configure: Callable[..., BaseModel]
    """Checked settings from named values; raises ConfigError with all that is wrong."""
    run: Callable[[Any, StudyContext], StudyOutput]
    view: View
    plan: Callable[[Any, "Machine"], "Plan"] | None = None
    """What a run will cost; None for a study that cannot say."""
    written_as: str = ""
    """`study` in `result.json`, where that is not the name."""
    result: Callable[[], "type[Result]"] = common_result
    """The class of its results, which adds the study's own fields to those that all have."""
    plan_samples: Callable[[Any, "Machine"], str] | None = None
    """A sentence to say before a plan is made, where samples of the work are run for it; empty where they are kept."""
    reads: Callable[[Any], StudyInputs] = lambda config: config.reads() if hasattr(config, "reads") else StudyInputs()
    """What its numbers depend on besides the settings; by default what the configuration says (`StudyConfig.reads`)."""
    several_seeds: bool = True
    """False: a run takes one seed alone, so that a sweep makes each seed a group of its own."""
    seed_by_seed: SeedBySeed | None = None
    """None: a sweep runs the study as one cell, its finished pieces kept."""

    def fields(self) -> frozenset[str]:
        """Names of its settings."""
        return frozenset(self.config().model_fields)

    def models(self, config: BaseModel) -> tuple[str, ...]:
        """Names of the models that a configuration names; none for a study that loads none."""
        names: tuple[str, ...] = getattr(config, "model_names", ())
        return names

    @property
    def result_name(self) -> str:
        """`study` in `result.json`."""
        return self.written_as or self.name


def lazy(target: str) -> Callable[..., Any]:
    """A function that is imported when it is first called, so that a study's record can be read without torch.

    Args:
        target: `module:name`.
    """

    def call(*given: Any, **named: Any) -> Any:
        return _load(target)(*given, **named)

    return call


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def study_in(package: str, config: str, *, name: str, noun: str = "", result: str = "", **facts: Any) -> Study:
    """The record of a study whose parts are in the files of one package, each imported when it is first needed.

    Args:
        package: Holds `config.py` with the class of the settings, `run.py` with `run`, `plan.py` with `plan`,
            `words.py` with `headlines`, `table.py` with `tables` and `page.py` with `render`.
        config: Name of the class of the settings, which has `from_settings`.
        name: As in `Study`.
        noun: As in `Study`; the name where not given.
        result: Name of the class of its results in `result.py`, for a study that has fields of its own.
        facts: Other fields of `Study`, in place of those.
    """
    settings = f"{package}.config:{config}"
    parts = {
        "config": lambda: _load(settings),
        "configure": lambda **given: _load(settings).from_settings(**given),
        "run": lazy(f"{package}.run:run"),
        "plan": lazy(f"{package}.plan:plan"),
        "view": View(
            lazy(f"{package}.words:headlines"), lazy(f"{package}.table:tables"), lazy(f"{package}.page:render")
        ),
    }
    if result:
        parts["result"] = lambda: _load(f"{package}.result:{result}")
    return Study(name=name, noun=noun or name, **{**parts, **facts})


STUDIES = Registry("dualform.studies", "study", Study)
"""All studies that are installed."""


def find_study(config: object) -> Study | None:
    """The study that a configuration belongs to; None where it is no study's."""
    return next((study for study in STUDIES if study.config() is type(config)), None)


def study_of(config: BaseModel) -> Study:
    """The study that a configuration belongs to, to be planned.

    Raises:
        ConfigError: It is the configuration of no study.
    """
    found = find_study(config)
    if found is None:
        names = ", ".join(study.config().__name__ for study in STUDIES)
        raise ConfigError(
            f"a {type(config).__name__} is no study's configuration, so it cannot be planned: give one of {names}"
        )
    return found


def study_of_result(result: "Result") -> Study | None:
    """The study that wrote a result; None where no installed package has it."""
    return next((study for study in STUDIES if study.result_name == result.study), None)

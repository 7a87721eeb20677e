"""What a study is, and where studies are found.

A study answers one question about a model and a task, or about models that it trains itself. One record describes it:
its settings, how it runs, what it costs and how its result is displayed. Everything else in dualform uses this record
and knows no study by name: plans, sweeps on every engine, resumed runs, trackers and reports.

A piece is a saved part of a run, usually one seed. A cell is a unit of work of a sweep.

dualform's own studies are in the folders next to this file. Another package adds one with an entry point of the group
`dualform.studies`.
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
    """Provides a study's models and tasks, newly loaded or still in memory from another run."""

    @property
    def memory(self) -> "ReadingCache | None":
        """Cached zero-shot readings of the model in memory; None for no cache."""
        ...

    def load_model(self, config: Any, name: str) -> "LanguageModel":
        """The model of that name, loaded according to the settings."""
        ...

    def load_task(self, config: Any) -> "Task":
        """The task that the settings name."""
        ...

    def release(self) -> None:
        """Drop the model in memory, before a study loads several of its own."""
        ...


class LoadOnDemand:
    """Loads models and tasks when they are requested.

    Args:
        task: A task that was already read from the same settings.
    """

    def __init__(self, task: "Task | None" = None) -> None:
        self._task = task

    @property
    def memory(self) -> "ReadingCache | None":
        """None: a command reads each model only once."""
        return None

    def load_model(self, config: Any, name: str) -> "LanguageModel":
        """The model of that name."""
        model: LanguageModel = config.load_model(name)
        return model

    def load_task(self, config: Any) -> "Task":
        """The task given at construction, or else the one that the settings name."""
        task: Task = self._task or config.load_task()
        return task

    def release(self) -> None:
        """Does nothing, since no model is held."""


@dataclass(frozen=True)
class StudyContext:
    """What a study needs to run, besides its settings."""

    pieces: PieceStore = field(default_factory=NoPieceStore)
    """Stores finished pieces, so that a killed run continues where it stopped."""
    progress: Progress = field(default_factory=SilentProgress)
    folder: Path | None = None
    """Folder for files that are too large for pieces, such as checkpoints of models in training."""
    models: ModelSource = field(default_factory=LoadOnDemand)

    @property
    def cells(self) -> PieceStore:
        """Deprecated name of `pieces`."""
        warn_of_cells("StudyContext.cells")
        return self.pieces


@dataclass(frozen=True)
class StudyOutput:
    """Result, answers and attention of one run."""

    result: "Result"
    answers: "pa.Table"
    """Every answer to every query, or whatever else the numbers were computed from; saved as `examples.parquet`."""
    attention: "AttentionRecord | None" = None
    """Attention of the learners, for the page's attention explorer."""


@dataclass(frozen=True)
class View:
    """How a study's result is displayed."""

    headlines: Callable[["Result"], Sequence[str]]
    """Sentences for the terminal, the most important first; four at most."""
    tables: Callable[["Result"], Sequence["Table | RichTable"]] = lambda result: ()
    """Tables for the terminal, at most 80 columns wide."""
    page: Callable[..., str] | None = None
    """Renders the result, and `StudyOutput.attention` where the study has it, as one HTML document that needs no
    network. None for a page of the headlines and tables."""
    notes: Callable[["Result"], Sequence[str]] = lambda result: ()
    """Further cautions for the terminal, printed like the result's warnings; sentences among the headlines are not
    printed again."""
    frame: Callable[["Result"], Any] | None = None
    """The result as a `pandas.DataFrame` for `Result.to_pandas`. None for the first of the tables."""


@dataclass(frozen=True)
class StudyInputs:
    """Everything besides the settings that a study's numbers depend on; sweeps identify cells by their digests."""

    models: tuple[str, ...] = ()
    task: bool = False
    """Whether the task that the settings name is read (`config.load_task`)."""
    other_tasks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def common_result() -> "type[Result]":
    """The class of results without fields of their own; a study's further numbers are in `Result.own`."""
    from dualform.result import Result

    return Result


@dataclass(frozen=True)
class SeedBySeed:
    """How a study runs its seeds one at a time, so that sweeps can share the cell of a seed."""

    possible: Callable[[Any], bool]
    """Whether these settings allow it."""
    before: Callable[[Any, int], tuple[int, ...]]
    """The seeds that a seed depends on, in order, followed by the seed itself."""
    run: Callable[[Any, int, StudyContext], tuple[Piece, "Result"]]
    """Runs one seed: returns the piece that the whole study reads, and the result of this seed alone."""
    only_summary: frozenset[str] = frozenset({"seeds", "resamples"})
    """Settings that do not affect a single seed."""


@dataclass(frozen=True)
class Study:
    """The registered record of a study."""

    name: str
    """Its name on the command line and in sweep files."""
    noun: str
    """Its name in a sentence, such as `comparison`."""
    config: Callable[[], type[BaseModel]]
    """Returns the class of its settings, so that it is imported only when it is needed."""
    configure: Callable[..., BaseModel]
    """Checked settings from named values; raises ConfigError with all that is wrong."""
    run: Callable[[Any, StudyContext], StudyOutput]
    view: View
    plan: Callable[[Any, "Machine"], "Plan"] | None = None
    """Estimates what a run will cost; None for a study without an estimate."""
    written_as: str = ""
    """Value of the field `study` in `result.json`, if it differs from the name."""
    result: Callable[[], "type[Result]"] = common_result
    """Returns the class of its results, which adds the study's own fields to the common ones."""
    plan_samples: Callable[[Any, "Machine"], str] | None = None
    """The message printed before a plan that has to run samples of the work; empty where the samples are cached."""
    reads: Callable[[Any], StudyInputs] = lambda config: config.reads() if hasattr(config, "reads") else StudyInputs()
    """What its numbers depend on besides the settings; by default `StudyConfig.reads`."""
    several_seeds: bool = True
    """False where a run takes only one seed; a sweep then makes each seed a group of its own."""
    seed_by_seed: SeedBySeed | None = None
    """None: a sweep runs the study as one cell and stores its finished pieces."""

    def fields(self) -> frozenset[str]:
        """Names of its settings."""
        return frozenset(self.config().model_fields)

    def models(self, config: BaseModel) -> tuple[str, ...]:
        """Names of the models in a configuration; empty for a study that loads none."""
        names: tuple[str, ...] = getattr(config, "model_names", ())
        return names

    def charts(self, result: "Result") -> dict[str, Any]:
        """See `Result.charts`."""
        charts: dict[str, Any] = _load("dualform.studies.notebook:charts_of")(self, result)
        return charts

    def data_frame(self, result: "Result", table: str | None = None) -> Any:
        """See `Result.to_pandas`."""
        return _load("dualform.studies.notebook:frame_of")(self, result, table)

    def notebook_html(self, result: "Result") -> str:
        """See `Result._repr_html_`."""
        html: str = _load("dualform.studies.notebook:html_of")(self, result)
        return html

    @property
    def result_name(self) -> str:
        """Value of the field `study` in `result.json`."""
        return self.written_as or self.name


def lazy(target: str) -> Callable[..., Any]:
    """A function that imports its target when it is called, so that a study's record can be read without torch.

    Args:
        target: `module:name`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return _load(target)(*args, **kwargs)

    return call


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def no_notes(result: "Result") -> Sequence[str]:
    """No notes."""
    return ()


def study_in(
    package: str, config: str, *, name: str, noun: str = "", result: str = "", frame: str = "", **facts: Any
) -> Study:
    """The record of a study whose parts are modules of one package, each imported when it is first needed.

    Args:
        package: Name of the package. Its modules are `config.py` with the class of the settings, `run.py` with `run`,
            `plan.py` with `plan`, `words.py` with `headlines` and, if it has any, `notes`, `table.py` with `tables`
            and `page.py` with `render`.
        config: Name of the class of the settings, which has `from_settings`.
        name: See `Study.name`.
        noun: See `Study.noun`; by default the name.
        result: Name of the class of its results in `result.py`, for a study that has fields of its own.
        frame: Name of the function in `table.py` that makes the result's data frame, for a study that has one.
        facts: Fields of `Study` that replace the defaults above.
    """
    settings = f"{package}.config:{config}"
    parts = {
        "config": lambda: _load(settings),
        "configure": lambda **given: _load(settings).from_settings(**given),
        "run": lazy(f"{package}.run:run"),
        "plan": lazy(f"{package}.plan:plan"),
        "view": View(
            lazy(f"{package}.words:headlines"),
            lazy(f"{package}.table:tables"),
            lazy(f"{package}.page:render"),
            lambda result: getattr(importlib.import_module(f"{package}.words"), "notes", no_notes)(result),
            lazy(f"{package}.table:{frame}") if frame else None,
        ),
    }
    if result:
        parts["result"] = lambda: _load(f"{package}.result:{result}")
    return Study(name=name, noun=noun or name, **{**parts, **facts})


STUDIES = Registry("dualform.studies", "study", Study)
"""All studies that are installed."""


def find_study(config: object) -> Study | None:
    """The study that a configuration belongs to, or None."""
    return next((study for study in STUDIES if study.config() is type(config)), None)


def study_of(config: BaseModel) -> Study:
    """The study that a configuration belongs to.

    Raises:
        ConfigError: It belongs to none.
    """
    study = find_study(config)
    if study is None:
        names = ", ".join(study.config().__name__ for study in STUDIES)
        raise ConfigError(
            f"a {type(config).__name__} is not the configuration of a study, so it cannot be planned: give one of "
            f"{names}"
        )
    return study


def study_of_result(result: "Result") -> Study | None:
    """The study that wrote a result; None where its package is not installed."""
    return next((study for study in STUDIES if study.result_name == result.study), None)

"""Registries of learners, measures, controls, studies and task sources, from this package and others.

Another package adds one with an entry point:

    [project.entry-points."dualform.learners"]
    centroid = "my_package:CENTROID"

dualform's own entries are listed in `OWN` and, identically, in its `pyproject.toml` (a test compares the two). They are
read from `OWN`, so that a source tree works even if its installed metadata is missing or outdated.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from dualform.errors import ConfigError

Entry = TypeVar("Entry")

OWN: dict[str, dict[str, str]] = {
    "dualform.learners": {
        "zsl": "dualform.learners.prompting:ZERO_SHOT",
        "icl": "dualform.learners.prompting:IN_CONTEXT",
        "ft": "dualform.learners.finetuned:FINETUNING",
        "lora": "dualform.learners.lora:LORA",
        "full": "dualform.learners.batch_trained:FULL",
        "bitfit": "dualform.learners.batch_trained:BITFIT",
        "lora_icl": "dualform.learners.trained_and_prompted:LORA_AND_PROMPT",
        "ttt": "dualform.learners.trained_and_prompted:TEST_TIME_TRAINING",
        "probe": "dualform.learners.probe:PROBE",
        "fold": "dualform.studies.fold_learner:FOLDING",
        "distill": "dualform.studies.distill_learner:DISTILLATION",
        "tfidf": "dualform.learners.tfidf:TFIDF",
        "embedding": "dualform.learners.embedding:EMBEDDING",
        "icl_contextual": "dualform.learners.calibrated:CONTEXTUAL",
        "icl_batch": "dualform.learners.calibrated:BATCH",
        "icl_domain": "dualform.learners.calibrated:DOMAIN",
        "icl_ensemble": "dualform.learners.ensemble:ENSEMBLE",
        "knn": "dualform.learners.knn:KNN",
    },
    "dualform.controls": {
        name: f"dualform.studies.comparison.own_controls:{name.upper()}"
        for name in (
            "random",
            "random_update",
            "position_shift",
            "shuffled_labels",
            "random_labels",
            "other_demonstrations",
            "other_task",
            "untrained",
            "embeddings",
            "icl_order",
            "ft_order",
            "batch",
            "lcgd",
            "value_one_layer",
            "mlp",
            "rates",
        )
    },
    "dualform.studies": {
        "compare": "dualform.studies.comparison:STUDY",
        "stability": "dualform.studies.stability:STUDY",
        "selection": "dualform.studies.selection:STUDY",
        "fold": "dualform.studies.fold:STUDY",
        "folding": "dualform.studies.folding:STUDY",
        "momentum": "dualform.studies.momentum:STUDY",
        "regress": "dualform.studies.laboratory:STUDY",
        "advise": "dualform.studies.advice:STUDY",
    },
    "dualform.measures": {
        name: f"dualform.studies.own_measures:{name.upper()}"
        for name in (
            "rec2ftp",
            "sim_aou",
            "sim_aou_raw",
            "sim_am",
            "sim_am_before",
            "sim_am_centred",
            "sim_am_softmax",
            "sim_am_delta",
            "kendall",
            "kendall_demo",
            "direct_update",
            "agreement",
            "top_k_overlap",
            "overlap_cosine",
            "vocabulary_shared",
            "relaxation",
        )
    },
    "dualform.tasks": {
        "packaged": "dualform.tasks.packaged:PACKAGED",
        "hub": "dualform.tasks.hub:HUB",
    },
}
"""Group -> name -> `module:attribute`, in the order in which they are run and shown."""


@dataclass(frozen=True)
class Registry(Generic[Entry]):
    """All entries of one group. Names are known at once; an entry's module is imported when the entry is used."""

    group: str
    """Group of the entry points, such as `dualform.learners`."""
    noun: str
    """What an entry is called in messages, such as `learner`."""
    kind: type[Entry]
    """Class of the entries."""

    @property
    def own(self) -> tuple[str, ...]:
        """Names of dualform's own entries, in order."""
        return tuple(OWN[self.group])

    def names(self) -> tuple[str, ...]:
        """All names: dualform's own in order, then those of other packages by the alphabet."""
        return (*self.own, *sorted({entry.name for entry in _others(self.group)} - {*self.own}))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            ConfigError: There is no such entry, two packages define it, or the object has the wrong type.
        """
        if problems := self.problems([name]):
            raise ConfigError(problems[0])
        entry = _load(self.group, name, tuple(sys.path))
        if not isinstance(entry, self.kind):
            raise ConfigError(
                f"the entry point {name} in {self.group} is a {type(entry).__name__}, but should be an instance of "
                f"{self.kind.__module__}.{self.kind.__qualname__}"
            )
        if getattr(entry, "name", name) != name:
            raise ConfigError(
                f"the entry point {name} in {self.group} is the {self.noun} {entry.name!r}: "  # type: ignore[attr-defined]
                "give both the same name"
            )
        return entry

    def __iter__(self) -> Iterator[Entry]:
        """All entries, each imported."""
        return (self[name] for name in self.names())

    def get(self, name: str) -> Entry | None:
        """The entry of this name; None if there is none, for example because its package is not installed."""
        known = name in self
        return self[name] if known else None

    def problems(self, names: Iterable[str]) -> list[str]:
        """Reasons why these names cannot be used, one sentence each."""
        names = list(names)
        known = self.names()
        problems = []
        if unknown := [name for name in names if name not in known]:
            given = ", ".join(map(repr, unknown))
            problems.append(
                f"unknown {self.noun}{'s' if len(unknown) > 1 else ''} {given}: choose among {', '.join(known)} "
                f"(a package adds one by an entry point in {self.group})"
            )
        for name in dict.fromkeys(names):
            packages = [_package(entry) for entry in _others(self.group) if entry.name == name]
            packages = ["dualform", *packages] if packages and name in self.own else packages
            if len(packages) > 1:
                problems.append(
                    f"the {self.noun} {name!r} is defined by {' and by '.join(packages)}: uninstall all but one, or "
                    "rename theirs"
                )
        return problems


def added_modules() -> tuple[tuple[str, str], ...]:
    """Top-level modules of other packages that add anything, each with its package's version, in order."""
    modules = {
        (entry.module.partition(".")[0], "" if entry.dist is None else entry.dist.version)
        for group in OWN
        for entry in _others(group)
    }
    return tuple(sorted(modules))


def _others(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of other packages."""
    return _installed(group, tuple(sys.path))


# What is installed is read from disk: once for each search path, not once for each name on a page.
@lru_cache(maxsize=32)
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry for entry in entry_points(group=group) if _package(entry) != "dualform")


@lru_cache(maxsize=256)
def _load(group: str, name: str, path: tuple[str, ...]) -> Any:
    if name in OWN[group]:
        module, _, attribute = OWN[group][name].partition(":")
        return getattr(import_module(module), attribute)
    [entry] = (each for each in _others(group) if each.name == name)
    try:
        return entry.load()
    except Exception as error:
        raise ConfigError(
            f"{name} of the package {_package(entry)} cannot be loaded from {entry.value}: "
            f"{type(error).__name__}: {error}. Repair or uninstall the package."
        ) from error


def _package(entry: EntryPoint) -> str:
    return "" if entry.dist is None else str(entry.dist.name)

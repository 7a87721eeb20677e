"""Titles, explanations and display order of measures and controls.

Each measure and control is described where it is defined; this module looks the descriptions up in the registries. An
unknown name is displayed unchanged.
"""

import contextlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from dualform.errors import ConfigError
from dualform.registry import Registry
from dualform.report.numerals import decimal
from dualform.report.phrases import is_few, share

if TYPE_CHECKING:
    from dualform.result import Estimate

ControlKind = Literal["floor", "comparison", "ceiling"]
"""`floor`: nothing is learned from these demonstrations, so a real similarity must exceed it. `ceiling`: a learner is
compared with itself, so no higher similarity can be expected. `comparison`: something else is learned, or in another
way."""


@dataclass(frozen=True, kw_only=True)
class MeasureTitle:
    """Title and explanation of a measure."""

    name: str
    """Key in `Result.similarity`: letters, digits and underscores."""
    title: str
    """Title in tables and charts."""
    meaning: str = ""
    """What the number means, for a reader who has not read the paper."""
    caution: str = ""
    """What the number does not mean, in one line."""
    counts_answers: bool = False
    """Whether the measure is a share of queries, which is reported as a count if there are few of them."""
    details: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Titles of companion numbers, by their key in `Similarity.details`."""


@dataclass(frozen=True, kw_only=True)
class ControlTitle:
    """Title and explanation of a control."""

    name: str
    """Name in `--controls` and key in `Result.controls`: letters, digits and underscores."""
    title: str
    """Title in tables and charts."""
    meaning: str = ""
    """Explanation in one sentence."""
    kind: ControlKind | None = "comparison"
    """None for a control that is reported separately."""


CHANCE = ControlTitle(
    name="chance",
    title="chance level",
    meaning="The value expected from the shares of correct answers alone.",
    kind="floor",
)
"""A floor of Rec2FTP that is computed without another run."""

KINDS: tuple[tuple[ControlKind | None, str], ...] = (
    ("floor", "floors"),
    ("comparison", "comparisons"),
    ("ceiling", "ceilings"),
)
"""The kinds of controls and their plural names, in display order."""


def known_controls() -> tuple[ControlTitle, ...]:
    """All controls in display order, including those of other packages."""
    return _known_controls(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_controls(path: tuple[str, ...]) -> tuple[ControlTitle, ...]:
    registry = Registry("dualform.controls", "control", object)
    controls: dict[ControlKind | None, list[ControlTitle]] = {kind: [] for kind, _ in KINDS}
    for name in registry.names():
        # A package that cannot be loaded must not prevent the page of a finished run.
        with contextlib.suppress(ConfigError):
            titles = getattr(registry[name], "titles", ())
            if titles:
                controls[titles[0].kind] += titles
    controls[CHANCE.kind].append(CHANCE)
    return tuple(control for of_kind in controls.values() for control in of_kind)


def known_measures() -> tuple[MeasureTitle, ...]:
    """All measures in display order, including those of other packages."""
    return _known_measures(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_measures(path: tuple[str, ...]) -> tuple[MeasureTitle, ...]:
    registry = Registry("dualform.measures", "measure", object)
    measures = []
    for name in registry.names():
        with contextlib.suppress(ConfigError):
            measure = registry[name]
            if isinstance(measure, MeasureTitle):
                measures.append(measure)
    return tuple(measures)


def is_count(key: str, estimate: "Estimate") -> bool:
    """Whether a measure is reported as a count, because it is a share of few answers."""
    return measure_of(key).counts_answers and is_few(estimate)


def score(key: str, estimate: "Estimate") -> str:
    """A measure's value, such as `0.186`; for a share of few answers, such as `3 of 4`."""
    return share(estimate) if is_count(key, estimate) else decimal(estimate.mean)


def measure_of(name: str) -> MeasureTitle:
    """The measure of this name; an unknown one has its name as its title and no explanation."""
    return next((known for known in known_measures() if known.name == name), MeasureTitle(name=name, title=name))


def control_of(name: str) -> ControlTitle:
    """The control of this name; an unknown one is a comparison without an explanation."""
    return next((known for known in known_controls() if known.name == name), ControlTitle(name=name, title=name))


def in_order(keys: Iterable[str]) -> list[str]:
    """Names of measures in display order; unknown ones last, in the given order."""
    order = {known.name: position for position, known in enumerate(known_measures())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """Names of controls in display order; unknown ones last, in the given order."""
    order = {known.name: position for position, known in enumerate(known_controls())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

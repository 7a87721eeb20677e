"""Measures of similarity and their controls, as tables, charts and sentences name them.

Measures and controls are described where they are defined, and found through the registries. A name that is not known
is shown as it is.
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
"""`floor`: nothing is learned from these demonstrations, so a real similarity must lie above it. `ceiling`: the same
thing twice, so no similarity can be expected above it. `comparison`: something else is learned, or in another way."""


@dataclass(frozen=True, kw_only=True)
class MeasureTitle:
    """How one measure is named and explained."""

    name: str
    """As in `Result.similarity`: letters, digits and underscores."""
    title: str
    """In a table or a chart."""
    meaning: str = ""
    """What the number says, for a reader who has not read the paper."""
    caution: str = ""
    """What the number does not say, in one line."""
    counts_answers: bool = False
    """A share of queries, with an interval for shares; of few of them a count is shown in its place."""
    details: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Companion in `Similarity.details` -> its title."""


@dataclass(frozen=True, kw_only=True)
class ControlTitle:
    """How one control is named and explained."""

    name: str
    """As in `--controls` and in `Result.controls`: letters, digits and underscores."""
    title: str
    """In a table or a chart."""
    meaning: str = ""
    """One sentence for a reader who does not know it."""
    kind: ControlKind | None = "comparison"
    """None where it is reported in a place of its own."""


CHANCE = ControlTitle(
    name="chance",
    title="chance level",
    meaning="What the shares of right answers alone would give.",
    kind="floor",
)
"""A floor of Rec2FTP that needs no stand-in."""

KINDS: tuple[tuple[ControlKind | None, str], ...] = (
    ("floor", "floors"),
    ("comparison", "comparisons"),
    ("ceiling", "ceilings"),
)
"""The kinds of control in the order in which they are shown, and what they are called."""


def known_controls() -> tuple[ControlTitle, ...]:
    """All controls that a result may hold, in the order in which they are shown; those of other packages included."""
    return _known_controls(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_controls(path: tuple[str, ...]) -> tuple[ControlTitle, ...]:
    registry = Registry("dualform.controls", "control", object)
    found: dict[ControlKind | None, list[ControlTitle]] = {kind: [] for kind, _ in KINDS}
    for name in registry.names():
        # A page about a finished run does not need a package that cannot be loaded here.
        with contextlib.suppress(ConfigError):
            titles = getattr(registry[name], "titles", ())
            if titles:
                found[titles[0].kind] += titles
    found[CHANCE.kind].append(CHANCE)
    return tuple(control for controls in found.values() for control in controls)


def known_measures() -> tuple[MeasureTitle, ...]:
    """All measures that a result may hold, in the order in which they are shown; those of other packages included."""
    return _known_measures(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_measures(path: tuple[str, ...]) -> tuple[MeasureTitle, ...]:
    registry = Registry("dualform.measures", "measure", object)
    found = []
    for name in registry.names():
        with contextlib.suppress(ConfigError):
            measure = registry[name]
            if isinstance(measure, MeasureTitle):
                found.append(measure)
    return tuple(found)


def is_count(key: str, estimate: "Estimate") -> bool:
    """Whether a measure is a share of so few answers that it is reported as a count."""
    return measure_of(key).counts_answers and is_few(estimate)


def score(key: str, estimate: "Estimate") -> str:
    """A measure's value as `0.186`; a share of few answers as `3 of 4`."""
    return share(estimate) if is_count(key, estimate) else decimal(estimate.mean)


def measure_of(name: str) -> MeasureTitle:
    """The measure of this name; one without an explanation where none is known."""
    return next((known for known in known_measures() if known.name == name), MeasureTitle(name=name, title=name))


def control_of(name: str) -> ControlTitle:
    """The control of this name; where none is known, one without an explanation that is neither floor nor ceiling."""
    return next((known for known in known_controls() if known.name == name), ControlTitle(name=name, title=name))


def in_order(keys: Iterable[str]) -> list[str]:
    """Names of measures in the order in which they are shown; unknown ones last, as they came."""
    order = {known.name: position for position, known in enumerate(known_measures())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """The same for controls."""
    order = {known.name: position for position, known in enumerate(known_controls())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

"""The measures of likeness and their controls: order, names, what each says and how each misleads.

One place for charts, page and terminal. A key that is not known is still shown, under the key itself. Measures and
controls are described where they are made, and found through the registries.
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dualform.errors import ConfigError
from dualform.registry import Registry
from dualform.report.numerals import MISSING, decimal, decimal_interval
from dualform.report.phrases import is_few, share
from dualform.result import Estimate

ControlKind = Literal["floor", "comparison", "ceiling"]
"""`floor`: nothing is learned from these demonstrations, so a real likeness must lie above it. `ceiling`: the same
thing twice, so no likeness can be expected above it. `comparison`: something else is learned, or in another way."""


@dataclass(frozen=True)
class Measure:
    """How one measure is named and explained."""

    key: str
    """Its key in `Result.similarity`."""
    title: str
    meaning: str
    """What the number says, for a reader who has not read the paper."""
    caution: str
    """What the number does not say, in one line."""
    counts_answers: bool = False
    """A share of answers: of few of them a count stands in its place."""


DETAIL_TITLES: dict[str, str] = {
    "chance": "chance level (independent)",
    "total_variation": "total variation (0 = same)",
    "kl_icl_ft": "KL(ICL, FT), nats (0 = same)",
    "top_k_overlap": "top tokens shared",
    "overlap_cosine": "cosine over shared tokens",
    "relative_error": "relative error (0 = linear)",
    "norm_icl": "length of ICL's change",
    "norm_ft": "length of FT's change",
    "norm_ratio": "FT's length / ICL's",
}
"""Names of the companions in `Similarity.details`."""


@dataclass(frozen=True)
class Control:
    """How one control is named and explained."""

    key: str
    """Its key in `Result.controls`."""
    title: str
    meaning: str
    kind: ControlKind


CHANCE = Control("chance", "chance level", "What the shares of right answers alone would give.", "floor")
"""A floor of Rec2FTP that needs no stand-in."""

KINDS: tuple[tuple[ControlKind, str], ...] = (
    ("floor", "floors"),
    ("comparison", "comparisons"),
    ("ceiling", "ceilings"),
)
"""The kinds of control in the order in which they are shown, and what they are called."""


def known_controls() -> tuple[Control, ...]:
    """All controls that a result may hold, in the order in which they are shown; those of other packages included."""
    return _known_controls(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_controls(path: tuple[str, ...]) -> tuple[Control, ...]:
    registry = Registry("dualform.controls", "control", object)
    found: dict[ControlKind, list[Control]] = {kind: [] for kind, _ in KINDS}
    for name in registry.names():
        # A page about a finished run does not need a package that cannot be loaded here.
        with contextlib.suppress(ConfigError):
            titles = getattr(registry[name], "titles", ())
            if titles:
                found[titles[0].kind] += titles
    found[CHANCE.kind].append(CHANCE)
    return tuple(control for controls in found.values() for control in controls)


def known_measures() -> tuple[Measure, ...]:
    """All measures that a result may hold, in the order in which they are shown; those of other packages included."""
    return _known_measures(tuple(sys.path))


@lru_cache(maxsize=8)
def _known_measures(path: tuple[str, ...]) -> tuple[Measure, ...]:
    registry = Registry("dualform.measures", "measure", object)
    found = []
    for name in registry.names():
        with contextlib.suppress(ConfigError):
            words = getattr(registry[name], "words", None)
            if isinstance(words, Measure):
                found.append(words)
    return tuple(found)


def is_count(key: str, estimate: Estimate) -> bool:
    """Whether a measure is a share of so few answers that it is reported as a count."""
    return measure_of(key).counts_answers and is_few(estimate)


def score(key: str, estimate: Estimate) -> str:
    """A measure's value as `0.186`; a share of few answers as `3 of 4`."""
    return share(estimate) if is_count(key, estimate) else decimal(estimate.mean)


def score_interval(key: str, estimate: Estimate) -> str:
    """Its interval as `0.170 to 0.201`; a dash without one, and for a share of few answers."""
    return MISSING if is_count(key, estimate) else decimal_interval(estimate.ci95)


def measure_of(key: str) -> Measure:
    """The table's entry for `key`; one that is named by the key and says nothing where there is none."""
    return next((known for known in known_measures() if known.key == key), Measure(key, key, "", ""))


def control_of(key: str) -> Control:
    """The table's entry for `key`; one that is named by the key, and claims neither end, where there is none."""
    return next((known for known in known_controls() if known.key == key), Control(key, key, "", "comparison"))


def in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the table's order; unknown ones last, as they came."""
    order = {known.key: position for position, known in enumerate(known_measures())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """The same for controls."""
    order = {known.key: position for position, known in enumerate(known_controls())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

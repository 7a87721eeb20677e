"""The measures of likeness and their controls: order, names, what each says and how each misleads.

One place for charts, page and terminal. A key that is not known is still shown, under the key itself. Controls are
described where they are made, and found through the registry.
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


MEASURES: tuple[Measure, ...] = (
    Measure(
        "rec2ftp",
        "Rec2FTP",
        "Of the answers that finetuning put right, the share that context put right too.",
        "Read it beside its chance level: a good in-context learner recovers many answers by luck.",
    ),
    Measure(
        "sim_aou",
        "SimAOU",
        "Do context and finetuning move the attention output in the same direction? Cosine; 1: the same, 0: unrelated.",
        "The outputs are normalised before they are subtracted, which raises the score; compare with the controls.",
    ),
    Measure(
        "sim_aou_raw",
        "SimAOU, raw",
        "The same question, without normalising the outputs first.",
        "Part of an update may come from the query's later position alone.",
    ),
    Measure(
        "sim_am",
        "SimAM",
        "Do the prompted and the finetuned model look at the query's words alike? Cosine of scores before softmax.",
        "Adding a constant to the scores changes it, though it changes nothing that the model does.",
    ),
    Measure(
        "sim_am_before",
        "SimAM before finetuning",
        "The same likeness between the prompted and the unchanged model: where SimAM starts from.",
        "A starting point, not a likeness to finetuning.",
    ),
    Measure(
        "sim_am_centred",
        "SimAM, centred",
        "SimAM after removing each row's mean, so that added constants no longer count.",
        "High already before finetuning in most models.",
    ),
    Measure(
        "sim_am_softmax",
        "SimAM, after softmax",
        "SimAM of the attention weights themselves.",
        "A few tokens with large weights decide it.",
    ),
    Measure(
        "sim_am_delta",
        "SimAM of changes",
        "Do context and finetuning change the attention scores in the same direction?",
        "Small changes make it noisy.",
    ),
    Measure(
        "kendall",
        "Kendall, tokens",
        "Does the prompted model attend to the same training tokens that finetuning weighs most? Rank correlation.",
        "Neighbouring tokens are not independent.",
    ),
    Measure(
        "kendall_demo",
        "Kendall, demonstrations",
        "The same for whole demonstrations.",
        "Few demonstrations give few ranks.",
    ),
    Measure(
        "direct_update",
        "Direct update",
        "Cosine of the two weight updates themselves, in the linear form of attention.",
        "Holds as far as linear attention describes the head; see the relaxation.",
    ),
    Measure(
        "agreement",
        "Output agreement",
        "Share of the queries to which the prompted and the finetuned model give the same answer; 1: all of them.",
        "Even above the chance level below it, two models may agree because both answer as the unchanged model does.",
    ),
    Measure(
        "top_k_overlap",
        "Top tokens shared",
        "Of the ten likeliest next tokens of one model, the share that are among the other's ten; 1: the same ten.",
        "Both models may keep what the unchanged model finds likely.",
    ),
    Measure(
        "overlap_cosine",
        "Cosine over shared tokens",
        "Are those shared tokens also alike in probability? Cosine; 1: in proportion.",
        "Probabilities are positive and one token often has most, so nearly any pair scores high.",
    ),
    Measure(
        "vocabulary_shared",
        "Probability shared",
        "How much probability both models put on the same next tokens, over the whole vocabulary; 1: all of it.",
        "Context also teaches the form of the answer, which is no part of the label.",
    ),
    Measure(
        "relaxation",
        "Linear relaxation",
        "Does linear attention describe this model's heads? Cosine with the true output; 1: the same up to scale.",
        "Says whether the theory's premise holds, not whether its conclusion does.",
    ),
)

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


COUNTED = ("rec2ftp", "agreement")
"""Measures that are shares of answers: of few answers a count stands in their place."""


def is_count(key: str, estimate: Estimate) -> bool:
    """Whether a measure is a share of so few answers that it is reported as a count."""
    return key in COUNTED and is_few(estimate)


def score(key: str, estimate: Estimate) -> str:
    """A measure's value as `0.186`; a share of few answers as `3 of 4`."""
    return share(estimate) if is_count(key, estimate) else decimal(estimate.mean)


def score_interval(key: str, estimate: Estimate) -> str:
    """Its interval as `0.170 to 0.201`; a dash without one, and for a share of few answers."""
    return MISSING if is_count(key, estimate) else decimal_interval(estimate.ci95)


def measure_of(key: str) -> Measure:
    """The table's entry for `key`; one that is named by the key and says nothing where there is none."""
    return next((known for known in MEASURES if known.key == key), Measure(key, key, "", ""))


def control_of(key: str) -> Control:
    """The table's entry for `key`; one that is named by the key, and claims neither end, where there is none."""
    return next((known for known in known_controls() if known.key == key), Control(key, key, "", "comparison"))


def in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the table's order; unknown ones last, as they came."""
    order = {known.key: position for position, known in enumerate(MEASURES)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """The same for controls."""
    order = {known.key: position for position, known in enumerate(known_controls())}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

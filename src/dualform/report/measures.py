"""The measures of likeness and their controls: order, names, what each says and how each misleads.

One table for charts, page and terminal. A key that is not in it is still shown, under the key itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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


CONTROLS: tuple[Control, ...] = (
    Control("random", "random direction", "A random change of FT's size, with mean zero, in FT's place.", "floor"),
    Control(
        "random_released",
        "random update, as released",
        "Uniform random numbers in place of FT's difference of normalised outputs, as in the paper's released code.",
        "comparison",
    ),
    Control(
        "random_update",
        "random weight change",
        "Random changes of the key and value weights, of the size of FT's, averaged over five draws.",
        "floor",
    ),
    Control(
        "position_shift",
        "position shift",
        "Zero-shot behind a prefix that says nothing and is as long as the prompt, in ICL's place.",
        "floor",
    ),
    Control("shuffled_labels", "shuffled labels", "ICL on demonstrations whose labels were shuffled.", "floor"),
    Control("random_labels", "random labels", "ICL on demonstrations with labels drawn at random.", "floor"),
    Control("other_task", "another task", "ICL behind the demonstrations of another task.", "floor"),
    Control(
        "untrained",
        "untrained model",
        "ICL and FT of the same architecture with all weights as at initialisation.",
        "floor",
    ),
    Control(
        "embeddings",
        "only embeddings trained",
        "The untrained model with the trained model's embeddings.",
        "floor",
    ),
    Control("chance", "chance level", "What the shares of right answers alone would give.", "floor"),
    Control(
        "other_demonstrations",
        "other demonstrations",
        "FT on other demonstrations of the same task.",
        "comparison",
    ),
    Control("batch", "FT in one step", "FT as a single step on all demonstrations at once.", "comparison"),
    Control(
        "batch_sequential",
        "FT: one by one, one step",
        "FT one demonstration at a time beside FT in a single step.",
        "comparison",
    ),
    Control("lcgd", "layer-causal descent", "Each layer trained on its own output alone, in FT's place.", "comparison"),
    Control(
        "value_one_layer",
        "FT of one layer's values",
        "FT of the value weights of the middle layer alone, in FT's place.",
        "comparison",
    ),
    Control("mlp", "FT of the MLPs", "FT of the MLPs' weights alone, in FT's place.", "comparison"),
    Control("icl_order", "ICL, other order", "ICL beside itself with the demonstrations in another order.", "ceiling"),
    Control("ft_order", "FT, other order", "FT beside itself with the demonstrations in another order.", "ceiling"),
)

KINDS: tuple[tuple[ControlKind, str], ...] = (
    ("floor", "floors"),
    ("comparison", "comparisons"),
    ("ceiling", "ceilings"),
)
"""The kinds of control in the order in which they are shown, and what they are called."""


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
    return next((known for known in CONTROLS if known.key == key), Control(key, key, "", "comparison"))


def in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the table's order; unknown ones last, as they came."""
    order = {known.key: position for position, known in enumerate(MEASURES)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """The same for controls."""
    order = {known.key: position for position, known in enumerate(CONTROLS)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

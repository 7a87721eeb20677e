"""The measures of likeness and their controls: order, names, what each says and how each misleads.

One table for charts, page and terminal. A key that is not in it is still shown, under the key itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass


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
}
"""Names of the companions in `Similarity.details`."""


@dataclass(frozen=True)
class Control:
    """How one control is named and explained."""

    key: str
    """Its key in `Result.controls`."""
    title: str
    meaning: str
    floor: bool
    """True where a real likeness must lie above it; False for ceilings and comparisons."""


CONTROLS: tuple[Control, ...] = (
    Control("random", "random direction", "A random update of the same size, with mean zero.", True),
    Control("untrained", "untrained model", "The same model with all weights as at initialisation.", True),
    Control("shuffled_labels", "shuffled labels", "Demonstrations whose labels were shuffled.", True),
    Control("other_task", "another task", "Demonstrations of another task.", True),
    Control("position_shift", "position shift", "Zero-shot at the prompted query's positions.", True),
    Control("other_demonstrations", "other demonstrations", "Finetuned on other demonstrations of the task.", False),
    Control("icl_order", "ceiling: ICL, other order", "Context beside itself in another order.", False),
    Control("ft_order", "ceiling: FT, other order", "Finetuning beside itself in another order.", False),
    Control("lcgd", "layer-causal descent", "Each layer trained on its own output alone.", False),
)


def measure_of(key: str) -> Measure:
    """The table's entry for `key`; one that is named by the key and says nothing where there is none."""
    return next((known for known in MEASURES if known.key == key), Measure(key, key, "", ""))


def control_of(key: str) -> Control:
    """The table's entry for `key`; one that is named by the key, and no floor, where there is none."""
    return next((known for known in CONTROLS if known.key == key), Control(key, key, "", False))


def in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the table's order; unknown ones last, as they came."""
    order = {known.key: position for position, known in enumerate(MEASURES)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))


def controls_in_order(keys: Iterable[str]) -> list[str]:
    """The same for controls."""
    order = {known.key: position for position, known in enumerate(CONTROLS)}
    return sorted(keys, key=lambda key: order.get(key, len(order)))

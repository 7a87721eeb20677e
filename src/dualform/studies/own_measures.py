"""The measures that come with dualform: meaning, source, range and chance level. `pair_measures` computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualform.studies.measures import Measure

if TYPE_CHECKING:
    from torch import Tensor

    from dualform.studies.sides import SidePair


@dataclass(frozen=True, kw_only=True)
class OwnMeasure(Measure):
    """A measure that is computed by the function of the same name in `pair_measures`."""

    def compute(self, pair: SidePair) -> Mapping[str, Tensor]:
        """The measure and its details for one group of queries."""
        # Imported here because pages read this module without loading torch.
        from dualform.studies import pair_measures

        values: Mapping[str, Tensor] = getattr(pair_measures, self.name)(pair)
        return values


REC2FTP = Measure(
    name="rec2ftp",
    title="Rec2FTP",
    meaning="Of the wrong zero-shot answers that finetuning corrected, the share that context corrected too.",
    caution="Compare it with its chance level: a good in-context learner recovers many answers by luck.",
    source="arXiv:2212.10559v3, section 4.3; the chance level is dualform's own",
    range=(0, 1),
    chance="the share that context corrected of all wrong zero-shot answers",
    counts_answers=True,
)
"""Computed by the study, because it needs the answers to all queries at once."""
SIM_AOU = OwnMeasure(
    name="sim_aou",
    title="SimAOU",
    meaning="Do context and finetuning move the attention output in the same direction? Cosine; 1: the same, 0: "
    "unrelated.",
    caution="The outputs are normalised before they are subtracted, which raises the score; compare with the controls.",
    source="arXiv:2212.10559v3, section 4.4",
    range=(-1, 1),
    chance="above 0, because normalising raises it: the controls say how far",
    needs=("output",),
)
SIM_AOU_RAW = OwnMeasure(
    name="sim_aou_raw",
    title="SimAOU, raw",
    meaning="SimAOU without normalising the outputs first.",
    caution="Part of an update may come from the query's later position alone.",
    source="arXiv:2212.10559v3, section 4.4; departs from it by not normalising",
    details={
        "norm_icl": "length of ICL's change",
        "norm_ft": "length of FT's change",
        "norm_ratio": "FT's length / ICL's",
    },
    range=(-1, 1),
    chance="0 for unrelated directions",
    needs=("output",),
)
SIM_AM = OwnMeasure(
    name="sim_am",
    title="SimAM",
    meaning="Do both models attend to the query's tokens alike? Cosine of the attention scores before softmax.",
    caution="It changes when a constant is added to the scores, although the model's output does not.",
    source="arXiv:2212.10559v3, section 4.5",
    range=(-1, 1),
    chance="far above 0, because both sides' scores stem from the same model: see SimAM before finetuning",
    needs=("scores",),
    compares="states",
)
SIM_AM_BEFORE = OwnMeasure(
    name="sim_am_before",
    title="SimAM before finetuning",
    meaning="SimAM between the prompted and the unchanged model: where SimAM starts before finetuning.",
    caution="A starting point, not a similarity to finetuning.",
    source="arXiv:2212.10559v3, section 4.5 (before finetuning)",
    range=(-1, 1),
    chance="as for SimAM",
    needs=("scores",),
    compares="states",
    in_controls=False,
)
SIM_AM_CENTRED = OwnMeasure(
    name="sim_am_centred",
    title="SimAM, centred",
    meaning="SimAM after removing each row's mean, so that added constants no longer count.",
    caution="High already before finetuning in most models.",
    source="arXiv:2212.10559v3, section 4.5; departs from it by centring each row",
    range=(-1, 1),
    chance="far above 0, as for SimAM",
    needs=("scores",),
    compares="states",
)
SIM_AM_SOFTMAX = OwnMeasure(
    name="sim_am_softmax",
    title="SimAM, after softmax",
    meaning="SimAM of the attention weights, after softmax.",
    caution="A few tokens with large weights decide it.",
    source="arXiv:2212.10559v3, section 4.5; departs from it by comparing after softmax",
    range=(0, 1),
    chance="far above 0, as for SimAM",
    needs=("scores",),
    compares="states",
)
SIM_AM_DELTA = OwnMeasure(
    name="sim_am_delta",
    title="SimAM of changes",
    meaning="Do context and finetuning change the attention scores in the same direction?",
    caution="Small changes make it noisy.",
    source="arXiv:2311.07772, the corrected SimAM",
    range=(-1, 1),
    chance="0 for unrelated directions",
    needs=("scores",),
)
KENDALL = OwnMeasure(
    name="kendall",
    title="Kendall, tokens",
    meaning="Does the prompted model attend to the same training tokens that finetuning weighs most? Rank correlation.",
    caution="Neighbouring tokens are not independent.",
    source="arXiv:2212.10559v3, section 4.6",
    range=(-1, 1),
    chance="0 for independent orders",
    needs=("ranks",),
)
KENDALL_DEMO = OwnMeasure(
    name="kendall_demo",
    title="Kendall, demonstrations",
    meaning="Kendall's tau over whole demonstrations in place of their tokens.",
    caution="With few demonstrations there are few ranks to compare.",
    source="arXiv:2212.10559v3, section 4.6, for whole demonstrations: dualform's own",
    range=(-1, 1),
    chance="0 for independent orders",
    needs=("ranks",),
)
DIRECT_UPDATE = OwnMeasure(
    name="direct_update",
    title="Direct update",
    meaning="Cosine of the two weight updates themselves, in the linear form of attention.",
    caution="Meaningful only as far as linear attention describes the head; see the linear relaxation.",
    source="arXiv:2212.10559v3, equations (12) and (13), compared with each other: dualform's own",
    range=(-1, 1),
    chance="0 for unrelated directions",
    needs=("update",),
    heads="key_value",
)
AGREEMENT = OwnMeasure(
    name="agreement",
    title="Output agreement",
    meaning="Share of the queries to which the prompted and the finetuned model give the same answer; 1: all of them.",
    caution="Two models may agree more often than by chance only because both answer as the unchanged model does.",
    source="dualform's own; related to arXiv:2310.08540",
    details={
        "chance": "chance level (independent)",
        "total_variation": "total variation (0 = same)",
        "kl_icl_ft": "KL(ICL, FT), nats (0 = same)",
        # Earlier versions wrote these two here.
        "top_k_overlap": "top tokens shared",
        "overlap_cosine": "cosine over shared tokens",
    },
    range=(0, 1),
    chance="the agreement expected from how often each side gives each answer (`chance`)",
    needs=("answers",),
    compares="states",
    counts_answers=True,
)
TOP_K_OVERLAP = OwnMeasure(
    name="top_k_overlap",
    title="Top tokens shared",
    meaning="The share of one model's ten likeliest next tokens that are among the other's ten; 1: the same ten.",
    caution="Both models may keep what the unchanged model finds likely.",
    source="arXiv:2310.08540, token overlap",
    range=(0, 1),
    chance="ten divided by the size of the vocabulary",
    needs=("answers",),
    compares="states",
)
OVERLAP_COSINE = OwnMeasure(
    name="overlap_cosine",
    title="Cosine over shared tokens",
    meaning="Do both models give the shared top tokens similar probabilities? Cosine; 1: proportional ones.",
    caution="Probabilities are positive and one token often has most, so nearly any pair scores high.",
    source="arXiv:2310.08540, restricted to the common tokens",
    range=(0, 1),
    chance="near 1, since probabilities are positive",
    needs=("answers",),
    compares="states",
)
VOCABULARY_SHARED = OwnMeasure(
    name="vocabulary_shared",
    title="Probability shared",
    meaning="The probability that both models give to the same next tokens, over the whole vocabulary; 1: all of it.",
    caution="Context also teaches the form of the answer, which is not part of the label.",
    source="dualform's own: 1 minus the total variation distance",
    range=(0, 1),
    chance="depends on the model: what any two prompts have in common",
    needs=("answers",),
    compares="states",
)
RELAXATION = Measure(
    name="relaxation",
    title="Linear relaxation",
    meaning="Does linear attention describe this model's heads? Cosine with the true output; 1: the same up to scale.",
    caution="Tests the premise of the theory, not its conclusion.",
    source="arXiv:2212.10559v3, section 3.1: how far its linear attention describes the heads; dualform's own",
    details={"relative_error": "relative error (0 = linear)"},
    range=(-1, 1),
    chance="0 for unrelated directions",
)
"""Computed by the study for ICL alone (`PromptedSide.relaxation`)."""

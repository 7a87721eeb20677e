"""A measure: do context and finetuning move the last hidden state in the same direction?"""

from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from dualform.studies.measures import Measure


@dataclass(frozen=True, kw_only=True)
class HiddenSimilarity(Measure):
    def compute(self, pair):
        before, first, second = (side.hidden.double() for side in (pair.zsl, pair.a.readings, pair.b.readings))
        return {self.name: cosine_similarity(first - before, second - before, dim=-1)}  # (example,)


SIM_HIDDEN = HiddenSimilarity(
    name="sim_hidden",
    title="SimHidden",
    meaning="Do context and finetuning move the last hidden state in the same direction? Cosine.",
    caution="The last hidden state also holds what no answer depends on.",
    source="Of our own, after SimAOU of arXiv:2212.10559v3, section 4.4.",
    range=(-1, 1),
    chance="0 for unrelated directions",
    needs=("answers",),  # sides that are made up have no hidden states of their own
)

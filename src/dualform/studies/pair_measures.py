"""The functions that compute dualform's own measures of a pair of sides; `own_measures` describes them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dualform.ops import agreement as answers
from dualform.ops import similarity
from dualform.ops.rank import demonstration_log_mass, kendall_tau_b
from dualform.studies.sides import SidePair

# Relative change of a row of scores that rounding of rotary angles in float32 can cause at some thousand positions.
_ROUNDING = 1e-3

Values = Mapping[str, Tensor]


def agreement(pair: SidePair) -> Values:
    """Whether both sides give the same answer, and how much their probabilities differ."""
    a, b = pair.a.readings.log_probabilities, pair.b.readings.log_probabilities
    return {
        "agreement": answers.label_agreement(a, b),
        "agreement.total_variation": answers.total_variation(a, b),
        "agreement.kl_icl_ft": answers.kl_divergence(a, b),
    }


def top_k_overlap(pair: SidePair) -> Values:
    """Overlap of both sides' likeliest next tokens."""
    return {"top_k_overlap": answers.top_k_overlap(pair.a.readings.next_token, pair.b.readings.next_token)}


def overlap_cosine(pair: SidePair) -> Values:
    """Cosine of the probabilities of the shared top tokens."""
    return {"overlap_cosine": answers.overlap_cosine(pair.a.readings.next_token, pair.b.readings.next_token)}


def vocabulary_shared(pair: SidePair) -> Values:
    """Probability that both sides give to the same tokens."""
    return {"vocabulary_shared": 1 - answers.total_variation(pair.a.readings.next_token, pair.b.readings.next_token)}


def sim_am(pair: SidePair) -> Values:
    """Cosine of both sides' attention scores."""
    a, b = _scores(pair)
    return {"sim_am": similarity.sim_am(a, b, pair.before.mask)}


def sim_am_before(pair: SidePair) -> Values:
    """Cosine of the first side's attention scores and zero-shot's."""
    a, _ = _scores(pair)
    assert pair.before.scores is not None
    return {"sim_am_before": similarity.sim_am(a, pair.before.scores, pair.before.mask)}


def sim_am_centred(pair: SidePair) -> Values:
    """Cosine of both sides' attention scores after removing each row's mean."""
    a, b = _scores(pair)
    return {"sim_am_centred": similarity.sim_am_centred(a, b, pair.before.mask)}


def sim_am_softmax(pair: SidePair) -> Values:
    """Cosine of both sides' attention weights."""
    a, b = _scores(pair)
    return {"sim_am_softmax": similarity.sim_am_softmax(a, b, pair.before.mask)}


def sim_am_delta(pair: SidePair) -> Values:
    """Cosine of both sides' changes of the scores; NaN where `moved_by` changed them by no more than rounding."""
    (a, b), before = _scores(pair), pair.before
    assert before.scores is not None
    assert pair.moved_by.scores is not None
    delta = similarity.sim_am_delta(before.scores, a, b, before.mask)
    unmoved = _unmoved(before.scores, pair.moved_by.scores, before.mask)
    return {"sim_am_delta": delta.masked_fill(unmoved, torch.nan)}


def sim_aou(pair: SidePair) -> Values:
    """Cosine of both sides' changes of the normalised attention outputs."""
    return {"sim_aou": similarity.sim_aou(*_outputs(pair))}


def sim_aou_raw(pair: SidePair) -> Values:
    """Cosine of both sides' changes of the attention outputs, and the lengths of both changes."""
    zsl, a, b = _outputs(pair)
    moved_a, moved_b = ((side - zsl).norm(dim=-1) for side in (a, b))
    return {
        "sim_aou_raw": similarity.sim_aou_raw(zsl, a, b),
        "sim_aou_raw.norm_icl": moved_a,
        "sim_aou_raw.norm_ft": moved_b,
        "sim_aou_raw.norm_ratio": torch.where(moved_a > 0, moved_b / moved_a, torch.nan),
    }


def kendall(pair: SidePair) -> Values:
    """Kendall's tau of both rankings of demonstration tokens; empty where the sides have different tokens."""
    a, b, owners_a, owners_b = _ranks(pair)
    return {"kendall": kendall_tau_b(a, b)} if torch.equal(owners_a, owners_b) else {}


def kendall_demo(pair: SidePair) -> Values:
    """Kendall's tau of both rankings of whole demonstrations."""
    a, b, owners_a, owners_b = _ranks(pair)
    n = int(max(owners_a.max(), owners_b.max())) + 1
    # A single demonstration has no rank. NaN rather than nothing keeps the measure in the tables of other seeds.
    if n == 1:
        return {"kendall_demo": torch.full(a.shape[:2], torch.nan, dtype=a.dtype)}
    masses = demonstration_log_mass(a, owners_a, n), demonstration_log_mass(b, owners_b, n)
    return {"kendall_demo": kendall_tau_b(*masses)}


def direct_update(pair: SidePair) -> Values:
    """Cosine of both weight changes in the linear form."""
    assert pair.a.update is not None
    assert pair.b.update is not None
    return {"direct_update": similarity.direct_update(pair.a.update, pair.b.update)}


def _scores(pair: SidePair) -> tuple[Tensor, Tensor]:
    assert pair.a.trace.scores is not None
    assert pair.b.trace.scores is not None
    return pair.a.trace.scores, pair.b.trace.scores


def _outputs(pair: SidePair) -> tuple[Tensor, Tensor, Tensor]:
    zsl, a, b = pair.before.output, pair.a.trace.output, pair.b.trace.output
    assert zsl is not None
    assert a is not None
    assert b is not None
    return zsl, a, b


def _ranks(pair: SidePair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = pair.a, pair.b
    assert a.ranks is not None
    assert b.ranks is not None
    assert a.demonstration_of is not None
    assert b.demonstration_of is not None
    return a.ranks, b.ranks, a.demonstration_of, b.demonstration_of


def _unmoved(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """True where the scores changed by no more than rounding, `(example, layer, head)`.

    With rotary positions the first layer's scores among a query's own tokens do not depend on the tokens before them,
    but angles of large positions are rounded, so the direction of their "change" is noise.
    """
    scored = mask[:, None, None] & before.isfinite() & after.isfinite()
    change = torch.where(scored, after - before, 0.0).norm(dim=-1)
    return change <= _ROUNDING * torch.where(scored, before, 0.0).norm(dim=-1)

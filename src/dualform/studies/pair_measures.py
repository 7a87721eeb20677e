"""The functions of dualform's own measures, each of a pair of sides; `own_measures` says what they are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dualform.ops import agreement as answers
from dualform.ops import similarity
from dualform.ops.rank import demonstration_log_mass, kendall_tau_b
from dualform.studies.sides import SidePair

# Relative change of a row of scores that float32 angles of some thousand positions can feign.
_ROUNDING = 1e-3

Found = Mapping[str, Tensor]


def agreement(pair: SidePair) -> Found:
    """Whether both give the same answer, and how far apart their probabilities are."""
    a, b = pair.a.readings.log_probabilities, pair.b.readings.log_probabilities
    return {
        "agreement": answers.label_agreement(a, b),
        "agreement.total_variation": answers.total_variation(a, b),
        "agreement.kl_icl_ft": answers.kl_divergence(a, b),
    }


def top_k_overlap(pair: SidePair) -> Found:
    """Of the likeliest next tokens."""
    return {"top_k_overlap": answers.top_k_overlap(pair.a.readings.next_token, pair.b.readings.next_token)}


def overlap_cosine(pair: SidePair) -> Found:
    """Of the shared ones' probabilities."""
    return {"overlap_cosine": answers.overlap_cosine(pair.a.readings.next_token, pair.b.readings.next_token)}


def vocabulary_shared(pair: SidePair) -> Found:
    """Of the whole vocabulary's probability."""
    return {"vocabulary_shared": 1 - answers.total_variation(pair.a.readings.next_token, pair.b.readings.next_token)}


def sim_am(pair: SidePair) -> Found:
    """Of both sides' scores."""
    a, b = _scores(pair)
    return {"sim_am": similarity.sim_am(a, b, pair.before.mask)}


def sim_am_before(pair: SidePair) -> Found:
    """Of the first side's scores and zero-shot's."""
    a, _ = _scores(pair)
    assert pair.before.scores is not None
    return {"sim_am_before": similarity.sim_am(a, pair.before.scores, pair.before.mask)}


def sim_am_centred(pair: SidePair) -> Found:
    """Of both sides' scores, each row's mean removed."""
    a, b = _scores(pair)
    return {"sim_am_centred": similarity.sim_am_centred(a, b, pair.before.mask)}


def sim_am_softmax(pair: SidePair) -> Found:
    """Of both sides' attention weights."""
    a, b = _scores(pair)
    return {"sim_am_softmax": similarity.sim_am_softmax(a, b, pair.before.mask)}


def sim_am_delta(pair: SidePair) -> Found:
    """Of both sides' changes of scores, where the context has changed any."""
    (a, b), before = _scores(pair), pair.before
    assert before.scores is not None
    assert pair.moved_by.scores is not None
    delta = similarity.sim_am_delta(before.scores, a, b, before.mask)
    unmoved = _unmoved(before.scores, pair.moved_by.scores, before.mask)
    return {"sim_am_delta": delta.masked_fill(unmoved, torch.nan)}


def sim_aou(pair: SidePair) -> Found:
    """Of both sides' changes of attention outputs, normalised."""
    return {"sim_aou": similarity.sim_aou(*_outputs(pair))}


def sim_aou_raw(pair: SidePair) -> Found:
    """The same without normalising, and how long both changes are."""
    zsl, a, b = _outputs(pair)
    moved_a, moved_b = ((side - zsl).norm(dim=-1) for side in (a, b))
    return {
        "sim_aou_raw": similarity.sim_aou_raw(zsl, a, b),
        "sim_aou_raw.norm_icl": moved_a,
        "sim_aou_raw.norm_ft": moved_b,
        "sim_aou_raw.norm_ratio": torch.where(moved_a > 0, moved_b / moved_a, torch.nan),
    }


def kendall(pair: SidePair) -> Found:
    """Of both orders of the demonstrations' tokens; nothing where the sides' tokens are not the same."""
    a, b, owners_a, owners_b = _ranks(pair)
    return {"kendall": kendall_tau_b(a, b)} if torch.equal(owners_a, owners_b) else {}


def kendall_demo(pair: SidePair) -> Found:
    """Of both orders of whole demonstrations."""
    a, b, owners_a, owners_b = _ranks(pair)
    n = int(max(owners_a.max(), owners_b.max())) + 1
    # One demonstration has no rank: its tau is NaN, and the measure stays in the tables of the other seeds.
    if n == 1:
        return {"kendall_demo": torch.full(a.shape[:2], torch.nan, dtype=a.dtype)}
    masses = demonstration_log_mass(a, owners_a, n), demonstration_log_mass(b, owners_b, n)
    return {"kendall_demo": kendall_tau_b(*masses)}


def direct_update(pair: SidePair) -> Found:
    """Of both changes of weight in the linear form."""
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
    """True where scores changed by no more than rounding, `(example, layer, head)`.

    With rotary positions the first layer's scores among a query's own tokens cannot depend on what stands before
    them, but angles of large positions are rounded: the "change" is then noise, and its direction means nothing.
    """
    shown = mask[:, None, None] & before.isfinite() & after.isfinite()
    change = torch.where(shown, after - before, 0.0).norm(dim=-1)
    return change <= _ROUNDING * torch.where(shown, before, 0.0).norm(dim=-1)

"""The measures of one group of queries, from what zero-shot, ICL and FT showed inside.

Every number here belongs to one query (and layer, and head), so groups can be read and let go one by one: memory
does not grow with the number of queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptedModel
from dualform.models.anatomy import Anatomy
from dualform.models.capture import Recording, Trace
from dualform.models.encoding import EncodedDemonstrations
from dualform.models.language_model import Readings
from dualform.ops.agreement import kl_divergence, label_agreement, overlap_cosine, top_k_overlap, total_variation
from dualform.ops.dual_form import outer_product_update, relaxation
from dualform.ops.random_update import matched_random
from dualform.ops.rank import demonstration_log_mass, ft_logits, icl_logits, kendall_tau_b
from dualform.ops.similarity import (
    direct_update,
    sim_am,
    sim_am_centred,
    sim_am_delta,
    sim_am_softmax,
    sim_aou,
    sim_aou_raw,
)

# Relative change of a row of scores that float32 angles of some thousand positions can feign.
_ROUNDING = 1e-3
# Logits nearer than this part of the row's largest are ties.
_TIED = 1e-5


@dataclass(frozen=True)
class Recordings:
    """What each learner must show for the measures."""

    zsl: Recording
    icl: Recording
    ft: Recording


def recordings_for(anatomy: Anatomy, n_demonstrations: int) -> Recordings:
    """All that can be measured: outputs only where every W_O is known, contexts only where there is one."""
    output = all(layer.W_O is not None for layer in anatomy.layers)
    some = n_demonstrations > 0
    return Recordings(
        zsl=Recording(output=output, scores=True, update=some),
        icl=Recording(output=output, scores=True, demo_scores=some, q=some, head_output=some, update=some),
        ft=Recording(output=output, scores=True, q=some, update=some),
    )


@dataclass(frozen=True)
class Context:
    """The demonstrations as both sides saw them, for the measures that look at them."""

    content: Tensor
    """Positions of demonstration tokens in the prefix, `(demo_pos,)`."""
    demonstration_of: Tensor
    """Demonstration of each, `(demo_pos,)`."""
    n_demonstrations: int
    training_q: Tensor
    """Attention queries at those tokens while finetuning passed over them, `(layer, demo_pos, head, d_head)`."""
    delta_icl: Tensor
    """sum_i v_i k_i^T over demonstration tokens, `(layer, kv_head, d_v, d_k)`."""
    prefix_update: Tensor
    """The same over the whole prefix, opening token and separators included."""


def context_of(icl: AdaptedModel, ft: AdaptedModel, demonstrations: EncodedDemonstrations) -> Context | None:
    """Gather it once for all groups; None without demonstrations."""
    if not demonstrations.sequences or ft.training_q is None:
        return None
    content = torch.tensor(demonstrations.content, device=icl.lm.device)

    def update(columns: Tensor | slice) -> Tensor:
        return torch.stack([outer_product_update(v[:, columns], k[:, columns]) for k, v in icl.prefix.layers])

    return Context(
        content=content,
        demonstration_of=torch.tensor(demonstrations.demonstration_of, device=content.device),
        n_demonstrations=len(demonstrations.sequences),
        training_q=ft.training_q,
        delta_icl=update(content),
        prefix_update=update(slice(None)),
    )


def measure(zsl: Readings, icl: Readings, ft: Readings, context: Context | None, seed: int) -> dict[str, Tensor]:
    """Every measure of one group.

    Args:
        zsl: Zero-shot readings of the group, with its trace.
        icl: The same under ICL.
        ft: The same under FT.
        context: The demonstrations; None leaves out what needs them.
        seed: For the random control, which draws anew for each query, so that grouping does not matter.

    Returns:
        Measure name -> tensor on the CPU whose first axis is `example`, then `layer`, then `head` where it has them.
        Names with a dot are companions of the measure before the dot; `control.NAME.MEASURE` are controls.
    """
    assert zsl.trace is not None
    assert icl.trace is not None
    assert ft.trace is not None
    found = _output_agreement(icl, ft)
    found |= _attention_maps(zsl.trace, icl.trace, ft.trace)
    found |= _attention_outputs(zsl.trace, icl.trace, ft.trace, seed, zsl.queries)
    if context is not None:
        found |= _demonstrations(zsl.trace, icl.trace, ft.trace, context)
    return {name: value.detach().to("cpu", torch.float64) for name, value in found.items()}


def _output_agreement(icl: Readings, ft: Readings) -> dict[str, Tensor]:
    return {
        "agreement": label_agreement(icl.log_probabilities, ft.log_probabilities),
        "agreement.total_variation": total_variation(icl.log_probabilities, ft.log_probabilities),
        "agreement.kl_icl_ft": kl_divergence(icl.log_probabilities, ft.log_probabilities),
        "agreement.top_k_overlap": top_k_overlap(icl.next_token, ft.next_token),
        "agreement.overlap_cosine": overlap_cosine(icl.next_token, ft.next_token),
    }


def _attention_maps(zsl: Trace, icl: Trace, ft: Trace) -> dict[str, Tensor]:
    assert zsl.scores is not None
    assert icl.scores is not None
    assert ft.scores is not None
    mask = zsl.mask
    delta = sim_am_delta(zsl.scores, icl.scores, ft.scores, mask)
    return {
        "sim_am": sim_am(icl.scores, ft.scores, mask),
        "sim_am_before": sim_am(icl.scores, zsl.scores, mask),
        "sim_am_centred": sim_am_centred(icl.scores, ft.scores, mask),
        "sim_am_softmax": sim_am_softmax(icl.scores, ft.scores, mask),
        "sim_am_delta": delta.masked_fill(_unmoved(zsl.scores, icl.scores, mask), torch.nan),
    }


def _unmoved(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """True where scores changed by no more than rounding, `(example, layer, head)`.

    With rotary positions the first layer's scores among a query's own tokens cannot depend on what stands before
    them, but angles of large positions are rounded: the "change" is then noise, and its direction means nothing.
    """
    shown = mask[:, None, None] & before.isfinite() & after.isfinite()
    change = torch.where(shown, after - before, 0.0).norm(dim=-1)
    return change <= _ROUNDING * torch.where(shown, before, 0.0).norm(dim=-1)


def _attention_outputs(zsl: Trace, icl: Trace, ft: Trace, seed: int, queries: Sequence[int]) -> dict[str, Tensor]:
    if zsl.output is None or icl.output is None or ft.output is None:
        return {}
    # What FT changes, turned into a random direction of the same length: the score when only sizes agree.
    generators = [torch.Generator().manual_seed(1_000_003 * seed + query) for query in queries]
    updates = zip(ft.output - zsl.output, generators, strict=True)
    random_ft = zsl.output + torch.stack([matched_random(update, generator) for update, generator in updates])
    return {
        "sim_aou": sim_aou(zsl.output, icl.output, ft.output),
        "sim_aou_raw": sim_aou_raw(zsl.output, icl.output, ft.output),
        "control.random.sim_aou": sim_aou(zsl.output, icl.output, random_ft),
        "control.random.sim_aou_raw": sim_aou_raw(zsl.output, icl.output, random_ft),
    }


def _settled(logits: Tensor) -> Tensor:
    """Logits on a grid so coarse that rounding does not decide ranks, `(..., demo_pos)`.

    The same word at the same position of two training sequences has the same query in the first layer, but rounding
    sets them a hair apart, and would then decide their rank.
    """
    largest = logits.masked_fill(~logits.isfinite(), 0.0).abs().amax(dim=-1, keepdim=True)
    step = (largest * _TIED).clamp(min=torch.finfo(logits.dtype).tiny)
    return torch.where(logits.isfinite(), (logits / step).round() * step, logits)


def _demonstrations(zsl: Trace, icl: Trace, ft: Trace, context: Context) -> dict[str, Tensor]:
    assert icl.demo_scores is not None
    assert icl.q is not None
    assert icl.head_output is not None
    assert ft.q is not None
    assert icl.update is not None
    assert ft.update is not None
    assert zsl.update is not None
    icl_side = _settled(icl_logits(icl.demo_scores[..., context.content]))
    ft_side = _settled(ft_logits(context.training_q, ft.q))
    owner, n = context.demonstration_of, context.n_demonstrations
    groups = icl.q.shape[2] // icl.update.shape[2]
    whole = relaxation(
        icl.update.repeat_interleave(groups, dim=2),
        context.prefix_update.repeat_interleave(groups, dim=1)[None],
        icl.q,
        icl.head_output,
    )
    found = {
        "kendall": kendall_tau_b(icl_side, ft_side),
        "direct_update": direct_update(context.delta_icl[None], ft.update - zsl.update),
        "relaxation": whole.cosine,
        "relaxation.relative_error": whole.relative_error,
    }
    # One demonstration has no rank: its tau is NaN, and the measure stays in the tables of the other seeds.
    masses = demonstration_log_mass(icl_side, owner, n), demonstration_log_mass(ft_side, owner, n)
    found["kendall_demo"] = kendall_tau_b(*masses) if n > 1 else torch.full_like(found["kendall"], torch.nan)
    return found

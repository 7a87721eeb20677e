"""The two sides of a comparison, and the measures computed from them for one group of queries.

A side is one of two adapted models that are compared: ICL and FT in the comparison itself, and in a control whatever
replaces one of them. Every number belongs to one query (and layer, and head), so a group's activations can be released
once it has been measured, and memory does not grow with the number of queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptedModel
from dualform.models.reading.capture import Recording, Trace, stack_layers
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import Readings
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.query_scale import query_scale
from dualform.ops.cosine import cosine, unit, widened
from dualform.ops.dual_form import outer_product_update, relaxation
from dualform.ops.random_update import matched_random, released_random
from dualform.ops.rank import ft_logits, icl_logits
from dualform.ops.streams import stream
from dualform.studies.measures import MEASURES, Need

# Logits that differ by less than this share of the row's largest count as ties.
_TIE_TOLERANCE = 1e-5


RankScale = Literal["attention", "released"]
"""How Q'^T q is scaled: as the layer scales its scores, or by 1 / d_head as in the code released with
arXiv:2212.10559."""


@dataclass(frozen=True)
class Recordings:
    """What must be recorded of zero-shot and of both kinds of side."""

    zsl: Recording
    context: Recording
    """For a model that reads demonstrations in its context."""
    weights: Recording
    """For a model with changed weights."""


def recordings_for(anatomy: Anatomy, n_demonstrations: int) -> Recordings:
    """Record everything measurable: outputs where every W_O is known, contexts where there are demonstrations."""
    if not anatomy.layers:
        return Recordings(Recording(), Recording(), Recording())
    output = anatomy.knows_outputs
    has_context = n_demonstrations > 0
    return Recordings(
        zsl=Recording(output=output, scores=True, update=has_context),
        context=Recording(
            output=output,
            scores=True,
            demo_scores=has_context,
            q=has_context,
            mixed=has_context,
            update=has_context,
        ),
        weights=Recording(output=output, scores=True, q=has_context, update=has_context),
    )


@dataclass(frozen=True)
class DemonstrationTokens:
    """Where the tokens of the demonstrations are in one side's prefix."""

    content: Tensor
    """Positions of demonstration tokens in the prefix, `(demo_pos,)`, in the order in which the sides are compared."""
    demonstration_of: Tensor
    """The demonstration that each token belongs to, `(demo_pos,)`, numbered in that order."""
    columns: Tensor
    """Indices of these tokens among the side's own demonstration tokens, `(demo_pos,)`."""
    n: int
    """Number of demonstrations."""

    @classmethod
    def of(
        cls, encoded: EncodedDemonstrations, device: torch.device, places: Sequence[int] | None = None
    ) -> "DemonstrationTokens":
        """Locate the tokens.

        Args:
            encoded: The side's demonstrations.
            device: Device of the tensors.
            places: Where the side has the demonstrations in another order: `places[i]` is the side's own index of the
                demonstration that is compared as the i-th. None: the same order.
        """
        n = len(encoded.sequences)
        columns, owners = [], []
        for number, place in enumerate(range(n) if places is None else places):
            of_demonstration = [column for column, owner in enumerate(encoded.demonstration_of) if owner == place]
            columns += of_demonstration
            owners += [number] * len(of_demonstration)
        indices = torch.tensor(columns, dtype=torch.long, device=device)
        content = torch.tensor(encoded.content, dtype=torch.long, device=device)[indices]
        return cls(content, torch.tensor(owners, dtype=torch.long, device=device), indices, n)


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared, for one group of queries."""

    readings: Readings
    trace: Trace
    ranks: Tensor | None = None
    """Logits that weight the demonstrations' tokens, `(example, layer, demo_pos)`; None where the side has none, or its
    tokens differ from the other side's."""
    demonstration_of: Tensor | None = None
    """The demonstration that each of these tokens belongs to, `(demo_pos,)`."""
    update: Tensor | None = None
    """Weight change in the linear form, `(example or 1, layer, kv_head, d_v, d_k)`."""


@dataclass(frozen=True)
class PromptedSide:
    """A model with a prefix, from which the sides of all groups are made: what the groups share."""

    adapted: AdaptedModel
    tokens: DemonstrationTokens | None
    """Its demonstrations; None where their tokens differ from those of the other side."""
    update: Tensor | None
    """sum_i v_i k_i^T over demonstration tokens, `(layer, kv_head, d_v, d_k)`; None for an empty context."""
    whole_update: Tensor | None
    """The same sum over the whole prefix, opening token and separators included."""

    @classmethod
    def of(cls, adapted: AdaptedModel, content: Tensor | None, tokens: DemonstrationTokens | None) -> "PromptedSide":
        """Compute the updates of a prefix.

        Args:
            adapted: The model with its prefix.
            content: Positions of the demonstrations' tokens; None for an empty context.
            tokens: The demonstrations; None where their tokens differ from those of the other side.
        """
        if content is None:
            return cls(adapted, None, None, None)
        # The layers of a divided model are on several devices; traces are on one.
        layers = [(key.to(content.device), value.to(content.device)) for key, value in adapted.prefix.layers]
        update = stack_layers([outer_product_update(v[:, content], k[:, content]) for k, v in layers], dim=0)
        whole = stack_layers([outer_product_update(v, k) for k, v in layers], dim=0)
        return cls(adapted, tokens, update, whole)

    def side(self, readings: Readings) -> Side:
        """The side for one group of queries."""
        trace = _trace_of(readings)
        ranks = None
        if self.tokens is not None:
            assert trace.demo_scores is not None
            ranks = _round_to_grid(icl_logits(trace.demo_scores[..., self.tokens.content]))
        owners = None if self.tokens is None else self.tokens.demonstration_of
        update = None if self.update is None else self.update[None]
        return Side(readings, trace, ranks, owners, update)

    def relaxation(self, readings: Readings) -> dict[str, Tensor]:
        """How well linear attention describes the heads that read this prefix."""
        trace = _trace_of(readings)
        if self.whole_update is None or trace.mixed is None:
            return {}
        assert trace.update is not None
        assert trace.q is not None
        whole = relaxation(
            _by_attention_head(trace.update, trace),
            _by_attention_head(self.whole_update[None], trace),
            trace.q,
            trace.mixed,
        )
        measures = {"relaxation": whole.cosine, "relaxation.relative_error": whole.relative_error}
        return _finish(measures, trace)


def trained_side(
    adapted: AdaptedModel,
    readings: Readings,
    zsl: Readings,
    tokens: DemonstrationTokens | None,
    scaled: RankScale = "attention",
) -> Side:
    """The side of a model with changed weights for one group of queries.

    Args:
        adapted: The model.
        readings: Its readings of the group.
        zsl: Zero-shot readings of the same queries.
        tokens: The demonstrations; None where their tokens differ from those of the other side.
        scaled: How Q'^T q is scaled. The order of whole demonstrations depends on it, that of tokens does not.
    """
    trace, before = _trace_of(readings), _trace_of(zsl)
    ranks = None
    if tokens is not None and adapted.training_q is not None and trace.q is not None:
        logits = ft_logits(adapted.training_q[:, tokens.columns], trace.q)
        factors = query_scale(adapted.lm)
        factor = factors.as_attention if scaled == "attention" else factors.twice
        ranks = _round_to_grid(logits * factor.to(logits)[:, None])
    update = None if trace.update is None or before.update is None else trace.update - before.update
    return Side(readings, trace, ranks, None if ranks is None or tokens is None else tokens.demonstration_of, update)


def random_side(zsl: Readings, side: Side, seed: int) -> Side:
    """A side whose every change is replaced by a random one of the same length.

    Each query has a generator of its own, so the result does not depend on the grouping.
    """
    before = _trace_of(zsl)
    replaced: dict[str, list[Tensor]] = {"output": [], "scores": [], "ranks": [], "update": []}
    update = side.update
    if update is not None and len(update) == 1:
        update = update.expand(len(zsl.queries), *update.shape[1:])
    for i, query in enumerate(zsl.queries):
        generator = torch.Generator().manual_seed(1_000_003 * seed + query)
        if side.trace.output is not None and before.output is not None:
            change = side.trace.output[i] - before.output[i]
            replaced["output"].append(before.output[i] + matched_random(change, generator))
        if side.trace.scores is not None and before.scores is not None:
            n = int(before.mask[i].sum())
            real = before.mask[i] & before.scores[i].isfinite() & side.trace.scores[i].isfinite()
            replaced["scores"].append(_randomly_changed(before.scores[i], side.trace.scores[i], real, n, generator))
        if side.ranks is not None:
            # The side's own logits are permuted, so demonstrations with many tokens keep that advantage.
            places = torch.rand(side.ranks[i].shape, generator=generator).argsort(dim=-1)
            replaced["ranks"].append(side.ranks[i].gather(-1, places.to(side.ranks.device)))
        if update is not None:
            replaced["update"].append(_random_update_like(update[i], zsl, generator))
    stacked = {name: torch.stack(parts) if parts else None for name, parts in replaced.items()}
    trace = replace(side.trace, output=stacked["output"], scores=stacked["scores"])
    return replace(side, trace=trace, ranks=stacked["ranks"], update=stacked["update"])


def released_random_side(zsl: Readings, side: Side, seed: int) -> dict[str, Tensor]:
    """SimAOU of a side with a random update, as in the code released with arXiv:2212.10559.

    `random_side` changes the output and normalises it afterwards, as SimAOU does with real updates; the released code
    replaces the difference of normalised outputs by uniform numbers. The two are different quantities: normalising
    after the change raises the score of noise (`ops.similarity.sim_aou`).

    Args:
        zsl: Zero-shot readings of the group, with its trace.
        side: ICL, or its replacement.
        seed: Seed of the random numbers; each query has its own stream, so the result does not depend on the grouping.

    Returns:
        `sim_aou`, `(example, layer)` on the CPU; empty where outputs were not recorded.
    """
    before = _trace_of(zsl)
    if before.output is None or side.trace.output is None:
        return {}
    change = unit(widened(side.trace.output)) - unit(widened(before.output))
    random = torch.stack(
        [
            released_random(change_of_query, stream("released random", seed, query))
            for change_of_query, query in zip(change, zsl.queries, strict=True)
        ]
    )
    return {"sim_aou": cosine(change, random).detach().to("cpu", torch.float64)}


def _random_update_like(update: Tensor, zsl: Readings, generator: torch.Generator) -> Tensor:
    """Noise as large as an update, `(layer, kv_head, d_v, d_k)`, head by head; padding stays zero."""
    sizes = _trace_of(zsl).sizes
    if sizes is None:
        return matched_random(update.flatten(-2), generator).view_as(update)
    noise = torch.zeros_like(update)
    for layer, size in enumerate(sizes):
        real = update[layer, : size.n_kv_heads, : size.d_value, : size.d_head]
        noise[layer, : size.n_kv_heads, : size.d_value, : size.d_head] = matched_random(
            real.flatten(-2), generator
        ).view_as(real)
    return noise


def _randomly_changed(before: Tensor, after: Tensor, real: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`before` with a random change as long as the true one, over the `n` real tokens, `(layer, head, seen_pos)`."""
    change = torch.where(real, after - before, 0.0)
    # Only for the query's own tokens: the amount of padding depends on the group and would shift the random numbers.
    drawn = torch.randn((*change.shape[:-1], n), generator=generator, dtype=torch.float32).to(change)
    drawn = torch.where(real, torch.nn.functional.pad(drawn, (0, change.shape[-1] - n)), 0.0)
    size = change.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.where(real, before + drawn * size, after)


@dataclass(frozen=True)
class SidePair:
    """Two sides and zero-shot, for one group of queries: the input of a measure."""

    zsl: Readings
    a: Side
    """ICL, or its replacement."""
    b: Side
    """FT, or its replacement."""
    moved_by: Trace
    """See `compute_measures`."""
    answers: bool = True
    """Whether both sides have answers of their own; random sides have none."""

    @property
    def before(self) -> Trace:
        """Zero-shot's trace."""
        return _trace_of(self.zsl)

    def has(self, need: Need) -> bool:
        """Whether both sides, and zero-shot where it is needed, have what a measure needs."""
        if need == "answers":
            return self.answers
        if need in ("output", "scores"):
            return all(getattr(trace, need) is not None for trace in (self.before, self.a.trace, self.b.trace))
        if need == "ranks":
            return all(side.ranks is not None and side.demonstration_of is not None for side in (self.a, self.b))
        return self.a.update is not None and self.b.update is not None


def compute_measures(
    zsl: Readings, a: Side, b: Side, answers: bool = True, moved_by: Trace | None = None
) -> dict[str, Tensor]:
    """Every measure of two sides.

    Args:
        zsl: Zero-shot readings of the group, with its trace.
        a: ICL, or its replacement.
        b: FT, or its replacement.
        answers: Whether both sides have answers of their own; False for random sides.
        moved_by: `sim_am_delta` is computed only where the scores of this trace differ from zero-shot's by more than
            rounding. Controls pass ICL's, so that they use the same rows and layers as the score itself. None: `a`'s.

    Returns:
        Measure name -> tensor on the CPU whose first axis is `example` (1 for a number that all queries share), then
        `layer`, then `head` where it has them. Names with a dot are details of the measure before the dot.
    """
    pair = SidePair(zsl, a, b, moved_by or a.trace, answers)
    measures: dict[str, Tensor] = {}
    for name in MEASURES.names():
        measure = MEASURES[name]
        if measure.needs and all(pair.has(need) for need in measure.needs):
            measures |= _check_measure(name, measure.compute(pair), len(zsl.queries))
    return _finish(measures, pair.before)


def _check_measure(name: str, values: Mapping[str, Tensor], n: int) -> Mapping[str, Tensor]:
    """Return what a measure returned, or raise a ConfigError for a wrong key or shape."""
    for key, value in values.items():
        if key.partition(".")[0] != name:
            raise ConfigError(f"the measure {name} returned {key!r}: return {name!r} and names such as '{name}.detail'")
        if value.dim() not in (1, 2, 3) or len(value) not in (1, n):
            raise ConfigError(
                f"the measure {name} returned {key} of shape {tuple(value.shape)} for {n} queries: return the axes "
                "(example), (example, layer) or (example, layer, head), with 1 example for a number that all share"
            )
    return values


def _by_attention_head(update: Tensor, trace: Trace) -> Tensor:
    """`(example, layer, kv_head, d_v, d_k)` with each key-value head repeated for all attention heads that read it."""
    assert trace.q is not None
    n_heads = trace.q.shape[2]
    if trace.sizes is None:
        return update.repeat_interleave(n_heads // update.shape[2], dim=2)
    layers = []
    for layer, size in enumerate(trace.sizes):
        own = update[:, layer, : size.n_kv_heads].repeat_interleave(size.n_heads // size.n_kv_heads, dim=1)
        layers.append(torch.nn.functional.pad(own, (0, 0, 0, 0, 0, n_heads - size.n_heads)))
    return torch.stack(layers, dim=1)


def _finish(measures: dict[str, Tensor], trace: Trace) -> dict[str, Tensor]:
    """Measures in float64 on the CPU, NaN for heads that only pad layers with fewer heads than others."""
    measures = {name: value.detach().to("cpu", torch.float64) for name, value in measures.items()}
    if trace.sizes is None:
        return measures
    for name, value in measures.items():
        if value.dim() == 3:
            real = trace.real_heads(value.shape[2], of_keys=_counts_key_heads(name))
            assert real is not None
            measures[name] = value.masked_fill(~real.cpu(), torch.nan)
    return measures


def _counts_key_heads(key: str) -> bool:
    measure = MEASURES.get(key.partition(".")[0])
    return measure is not None and measure.heads == "key_value"


def _trace_of(readings: Readings) -> Trace:
    assert readings.trace is not None
    return readings.trace


def _round_to_grid(logits: Tensor) -> Tensor:
    """Logits rounded to a grid, so that rounding errors do not decide ranks, `(..., demo_pos)`.

    The same word at the same position of two training sequences has the same query in the first layer, yet the two
    computed logits differ by a rounding error, which would otherwise decide their rank.
    """
    largest = logits.masked_fill(~logits.isfinite(), 0.0).abs().amax(dim=-1, keepdim=True)
    step = (largest * _TIE_TOLERANCE).clamp(min=torch.finfo(logits.dtype).tiny)
    return torch.where(logits.isfinite(), (logits / step).round() * step, logits)

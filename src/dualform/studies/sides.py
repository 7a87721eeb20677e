"""The measures of one group of queries, from what two adapted models and zero-shot showed inside.

Every number here belongs to one query (and layer, and head), so groups can be read and let go one by one: memory
does not grow with the number of queries. The two that are compared are sides: in the comparison itself ICL and FT,
in its controls whatever stands in for one of them.
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

# Logits nearer than this part of the row's largest are ties.
_TIED = 1e-5


RankScale = Literal["attention", "released"]
"""How Q'^T q is scaled: as the layer scales its scores, or by 1 / d_head as the code of arXiv:2212.10559 does."""


@dataclass(frozen=True)
class Recordings:
    """What zero-shot and both kinds of side must show for the measures."""

    zsl: Recording
    context: Recording
    """Of a model behind demonstrations."""
    weights: Recording
    """Of a model with changed weights."""


def recordings_for(anatomy: Anatomy, n_demonstrations: int) -> Recordings:
    """All that can be measured: outputs only where every W_O is known, contexts only where there is one."""
    if not anatomy.layers:
        return Recordings(Recording(), Recording(), Recording())
    output = anatomy.knows_outputs
    some = n_demonstrations > 0
    return Recordings(
        zsl=Recording(output=output, scores=True, update=some),
        context=Recording(output=output, scores=True, demo_scores=some, q=some, mixed=some, update=some),
        weights=Recording(output=output, scores=True, q=some, update=some),
    )


@dataclass(frozen=True)
class DemonstrationTokens:
    """Demonstrations as one side had them."""

    content: Tensor
    """Positions of demonstration tokens in the prefix, `(demo_pos,)`, in the order in which the sides are compared."""
    demonstration_of: Tensor
    """Demonstration of each, `(demo_pos,)`, numbered as in that order."""
    columns: Tensor
    """Places of these tokens among the side's own demonstration tokens, `(demo_pos,)`."""
    n: int
    """Demonstrations."""

    @classmethod
    def of(
        cls, encoded: EncodedDemonstrations, device: torch.device, places: Sequence[int] | None = None
    ) -> "DemonstrationTokens":
        """Where the tokens are.

        Args:
            encoded: The demonstrations as the side had them.
            device: Where tensors are wanted.
            places: For the same demonstrations in another order: `places[i]` is where the i-th of the order in which
                sides are compared stands among the side's own. None: that very order.
        """
        n = len(encoded.sequences)
        columns, owners = [], []
        for number, place in enumerate(range(n) if places is None else places):
            mine = [column for column, owner in enumerate(encoded.demonstration_of) if owner == place]
            columns += mine
            owners += [number] * len(mine)
        at = torch.tensor(columns, dtype=torch.long, device=device)
        content = torch.tensor(encoded.content, dtype=torch.long, device=device)[at]
        return cls(content, torch.tensor(owners, dtype=torch.long, device=device), at, n)


@dataclass(frozen=True)
class Side:
    """One of the two that are compared, for one group of queries."""

    readings: Readings
    trace: Trace
    ranks: Tensor | None = None
    """What weighs the demonstrations' tokens: logits `(example, layer, demo_pos)`; None where there is no such thing,
    or none that could be laid beside the other side's."""
    demonstration_of: Tensor | None = None
    """Demonstration of each of these tokens, `(demo_pos,)`."""
    update: Tensor | None = None
    """Change of weight in the linear form, `(example or 1, layer, kv_head, d_v, d_k)`."""


@dataclass(frozen=True)
class PromptedSide:
    """A prefix as a source of sides: what is the same for every group."""

    adapted: AdaptedModel
    shown: DemonstrationTokens | None
    """None where its tokens are not those of the other side."""
    update: Tensor | None
    """sum_i v_i k_i^T over demonstration tokens, `(layer, kv_head, d_v, d_k)`; None for an empty context."""
    whole_update: Tensor | None
    """The same over the whole prefix, opening token and separators included."""

    @classmethod
    def of(cls, adapted: AdaptedModel, content: Tensor | None, shown: DemonstrationTokens | None) -> "PromptedSide":
        """Gather it once.

        Args:
            adapted: The model behind its prefix.
            content: Positions of the tokens whose update counts; None for an empty context.
            shown: Demonstrations whose tokens can be ranked beside the other side's.
        """
        if content is None:
            return cls(adapted, None, None, None)
        # Gathered where traces are: the layers of a divided model lie on several devices.
        layers = [(key.to(content.device), value.to(content.device)) for key, value in adapted.prefix.layers]
        some = stack_layers([outer_product_update(v[:, content], k[:, content]) for k, v in layers], dim=0)
        whole = stack_layers([outer_product_update(v, k) for k, v in layers], dim=0)
        return cls(adapted, shown, some, whole)

    def side(self, readings: Readings) -> Side:
        """What it showed for a group."""
        trace = _traced(readings)
        ranks = None
        if self.shown is not None:
            assert trace.demo_scores is not None
            ranks = _settled(icl_logits(trace.demo_scores[..., self.shown.content]))
        owners = None if self.shown is None else self.shown.demonstration_of
        update = None if self.update is None else self.update[None]
        return Side(readings, trace, ranks, owners, update)

    def relaxation(self, readings: Readings) -> dict[str, Tensor]:
        """How well linear attention describes the heads behind this prefix."""
        trace = _traced(readings)
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
        found = {"relaxation": whole.cosine, "relaxation.relative_error": whole.relative_error}
        return _real(found, trace)


def trained_side(
    adapted: AdaptedModel,
    readings: Readings,
    zsl: Readings,
    shown: DemonstrationTokens | None,
    scaled: RankScale = "attention",
) -> Side:
    """What a model with changed weights showed for a group.

    Args:
        adapted: The model.
        readings: What it read.
        zsl: Zero-shot's readings of the same queries.
        shown: Demonstrations whose tokens can be ranked beside the other side's; None otherwise.
        scaled: How Q'^T q is scaled. No order of tokens depends on it, but that of whole demonstrations does.
    """
    trace, before = _traced(readings), _traced(zsl)
    ranks = None
    if shown is not None and adapted.training_q is not None and trace.q is not None:
        logits = ft_logits(adapted.training_q[:, shown.columns], trace.q)
        factors = query_scale(adapted.lm)
        factor = factors.as_attention if scaled == "attention" else factors.twice
        ranks = _settled(logits * factor.to(logits)[:, None])
    update = None if trace.update is None or before.update is None else trace.update - before.update
    return Side(readings, trace, ranks, None if ranks is None or shown is None else shown.demonstration_of, update)


def random_side(zsl: Readings, side: Side, seed: int) -> Side:
    """A side turned into a random direction of the same length, in every space that is looked at.

    Each query draws anew from a generator of its own, so that grouping does not matter.
    """
    before = _traced(zsl)
    made: dict[str, list[Tensor]] = {"output": [], "scores": [], "ranks": [], "update": []}
    update = side.update
    if update is not None and len(update) == 1:
        update = update.expand(len(zsl.queries), *update.shape[1:])
    for i, query in enumerate(zsl.queries):
        generator = torch.Generator().manual_seed(1_000_003 * seed + query)
        if side.trace.output is not None and before.output is not None:
            change = side.trace.output[i] - before.output[i]
            made["output"].append(before.output[i] + matched_random(change, generator))
        if side.trace.scores is not None and before.scores is not None:
            n = int(before.mask[i].sum())
            real = before.mask[i] & before.scores[i].isfinite() & side.trace.scores[i].isfinite()
            made["scores"].append(_randomly_changed(before.scores[i], side.trace.scores[i], real, n, generator))
        if side.ranks is not None:
            # The side's own logits dealt out anew, so that demonstrations of many tokens keep that advantage.
            places = torch.rand(side.ranks[i].shape, generator=generator).argsort(dim=-1)
            made["ranks"].append(side.ranks[i].gather(-1, places.to(side.ranks.device)))
        if update is not None:
            made["update"].append(_random_update_like(update[i], zsl, generator))
    found = {name: torch.stack(parts) if parts else None for name, parts in made.items()}
    trace = replace(side.trace, output=found["output"], scores=found["scores"])
    return replace(side, trace=trace, ranks=found["ranks"], update=found["update"])


def released_random_side(zsl: Readings, side: Side, seed: int) -> dict[str, Tensor]:
    """SimAOU of a side with the released code's random update, which takes the place of the other side's difference.

    `random_side` changes the output and normalises it afterwards, as SimAOU does with real updates; the code released
    with arXiv:2212.10559 puts uniform numbers in the place of the difference of normalised outputs. The two are
    different quantities: normalising after the change lifts the score of noise (`ops.similarity.sim_aou`).

    Args:
        zsl: Zero-shot readings of the group, with its trace.
        side: ICL, or what stands in for it.
        seed: Of the numbers; each query has a stream of its own, so that grouping does not matter.

    Returns:
        `sim_aou`, `(example, layer)` on the CPU; nothing where outputs were not recorded.
    """
    before = _traced(zsl)
    if before.output is None or side.trace.output is None:
        return {}
    change = unit(widened(side.trace.output)) - unit(widened(before.output))
    drawn = torch.stack(
        [
            released_random(one, stream("released random", seed, query))
            for one, query in zip(change, zsl.queries, strict=True)
        ]
    )
    return {"sim_aou": cosine(change, drawn).detach().to("cpu", torch.float64)}


def _random_update_like(update: Tensor, zsl: Readings, generator: torch.Generator) -> Tensor:
    """Noise as large as an update, `(layer, kv_head, d_v, d_k)`, head by head; padding stays zero."""
    sizes = _traced(zsl).sizes
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
    # For the query's own tokens alone: padding depends on who shares its row, and would shift the stream of numbers.
    drawn = torch.randn((*change.shape[:-1], n), generator=generator, dtype=torch.float32).to(change)
    drawn = torch.where(real, torch.nn.functional.pad(drawn, (0, change.shape[-1] - n)), 0.0)
    size = change.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.where(real, before + drawn * size, after)


@dataclass(frozen=True)
class SidePair:
    """Two sides, and zero-shot before both: what a measure is computed from, for one group of queries."""

    zsl: Readings
    a: Side
    """ICL, or what stands in for it."""
    b: Side
    """FT, or what stands in for it."""
    moved_by: Trace
    """See `compute_measures`."""
    answers: bool = True
    """Both sides' answers are their own."""

    @property
    def before(self) -> Trace:
        """Zero-shot's trace."""
        return _traced(self.zsl)

    def has(self, need: Need) -> bool:
        """Whether both sides, and zero-shot where it matters, have what a measure needs."""
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
        a: ICL, or what stands in for it.
        b: FT, or what stands in for it.
        answers: Whether both sides' answers are their own; off for made-up sides.
        moved_by: Whose change of scores must be more than rounding for `sim_am_delta` to be computed: ICL's, so that a
            control is computed from the same rows and layers as the score itself. None for `a`'s.

    Returns:
        Measure name -> tensor on the CPU whose first axis is `example` (1 for a number that all queries share), then
        `layer`, then `head` where it has them. Names with a dot are companions of the measure before the dot.
    """
    pair = SidePair(zsl, a, b, moved_by or a.trace, answers)
    found: dict[str, Tensor] = {}
    for name in MEASURES.names():
        measure = MEASURES[name]
        if measure.needs and all(pair.has(need) for need in measure.needs):
            found |= _checked(name, measure.compute(pair), len(zsl.queries))
    return _real(found, pair.before)


def _checked(name: str, found: Mapping[str, Tensor], n: int) -> Mapping[str, Tensor]:
    """What a measure returned.

    Raises:
        ConfigError: A key or a shape is not that of this measure; other packages define measures too.
    """
    for key, value in found.items():
        if key.partition(".")[0] != name:
            raise ConfigError(f"the measure {name} returned {key!r}: return {name!r} and names such as '{name}.detail'")
        if value.dim() not in (1, 2, 3) or len(value) not in (1, n):
            raise ConfigError(
                f"the measure {name} returned {key} of shape {tuple(value.shape)} for {n} queries: return a number for "
                "each query, and then for each layer, and then for each head, or one that all queries share"
            )
    return found


def _by_attention_head(update: Tensor, trace: Trace) -> Tensor:
    """`(example, layer, kv_head, d_v, d_k)` with every key-value head as often as attention heads read it."""
    assert trace.q is not None
    n_heads = trace.q.shape[2]
    if trace.sizes is None:
        return update.repeat_interleave(n_heads // update.shape[2], dim=2)
    layers = []
    for layer, size in enumerate(trace.sizes):
        own = update[:, layer, : size.n_kv_heads].repeat_interleave(size.n_heads // size.n_kv_heads, dim=1)
        layers.append(torch.nn.functional.pad(own, (0, 0, 0, 0, 0, n_heads - size.n_heads)))
    return torch.stack(layers, dim=1)


def _real(found: dict[str, Tensor], trace: Trace) -> dict[str, Tensor]:
    """Measures on the CPU, NaN for heads that only fill up a layer with fewer of them than others."""
    measures = {name: value.detach().to("cpu", torch.float64) for name, value in found.items()}
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


def _traced(readings: Readings) -> Trace:
    assert readings.trace is not None
    return readings.trace


def _settled(logits: Tensor) -> Tensor:
    """Logits on a grid so coarse that rounding does not decide ranks, `(..., demo_pos)`.

    The same word at the same position of two training sequences has the same query in the first layer, but rounding
    sets them a hair apart, and would then decide their rank.
    """
    largest = logits.masked_fill(~logits.isfinite(), 0.0).abs().amax(dim=-1, keepdim=True)
    step = (largest * _TIED).clamp(min=torch.finfo(logits.dtype).tiny)
    return torch.where(logits.isfinite(), (logits / step).round() * step, logits)

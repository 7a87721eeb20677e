"""Measuring how a layer scales its attention scores, so that queries can be used in place of keys.

Finetuning's ranking of training tokens is Q'^T q, a product of two attention queries. To compare it with attention
scores, it must be multiplied by the factor that the layer applies to query times key. The factor depends on the family,
and some (OPT, XGLM) already multiply W_Q's output by it, so that recorded queries include it. Both are measured.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import input_device
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import observing_attention, run_layers
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import LayerAnatomy

_TOLERANCE = 1e-2
"""Relative spread of norms beyond which W_Q's output is not merely multiplied by a number (but normalised, say)."""


@dataclass(frozen=True)
class QueryScale:
    """Factors for products of two recorded attention queries, one per layer."""

    as_attention: Tensor
    """Factor with which the product equals the layer's score if one query were a key, `(layer,)`, float64."""
    twice: Tensor
    """Factor that scales each query by d_head^-1/2, as in the code released with arXiv:2212.10559, `(layer,)`,
    float64."""


_cache: "weakref.WeakKeyDictionary[nn.Module, QueryScale]" = weakref.WeakKeyDictionary()


def query_scale(lm: LanguageModel) -> QueryScale:
    """A model's factors, measured by five short forwards on the first call.

    If a layer's factor cannot be measured, for example because its keys are not recorded, d_head^-1/2 is used.
    """
    scale = _cache.get(lm.model)
    if scale is None:
        layers = lm.anatomy.layers
        before, scores = _factors_before(lm), _score_factors(lm)
        usual = torch.tensor([layer.d_head**-0.5 for layer in layers], dtype=torch.float64)
        # Recorded queries are `before` times W_Q's output, also where a query is used in place of a key.
        scores = torch.where(scores.isfinite(), scores, usual / before)
        scale = _cache[lm.model] = QueryScale(scores / before, (usual / before).square())
    return scale


def _tokens(lm: LanguageModel, start: int, n: int) -> list[int]:
    size = lm.model.get_input_embeddings().weight.shape[0]
    return [(start + i * 7919) % max(1, size - 4) + min(4, size - 1) for i in range(n)]


def _score_factors(lm: LanguageModel) -> Tensor:
    """Score divided by the product of recorded query and key, `(layer,)`; NaN where it cannot be measured.

    Differences between two prefixes of equal length are used, so that position biases cancel.
    """
    layers = lm.anatomy.layers
    factors = torch.full((len(layers),), torch.nan, dtype=torch.float64)
    own = Query(tuple(_tokens(lm, 3, 4)), ((_tokens(lm, 5, 1)[0],),))
    records = []
    for start in (11, 1013):
        prefix = lm.encode(_tokens(lm, start, 8))
        trace = lm.read_group(prefix, [own], [0], Recording(demo_scores=True, q=True)).trace
        if trace is None or trace.demo_scores is None or trace.q is None or len(prefix.layers) != len(layers):
            return factors
        records.append((trace.demo_scores[0].double().cpu(), trace.q[0].double().cpu(), prefix.layers))
    for i, layer in enumerate(layers):
        n, width = layer.n_heads, layer.d_head
        products = []
        for _, q, keys in records:
            key = keys[i][0].double().cpu()
            if key.shape[-1] != width or n % key.shape[0]:
                break
            products.append(torch.einsum("hd,hpd->hp", q[i, :n, :width], key.repeat_interleave(n // key.shape[0], 0)))
        if len(products) < 2:
            continue
        scores = records[0][0][i, :n] - records[1][0][i, :n]
        product = products[0] - products[1]
        finite = scores.isfinite()
        if bool(finite.any()) and float(product[finite].square().sum()) > 0:
            factors[i] = (scores[finite] * product[finite]).sum() / product[finite].square().sum()
    return factors


def _factors_before(lm: LanguageModel) -> Tensor:
    """Factor between W_Q's output and the attention query, `(layer,)`; 1 where it is not a single number."""
    layers = lm.anatomy.layers
    factors = torch.ones(len(layers), dtype=torch.float64)
    outputs: dict[str, Tensor] = {}
    queries: dict[int, Tensor] = {}
    names = list(dict.fromkeys(layer.W_Q.module for layer in layers if layer.W_Q is not None))

    def keep(number: int, x: Tensor, out: Tensor) -> None:
        outputs[names[number]] = out.detach().double().cpu().reshape(-1, out.shape[-1])

    def keep_query(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        queries[layer] = query.double().cpu()

    with Hooks(lm.model) as hooks:
        hooks.after_each(names, keep)
        ids = torch.tensor([_tokens(lm, 17, 8)], device=input_device(lm.model))
        with observing_attention(lm.model, lm.anatomy, keep_query):
            run_layers(lm.model, input_ids=ids, use_cache=False)
    uses = [layer.W_Q.module for layer in layers if layer.W_Q is not None]
    for i, layer in enumerate(layers):
        # For a linear that several layers share, only the output of its last run is known.
        if layer.W_Q is not None and uses.count(layer.W_Q.module) == 1 and layer.W_Q.module in outputs and i in queries:
            factors[i] = _factor(layer, outputs[layer.W_Q.module], queries[i])
    return factors


def _factor(layer: LayerAnatomy, out: Tensor, query: Tensor) -> float:
    """Norm of the queries divided by that of W_Q's output; rotary embeddings preserve it, a norm does not."""
    assert layer.W_Q is not None
    rows = out[:, layer.W_Q.index]
    flat = query.transpose(0, 1).flatten(1)
    if flat.shape != rows.shape:
        return 1.0
    ratio = flat.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-30)
    median = float(ratio.median())
    return median if float((ratio / median - 1).abs().max()) < _TOLERANCE else 1.0

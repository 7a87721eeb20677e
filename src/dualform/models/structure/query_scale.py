"""How a layer scales its scores, so that attention queries can stand in the place of keys.

Finetuning's ranking of training tokens is Q'^T q, a product of two attention queries. To be compared with attention, it
needs the factor that the layer gives a query times a key. Families differ in it, and some multiply W_Q's output by it
beforehand (OPT, XGLM), so that the queries that are recorded hold it already. Both are measured on the model.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import input_device
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import forward_rows, observing_attention
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import LayerAnatomy

_TOLERANCE = 1e-2
"""Relative spread of norms beyond which W_Q's output is not merely multiplied by a number (a norm follows, say)."""


@dataclass(frozen=True)
class QueryScale:
    """Factors for products of two recorded attention queries, one a layer."""

    as_attention: Tensor
    """Makes the product what the layer's score would be, were one of the queries a key, `(layer,)`, float64."""
    twice: Tensor
    """Scales each query by d_head^-1/2, as the code released with arXiv:2212.10559 does, `(layer,)`, float64."""


_known: "weakref.WeakKeyDictionary[nn.Module, QueryScale]" = weakref.WeakKeyDictionary()


def query_scale(lm: LanguageModel) -> QueryScale:
    """Measure a model's factors, with three short forwards the first time.

    Args:
        lm: The model. Where a layer's own factor cannot be measured, because its keys are not seen for example,
            d_head^-1/2 is taken.
    """
    found = _known.get(lm.model)
    if found is None:
        layers = lm.anatomy.layers
        before, scores = _factors_before(lm), _score_factors(lm)
        usual = torch.tensor([layer.d_head**-0.5 for layer in layers], dtype=torch.float64)
        # Recorded queries are `before` times plain ones, and so would be a query that stands for a key.
        scores = torch.where(scores.isfinite(), scores, usual / before)
        found = _known[lm.model] = QueryScale(scores / before, (usual / before).square())
    return found


def _tokens(lm: LanguageModel, start: int, n: int) -> list[int]:
    size = lm.model.get_input_embeddings().weight.shape[0]
    return [(start + i * 7919) % max(1, size - 4) + min(4, size - 1) for i in range(n)]


def _score_factors(lm: LanguageModel) -> Tensor:
    """Score over product of recorded query and key, `(layer,)`; NaN where it cannot be seen.

    From the difference of two prefixes of equal length: what a family adds to scores by position alone drops out.
    """
    layers = lm.anatomy.layers
    factors = torch.full((len(layers),), torch.nan, dtype=torch.float64)
    own = Query(tuple(_tokens(lm, 3, 4)), ((_tokens(lm, 5, 1)[0],),))
    seen = []
    for start in (11, 1013):
        prefix = lm.encode(_tokens(lm, start, 8))
        trace = lm.read_group(prefix, [own], [0], Recording(demo_scores=True, q=True)).trace
        if trace is None or trace.demo_scores is None or trace.q is None or len(prefix.layers) != len(layers):
            return factors
        seen.append((trace.demo_scores[0].double().cpu(), trace.q[0].double().cpu(), prefix.layers))
    for i, layer in enumerate(layers):
        n, width = layer.n_heads, layer.d_head
        products = []
        for _, q, keys in seen:
            key = keys[i][0].double().cpu()
            if key.shape[-1] != width or n % key.shape[0]:
                break
            products.append(torch.einsum("hd,hpd->hp", q[i, :n, :width], key.repeat_interleave(n // key.shape[0], 0)))
        if len(products) < 2:
            continue
        scores = seen[0][0][i, :n] - seen[1][0][i, :n]
        product = products[0] - products[1]
        real = scores.isfinite()
        if bool(real.any()) and float(product[real].square().sum()) > 0:
            factors[i] = (scores[real] * product[real]).sum() / product[real].square().sum()
    return factors


def _factors_before(lm: LanguageModel) -> Tensor:
    """What W_Q's output is multiplied by before it is an attention query, `(layer,)`; 1 where no number says it."""
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
            forward_rows(lm.model, ids.new_tensor([ids.shape[1] - 1]), input_ids=ids, use_cache=False)
    uses = [layer.W_Q.module for layer in layers if layer.W_Q is not None]
    for i, layer in enumerate(layers):
        # A linear that several layers use shows its last use alone.
        if layer.W_Q is not None and uses.count(layer.W_Q.module) == 1 and layer.W_Q.module in outputs and i in queries:
            factors[i] = _factor(layer, outputs[layer.W_Q.module], queries[i])
    return factors


def _factor(layer: LayerAnatomy, out: Tensor, query: Tensor) -> float:
    """Length of the queries over that of W_Q's output: rotary positions keep it, a norm does not."""
    assert layer.W_Q is not None
    rows = out[:, layer.W_Q.index]
    flat = query.transpose(0, 1).flatten(1)
    if flat.shape != rows.shape:
        return 1.0
    ratio = flat.norm(dim=1) / rows.norm(dim=1).clamp(min=1e-30)
    middle = float(ratio.median())
    return middle if float((ratio / middle - 1).abs().max()) < _TOLERANCE else 1.0

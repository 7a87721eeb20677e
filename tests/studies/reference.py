"""A reference of the measures: one query, layer and head at a time, with transformers and torch alone."""

import copy
import importlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import kendalltau
from torch import Tensor

from tests.tiny import D_MODEL, HEADS, LAYERS, tiny_model

D_HEAD = D_MODEL // HEADS
SCALE = 1 / math.sqrt(D_HEAD)


@dataclass
class Recorded:
    """The activations of one sequence, layer by layer."""

    logits: Tensor
    q: list[Tensor] = field(default_factory=list)
    """`(head, pos, d_head)`, after rotary embedding."""
    k: list[Tensor] = field(default_factory=list)
    """`(kv_head, pos, d_head)`."""
    v: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    """Input of W_O, `(head, pos, d_head)`."""
    output: list[Tensor] = field(default_factory=list)
    """Output of W_O, `(pos, d_model)`."""

    def key(self, layer: int, head: int) -> Tensor:
        """Keys that query head `head` attends to, `(pos, d_head)`."""
        return self.k[layer][head * self.k[layer].shape[0] // HEADS]


def plain_model(family: str) -> Any:
    """The model of `small_lm`, untouched by dualform."""
    return tiny_model(family, dtype=torch.float64, attn_implementation="eager")


def output_projection(model: Any, layer: int) -> torch.nn.Module:
    """W_O of a layer."""
    if model.config.model_type == "gpt2":
        return model.transformer.h[layer].attn.c_proj
    return model.model.layers[layer].self_attn.o_proj


def key_value_parts(model: Any) -> list[tuple[torch.nn.Parameter, slice]]:
    """Each parameter that holds W_K or W_V, with their part of its last axis (gpt2) or first axis."""
    parts: list[tuple[torch.nn.Parameter, slice]] = []
    for layer in range(LAYERS):
        if model.config.model_type == "gpt2":
            fused = model.transformer.h[layer].attn.c_attn
            parts += [(fused.weight, slice(D_MODEL, None)), (fused.bias, slice(D_MODEL, None))]
        else:
            attention = model.model.layers[layer].self_attn
            parts += [(attention.k_proj.weight, slice(None)), (attention.v_proj.weight, slice(None))]
    return parts


@contextmanager
def _recorded_eager_attention(family: str, recorded: Recorded) -> Iterator[None]:
    modeling: Any = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    original = modeling.eager_attention_forward

    def recording(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        out, weights = original(module, query, key, value, *args, **kwargs)
        recorded.q.append(query[0].detach().clone())
        recorded.k.append(key[0].detach().clone())
        recorded.v.append(value[0].detach().clone())
        recorded.heads.append(out[0].detach().transpose(0, 1).clone())
        return out, weights

    modeling.eager_attention_forward = recording
    try:
        yield
    finally:
        modeling.eager_attention_forward = original


def read_sequence(model: Any, ids: Sequence[int]) -> Recorded:
    """Run one sequence and record all activations; gradients flow to the logits."""
    recorded = Recorded(torch.empty(0))
    handles = [
        output_projection(model, layer).register_forward_hook(
            lambda module, args, out: recorded.output.append(out.detach().reshape(-1, D_MODEL).clone())
        )
        for layer in range(LAYERS)
    ]
    try:
        with _recorded_eager_attention(model.config.model_type, recorded):
            recorded.logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return recorded


def finetune(model: Any, sequences: Sequence[Sequence[int]], rate: float) -> tuple[Any, list[Recorded]]:
    """A copy finetuned by one step of gradient descent per sequence on W_K and W_V, and each pass's activations."""
    tuned = copy.deepcopy(model)
    passes = []
    for ids in sequences:
        recorded = read_sequence(tuned, ids)
        passes.append(recorded)
        loss = torch.nn.functional.cross_entropy(recorded.logits[:-1], torch.tensor(list(ids[1:])))
        tuned.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter, part in key_value_parts(tuned):
                assert parameter.grad is not None
                parameter[..., part] -= rate * parameter.grad[..., part]
    return tuned, passes


def cos(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors or matrices."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def unit(x: Tensor) -> Tensor:
    """The vector at length 1."""
    return x / x.norm()


def measures_of_one_query(
    model: Any,
    tuned: Any,
    passes: Sequence[Recorded],
    opening: Sequence[int],
    prefix: Sequence[int],
    content: Sequence[int],
    owner: Sequence[int],
    prompt: Sequence[int],
) -> dict[str, Any]:
    """Every measure of two sides except those of answers: a number, or nested lists `[layer]` or `[layer][head]`.

    Args:
        model: The unchanged model.
        tuned: The finetuned model.
        passes: Activations of finetuning's passes over the demonstrations.
        opening: Tokens that open a zero-shot sequence.
        prefix: Tokens before the query under ICL.
        content: Positions in the prefix that belong to demonstrations.
        owner: The demonstration that each of them belongs to.
        prompt: The query's own tokens.
    """
    with torch.no_grad():
        zsl, icl, ft = (
            read_sequence(model, [*opening, *prompt]),
            read_sequence(model, [*prefix, *prompt]),
            read_sequence(tuned, [*opening, *prompt]),
        )
    n = len(prompt)
    measures: dict[str, Any] = next_token_similarity(icl.logits[-1], ft.logits[-1])

    def scores(recorded: Recorded, layer: int, head: int, keys: Tensor) -> Tensor:
        return torch.stack([SCALE * (recorded.q[layer][head, -1] * key).sum() for key in keys])

    for layer in range(LAYERS):
        z, i, f = zsl.output[layer][-1], icl.output[layer][-1], ft.output[layer][-1]
        of_layer: dict[str, Any] = {
            "sim_aou": cos(unit(i) - unit(z), unit(f) - unit(z)),
            "sim_aou_raw": cos(i - z, f - z),
            "sim_aou_raw.norm_icl": float((i - z).norm()),
            "sim_aou_raw.norm_ft": float((f - z).norm()),
            "sim_aou_raw.norm_ratio": float((f - z).norm() / (i - z).norm()),
        }
        by_head: dict[str, list[float]] = {}
        icl_rank = torch.zeros(len(content), dtype=torch.float64)
        ft_rank = torch.zeros(len(content), dtype=torch.float64)
        for head in range(HEADS):
            z_row, i_row, f_row = (scores(s, layer, head, s.key(layer, head)[-n:]) for s in (zsl, icl, ft))
            kept = {
                "sim_am": cos(i_row, f_row),
                "sim_am_before": cos(i_row, z_row),
                "sim_am_centred": cos(i_row - i_row.mean(), f_row - f_row.mean()),
                "sim_am_softmax": cos(i_row.softmax(0), f_row.softmax(0)),
                "sim_am_delta": cos(i_row - z_row, f_row - z_row),
            }
            icl_rank += scores(icl, layer, head, icl.key(layer, head)[list(content)])
            training = torch.cat([recorded.q[layer][head, len(opening) :] for recorded in passes])
            ft_rank += torch.stack([(token * ft.q[layer][head, -1]).sum() for token in training]) * D_HEAD**-0.5
            kv = head * icl.k[layer].shape[0] // HEADS
            keys, values = icl.k[layer][kv], icl.v[layer][kv]
            linear = sum(
                (values[pos] * (keys[pos] * icl.q[layer][head, -1]).sum() for pos in range(len(prefix) + n)),
                torch.zeros(D_HEAD, dtype=torch.float64),
            )
            kept["relaxation"] = cos(linear, icl.heads[layer][head, -1])
            for name, value in kept.items():
                by_head.setdefault(name, []).append(value)
        direct = []
        for kv in range(icl.k[layer].shape[0]):
            delta_icl = _update(icl, layer, kv, content)
            own = range(len(opening), len(opening) + n)
            delta_ft = _update(ft, layer, kv, own) - _update(zsl, layer, kv, own)
            direct.append(cos(delta_icl, delta_ft))
        of_layer["direct_update"] = direct
        of_layer["kendall"] = float(kendalltau(icl_rank.numpy(), ft_rank.numpy()).statistic)
        demos = [[float(rank[[j for j, o in enumerate(owner) if o == d]].logsumexp(0)) for d in sorted(set(owner))]
                 for rank in (icl_rank, ft_rank)]  # fmt: skip
        of_layer["kendall_demo"] = float(kendalltau(*demos).statistic)
        for name, value in {**of_layer, **by_head}.items():
            measures.setdefault(name, []).append(value)
    return measures


def next_token_similarity(a: Tensor, b: Tensor, k: int = 10) -> dict[str, float]:
    """Similarity of two rows of logits over the vocabulary, token by token."""
    p, q = ([math.exp(x) for x in row.log_softmax(0).tolist()] for row in (a, b))
    tops = [sorted(range(len(row)), key=lambda token: -row[token])[:k] for row in (p, q)]
    common = [token for token in tops[0] if token in tops[1]]
    dot = sum(p[token] * q[token] for token in common)
    norms = [math.sqrt(sum(row[token] ** 2 for token in common)) for row in (p, q)]
    return {
        "top_k_overlap": len(common) / k,
        "overlap_cosine": dot / (norms[0] * norms[1]) if common else math.nan,
        "vocabulary_shared": sum(min(x, y) for x, y in zip(p, q, strict=True)),
    }


def tau_of_two_contexts(
    model: Any, prompt: Sequence[int], first: tuple[Any, Sequence[int]], second: tuple[Any, Sequence[int]]
) -> list[float]:
    """Kendall's tau by layer of the attention that one query pays to the same tokens in two prefixes.

    Args:
        model: The unchanged model.
        prompt: The query's own tokens.
        first: Tokens of a prefix, and the positions of the tokens to be ranked.
        second: The same for another prefix, with the same tokens in the same order.
    """
    ranks = []
    for prefix, positions in (first, second):
        with torch.no_grad():
            recorded = read_sequence(model, [*prefix, *prompt])
        ranks.append(
            [
                [
                    sum(
                        float((recorded.q[layer][head, -1] * recorded.key(layer, head)[at]).sum())
                        for head in range(HEADS)
                    )
                    for at in positions
                ]
                for layer in range(LAYERS)
            ]
        )
    return [float(kendalltau(a, b).statistic) for a, b in zip(*ranks, strict=True)]


def _update(recorded: Recorded, layer: int, kv_head: int, positions: Sequence[int]) -> Tensor:
    """sum_i v_i k_i^T."""
    total = torch.zeros(D_HEAD, D_HEAD, dtype=torch.float64)
    for pos in positions:
        total += torch.outer(recorded.v[layer][kv_head, pos], recorded.k[layer][kv_head, pos])
    return total

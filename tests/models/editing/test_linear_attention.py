"""Linear attention inside whole models answers to a double loop over its formula."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.linear_attention import apply_linear_attention
from dualform.models.editing.momentum import apply_momentum
from dualform.models.reading.attention import AttentionCall, attention_backend
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import LayerOrder, ObservingBackend
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.ops.momentum import momentum_naive
from dualform.ops.momentum_dual import MomentumKind
from tests.models.reference import BY_NAME, PREFIX, QUERIES, naive_scores
from tests.tiny import LAYERS, VOCABULARY, tiny_model, tiny_tokenizer

ETA = 0.4
KINDS: tuple[MomentumKind, ...] = ("none", "heavy-ball", "nesterov")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
# llama's heads are grouped, two to a key; gpt2's have learned positions and no rotation.
FAMILIES = pytest.mark.parametrize(
    ("family", "overrides"), [("llama", {}), ("llama", {"num_key_value_heads": 4}), ("gpt2", {}), ("qwen3", {})]
)


def tokens(n: int, rows: int = 1) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(n))


def linear(kind: MomentumKind, family: str = "llama", eta: float = ETA, **overrides: Any) -> PreTrainedModel:
    model = tiny_model(family, dtype=torch.float64, **overrides)
    apply_linear_attention(model, kind, eta)
    return model


def logits_of(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def by_the_formula(call: AttentionCall, kind: MomentumKind, eta: float) -> Tensor:
    """Token by token, head by head: `(batch, q_pos, head, d_head)`."""
    n, heads, length, d = call.query.shape
    groups = heads // call.key.shape[1]
    out = torch.zeros(n, length, heads, d, dtype=torch.float64)
    for row in range(n):
        for head in range(heads):
            q = F.elu(call.query[row, head] * call.scale**0.5) + 1
            k = F.elu(call.key[row, head // groups] * call.scale**0.5) + 1
            v = call.value[row, head // groups]
            for t in range(length):
                for i in range(t + 1):
                    reach = {"none": 1, "heavy-ball": t - i + 1, "nesterov": t - i + 2}[kind]
                    weight = sum(eta**power for power in range(reach))
                    out[row, t, head] += weight * float(k[i] @ q[t]) * v[i]
                out[row, t, head] /= (out[row, t, head].square().mean() + 1e-6).sqrt()
    return out


@EVERY_KIND
@FAMILIES
def test_every_layer_follows_the_formula(kind: MomentumKind, family: str, overrides: dict[str, Any]) -> None:
    model = linear(kind, family, **overrides)
    seen: list[float] = []

    def compare(layer: int, call: AttentionCall, out: Tensor) -> None:
        torch.testing.assert_close(out, by_the_formula(call, kind, ETA), atol=1e-10, rtol=1e-9)
        # Each head's output has a root mean square of 1.
        seen.append(float((out.square().mean(-1).sqrt() - 1).abs().max()))

    with attention_backend(ObservingBackend(LayerOrder(model, find_anatomy(model)), compare)):
        logits_of(model, tokens(9, rows=2))
    assert len(seen) == LAYERS
    assert max(seen) < 1e-2


def test_its_kinds_differ_from_one_another_and_from_softmax() -> None:
    ids = tokens(20)
    all_logits = [logits_of(tiny_model("llama", dtype=torch.float64), ids)]
    all_logits += [logits_of(linear(kind), ids) for kind in KINDS]
    for number, logits in enumerate(all_logits):
        assert all((logits - other).abs().max() > 1e-2 for other in all_logits[:number])


@pytest.mark.parametrize("kind", ["heavy-ball", "nesterov"])
def test_without_momentum_every_kind_is_plain(kind: MomentumKind) -> None:
    ids = tokens(12)
    plain = logits_of(linear("none", eta=0.0), ids)
    assert torch.equal(logits_of(linear(kind, eta=0.0), ids), plain)
    assert torch.equal(logits_of(linear("none", eta=0.9), ids), plain)
    assert not torch.allclose(logits_of(linear(kind), ids), plain, atol=1e-2)


@EVERY_KIND
def test_a_token_changes_nothing_before_it(kind: MomentumKind) -> None:
    ids = tokens(90)
    changed = ids.clone()
    # Beyond the first chunk of the fast form.
    changed[0, 70] = (ids[0, 70] + 1) % VOCABULARY
    before, after = (logits_of(linear(kind), row) for row in (ids, changed))
    torch.testing.assert_close(before[:, :70], after[:, :70], atol=1e-10, rtol=1e-10)
    assert not torch.allclose(before[:, 71:], after[:, 71:], atol=1e-4)


def test_a_batch_is_its_rows() -> None:
    model, ids = linear("heavy-ball"), tokens(9, rows=3)
    torch.testing.assert_close(
        logits_of(model, ids), torch.cat([logits_of(model, row[None]) for row in ids]), atol=1e-10, rtol=1e-10
    )
    # A mask that hides nothing is none.
    torch.testing.assert_close(logits_of(model, ids, attention_mask=torch.ones_like(ids)), logits_of(model, ids))


def test_the_sum_of_values_can_be_added_to_it() -> None:
    model = linear("none")
    apply_momentum(model, 0.3)
    seen = []

    def compare(layer: int, call: AttentionCall, out: Tensor) -> None:
        term = momentum_naive(call.value, 0.3).term.repeat_interleave(2, dim=1).transpose(1, 2)
        torch.testing.assert_close(out, by_the_formula(call, "none", 0.0) + term, atol=1e-10, rtol=1e-9)
        seen.append(layer)

    with attention_backend(ObservingBackend(LayerOrder(model, find_anatomy(model)), compare)):
        logits_of(model, tokens(9))
    assert seen == [0, 1]


@EVERY_KIND
def test_it_trains(kind: MomentumKind) -> None:
    model = linear(kind).train()
    ids = tokens(40)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)


@EVERY_KIND
def test_no_parameter_is_added_and_the_mode_stays(kind: MomentumKind) -> None:
    model = tiny_model("llama").train()
    names = list(model.state_dict())
    apply_linear_attention(model, kind, ETA)
    assert model.training
    assert list(model.state_dict()) == names


def test_only_the_naive_route_is_used_and_is_correct() -> None:
    model = linear("heavy-ball")
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "tiny")
    assert lm.route.name == "naive"
    assert [refusal.partition(":")[0] for refusal in lm.refused] == ["packed", "packed-mask", "repeated"]
    assert "for softmax attention only" in lm.refused[0]
    table = lm.log_probabilities(lm.encode(PREFIX), QUERIES)
    for query, row in zip(QUERIES, table, strict=True):
        expected = naive_scores(model, PREFIX, query)
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-9, rtol=1e-9)
    (readings,) = lm.read(lm.encode((4, 11)), QUERIES[:1], Recording(output=True))
    assert readings.trace is not None


# Mistakes.

PADDED = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
PACKED = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}


@pytest.mark.parametrize("inputs", [PADDED, PACKED], ids=["padding", "packing"])
def test_padding_and_packing_are_refused(inputs: dict[str, Tensor]) -> None:
    with pytest.raises(
        ConfigError, match="needs whole sequences, but got padding, packing, a sliding window or a cache"
    ):
        logits_of(linear("none"), tokens(6), **inputs)


def test_a_cache_is_refused() -> None:
    model, ids = linear("none"), tokens(6)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    for more in (tokens(1), tokens(3)):
        with pytest.raises(ConfigError, match="a sliding window or a cache"), torch.no_grad():
            model(input_ids=more, past_key_values=cache)
    with pytest.raises(ConfigError, match="a sliding window or a cache"):
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=1)


def test_a_sliding_window_that_hides_something_is_refused() -> None:
    model = BY_NAME["mistral-sliding_window=16"].model()
    apply_linear_attention(model)
    logits_of(model, tokens(15))
    with pytest.raises(ConfigError, match="needs whole sequences"):
        logits_of(model, tokens(20))


@pytest.mark.parametrize("name", ["xglm", "falcon", "bloom"])
def test_families_with_their_own_attention_code_are_refused(name: str) -> None:
    model = BY_NAME[name].model()
    with pytest.raises(ConfigError, match=rf"{type(model).__name__} computes attention in its own code.*llama or"):
        apply_linear_attention(model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eta": 1.0}, "eta 1.0 must be 0 or more and below 1"),
        ({"eta": -0.5}, "eta -0.5 must be"),
        ({"eta": float("nan")}, "eta nan must be"),
        ({"kind": "adam"}, "kind 'adam' is unknown: choose one of none, heavy-ball, nesterov"),
    ],
)
def test_a_mistake_is_named_and_leaves_the_model_alone(settings: dict[str, Any], words: str) -> None:
    model, ids = tiny_model("llama"), tokens(9)
    plain = logits_of(model, ids)
    with pytest.raises(ConfigError) as raised:
        apply_linear_attention(model, **settings)
    assert words in str(raised.value)
    assert torch.equal(logits_of(model, ids), plain)

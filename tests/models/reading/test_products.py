"""Packed products answer to plain ones, and know when not to be used."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.products import PackedProducts, packable
from tests.tiny import tiny_model, tiny_tokenizer

# Two orders of summing some hundred float32 products.
CLOSE: Any = {"rtol": 2e-5, "atol": 2e-5}

needs_onednn = pytest.mark.skipif(
    not packable([torch.zeros(2, 2)]), reason="this build of torch has no oneDNN, so plain products are used"
)


def layer(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 32, bias=bias).requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 48), (7, 48), (2, 3, 4, 48)])
def test_packed_products_equal_plain_ones_forwards_and_backwards(bias, shape):
    linear = layer(bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = linear(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)

    with PackedProducts([linear.weight]):
        actual = linear(x)
        (gradient,) = torch.autograd.grad(actual.square().sum(), x)
        with torch.no_grad():
            read = linear(x)

    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(read, expected, **CLOSE)
    torch.testing.assert_close(gradient, wanted, **CLOSE)


@needs_onednn
def test_a_patched_weight_is_multiplied_plainly():
    linear = layer(bias=False)
    x = torch.randn(4, 48)
    with torch.no_grad(), PackedProducts([linear.weight]):
        linear(x)
        original = linear.weight.data
        linear.weight.data = original + 1
        patched = linear(x)
        linear.weight.data = original
        back = linear(x)

    assert torch.equal(patched, F.linear(x, original + 1))
    torch.testing.assert_close(back, F.linear(x, original), **CLOSE)


@needs_onednn
def test_a_weight_that_is_being_trained_is_multiplied_plainly_and_gets_its_gradient():
    linear = layer(bias=False).requires_grad_(True)
    x = torch.randn(4, 48)
    with PackedProducts([linear.weight]):
        out = linear(x)
        out.sum().backward()

    assert torch.equal(out, F.linear(x, linear.weight))
    assert linear.weight.grad is not None


def test_other_dtypes_and_large_models_are_not_packed():
    assert not packable([torch.zeros(2, 2, dtype=torch.float64)])
    assert not packable([torch.empty(2, 2, device="meta")])
    assert not packable([torch.zeros(1).expand(1 << 15, 1 << 15)])


@needs_onednn
def test_patching_unchanged_keys_and_values_changes_no_bit_of_packed_readings():
    # What finetuning with learning rate 0 does: K and V get other memory, so they must not be packed before either.
    lm = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "llama")
    queries = [Query((5, 6, 7), ((8,), (9, 10)))]
    names = [f"{rows.module}.weight" for layer in lm.anatomy.layers for rows in (layer.W_K, layer.W_V) if rows]
    nothing = [WeightDelta(name, 0, None, torch.zeros_like(lm.model.get_parameter(name)).detach()) for name in names]

    with lm.packed_products():
        expected = lm.log_probabilities(lm.encode((1, 2)), queries)
        with applied(lm.model, nothing):
            actual = lm.log_probabilities(lm.encode((1, 2)), queries)

    assert torch.equal(actual, expected)


@needs_onednn
@pytest.mark.parametrize("family", ["llama", "xglm", "gemma3", "opt"])
def test_packed_products_do_not_change_readings_and_patched_weights_take_effect(family):
    lm = LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family)
    queries = [Query((5, 6, 7), ((8,), (9, 10))), Query((11, 12), ((13,), (14,)))]
    rows = lm.anatomy.layers[0].W_K
    assert rows is not None
    name = f"{rows.module}.weight"
    change = WeightDelta(name, 0, None, torch.full_like(lm.model.get_parameter(name), 0.5).detach())

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        before = lm.log_probabilities(lm.encode((1, 2, 3)), queries)
        with applied(lm.model, [change]):
            return before, lm.log_probabilities(lm.encode((1, 2, 3)), queries)

    expected, moved = read()
    with lm.packed_products():
        actual, actual_moved = read()

    torch.testing.assert_close(actual, expected, **CLOSE)
    torch.testing.assert_close(actual_moved, moved, **CLOSE)
    # The change is large enough to show.
    assert (moved - expected).abs().max() > 1e-3

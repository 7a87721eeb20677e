import threading
from typing import Any

import pytest
import torch
from torch import nn

from dualform.errors import ModelError
from dualform.models.reading import attention
from dualform.models.reading.attention import (
    NAME,
    AttentionCall,
    attend_with_lse,
    attention_backend,
    merge,
    plain_attention,
)
from tests.models.reference import BY_NAME, CASES, plain, route_id
from tests.tiny import tiny_model

# Sums of a few dozen terms of order one: float32 resolves 6e-8, float64 1e-16.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def obvious(query, key, value, scale, mask=None):
    scores = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)  # a row that sees nothing
    return weights @ value, torch.logsumexp(scores, dim=-1)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def tensors(dtype):
    return (
        random(2, 3, 7, 8, dtype=dtype),
        random(2, 3, 13, 8, dtype=dtype, seed=1),
        random(2, 3, 13, 8, dtype=dtype, seed=2),
    )


@pytest.fixture
def mask(dtype):
    hidden = random(2, 1, 7, 13, seed=3) > 0.3
    hidden[..., 0] = False
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)


class TestAttendWithLse:
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_it_is_attention_and_the_log_sum_exp_of_its_scores(self, tensors, mask, with_mask, dtype):
        given = mask.expand(2, 3, -1, -1) if with_mask else None
        query, key, value = tensors
        out, lse = attend_with_lse(query, key, value, 0.7, given)
        expected_out, expected_lse = obvious(query, key, value, 0.7, given)
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected_out, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse.to(dtype), expected_lse, rtol=0, atol=4 * TOLERANCE[dtype])

    @pytest.mark.parametrize("with_mask", [False, True])
    def test_devices_without_the_kernel_get_the_same(self, tensors, mask, with_mask, dtype):
        query, key, value = tensors
        given = mask.expand(2, 3, -1, -1) if with_mask else None
        out, lse = attention._products_with_lse(query, key, value, 0.7, given)
        expected_out, expected_lse = attend_with_lse(query, key, value, 0.7, given)
        assert out.dtype == dtype
        torch.testing.assert_close(out, expected_out, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse, expected_lse.to(dtype), rtol=0, atol=4 * TOLERANCE[dtype])

    def test_half_precision_is_summed_in_single(self, tensors):
        query, key, value = (x.bfloat16() for x in tensors)
        out, lse = attention._products_with_lse(query, key, value, 0.7, None)
        assert out.dtype == torch.bfloat16
        assert lse.dtype == torch.float32

    def test_a_fully_masked_query_has_output_zero_and_weight_zero(self, tensors, mask, dtype):
        mask = mask.clone()
        mask[:, :, 2] = -torch.inf
        query, key, value = tensors
        out, lse = attend_with_lse(query, key, value, 0.7, mask)
        assert torch.equal(out[:, :, 2], torch.zeros(2, 3, 8, dtype=dtype))
        assert torch.isneginf(lse[:, :, 2]).all()
        assert lse[:, :, [0, 1, 3, 4, 5, 6]].isfinite().all()


class TestMerge:
    @pytest.mark.parametrize("with_mask", [False, True])
    @pytest.mark.parametrize("cuts", [(), (5,), (1, 12), (3, 6, 9)])
    def test_merged_parts_are_attention_over_all_keys(self, tensors, mask, cuts, with_mask, dtype):
        query, key, value = tensors
        parts = []
        for first, last in zip((0, *cuts), (*cuts, 13), strict=True):
            own_mask = mask[..., first:last] if with_mask else None
            parts.append(attend_with_lse(query, key[..., first:last, :], value[..., first:last, :], 0.7, own_mask))
        actual = merge(parts)
        expected, _ = obvious(query, key, value, 0.7, mask if with_mask else None)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[dtype])

    def test_a_fully_masked_part_adds_nothing(self, tensors, dtype):
        query, key, value = tensors
        blind = torch.full((2, 1, 7, 4), -torch.inf, dtype=dtype)
        parts = [
            attend_with_lse(query, key[..., :4, :], value[..., :4, :], 0.7, blind),
            attend_with_lse(query, key[..., 4:, :], value[..., 4:, :], 0.7),
        ]
        expected, _ = obvious(query, key[..., 4:, :], value[..., 4:, :], 0.7)
        torch.testing.assert_close(merge(parts), expected, rtol=0, atol=TOLERANCE[dtype])

    def test_very_different_normalisers_do_not_overflow(self):
        query = torch.full((1, 1, 1, 1), 100.0)
        keys = [torch.full((1, 1, 1, 1), size) for size in (-50.0, 50.0)]
        values = [torch.full((1, 1, 1, 1), float(number)) for number in (1, 2)]
        parts = [attend_with_lse(query, key, value, 1.0) for key, value in zip(keys, values, strict=True)]
        assert merge(parts).item() == 2.0

    def test_averaging_the_parts_would_be_wrong(self, tensors):
        query, key, value = tensors
        parts = [attend_with_lse(query, key[..., s, :], value[..., s, :], 0.7) for s in (slice(4), slice(4, None))]
        average = (parts[0][0] + parts[1][0]) / 2
        expected, _ = obvious(query, key, value, 0.7)
        assert (average - expected).abs().max() > 0.1


class TestPlainAttention:
    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("masked", ["causal", "boolean", "additive"])
    def test_grouped_heads_share_keys_and_values(self, groups, masked):
        query, key, value = (
            random(2, 4, 6, 8),
            random(2, 4 // groups, 6, 8, seed=1),
            random(2, 4 // groups, 6, 8, seed=2),
        )
        causal = torch.zeros(6, 6, dtype=torch.float64).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf)
        mask = {"causal": None, "boolean": (causal == 0)[None, None], "additive": causal[None, None]}[masked]
        actual = plain_attention(AttentionCall(query, key, value, mask, 0.3, None))
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        expected, _ = obvious(query, key, value, 0.3, causal)
        torch.testing.assert_close(actual, expected.transpose(1, 2), rtol=0, atol=1e-14)

    def test_a_single_token_attends_to_all_keys(self):
        query, key, value = random(1, 2, 1, 8), random(1, 2, 5, 8, seed=1), random(1, 2, 5, 8, seed=2)
        actual = plain_attention(AttentionCall(query, key, value, None, 0.3, None))
        torch.testing.assert_close(actual.transpose(1, 2), obvious(query, key, value, 0.3)[0], rtol=0, atol=1e-14)


class TestTheRegisteredFunction:
    @pytest.mark.parametrize("case", [case for case in CASES if case.registry], ids=route_id)
    def test_without_a_backend_the_model_is_as_in_transformers(self, case):
        ids = torch.arange(3, 60)[None]
        model = case.model()
        model.set_attn_implementation(NAME)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, plain(case)(ids).logits, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
    def test_padding_is_not_attended_to(self, name):
        # Without a mask registered under its name, transformers would hand over none.
        model = tiny_model(name)
        model.set_attn_implementation(NAME)
        ids = torch.arange(3, 23)[None]
        padded = torch.cat([torch.full((1, 5), 9), ids], dim=1)
        mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], dim=1)
        positions = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.arange(20)[None]], dim=1)
        with torch.no_grad():
            alone = model(ids).logits
            behind = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
            unmasked = model(padded, position_ids=positions).logits[:, 5:]
        torch.testing.assert_close(behind, alone, rtol=1e-5, atol=1e-5)
        assert (unmasked - alone).abs().max() > 0.01

    @pytest.mark.parametrize(("name", "value"), [("softcap", 30.0), ("bias", torch.ones(4)), ("is_causal", False)])
    def test_an_unknown_keyword_is_named(self, name, value):
        query = random(1, 2, 3, 8)
        text = r"a tensor of shape \(4,\)" if name == "bias" else str(value)
        with pytest.raises(ModelError, match=f"Identity calls attention with {name}={text}, which dualform does"):
            attention._attention(nn.Identity(), query, query, query, None, **{name: value})

    def test_keywords_without_meaning_to_attention_pass(self):
        query = random(1, 2, 3, 8)
        harmless: dict[str, Any] = {
            "position_ids": torch.arange(3),
            "use_cache": False,
            "is_causal": True,
            "softcap": None,
        }
        out, weights = attention._attention(nn.Identity(), query, query, query, None, **harmless)
        assert out.shape == (1, 3, 2, 8)
        assert weights is None

    def test_a_backend_is_active_only_within_its_block_and_thread(self):
        class Zero:
            builds_mask = True

            def attend(self, module, call):
                return torch.zeros_like(call.query.transpose(1, 2))

        model = tiny_model("llama")
        model.set_attn_implementation(NAME)
        ids = torch.arange(3, 12)[None]
        elsewhere = []

        def forward():
            with torch.no_grad():
                return model(ids).logits

        before = forward()
        with attention_backend(Zero()):
            within = forward()
            thread = threading.Thread(target=lambda: elsewhere.append(forward()))
            thread.start()
            thread.join()
        assert not torch.allclose(before, within)
        assert torch.equal(before, forward())
        assert torch.equal(before, elsewhere[0])

    def test_a_backend_ends_when_its_block_raises(self):
        class Fails:
            builds_mask = True

            def attend(self, module, call):
                raise RuntimeError("no attention today")

        model = tiny_model("llama")
        model.set_attn_implementation(NAME)
        ids = torch.arange(3, 12)[None]
        with pytest.raises(RuntimeError, match="no attention today"), attention_backend(Fails()):
            model(ids)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_the_cases_cover_windows_and_other_families():
    assert {case.registry for case in CASES} == {True, False}
    assert BY_NAME["mistral-sliding_window=16"].model().config.sliding_window == 16


def test_hidden_tokens_are_recognised_however_a_family_hides_them():
    scores = torch.tensor([-torch.inf, torch.finfo(torch.float32).min, -65504.0, -10_000.0 + 3.0, -1_400.0, 0.0])
    assert attention.hidden(scores).tolist() == [True, True, True, True, False, False]


def test_a_sink_is_one_more_key_without_a_value():
    # Against softmax written out in float64, one query at a time.
    query, key, value = (random(1, heads, 5, 8) for heads in (4, 2, 2))
    sink = torch.tensor([0.5, -1.0, 2.0, 0.0])
    actual, _ = attention._attention(nn.Identity(), query, key, value, None, s_aux=sink)
    for head in range(4):
        for position in range(5):
            logits = key[0, head // 2, : position + 1].double() @ query[0, head, position].double() / 8**0.5
            weights = torch.cat([logits, sink[head : head + 1].double()]).softmax(0)[:-1]
            expected = weights @ value[0, head // 2, : position + 1].double()
            torch.testing.assert_close(actual[0, position, head].double(), expected, rtol=1e-5, atol=1e-6)

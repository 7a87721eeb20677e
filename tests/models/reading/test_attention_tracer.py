from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualform.models.reading.attention_tracer import AttentionTracer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QUERY, KEY, VALUE = random(2, 3, 5, 4), random(2, 3, 7, 4, seed=1), random(2, 3, 7, 4, seed=2)
SCALE = 0.3


class Attention(nn.Module):
    """Computes attention in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.dropout = nn.Dropout(0.0)

    def forward(self, query, key, value):
        return getattr(self, self.way)(query, key, value)

    def operator(self, query, key, value):
        return self.dropout(F.softmax(query @ key.transpose(-1, -2) * SCALE, dim=-1)) @ value

    def methods(self, query, key, value):
        return query.matmul(key.transpose(-1, -2)).mul(SCALE).softmax(dim=-1).matmul(value)

    def joint_batch_and_head(self, query, key, value):
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * SCALE, dim=-1)
        return torch.bmm(input=weights, mat2=v).view(query.shape)

    def added_bias(self, query, key, value):
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))
        zero = torch.zeros(len(q), q.shape[1], k.shape[1])
        scores = torch.baddbmm(zero, batch1=q, batch2=k.transpose(1, 2), beta=0.0, alpha=SCALE)
        return torch.bmm(F.softmax(input=scores, dim=-1), v).view(query.shape)

    def kernel(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value, scale=SCALE)

    def kernel_by_keyword(self, query, key, value):
        mask = torch.zeros(5, 7)
        return F.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask, scale=SCALE)


WAYS = ["operator", "methods", "joint_batch_and_head", "added_bias", "kernel", "kernel_by_keyword"]


@pytest.mark.parametrize("way", WAYS)
def test_attention_is_recognised_whichever_way_it_is_written(way):
    module = Attention(way)
    seen = []
    with AttentionTracer([module], 2, lambda where, attention: seen.append((where, attention))):
        out = module(QUERY, KEY, VALUE)
    assert torch.equal(out, module(QUERY, KEY, VALUE))
    ((where, attention),) = seen
    assert where is module
    assert torch.equal(attention.query, QUERY)
    assert torch.equal(attention.key, KEY)
    assert torch.equal(attention.value, VALUE)
    assert torch.equal(attention.head_output, out)
    expected = QUERY @ KEY.transpose(-1, -2) * SCALE
    if way.startswith("kernel"):
        assert attention.scores is None
        assert attention.scale == SCALE
        assert (attention.mask is None) == (way == "kernel")
        assert attention.mask is None or attention.mask.shape == (1, 1, 5, 7)
    else:
        torch.testing.assert_close(attention.scores, expected)


def test_the_kernels_own_defaults_are_known():
    class Causal(nn.Module):
        def forward(self, query, key, value):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    module = Causal()
    seen: list[Any] = []
    with AttentionTracer([module], 2, lambda where, attention: seen.append(attention)):
        out = module(QUERY, KEY[:, :, :5], VALUE[:, :, :5])
    (attention,) = seen
    scores = (QUERY @ KEY[:, :, :5].transpose(-1, -2) * attention.scale).masked_fill(~attention.mask, -torch.inf)
    torch.testing.assert_close(torch.softmax(scores, dim=-1) @ VALUE[:, :, :5], out)


def test_products_and_softmax_outside_the_modules_are_ignored():
    seen = []
    with AttentionTracer([], 2, lambda where, attention: seen.append(attention)):
        Attention("operator")(QUERY, KEY, VALUE)
        F.scaled_dot_product_attention(QUERY, KEY, VALUE)
    assert seen == []


def test_a_softmax_without_a_product_before_it_is_not_attention():
    class Router(nn.Module):
        def forward(self, x):
            return F.softmax(x, dim=-1) @ x.transpose(-1, -2)

    module = Router()
    seen = []
    with AttentionTracer([module], 2, lambda where, attention: seen.append(attention)):
        module(QUERY)
    assert seen == []


def test_a_softmax_over_more_than_the_keys_is_not_recognised():
    class Sink(nn.Module):
        def forward(self, query, key, value):
            scores = torch.cat([query @ key.transpose(-1, -2), torch.zeros(2, 3, 5, 1)], dim=-1)
            return F.softmax(scores, dim=-1)[..., :-1] @ value

    module = Sink()
    seen = []
    with AttentionTracer([module], 2, lambda where, attention: seen.append(attention)):
        module(QUERY, KEY, VALUE)
    assert seen == []


def test_a_module_that_raises_is_left_by_the_tracer():
    class Fails(nn.Module):
        def forward(self, query, key):
            query @ key.transpose(-1, -2)
            raise RuntimeError("between product and softmax")

    bad, good = Fails(), Attention("operator")
    seen = []
    with AttentionTracer([bad, good], 2, lambda where, attention: seen.append(where)):
        with pytest.raises(RuntimeError, match="between product and softmax"):
            bad(QUERY, KEY)
        good(QUERY, KEY, VALUE)
    assert seen == [good]
    assert not bad._forward_hooks
    assert not bad._forward_pre_hooks

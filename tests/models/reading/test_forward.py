import pytest
import torch
import transformers

from dualform.models.reading.forward import cache_argument, forward_rows, keys_values, observing_attention
from tests.models.reference import BY_NAME, CASES, PREFIX, assert_no_hooks, plain, route_id, wrapped

IDS = torch.tensor([PREFIX])


@pytest.mark.parametrize("case", CASES, ids=route_id)
class TestEveryFamily:
    def test_logits_at_chosen_rows_are_those_of_the_whole_forward(self, case):
        model = plain(case)
        rows = torch.tensor([3, 17, 40])
        with torch.no_grad():
            expected = model(IDS, use_cache=False).logits[0, rows]
        logits, hidden = forward_rows(model, rows, input_ids=IDS, use_cache=False)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            again = model.get_output_embeddings()(hidden)
        # XGLM, Falcon and similar families apply nothing after the head; the rows are the head's own input.
        torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
        assert not logits.requires_grad
        assert_no_hooks(model)

    def test_rows_count_over_batch_and_position(self, case):
        model = plain(case)
        ids = torch.cat([IDS, IDS.flip(1)])
        rows = torch.tensor([5, IDS.shape[1] + 7])
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits[[0, 1], [5, 7]]
        logits, _ = forward_rows(model, rows, input_ids=ids, use_cache=False)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    def test_a_graph_is_kept_for_training_only(self, case):
        logits, _ = forward_rows(plain(case), torch.tensor([3]), gradients=True, input_ids=IDS, use_cache=False)
        assert logits.requires_grad

    def test_a_prefixs_keys_and_values_are_those_of_transformers_own_cache(self, case):
        lm = wrapped(case)
        actual = keys_values(lm.model, lm.anatomy, PREFIX)
        cache = transformers.DynamicCache()
        with torch.no_grad():
            plain(case)(IDS, use_cache=True, **cache_argument(plain(case), cache))
        assert actual.length == len(PREFIX)
        assert len(actual.layers) == len(cache.layers)
        for (key, value), layer in zip(actual.layers, cache.layers, strict=True):
            torch.testing.assert_close(key, layer.keys[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(value, layer.values[0], rtol=1e-5, atol=1e-5)

    def test_observing_attention_reports_every_layer_and_changes_no_bit(self, case):
        lm = wrapped(case)
        with torch.no_grad():
            expected = lm.model(IDS, use_cache=False).logits
        seen = {}
        with (
            torch.no_grad(),
            observing_attention(lm.model, lm.anatomy, lambda layer, q, k, v: seen.update({layer: (q, k, v)})),
        ):
            actual = lm.model(IDS, use_cache=False).logits
        assert torch.equal(actual, expected)
        assert sorted(seen) == list(range(len(lm.anatomy.layers)))
        for number, layer in enumerate(lm.anatomy.layers):
            query, key, value = seen[number]
            assert query.shape == (layer.n_heads, len(PREFIX), layer.d_head)
            assert key.shape == value.shape == (layer.n_kv_heads, len(PREFIX), layer.d_head)
        assert_no_hooks(lm.model)

    def test_after_the_block_nothing_is_observed_even_when_it_raised(self, case):
        lm = wrapped(case)
        seen = []
        with (
            pytest.raises(RuntimeError, match="enough"),
            observing_attention(lm.model, lm.anatomy, lambda *all: seen.append(all)),
        ):
            raise RuntimeError("enough")
        with torch.no_grad():
            lm.model(IDS, use_cache=False)
        assert seen == []
        assert_no_hooks(lm.model)


def test_a_model_that_raises_in_its_head_keeps_no_hook():
    model = BY_NAME["llama"].model()

    def fails(module, args, out):
        raise RuntimeError("the head fails")

    handle = model.lm_head.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="the head fails"):
        forward_rows(model, torch.tensor([0]), input_ids=IDS, use_cache=False)
    handle.remove()
    assert_no_hooks(model)


def test_an_empty_prefix_runs_nothing():
    lm = wrapped(BY_NAME["llama"])
    handle = lm.model.register_forward_pre_hook(lambda module, args: pytest.fail("the model ran"))
    try:
        assert keys_values(lm.model, lm.anatomy, ()).layers == ()
    finally:
        handle.remove()

import dataclasses
import math
from typing import Any

import pytest
import torch

from dualform.errors import ModelError
from dualform.models.reading.capture import ProbeIndex, Recorder, Recording, Trace, join_traces
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import lay_out
from dualform.models.structure.anatomy import Anatomy, LayerAnatomy
from dualform.models.structure.blocks import block_names
from tests.models.reference import (
    BY_NAME,
    CASES,
    OPENING,
    PREFIX,
    QUERIES,
    ROUTES,
    assert_no_hooks,
    plain,
    probed_ids,
    route_id,
    wrapped,
)
from tests.tiny import tiny_model

EVERYTHING = Recording(
    output=True, scores=True, demo_scores=True, q=True, head_output=True, mixed=True, update=True, pooled=True
)
# Attention is at most 1 and outputs are of order 1: a few dozen roundings of float32.
RTOL, ATOL = 1e-5, 5e-6


def traces(lm, prefix, probe="prompt", want=EVERYTHING):
    """Each query's own part of the trace, in the order of `QUERIES`."""
    by_index = {}
    for readings in lm.read(lm.encode(prefix), QUERIES, want, probe):
        trace = readings.trace
        assert trace is not None
        for row, index in enumerate(readings.queries):
            seen = int(trace.mask[row].sum())
            assert trace.mask[row, :seen].all()  # real tokens first
            record = {f.name: getattr(trace, f.name)[row] for f in dataclasses.fields(Recording)}
            record["scores"] = record["scores"][..., :seen]
            by_index[index] = record
    return [by_index[index] for index in range(len(QUERIES))]


def attention_at_the_end(case, ids):
    """How the last token spreads its attention, of shape `(layer, head, k_pos)`."""
    if case.family == "falcon-alibi":
        return falcon_alibi_attention_at_the_end(plain(case), ids)
    with torch.no_grad():
        maps = plain(case, "eager")(input_ids=ids, output_attentions=True, use_cache=False).attentions
    return torch.stack([layer[0, :, -1] for layer in maps])


def falcon_alibi_attention_at_the_end(model, ids):
    # transformers' eager code for it adds ALiBi twice, to the scores and within the mask, and differs from its own
    # default; so the reference is written out. The bias of head h is slope_h times the key's position.
    heads, size = model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads
    slopes = torch.tensor([2 ** (-8 * (head + 1) / heads) for head in range(heads)])
    bias = slopes[:, None] * torch.arange(ids.shape[1])
    outputs = []
    for block in model.transformer.h:
        block.self_attention.query_key_value.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for block in model.transformer.h:
            block.self_attention.query_key_value._forward_hooks.clear()
    maps = []
    for fused in outputs:
        by_head = fused.view(-1, heads, 3, size)
        raw = torch.einsum("hd,khd->hk", by_head[-1, :, 0], by_head[:, :, 1])
        maps.append(torch.softmax((raw + bias) / math.sqrt(size), dim=-1))
    return torch.stack(maps)


def outputs_at_the_end(case, ids):
    """What each layer's W_O puts out at the last token, of shape `(layer, d_model)`."""
    model = plain(case)
    names = [layer.W_O for layer in wrapped(case).anatomy.layers]
    outputs = []
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out: outputs.append(out.reshape(-1, out.shape[-1])[-1])
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(outputs)


class TestWhatIsRecordedIsWhatTheModelDoes:
    @pytest.mark.parametrize("probe", ["prompt", "label0"])
    @pytest.mark.parametrize("prefix", [PREFIX, ()], ids=["demonstrations", "nothing"])
    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_scores_after_softmax_are_the_familys_own_attention(self, case, prefix, probe):
        for query, trace in zip(QUERIES, traces(wrapped(case), prefix, probe), strict=True):
            weights = torch.softmax(torch.cat([trace["demo_scores"], trace["scores"]], dim=-1), dim=-1)
            expected = attention_at_the_end(case, probed_ids(prefix, query, probe))
            torch.testing.assert_close(weights, expected, rtol=RTOL, atol=ATOL)

    @pytest.mark.parametrize("probe", ["prompt", "label0"])
    @pytest.mark.parametrize("prefix", [PREFIX, ()], ids=["demonstrations", "nothing"])
    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_outputs_are_those_of_the_output_projection(self, case, prefix, probe):
        for query, trace in zip(QUERIES, traces(wrapped(case), prefix, probe), strict=True):
            expected = outputs_at_the_end(case, probed_ids(prefix, query, probe))
            torch.testing.assert_close(trace["output"], expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("probe", ["prompt", "label0"])
    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_pooled_states_are_means_of_the_models_own_hidden_states(self, case, probe):
        model, last = plain(case), block_names(wrapped(case).model, wrapped(case).anatomy)[-1]
        for query, trace in zip(QUERIES, traces(wrapped(case), PREFIX, probe), strict=True):
            kept: list[Any] = []
            handle = model.get_submodule(last).register_forward_hook(
                lambda module, args, out, kept=kept: kept.append(out if isinstance(out, torch.Tensor) else out[0])
            )
            ids = probed_ids(PREFIX, query, probe)
            with torch.no_grad():
                states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            handle.remove()
            # transformers reports the last block's output after the final norm.
            expected = torch.stack([each[0, len(PREFIX) :].mean(0) for each in (*states[1:-1], kept[0])])
            torch.testing.assert_close(trace["pooled"], expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("probe", ["prompt", "label0"])
    @pytest.mark.parametrize("prefix", [PREFIX, OPENING, ()], ids=["demonstrations", "opening", "nothing"])
    @pytest.mark.parametrize(("case", "route"), [(c, r) for c, r in ROUTES if r != "naive"], ids=route_id)
    def test_every_route_records_what_the_naive_one_does(self, case, route, prefix, probe):
        expected = traces(wrapped(case, "naive"), prefix, probe)
        for record, other in zip(traces(wrapped(case, route), prefix, probe), expected, strict=True):
            assert record.keys() == other.keys()
            for name in record:
                # Scores and updates reach tens, and float32 resolves a part in ten million of the largest.
                largest = max(other[name][other[name].isfinite()].abs().flatten().tolist(), default=0.0)
                torch.testing.assert_close(record[name], other[name], rtol=1e-5, atol=2e-6 * max(largest, 1.0))

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_head_outputs_are_attention_over_values_and_updates_sums_of_products(self, case):
        # Values and keys of a whole sequence, from an encoding of it as a prefix: another code path altogether.
        lm = wrapped(case)
        naive = wrapped(case, "naive")
        for query, trace in zip(QUERIES, traces(lm, PREFIX), strict=True):
            ids = (*PREFIX, *query.prompt)
            attention = attention_at_the_end(case, torch.tensor([ids]))
            keys_values = naive.encode(ids).layers
            assert len(keys_values) == len(lm.anatomy.layers)
            for layer, (key, value) in enumerate(keys_values):
                groups = attention.shape[1] // value.shape[0]
                mixed = torch.einsum("hk,hkd->hd", attention[layer], value.repeat_interleave(groups, dim=0))
                torch.testing.assert_close(trace["head_output"][layer], mixed, rtol=1e-5, atol=1e-5)
                update = torch.einsum("hpv,hpk->hvk", value[:, len(PREFIX) :], key[:, len(PREFIX) :])
                torch.testing.assert_close(trace["update"][layer], update, rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize("name", ["llama", "gemma3", "xglm", "falcon", "gptj"])
    def test_scores_are_queries_times_keys(self, name):
        # XGLM hands over queries that are scaled already; Gemma 3 has a scale of its own.
        case = BY_NAME[name]
        scale = {"llama": 8**-0.5, "gemma3": 24**-0.5, "xglm": 1.0, "falcon": 8**-0.5, "gptj": 8**-0.5}[name]
        naive = wrapped(case, "naive")
        for query, trace in zip(QUERIES, traces(wrapped(case), PREFIX), strict=True):
            for layer, (key, _) in enumerate(naive.encode((*PREFIX, *query.prompt)).layers):
                q = trace["q"][layer]
                repeated = key.repeat_interleave(len(q) // len(key), dim=0)
                expected = scale * torch.einsum("hd,hkd->hk", q, repeated)
                scores = torch.cat([trace["demo_scores"], trace["scores"]], dim=-1)[layer]
                seen = scores.isfinite()
                torch.testing.assert_close(scores[seen], expected[seen], rtol=1e-5, atol=2e-5)

    @pytest.mark.parametrize("name", ["gemma3", "gpt_neo", "mistral-sliding_window=16"])
    def test_a_demonstration_token_outside_the_window_has_score_minus_infinity(self, name):
        case = BY_NAME[name]
        for route in case.routes:
            for query, trace in zip(QUERIES, traces(wrapped(case, route), PREFIX), strict=True):
                expected = attention_at_the_end(case, probed_ids(PREFIX, query, "prompt")) == 0
                hidden = torch.cat([trace["demo_scores"], trace["scores"]], dim=-1).isneginf()
                assert torch.equal(hidden, expected)
                assert hidden.any()

    def test_the_first_label_word_is_another_place_than_the_prompts_end(self):
        lm = wrapped(BY_NAME["llama"])
        for first, second in zip(traces(lm, PREFIX), traces(lm, PREFIX, "label0"), strict=True):
            assert (first["output"] - second["output"]).abs().max() > 0.01
            assert first["scores"].shape != second["scores"].shape


class TestOnlyRequestedFieldsAreRecorded:
    def test_a_recording_of_nothing_is_false(self):
        assert not Recording()
        assert Recording(q=True)

    @pytest.mark.parametrize("field", dataclasses.fields(Recording), ids=lambda field: field.name)
    @pytest.mark.parametrize("name", ["llama", "xglm", "bloom", "mpt"])
    def test_only_the_requested_field_is_recorded(self, name, field):
        lm = wrapped(BY_NAME[name])
        for readings in lm.read(lm.encode(PREFIX), QUERIES, Recording(**{field.name: True})):
            kept = {f.name for f in dataclasses.fields(Trace) if getattr(readings.trace, f.name) is not None}
            assert kept == {"mask", field.name}

    @pytest.mark.parametrize("name", ["llama", "qwen3", "xglm", "falcon"])
    def test_shapes_are_as_documented(self, name):
        lm = wrapped(BY_NAME[name])
        first = lm.anatomy.layers[0]
        heads, kv_heads, d = first.n_heads, first.n_kv_heads, first.d_head
        (readings,) = lm.read(lm.encode(PREFIX), QUERIES, EVERYTHING)
        trace, n, longest = readings.trace, len(QUERIES), max(len(query.prompt) for query in QUERIES)
        assert trace is not None
        # All layers are alike, and none has a sink.
        assert trace.sizes is None
        assert trace.sinks is None
        assert trace.mask.shape == (n, longest)
        shapes = {f.name: tuple(getattr(trace, f.name).shape) for f in dataclasses.fields(Recording)}
        assert shapes == {
            "output": (n, 2, 32),
            "scores": (n, 2, heads, longest),
            "demo_scores": (n, 2, heads, len(PREFIX)),
            "q": (n, 2, heads, d),
            "head_output": (n, 2, heads, d),
            "mixed": (n, 2, heads, d),
            "update": (n, 2, kv_heads, d, d),
            "pooled": (n, 2, 32),
        }

    def test_without_a_prefix_there_are_no_demonstration_scores(self):
        for name in ("llama", "xglm", "bloom", "mpt"):
            lm = wrapped(BY_NAME[name])
            for readings in lm.read(lm.encode(()), QUERIES, Recording(demo_scores=True)):
                assert readings.trace is not None
                assert readings.trace.demo_scores is not None
                assert readings.trace.demo_scores.shape[-1] == 0

    def test_joined_traces_are_padded_to_the_longest(self):
        short = Trace(mask=torch.ones(1, 2, dtype=torch.bool), scores=torch.ones(1, 3, 4, 2))
        long = Trace(mask=torch.ones(2, 5, dtype=torch.bool), scores=torch.full((2, 3, 4, 5), 2.0))
        joined = join_traces([short, long])
        assert joined.mask.tolist() == [[True, True, False, False, False], [True] * 5, [True] * 5]
        assert joined.scores is not None
        assert joined.scores.shape == (3, 3, 4, 5)
        assert torch.equal(joined.scores[0, ..., :2], torch.ones(3, 4, 2))
        assert torch.equal(joined.scores[1:], torch.full((2, 3, 4, 5), 2.0))
        assert joined.q is None


def logits_and_hidden(lm, want):
    layout = lay_out(QUERIES, "prompt")
    logits, hidden, _ = lm.route.read(lm.encode(PREFIX), list(QUERIES), layout, want)
    return logits, hidden


class TestRecordingChangesNothing:
    @pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
    def test_outputs_are_the_same_bit_for_bit_and_no_hook_remains(self, case, route):
        lm = wrapped(case, route)
        bare = logits_and_hidden(lm, Recording())
        recorded = logits_and_hidden(lm, EVERYTHING)
        assert torch.equal(bare[0], recorded[0])
        assert torch.equal(bare[1], recorded[1])
        assert_no_hooks(lm.model)

    @pytest.mark.parametrize("where", ["encode", "read"])
    @pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
    def test_when_the_model_raises_no_hook_and_no_tracer_remains(self, case, route, where):
        lm = wrapped(case, route)
        before = logits_and_hidden(lm, EVERYTHING)
        prefix = lm.encode(PREFIX)

        def fails(module, args):
            raise RuntimeError("the last layer fails")

        last = lm.model.get_submodule(lm.anatomy.layers[-1].attention)
        handle = last.register_forward_pre_hook(fails)
        try:
            with pytest.raises(RuntimeError, match="the last layer fails"):
                lm.encode(PREFIX) if where == "encode" else list(lm.read(prefix, QUERIES, EVERYTHING))
        finally:
            handle.remove()
        assert_no_hooks(lm.model)
        # A watch left in force would write into a record that is gone, or fail.
        after = logits_and_hidden(lm, EVERYTHING)
        assert torch.equal(before[0], after[0])

    def test_the_check_for_hooks_finds_one(self):
        model = tiny_model("llama")
        model.lm_head.register_forward_hook(lambda module, args, out: None)
        with pytest.raises(AssertionError, match="_forward_hooks on lm_head"):
            assert_no_hooks(model)

    def test_recording_outputs_without_a_known_output_projection_is_an_error(self, tokenizer):
        lm: Any = LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama")
        lost = dataclasses.replace(lm.anatomy.layers[1], W_O=None, unclear=("W_O should be the one linear",))
        anatomy = Anatomy((lm.anatomy.layers[0], lost), registry=True)
        route = type(lm.route)(lm.model, anatomy)
        with pytest.raises(
            ModelError,
            match=r"cannot be recorded, which needs W_O of every layer: layer 1: W_O should be the one linear",
        ):
            route.read(route.encode(PREFIX), list(QUERIES), lay_out(QUERIES), Recording(output=True))
        assert_no_hooks(lm.model)


def test_the_batch_is_the_forwards_own_where_w_o_is_given_flattened_rows():
    # Two rows of three tokens; only the first holds a probe. Guessed from the probes, the batch would be one row.
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.o_proj = torch.nn.Linear(4, 4, bias=False)

        def forward(self, input_ids):
            return self.o_proj(input_ids[..., None].float().expand(2, 3, 4).reshape(6, 4))

    model: Any = Flat()
    layer = LayerAnatomy("", None, None, None, "o_proj", 2, 2, 2)
    index = ProbeIndex(torch.tensor([0]), torch.tensor([2]), torch.tensor([[0]]), 0)
    recorder = Recorder(Anatomy((layer,), True), Recording(output=True), torch.ones(1, 1, dtype=torch.bool), index)
    ids = torch.tensor([[1, 2, 3], [7, 8, 9]])
    with recorder.attached(model):
        model(input_ids=ids)
    trace = recorder.trace()
    assert trace.output is not None
    torch.testing.assert_close(trace.output[0, 0], model.o_proj(torch.full((4,), 3.0)))

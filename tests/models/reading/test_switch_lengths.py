import copy
import dataclasses

import pytest
import torch
import transformers

from dualform.errors import ContextError
from dualform.models.editing.blockwise import BlockwiseForward
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.switch_lengths import SwitchLength, same_prefix_states, switch_lengths
from tests.tiny import randomise_

COMMON = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MOE = {**COMMON, "num_experts_per_tok": 1}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 4.0, 16.0, 48.0],
}
BETA = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "llama_4_scaling_beta": 0.5,
}


def config_of(name):
    if name == "phi3":
        return transformers.Phi3Config(
            **COMMON, original_max_position_embeddings=48, rope_parameters=LONGROPE, sliding_window=None
        )
    if name == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
        return transformers.LlamaConfig(**{**COMMON, "max_position_embeddings": 48}, rope_parameters=rope)
    if name == "phimoe":
        return transformers.PhimoeConfig(**MOE, num_local_experts=2, sliding_window=40)
    if name == "qwen2_moe":
        return transformers.Qwen2MoeConfig(
            **MOE, num_experts=2, moe_intermediate_size=32, shared_expert_intermediate_size=32, use_sliding_window=True,
            sliding_window=40, max_window_layers=1,
        )  # fmt: skip
    if name == "llama4":
        return transformers.Llama4TextConfig(
            **MOE, head_dim=8, intermediate_size_mlp=64, num_local_experts=2, no_rope_layers=[1, 0],
            attention_chunk_size=40, floor_scale=24, attn_temperature_tuning=True, attn_scale=1.0,
        )  # fmt: skip
    assert name == "ministral3"
    return transformers.Ministral3Config(**COMMON, head_dim=8, rope_parameters=BETA, sliding_window=None)


CLASSES = {
    "phi3": "Phi3ForCausalLM",
    "dynamic": "LlamaForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "llama4": "Llama4ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
}


def build_model(name, **changed):
    config = config_of(name)
    for field, value in changed.items():
        setattr(config, field, value)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, CLASSES[name])(config)
    randomise_(model, 0)
    return model.eval()


def tokens(n, seed):
    return tuple((torch.randint(380, (n,), generator=torch.Generator().manual_seed(seed)) + 4).tolist())


# On one side of 40 and 48 tokens, on the other, and an answer that crosses 48 on its way.
PREFIX = tokens(36, 1)
SHORT = Query(tokens(3, 2), ((20,), (21, 22)))
LONG = Query(tokens(30, 3), ((20,), (21, 22)))
ACROSS = Query(tokens(11, 4), ((20,), (21, 22, 23)))
QUERIES = (LONG, SHORT, ACROSS)


@torch.no_grad()
def expected_scores(model, prefix, query):
    """transformers alone: each answer's token from what stands before it, each forward by a model that read nothing."""
    means = []
    for answer in query.answers:
        row, terms = [*prefix, *query.prompt], []
        for token in answer:
            # Dynamic scaling alone keeps something from one forward to the next.
            fresh = copy.deepcopy(model) if type(model).__name__ == "LlamaForCausalLM" else model
            logits = fresh(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
            terms.append(torch.log_softmax(logits.double(), -1)[token])
            row.append(token)
        means.append(torch.stack(terms).mean())
    return torch.stack(means)


def wrapped(model, tokenizer, route=None):
    return LanguageModel.wrap(copy.deepcopy(model), tokenizer, type(model).__name__, route)


def assert_right(lm, model, prefix, queries=QUERIES):
    table = lm.log_probabilities(lm.encode(prefix), queries)
    for row, query in zip(table, queries, strict=True):
        expected = expected_scores(model, prefix, query)
        torch.testing.assert_close(row[: len(query.answers)], expected, rtol=0, atol=2e-5)


class TestAnswersOnBothSidesOfASwitchLength:
    @pytest.mark.parametrize("name", CLASSES)
    def test_are_those_of_one_uncached_forward_a_token(self, name, tokenizer):
        model = build_model(name)
        lm = wrapped(model, tokenizer)
        for prefix in (PREFIX, PREFIX + PREFIX):
            assert_right(lm, model, prefix)

    @pytest.mark.parametrize("name", ["phi3", "dynamic"])
    @pytest.mark.parametrize("route", ["repeated", "naive"])
    def test_whatever_the_route(self, name, route, tokenizer):
        model = build_model(name)
        assert_right(wrapped(model, tokenizer, route), model, PREFIX)

    @pytest.mark.parametrize(("name", "far"), [("phimoe", {"sliding_window": 1030}), ("llama4", {"floor_scale": 1040})])
    def test_also_where_it_is_too_long_to_be_checked(self, name, far, tokenizer):
        model = build_model(name, **far)
        if name == "llama4":
            for layer in model.model.layers:
                layer.self_attn.floor_scale = far["floor_scale"]
        lm = wrapped(model, tokenizer)
        assert_right(lm, model, tokens(1024, 5), (Query(tokens(20, 6), ((20,),)),))

    def test_a_long_rows_frequencies_do_not_outlive_it(self, tokenizer):
        model = build_model("dynamic")
        lm = wrapped(model, tokenizer)
        prefix = lm.encode(PREFIX)
        before = lm.log_probabilities(prefix, [LONG])
        lm.log_probabilities(prefix, [Query(tokens(90, 7), ((20,),))])
        assert torch.equal(lm.log_probabilities(prefix, [LONG]), before)
        assert_right(lm, model, PREFIX, (SHORT,))

    def test_the_switch_is_far_outside_the_tolerance(self):
        model = build_model("phi3")
        with torch.no_grad():
            at_once = model(input_ids=torch.tensor([[*PREFIX, *LONG.prompt]])).logits[0, 35].log_softmax(-1)
            alone = model(input_ids=torch.tensor([PREFIX])).logits[0, 35].log_softmax(-1)
        assert (at_once - alone).abs().max() > 0.1


class TestTraceBeyondASwitchLength:
    @pytest.mark.parametrize("probe", ["prompt", "label0"])
    def test_is_that_of_the_forward_that_ends_at_the_probe(self, probe, tokenizer):
        model = build_model("phi3")
        lm = wrapped(model, tokenizer)
        everything = Recording(output=True, scores=True, demo_scores=True, q=True, head_output=True)
        indices = (2, 0, 1)
        readings = lm.read_group(lm.encode(PREFIX), QUERIES, indices, everything, probe)
        assert readings.queries == indices
        for row, index in enumerate(indices):
            query = QUERIES[index]
            kept: list[torch.Tensor] = []
            linear = model.model.layers[1].self_attn.o_proj
            handle = linear.register_forward_hook(lambda module, args, out, kept=kept: kept.append(out[0, -1]))
            ids = [*PREFIX, *query.prompt, *(query.answers[0] if probe == "label0" else ())]
            with torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            handle.remove()
            assert readings.trace.output.shape == (3, 2, 32)
            torch.testing.assert_close(readings.trace.output[row, 1], kept[0], rtol=0, atol=2e-5)
            assert readings.trace.mask[row].sum() == len(ids) - len(PREFIX)

    def test_a_separate_prefix_cannot_be_used_beyond_a_switch_length(self, tokenizer):
        lm = wrapped(build_model("phi3"), tokenizer)
        prefix = lm.encode(PREFIX)
        lm.require_usable_prefix(prefix.length, [SHORT])
        message = r"computes a different function beyond 48 tokens \(longrope.*makes a row of 67\."
        with pytest.raises(ContextError, match=message):
            lm.require_usable_prefix(prefix.length, QUERIES)
        with pytest.raises(ContextError, match=message):
            BlockwiseForward(lm, None, prefix, [[LONG]])  # type: ignore[arg-type] # refused before blocks are used

    def test_edited_keys_and_values_are_not_ignored(self, tokenizer):
        lm = wrapped(build_model("phi3"), tokenizer)
        edited = dataclasses.replace(lm.encode(PREFIX), edited=True)
        lm.read_group(edited, QUERIES, [1])
        with pytest.raises(ContextError, match="beyond 48 tokens"):
            lm.read_group(edited, QUERIES, [0])


class TestCollection:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("phi3", [(48, "row")]),
            ("dynamic", [(48, "every length")]),
            ("phimoe", [(40, "token")]),
            ("qwen2_moe", [(40, "token")]),
            ("llama4", [(23, "token"), (40, "token")]),
            ("ministral3", [(40, "token")]),
        ],
    )
    def test_finds_what_the_family_does(self, name, expected):
        assert [(switch.length, switch.reach) for switch in switch_lengths(config_of(name))] == expected

    def test_finds_frequencies_that_differ_from_layer_to_layer(self):
        config = transformers.Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=16)
        config.rope_parameters = {
            "full_attention": {**LONGROPE, "original_max_position_embeddings": 100},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
        assert [(switch.length, switch.reach) for switch in switch_lengths(config)] == [(16, "token"), (100, "row")]

    def test_finds_the_number_of_keys_that_are_attended_to(self):
        for config, length in (
            (transformers.DogeConfig(keep_window_size=24), 24),
            (transformers.DeepseekV32Config(index_topk=24), 24),
        ):
            assert [(switch.length, switch.reach) for switch in switch_lengths(config)] == [(length, "every length")]

    def test_finds_nothing_in_a_plain_model(self):
        for config in (transformers.LlamaConfig(**COMMON), transformers.GPT2Config(), transformers.OPTConfig()):
            assert switch_lengths(config) == ()
        assert switch_lengths(transformers.Qwen2MoeConfig(**MOE, sliding_window=40)) == ()


def test_prefix_states_are_the_same_on_one_side_of_the_switch_only():
    row, every = (SwitchLength(48, "longrope", "row"),), (SwitchLength(48, "dynamic", "every length"),)
    assert same_prefix_states(row, 40, 48)
    assert not same_prefix_states(row, 48, 49)
    assert same_prefix_states(row, 49, 60)
    assert same_prefix_states(every, 40, 48)
    assert same_prefix_states(every, 60, 60)
    assert not same_prefix_states(every, 59, 60)
    assert same_prefix_states((SwitchLength(48, "window", "token"),), 40, 60)

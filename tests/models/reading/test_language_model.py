import dataclasses

import pytest
import torch
import transformers

from dualform.errors import ModelError, NumericalError
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.packed import PackedRoute
from dualform.models.reading.self_check import choose_route, window_of
from tests.models.reference import (
    BY_NAME,
    CASES,
    OPENING,
    PREFIX,
    QUERIES,
    ROUTES,
    expected_scores,
    naive_scores,
    plain,
    route_id,
    wrapped,
)
from tests.tiny import FAMILIES, WINDOW, randomise_, tiny_model

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

# float32 resolves 6e-8 of a number; sums in another order, through two or three layers, add a few dozen roundings up.
RELATIVE = 2e-6

# Bloom and MPT compute softmax in float32 whatever the model's dtype; XGLM overflows in float64 when it masks.
SINGLE_INSIDE = ("bloom", "mpt", "xglm")


def scores(lm, prefix, queries=QUERIES, probe="prompt"):
    table = [None] * len(queries)
    for readings in lm.read(lm.encode(prefix), queries, probe=probe):
        for row, index in enumerate(readings.queries):
            table[index] = readings.log_probabilities[row]
    return table


class TestReadingsEqualPlainForwards:
    @pytest.mark.parametrize("prefix", [PREFIX, OPENING, ()], ids=["demonstrations", "opening", "nothing"])
    @pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
    def test_every_correct_route_gives_the_label_log_probabilities_of_plain_forwards(self, case, route, prefix):
        actual = scores(wrapped(case, route), prefix)
        for query, row in zip(QUERIES, actual, strict=True):
            expected = expected_scores(case, prefix, query)
            torch.testing.assert_close(row[: len(query.answers)], expected, rtol=RELATIVE, atol=0)
            assert torch.isneginf(row[len(query.answers) :]).all()

    @pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
    def test_the_place_of_the_probe_does_not_change_the_answers(self, case, route):
        actual = scores(wrapped(case, route), PREFIX, probe="label0")
        for query, row in zip(QUERIES, actual, strict=True):
            expected = expected_scores(case, PREFIX, query)
            torch.testing.assert_close(row[: len(query.answers)], expected, rtol=RELATIVE, atol=0)

    @pytest.mark.parametrize(
        ("case", "route"), [(c, r) for c, r in ROUTES if c.family not in SINGLE_INSIDE], ids=route_id
    )
    def test_in_float64_the_routes_agree_to_ten_digits(self, case, route):
        # Sharper than float32 can be: a wrong mask of small effect cannot pass for rounding.
        actual = scores(wrapped(case, route, torch.float64), PREFIX)
        for query, row in zip(QUERIES, actual, strict=True):
            expected = expected_scores(case, PREFIX, query, torch.float64)
            torch.testing.assert_close(row[: len(query.answers)], expected, rtol=1e-10, atol=0)

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_the_distribution_over_the_vocabulary_is_that_of_the_token_before_the_label(self, case):
        lm = wrapped(case)
        for readings in lm.read(lm.encode(PREFIX), QUERIES):
            for row, index in enumerate(readings.queries):
                ids = torch.tensor([[*PREFIX, *QUERIES[index].prompt]])
                with torch.no_grad():
                    expected = torch.log_softmax(plain(case)(input_ids=ids).logits[0, -1], dim=-1)
                torch.testing.assert_close(readings.next_token[row], expected, rtol=1e-5, atol=1e-5)
                assert readings.predictions[row] == expected_scores(case, PREFIX, QUERIES[index]).argmax()

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_the_hidden_state_is_what_goes_into_the_output_head(self, case):
        lm = wrapped(case)
        model = plain(case)
        given = []
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: given.append(args[0]))
        try:
            for readings in lm.read(lm.encode(PREFIX), QUERIES):
                for row, index in enumerate(readings.queries):
                    with torch.no_grad():
                        model(input_ids=torch.tensor([[*PREFIX, *QUERIES[index].prompt]]))
                    torch.testing.assert_close(readings.hidden[row], given.pop()[0, -1], rtol=1e-5, atol=1e-5)
        finally:
            handle.remove()

    def test_forgetting_the_prefix_is_far_outside_the_tolerance(self):
        actual = scores(wrapped(BY_NAME["llama"]), PREFIX)[2]
        without = expected_scores(BY_NAME["llama"], (), QUERIES[2])
        assert ((actual - without) / without).abs().max() > 1e5 * RELATIVE


class TestQueriesAreIndependent:
    # Not bitwise: rows of other lengths make the matrix products add in another order.
    TOLERANCE = 2e-6

    @pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
    def test_its_neighbours_and_their_order_do_not_matter(self, case, route):
        lm = wrapped(case, route)
        together = scores(lm, PREFIX)
        order = [4, 2, 0, 5, 3, 1]
        permuted = scores(lm, PREFIX, [QUERIES[i] for i in order])
        for index, query in enumerate(QUERIES):
            alone = scores(lm, PREFIX, [query])[0]
            n = len(query.answers)
            torch.testing.assert_close(together[index][:n], alone[:n], rtol=self.TOLERANCE, atol=0)
            torch.testing.assert_close(permuted[order.index(index)][:n], alone[:n], rtol=self.TOLERANCE, atol=0)

    @pytest.mark.parametrize("case", [case for case in CASES if case.routes[0] != "naive"], ids=route_id)
    @pytest.mark.parametrize(("max_row", "max_examples"), [(1, 1), (30, 2), (1024, 3)])
    def test_the_size_of_a_row_does_not_matter(self, case, max_row, max_examples):
        lm = dataclasses.replace(wrapped(case), max_row=max_row, max_examples=max_examples)
        assert len(lm.groups(QUERIES)) > 1
        for small, large in zip(scores(lm, PREFIX), scores(wrapped(case), PREFIX), strict=True):
            n = int(small.isfinite().sum())
            torch.testing.assert_close(small[:n], large[:n], rtol=self.TOLERANCE, atol=0)

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_a_change_in_one_query_is_seen_in_that_query_alone(self, case):
        lm = wrapped(case)
        changed = list(QUERIES)
        changed[2] = Query((*QUERIES[2].prompt[:-1], 99), QUERIES[2].answers)
        before, after = scores(lm, PREFIX), scores(lm, PREFIX, changed)
        for index in range(len(QUERIES)):
            # Rows of the same lengths: here the others are the same to the bit.
            assert torch.equal(before[index], after[index]) == (index != 2)

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_the_encoded_prefix_can_be_read_again_and_again(self, case):
        lm = wrapped(case)
        prefix = lm.encode(PREFIX)
        assert prefix.length == len(PREFIX)
        first = lm.log_probabilities(prefix, QUERIES)
        assert torch.equal(first, lm.log_probabilities(prefix, QUERIES))

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_the_prefix_is_kept_as_keys_and_values_of_every_layer(self, case):
        lm = wrapped(case)
        layers = lm.encode(PREFIX).layers
        assert len(layers) == len(lm.anatomy.layers)
        for (key, value), layer in zip(layers, lm.anatomy.layers, strict=True):
            assert key.shape == value.shape == (layer.n_kv_heads, len(PREFIX), layer.d_head)
        assert lm.encode(()).layers == ()
        assert lm.encode(()).length == 0


class TestReadings:
    def test_the_table_is_in_the_order_of_the_queries_and_minus_infinity_where_there_is_no_answer(self):
        case = BY_NAME["llama"]
        lm = dataclasses.replace(wrapped(case), max_examples=2)
        table = lm.log_probabilities(lm.encode(PREFIX), QUERIES)
        assert table.shape == (len(QUERIES), 3)
        assert table.dtype == torch.float64
        for row, query in zip(table, QUERIES, strict=True):
            n = len(query.answers)
            expected = expected_scores(case, PREFIX, query).double()
            torch.testing.assert_close(row[:n], expected, rtol=RELATIVE, atol=0)
            assert torch.isneginf(row[n:]).all()

    def test_no_queries_give_an_empty_table(self):
        lm = wrapped(BY_NAME["llama"])
        assert lm.log_probabilities(lm.encode(PREFIX), []).shape == (0, 0)
        assert lm.groups([]) == []

    def test_a_query_without_answers_can_still_be_recorded(self):
        lm = wrapped(BY_NAME["llama"])
        (readings,) = lm.read(lm.encode(PREFIX), [Query((5, 6, 7), ())], Recording(output=True))
        assert readings.log_probabilities.shape == (1, 0)
        assert readings.trace is not None
        assert readings.trace.output is not None
        assert readings.trace.output.shape == (1, 2, 32)
        assert readings.next_token.shape == (1, 384)

    def test_nothing_is_recorded_unless_requested(self):
        lm = wrapped(BY_NAME["llama"])
        assert all(readings.trace is None for readings in lm.read(lm.encode(()), QUERIES))

    def test_answers_that_are_no_numbers_are_an_error_instead_of_the_first_label(self, tokenizer):
        lm = LanguageModel.wrap(tiny_model("gpt2"), tokenizer, "tiny")
        with torch.no_grad():
            lm.model.get_output_embeddings().weight.fill_(torch.nan)
        with pytest.raises(NumericalError, match=r"tiny in torch\.float32: log-probabilities of answers are NaN\."):
            lm.read_group(lm.encode(OPENING), QUERIES[:1], (0,))

    def test_half_precision_is_scored_in_float32(self):
        lm = wrapped(BY_NAME["llama"], None, torch.bfloat16)
        (readings,) = lm.read(lm.encode(PREFIX), QUERIES)
        assert readings.log_probabilities.dtype == torch.float32
        torch.testing.assert_close(readings.next_token.exp().sum(-1), torch.ones(len(QUERIES)))


class TestChoiceOfRoute:
    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_the_fastest_correct_route_is_used_and_refused_ones_have_a_reason(self, case):
        lm = wrapped(case)
        assert lm.route.name == case.routes[0]
        faster = [name for name in ("packed", "packed-mask", "repeated", "naive") if name not in case.routes]
        faster = [name for name in faster if case.registry or name != "packed"]
        passed_over = faster if case.routes[0] != "packed" else []
        assert [reason.split(":")[0] for reason in lm.refused] == passed_over

    @pytest.mark.parametrize("case", [case for case in CASES if len(case.routes) < 4], ids=route_id)
    def test_an_incorrect_route_is_refused_even_if_requested(self, case):
        for route in {"packed", "packed-mask", "repeated"} - set(case.routes):
            with pytest.raises(
                ModelError, match=f"^route '{route}' does not agree with the naive route on this model: {route}: "
            ):
                wrapped(case, route)

    def test_an_unknown_route_is_named(self):
        with pytest.raises(ModelError, match="unknown route 'fast': choose one of packed, packed-mask, repeated, na"):
            wrapped(BY_NAME["llama"], "fast")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_half_precision_takes_the_route_that_full_precision_takes(self, case, dtype):
        # Coarse numbers must not let a wrong route pass: mpt's were once accepted in bfloat16.
        assert wrapped(case, None, dtype).route.name == case.routes[0]

    @pytest.mark.parametrize("case", [case for case in CASES if case.family != "xglm"], ids=route_id)
    def test_double_precision_takes_the_route_that_single_precision_takes(self, case):
        # Norms and softmax in float32 within a float64 model must not count as errors of the route.
        assert wrapped(case, None, torch.float64).route.name == case.routes[0]

    @pytest.mark.parametrize(
        ("dtype", "why"), [(torch.float32, "differ from"), (torch.float16, "cannot be checked in")]
    )
    def test_a_window_longer_than_the_usual_check_is_filled(self, dtype, why, tokenizer):
        # A short check would accept packed-mask, which is right as long as no window is full.
        lm = LanguageModel.wrap(tiny_model("gpt_neo", window_size=250, dtype=dtype), tokenizer, "gpt_neo")
        assert lm.route.name == "repeated"
        assert len(lm.refused) == 1
        assert why in lm.refused[0]

    def test_with_a_window_too_long_to_check_no_route_that_might_ignore_it_is_used(self, tokenizer):
        config = transformers.Gemma2Config(**COMMON, head_dim=8, sliding_window=1025)
        lm = LanguageModel.wrap(_random(transformers.Gemma2ForCausalLM, config), tokenizer, "gemma2")
        assert lm.route.name == "repeated"
        assert lm.refused == ("packed-mask: a window of 1025 tokens cannot be checked in torch.float32",)

    def test_a_route_that_is_off_by_a_little_is_refused(self, monkeypatch):
        def slightly_wrong(self, prefix, queries, layout, want):
            logits, hidden, trace = right(self, prefix, queries, layout, want)
            return logits * 1.001, hidden, trace

        lm = wrapped(BY_NAME["llama"])
        right = PackedRoute.read
        monkeypatch.setattr(PackedRoute, "read", slightly_wrong)
        route, refused = choose_route(lm.model, lm.anatomy)
        assert route.name == "packed-mask"
        assert refused[0].startswith("packed: log-probabilities or records differ from the naive forward's by ")

    def test_a_route_whose_records_are_not_numbers_is_refused(self, monkeypatch):
        def spoilt(self, prefix, queries, layout, want):
            logits, hidden, trace = right(self, prefix, queries, layout, want)
            if trace is not None:
                assert trace.output is not None
                trace = dataclasses.replace(trace, output=trace.output * torch.nan)
            return logits, hidden, trace

        lm = wrapped(BY_NAME["llama"])
        right = PackedRoute.read
        monkeypatch.setattr(PackedRoute, "read", spoilt)
        route, refused = choose_route(lm.model, lm.anatomy)
        assert route.name == "packed-mask"
        assert refused == ("packed: log-probabilities or records differ from the naive forward's by nan",)

    def test_a_route_that_raises_is_refused_with_its_reason(self, monkeypatch):
        def raises(self, prefix, queries, layout, want):
            raise KeyError("layer 7")

        lm = wrapped(BY_NAME["llama"])
        monkeypatch.setattr(PackedRoute, "read", raises)
        route, refused = choose_route(lm.model, lm.anatomy)
        assert route.name == "packed-mask"
        assert refused == ("packed: KeyError: 'layer 7'",)


def _random(model_class, config):
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    randomise_(model, 0)
    return model.eval()


class TestProperties:
    def test_wrapping_puts_the_model_into_eval_mode(self, tokenizer):
        model = tiny_model("llama").train()
        assert not LanguageModel.wrap(model, tokenizer, "llama").model.training

    def test_sequences_open_with_the_beginning_else_the_end_else_nothing(self):
        lm = wrapped(BY_NAME["llama"])
        for bos, eos, expected in (("<s>", "</s>", 0), (None, "</s>", 1), (None, None, None)):
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=lm.tokenizer.backend_tokenizer, bos_token=bos, eos_token=eos
            )
            assert dataclasses.replace(lm, tokenizer=tokenizer).bos == expected

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_longest_sequence_comes_from_the_config(self, family):
        # Bloom names no limit.
        assert wrapped(BY_NAME[family]).max_positions == (None if family == "bloom" else 512)

    def test_the_device_is_the_models(self):
        assert wrapped(BY_NAME["llama"]).device == torch.device("cpu")


class TestUnsupportedAttention:
    def test_a_model_with_a_soft_cap_is_read_by_tracing_its_own_code(self, tokenizer):
        config = transformers.Gemma2Config(**COMMON, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=1.0)
        lm = LanguageModel.wrap(_random(transformers.Gemma2ForCausalLM, config), tokenizer, "gemma2")
        assert not lm.anatomy.registry
        assert lm.route.name == "repeated"
        model = _random(transformers.Gemma2ForCausalLM, config)
        model.set_attn_implementation("eager")
        for query, row in zip(QUERIES, scores(lm, PREFIX), strict=True):
            expected = naive_scores(model, PREFIX, query)
            torch.testing.assert_close(row[: len(query.answers)], expected, rtol=RELATIVE, atol=0)


def test_the_self_check_fills_the_window():
    assert window_of(plain(BY_NAME[f"mistral-sliding_window={WINDOW}"])) == WINDOW
    assert window_of(plain(BY_NAME["gpt_neo"])) == WINDOW
    assert window_of(plain(BY_NAME["llama"])) == 0


@pytest.mark.parametrize("token", [-1, 384])
def test_an_id_without_a_row_in_the_embedding_is_named(token):
    lm = wrapped(CASES[0])
    with pytest.raises(ModelError, match=f"id {token} has no row in the embedding, which has 384 rows"):
        lm.encode((10, token))
    with pytest.raises(ModelError, match=f"id {token} has no row"):
        lm.log_probabilities(lm.encode((10,)), [Query((11,), ((12, token),))])

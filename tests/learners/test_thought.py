"""Thought vectors and matrices, against a loop over texts with plain hooks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dualform.errors import ConfigError, ModelError
from dualform.learners import thought as under_test
from dualform.learners.prompting import ZeroShot
from dualform.learners.thought import Thought
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import row_axis
from tests.learners.setting import fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import BY_NAME, CASES, OPENING, PREFIX, QUERIES, plain, wrapped
from tests.models.structure.test_mlp_inputs import IN_SOURCE

DEMONSTRATIONS = EncodedDemonstrations(PREFIX, (), (), (), ())


def slow_means(case, prefix, queries):
    """Mean change of W_O's output and mean of da a^T / ||a||^2, by layer: text by text, token by token."""
    model, anatomy = plain(case), wrapped(case).anatomy
    stack = [layer.attention for layer in anatomy.layers]
    blocks = [
        next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)) + f".{i}" for i in range(len(stack))
    ]
    first = IN_SOURCE[case.family][0][0]

    def inside(tokens, own):
        seen = {}

        def keep(key, what):
            def hook(module, args, out):
                states = args[0] if what == "a" else out
                seen[key, what] = states.reshape(len(tokens), -1)[-own:].double()

            return hook

        handles = []
        for i, layer in enumerate(anatomy.layers):
            handles.append(model.get_submodule(layer.W_O).register_forward_hook(keep(i, "output")))
            handles.append(model.get_submodule(f"{blocks[i]}.{first}").register_forward_hook(keep(i, "a")))
        with torch.no_grad():
            model(input_ids=torch.tensor([tokens]), use_cache=False)
        for handle in handles:
            handle.remove()
        return seen

    vectors = [torch.zeros(32, dtype=torch.float64) for _ in stack]
    matrices = [torch.zeros(32, 32, dtype=torch.float64) for _ in stack]
    n = 0
    for query in queries:
        own = len(query.prompt)
        prompted, bare = (inside([*before, *query.prompt], own) for before in (prefix, OPENING))
        n += own
        for i in range(len(stack)):
            vectors[i] += (prompted[i, "output"] - bare[i, "output"]).sum(0)
            for a_prompted, a in zip(prompted[i, "a"], bare[i, "a"], strict=True):
                matrices[i] += torch.outer(a_prompted - a, a) / (a @ a)
    return blocks, [v / n for v in vectors], [m / n for m in matrices]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vector_and_matrix_are_those_of_a_loop_over_texts(case):
    lm = replace(wrapped(case), max_examples=4)
    adapted = Thought(OPENING, QUERIES, "matrix", strength=3.0).adapt(lm, DEMONSTRATIONS)
    actual = {delta.parameter: delta for delta in adapted.deltas}
    blocks, vectors, matrices = slow_means(case, PREFIX, QUERIES)
    expected = {}
    for i, layer in enumerate(lm.anatomy.layers):
        expected[f"{layer.W_O}.bias"] = vectors[i]
        for name in IN_SOURCE[case.family][0]:
            module = lm.model.get_submodule(f"{blocks[i]}.{name}")
            weight = module.weight.detach().double()
            transposed = row_axis(module) == 1
            dW = 3 * (weight.mT if transposed else weight) @ matrices[i]
            expected[f"{blocks[i]}.{name}.weight"] = dW.mT if transposed else dW
    assert actual.keys() == expected.keys()
    for name, delta in actual.items():
        assert delta.delta.dtype == torch.float32
        assert delta.index is None
        if not (IN_SOURCE[case.family][2] and name.startswith(blocks[0])):
            assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(delta.delta.double(), expected[name], rtol=1e-4, atol=1e-5)
    vector = Thought(OPENING, QUERIES, "vector", strength=0.5).adapt(lm, DEMONSTRATIONS)
    assert [delta.parameter for delta in vector.deltas] == [f"{layer.W_O}.bias" for layer in lm.anatomy.layers]
    for delta, mean in zip(vector.deltas, vectors, strict=True):
        torch.testing.assert_close(delta.delta.double(), mean / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
class TestFourFamilies:
    def test_it_reads_as_a_model_with_these_weights_does(self, family):
        setting = fresh(family)
        adapted = Thought(setting.encoder.opening, setting.queries, "matrix").adapt(setting.lm, setting.demonstrations)
        written = fresh(family)
        for delta in adapted.deltas:
            owner = written.lm.model.get_submodule(delta.parameter.rpartition(".")[0])
            kind = delta.parameter.rpartition(".")[2]
            if getattr(owner, kind) is None:
                owner.bias = nn.Parameter(delta.delta.clone())
            else:
                getattr(owner, kind).data += delta.delta
        zero_shot = ZeroShot(written.encoder.opening).adapt(written.lm, written.demonstrations)
        untouched = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        everyone = range(len(setting.queries))
        actual = adapted.read_group(setting.queries, everyone).next_token
        torch.testing.assert_close(actual, zero_shot.read_group(setting.queries, everyone).next_token)
        assert (actual - untouched.read_group(setting.queries, everyone).next_token).abs().max() > 0.1
        assert adapted.learner == "fold"
        assert adapted.n_prefix == len(setting.encoder.opening)

    def test_weights_and_hooks_are_as_before_also_when_it_raises(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *seen: enabled.append(torch.is_grad_enabled()))
        learner = Thought(setting.encoder.opening, setting.queries, "matrix")
        readings(learner.adapt(setting.lm, setting.demonstrations), setting)
        handle.remove()
        assert enabled
        assert not any(enabled)
        before.assert_restored(setting.lm.model)
        monkeypatch.setattr(under_test, "rank_one_sum", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            learner.adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)


def deltas(lm, form, texts, **settings):
    return [delta.delta for delta in Thought(OPENING, texts, form, **settings).adapt(lm, DEMONSTRATIONS).deltas]


@pytest.mark.parametrize("name", ["llama", "bloom", "mpt"])
def test_it_does_not_depend_on_how_texts_are_grouped_or_answered(name):
    lm = wrapped(BY_NAME[name])
    texts = QUERIES[:5]
    expected = deltas(lm, "matrix", texts)
    answered = tuple(Query(text.prompt, ((9, 8, 7), (6, 5))) for text in reversed(texts))
    for actual in (deltas(replace(lm, max_examples=2), "matrix", texts), deltas(lm, "matrix", answered)):
        for first, second in zip(actual, expected, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_every_token_counts_equally_rather_than_every_text():
    lm = wrapped(BY_NAME["llama"])
    short, long = Query((9,), ()), QUERIES[4]
    both = deltas(lm, "vector", (short, long))
    parts = deltas(lm, "vector", (short,)), deltas(lm, "vector", (long,))
    for whole, first, second in zip(both, *parts, strict=True):
        n = len(long.prompt)
        torch.testing.assert_close(whole, (first + n * second) / (1 + n), rtol=1e-4, atol=1e-5)
        assert (whole - (first + second) / 2).abs().max() > 1e-2


def test_strength_scales_what_the_form_is_named_after():
    lm = wrapped(BY_NAME["llama"])
    n_layers = len(lm.anatomy.layers)
    unscaled, four = (deltas(lm, "matrix", QUERIES, strength=strength) for strength in (1.0, 4.0))
    vector = deltas(lm, "vector", QUERIES)
    for i in range(len(unscaled)):
        torch.testing.assert_close(four[i], unscaled[i] if i < n_layers else 4 * unscaled[i])
    torch.testing.assert_close(unscaled[:n_layers], vector)
    torch.testing.assert_close(deltas(lm, "vector", QUERIES, strength=4.0), [4 * delta for delta in vector])
    assert all((delta == 0).all() for delta in deltas(lm, "vector", QUERIES, strength=0.0))


def test_without_demonstrations_nothing_changes():
    setting = fresh("llama", k=0)
    learner = Thought(setting.encoder.opening, setting.queries, "matrix")
    adapted = learner.adapt(setting.lm, setting.demonstrations)
    assert all((delta.delta == 0).all() for delta in adapted.deltas)


def test_the_first_parallel_block_has_a_vector_and_no_matrix():
    # Rotary positions do not change the embeddings, and attention does not reach the MLP beside it.
    lm = wrapped(BY_NAME["gptj"])
    adapted = Thought(OPENING, QUERIES, "matrix").adapt(lm, DEMONSTRATIONS)
    actual = {delta.parameter: float(delta.delta.abs().max()) for delta in adapted.deltas}
    assert actual["transformer.h.0.attn.out_proj.bias"] > 1e-2
    assert actual["transformer.h.0.mlp.fc_in.weight"] == 0
    assert actual["transformer.h.1.mlp.fc_in.weight"] > 1e-2


def test_half_precision_is_summed_in_single():
    case = BY_NAME["llama"]
    lm = wrapped(case, None, torch.bfloat16)
    actual = deltas(lm, "matrix", QUERIES)
    assert all(delta.dtype == torch.float32 for delta in actual)
    for first, second in zip(actual, deltas(wrapped(case), "matrix", QUERIES), strict=True):
        # Three digits a state, and states differ by little.
        assert (first - second).norm() < 0.1 * second.norm()


def test_it_costs_each_prefix_once_and_each_text_after_either():
    lm = wrapped(BY_NAME["llama"])
    cost = Thought(OPENING, QUERIES).adapt(lm, DEMONSTRATIONS).cost
    lengths = [len(query.prompt) for query in QUERIES]
    # The opening once more with the new weights.
    assert cost.tokens == len(PREFIX) + 2 * len(OPENING) + 2 * sum(lengths)
    expected = lm.shape.forward(own=len(OPENING), scored=0)
    for n_prefix in (len(PREFIX), len(OPENING)):
        expected += lm.shape.forward(own=n_prefix, scored=0)
        expected += sum(lm.shape.forward(own=n, prefix=n_prefix) for n in lengths)
    assert cost.flops == pytest.approx(expected)
    assert cost.seconds > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "tensor"}, "form 'tensor' is unknown: choose one of vector, matrix"),
        ({"strength": float("nan")}, "strength nan must be a finite number, such as 1"),
        ({"texts": ()}, "texts is empty, but the effect is averaged over texts. Give at least one unlabelled text."),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError) as raised:
        Thought(**{"opening": OPENING, "texts": QUERIES, **settings})
    assert str(raised.value) == message


def test_a_model_whose_attention_output_is_not_known_is_refused():
    lm = wrapped(BY_NAME["llama"])
    layers = (lm.anatomy.layers[0], replace(lm.anatomy.layers[1], W_O=None, unclear=("not seen",)))
    other = LanguageModel("x", lm.model, lm.tokenizer, replace(lm.anatomy, layers=layers), lm.route, ())
    with pytest.raises(ModelError, match=r"not found in every layer \(layer 1: not seen\)"):
        Thought(OPENING, QUERIES).adapt(other, DEMONSTRATIONS)

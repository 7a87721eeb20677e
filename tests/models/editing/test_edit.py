import dataclasses

import pytest
import torch
import transformers
from torch import nn

from dualform.errors import ModelError
from dualform.models.editing import edit
from dualform.models.editing.edit import KeyValueTraining, WeightDelta, WeightTraining, applied, mlp_rows, value_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.products import PackedProducts, packable
from dualform.models.structure.anatomy import Anatomy, is_linear, row_axis
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, assert_no_hooks, wrapped
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.arange(5, 30)[None]


def key_value_rows(anatomy):
    """Parameter's module -> output features that are W_K or W_V."""
    rows: dict[str, set[int]] = {}
    for layer in anatomy.layers:
        for part in (layer.W_K, layer.W_V):
            rows.setdefault(part.module, set()).update(part.index.tolist())
    return rows


class Snapshot:
    """All that must be the same again afterwards."""

    def __init__(self, model):
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.parameters = dict(model.named_parameters())
        self.pointers = {name: weight.data_ptr() for name, weight in self.parameters.items()}
        self.required = {name: weight.requires_grad for name, weight in self.parameters.items()}
        self.classes = {name: type(module) for name, module in model.named_modules()}
        self.attributes = set(vars(model))

    def assert_restored(self, model):
        state = model.state_dict()
        assert state.keys() == self.state.keys()
        assert all(torch.equal(state[name], self.state[name]) for name in state)
        parameters = dict(model.named_parameters())
        assert parameters.keys() == self.parameters.keys()
        assert all(parameters[name] is self.parameters[name] for name in parameters)
        assert {name: weight.data_ptr() for name, weight in parameters.items()} == self.pointers
        assert {name: weight.requires_grad for name, weight in parameters.items()} == self.required
        assert all(weight.grad is None for weight in parameters.values())
        assert {name: type(module) for name, module in model.named_modules()} == self.classes
        assert set(vars(model)) == self.attributes
        assert_no_hooks(model)


def train(model, training, optimiser, steps=3):
    for step in range(steps):
        loss = model(input_ids=IDS + step, labels=IDS + step).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("family", ["llama", "gpt2", "xglm"])
class TestApplied:
    def some_deltas(self, model):
        layer = wrapped(BY_NAME[self.family]).anatomy.layers[0]
        module = model.get_submodule(layer.W_K.module)
        axis = row_axis(module)
        index = layer.W_K.index[1::3]
        shape = list(module.weight.shape)
        shape[axis] = len(index)
        partial = WeightDelta(f"{layer.W_K.module}.weight", axis, index, torch.full(shape, 0.5))
        whole = WeightDelta(f"{layer.W_O}.weight", 0, None, torch.ones(model.get_submodule(layer.W_O).weight.shape))
        return partial, whole

    @pytest.fixture(autouse=True)
    def _family(self, family):
        self.family = family

    def test_the_change_is_there_within_the_block_and_gone_after_it(self, family):
        model = tiny_model(family)
        before = Snapshot(model)
        partial, whole = self.some_deltas(model)
        with applied(model, (partial, whole)):
            changed = model.get_parameter(partial.parameter)
            expected = before.state[partial.parameter].clone()
            rows = [slice(None)] * 2
            rows[partial.axis] = partial.index
            expected[tuple(rows)] += 0.5
            assert torch.equal(changed, expected)
            assert torch.equal(model.get_parameter(whole.parameter), before.state[whole.parameter] + 1)
        before.assert_restored(model)

    def test_the_weights_are_the_same_tensors_also_when_the_body_raises(self, family):
        model = tiny_model(family)
        before = Snapshot(model)
        with pytest.raises(RuntimeError, match="in the middle"), applied(model, self.some_deltas(model)):
            raise RuntimeError("in the middle")
        before.assert_restored(model)

    def test_the_weights_are_the_same_tensors_also_when_a_change_does_not_fit(self, family):
        model = tiny_model(family)
        before = Snapshot(model)
        partial, whole = self.some_deltas(model)
        wrong = dataclasses.replace(partial, delta=torch.ones(1, 1, 1))
        with pytest.raises((RuntimeError, IndexError)), applied(model, (whole, wrong)):
            pytest.fail("the block must not be entered")
        before.assert_restored(model)

    def test_two_changes_of_one_parameter_add_up(self, family):
        model = tiny_model(family)
        before = Snapshot(model)
        _, whole = self.some_deltas(model)
        with applied(model, (whole, whole)):
            torch.testing.assert_close(model.get_parameter(whole.parameter), before.state[whole.parameter] + 2)
        before.assert_restored(model)

    def test_a_zero_change_changes_no_bit(self, family):
        model = tiny_model(family)
        expected = model(IDS).logits
        zeros = [dataclasses.replace(delta, delta=torch.zeros_like(delta.delta)) for delta in self.some_deltas(model)]
        with applied(model, zeros):
            assert torch.equal(model(IDS).logits, expected)


def test_a_missing_bias_is_added_temporarily():
    model = tiny_model("llama")
    before = Snapshot(model)
    name = "model.layers.0.self_attn.o_proj"
    module = model.get_submodule(name)
    assert module.bias is None
    x = torch.randn(3, module.in_features)
    plain = module(x)
    change = WeightDelta(f"{name}.bias", 0, None, torch.arange(32.0))
    with applied(model, [change, change]):
        assert torch.allclose(module(x), plain + 2 * torch.arange(32.0), atol=1e-4)
        assert not module.get_parameter("bias").requires_grad
    assert torch.equal(module(x), plain)
    before.assert_restored(model)
    with pytest.raises(ZeroDivisionError), applied(model, [change]):
        _ = 1 / 0
    before.assert_restored(model)


def test_a_missing_weight_other_than_a_bias_is_not_added():
    model = tiny_model("llama")
    with pytest.raises(AttributeError), applied(model, [WeightDelta("lm_head.scale", 0, None, torch.ones(3))]):
        pass


@pytest.mark.parametrize("index", [None, torch.tensor([0, 2])])
def test_a_small_change_of_a_half_precision_weight_is_added_before_rounding(index):
    weight = torch.ones(3, 2, dtype=torch.bfloat16)
    # Three quarters of bfloat16's spacing above 1: it rounds up, and two halves of it would each round away.
    change = 0.75 * 2**-7
    changed = WeightDelta("w", 0, index, torch.full((3 if index is None else 2, 2), change)).added_to(weight)
    assert changed.dtype == torch.bfloat16
    assert changed[0, 0] == 1 + 2**-7
    assert changed[1, 0] == (1 + 2**-7 if index is None else 1)


@pytest.mark.parametrize("family", FAMILIES)
class TestKeyValueTraining:
    def test_the_model_is_as_before_when_the_block_ends(self, family):
        lm_anatomy = wrapped(BY_NAME[family]).anatomy
        model = tiny_model(family)
        model.get_input_embeddings().weight.requires_grad_(False)
        before = Snapshot(model)
        with KeyValueTraining(model, lm_anatomy) as training:
            train(model, training, torch.optim.SGD(training.parameters, lr=0.1))
            assert any(delta.delta.any() for delta in training.deltas())
        before.assert_restored(model)

    def test_the_model_is_as_before_when_the_block_raises(self, family):
        model = tiny_model(family)
        before = Snapshot(model)

        def train_and_fail():
            with KeyValueTraining(model, wrapped(BY_NAME[family]).anatomy) as training:
                train(model, training, torch.optim.SGD(training.parameters, lr=0.1))
                raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            train_and_fail()
        before.assert_restored(model)

    def test_deltas_start_at_zero_and_cover_exactly_w_k_and_w_v_and_their_biases(self, family):
        anatomy = wrapped(BY_NAME[family]).anatomy
        model = tiny_model(family)
        expected = key_value_rows(anatomy)
        sizes = {name: model.get_submodule(name).weight.shape[row_axis(model.get_submodule(name))] for name in expected}
        names = {f"{name}.weight" for name in expected}
        names |= {f"{name}.bias" for name in expected if model.get_submodule(name).bias is not None}
        logits = model(IDS).logits
        with KeyValueTraining(model, anatomy) as training:
            assert torch.equal(model(IDS).logits, logits)
            deltas = training.deltas()
        assert {delta.parameter for delta in deltas} == names
        for delta in deltas:
            assert not delta.delta.any()
            assert delta.delta.dtype == torch.float32
            module = delta.parameter.rpartition(".")[0]
            covered = set(range(sizes[module])) if delta.index is None else set(delta.index.tolist())
            assert covered == expected[module]
            assert delta.delta.shape[delta.axis] == len(covered)

    @pytest.mark.parametrize("optimiser_class", [torch.optim.SGD, torch.optim.AdamW])
    def test_training_moves_all_of_these_rows_and_nothing_else(self, family, optimiser_class):
        anatomy = wrapped(BY_NAME[family]).anatomy
        model = tiny_model(family)
        expected = key_value_rows(anatomy)
        value_rows = {layer.W_V.module: set(layer.W_V.index.tolist()) for layer in anatomy.layers}
        original = {name: weight.clone() for name, weight in model.named_parameters()}
        with KeyValueTraining(model, anatomy) as training:
            # Momentum and weight decay are what moves a frozen row where gradients are merely masked.
            settings = {"momentum": 0.9} if optimiser_class is torch.optim.SGD else {}
            train(model, training, optimiser_class(training.parameters, lr=0.05, weight_decay=0.1, **settings))
            deltas = training.deltas()
            trained = model(IDS).logits
        with applied(model, deltas):
            torch.testing.assert_close(model(IDS).logits, trained, rtol=1e-5, atol=1e-5)
            for name, weight in model.named_parameters():
                module_name, _, kind = name.rpartition(".")
                axis = row_axis(model.get_submodule(module_name)) if kind == "weight" else 0
                moved = weight != original[name]
                rows = moved if moved.dim() == 1 else moved.any(dim=1 - axis)
                rows = set(rows.nonzero().flatten().tolist())
                if kind == "bias" and module_name in expected:
                    # A bias of keys shifts all scores of a row alike (but for rotary embedding): no gradient.
                    assert value_rows.get(module_name, set()) <= rows <= expected[module_name], name
                else:
                    assert rows == expected.get(module_name, set()), name


def test_biases_are_trained_where_there_are_some():
    for family, with_bias in (("gpt2", True), ("xglm", True), ("opt", True), ("llama", False), ("gptj", False)):
        with KeyValueTraining(tiny_model(family), wrapped(BY_NAME[family]).anatomy) as training:
            names = [delta.parameter for delta in training.deltas()]
        assert any(name.endswith(".bias") for name in names) == with_bias


def test_deltas_are_float32_for_a_half_precision_model_and_keep_small_steps():
    model = tiny_model("llama", dtype=torch.bfloat16)
    with KeyValueTraining(model, wrapped(BY_NAME["llama"]).anatomy) as training:
        train(model, training, torch.optim.SGD(training.parameters, lr=1e-6))
        deltas = training.deltas()
    assert all(delta.delta.dtype == torch.float32 for delta in deltas)
    # The same steps on bfloat16 weights of size .25 (spacing .001) would round away.
    assert all(0 < delta.delta.abs().max() < 1e-3 for delta in deltas)


def test_deltas_of_a_float64_model_are_as_fine_as_its_weights():
    with KeyValueTraining(tiny_model("llama", dtype=torch.float64), wrapped(BY_NAME["llama"]).anatomy) as training:
        assert all(delta.delta.dtype == torch.float64 for delta in training.deltas())


@pytest.mark.parametrize(("rate", "factor"), [(3.0, -2.0), (1.5, -0.5)])
def test_a_move_by_rounding_grows_or_shrinks_as_theory_says(rate, factor):
    # Descent on |W - W_0|^2 / 2 multiplies any distance from W_0 by 1 - rate a step: beyond 2 / curvature it grows.
    model = tiny_model("llama", dtype=torch.float64)
    name = "model.layers.1.self_attn.k_proj"
    module = model.get_submodule(name)
    before = Snapshot(model)
    start = module.weight.detach().clone()
    with WeightTraining(model, {name: None}) as training:
        training.move_by_rounding_(torch.Generator().manual_seed(0))
        (move,) = (delta.delta for delta in training.deltas())
        optimiser = torch.optim.SGD(training.parameters, lr=rate)
        for _ in range(20):
            optimiser.zero_grad()
            ((module.weight - start).square().sum() / 2).backward()
            optimiser.step()
        (moved,) = (delta.delta for delta in training.deltas())
    before.assert_restored(model)
    # Powers of two are exact; a shrunken move falls below what the weight can express, and no longer changes it.
    assert torch.equal(moved, move * factor**20) if abs(factor) > 1 else moved.abs().max() <= move.abs().max()
    assert (start + move != start).all()


def test_a_move_by_rounding_is_of_the_trained_rows_alone_and_follows_its_seed():
    anatomy = wrapped(BY_NAME["gpt2"]).anatomy
    model = tiny_model("gpt2")
    weights = dict(model.named_parameters())
    before = Snapshot(model)
    runs = []
    for seed in (1, 1, 2):
        with KeyValueTraining(model, anatomy) as training:
            training.move_by_rounding_(torch.Generator().manual_seed(seed))
            runs.append(training.deltas())
    before.assert_restored(model)
    for delta in runs[0]:
        rows = weights[delta.parameter].index_select(delta.axis, delta.index)
        assert torch.equal((rows + delta.delta) != rows, rows != 0)
        torch.testing.assert_close(rows + delta.delta, rows, rtol=2**-22, atol=0.0)
    same, again, other = ([delta.delta for delta in deltas] for deltas in runs)
    assert all(map(torch.equal, same, again))
    assert not any(torch.equal(a, b) for a, b in zip(same, other, strict=True) if a.any())


def test_masking_gradients_instead_would_move_other_rows():
    # The case for explicit deltas: AdamW's decay moves the rows of W_Q although their gradient is zero.
    anatomy = wrapped(BY_NAME["gpt2"]).anatomy
    model = tiny_model("gpt2")
    layer = anatomy.layers[0]
    weight = model.get_submodule(layer.W_Q.module).weight
    before = weight.detach().clone()
    optimiser = torch.optim.AdamW([weight], lr=0.05, weight_decay=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    weight.grad[:, layer.W_Q.index] = 0
    optimiser.step()
    assert (weight[:, layer.W_Q.index] != before[:, layer.W_Q.index]).all()


def test_a_model_whose_keys_are_not_known_is_refused():
    anatomy = wrapped(BY_NAME["llama"]).anatomy
    lost = dataclasses.replace(anatomy.layers[1], W_K=None, unclear=("W_K is lost",))
    with pytest.raises(ModelError, match=r"W_K and W_V were not found in every layer \(layer 1: W_K is lost\)"):
        KeyValueTraining(tiny_model("llama"), Anatomy((anatomy.layers[0], lost), True))


def test_when_preparing_fails_the_model_is_as_before(monkeypatch):
    from torch.nn.utils import parametrize

    model = tiny_model("xglm")
    before = Snapshot(model)
    calls = []
    register = parametrize.register_parametrization

    def fails_at_the_fourth(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise RuntimeError("no more parametrizations")
        return register(*args, **kwargs)

    monkeypatch.setattr(parametrize, "register_parametrization", fails_at_the_fourth)
    with (
        pytest.raises(RuntimeError, match="no more parametrizations"),
        KeyValueTraining(model, wrapped(BY_NAME["xglm"]).anatomy),
    ):
        pytest.fail("the block must not be entered")
    before.assert_restored(model)


MLP_WORDS = (".mlp.", ".ffn.", ".fc1", ".fc2")
"""How the families of `tests.tiny` name what is no attention; a test may keep a table."""


@pytest.mark.parametrize("family", FAMILIES)
class TestOtherParts:
    def test_the_mlp_is_every_linear_of_the_blocks_outside_attention(self, family):
        lm = wrapped(BY_NAME[family])
        rows = mlp_rows(lm.model, lm.anatomy)
        named = [name for name, module in lm.model.named_modules() if is_linear(module)]
        assert list(rows) == [name for name in named if any(word in name for word in MLP_WORDS)]
        assert set(rows.values()) == {None}
        assert len(rows) >= 2 * len(lm.anatomy.layers)

    def test_the_values_of_a_layer_are_its_w_v_alone(self, family):
        lm = wrapped(BY_NAME[family])
        for i, layer in enumerate(lm.anatomy.layers):
            ((name, index),) = value_rows(lm.model, lm.anatomy, i).items()
            assert name == layer.W_V.module
            assert (index is None) == layer.W_V.whole
            assert index is None or torch.equal(index, layer.W_V.index)

    def test_keys_and_values_are_what_key_value_training_trains(self, family):
        lm = wrapped(BY_NAME[family])
        rows = edit.key_value_rows(lm.model, lm.anatomy)
        with (
            WeightTraining(tiny_model(family), rows) as first,
            KeyValueTraining(tiny_model(family), lm.anatomy) as second,
        ):
            for actual, expected in zip(first.deltas(), second.deltas(), strict=True):
                assert (actual.parameter, actual.axis) == (expected.parameter, expected.axis)
                assert actual.delta.shape == expected.delta.shape

    @pytest.mark.parametrize("part", ["mlp", "values"])
    def test_training_moves_this_part_and_nothing_else_and_leaves_the_model_as_before(self, family, part):
        anatomy = wrapped(BY_NAME[family]).anatomy
        model = tiny_model(family)
        before = Snapshot(model)
        rows = mlp_rows(model, anatomy) if part == "mlp" else value_rows(model, anatomy, 1)
        with WeightTraining(model, rows) as training:
            train(model, training, torch.optim.AdamW(training.parameters, lr=0.05, weight_decay=0.1))
            deltas = training.deltas()
            trained = model(IDS).logits
        before.assert_restored(model)
        with applied(model, deltas):
            torch.testing.assert_close(model(IDS).logits, trained, rtol=1e-5, atol=1e-5)
            for name, weight in model.named_parameters():
                module_name, _, kind = name.rpartition(".")
                moved = (weight != before.state[name]).movedim(row_axis_of(model, module_name, kind), 0)
                changed = moved.flatten(1).any(1) if moved.dim() > 1 else moved
                expected = torch.zeros_like(changed)
                if module_name in rows:
                    index = rows[module_name]
                    expected[slice(None) if index is None else index] = True
                assert not (changed & ~expected).any(), name
                # OPT's ReLU leaves some of its units dead on these few tokens.
                dead = 0.2 if family == "opt" else 0.0
                assert (changed & expected).sum() >= (1 - dead) * expected.sum(), name
        before.assert_restored(model)


def row_axis_of(model, module_name, kind):
    return row_axis(model.get_submodule(module_name)) if kind == "weight" else 0


class TestPartsThatCannotBeTrained:
    def test_values_that_were_not_found_name_the_module(self):
        lm = wrapped(BY_NAME["llama"])
        lost = dataclasses.replace(lm.anatomy.layers[1], W_V=None, unclear=("W_V is lost",))
        words = r"W_V was not found in layer 1, model\.layers\.1\.self_attn \(W_V is lost\)"
        with pytest.raises(ModelError, match=words):
            value_rows(lm.model, Anatomy((lm.anatomy.layers[0], lost), True), 1)

    def test_without_known_attention_the_mlp_is_unknown(self):
        lm = wrapped(BY_NAME["llama"])
        lost = dataclasses.replace(lm.anatomy.layers[1], W_O=None, unclear=("W_O is lost",))
        words = r"model\.layers\.1\.self_attn: not all of its linears were found \(W_O is lost\), .* layer 1 cannot"
        with pytest.raises(ModelError, match=words):
            mlp_rows(lm.model, Anatomy((lm.anatomy.layers[0], lost), True))

    def test_a_module_that_is_not_a_linear_is_named(self):
        lm = wrapped(BY_NAME["llama"])
        odd = dataclasses.replace(
            lm.anatomy.layers[0], W_V=dataclasses.replace(lm.anatomy.layers[0].W_V, module="model.norm")
        )
        anatomy = Anatomy((odd, lm.anatomy.layers[1]), True)
        with pytest.raises(ModelError, match=r"model\.norm is not a linear, so W_V in it cannot be trained"):
            value_rows(lm.model, anatomy, 0)
        with pytest.raises(ModelError, match=r"model\.norm is not a linear, so W_K and W_V in it cannot"):
            edit.key_value_rows(lm.model, anatomy)

    def test_stacked_experts_are_named(self):
        config = transformers.MixtralConfig(
            vocab_size=384,
            hidden_size=32,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=3,
        )
        with torch.random.fork_rng(devices=[]):
            model = transformers.MixtralForCausalLM(config).eval()
        words = r"model\.layers\.0\.mlp\..* of shape \(.*\) is not the weight of a linear, .* without experts"
        with pytest.raises(ModelError, match=words):
            mlp_rows(model, find_anatomy(model))

    def test_a_block_without_an_mlp_is_named(self):
        model = tiny_model("llama")
        anatomy = find_anatomy(model)
        model.model.layers[1].mlp = nn.Identity()
        with pytest.raises(
            ModelError, match=r"model\.layers\.1 has no linear outside its attention, so layer 1 has no"
        ):
            mlp_rows(model, anatomy)


@pytest.mark.skipif(not packable([torch.zeros(2, 2)]), reason="without oneDNN products are not packed")
class TestPackedProducts:
    """Packed copies are made of the weights as they are when the block begins: no change may be lost on them."""

    QUERIES = (Query((5, 6, 7), ((8,), (9, 10))), Query((11, 12), ((13,), (14,))))

    def read(self, lm):
        return lm.log_probabilities(lm.encode((1, 2, 3)), self.QUERIES)

    @pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "xglm", "gptj"])
    def test_changes_of_the_mlp_take_effect_when_patched_and_when_trained(self, family):
        lm = LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family)
        rows = mlp_rows(lm.model, lm.anatomy)
        assert isinstance(lm.packed_products(), PackedProducts)

        def run():
            before = self.read(lm)  # packs every weight that will be trained
            with WeightTraining(lm.model, rows) as training:
                train(lm.model, training, torch.optim.SGD(training.parameters, lr=0.1))
                deltas = training.deltas()
                trained = self.read(lm)
            with applied(lm.model, deltas):
                patched = self.read(lm)
            return before, trained, patched, self.read(lm)

        expected = run()
        with lm.packed_products():
            actual = run()
        for value, other in zip(actual, expected, strict=True):
            # Two orders of summing, through three steps of descent.
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
        before, trained, patched, after = actual
        torch.testing.assert_close(patched, trained, rtol=1e-5, atol=1e-5)
        assert (trained - before).abs().max() > 0.01
        # Packed copies are used again, the same as before.
        assert torch.equal(after, before)

    def test_a_weight_that_is_written_in_place_would_not_be_noticed(self):
        linear = nn.Linear(32, 16, bias=False).requires_grad_(False)
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), PackedProducts([linear.weight]):
            before = linear(x)
            linear.weight.add_(1.0)
            assert torch.equal(linear(x), before)

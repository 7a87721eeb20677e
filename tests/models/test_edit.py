import dataclasses

import pytest
import torch

from dualform.errors import ModelError
from dualform.models.anatomy import Anatomy, row_axis
from dualform.models.edit import KeyValueTraining, WeightDelta, applied
from tests.models.reference import BY_NAME, assert_no_hooks, wrapped
from tests.tiny import FAMILIES, tiny_model

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


@pytest.mark.parametrize("index", [None, torch.tensor([0, 2])])
def test_a_small_change_of_a_half_precision_weight_is_added_before_rounding(index):
    weight = torch.ones(3, 2, dtype=torch.bfloat16)
    # Three quarters of bfloat16's spacing above 1: it rounds up, and two halves of it would each round away.
    change = 0.75 * 2**-7
    found = WeightDelta("w", 0, index, torch.full((3 if index is None else 2, 2), change)).added_to(weight)
    assert found.dtype == torch.bfloat16
    assert found[0, 0] == 1 + 2**-7
    assert found[1, 0] == (1 + 2**-7 if index is None else 1)


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
    with pytest.raises(ModelError, match=r"W_K and W_V were not found in layers \[1\] \(layer 1: W_K is lost\)"):
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

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dualform.errors import ConfigError, ModelError, TrainingError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.finetuned import Finetuned, train
from dualform.learners.prompting import ZeroShot
from dualform.models.editing.edit import applied, mlp_rows, value_rows
from dualform.models.structure.anatomy import Anatomy, row_axis
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot, key_value_rows
from tests.models.reference import naive_scores
from tests.tiny import tiny_model

RATE = 0.05
# Gradients of four steps, each through two or three layers, in float32.
RTOL, ATOL = 1e-4, 2e-6


def twin(family, setting, rate, loss_on, n=None):
    """A simple reference: a copy of the plain model, SGD by hand on the rows of W_K and W_V, HF's own loss."""
    model = copy.deepcopy(tiny_model(family))
    rows = key_value_rows(setting.lm.anatomy)
    losses = []
    pairs = zip(setting.demonstrations.sequences, setting.demonstrations.n_answer_tokens, strict=True)
    for ids, n_answer in list(pairs)[:n]:
        ids = torch.tensor([ids])
        labels = ids.clone()
        if loss_on == "label":
            labels[:, :-n_answer] = -100
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        losses.append(float(loss.detach()))
        loss.backward()
        with torch.no_grad():
            for name, index in rows.items():
                module = model.get_submodule(name)
                index = torch.tensor(sorted(index))
                for weight, axis in ((module.weight, row_axis(module)), (module.bias, 0)):
                    if weight is not None:
                        weight.index_add_(axis, index, weight.grad.index_select(axis, index), alpha=-rate)
    return model, losses


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("loss_on", ["all", "label"])
    def test_it_is_the_obvious_finetuning(self, family, loss_on):
        setting = fresh(family)
        expected, losses = twin(family, setting, RATE, loss_on)
        adapted = Finetuned(setting.encoder.opening, RATE, loss_on).adapt(setting.lm, setting.demonstrations)
        assert adapted.losses == pytest.approx(losses, rel=1e-5)
        original = tiny_model(family).state_dict()
        moved = 0.0
        with applied(setting.lm.model, adapted.deltas):
            actual = setting.lm.model.state_dict()
            assert actual.keys() == expected.state_dict().keys()
            for name, weight in expected.state_dict().items():
                torch.testing.assert_close(actual[name], weight, rtol=RTOL, atol=ATOL)
                moved = max(moved, float((weight - original[name]).abs().max()))
        # A step that did nothing would agree with nothing done.
        assert moved > 1000 * ATOL
        table = answer_log_probabilities(adapted, setting.lm, setting.queries)
        for row, query in zip(table, setting.queries, strict=True):
            scores = naive_scores(expected, setting.encoder.opening, query).double()
            torch.testing.assert_close(row, scores, rtol=1e-4, atol=0)

    def test_learning_rate_zero_is_zero_shot_to_the_bit(self, family):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        adapted = Finetuned(setting.encoder.opening, 0.0).adapt(setting.lm, setting.demonstrations)
        assert not any(delta.delta.any() for delta in adapted.deltas)
        assert_same_readings(readings(adapted, setting), readings(zsl, setting))

    def test_a_rate_above_zero_is_not(self, family):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        adapted = Finetuned(setting.encoder.opening, 1e-3).adapt(setting.lm, setting.demonstrations)
        for first, second in zip(readings(adapted, setting), readings(zsl, setting), strict=True):
            assert not torch.equal(first.log_probabilities, second.log_probabilities)

    def test_the_order_of_the_demonstrations_matters(self, family):
        setting = fresh(family)
        ft = Finetuned(setting.encoder.opening, RATE)
        reverse = dataclasses.replace(
            setting.chosen, examples=setting.chosen.examples[::-1], labels=setting.chosen.labels[::-1]
        )
        first = ft.adapt(setting.lm, setting.demonstrations)
        other = ft.adapt(setting.lm, setting.encoder.demonstrations(reverse))
        assert (first.deltas[0].delta - other.deltas[0].delta).abs().max() > 1e-4

    def test_the_weights_are_as_before(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        adapted = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)
        readings(adapted, setting)
        before.assert_restored(setting.lm.model)

    @pytest.mark.parametrize("where", ["forward", "loss"])
    def test_the_weights_are_as_before_when_the_second_step_raises(self, family, where, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        calls = []

        def second_time_fails(*args, **kwargs):
            calls.append(args)
            if len(calls) == 2:
                raise RuntimeError("at the second step")
            return cross_entropy(*args, **kwargs) if where == "loss" else None

        cross_entropy = F.cross_entropy
        handle = None
        if where == "loss":
            monkeypatch.setattr(F, "cross_entropy", second_time_fails)
        else:
            last = setting.lm.model.get_submodule(setting.lm.anatomy.layers[-1].attention)
            handle = last.register_forward_pre_hook(second_time_fails)
        with pytest.raises(RuntimeError, match="at the second step"):
            Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        if handle:
            handle.remove()
        assert len(calls) == 2
        before.assert_restored(setting.lm.model)

    def test_reading_leaves_the_weights_as_before_when_it_raises(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        adapted = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        with pytest.raises(IndexError):
            adapted.read_group(setting.queries, [99])
        before.assert_restored(setting.lm.model)

    def test_the_queries_seen_at_the_first_step_are_those_of_a_plain_forward(self, family):
        setting = fresh(family)
        adapted: Any = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        n_content = len(setting.demonstrations.content)
        layers = setting.lm.anatomy.layers
        assert adapted.training_q.shape == (len(layers), n_content, layers[0].n_heads, layers[0].d_head)
        assert not adapted.training_q.requires_grad
        ids = setting.demonstrations.sequences[0]
        first = plain_queries(family, setting.lm.anatomy, tiny_model(family), ids)[
            :, 1:
        ]  # the opening token is left out
        torch.testing.assert_close(adapted.training_q[:, : first.shape[1]], first, rtol=1e-5, atol=1e-5)

    def test_the_queries_seen_at_a_later_step_are_those_of_the_weights_by_then(self, family):
        setting = fresh(family)
        adapted: Any = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        model, _ = twin(family, setting, RATE, "all", n=2)
        ids = setting.demonstrations.sequences[2]
        third = plain_queries(family, setting.lm.anatomy, model, ids)[:, 1:]
        owner = torch.tensor(setting.demonstrations.demonstration_of)
        actual = adapted.training_q[:, owner == 2]
        torch.testing.assert_close(actual, third, rtol=1e-4, atol=1e-4)
        untrained = plain_queries(family, setting.lm.anatomy, tiny_model(family), ids)[:, 1:]
        assert (actual - untrained).abs().max() > 0.01


def plain_queries(family, anatomy, model, ids):
    """Attention queries of an ordinary forward, `(layer, pos, head, d_head)`: the projections, and what follows."""
    results = []
    handles = [
        model.get_submodule(layer.W_Q.module).register_forward_hook(lambda module, args, out: results.append(out[0]))
        for layer in anatomy.layers
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    queries = []
    for number, (layer, out) in enumerate(zip(anatomy.layers, results, strict=True)):
        q = out[:, layer.W_Q.index].view(len(ids), layer.n_heads, layer.d_head)
        if family == "xglm":
            q = q * layer.d_head**-0.5  # scaled before it meets the keys
        if family in ("llama", "gemma3"):
            if family == "gemma3":
                q = model.get_submodule(layer.attention).q_norm(q)
            kind = "full_attention" if number == 1 else "sliding_attention"
            base = model.config.rope_parameters
            base = base[kind]["rope_theta"] if family == "gemma3" else base["rope_theta"]
            q = rotated(q, base)
        queries.append(q)
    return torch.stack(queries)


def rotated(q, base):
    """Rotary embedding, written out: the two halves of a head are pairs, turned by position over frequency."""
    half = q.shape[-1] // 2
    angle = torch.arange(len(q))[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = q[..., :half], q[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class TestWhatIsLearned:
    def test_the_label_alone_is_another_loss_than_all_tokens(self):
        setting = fresh("llama")
        losses = [
            Finetuned(setting.encoder.opening, RATE, loss_on).adapt(setting.lm, setting.demonstrations).losses
            for loss_on in ("all", "label")
        ]
        assert abs(losses[0][0] - losses[1][0]) > 0.01

    def test_without_demonstrations_nothing_is_learned(self):
        setting = fresh("llama", k=0)
        adapted = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        assert adapted.losses == ()
        assert adapted.training_q is None
        assert not any(delta.delta.any() for delta in adapted.deltas)
        assert adapted.cost.tokens == 0
        assert adapted.cost.flops == 0

    def test_without_an_opening_token_the_first_token_is_not_learned(self):
        setting = fresh("llama")
        bare = dataclasses.replace(
            setting.demonstrations, sequences=tuple(ids[1:] for ids in setting.demonstrations.sequences)
        )
        adapted: Any = Finetuned((), RATE).adapt(setting.lm, bare)
        model = tiny_model("llama")
        ids = torch.tensor([bare.sequences[0]])
        with torch.no_grad():
            assert adapted.losses[0] == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)
        assert adapted.training_q.shape[1] == sum(map(len, bare.sequences))

    def test_the_prefix_is_read_with_the_new_weights(self):
        setting = fresh("llama")
        adapted = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        old = setting.lm.encode(setting.encoder.opening).layers[0][0]
        new = adapted.prefix.layers[0][0]
        assert (old - new).abs().max() > 1e-3

    def test_the_cost_counts_every_training_token(self):
        setting = fresh("llama")
        cost = {}
        for loss_on in ("all", "label"):
            cost[loss_on] = (
                Finetuned(setting.encoder.opening, RATE, loss_on).adapt(setting.lm, setting.demonstrations).cost
            )
        assert cost["all"].tokens == cost["label"].tokens == sum(map(len, setting.demonstrations.sequences))
        # The output head runs at fewer tokens.
        n_all = sum(len(ids) - 1 for ids in setting.demonstrations.sequences)
        n_label = sum(setting.demonstrations.n_answer_tokens)
        assert cost["all"].flops - cost["label"].flops == pytest.approx(4 * 384 * 32 * (n_all - n_label))
        assert cost["all"].seconds > 0


class TestWhatCannotBeLearned:
    @pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), 1e39])
    def test_a_learning_rate_that_is_none_is_named(self, rate):
        with pytest.raises(ConfigError, match=f"learning rate {re.escape(str(rate))} must lie between 0 and 1e\\+37"):
            Finetuned((0,), rate)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_loss_that_is_no_number_names_the_rate_and_the_step(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        cross_entropy = F.cross_entropy
        calls = []

        def spoilt(*args):
            calls.append(args)
            return cross_entropy(*args) * (float("nan") if len(calls) == 3 else 1.0)

        monkeypatch.setattr(F, "cross_entropy", spoilt)
        with pytest.raises(
            TrainingError, match=r"learning rate 0.05: the loss is nan at step 3 of 4. Use a lower one."
        ):
            Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)

    def test_a_rate_far_too_high_diverges_with_the_same_error(self):
        setting = fresh("gpt2")
        before = Snapshot(setting.lm.model)
        with pytest.raises(TrainingError, match=r"learning rate 1e\+37: "):
            Finetuned(setting.encoder.opening, 1e37).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)

    def test_weights_that_become_infinite_at_the_last_step_are_found(self, monkeypatch):
        setting = fresh("gpt2", k=1)
        # The loss is known before the step: only the weights show what the last one did.
        monkeypatch.setattr(
            torch.optim.SGD, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(torch.inf)
        )
        with pytest.raises(TrainingError, match=r"learning rate 0.05: the weights became infinite. Use a lower one."):
            Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)

    def test_a_model_whose_keys_are_not_known_is_refused(self):
        setting = fresh("llama")
        lost = dataclasses.replace(setting.lm.anatomy.layers[0], W_K=None, unclear=("W_K is lost",))
        lm = dataclasses.replace(setting.lm, anatomy=Anatomy((lost, setting.lm.anatomy.layers[1]), True))
        with pytest.raises(ModelError, match=r"not found in every layer \(layer 0: W_K is lost\)"):
            Finetuned(setting.encoder.opening, RATE).adapt(lm, setting.demonstrations)


def test_training_changes_only_the_parameters_of_the_optimiser():
    setting = fresh("llama")
    weight = setting.lm.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    before = {name: tensor.clone() for name, tensor in setting.lm.model.state_dict().items()}
    losses, _ = train(setting.lm, setting.demonstrations, torch.optim.SGD([weight], lr=0.1), "all", 0.1)
    assert len(losses) == 4
    after = setting.lm.model.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == [
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert all(p.grad is None for p in setting.lm.model.parameters() if p is not weight)


def part_rows(setting, part):
    """Parameter's module -> output features of the part, None for all."""
    if part == "mlp":
        return mlp_rows(setting.lm.model, setting.lm.anatomy)
    return value_rows(setting.lm.model, setting.lm.anatomy, 1)


def part_twin(family, setting, part, rate, steps):
    """Descent of HF's own loss on a copy, by hand."""
    model = copy.deepcopy(tiny_model(family))
    targets = []
    for name, index in part_rows(setting, part).items():
        module = model.get_submodule(name)
        for weight, axis in ((module.weight, row_axis(module)), (module.bias, 0)):
            if weight is not None:
                targets.append((weight, axis, torch.arange(weight.shape[axis]) if index is None else index))
    model.zero_grad()
    for number, ids in enumerate(setting.demonstrations.sequences, start=1):
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]), use_cache=False).loss.backward()
        if steps == "sequential" or number == len(setting.demonstrations.sequences):
            with torch.no_grad():
                for weight, axis, index in targets:
                    weight.index_add_(axis, index, weight.grad.index_select(axis, index), alpha=-rate)
            model.zero_grad()
    return model


@pytest.mark.parametrize("family", FAMILIES)
class TestOtherParts:
    @pytest.mark.parametrize("steps", ["sequential", "batch"])
    @pytest.mark.parametrize("part", ["mlp", "value_one_layer"])
    def test_it_is_the_obvious_descent_of_this_part(self, family, part, steps):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        expected = part_twin(family, setting, part, RATE, steps)
        learner = Finetuned(setting.encoder.opening, RATE, part=part, steps=steps)
        adapted = learner.adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)
        moved = set()
        with applied(setting.lm.model, adapted.deltas):
            actual = setting.lm.model.state_dict()
            for name, weight in expected.state_dict().items():
                torch.testing.assert_close(actual[name], weight, rtol=RTOL, atol=ATOL)
                if (actual[name] - before.state[name]).abs().max() > 100 * ATOL:
                    moved.add(name)
        modules = set(part_rows(setting, part))
        assert {name.rpartition(".")[0] for name in moved} == modules

    @pytest.mark.parametrize("part", ["mlp", "value_one_layer"])
    def test_learning_rate_zero_is_zero_shot_to_the_bit(self, family, part):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        adapted = Finetuned(setting.encoder.opening, 0.0, part=part).adapt(setting.lm, setting.demonstrations)
        assert_same_readings(readings(adapted, setting), readings(zsl, setting))

    @pytest.mark.parametrize("part", ["mlp", "value_one_layer"])
    def test_queries_are_recorded_and_the_cost_is_that_of_the_part(self, family, part):
        setting = fresh(family)
        key_value: Any = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        adapted: Any = Finetuned(setting.encoder.opening, RATE, part=part).adapt(setting.lm, setting.demonstrations)
        owner = torch.tensor(setting.demonstrations.demonstration_of)
        assert adapted.training_q.shape == key_value.training_q.shape
        assert torch.equal(adapted.training_q[:, owner == 0], key_value.training_q[:, owner == 0])
        assert adapted.cost.flops == sum(
            setting.lm.shape.training(len(ids), len(ids) - 1, part) for ids in setting.demonstrations.sequences
        )
        if part == "value_one_layer":
            assert adapted.cost.flops < key_value.cost.flops
            # What lies below the trained values sees no change at all.
            assert torch.equal(adapted.training_q[:2], zero_shot_q(setting)[:2])

    def test_one_step_for_all_moves_by_the_sum_of_the_gradients_at_the_start(self, family):
        setting = fresh(family)
        alone = [
            Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, only(setting.demonstrations, i)).deltas
            for i in range(4)
        ]
        batch: Any = Finetuned(setting.encoder.opening, RATE, steps="batch").adapt(setting.lm, setting.demonstrations)
        for change, *parts in zip(batch.deltas, *alone, strict=True):
            torch.testing.assert_close(change.delta, sum(part.delta for part in parts), rtol=1e-4, atol=1e-7)
        # Every sequence meets the starting weights; in turn, only the first does.
        assert torch.equal(batch.training_q, zero_shot_q(setting))
        sequential = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        assert batch.losses[0] == sequential.losses[0]
        assert batch.losses[3] != sequential.losses[3]
        assert batch.cost.flops == sequential.cost.flops

    def test_to_first_order_in_the_rate_both_kinds_of_steps_are_the_same(self, family):
        setting = fresh(family)

        def apart(rate):
            """Difference of the two changes, relative to their size."""
            first, second = (
                torch.cat(
                    [
                        change.delta.flatten().double()
                        for change in Finetuned(setting.encoder.opening, rate, steps=steps)
                        .adapt(setting.lm, setting.demonstrations)
                        .deltas
                    ]
                )
                for steps in ("sequential", "batch")
            )
            return float((first - second).norm() / second.norm())

        assert apart(1e-3) < 0.2 * apart(1e-2) < 0.1
        # At the rates that finetuning uses they part.
        assert apart(RATE) > 0.02

    def test_the_order_of_the_demonstrations_does_not_matter_to_a_single_step(self, family):
        setting = fresh(family)
        reverse = dataclasses.replace(
            setting.chosen, examples=setting.chosen.examples[::-1], labels=setting.chosen.labels[::-1]
        )
        ft = Finetuned(setting.encoder.opening, RATE, steps="batch")
        first = ft.adapt(setting.lm, setting.demonstrations)
        other = ft.adapt(setting.lm, setting.encoder.demonstrations(reverse))
        for a, b in zip(first.deltas, other.deltas, strict=True):
            torch.testing.assert_close(a.delta, b.delta, rtol=1e-4, atol=1e-7)


def only(demonstrations, number):
    """One demonstration, with the attributes that training uses."""
    return dataclasses.replace(
        demonstrations,
        sequences=demonstrations.sequences[number : number + 1],
        n_answer_tokens=demonstrations.n_answer_tokens[number : number + 1],
        demonstration_of=tuple(0 for owner in demonstrations.demonstration_of if owner == number),
    )


def zero_shot_q(setting):
    """Queries at the demonstrations' tokens, where nothing is learned."""
    return Finetuned(setting.encoder.opening, 0.0).adapt(setting.lm, setting.demonstrations).training_q


def test_a_single_step_without_demonstrations_learns_nothing():
    setting = fresh("llama", k=0)
    adapted = Finetuned(setting.encoder.opening, RATE, steps="batch").adapt(setting.lm, setting.demonstrations)
    assert adapted.losses == ()
    assert not any(change.delta.any() for change in adapted.deltas)


@pytest.mark.parametrize(("field", "known"), [("part", "key_value, value_one_layer, mlp"), ("steps", "sequential, ba")])
def test_a_part_or_a_kind_of_steps_that_is_none_is_named(field, known):
    settings: Any = {field: "heads"}
    with pytest.raises(ConfigError, match=f"{field} 'heads' is unknown: choose one of {known}"):
        Finetuned((0,), RATE, **settings)


def test_a_part_that_cannot_be_trained_is_refused():
    setting = fresh("llama")
    lost = dataclasses.replace(setting.lm.anatomy.layers[1], W_V=None, unclear=("W_V is lost",))
    lm = dataclasses.replace(setting.lm, anatomy=Anatomy((setting.lm.anatomy.layers[0], lost), True))
    with pytest.raises(ModelError, match="W_V was not found in layer 1"):
        Finetuned(setting.encoder.opening, RATE, part="value_one_layer").adapt(lm, setting.demonstrations)
    with pytest.raises(ModelError, match="those of the MLP of layer 1 cannot be identified"):
        Finetuned(setting.encoder.opening, RATE, part="mlp").adapt(lm, setting.demonstrations)

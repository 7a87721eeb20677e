"""Zeroth-order descent against the same descent done by hand, and its slopes against autograd's."""

import copy
import dataclasses
import math
import re

import pytest
import torch

import dualform.learners.mezo as under_test
from dualform.errors import ConfigError, ModelError, TrainingError
from dualform.learners.finetuned import Finetuned
from dualform.learners.mezo import Mezo, MezoAtRate, demonstration_loss, slope_and_mean
from dualform.learners.prompting import ZeroShot
from dualform.models.editing.edit import WeightDelta
from dualform.models.editing.edit import key_value_rows as rows_of
from dualform.models.structure.anatomy import Anatomy, row_axis
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.tiny import tiny_model

RATE, STEPS = 1e-3, 3


def learner(setting, rate=RATE, **changes):
    return MezoAtRate(
        **{"opening": setting.encoder.opening, "learning_rate": rate, "steps": STEPS, "batch": None} | changes
    )


def targets(setting, model):
    """(parameter, axis, rows) in the order in which directions are drawn."""
    for name, index in rows_of(setting.lm.model, setting.lm.anatomy).items():
        module = model.get_submodule(name)
        for kind, axis in (("weight", row_axis(module)), ("bias", 0)):
            weight = getattr(module, kind)
            if weight is not None:
                yield f"{name}.{kind}", weight, axis, torch.arange(weight.shape[axis]) if index is None else index


def label_loss(model, demonstrations):
    """Hugging Face's own loss on the answers, mean over demonstrations."""
    losses = []
    for ids, n_answer in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True):
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[:, :-n_answer] = -100
        losses.append(model(input_ids=tokens, labels=labels, use_cache=False).loss)
    return torch.stack(losses).mean()


def directions(setting, model, generator):
    """One standard normal for each target."""
    results = []
    for _, weight, axis, index in targets(setting, model):
        shape = list(weight.shape)
        shape[axis] = len(index)
        results.append(torch.randn(shape, generator=generator))
    return results


@torch.no_grad()
def move(setting, model, direction, by):
    for (_, weight, axis, index), z in zip(targets(setting, model), direction, strict=True):
        weight.index_add_(axis, index, z, alpha=by)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_learning_rate_zero_is_zero_shot_to_the_bit(self, family):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        adapted = learner(setting, 0.0).adapt(setting.lm, setting.demonstrations)
        assert_same_readings(readings(adapted, setting), readings(zsl, setting))
        assert len(adapted.losses) == STEPS
        moved = learner(setting).adapt(setting.lm, setting.demonstrations)
        assert (readings(moved, setting)[0].hidden - readings(zsl, setting)[0].hidden).abs().max() > 1e-3

    def test_it_is_the_obvious_descent_in_place(self, family):
        setting = fresh(family)
        epsilon = 1e-2
        model = copy.deepcopy(tiny_model(family))
        generator = torch.Generator().manual_seed(7)
        losses = []
        for _ in range(STEPS):
            z = directions(setting, model, generator)
            with torch.no_grad():
                move(setting, model, z, epsilon)
                above = float(label_loss(model, setting.demonstrations))
                move(setting, model, z, -2 * epsilon)
                below = float(label_loss(model, setting.demonstrations))
            move(setting, model, z, epsilon - RATE * (above - below) / (2 * epsilon))
            losses.append((above + below) / 2)
        adapted = learner(setting, epsilon=epsilon, seed=7).adapt(setting.lm, setting.demonstrations)
        assert adapted.losses == pytest.approx(losses, rel=1e-4)
        original = tiny_model(family)
        names = []
        for change, (name, weight, axis, index) in zip(adapted.deltas, targets(setting, model), strict=True):
            expected = (weight - original.get_parameter(name)).index_select(axis, index).detach()
            # A slope is a difference of losses that agree to 3 digits; in place, rounding adds up besides.
            torch.testing.assert_close(change.delta, expected, rtol=2e-2, atol=2e-5)
            assert change.delta.abs().max() > 1e-4
            names.append((change.parameter, change.axis))
        # The very rows that finetuning trains.
        ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        assert names == [(change.parameter, change.axis) for change in ft.deltas]
        assert [change.delta.shape for change in adapted.deltas] == [change.delta.shape for change in ft.deltas]

    def test_the_loss_is_that_of_finetuning_on_the_label(self, family):
        setting = fresh(family)
        with torch.no_grad():
            expected = float(label_loss(tiny_model(family), setting.demonstrations))
        assert demonstration_loss(setting.lm, setting.demonstrations) == pytest.approx(expected, rel=1e-5)
        ft = Finetuned(setting.encoder.opening, 0.0, "label").adapt(setting.lm, setting.demonstrations)
        assert sum(ft.losses) / len(ft.losses) == pytest.approx(expected, rel=1e-5)

    def test_the_slope_is_that_of_autograd_along_the_direction(self, family):
        setting = fresh(family)
        model = tiny_model(family)
        label_loss(model, setting.demonstrations).backward()
        generator = torch.Generator().manual_seed(1)
        z = directions(setting, model, generator)
        slope = sum(
            float((weight.grad.index_select(axis, index) * z_one).sum())
            for (_, weight, axis, index), z_one in zip(targets(setting, model), z, strict=True)
        )

        def loss_at(by):
            deltas = [
                WeightDelta(name, axis, index, by * z_one)
                for (name, _, axis, index), z_one in zip(targets(setting, model), z, strict=True)
            ]
            return demonstration_loss(setting.lm, setting.demonstrations, deltas)

        # Differences of float32 losses, 1e-7 each, over 2e-3.
        assert slope_and_mean(loss_at, 1e-3)[0] == pytest.approx(slope, abs=2e-3, rel=1e-2)

    def test_the_model_is_as_before_and_no_gradient_is_ever_taken(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
        readings(learner(setting).adapt(setting.lm, setting.demonstrations), setting)
        handle.remove()
        assert len(enabled) > 2 * STEPS
        assert not any(enabled)
        before.assert_restored(setting.lm.model)


def test_the_mean_over_many_directions_is_the_gradient():
    setting = fresh("gpt2", k=1)
    model = tiny_model("gpt2")
    label_loss(model, setting.demonstrations).backward()
    gradient = torch.cat(
        [weight.grad.index_select(axis, index).flatten() for _, weight, axis, index in targets(setting, model)]
    )
    length = float(gradient.norm())
    aside = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5))
    aside -= (aside @ gradient) * gradient / length**2
    aside /= aside.norm()
    n = 200
    along, across = [], []
    for seed in range(n):
        # One step at rate 1 moves by -(projected gradient) * z; epsilon small beside the distance that bends the loss.
        adapted = learner(setting, 1.0, steps=1, seed=seed).adapt(setting.lm, setting.demonstrations)
        estimate = -torch.cat([change.delta.flatten() for change in adapted.deltas])
        along.append(float(estimate @ gradient) / length**2)
        across.append(float(estimate @ aside) / length)
    # Each is z_1^2 or z_1 z_2: means 1 and 0, variances 2 and 1. Four standard errors.
    assert abs(sum(along) / n - 1) < 4 * math.sqrt(2 / n)
    assert abs(sum(across) / n) < 4 * math.sqrt(1 / n)
    # One direction alone is far from it.
    assert max(abs(share - 1) for share in along) > 1


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 50.0])
def test_the_slope_of_a_quadratic_is_exact_for_any_epsilon(epsilon):
    slope, mean = slope_and_mean(lambda x: 3 * x**2 - 2 * x + 5, epsilon)
    assert slope == pytest.approx(-2, rel=1e-9)
    assert mean == pytest.approx(5 + 3 * epsilon**2)
    # A cubic shows what the third derivative does.
    assert slope_and_mean(lambda x: x**3, epsilon)[0] == pytest.approx(epsilon**2)


def test_it_learns_what_it_was_shown():
    setting = fresh("gpt2")
    before = demonstration_loss(setting.lm, setting.demonstrations)
    adapted = learner(setting, 1e-3, steps=80).adapt(setting.lm, setting.demonstrations)
    assert demonstration_loss(setting.lm, setting.demonstrations, adapted.deltas) < 0.9 * before
    # Uphill it forgets.
    up = [dataclasses.replace(change, delta=-change.delta) for change in adapted.deltas]
    assert demonstration_loss(setting.lm, setting.demonstrations, up) > before


def test_the_seed_decides_directions_and_batches():
    setting = fresh("gpt2")

    def deltas(**changes):
        return learner(setting, **{"batch": 2, "seed": 1} | changes).adapt(setting.lm, setting.demonstrations).deltas

    first, same, other, whole = deltas(), deltas(), deltas(seed=2), deltas(batch=4)
    assert all(torch.equal(a.delta, b.delta) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0].delta, other[0].delta)
    assert not torch.equal(first[0].delta, whole[0].delta)
    # A batch as large as the set is the set.
    assert all(torch.equal(a.delta, b.delta) for a, b in zip(whole, deltas(batch=None), strict=True))


def test_the_global_random_state_is_left_alone():
    setting = fresh("gpt2")
    before = torch.get_rng_state()
    learner(setting).adapt(setting.lm, setting.demonstrations)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_demonstrations_or_steps_nothing_is_learned():
    for setting, steps in ((fresh("llama", k=0), STEPS), (fresh("llama"), 0)):
        adapted = learner(setting, steps=steps).adapt(setting.lm, setting.demonstrations)
        assert adapted.losses == ()
        assert not any(change.delta.any() for change in adapted.deltas)
        assert adapted.cost.tokens == 0


def test_the_cost_is_two_forwards_a_step():
    setting = fresh("llama")
    lm = setting.lm
    cost = learner(setting).adapt(lm, setting.demonstrations).cost
    # The answers' last tokens are predicted, not read.
    assert cost.tokens == 2 * STEPS * sum(len(ids) - 1 for ids in setting.demonstrations.sequences)
    assert cost.flops == pytest.approx(
        2
        * STEPS
        * sum(
            lm.shape.forward(len(ids) - 1, scored=n)
            for ids, n in zip(setting.demonstrations.sequences, setting.demonstrations.n_answer_tokens, strict=True)
        )
    )


class TestDivergence:
    def test_a_loss_that_is_no_number_names_rate_and_step(self):
        setting = fresh("gpt2")
        before = Snapshot(setting.lm.model)
        with pytest.raises(
            TrainingError, match=r"learning rate 1e\+30: the loss is nan at step \d+ of 20. Use a lower"
        ):
            learner(setting, 1e30, steps=20).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)

    def test_weights_that_become_infinite_at_the_last_step_are_found(self, monkeypatch):
        setting = fresh("gpt2")
        monkeypatch.setattr(under_test, "slope_and_mean", lambda *_: (1e3, 1.0))
        with pytest.raises(TrainingError, match=r"learning rate 1e\+37: the weights became infinite"):
            learner(setting, 1e37, steps=1).adapt(setting.lm, setting.demonstrations)

    def test_a_loss_that_is_infinite_is_found(self, monkeypatch):
        setting = fresh("gpt2")
        monkeypatch.setattr(under_test, "_mean_loss", lambda *_: math.inf)
        with pytest.raises(TrainingError, match=r"learning rate 0.001: the loss is inf at step 1 of 3. Use a lower"):
            learner(setting).adapt(setting.lm, setting.demonstrations)

    def test_a_forward_that_fails_leaves_the_weights(self, monkeypatch):
        setting = fresh("gpt2")
        before = Snapshot(setting.lm.model)

        def fail(*args, **kwargs):
            raise RuntimeError("in the middle")

        with monkeypatch.context() as patch:
            patch.setattr(type(setting.lm.route), "read", fail)
            with pytest.raises(RuntimeError, match="in the middle"):
                learner(setting).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)


class TestSearch:
    def search(self, setting, rates, **changes):
        return Mezo(
            **{"opening": setting.encoder.opening, "learning_rates": rates, "steps": STEPS, "batch": None} | changes
        )

    def test_the_rate_with_the_lowest_final_loss_on_the_demonstrations_wins(self):
        setting = fresh("gpt2")
        rates = (1e-3, 0.0, 1e-4)
        trials = self.search(setting, rates).search(setting.lm, setting.demonstrations)
        each = {rate: learner(setting, rate).adapt(setting.lm, setting.demonstrations) for rate in rates}
        losses = {
            rate: demonstration_loss(setting.lm, setting.demonstrations, item.deltas) for rate, item in each.items()
        }
        assert trials.final_losses == losses
        assert trials.learning_rate == min(losses, key=losses.__getitem__)
        for a, b in zip(trials.best.deltas, each[trials.learning_rate].deltas, strict=True):
            assert torch.equal(a.delta, b.delta)
        n_tokens = sum(len(ids) - 1 for ids in setting.demonstrations.sequences)
        # Of the rate chosen alone: a search is counted for no learner.
        assert trials.best.cost.tokens == 2 * STEPS * n_tokens
        adapted = self.search(setting, rates).adapt(setting.lm, setting.demonstrations)
        assert torch.equal(adapted.deltas[0].delta, trials.best.deltas[0].delta)

    def test_one_rate_is_trained_at_without_a_search(self):
        setting = fresh("gpt2")
        adapted = self.search(setting, (RATE,)).adapt(setting.lm, setting.demonstrations)
        expected = learner(setting).adapt(setting.lm, setting.demonstrations)
        assert torch.equal(adapted.deltas[0].delta, expected.deltas[0].delta)
        assert adapted.cost.tokens == expected.cost.tokens
        with pytest.raises(TrainingError, match=r"learning rate 1e\+30: the loss is nan at step"):
            self.search(setting, (1e30,), steps=20).adapt(setting.lm, setting.demonstrations)

    def test_a_rate_that_diverges_is_passed_over(self):
        setting = fresh("gpt2")
        trials = self.search(setting, (1e37, 1e-4)).search(setting.lm, setting.demonstrations)
        assert trials.learning_rate == 1e-4
        assert math.isnan(trials.final_losses[1e37])

    def test_a_rate_whose_final_loss_alone_is_infinite_is_passed_over(self, monkeypatch):
        setting = fresh("gpt2")
        mean_loss = under_test._mean_loss
        monkeypatch.setattr(
            under_test,
            "_mean_loss",
            lambda lm, batch, deltas: mean_loss(lm, batch, deltas) if deltas[0].delta.abs().max() < 0.1 else math.inf,
        )
        trials = self.search(setting, (0.0, 1.0), steps=0).search(setting.lm, setting.demonstrations)
        assert math.isfinite(trials.final_losses[1.0])
        trials = self.search(setting, (0.0, 1.0), steps=1).search(setting.lm, setting.demonstrations)
        assert trials.learning_rate == 0.0
        assert math.isnan(trials.final_losses[1.0])

    def test_if_all_diverge_the_rates_are_named(self):
        setting = fresh("gpt2")
        with pytest.raises(TrainingError, match=re.escape("diverged at every learning rate (1e+36, 1e+37)")):
            self.search(setting, (1e37, 1e36)).search(setting.lm, setting.demonstrations)

    def test_an_empty_grid_or_a_bad_rate_is_named(self):
        with pytest.raises(ConfigError, match="learning_rates is empty"):
            Mezo((0,), ())
        with pytest.raises(ConfigError, match=r"learning rate -1.0 must lie between"):
            Mezo((0,), (0.1, -1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -1.0}, "learning rate -1.0 must lie between 0"),
        ({"epsilon": 0.0}, "epsilon 0.0 must be above 0"),
        ({"epsilon": -1.0, "steps": -1}, "epsilon -1.0 must be above 0, and finite; steps -1 must be 0 or more"),
        ({"batch": 0}, "batch 0 must be at least 1, or None"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        MezoAtRate(**{"opening": (0,), "learning_rate": 0.1} | changes)


def test_a_model_whose_keys_are_not_known_is_refused():
    setting = fresh("llama")
    lost = dataclasses.replace(setting.lm.anatomy.layers[0], W_K=None, unclear=("W_K is lost",))
    lm = dataclasses.replace(setting.lm, anatomy=Anatomy((lost, setting.lm.anatomy.layers[1]), True))
    with pytest.raises(ModelError, match=r"not found in every layer \(layer 0: W_K is lost\)"):
        learner(setting).adapt(lm, setting.demonstrations)

"""Noise of the same size as finetuning's changes, in the same weights."""

import dataclasses

import pytest
import torch

from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import ZeroShot
from dualform.learners.random_update import random_update
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot

RATE = 0.05


def flat(adapted):
    return torch.cat([change.delta.flatten() for change in adapted.deltas]).double()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_norms_match_parameter_by_parameter_and_directions_do_not(self, family):
        setting = fresh(family)
        ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        kept = [change.delta.clone() for change in ft.deltas]
        noisy = random_update(ft, setting.lm, setting.encoder.opening, seed=1)
        assert noisy.learner == "random_update"
        for noise, change, before in zip(noisy.deltas, ft.deltas, kept, strict=True):
            assert torch.equal(change.delta, before)
            assert (noise.parameter, noise.axis) == (change.parameter, change.axis)
            assert noise.index is change.index
            assert noise.delta.dtype == torch.float32
            assert noise.delta.shape == change.delta.shape
            assert float(noise.delta.norm()) == pytest.approx(float(change.delta.norm()), rel=1e-5)
        # Of n numbers, the cosine with a given direction has a standard deviation of 1 / sqrt(n), taken per parameter.
        for noise, change in zip(noisy.deltas, ft.deltas, strict=True):
            if change.delta.any():
                cosine = torch.cosine_similarity(noise.delta.flatten(), change.delta.flatten(), dim=0)
                assert abs(cosine) < 5 / change.delta.numel() ** 0.5

    def test_it_is_read_with_the_noise_and_leaves_the_model_as_it_was(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        noisy = random_update(ft, setting.lm, setting.encoder.opening, seed=1)
        for first, second in zip(readings(noisy, setting), readings(ft, setting), strict=True):
            assert (first.log_probabilities - second.log_probabilities).abs().max() > 1e-4
        assert (noisy.prefix.layers[0][0] - ft.prefix.layers[0][0]).abs().max() > 1e-5
        before.assert_restored(setting.lm.model)

    def test_a_weight_that_did_not_change_gets_no_noise(self, family):
        setting = fresh(family)
        ft = Finetuned(setting.encoder.opening, 0.0).adapt(setting.lm, setting.demonstrations)
        noisy = random_update(ft, setting.lm, setting.encoder.opening, seed=1)
        assert not flat(noisy).any()
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        assert_same_readings(readings(noisy, setting), readings(zsl, setting))


def test_training_queries_are_those_of_finetuning_and_the_cost_is_zero():
    setting = fresh("llama")
    ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    noisy = random_update(ft, setting.lm, setting.encoder.opening, seed=1)
    assert noisy.training_q is ft.training_q
    assert noisy.losses == ()
    assert (noisy.cost.seconds, noisy.cost.tokens, noisy.cost.flops) == (0, 0, 0)


def test_equal_seeds_give_equal_noise_and_the_global_random_state_is_not_used():
    setting = fresh("llama")
    ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    state = torch.get_rng_state()
    noise = flat(random_update(ft, setting.lm, setting.encoder.opening, seed=7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(flat(random_update(ft, setting.lm, setting.encoder.opening, seed=7)), noise)


def test_different_seeds_are_orthogonal_within_the_predicted_spread_and_finetunings_are_not():
    setting = fresh("llama")
    ft = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    (largest,) = [change for change in ft.deltas if change.parameter == ft.deltas[0].parameter]
    ft = dataclasses.replace(ft, deltas=(largest,))
    drawn = torch.stack([flat(random_update(ft, setting.lm, setting.encoder.opening, seed)) for seed in range(40)])
    cosines = torch.corrcoef(drawn)[*torch.triu_indices(40, 40, 1)]
    spread = largest.delta.numel() ** -0.5
    # 780 pairs: their mean and their spread are known to a few hundredths of the spread.
    assert abs(float(cosines.mean())) < 4 * spread / 780**0.5
    assert float(cosines.std()) == pytest.approx(spread, rel=0.15)
    # Two finetunings on the same demonstrations have a direction in common.
    reverse = dataclasses.replace(
        setting.chosen, examples=setting.chosen.examples[::-1], labels=setting.chosen.labels[::-1]
    )
    other = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.encoder.demonstrations(reverse))
    assert torch.cosine_similarity(flat(ft), other.deltas[0].delta.flatten().double(), dim=0) > 10 * spread

"""Layers beside steps: what is claimed of them, and what must come apart."""

import pytest
import torch

from dualform.ops.constructions import descend_by_layers, gd_plus_plus_layer
from dualform.studies.laboratory.construction_depth import _gd_plus_plus, depth_claims, depth_errors

TRUE = ("one", "deep", "plus", "ridge")


@pytest.mark.parametrize(("dimension", "points"), [(10, 10), (4, 20), (8, 3)])
def test_layers_are_steps_and_nothing_else_is(dimension, points):
    for seed in (1, 2):
        errors = depth_errors(dimension, points, seed)
        for name, error in errors.items():
            assert error < 1e-12 if name in TRUE else error > 1e-4, name


def test_equal_seeds_give_equal_errors():
    assert depth_errors(4, 6, 1) == depth_errors(4, 6, 1)
    assert depth_errors(4, 6, 1) != depth_errors(4, 6, 2)


def test_gd_plus_plus_is_what_its_layers_do_only_with_the_right_curvature():
    generator = torch.Generator().manual_seed(0)
    x, y, query = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2, 3))
    layers = [gd_plus_plus_layer(torch.zeros(2, 3, dtype=torch.float64), 0.1, 0.01, 6)] * 3
    actual = descend_by_layers(layers, x, y, query)
    torch.testing.assert_close(actual, _gd_plus_plus(x, y, query, 3, 0.1, 0.01), rtol=1e-12, atol=1e-14)
    assert (actual - _gd_plus_plus(x, y, query, 3, 0.1, 0.02)).abs().max() > 1e-3


def test_claims_hold_as_they_should_over_all_seeds():
    errors = [depth_errors(5, 8, seed) for seed in (1, 2, 3)]
    claims = depth_claims(errors)
    assert [claim.holds for claim in claims] == [not claim.must_fail for claim in claims]
    assert sum(not claim.must_fail for claim in claims) == len(TRUE)
    assert {claim.found.n for claim in claims} == {3}


def test_one_wrong_seed_breaks_a_claim_and_one_right_seed_saves_what_must_fail():
    errors = [depth_errors(5, 8, seed) for seed in (1, 2)]
    errors[1] = errors[1] | {"deep": 1e-3, "fewer": 0.0}
    held = {claim.says: claim.holds for claim in depth_claims(errors)}
    assert not held["5 such layers do 5 gradient steps."]
    assert held["5 layers do 4 gradient steps."]

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.similarity import (
    direct_update,
    sim_am,
    sim_am_centred,
    sim_am_delta,
    sim_am_softmax,
    sim_aou,
    sim_aou_raw,
)

AM_MEASURES = [sim_am, sim_am_centred, sim_am_softmax]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return normal(3, 2, 8, seed=seed), normal(3, 2, 8, seed=seed + 1), normal(3, 2, 8, seed=seed + 2)


def scores(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three settings' scores of examples with 5, 3 and 2 real tokens, and their mask (padding left or right)."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    a, b, c = (3 * normal(3, 2, 4, 5, seed=seed + i) for i in range(3))
    return a, b, c, mask


# --- SimAOU


def slow_sim_aou(zsl: Tensor, icl: Tensor, ft: Tensor, normalise: bool) -> Tensor:
    result = torch.empty(zsl.shape[:2], dtype=zsl.dtype)
    for n in range(zsl.shape[0]):
        for layer in range(zsl.shape[1]):
            h_zsl, h_icl, h_ft = (h[n, layer] / (h[n, layer].norm() if normalise else 1) for h in (zsl, icl, ft))
            u, v = h_icl - h_zsl, h_ft - h_zsl
            result[n, layer] = (u @ v) / (u.norm() * v.norm())
    return result


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sim_aou_answers_to_the_slow_version(seed):
    zsl, icl, ft = outputs(seed)
    torch.testing.assert_close(sim_aou(zsl, icl, ft), slow_sim_aou(zsl, icl, ft, normalise=True))
    torch.testing.assert_close(sim_aou_raw(zsl, icl, ft), slow_sim_aou(zsl, icl, ft, normalise=False))


@pytest.mark.parametrize("measure", [sim_aou, sim_aou_raw])
def test_identical_updates_score_one_and_context_and_finetuning_may_change_places(measure):
    zsl, icl, ft = outputs()
    torch.testing.assert_close(measure(zsl, icl, icl), torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(measure(zsl, icl, ft), measure(zsl, ft, icl))


def test_opposite_updates_score_minus_one():
    zsl, icl, _ = outputs()
    torch.testing.assert_close(sim_aou_raw(zsl, icl, 2 * zsl - icl), -torch.ones(3, 2, dtype=torch.float64))
    # Normalised, opposite means mirrored in the direction of the zero-shot output, on the sphere: nearly -1
    # for small updates, and short of it for large ones.
    small = zsl + 1e-4 * icl
    assert (sim_aou(zsl, small, 2 * zsl - small) < -0.999).all()
    assert (sim_aou(zsl, icl, 2 * zsl - icl) > -0.999).any()


def test_sim_aou_ignores_the_lengths_of_outputs_and_raw_does_not():
    zsl, icl, ft = outputs()
    torch.testing.assert_close(sim_aou(2 * zsl, 0.3 * icl, 5 * ft), sim_aou(zsl, icl, ft))
    assert (sim_aou_raw(2 * zsl, 0.3 * icl, 5 * ft) - sim_aou_raw(zsl, icl, ft)).abs().max() > 0.1


def test_raw_ignores_the_step_size_of_an_update_and_sim_aou_does_not():
    zsl, icl, ft = outputs()
    longer = zsl + 3 * (ft - zsl)
    torch.testing.assert_close(sim_aou_raw(zsl, icl, longer), sim_aou_raw(zsl, icl, ft))
    assert (sim_aou(zsl, icl, longer) - sim_aou(zsl, icl, ft)).abs().max() > 0.01


@pytest.mark.parametrize("ratio", [3.0, 0.5])
def test_independent_noise_scores_zero_raw_but_a_quarter_once_normalised(ratio):
    # icl = h + noise, ft = h + other noise, with squared norm `ratio` times that of h. In many dimensions all
    # three are orthogonal, so n(h + noise) = (h + noise) / s with s = sqrt(1 + ratio), and both updates share
    # -(1 - 1/s) h.
    n_examples, d_model = 200, 4096
    h, icl_noise, ft_noise = (normal(n_examples, 1, d_model, seed=seed) for seed in range(3))
    icl, ft = h + math.sqrt(ratio) * icl_noise, h + math.sqrt(ratio) * ft_noise
    s = math.sqrt(1 + ratio)
    expected = (s - 1) ** 2 / ((s - 1) ** 2 + ratio)
    if ratio == 3:
        assert expected == 0.25
    # Each cosine spreads by at most 1 / sqrt(d_model); four standard errors of the mean.
    tolerance = 4 / math.sqrt(d_model * n_examples)
    assert sim_aou(h, icl, ft).mean().item() == pytest.approx(expected, abs=tolerance)
    assert sim_aou_raw(h, icl, ft).mean().item() == pytest.approx(0, abs=tolerance)


@pytest.mark.parametrize("measure", [sim_aou, sim_aou_raw])
def test_learning_rate_zero_is_nan(measure):
    zsl, icl, _ = outputs()
    assert measure(zsl, icl, zsl.clone()).isnan().all()
    assert measure(zsl, zsl, icl).isnan().all()


def test_a_zero_output_is_nan_only_where_it_must_be():
    zsl, icl, ft = outputs()
    zsl[0, 0] = 0
    assert sim_aou(zsl, icl, ft).isnan().tolist() == [[True, False], [False, False], [False, False]]
    assert not sim_aou_raw(zsl, icl, ft).isnan().any()


def test_small_float32_updates_keep_their_digits():
    # In float32 arithmetic n(icl) - n(zsl) would be rounding noise at this size.
    zsl = normal(1, 1, 64).float()
    icl = zsl.clone()
    icl[0, 0, 0] = torch.nextafter(zsl[0, 0, 0], torch.tensor(torch.inf))
    reference = slow_sim_aou(zsl.double(), icl.double(), (zsl + 0.1).double(), normalise=True)
    value = sim_aou(zsl, icl, zsl + 0.1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, atol=1e-6, rtol=0)


def test_sim_aou_error_names_the_shapes():
    with pytest.raises(ShapeError, match=r"zsl \(3, 2, 8\), icl \(3, 2, 8\), ft \(3, 1, 8\)"):
        sim_aou(torch.zeros(3, 2, 8), torch.zeros(3, 2, 8), torch.zeros(3, 1, 8))
    with pytest.raises(ShapeError, match=r"\(example, layer, d_model\) and be equal; given zsl \(2, 8\)"):
        sim_aou_raw(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2, 8))


# --- SimAM


def slow_sim_am(kind: str, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    result = torch.empty(a.shape[:3], dtype=a.dtype)
    for n in range(a.shape[0]):
        for layer in range(a.shape[1]):
            for head in range(a.shape[2]):
                u, v = a[n, layer, head][mask[n]], b[n, layer, head][mask[n]]
                if kind == "sim_am_centred":
                    u, v = u - u.mean(), v - v.mean()
                if kind == "sim_am_softmax":
                    u, v = u.softmax(0), v.softmax(0)
                result[n, layer, head] = (u @ v) / (u.norm() * v.norm())
    return result


@pytest.mark.parametrize("measure", AM_MEASURES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sim_am_answers_to_the_slow_version(measure, seed):
    a, b, _, mask = scores(seed)
    torch.testing.assert_close(measure(a, b, mask), slow_sim_am(measure.__name__, a, b, mask))


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("measure", AM_MEASURES)
def test_what_stands_at_padding_does_not_matter(measure, junk):
    a, b, c, mask = scores()
    hole = ~mask[:, None, None, :]
    assert measure(a.masked_fill(hole, junk), b.masked_fill(hole, -junk), mask).equal(measure(a, b, mask))
    assert sim_am_delta(a.masked_fill(hole, junk), b.masked_fill(hole, junk), c, mask).equal(
        sim_am_delta(a, b, c, mask)
    )


@pytest.mark.parametrize("measure", AM_MEASURES)
def test_a_nan_among_real_scores_is_not_hidden(measure):
    a, b, _, mask = scores()
    a[0, 1, 2, 3] = torch.nan
    where = measure(a, b, mask).isnan()
    assert where[0, 1, 2]
    assert where.sum() == 1


@pytest.mark.parametrize("measure", [sim_am_centred, sim_am_softmax])
def test_centred_and_softmax_ignore_a_constant_added_to_scores(measure):
    a, b, _, mask = scores()
    torch.testing.assert_close(measure(a + 11, b - 4, mask), measure(a, b, mask))


def test_plain_sim_am_does_not_ignore_a_constant_added_to_scores():
    a, b, _, mask = scores()
    assert (sim_am(a, b, mask) - sim_am(a + 11, b + 11, mask)).abs().max() > 0.5
    # A large enough constant makes any two rows alike.
    assert (sim_am(a + 1000, b + 1000, mask) > 0.999).all()


@pytest.mark.parametrize("measure", [sim_am, sim_am_centred])
def test_plain_and_centred_ignore_the_scale_of_scores_and_softmax_does_not(measure):
    a, b, _, mask = scores()
    torch.testing.assert_close(measure(3 * a, 0.2 * b, mask), measure(a, b, mask))
    assert (sim_am_softmax(3 * a, 0.2 * b, mask) - sim_am_softmax(a, b, mask)).abs().max() > 0.1


@pytest.mark.parametrize("measure", AM_MEASURES)
def test_equal_scores_score_one(measure):
    a, _, _, mask = scores()
    torch.testing.assert_close(measure(a, a, mask), torch.ones(3, 2, 4, dtype=torch.float64))


def test_opposite_scores_score_minus_one_before_softmax_but_never_after():
    a, _, _, mask = scores()
    torch.testing.assert_close(sim_am(a, -a, mask), -torch.ones(3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(sim_am_centred(a, -a, mask), -torch.ones(3, 2, 4, dtype=torch.float64))
    assert (sim_am_softmax(a, -a, mask) >= 0).all()


def test_a_single_token_is_nan_after_centring_and_one_after_softmax():
    a, b, _, mask = scores()
    mask = mask & (mask.cumsum(-1) == 1)
    assert sim_am_centred(a, b, mask).isnan().all()
    torch.testing.assert_close(sim_am_softmax(a, b, mask), torch.ones(3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(sim_am(a, b, mask).abs(), torch.ones(3, 2, 4, dtype=torch.float64))


def test_a_constant_row_is_nan_after_centring_though_its_mean_is_rounded():
    row = torch.full((3,), 0.1, dtype=torch.float64)
    assert (row - row.mean()).any(), "the mean is exact, so the test shows nothing"
    _, b, _, mask = scores()
    assert sim_am_centred(torch.full_like(b, 0.1), b, mask).isnan().all()


@pytest.mark.parametrize("measure", AM_MEASURES)
def test_an_example_without_real_tokens_is_nan(measure):
    a, b, _, mask = scores()
    mask[1] = False
    assert measure(a, b, mask).isnan().all(-1).all(-1).tolist() == [False, True, False]
    assert measure(a[..., :0], b[..., :0], mask[:, :0]).isnan().all()


def test_sim_am_delta_is_the_cosine_of_changes():
    zsl, icl, ft, mask = scores()
    torch.testing.assert_close(sim_am_delta(zsl, icl, ft, mask), slow_sim_am("sim_am", icl - zsl, ft - zsl, mask))
    torch.testing.assert_close(sim_am_delta(zsl, icl, icl, mask), torch.ones(3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(sim_am_delta(zsl, icl, 2 * zsl - icl, mask), -torch.ones(3, 2, 4, dtype=torch.float64))
    assert sim_am_delta(zsl, icl, zsl, mask).isnan().all()


def test_unchanged_scores_look_alike_to_sim_am_and_not_to_delta():
    zsl, change, other, mask = scores()
    icl, ft = zsl + 0.01 * change, zsl + 0.01 * other
    assert (sim_am(icl, ft, mask) > 0.99).all()
    assert sim_am_delta(zsl, icl, ft, mask).mean().abs() < 0.5


def test_arguments_are_left_unchanged():
    a, b, c, mask = scores()
    a[1, 0, 0, 0] = torch.nan
    copies = [tensor.clone() for tensor in (a, b, c, mask)]
    for measure in AM_MEASURES:
        measure(a, b, mask)
    sim_am_delta(a, b, c, mask)
    for tensor, copy in zip((a, b, c, mask), copies, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


def test_mask_error_names_dtype_and_shape():
    a, b, _, mask = scores()
    with pytest.raises(ShapeError, match=r"must be boolean.*given torch\.int64 of shape \(3, 5\)"):
        sim_am(a, b, mask.long())
    with pytest.raises(
        ShapeError, match=r"\(example, query_pos\) = \(3, 5\) for a.*given torch\.bool of shape \(3, 4\)"
    ):
        sim_am_centred(a, b, mask[:, 1:])


# --- direct update


def test_direct_update_is_the_cosine_of_flattened_matrices():
    icl, ft = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    value = direct_update(icl, ft)
    assert value.shape == (2, 3)
    expected = (icl[1, 2] * ft[1, 2]).sum() / (icl[1, 2].norm() * ft[1, 2].norm())
    torch.testing.assert_close(value[1, 2], expected)
    torch.testing.assert_close(direct_update(icl, 3 * icl), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(direct_update(icl, -icl), -torch.ones(2, 3, dtype=torch.float64))


def test_direct_update_broadcasts_one_finetuning_over_examples():
    icl, ft = normal(6, 2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    torch.testing.assert_close(direct_update(icl, ft)[4], direct_update(icl[4], ft))


def test_direct_update_tells_apart_updates_that_act_alike_on_one_query():
    # Both send q to the same place, so SimAOU could not tell them apart.
    q = torch.tensor([1.0, 0.0], dtype=torch.float64)
    icl = torch.tensor([[1.0, 5.0], [2.0, -7.0]], dtype=torch.float64)
    ft = torch.tensor([[1.0, -6.0], [2.0, 4.0]], dtype=torch.float64)
    assert (icl @ q).equal(ft @ q)
    assert direct_update(icl, ft) < 0


def test_direct_update_of_no_training_is_nan():
    assert direct_update(torch.ones(2, 3, 3), torch.zeros(2, 3, 3)).isnan().all()


def test_direct_update_error_names_the_shapes():
    with pytest.raises(ShapeError, match=r"given \(2, 3, 4\) and \(2, 4, 3\)"):
        direct_update(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3))

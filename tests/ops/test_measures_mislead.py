"""The cases in which docs/measures.md says that a measure misleads, and how large the effect is."""

import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn.metrics import accuracy_score, f1_score

from dualform.lab.predictor_distance import spd
from dualform.lab.predictors import Bayes, Descent, LeastSquares, Ridge, best_of, by_point, errors_by_point
from dualform.lab.regression_tasks import RegressionTasks
from dualform.models.reading.perplexity import perplexity
from dualform.ops.agreement import label_agreement, overlap_cosine, rec2ftp, top_k_overlap, total_variation
from dualform.ops.calibration import contextual_calibration
from dualform.ops.choosing import chosen_gap
from dualform.ops.classification import brier_score, calibration_error, log_loss, reliability_counts
from dualform.ops.constructions import descend_by_layers, gd_layer
from dualform.ops.dual_form import linear_attention, outer_product_update, relaxation
from dualform.ops.fast_weights import fast_weights
from dualform.ops.folding import rank_one_update
from dualform.ops.momentum import momentum_naive
from dualform.ops.momentum_dual import momentum_linear_attention
from dualform.ops.permutation import sign_flip_p
from dualform.ops.power import minimum_detectable
from dualform.ops.rank import kendall_tau_b
from dualform.ops.ridge import NormalEquations
from dualform.ops.rounding import last_place_move
from dualform.ops.similarity import (
    direct_update,
    sim_am,
    sim_am_centred,
    sim_am_delta,
    sim_am_softmax,
    sim_aou,
    sim_aou_raw,
)
from dualform.ops.variance import variance_split
from dualform.result import Cost
from dualform.studies.against import break_even


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def random(generator):
    """Standard normal numbers of a shape."""
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def scores(random):
    """Two unrelated sets of attention scores (query, layer, head, token), and the mask of their tokens."""
    return random(50, 1, 4, 20), random(50, 1, 4, 20), torch.ones(50, 20, dtype=torch.bool)


def explained(inputs, outputs):
    equations = NormalEquations(inputs.shape[1], outputs.shape[1])
    equations.add(inputs, outputs)
    return equations.solve(0.0).explained


def test_a_constant_answer_has_an_accuracy_and_a_low_macro_f1():
    labels, constant = [1] * 70 + [0] * 30, [1] * 100
    assert accuracy_score(labels, constant) == 0.7
    assert round(f1_score(labels, constant, average="macro", zero_division=0), 2) == 0.41


def test_an_accurate_learner_may_have_a_worse_log_loss_than_guessing():
    labels = torch.tensor([0] * 50 + [1] * 50)
    # Nine of ten answers are right, and all are as sure as a prompt often is.
    right = torch.arange(100) % 10 > 0
    log_p = torch.zeros(100, 2)
    log_p[torch.arange(100), torch.where(right, labels, 1 - labels)] = 12.0
    assert log_loss(log_p, labels).mean() > log_loss(torch.zeros(100, 2), labels).mean() * 1.5
    assert brier_score(log_p, labels).mean() < brier_score(torch.zeros(100, 2), labels).mean()


def test_guessing_with_the_label_frequencies_is_calibrated_and_opposite_errors_of_two_seeds_cancel():
    right = (torch.arange(100) < 70).double()
    assert calibration_error(reliability_counts(torch.full((100,), 0.7), right).sum(0)) < 1e-6
    # One seed is overconfident by 0.15, the other underconfident, in the same bin of confidence 0.65.
    over, under = (torch.arange(100) < 50).double(), (torch.arange(100) < 80).double()
    each = [reliability_counts(torch.full((100,), 0.65), one).sum(0) for one in (over, under)]
    assert [round(float(calibration_error(one)), 6) for one in each] == [0.15, 0.15]
    assert calibration_error(each[0] + each[1]) < 1e-6


def test_rec2ftp_is_1_whatever_finetuning_did_when_icl_is_always_right():
    zsl_right = torch.tensor([False, False, False, True])
    ft_right = torch.tensor([True, False, False, True])
    result = rec2ftp(zsl_right, torch.ones(4, dtype=torch.bool), ft_right)
    assert (result.value, result.chance, result.lift) == (1.0, 1.0, 0.0)


def test_sim_aou_of_two_independent_noises_is_a_quarter_and_raw_sim_aou_is_0(random):
    h = torch.nn.functional.normalize(random(50, 1, 4096), dim=-1)
    icl, ft = (h + random(50, 1, 4096) * (3 / 4096) ** 0.5 for _ in range(2))
    assert abs(sim_aou(h, icl, ft).mean() - 0.25) < 0.01
    assert abs(sim_aou_raw(h, icl, ft).mean()) < 0.01


def test_raw_sim_aou_ignores_the_size_of_a_change(random):
    h = random(50, 1, 4096).double()
    assert (sim_aou_raw(h, 0.9 * h, 0.9999 * h) > 0.999).all()


def test_an_added_constant_raises_sim_am_but_not_its_invariant_forms(scores):
    a, b, mask = scores
    assert sim_am(a + 100, b + 100, mask).min() > 0.99
    for invariant in (sim_am_centred, sim_am_softmax):
        assert torch.allclose(invariant(a + 100, b + 100, mask), invariant(a, b, mask), atol=1e-4)


def test_one_token_that_stands_out_raises_centred_and_softmax_sim_am(scores):
    a, b, mask = scores
    peak = torch.zeros(20)
    peak[0] = 15
    assert sim_am_centred(a + peak, b + peak, mask).mean() > 0.85
    assert sim_am_softmax(a + peak, b + peak, mask).min() > 0.99


def test_sim_am_of_changes_is_1_when_both_sides_add_a_constant(scores):
    a, _, mask = scores
    assert (sim_am_delta(a, a + 3, a + 5, mask) > 0.999).all()


def test_kendalls_tau_scatters_more_when_whole_demonstrations_move_together(random):
    def together():
        return random(100, 8).repeat_interleave(30, dim=1) + 0.01 * random(100, 240)

    assert kendall_tau_b(random(100, 240), random(100, 240)).std() < 0.06
    assert kendall_tau_b(together(), together()).std() > 0.2


def test_two_demonstrations_have_only_two_rank_correlations(random):
    assert set(kendall_tau_b(random(100, 2), random(100, 2)).tolist()) == {-1.0, 1.0}


def test_updates_of_keys_and_values_with_large_means_look_alike(random):
    values, keys = random(16) + 0.3 * random(40, 16), random(16) + 0.3 * random(40, 16)
    demonstrations = outer_product_update(values[:30], keys[:30])
    query = outer_product_update(values[30:], keys[30:])
    assert direct_update(demonstrations, 0.01 * query) > 0.8


def test_two_learners_that_collapsed_into_one_answer_agree():
    collapsed = torch.tensor([[0.0, -9.0]]).expand(50, 2)
    assert label_agreement(collapsed, 0.1 * collapsed).mean() == 1


def test_unrelated_changes_of_one_distribution_share_most_top_tokens(random):
    unchanged = 4 * random(50, 1000)
    first, second = (unchanged + random(50, 1000) for _ in range(2))
    assert top_k_overlap(random(50, 1000), random(50, 1000)).mean() < 0.05
    assert top_k_overlap(first, second).mean() > 0.5


def test_a_single_shared_token_has_a_cosine_of_1():
    assert overlap_cosine(torch.tensor([3.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 3.0]), k=2) > 0.999


def test_most_probability_is_shared_by_opposite_answers_of_one_form():
    icl = torch.tensor([[0.55, 0.44, 0.01]]).log()
    ft = torch.tensor([[0.44, 0.55, 0.01]]).log()
    assert 1 - total_variation(icl, ft) > 0.88
    assert label_agreement(icl, ft) == 0


@pytest.mark.parametrize(("level", "expected"), [(2.0, 1.0), (-2.0, -1.0)])
def test_a_constant_in_the_scores_turns_the_relaxation_round(level, expected):
    q = torch.tensor([[1.0, 0.0]])
    values = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    keys = torch.tensor([[level, 0.0], [level, 1.0], [level, -1.0]])
    output = torch.softmax(keys @ q[0], dim=0) @ values
    result = relaxation(outer_product_update(values, keys)[None], torch.zeros(1, 2, 2), q, output[None])
    assert torch.allclose(result.cosine, torch.tensor([expected]))


def test_a_random_direction_is_no_bound_for_changes_with_a_common_part(random):
    common, nothing = random(4096), torch.zeros(50, 1, 4096)
    icl, ft = (common + random(50, 1, 4096) for _ in range(2))
    noise = random(50, 1, 4096)
    noise *= ft.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    assert abs(sim_aou_raw(nothing, icl, noise).mean()) < 0.01
    assert sim_aou_raw(nothing, icl, ft).mean() > 0.45


def test_similarity_of_two_noisy_updates_is_the_geometric_mean_of_their_self_similarities(random):
    update, nothing = random(4096), torch.zeros(50, 1, 4096)

    def repeats(noise):
        return update + noise * random(50, 1, 4096)

    across = sim_aou_raw(nothing, repeats(1), repeats(2)).mean()
    within = [sim_aou_raw(nothing, repeats(noise), repeats(noise)).mean() for noise in (1, 2)]
    assert abs(across - (within[0] * within[1]).sqrt()) < 0.01
    # Noise that both sides share, such as a common order, exceeds that ceiling.
    shared = repeats(1)
    assert sim_aou_raw(nothing, shared, shared).mean() > 1.9 * within[0]


def test_the_highest_of_several_noisy_floors_is_too_high(random):
    assert (0.05 * random(1000, 6)).max(dim=1).values.mean() > 0.05


@pytest.mark.parametrize(("rate", "grows"), [(3.0, True), (1.5, False)])
def test_rounding_grows_beyond_a_rate_of_two_over_the_curvature(random, generator, rate, grows):
    curvature, weights = 1.0, random(100).double()
    moved = weights + last_place_move(weights, generator)
    start = (moved - weights).norm()
    for _ in range(20):
        moved = moved - rate * curvature * (moved - weights)
    assert ((moved - weights).norm() > 1e5 * start) == grows


def test_pairs_of_seed_and_query_are_not_independent_units(random):
    assert sign_flip_p(torch.tensor([0.30, 0.31, 0.32])) == 0.25
    chance_alone = random(5, 1, 200) + random(5, 50, 200)  # seeds, queries, trials
    assert (sign_flip_p(chance_alone.flatten(0, 1), n_resamples=999) < 0.05).float().mean() > 0.5
    assert (sign_flip_p(chance_alone.mean(dim=1)) < 0.07).float().mean() < 0.15


def test_the_smallest_detectable_difference_is_1_43_half_intervals():
    assert round(minimum_detectable((-0.1, 0.1)), 3) == 0.143


def test_one_of_eight_arms_without_effect_often_looks_significant(random):
    seeds = torch.tensor([-0.012, -0.009, -0.014, -0.011, -0.010])
    assert ttest_1samp(seeds, 0).pvalue < 0.001
    assert sign_flip_p(seeds) == 2 / 2**5
    baseline, arms = random(300, 1, 5), random(300, 8, 5)  # studies, arms, seeds
    significant = torch.from_numpy(ttest_1samp(arms - baseline, 0, axis=2).pvalue) < 0.05
    assert significant.double().mean() < 0.08
    assert significant.any(dim=1).double().mean() > 0.2


def test_a_constant_answer_is_perfectly_stable():
    always_positive = torch.ones(10, 4, 100)  # sets, orders, answers
    right = torch.cat([always_positive[..., :50], 0 * always_positive[..., 50:]], dim=2)
    assert right.mean(dim=2).std() == 0


def test_coin_tosses_have_their_variance_in_the_residual(random, generator):
    tosses = (random(20, 10, 100) > 0).double()
    parts = variance_split(tosses, generator=generator)
    assert tosses.mean(dim=2).var() > 0.002
    assert parts.set + parts.order < 0.2 * parts.residual


def test_the_chosen_of_equally_good_sets_looks_better_where_it_was_chosen(random, generator):
    icl, ft = ((random(20, 100) > -0.5).double() for _ in range(2))
    result = chosen_gap(icl, ft, "first", generator=generator)
    assert result.gap[0] - result.gap[1] > 0.03


def test_the_range_over_orders_grows_with_their_number(random):
    spread = {}
    for orders in (2, 10):
        accuracy = (random(200, orders, 100) > 0).double().mean(dim=2)
        spread[orders] = (accuracy.amax(dim=1) - accuracy.amin(dim=1)).mean()
    assert spread[10] > 2 * spread[2]


def test_content_free_texts_that_are_not_neutral_spoil_contextual_calibration():
    answers = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]).log()
    content_free = torch.tensor([[0.8, 0.2]]).log()
    assert answers.argmax(dim=1).tolist() == [0, 0, 1]
    assert contextual_calibration(answers, content_free).argmax(dim=1).tolist() == [1, 1, 1]


def test_the_best_of_36_coins_looks_better_than_it_is(random):
    coins = (random(36, 100) > 0).double().mean(dim=1)
    again = (random(36, 100) > 0).double().mean(dim=1)
    assert coins.max() - again[coins.argmax()] > 0.05


def test_a_linear_fold_is_exact_for_one_text_without_softmax_only(random):
    q, keys, values = random(40, 5), random(6, 5), random(6, 5)
    own_keys, own_values = random(8, 5), random(8, 5)
    change = linear_attention(values, keys, q)
    assert explained(q, change) > 0.999
    assert explained(linear_attention(own_values, own_keys, q), change) > 0.999
    assert explained(linear_attention(random(40, 8, 5), random(40, 8, 5), q), change) < 0.4

    def softmax_attention(values, keys):
        return torch.softmax(q @ keys.T, dim=-1) @ values

    alone = softmax_attention(own_values, own_keys)
    prompted = softmax_attention(torch.cat([values, own_values]), torch.cat([keys, own_keys]))
    assert explained(q, prompted - alone) < 0.9
    assert explained(alone, prompted - alone) < 0.9


def test_cross_validation_of_the_ridge_penalises_dependent_rows_too_little(random):
    def strength(inputs, outputs):
        equations = NormalEquations(inputs.shape[1], outputs.shape[1])
        equations.add(inputs, outputs)
        return equations.cross_validated().strength

    inputs = random(60, 20)
    outputs = inputs @ random(20, 10) + 6 * random(60, 10)
    assert strength(inputs.repeat(10, 1), outputs.repeat(10, 1)) < 0.2 * strength(inputs, outputs)


def test_a_rank_one_update_is_right_for_its_own_input_only(random):
    weight, a, other, delta = random(5, 7), random(7), random(7), random(7)
    changed = weight + rank_one_update(weight, a, delta)
    assert torch.allclose(changed @ a, weight @ (a + delta), atol=1e-4)
    assert (changed @ other - weight @ (other + delta)).norm() > 0.5 * (weight @ delta).norm()


def test_the_whole_gain_can_be_recovered_with_half_of_the_answers_different():
    zsl = torch.tensor([False, False, True, True])
    icl = torch.tensor([True, False, True, True])
    fold = torch.tensor([False, True, True, True])
    assert (fold.sum() - zsl.sum()) / (icl.sum() - zsl.sum()) == 1
    assert (fold == icl).float().mean() == 0.5


def test_a_prompt_whose_keys_are_kept_takes_far_longer_to_beat():
    measured = {"adapt_seconds": 0, "query_seconds": 0}
    prompt = Cost(**measured, tokens=1000, adapt_flops=900, flops=1000, kept_flops=110)
    fold = Cost(**measured, tokens=100, adapt_flops=50_000, flops=100, kept_flops=100)
    assert round(break_even(fold, prompt, cached=False) or 0) == 56
    assert break_even(fold, prompt, cached=True) == 4910


def test_perplexity_can_stay_while_one_text_is_lost_and_another_gained():
    before = torch.tensor([[300.0, 100.0], [300.0, 100.0]])  # nats and tokens of two texts
    after = torch.tensor([[200.0, 100.0], [400.0, 100.0]])
    assert perplexity(after) / perplexity(before) == 1


def test_perplexity_depends_on_the_tokenizer():
    assert round(perplexity(torch.tensor([[800.0, 200.0]]))) == 55
    assert round(perplexity(torch.tensor([[800.0, 400.0]]))) == 7


def test_without_softmax_the_sum_of_two_folds_is_the_prompt_of_both(random):
    first, second = ((random(6, 5), random(6, 5)) for _ in range(2))
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    added = outer_product_update(*first) + outer_product_update(*second)
    assert torch.allclose(outer_product_update(*both), added, atol=1e-4)


def test_heavy_ball_is_no_linear_attention_for_a_squared_error(random):
    q, k, v = (random(1, 1, 200, 8).double() for _ in range(3))
    k = 0.3 * k
    weights = torch.zeros(8, 8, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weights], lr=1, momentum=0.3)
    for key, value in zip(k[0, 0], v[0, 0], strict=True):
        sgd.zero_grad()
        ((weights @ key - value).square().sum() / 2).backward()
        sgd.step()
    squared = weights.detach() @ q[0, 0, -1]
    heavy_ball = momentum_linear_attention(q, k, v, 0.3)[0, 0, -1]
    assert (squared - heavy_ball).norm() > 0.5 * heavy_ball.norm()


def test_three_values_hold_nearly_all_of_a_small_momentum(random):
    v = random(1, 1, 200, 8).double()
    m = momentum_naive(v, 0.3).term
    three = sum(0.3**lag * torch.nn.functional.pad(v, (0, 0, lag, 0))[:, :, :200] for lag in (1, 2, 3))
    assert (three - m).norm() < 0.05 * m.norm()


def test_after_a_long_text_heavy_ball_is_scaled_linear_attention(random):
    q, k, v = (random(1, 1, 200, 8).double() for _ in range(3))
    heavy_ball, plain = (momentum_linear_attention(q, k, v, eta) for eta in (0.3, 0.0))
    assert torch.cosine_similarity(heavy_ball, plain, dim=-1)[..., 100:].min() > 0.98


def test_the_logarithm_of_an_error_near_0_depends_on_nothing_anyone_would_notice():
    errors = torch.tensor([[0.5, 0.1, 1e-6], [0.5, 0.1, 1e-8]])
    assert (errors[0] - errors[1]).abs().max() < 1e-5
    assert errors.log().mean(dim=1).diff() < -1.5


def test_three_steps_of_heavy_ball_gain_more_with_a_small_condition_number():
    gains = {}
    for condition in (1.0, 100.0):
        tasks = RegressionTasks(5, 16, condition=condition)
        # Of a few hundred sequences the gain depends on which they are.
        one = tasks.draw(4096, torch.Generator().manual_seed(0), torch.float64)
        last = []
        for momenta in ((0.0,), (0.0, 0.3, 0.5, 0.7, 0.9)):
            tried = [
                Descent(3, rate, momentum) for momentum in momenta for rate in torch.logspace(-2, 0.5, 16).tolist()
            ]
            best = best_of(tried, one.x, one.y, one.y)
            last.append(float(errors_by_point(by_point(best, one.x, one.y), one.y)[-1]))
        gains[condition] = 1 - last[1] / last[0]
    assert gains[1.0] > gains[100.0] > 0


def test_the_constructed_layer_is_no_other_step(random):
    x, query = random(8, 10, 3).double(), random(8, 2, 3).double()
    y = x @ random(8, 3, 1).double()
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    step = query @ (0.5 / 10 * x.mT @ y)  # one step from zero, by hand

    def distance(rate, targets):
        return (descend_by_layers([gd_layer(nothing, rate, 10)], x, targets, query) - step).abs().max()

    assert distance(0.5, y) < 1e-12
    assert distance(0.6, y) > 0.01
    assert distance(0.5, y.flip(1)) > 0.01
    assert ((query @ x.mT).softmax(-1) @ y - step).abs().max() > 0.01


def test_bayes_is_ridge_at_the_noise_and_mesa_layers_are_ridge_regression(random):
    x, queries = random(50, 6, 4).double(), random(50, 3, 4).double()
    w = random(50, 4).double()
    y = (x @ w[..., None])[..., 0] + 0.5 * random(50, 6).double()
    bayes = Bayes(noise=0.5, weight_scale=1.0)
    assert spd(bayes, Ridge(0.25), x, y, queries) < 1e-20
    assert spd(bayes, LeastSquares(), x, y, queries) > 0.01
    # What a layer reads at a point includes that point's y, so it is read with the next query.
    k, v, q = x[:, None, :-1], y[:, None, :-1, None], x[:, None, 1:]
    read = fast_weights("mesa", q, k, v, ridge=0.25).output[:, 0, :, 0]
    assert (read - by_point(Ridge(0.25), x, y)[:, 1:]).abs().max() < 1e-10
    assert (read - by_point(Ridge(0.5), x, y)[:, 1:]).abs().max() > 0.01

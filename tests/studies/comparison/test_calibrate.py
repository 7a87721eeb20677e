"""A score on the scale of its controls: 0 is the floor, 1 the ceiling, and what is uncertain says so."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from dualform.ops.permutation import sign_flip_p
from dualform.result import Calibrated
from dualform.studies.comparison.calibrate import TotalsRatio, calibrate, layers_above
from tests.studies.known_controls import CEILINGS, FLOORS

N_SEEDS, N_QUERIES = 3, 40


def around(mean: float, seed: int = 0, spread: float = 0.1, n_seeds: int = N_SEEDS) -> Tensor:
    """Numbers `(seed, example)` that scatter around a mean, and have exactly that one."""
    generator = torch.Generator().manual_seed(seed)
    values = spread * torch.randn(n_seeds, N_QUERIES, generator=generator, dtype=torch.float64)
    return values - values.mean() + mean


def shares(**means: float | Tensor) -> dict[str, TotalsRatio]:
    return {
        name: TotalsRatio.of_mean(mean if isinstance(mean, Tensor) else around(mean, i + 1))
        for i, (name, mean) in enumerate(means.items())
    }


def calibrated(score: float | Tensor, controls: Mapping[str, TotalsRatio], n_resamples: int = 200) -> Calibrated:
    values = score if isinstance(score, Tensor) else around(score)
    result = calibrate(TotalsRatio.of_mean(values), controls, n_resamples)
    assert result is not None
    return result


def test_a_score_at_the_floor_is_0_and_one_at_the_ceiling_is_1() -> None:
    controls = shares(random=0.1, icl_order=0.7, ft_order=0.7)

    assert calibrated(0.1, controls).mean == pytest.approx(0, abs=1e-9)
    assert calibrated(0.7, controls).mean == pytest.approx(1, abs=1e-9)
    assert calibrated(0.4, controls).mean == pytest.approx(0.5, abs=1e-9)
    # Below the floor is below 0: what nothing scores must not pass for something.
    assert calibrated(0.0, controls).mean == pytest.approx(-1 / 6, abs=1e-9)


def test_the_ceiling_is_the_geometric_mean_of_both() -> None:
    result = calibrated(0.6, shares(random=0.0, icl_order=0.9, ft_order=0.4))

    assert result.ceiling == pytest.approx(math.sqrt(0.9 * 0.4), abs=1e-9)
    assert result.mean == pytest.approx(1, abs=1e-9)
    assert calibrated(0.6, shares(random=0.0, icl_order=0.9)).ceiling == pytest.approx(0.9, abs=1e-9)


def test_two_noisy_measurements_of_one_thing_reach_the_ceiling_and_no_more() -> None:
    # Spearman's: each side is one hidden direction and noise of its own; under another order, other noise.
    generator = torch.Generator().manual_seed(0)
    n, d = 400, 200
    hidden = torch.randn(1, n, d, generator=generator, dtype=torch.float64)

    def measured(noise: float) -> Tensor:
        return hidden + noise * torch.randn(1, n, d, generator=generator, dtype=torch.float64)

    icl, icl_again, ft, ft_again = (measured(noise) for noise in (0.5, 0.5, 2.0, 2.0))
    random = torch.randn(1, n, d, generator=generator, dtype=torch.float64)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return torch.cosine_similarity(a, b, dim=-1)

    controls = shares(random=cosine(icl, random), icl_order=cosine(icl, icl_again), ft_order=cosine(ft, ft_again))
    result = calibrated(cosine(icl, ft), controls)

    assert result.mean == pytest.approx(1, abs=0.03)
    assert result.score is not None
    # The raw score of the same thing twice is far from 1.
    assert result.score < 0.5
    other = torch.randn(1, n, d, generator=generator, dtype=torch.float64)
    assert calibrated(cosine(icl, hidden + 3 * other), controls).mean != pytest.approx(1, abs=0.03)


def test_the_floor_is_the_highest_of_those_in_which_nothing_is_learned() -> None:
    controls = shares(random=0.0, position_shift=0.3, shuffled_labels=0.2, icl_order=0.8, ft_order=0.8)

    result = calibrated(0.4, controls)

    assert (result.control, result.floor) == ("position_shift", pytest.approx(0.3, abs=1e-9))
    assert result.mean == pytest.approx(0.2, abs=1e-9)
    assert result.score == pytest.approx(0.4, abs=1e-9)
    assert set(result.by_control) == {"random", "shuffled_labels"}
    assert result.by_control["random"].mean == pytest.approx(0.5, abs=1e-9)
    assert result.by_control["shuffled_labels"].mean == pytest.approx(1 / 3, abs=1e-9)


def test_a_control_in_which_something_is_learned_is_no_floor_however_high() -> None:
    # These learn from the same demonstrations, or from others of the same task: they may well score as FT does.
    for name in ("batch", "mlp", "lcgd", "value_one_layer", "other_demonstrations", "batch_sequential"):
        assert name not in FLOORS
        result = calibrated(0.4, shares(**{"random": 0.1, name: 0.6, "icl_order": 0.8, "ft_order": 0.8}))
        assert result.control == "random"
        # FT beside FT says nothing of ICL, not even in passing.
        assert set(result.by_control) == {name} - {"batch_sequential"}
    assert not set(FLOORS) & set(CEILINGS)


@pytest.mark.parametrize(
    "controls",
    [{}, {"random": 0.1}, {"icl_order": 0.8, "ft_order": 0.8}, {"mlp": 0.3, "icl_order": 0.8}],
)
def test_without_a_floor_or_without_a_ceiling_there_is_no_scale(controls: dict[str, float]) -> None:
    assert calibrate(TotalsRatio.of_mean(around(0.5)), shares(**controls), 50) is None


def test_a_ceiling_that_is_not_above_the_floor_gives_only_its_parts() -> None:
    result = calibrated(0.4, shares(random=0.6, icl_order=0.5, ft_order=0.5))

    assert (result.mean, result.ci95) == (None, (None, None))
    assert (result.score, result.floor, result.ceiling) == (
        pytest.approx(0.4), pytest.approx(0.6), pytest.approx(0.5),
    )  # fmt: skip


@pytest.mark.parametrize("floor", [-0.1, 0.1])
def test_negative_ceilings_count_as_zero(floor: float) -> None:
    # Two of them must not multiply to a positive one, and what is cut to zero is no room above a floor below it.
    result = calibrated(0.4, shares(random=floor, icl_order=-0.5, ft_order=-0.5))

    assert (result.mean, result.ceiling) == (None, 0.0)


# Missing numbers.


def test_all_parts_are_taken_over_the_same_pairs() -> None:
    # Controls are read on some queries only; on the others the score is much higher.
    score, random, order = around(0.4), around(0.1, 1), around(0.8, 2)
    few = torch.zeros(N_SEEDS, N_QUERIES, dtype=torch.bool)
    few[:, :10] = True
    score[~few] += 100
    read = [values.masked_fill(~few, torch.nan) for values in (random, order)]

    result = calibrated(score, shares(random=read[0], icl_order=read[1], ft_order=read[1]))

    expected = (score[few].mean() - random[few].mean()) / (order[few].mean() - random[few].mean())
    assert result.mean == pytest.approx(float(expected))
    assert result.score == pytest.approx(float(score[few].mean()))
    assert result.n == N_SEEDS * 10


def test_a_pair_without_a_score_is_left_out_of_all() -> None:
    score = around(0.4)
    score[0, 0] = torch.nan
    score[1, 1] = torch.inf
    random = around(0.1, 1)
    random[0, 0] = 1e6

    result = calibrated(score, shares(random=random, icl_order=0.8, ft_order=0.8))

    assert result.n == N_SEEDS * N_QUERIES - 2
    assert result.floor is not None
    assert result.floor < 1


@pytest.mark.parametrize("there", [0, 1])
def test_fewer_than_two_pairs_are_no_scale(there: int) -> None:
    score = torch.full((N_SEEDS, N_QUERIES), torch.nan, dtype=torch.float64)
    score.view(-1)[:there] = 0.5

    assert calibrate(TotalsRatio.of_mean(score), shares(random=0.1, icl_order=0.8), 50) is None


def test_a_control_without_any_number_takes_nothing_from_the_others() -> None:
    # W_V of the last layer alone does not change attention: that control has no sim_am_delta anywhere.
    nothing = torch.full((N_SEEDS, N_QUERIES), torch.nan, dtype=torch.float64)
    controls = shares(random=0.1, icl_order=0.7, ft_order=0.7)

    result = calibrate(TotalsRatio.of_mean(around(0.4)), controls | shares(value_one_layer=nothing), 200)

    assert result is not None
    assert result.mean == pytest.approx(0.5, abs=1e-9)
    assert result.n == N_SEEDS * N_QUERIES


def test_layers_and_heads_are_averaged_first_and_gaps_left_out() -> None:
    values = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, 0, 0] = torch.nan
    values[1, 1] = torch.nan
    result = TotalsRatio.of_mean(values)

    for seed in range(2):
        for query in range(5):
            rows = [float(x) for x in values[seed, query].flatten() if x == x]
            if rows:
                assert float(result.numerator[seed, query]) == pytest.approx(sum(rows) / len(rows))
            else:
                assert math.isnan(float(result.numerator[seed, query]))
    assert (result.denominator == 1).all()
    assert TotalsRatio.of_mean(around(0.5)).numerator.shape == (N_SEEDS, N_QUERIES)


# Several floors, few seeds.


def made_up(n_seeds: int, n_floors: int, generator: torch.Generator) -> tuple[TotalsRatio, dict[str, TotalsRatio]]:
    """A score of .3 between floors of .1, all the same in truth, and ceilings of .8: the true value is .2 / .7."""

    def drawn(mean: float) -> TotalsRatio:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        effects = 0.05 * normal(n_seeds, 1) + 0.3 * normal(1, 100) + 0.2 * normal(n_seeds, 100)
        return TotalsRatio.of_mean(mean + effects)

    floors = {name: drawn(0.1) for name in FLOORS[:n_floors]}
    return drawn(0.3), floors | {name: drawn(0.8) for name in CEILINGS}


def test_intervals_hold_the_true_value_as_often_as_they_say_and_half_of_the_bias_of_the_highest_floor_is_gone() -> None:
    generator = torch.Generator().manual_seed(1)
    held = dict.fromkeys([(3, 1), (5, 8)], 0)
    corrected, uncorrected = [], []
    n = 50
    for case in held:
        for _ in range(n):
            score, controls = made_up(*case, generator)
            result = calibrate(score, controls, 100)
            assert result is not None
            low, high = result.ci95
            assert low is not None
            assert high is not None
            held[case] += low <= 0.2 / 0.7 <= high
            if case == (5, 8):
                assert result.mean is not None
                assert result.score is not None
                assert result.floor is not None
                assert result.ceiling is not None
                corrected.append(result.mean - 0.2 / 0.7)
                uncorrected.append((result.score - result.floor) / (result.ceiling - result.floor) - 0.2 / 0.7)
    # 95 % less three standard errors; plain percentiles over three seeds hold it in 84 to 87 %.
    assert all(times >= n * (0.95 - 3 * (0.95 * 0.05 / n) ** 0.5) for times in held.values())
    assert sum(uncorrected) / n < -0.04
    assert sum(corrected) / n > 0.75 * sum(uncorrected) / n


def test_the_value_is_made_of_its_parts_as_documented() -> None:
    score, controls = made_up(3, 5, torch.Generator().manual_seed(2))
    result = calibrate(score, controls, 100)

    assert result is not None
    assert result.mean is not None
    assert result.score is not None
    assert result.floor is not None
    assert result.floor_bias is not None
    assert result.ceiling is not None
    assert result.floor_bias > 0
    floor = result.floor - result.floor_bias
    assert result.mean == pytest.approx((result.score - floor) / (result.ceiling - floor))


def test_a_floor_that_is_the_highest_beyond_doubt_has_no_bias() -> None:
    assert calibrated(0.4, shares(random=0.0, position_shift=0.3, icl_order=0.8)).floor_bias == 0
    assert calibrated(0.4, shares(random=0.0, icl_order=0.8)).floor_bias == 0


def test_one_seed_has_a_value_and_no_interval() -> None:
    controls = {
        name: TotalsRatio.of_mean(around(mean, n_seeds=1)) for name, mean in (("random", 0.1), ("icl_order", 0.7))
    }

    result = calibrated(around(0.4, n_seeds=1), controls)

    assert result.mean == pytest.approx(0.5)
    assert result.ci95 == (None, None)


# Ratios.


def fixed(share: float, of: int, seed: int) -> TotalsRatio:
    """Rec2FTP-like: `of` queries below the line in each seed, a share of them above it."""
    generator = torch.Generator().manual_seed(seed)
    below = torch.zeros(N_SEEDS, N_QUERIES, dtype=torch.float64)
    below[:, torch.randperm(N_QUERIES, generator=generator)[:of]] = 1
    above = torch.zeros_like(below)
    for row in range(N_SEEDS):
        above[row, below[row].nonzero().flatten()[: round(share * of)]] = 1
    return TotalsRatio(above, below)


def test_a_ratio_is_one_of_totals_not_a_mean_of_ratios() -> None:
    controls = {"chance": fixed(0.5, 10, 1), "icl_order": fixed(1.0, 20, 2), "ft_order": fixed(0.81, 16, 3)}

    result = calibrate(fixed(0.75, 8, 4), controls, 200)

    assert result is not None
    ceiling = math.sqrt(1.0 * 13 / 16)
    assert (result.score, result.floor, result.ceiling) == (
        pytest.approx(0.75), pytest.approx(0.5), pytest.approx(ceiling),
    )  # fmt: skip
    assert result.mean == pytest.approx(0.25 / (ceiling - 0.5))
    assert result.control == "chance"


def test_a_control_with_denominator_0_is_no_floor() -> None:
    nothing = TotalsRatio(torch.zeros(N_SEEDS, N_QUERIES), torch.zeros(N_SEEDS, N_QUERIES))
    others = {"icl_order": fixed(1.0, 20, 2), "ft_order": fixed(1.0, 16, 3)}

    result = calibrate(fixed(0.75, 8, 4), {"random_update": nothing, "chance": fixed(0.5, 10, 1)} | others, 200)

    assert result is not None
    assert (result.control, result.floor) == ("chance", 0.5)
    # Asked for by name, it has no number.
    assert result.by_control["random_update"].mean is None
    assert calibrate(fixed(0.75, 8, 4), {"random_update": nothing} | others, 200) is None


def test_a_ceiling_with_denominator_0_gives_no_number() -> None:
    nothing = TotalsRatio(torch.zeros(N_SEEDS, N_QUERIES), torch.zeros(N_SEEDS, N_QUERIES))

    result = calibrate(
        fixed(0.75, 8, 4), {"chance": fixed(0.5, 10, 1), "icl_order": nothing, "ft_order": fixed(1.0, 9, 3)}, 200
    )

    assert result is not None
    assert (result.mean, result.ceiling) == (None, None)


# Uncertainty.


def trial(number: int, n_queries: int = 60, n_seeds: int = 12) -> dict[str, Tensor]:
    """Score 0.4, floor 0.1, ceiling 0.8 on average: the truth is 3 / 7."""
    generator = torch.Generator().manual_seed(number)

    def drawn(mean: float) -> Tensor:
        of_query = 0.15 * torch.randn(1, n_queries, generator=generator, dtype=torch.float64)
        of_seed = 0.03 * torch.randn(n_seeds, 1, generator=generator, dtype=torch.float64)
        return (
            mean + of_query + of_seed + 0.02 * torch.randn(n_seeds, n_queries, generator=generator, dtype=torch.float64)
        )

    return {"score": drawn(0.4), "random": drawn(0.1), "icl_order": drawn(0.8), "ft_order": drawn(0.8)}


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    n, held = 120, 0
    for number in range(n):
        parts = trial(number)
        controls = {name: TotalsRatio.of_mean(values) for name, values in parts.items() if name != "score"}
        result = calibrate(TotalsRatio.of_mean(parts["score"]), controls, 200)
        assert result is not None
        low, high = result.ci95
        assert low is not None
        assert high is not None
        assert low < (result.mean or 0) < high
        held += low <= 3 / 7 <= high

    # 95 % with a standard error of 2 %; percentiles of few queries are a little narrow.
    assert 0.86 <= held / n <= 0.995


def test_the_smallest_detectable_difference_is_that_of_score_minus_floor() -> None:
    score, random = around(0.4, 0, n_seeds=1), around(0.1, 1, n_seeds=1)
    result = calibrated(score, shares(random=random, icl_order=around(0.8, 2, n_seeds=1)), n_resamples=2000)
    error = float((score - random).std()) / math.sqrt(N_QUERIES)

    # 1.96 + 0.84 standard errors; one seed, so that queries are all that is resampled.
    assert result.minimum_detectable == pytest.approx(2.8 * error, rel=0.1)


def test_the_same_numbers_give_the_same_interval() -> None:
    controls = shares(random=0.1, icl_order=0.7, ft_order=0.7)

    assert calibrated(0.4, controls) == calibrated(0.4, controls)


# Layer by layer.


def by_layer(n_layers: int, seed: int, planted: int | None = None, size: float = 0.2) -> tuple[Tensor, Tensor]:
    """Score and floor of the same queries, `(seed, example, layer)`, alike but for one layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (N_SEEDS, N_QUERIES, n_layers)
    score, floor = (0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if planted is not None:
        score[..., planted] += size
    return score, floor


def test_a_planted_layer_is_found_and_no_other() -> None:
    result = layers_above(*by_layer(8, seed=0, planted=5))

    assert [layer for layer, q in enumerate(result) if q < 0.05] == [5]
    # What lies below its floor is not found.
    score, floor = by_layer(8, seed=0, planted=5)
    assert layers_above(floor, score)[5] > 0.9


def test_without_an_effect_a_false_discovery_is_made_at_most_as_often_as_it_says() -> None:
    n = 150
    adjusted = sum(min(layers_above(*by_layer(8, seed=100 + i))) < 0.05 for i in range(n))
    plain = sum(
        float(sign_flip_p((score - floor).mean(0), alternative="greater").min()) < 0.05
        for score, floor in (by_layer(8, seed=100 + i) for i in range(n))
    )

    # 5 % with a standard error of 1.8 %.
    assert adjusted / n <= 0.05 + 3 * 0.018
    # Eight layers looked at one by one: 1 - 0.95 ** 8 = 34 %.
    assert plain / n > 0.2


def test_seeds_are_no_units_of_their_own() -> None:
    score, floor = by_layer(3, seed=1)
    once = layers_above(score.mean(0, keepdim=True), floor.mean(0, keepdim=True))

    # The same seed many times over knows no more.
    assert layers_above(score, floor) == pytest.approx(once)
    assert layers_above(score.repeat(5, 1, 1), floor.repeat(5, 1, 1)) == pytest.approx(once)


def test_heads_are_averaged_and_layers_without_numbers_stay_without() -> None:
    score, floor = by_layer(4, seed=2, planted=1)
    spread = torch.randn(*score.shape, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread -= spread.mean(dim=-1, keepdim=True)
    score[..., 3] = torch.nan
    result = layers_above(score[..., None] + spread, floor[..., None].expand(spread.shape))

    assert result[:3] == pytest.approx(layers_above(score[..., :3], floor[..., :3]))
    assert math.isnan(result[3])


def test_queries_that_controls_did_not_read_are_left_out() -> None:
    score, floor = by_layer(3, seed=3, planted=0)
    floor[:, 20:] = torch.nan

    # Other random flips, the same test.
    assert layers_above(score, floor) == pytest.approx(layers_above(score[:, :20], floor[:, :20]), abs=0.01)

import pytest
import torch

from dualform.errors import ConfigError, ShapeError
from dualform.ops.choosing import chosen_gap


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(n_sets: int, n_queries: int, level: float, seed: int, by_set: float = 0.0) -> torch.Tensor:
    """Right or wrong at random, each set with a level of its own."""
    drawn = generator(seed)
    levels = level + by_set * torch.randn(n_sets, 1, generator=drawn)
    return (torch.rand(n_sets, n_queries, generator=drawn) < levels).double()


def naive(first: torch.Tensor, second: torch.Tensor, chooser: str, n: int, seed: int) -> tuple[float, float]:
    """Gap on the choosing half and on the other, one split at a time."""
    drawn = generator(seed)
    halves = torch.rand(n, first.shape[1], generator=drawn).argsort(dim=1) < first.shape[1] // 2
    gaps = []
    for half in halves:
        scores = []
        for a, b in zip(first, second, strict=True):
            on = {"first": a[half].sum(), "second": b[half].sum(), "both": a[half].sum() + b[half].sum()}
            scores.append(float(on[chooser]))
        best = scores.index(max(scores))
        gaps.append([float(first[best][side].mean() - second[best][side].mean()) for side in (half, ~half)])
    here, there = torch.tensor(gaps).mean(dim=0).tolist()
    return here, there


@pytest.mark.parametrize("chooser", ["first", "second", "both"])
def test_the_gap_is_that_of_a_loop_over_splits(chooser):
    first, second = answers(6, 31, 0.7, 1, 0.1), answers(6, 31, 0.6, 2, 0.1)
    found = chosen_gap(first, second, chooser, n_resamples=40, generator=generator(5))
    assert found.gap == pytest.approx(naive(first, second, chooser, 40, 5), abs=1e-6)
    assert found.gap[0] == pytest.approx(found.first[0] - found.second[0])


def test_choosing_among_equal_sets_flatters_the_chooser_where_it_chose_and_nowhere_else():
    first, second = answers(20, 200, 0.7, 1), answers(20, 200, 0.7, 2)
    fair = chosen_gap(first, second, "none", generator=generator()).gap
    here, there = chosen_gap(first, second, "first", generator=generator()).gap
    assert here - fair[0] > 0.04
    assert abs(there - fair[1]) < 0.03


def test_sets_that_really_differ_are_better_on_other_queries_too():
    first, second = answers(20, 200, 0.7, 1, by_set=0.15), answers(20, 200, 0.7, 2)
    fair = chosen_gap(first, second, "none", generator=generator()).gap
    assert chosen_gap(first, second, "first", generator=generator()).gap[1] - fair[1] > 0.1


def test_choosing_for_the_second_flatters_the_second():
    first, second = answers(20, 100, 0.7, 1), answers(20, 100, 0.7, 2)
    assert chosen_gap(first, second, "second", generator=generator()).gap[0] < -0.04
    both = chosen_gap(first, second, "both", generator=generator())
    assert both.first[0] > both.first[1]
    assert both.second[0] > both.second[1]


def test_the_interval_holds_the_mean_and_without_choice_both_halves_agree():
    first, second = answers(10, 100, 0.8, 1, 0.1), answers(10, 100, 0.6, 2, 0.1)
    found = chosen_gap(first, second, "none", generator=generator())
    assert found.gap[0] == pytest.approx(found.gap[1], abs=0.01)
    for gap, (low, high) in zip(found.gap, found.gap_ci95, strict=True):
        assert low < gap < high


def test_one_set_leaves_nothing_to_choose():
    first, second = answers(1, 40, 0.8, 1), answers(1, 40, 0.6, 2)
    results = [chosen_gap(first, second, name, generator=generator()).gap for name in ("none", "first", "both")]
    assert results[0] == pytest.approx(results[1])
    assert results[0] == pytest.approx(results[2])


def test_mistakes_are_named():
    right = answers(2, 4, 0.5, 1)
    with pytest.raises(ConfigError, match="'icl'"):
        chosen_gap(right, right, "icl", generator=generator())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_resamples is 0"):
        chosen_gap(right, right, "both", n_resamples=0, generator=generator())
    with pytest.raises(ShapeError, match=r"\(2, 1\)"):
        chosen_gap(right[:, :1], right[:, :1], "both", generator=generator())

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from dualform.result import Cost
from dualform.studies.against import against_icl, break_even, expected_agreement, kappa, recovered
from dualform.studies.statistics import Statistics

STATS = Statistics(200, ("1", "2"))


def cost(adapt, flops, kept):
    return Cost(adapt_seconds=0.0, query_seconds=0.0, tokens=1.0, flops=flops, adapt_flops=adapt, kept_flops=kept)


def bits(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_share_of_the_gain_is_a_ratio_of_totals():
    zsl, icl = bits([0, 0, 1, 1], [0, 0, 1, 1]), bits([1, 1, 1, 1], [1, 1, 1, 0])
    assert recovered(icl, zsl, icl, STATS).mean == 1.0
    assert recovered(zsl, zsl, icl, STATS).mean == 0.0
    half = recovered(bits([1, 0, 1, 1], [1, 0, 1, 1]), zsl, icl, STATS)
    assert half.mean == pytest.approx(2 / 3)
    assert half.n == 8
    # Worse than zero-shot is less than nothing.
    assert recovered(bits([0, 0, 0, 1], [0, 0, 1, 1]), zsl, icl, STATS).mean == pytest.approx(-1 / 3)


def test_chance_is_what_the_shares_of_answers_alone_give():
    first = torch.tensor([[0, 0, 0, 1, 1, 2, 0, 0], [1, 1, 1, 1, 0, 0, 2, 2]])
    second = torch.tensor([[0, 0, 1, 1, 0, 2, 0, 0], [1, 1, 0, 1, 1, 0, 2, 0]])
    # scikit-learn's kappa, seed by seed, has the same expected agreement.
    for a, b in zip(first, second, strict=True):
        agreement = float((a == b).double().mean())
        expected = expected_agreement(a[None], b[None])
        assert (agreement - expected) / (1 - expected) == pytest.approx(cohen_kappa_score(a, b))
        assert kappa(a[None], b[None]) == pytest.approx(cohen_kappa_score(a, b))
    each = [expected_agreement(a[None], b[None]) for a, b in zip(first, second, strict=True)]
    assert expected_agreement(first, second) == pytest.approx(sum(each) / 2)


def test_two_that_always_give_the_same_answer_agree_by_chance_and_have_no_kappa():
    always = torch.zeros(1, 5, dtype=torch.long)
    assert expected_agreement(always, always) == 1
    assert kappa(always, always) is None


def test_there_is_no_share_of_a_gain_that_is_not_there():
    zsl, icl = bits([1, 1, 1, 0]), bits([0, 1, 0, 0])
    share = recovered(zsl, zsl, icl, STATS)
    assert (share.mean, share.ci95, share.n) == (None, (None, None), 4)


def test_a_gain_that_other_queries_may_not_show_has_a_share_without_an_interval():
    generator = torch.Generator().manual_seed(0)
    zsl = (torch.rand(2, 50, generator=generator) < 0.5).double()
    icl = zsl.clone()
    icl[:, 0] = 1 - icl[:, 0]
    icl[:, 1:3] = 1
    unsure = recovered(icl, zsl, icl, STATS)
    assert unsure.mean == 1.0
    assert unsure.ci95 == (None, None)
    sure = recovered(icl, torch.zeros(2, 50, dtype=torch.float64), icl, STATS)
    assert sure.ci95 == (1.0, 1.0)


def test_break_even_is_where_two_lines_cross():
    fold, icl = cost(1000.0, 10.0, 10.0), cost(200.0, 60.0, 15.0)
    assert break_even(fold, icl, cached=False) == 1000 / 50
    assert break_even(fold, icl, cached=True) == (1000 - 200) / 5
    # By counting: one query earlier it has cost more, one later less.
    for n, costs_more in ((19, True), (21, False)):
        assert (1000 + 10 * n > 60 * n) is costs_more
    for n, costs_more in ((159, True), (161, False)):
        assert (1000 + 10 * n > 200 + 15 * n) is costs_more


def test_what_costs_as_much_a_query_is_never_cheaper_and_what_starts_for_nothing_always_is():
    icl = cost(200.0, 60.0, 15.0)
    assert break_even(cost(0.0, 60.0, 15.0), icl, cached=False) is None
    assert break_even(cost(0.0, 10.0, 10.0), icl, cached=True) == 0.0
    assert break_even(cost(None, 10.0, 10.0), icl, cached=True) is None


def test_every_learner_but_icl_stands_beside_it():
    generator = torch.Generator().manual_seed(0)
    tables = {name: torch.randn(2, 30, 3, generator=generator) for name in ("zsl", "icl", "fold")}
    tables["fold"][:, :20] = tables["icl"][:, :20]
    labels = tables["icl"][0].argmax(1)
    costs = {name: cost(10.0, 10.0 if name != "icl" else 50.0, 10.0) for name in tables}
    comparisons = against_icl(tables, labels, costs, STATS)
    assert list(comparisons) == ["zsl", "fold"]
    same = (tables["fold"].argmax(2) == tables["icl"].argmax(2)).double().mean()
    assert comparisons["fold"].agreement.mean == pytest.approx(float(same))
    assert comparisons["fold"].break_even == 10 / 40
    assert comparisons["fold"].break_even_kept is None
    assert against_icl({"zsl": tables["zsl"]}, labels, costs, STATS) == {}

"""Every learner compared with in-context learning (ICL): agreement, recovered gain and break-even.

Agreement is the share of queries that both answer in the same way, the recovered gain the share of ICL's gain over
zero-shot that the learner reaches, and break-even the number of queries from which on the learner is cheaper.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dualform.result import FEWEST_FOR_INTERVAL, Cost, Estimate, PromptingComparison
from dualform.studies.statistics import Statistics


def against_icl(
    tables: Mapping[str, Tensor], labels: Tensor, costs: Mapping[str, Cost], stats: Statistics
) -> dict[str, PromptingComparison]:
    """Compare every other learner with ICL.

    Args:
        tables: Learner -> log-probabilities of answers, `(seed, example, answer)`.
        labels: Right answers, `(example,)`.
        costs: Learner -> its cost.
        stats: Computes means and intervals.

    Returns:
        Learner -> its comparison with ICL; empty unless zero-shot and ICL are among the learners.
    """
    if not {"zsl", "icl"} <= tables.keys():
        return {}
    answers = {name: table.argmax(dim=2) for name, table in tables.items()}
    right = {name: (answer == labels).double() for name, answer in answers.items()}
    return {
        name: PromptingComparison(
            agreement=stats.share((answers[name] == answers["icl"]).double()),
            expected=expected_agreement(answers[name], answers["icl"]),
            kappa=kappa(answers[name], answers["icl"]),
            recovered=recovered(right[name], right["zsl"], right["icl"], stats),
            gained=round(float((right["icl"] - right["zsl"]).sum())),
            break_even=break_even(costs[name], costs["icl"], cached=False),
            break_even_kept=break_even(costs[name], costs["icl"], cached=True),
        )
        for name in tables
        if name != "icl"
    }


def expected_agreement(first: Tensor, second: Tensor) -> float:
    """The agreement of two learners that answer independently, each with its own frequency of every answer.

    Args:
        first: Answers of one learner, `(seed, example)`.
        second: Answers of the other, of the same shape.

    Returns:
        In [0, 1]: for each seed, the sum over answers of the share of queries for which the first learner gives the
        answer times that of the second; then the mean over seeds.

    Source:
        Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    n = int(torch.maximum(first.max(), second.max())) + 1
    shares = [torch.nn.functional.one_hot(answers, n).double().mean(1) for answers in (first, second)]
    return float((shares[0] * shares[1]).sum(1).mean())


def kappa(first: Tensor, second: Tensor) -> float | None:
    """Cohen's kappa of two learners: their agreement beyond chance, divided by the largest possible one.

    Args:
        first: Answers of one learner, `(seed, example)`.
        second: Answers of the other, of the same shape.

    Returns:
        At most 1; 0 for the agreement expected by chance, see `expected_agreement`; None where that is already 1.
    """
    agreement, expected = float((first == second).double().mean()), expected_agreement(first, second)
    return None if expected >= 1 else (agreement - expected) / (1 - expected)


def recovered(right: Tensor, zsl: Tensor, icl: Tensor, stats: Statistics) -> Estimate:
    """Share of ICL's gain over zero-shot that a learner recovers.

    Args:
        right: 1 for a right answer of the learner, else 0, `(seed, example)`.
        zsl: The same for zero-shot.
        icl: The same for ICL.
        stats: Computes the interval.

    Returns:
        The learner's gain in right answers, divided by ICL's, over all seeds and queries; 1 for the same gain. The mean
        is None where ICL gained nothing. There is no interval where fewer than `FEWEST_FOR_INTERVAL` queries are
        answered correctly by only one of ICL and zero-shot, nor where the 95 % interval of ICL's gain reaches 0: the
        ratio has no meaning in bootstrap resamples without a gain, and an interval over the others alone would be
        biased.
    """
    columns = torch.stack([right - zsl, icl - zsl], dim=-1)
    totals = columns.flatten(0, 1).sum(0)
    n = columns.shape[0] * columns.shape[1]
    if totals[1] <= 0:
        return Estimate(mean=None, ci95=(None, None), n=n)
    if int((columns[..., 1] != 0).sum()) < FEWEST_FOR_INTERVAL:
        return Estimate(mean=float(totals[0] / totals[1]), ci95=(None, None), n=n)
    gain, _ = stats.interval_of(lambda totals: totals[..., 1], columns)
    ends = stats.interval_of(lambda totals: totals[..., 0] / totals[..., 1], columns) if gain > 0 else (None, None)
    return Estimate(mean=float(totals[0] / totals[1]), ci95=ends, n=n)


def break_even(learner: Cost, icl: Cost, *, cached: bool) -> float | None:
    """Number of queries after which a learner has taken fewer operations (FLOPs) than ICL.

    The search for a learning rate is not counted.

    Args:
        learner: Cost of the learner, which adapts once and then answers.
        icl: Cost of ICL.
        cached: True if ICL reads its demonstrations once and caches their keys and values; False if it reads them again
            with every query.

    Returns:
        0 where the learner is cheaper from the first query; None where it never becomes cheaper or a cost is not known.
    """
    query, icl_query = (cost.kept_flops if cached else cost.flops for cost in (learner, icl))
    start = learner.adapt_flops
    icl_start = icl.adapt_flops if cached else 0.0
    if query is None or icl_query is None or start is None or icl_start is None:
        return None
    if query >= icl_query:
        return None
    return max(0.0, (start - icl_start) / (icl_query - query))

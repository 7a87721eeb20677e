"""A measure on the scale of its own controls: what it says above nothing, as a part of what it can say at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from dualform.ops.bootstrap import clustered_bootstrap_of, clustered_resamples_of
from dualform.ops.permutation import adjusted_for_discoveries, sign_flip_p
from dualform.ops.power import minimum_detectable
from dualform.result import FEWEST_FOR_INTERVAL, Calibrated, Estimate
from dualform.studies.controls import facts_of, names_of_kind
from dualform.studies.measures import MEASURES

FEWEST_FIXED = FEWEST_FOR_INTERVAL
"""A control that put fewer answers right gives no Rec2FTP that a floor or ceiling could be made of."""


def floors_of(measure: str) -> tuple[str, ...]:
    """Controls that may be the floor of a measure."""
    facts = {name: facts_of(name) for name in names_of_kind("floor")}
    known = MEASURES.get(measure)
    changes = known is None or known.compares == "changes"
    return tuple(name for name, one in facts.items() if changes or one is None or one.moves_states)


@dataclass(frozen=True)
class TotalsRatio:
    """A measure as a ratio of totals over queries: a mean is one, and so is Rec2FTP."""

    numerator: Tensor
    """`(seed, example)`, NaN where there is no number."""
    denominator: Tensor
    """`(seed, example)`."""

    @classmethod
    def of_mean(cls, values: Tensor) -> "TotalsRatio":
        """Numbers by query, `(seed, example, ...)`; layers and heads are averaged first."""
        by_layer = values.nanmean(dim=3) if values.dim() > 3 else values
        overall = by_layer.nanmean(dim=2) if values.dim() > 2 else by_layer
        return cls(overall, torch.ones_like(overall))

    @property
    def columns(self) -> Tensor:
        """`(seed, example, 2)`."""
        return torch.stack([self.numerator, self.denominator], dim=-1)


def calibrate(
    score: TotalsRatio, controls: Mapping[str, TotalsRatio], n_resamples: int, floors: Sequence[str] | None = None
) -> Calibrated | None:
    """(score - floor) / (ceiling - floor), the floor being the highest of the controls that ought to score nothing.

    Args:
        score: The measure of ICL and FT.
        controls: The same measure of each control; those that are neither floors nor ceilings serve in `by_control`.
        n_resamples: Of the bootstrap.
        floors: Controls that may be the floor; all that are floors where not given.

    Returns:
        The calibrated value; None without a floor or without a ceiling. Its numbers are None where the ceiling does
        not lie above the floor, and its interval where the run is not sure (97.5 %) that it does: resamples without
        room have no value, and an interval over the others would speak of them alone. One seed has no interval either.

        How often the interval holds the true value, measured on normal effects of seed, query and pair with 100
        queries (see docs/measures.md): 93 to 99 % with three, five and ten seeds and one floor, 92 to 98 % with eight
        floors that truly score the same. There the estimate stays .03 to .06 too low, half of what choosing the
        highest costs.

    Source:
        dualform's own. The geometric mean of two reliabilities as the most that two noisy measurements of one thing
        can reach is Spearman's (The proof and measurement of association between two things, 1904).
    """
    # A control may have no such measure at all: W_V of the last layer alone changes no attention map.
    controls = {name: each for name, each in controls.items() if bool(each.columns.isfinite().all(-1).any())}
    ceilings = [name for name in names_of_kind("ceiling") if name in controls]
    floors = [name for name in (names_of_kind("floor") if floors is None else floors) if name in controls]
    if not ceilings or not floors:
        return None
    # One set of (seed, query) pairs for all of them, so that no part is measured on easier queries than another.
    there = torch.stack([each.columns for each in (score, *controls.values())]).isfinite().all(-1).all(0)
    if int(there.sum()) < 2:
        return None

    def value(each: TotalsRatio) -> float:
        return float(each.numerator[there].sum() / each.denominator[there].sum())

    values = {name: value(controls[name]) for name in floors}
    finite = {name: number for name, number in values.items() if number == number}
    if not finite:
        return None
    floor = max(finite, key=finite.__getitem__)
    kept = {name: _only(each, there) for name, each in controls.items()}
    ceiling_columns = [kept[name].columns for name in ceilings]
    score_columns = _only(score, there).columns
    # What compares one side with itself is no floor for anything.
    alike = [name for name in controls if (facts := facts_of(name)) is not None and facts.against_itself]
    others = [name for name in controls if name not in (*ceilings, *alike, floor)]
    bias = _bias_of_the_highest(
        [kept[name] for name in (floor, *(name for name in finite if name != floor))], n_resamples
    )

    def against(name: str, bias: float = 0.0) -> Estimate:
        columns = torch.cat([score_columns, kept[name].columns, *ceiling_columns], -1)
        mean = float(_scaled(columns[there].sum(0, keepdim=True), bias))
        sure = mean == mean and _interval(_room, columns, n_resamples)[0] > 0
        ends = _wide_interval(lambda totals: _scaled(totals, bias), columns, mean, n_resamples) if sure else None
        return Estimate(mean=mean, ci95=ends or (None, None), n=int(there.sum()))

    difference = torch.cat([score_columns, kept[floor].columns], -1)
    # Where score and floor differ by one and the same number everywhere, nothing shows how much they would vary.
    detectable = minimum_detectable(_interval(_difference, difference, n_resamples)) or None
    best = against(floor, bias)
    return Calibrated(
        **best.model_dump(),
        score=value(score),
        control=floor,
        floor=finite[floor],
        floor_bias=bias,
        ceiling=float(_ceiling(torch.cat(ceiling_columns, -1)[there].sum(0, keepdim=True))),
        minimum_detectable=detectable,
        by_control={name: against(name) for name in others},
    )


def layers_above(score: Tensor, floor: Tensor) -> list[float]:
    """For each layer, how surely the score lies above its floor, false discoveries over layers accounted for.

    Args:
        score: By query and layer, `(seed, example, layer)`, or with heads, which are averaged.
        floor: The control's likewise.

    Returns:
        Benjamini-Hochberg adjusted p-values of one-sided sign-flip tests over queries (means over seeds), one a layer;
        NaN where there are fewer than two queries with numbers.
    """
    score, floor = (side.nanmean(dim=3) if side.dim() > 3 else side for side in (score, floor))
    difference = score - floor
    found: list[float] = adjusted_for_discoveries(
        sign_flip_p(difference.nanmean(dim=0), alternative="greater")
    ).tolist()
    return found


def _only(shares: TotalsRatio, there: Tensor) -> TotalsRatio:
    return TotalsRatio(*(part.masked_fill(~there, torch.nan) for part in (shares.numerator, shares.denominator)))


def _interval(statistic: object, columns: Tensor, n_resamples: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    low, high = clustered_bootstrap_of(statistic, columns, n_resamples=n_resamples, generator=generator)  # type: ignore[arg-type]
    return float(low), float(high)


def _bias_of_the_highest(floors: Sequence[TotalsRatio], n_resamples: int) -> float:
    """How far the highest of several estimates is expected to lie above the truth for having been chosen.

    Args:
        floors: The highest one first. Each resample chooses anew; by how much its choice exceeds the first one, on
            average, is the bootstrap's estimate of the bias. It is 0 where the first one always wins.
        n_resamples: Of the bootstrap.
    """
    if len(floors) == 1:
        return 0.0

    def excess(totals: Tensor) -> Tensor:
        ratios = torch.stack(list(_ratios(totals)))
        return ratios.nan_to_num(-torch.inf).amax(dim=0) - ratios[0]

    columns = torch.cat([each.columns for each in floors], -1)
    generator = torch.Generator().manual_seed(0)
    found = clustered_resamples_of(excess, columns, n_resamples=n_resamples, generator=generator)
    return float(found[found.isfinite()].mean())


def _wide_interval(
    statistic: Callable[[Tensor], Tensor], columns: Tensor, mean: float, n_resamples: int
) -> tuple[float, float] | None:
    """A 95 % interval that allows for few demonstration seeds; None for one seed, which says nothing about others.

    Percentiles of few resampled seeds are too narrow twice over: resampling S seeds has (S - 1) / S of their variance,
    and that variance is itself an estimate with S - 1 degrees of freedom. The part of the variance that seeds
    contribute is therefore scaled to that of Student's interval; what queries contribute is left as it is.
    """
    n_seeds = int(columns.isfinite().all(-1).any(1).sum())
    if n_seeds < 2:
        return None
    both, of_seeds = (
        clustered_resamples_of(
            statistic, columns, n_resamples=n_resamples, generator=torch.Generator().manual_seed(0), examples=examples
        )
        for examples in (True, False)
    )
    both, of_seeds = (found[found.isfinite()] for found in (both, of_seeds))
    low, high = both.quantile(both.new_tensor([0.025, 0.975])).tolist()
    share = min(1.0, float(of_seeds.var() / both.var())) if float(both.var()) > 0 else 0.0
    student = float(stats.t.ppf(0.975, n_seeds - 1) / stats.norm.ppf(0.975)) ** 2 * n_seeds / (n_seeds - 1)
    factor = (1 + share * (student - 1)) ** 0.5
    return mean - factor * (mean - low), mean + factor * (high - mean)


def _ratios(totals: Tensor) -> Sequence[Tensor]:
    """Totals of numerators and denominators in turn -> ratios."""
    return [totals[..., i] / totals[..., i + 1] for i in range(0, totals.shape[-1], 2)]


def _ceiling(totals: Tensor) -> Tensor:
    """Geometric mean of the ceilings; a negative one is none."""
    ratios = torch.stack(list(_ratios(totals)))
    return ratios.clamp(min=0).prod(dim=0) ** (1 / len(ratios))


def _scaled(totals: Tensor, bias: float = 0.0) -> Tensor:
    """Score, floor and ceilings -> the score's place between floor and ceiling; NaN where there is no room."""
    score, floor = _ratios(totals[..., :4])
    floor = floor - bias
    ceiling = _ceiling(totals[..., 4:])
    room = ceiling - floor
    return torch.where((room > 0) & (ceiling > 0), (score - floor) / room, torch.nan)


def _room(totals: Tensor) -> Tensor:
    """How far the ceiling lies above the floor; -1 where the ceiling is 0, and there is nothing to be a part of."""
    _, floor = _ratios(totals[..., :4])
    ceiling = _ceiling(totals[..., 4:])
    return torch.where(ceiling > 0, ceiling - floor, -1.0)


def _difference(totals: Tensor) -> Tensor:
    score, floor = _ratios(totals)
    return score - floor

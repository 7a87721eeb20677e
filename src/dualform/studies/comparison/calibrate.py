"""Calibrated measures: a score on the scale from its floor, 0, to its ceiling, 1."""

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
"""Rec2FTP of a control that corrects fewer answers than this is not used as a floor or ceiling."""


def floors_of(measure: str) -> tuple[str, ...]:
    """Controls that may be the floor of a measure."""
    facts = {name: facts_of(name) for name in names_of_kind("floor")}
    known = MEASURES.get(measure)
    changes = known is None or known.compares == "changes"
    return tuple(name for name, control in facts.items() if changes or control is None or control.moves_states)


@dataclass(frozen=True)
class TotalsRatio:
    """A measure as a ratio of two totals over queries, such as a mean or Rec2FTP."""

    numerator: Tensor
    """`(seed, example)`, NaN if undefined."""
    denominator: Tensor
    """`(seed, example)`."""

    @classmethod
    def of_mean(cls, values: Tensor) -> "TotalsRatio":
        """The mean of values by query, `(seed, example, ...)`, after averaging over layers and heads."""
        by_layer = values.nanmean(dim=3) if values.dim() > 3 else values
        overall = by_layer.nanmean(dim=2) if values.dim() > 2 else by_layer
        return cls(overall, torch.ones_like(overall))

    @property
    def columns(self) -> Tensor:
        """Numerator and denominator, `(seed, example, 2)`."""
        return torch.stack([self.numerator, self.denominator], dim=-1)


def calibrate(
    score: TotalsRatio, controls: Mapping[str, TotalsRatio], n_resamples: int, floors: Sequence[str] | None = None
) -> Calibrated | None:
    """(score - floor) / (ceiling - floor), with the highest-scoring control without learning as the floor.

    Args:
        score: The measure of ICL and FT.
        controls: The same measure of each control; those that are neither floor nor ceiling are used in `by_control`.
        n_resamples: Number of bootstrap resamples.
        floors: Controls that may be the floor; None for all of that kind.

    Returns:
        The calibrated value; None without a floor or a ceiling. Its numbers are None unless the ceiling is above the
        floor. Its interval is None with one seed, and unless the ceiling is above the floor in 97.5 % of resamples:
        the other resamples have no value, so the interval would be conditional.

        Coverage of the interval, simulated with normal effects of seed, query and pair and 100 queries (see
        docs/measures.md): 93 to 99 % with three, five and ten seeds and one floor, 92 to 98 % with eight floors of
        equal true score. In the latter case the estimate is .03 to .06 too low, half of the bias of choosing the
        highest floor.

    Source:
        dualform's own. The geometric mean of two reliabilities as the highest attainable correlation of two noisy
        measurements is Spearman's (The proof and measurement of association between two things, 1904).
    """
    # Drop controls without this measure; for example, changing W_V of the last layer changes no attention map.
    controls = {name: each for name, each in controls.items() if bool(each.columns.isfinite().all(-1).any())}
    ceilings = [name for name in names_of_kind("ceiling") if name in controls]
    floors = [name for name in (names_of_kind("floor") if floors is None else floors) if name in controls]
    if not ceilings or not floors:
        return None
    # Use the same (seed, query) pairs for all, so that none is measured on easier queries.
    shared = torch.stack([each.columns for each in (score, *controls.values())]).isfinite().all(-1).all(0)
    if int(shared.sum()) < 2:
        return None

    def value(each: TotalsRatio) -> float:
        return float(each.numerator[shared].sum() / each.denominator[shared].sum())

    values = {name: value(controls[name]) for name in floors}
    finite = {name: number for name, number in values.items() if number == number}
    if not finite:
        return None
    floor = max(finite, key=finite.__getitem__)
    kept = {name: _masked(each, shared) for name, each in controls.items()}
    ceiling_columns = [kept[name].columns for name in ceilings]
    score_columns = _masked(score, shared).columns
    # A control that compares one side with itself is never a floor.
    self_compared = [name for name in controls if (facts := facts_of(name)) is not None and facts.against_itself]
    others = [name for name in controls if name not in (*ceilings, *self_compared, floor)]
    bias = _selection_bias([kept[name] for name in (floor, *(name for name in finite if name != floor))], n_resamples)

    def calibrated_by(name: str, bias: float = 0.0) -> Estimate:
        columns = torch.cat([score_columns, kept[name].columns, *ceiling_columns], -1)
        mean = float(_scaled(columns[shared].sum(0, keepdim=True), bias))
        has_scale = mean == mean and _interval(_scale_length, columns, n_resamples)[0] > 0
        ends = _seed_interval(lambda totals: _scaled(totals, bias), columns, mean, n_resamples) if has_scale else None
        return Estimate(mean=mean, ci95=ends or (None, None), n=int(shared.sum()))

    difference = torch.cat([score_columns, kept[floor].columns], -1)
    # None if score and floor differ by a constant, because the spread is unknown then.
    detectable = minimum_detectable(_interval(_difference, difference, n_resamples)) or None
    return Calibrated(
        **calibrated_by(floor, bias).model_dump(),
        score=value(score),
        control=floor,
        floor=finite[floor],
        floor_bias=bias,
        ceiling=float(_ceiling(torch.cat(ceiling_columns, -1)[shared].sum(0, keepdim=True))),
        minimum_detectable=detectable,
        by_control={name: calibrated_by(name) for name in others},
    )


def layers_above(score: Tensor, floor: Tensor) -> list[float]:
    """Adjusted p-values of the hypothesis that a layer's score is no higher than its floor, one for each layer.

    Args:
        score: Scores by query and layer, `(seed, example, layer)`, or with heads, which are averaged.
        floor: Scores of the control, of the same shape.

    Returns:
        One-sided sign-flip tests over queries (means over seeds), Benjamini-Hochberg adjusted over layers; NaN for a
        layer with fewer than two queries with numbers.
    """
    score, floor = (side.nanmean(dim=3) if side.dim() > 3 else side for side in (score, floor))
    by_query = (score - floor).nanmean(dim=0)
    q_values: list[float] = adjusted_for_discoveries(sign_flip_p(by_query, alternative="greater")).tolist()
    return q_values


def _masked(ratio: TotalsRatio, kept: Tensor) -> TotalsRatio:
    return TotalsRatio(*(part.masked_fill(~kept, torch.nan) for part in (ratio.numerator, ratio.denominator)))


def _interval(statistic: object, columns: Tensor, n_resamples: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    low, high = clustered_bootstrap_of(statistic, columns, n_resamples=n_resamples, generator=generator)  # type: ignore[arg-type]
    return float(low), float(high)


def _selection_bias(floors: Sequence[TotalsRatio], n_resamples: int) -> float:
    """Bootstrap estimate of the bias of the highest of several noisy estimates.

    The highest of the estimates is selected in each resample; the bias is by how much it exceeds the first of `floors`
    on average, where the first must be the highest in the data. It is 0 if that one is always the highest.
    """
    if len(floors) == 1:
        return 0.0

    def excess(totals: Tensor) -> Tensor:
        ratios = torch.stack(list(_ratios(totals)))
        return ratios.nan_to_num(-torch.inf).amax(dim=0) - ratios[0]

    columns = torch.cat([each.columns for each in floors], -1)
    generator = torch.Generator().manual_seed(0)
    excesses = clustered_resamples_of(excess, columns, n_resamples=n_resamples, generator=generator)
    return float(excesses[excesses.isfinite()].mean())


def _seed_interval(
    statistic: Callable[[Tensor], Tensor], columns: Tensor, mean: float, n_resamples: int
) -> tuple[float, float] | None:
    """A 95 % interval corrected for few demonstration seeds; None with one seed.

    Bootstrap percentiles over few seeds are too narrow for two reasons: resampling S seeds gives (S - 1) / S of their
    variance, and that variance is estimated with only S - 1 degrees of freedom. The seeds' share of the variance is
    therefore scaled to that of Student's t interval; the queries' share is unchanged.
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
    both, of_seeds = (resamples[resamples.isfinite()] for resamples in (both, of_seeds))
    low, high = both.quantile(both.new_tensor([0.025, 0.975])).tolist()
    share = min(1.0, float(of_seeds.var() / both.var())) if float(both.var()) > 0 else 0.0
    student = float(stats.t.ppf(0.975, n_seeds - 1) / stats.norm.ppf(0.975)) ** 2 * n_seeds / (n_seeds - 1)
    factor = (1 + share * (student - 1)) ** 0.5
    return mean - factor * (mean - low), mean + factor * (high - mean)


def _ratios(totals: Tensor) -> Sequence[Tensor]:
    """Ratios of alternating numerators and denominators."""
    return [totals[..., i] / totals[..., i + 1] for i in range(0, totals.shape[-1], 2)]


def _ceiling(totals: Tensor) -> Tensor:
    """Geometric mean of the ceilings, where a negative one counts as 0."""
    ratios = torch.stack(list(_ratios(totals)))
    return ratios.clamp(min=0).prod(dim=0) ** (1 / len(ratios))


def _scaled(totals: Tensor, bias: float = 0.0) -> Tensor:
    """The score's place between floor and ceiling, from their totals; NaN unless the ceiling is above the floor."""
    score, floor = _ratios(totals[..., :4])
    floor = floor - bias
    ceiling = _ceiling(totals[..., 4:])
    length = ceiling - floor
    return torch.where((length > 0) & (ceiling > 0), (score - floor) / length, torch.nan)


def _scale_length(totals: Tensor) -> Tensor:
    """Ceiling minus floor; -1 if the ceiling is 0, because there is no scale then."""
    _, floor = _ratios(totals[..., :4])
    ceiling = _ceiling(totals[..., 4:])
    return torch.where(ceiling > 0, ceiling - floor, -1.0)


def _difference(totals: Tensor) -> Tensor:
    score, floor = _ratios(totals)
    return score - floor

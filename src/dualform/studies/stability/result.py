"""The schema of a stability study's `result.json`."""

from typing import Any, Literal

from dualform.result import Estimate, LabelRule, LabelWord, Learner, ModelName, Number, Record, Result, Trial


class Spread(Record):
    """The distribution of a number over runs; a run is one demonstration set in one order."""

    mean: Number
    """Mean over runs."""
    sd: Number
    """Standard deviation over runs; None for a single run."""
    sd_ci95: tuple[Number, Number]
    """95 % interval of the standard deviation; demonstration sets are resampled."""
    low: Number
    """Lowest value of a run."""
    q25: Number
    """First quartile."""
    median: Number
    """Median."""
    q75: Number
    """Third quartile."""
    high: Number
    """Highest value of a run."""
    n: int
    """Number of runs."""


class VarianceSplit(Record):
    """Variance of accuracy over runs by source; the three parts add up to `total`."""

    set: Number
    """Variance due to which demonstrations were drawn."""
    order: Number
    """Variance due to the order of a set; None if each set was run in one order, in which case `set` holds both."""
    residual: Number
    """Variance due to the limited number of queries; it shrinks with more queries."""
    total: Number
    """The sum of the three."""
    set_ci95: tuple[Number, Number]
    """95 % interval of `set`; sets are resampled."""
    order_ci95: tuple[Number, Number]
    """95 % interval of `order`; sets are resampled."""


class Behaviour(Record):
    """One learner's answers over many demonstration sets and orders."""

    accuracy: Spread
    """Accuracy of a run."""
    majority_share: Spread
    """Share of a run's most frequent prediction, in [0, 1]."""
    entropy: Spread
    """Mean entropy of a run's predicted label distributions, in nats."""
    collapse_rate: Estimate
    """Share of runs that give more than 90 % of the queries the same answer; sets are resampled for the interval."""
    order_range: Estimate
    """Accuracy in the best minus that in the worst order of a set, mean over sets; `n` counts sets and is 0 if each was
    run in one order."""
    variance: VarianceSplit | None = None
    """Sources of the variance of accuracy; None with fewer than two sets."""
    over_majority: Estimate | None = None
    """As in `Accuracy`, after averaging each set's answers over its orders; `n` counts pairs of set and query."""
    macro_f1: Estimate | None = None
    """As in `Accuracy`, mean over orders and sets."""
    per_label: dict[LabelWord, Estimate] = {}
    """As in `Accuracy`."""


class RunBehaviour(Record):
    """The answers of one run."""

    accuracy: Number
    """Accuracy of the run."""
    majority_share: Number
    """Share of the most frequent answer, in [0, 1]."""
    majority_label: str | None
    """Label word of the most frequent answer; None for multiple choice."""
    entropy: Number
    """Mean entropy of the predicted label distributions, in nats."""


class StabilityRun(Record):
    """One demonstration set in one order, with one rule for the demonstrations' labels."""

    seed: int
    """Seed of the demonstration set."""
    order: int
    """Number of the order; 0 is the order drawn."""
    labels: str
    """Rule for the demonstrations' labels: `true`, `random` or `flipped`."""
    plain: RunBehaviour
    """Uncalibrated answers."""
    calibrated: RunBehaviour | None
    """Answers after contextual calibration (arXiv:2102.09690); None for multiple choice."""


class LearnerStability(Record):
    """One learner over all its runs."""

    plain: Behaviour
    """Uncalibrated answers."""
    calibrated: Behaviour | None
    """Answers after contextual calibration; None for multiple choice."""
    labels: dict[LabelRule, Estimate] = {}
    """Accuracy by the rule for the demonstrations' labels (`true`, `random`, `flipped`), on the same sets in the order
    drawn; empty if only true labels were used."""
    label_effects: dict[LabelRule, Estimate] = {}
    """Accuracy with `random` or `flipped` labels minus that with true ones, paired by query and set."""
    learning_rate: Number = None
    """FT's learning rate; None for other learners."""
    runs: list[StabilityRun]
    """Every run, including those with random and flipped labels."""


class Contrast(Record):
    """The ratio of two standard deviations of accuracy, of two learners or of two models."""

    named_by = ("question", "learner", "first", "second", "calibrated")

    question: str
    """`ft_beside_icl` compares FT with ICL in one model; `size` compares one learner in two models."""
    learner: str
    """`ft`, `icl` or `ft@RATE`; for `ft_beside_icl` the learner of the numerator."""
    first: str
    """Model of the numerator; for `size` the larger one."""
    second: str
    """Model of the denominator; the same as `first` for `ft_beside_icl`."""
    sd_first: Number
    """Standard deviation in the numerator, over the runs that both have."""
    sd_second: Number
    """Standard deviation in the denominator, over the same runs."""
    ratio: Number
    """sd_first / sd_second; above 1 the first is less stable."""
    ci95: tuple[Number, Number]
    """95 % interval of the ratio; demonstration sets are resampled."""
    n: int
    """Number of demonstration sets."""
    calibrated: bool
    """Whether the answers were calibrated by contextual calibration."""


class FairGap(Record):
    """ICL's accuracy minus FT's if one demonstration set is chosen by accuracy on half of the queries."""

    named_by = ("select",)

    select: str
    """Accuracy by which the set is chosen: `icl`, `ft`, `both` (their mean) or `none` (all sets, no choice)."""
    icl_chosen_on: Number
    """ICL's accuracy on the half of the queries by which the set was chosen."""
    icl_untouched: Number
    """ICL's accuracy on the other half."""
    ft_chosen_on: Number
    """FT's accuracy on the half of the queries by which the set was chosen."""
    ft_untouched: Number
    """FT's accuracy on the other half."""
    gap_chosen_on: Estimate
    """ICL minus FT on the half by which the set was chosen, as if reported on the selecting queries."""
    gap_untouched: Estimate
    """ICL minus FT on the other half; `n` counts sets."""


class ModelStability(Record):
    """The results of one model."""

    model: dict[str, Any]
    """As `model` of a `Result`, with `k_effective` (the fewest demonstrations of a set that fit the context) and
    `refused_routes`."""
    learners: dict[Learner, LearnerStability]
    """`zsl` (one run), `icl`, `ft`, and `ft@RATE` for each further learning rate."""
    trials: list[Trial] = []
    """The search for FT's learning rate on the first set, and rates that diverged later."""
    fairness: list[FairGap] = []
    """ICL minus FT by how the set is chosen, over the sets on which both were run, in the order drawn."""


class Stability(Record):
    """Results of `dualform stability`."""

    models: dict[ModelName, ModelStability]
    """Results by model, the smallest model first."""
    contrasts: list[Contrast]
    """Comparisons of standard deviations between learners and between models."""


class StabilityResult(Result):
    """Result of a stability study."""

    study: Literal["stability"] = "stability"
    """Always `stability`."""
    stability: Stability | None = None
    """Results of the stability study."""

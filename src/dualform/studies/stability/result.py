"""What a stability study found, as in its `result.json`."""

from typing import Any, Literal

from dualform.result import Estimate, LabelRule, LabelWord, Learner, ModelName, Number, Record, Result, Trial


class Spread(Record):
    """How a number is spread over runs; a run is one demonstration set in one order."""

    mean: Number
    """Mean over runs."""
    sd: Number
    """Standard deviation over runs; None for one run."""
    sd_ci95: tuple[Number, Number]
    """95 % interval of it, resampling demonstration sets."""
    low: Number
    """Lowest run."""
    q25: Number
    """A quarter of the runs lie below."""
    median: Number
    """Half of the runs lie below."""
    q75: Number
    """Three quarters of the runs lie below."""
    high: Number
    """Highest run."""
    n: int
    """Runs."""


class VarianceSplit(Record):
    """Where the variance of a run's accuracy comes from; the three add up to `total`."""

    set: Number
    """Variance from which demonstrations were drawn."""
    order: Number
    """Variance from the order in which they stand, the set given; None when each set was run in one order only, and
    then `set` holds both."""
    residual: Number
    """Variance from these queries under this very prompt: what more queries would average away."""
    total: Number
    """The sum of the three."""
    set_ci95: tuple[Number, Number]
    """Interval of `set`, resampling sets."""
    order_ci95: tuple[Number, Number]
    """Interval of `order`, resampling sets."""


class Behaviour(Record):
    """How one learner answers over many demonstration sets and orders."""

    accuracy: Spread
    """Accuracy of a run."""
    majority_share: Spread
    """Share of the most frequent prediction, in [0, 1]."""
    entropy: Spread
    """Mean entropy of the label distribution, nats."""
    collapse_rate: Estimate
    """Share of runs that give one answer to more than 90 % of the queries; its interval resamples sets."""
    order_range: Estimate
    """Accuracy in the best less that in the worst order of a set, mean over sets; `n` counts sets, 0 with one order
    each."""
    variance: VarianceSplit | None = None
    """None with fewer than two sets."""
    over_majority: Estimate | None = None
    """As in `Accuracy`, each set's answers averaged over its orders; `n` counts pairs of set and query."""
    macro_f1: Estimate | None = None
    """As in `Accuracy`, mean over orders and sets."""
    per_label: dict[LabelWord, Estimate] = {}
    """As in `Accuracy`."""


class RunBehaviour(Record):
    """How one run answers."""

    accuracy: Number
    """Accuracy of the run."""
    majority_share: Number
    """Share of the most frequent answer."""
    majority_label: str | None
    """Its label word; None for multiple choice."""
    entropy: Number
    """Mean entropy of the label distribution."""


class StabilityRun(Record):
    """One demonstration set in one order, with one rule for its labels."""

    seed: int
    """The demonstration set."""
    order: int
    """0 is the order drawn."""
    labels: str
    """Labels shown: `true`, `random` or `flipped`."""
    plain: RunBehaviour
    """Answers as they are."""
    calibrated: RunBehaviour | None
    """After contextual calibration (arXiv:2102.09690); None for multiple choice."""


class LearnerStability(Record):
    """One learner over all its runs."""

    plain: Behaviour
    """Answers as they are."""
    calibrated: Behaviour | None
    """Answers after contextual calibration; None for multiple choice."""
    labels: dict[LabelRule, Estimate] = {}
    """Accuracy by the labels shown (`true`, `random`, `flipped`), on the same sets in the order drawn; empty when only
    true ones were shown."""
    label_effects: dict[LabelRule, Estimate] = {}
    """Accuracy with `random` or `flipped` labels less that with true ones, query by query on the same sets."""
    learning_rate: Number = None
    """FT's learning rate; None for other learners."""
    runs: list[StabilityRun]
    """Every run, those with other labels included."""


class Contrast(Record):
    """Two spreads compared: is one learner, or one model, less stable than the other?"""

    named_by = ("question", "learner", "first", "second", "calibrated")

    question: str
    """`ft_beside_icl`, within one model, or `size`, one learner in two models."""
    learner: str
    """`ft`, `icl` or `ft@RATE`; for `ft_beside_icl` the learner above the line."""
    first: str
    """Model above the line; for `size` the larger one."""
    second: str
    """Model below the line; the same as `first` for `ft_beside_icl`."""
    sd_first: Number
    """Standard deviation above the line, over the runs that both have."""
    sd_second: Number
    """The same below the line."""
    ratio: Number
    """sd_first / sd_second, over the runs that both have; above 1 the first is less stable."""
    ci95: tuple[Number, Number]
    """95 % interval of the ratio, resampling demonstration sets."""
    n: int
    """Demonstration sets."""
    calibrated: bool
    """Whether answers went through contextual calibration first."""


class FairGap(Record):
    """ICL's accuracy less FT's when one demonstration set is chosen by its accuracy on half of the queries."""

    named_by = ("select",)

    select: str
    """By whose accuracy: `none` (all sets), `icl`, `ft` or `both` (the mean)."""
    icl_chosen_on: Number
    """ICL's accuracy on the half that chose."""
    icl_untouched: Number
    """The same on the other half."""
    ft_chosen_on: Number
    """FT's accuracy on the half that chose."""
    ft_untouched: Number
    """The same on the other half."""
    gap_chosen_on: Estimate
    """ICL less FT on the half that chose: what a report on the selecting queries would say."""
    gap_untouched: Estimate
    """The same on the other half; `n` counts sets."""


class ModelStability(Record):
    """One model's learners."""

    model: dict[str, Any]
    """As `model` of a `Result`, with `k_effective` (demonstrations that fitted, the fewest over sets) and
    `refused_routes`."""
    learners: dict[Learner, LearnerStability]
    """`zsl` (one run), `icl`, `ft`, and `ft@RATE` for each further learning rate."""
    trials: list[Trial] = []
    """The search for FT's rate, on the first set, and rates that diverged later."""
    fairness: list[FairGap] = []
    """What choosing a set does to the comparison, over the sets that both ICL and FT were run on, in the order
    drawn."""


class Stability(Record):
    """What `dualform stability` found."""

    models: dict[ModelName, ModelStability]
    """Each model's numbers, smallest model first."""
    contrasts: list[Contrast]
    """Spreads compared."""


class StabilityResult(Result):
    """What a stability study found."""

    study: Literal["stability"] = "stability"
    """Always `stability`."""
    stability: Stability | None = None
    """What a stability study found."""

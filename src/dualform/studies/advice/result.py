"""The numbers of a study that gives advice, as in `result.json`."""

from dualform.result import Accuracy, Estimate, LabelCount, Learner, Number, Record, Result


class AdvicePoint(Record):
    """A learner with one budget of labels."""

    named_by = ("labels",)

    labels: int
    """The budget."""
    accuracy: Accuracy
    """Accuracy over draws and queries."""
    spread: Number
    """Standard deviation of accuracy over draws, in [0, 1]; None with one draw."""
    log_loss: Number
    """Mean negative log-probability of the right answer among all answers, nats; a probability below 2.2e-16 counts as
    that."""
    used: LabelCount
    """The labels that it used of these."""
    adapt_seconds: Number
    """Seconds to adapt once, with the choice of settings, mean over draws."""
    adapt_flops: Number
    """Floating-point operations of adapting once, without the choice of settings."""
    query_seconds: Number
    """Seconds a query, with the prompt already read."""
    query_flops: Number
    """Floating-point operations of one query, with the keys and values of its prompt cached."""


class Recommendation(Record):
    """The learner to use with one budget of labels."""

    named_by = ("labels",)

    labels: int
    """The budget."""
    learner: str
    """The recommended learner: the highest smoothed accuracy."""
    accuracy: Estimate
    """Its accuracy."""
    probability: Number
    """Share of bootstrap resamples of draws and queries in which no other learner has a higher smoothed accuracy."""
    as_good: list[str]
    """Learners whose accuracy does not differ significantly from the recommended one's, the cheapest query first."""
    over_prompting: Estimate | None
    """Its accuracy minus that of the best learner that only changes the prompt; None if it is one of these."""
    regret: Number
    """Accuracy that is lost, on queries that did not choose it, by following the advice instead of using the learner
    that is best on them, in [0, 1]: mean over random halves of the queries."""
    regret_of: dict[Learner, Number]
    """The same loss of always using one learner."""


class BreakEven(Record):
    """The number of labels from which training beats prompting."""

    prompting: str
    """The prompting learner that is the most accurate with the largest budget."""
    training: str
    """The training learner that is the most accurate with the largest budget."""
    labels: int | None
    """The smallest budget from which on training is at least as accurate at every larger budget; None if there is
    none."""
    labels_with_spread: int | None
    """The same where a draw that is one standard deviation worse than the mean of training is at least as accurate as
    one that is one standard deviation better than the mean of prompting (as in arXiv:2402.12819, which counts the
    variance over draws)."""


class Advice(Record):
    """Which learner to use with how many labels."""

    budgets: list[int]
    """Numbers of labels, ascending."""
    curves: dict[Learner, list[AdvicePoint]]
    """Learner -> its points, in the order of the budgets."""
    recommendations: list[Recommendation]
    """One for each budget."""
    break_even: BreakEven | None
    """None without a learner that prompts or one that trains."""


class AdviceResult(Result):
    """The result of a study that gives advice."""

    advice: Advice | None = None
    """Learning curves and recommendations."""

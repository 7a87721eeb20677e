"""What a comparison of momentum attention with vanilla found, as in its `result.json`."""

from typing import Literal

from dualform.result import Estimate, Length, Number, Paired, Predictor, Record, Result


class CurvePoint(Record):
    """Where training stood."""

    tokens: int
    """Tokens read so far."""
    loss: Number
    """Validation loss, nats a token, mean over seeds."""


class TaskScore(Record):
    """Accuracy of a trained model on one task, by mean log-probability of each answer behind demonstrations."""

    named_by = ("task",)

    task: str
    """Name of the task."""
    k: int
    """Demonstrations in the prompt, the fewest over seeds."""
    chance: Number
    """Accuracy of always giving the most frequent answer, in [0, 1]."""
    accuracy: Estimate
    """Accuracy of the answer with the highest mean log-probability; interval over seeds and queries."""
    difference: Paired | None
    """Accuracy less the baseline's; positive is better, None for a baseline."""


class MomentumArm(Record):
    """One way of attending, trained once a seed."""

    named_by = ("name",)

    name: str
    """Its kind and eta, such as `momentum 0.3`."""
    kind: str
    """`vanilla`; with softmax attention `momentum` (the decaying sum of values of arXiv:2212.10559), `normalised` (that
    sum, its weights adding up to 1), `learned` (that sum with an eta for each head, trained) or `convolution` (of the
    last few values, weights trained); without softmax `linear`, `linear-momentum` (that sum added), `heavy-ball` or
    `nesterov` (the momentum of gradient descent, in its dual form)."""
    eta: Number
    """Decay a token; for `learned`, where it began; None for kinds without one."""
    baseline: str | None
    """Name of the arm that it is compared with; None for `vanilla` and `linear`."""
    parameters: int
    """Parameters, tied ones counted once."""
    step_ratio: Number
    """Seconds of a training step over the baseline's, steps taken in turn, median of a few; None for a baseline."""
    perplexity: dict[Length, Estimate]
    """By length of the text in tokens, exp of the mean loss on test text: mean over seeds with Student's interval, `n`
    counts seeds; those whose training diverged are left out and named in `warnings`."""
    difference: dict[Length, Paired]
    """Mean loss less the baseline's, nats a token; negative is better. Empty for a baseline."""
    curve: list[CurvePoint]
    """Validation loss while training."""
    learned_eta: list[Number] = []
    """Eta of each layer after training, mean over heads and seeds; empty but for `learned`."""
    tasks: list[TaskScore] = []
    """Scores on tasks; empty without tasks."""


class RegressionCurve(Record):
    """Error of one arm in in-context regression."""

    named_by = ("arm", "condition")

    arm: str
    """Name of the arm, or of the exact predictor."""
    condition: float
    """Condition number of the inputs' covariance."""
    loss: list[Estimate]
    """Squared error at each point over that of predicting zero, in order: the first has seen no example; `n` counts
    seeds."""
    difference: Paired | None
    """Mean over points, but for the first, of the log error, less the baseline's; negative is better, None for a
    baseline."""


class MomentumRegression(Record):
    """Does momentum speed up in-context regression as it speeds up gradient descent?"""

    dimension: int
    """Dimension of the inputs."""
    points: int
    """Points of a sequence."""
    steps: int
    """Steps of training."""
    curves: list[RegressionCurve]
    """Each arm at each condition number."""
    references: dict[Predictor, list[RegressionCurve]] = {}
    """What is computed exactly, at each condition number: least squares, and gradient descent and heavy ball of so many
    steps."""


class PretrainedMomentum(Record):
    """Momentum put into a model that was trained without."""

    named_by = ("model", "eta")

    model: str
    """Its name."""
    eta: Number
    """Decay a token."""
    perplexity: Number
    """Perplexity of test text with momentum, no weight changed."""
    base: Number
    """The same without momentum."""
    tuned: Estimate | None
    """Perplexity after a short finetune with momentum; `n` counts seeds."""
    base_tuned: Estimate | None
    """Perplexity after the same finetune without."""
    difference: Paired | None
    """Loss after the finetune, with momentum less without, nats a token."""


class MomentumReport(Record):
    """What `dualform momentum compare` found."""

    recipe: str
    """Recipe by which the models were trained: a name, or the file's."""
    tokens: int
    """Tokens of training, each run."""
    length: int
    """Tokens of a training sequence."""
    arms: list[MomentumArm]
    """All arms, baselines first of their kind."""
    regression: MomentumRegression | None = None
    """None where `config.regress` is off."""
    pretrained: list[PretrainedMomentum] = []
    """One for each model of `config.pretrained` and each eta."""


class MomentumResult(Result):
    """What a comparison of momentum attention with vanilla found."""

    study: Literal["momentum"] = "momentum"
    """Always `momentum`."""
    momentum: MomentumReport | None = None
    """What a comparison of momentum attention with vanilla found."""

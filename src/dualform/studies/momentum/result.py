"""Records of `result.json` for a comparison of momentum attention with vanilla."""

from typing import Literal

from dualform.result import Estimate, Length, Number, Paired, Predictor, Record, Result


class CurvePoint(Record):
    """Validation loss at one time of the training."""

    tokens: int
    """Tokens read so far."""
    loss: Number
    """Validation loss, nats a token, mean over seeds."""


class TaskScore(Record):
    """Accuracy of an arm on one task in context; the answer has the highest mean log-probability."""

    named_by = ("task",)

    task: str
    """Name of the task."""
    k: int
    """Demonstrations in the prompt; the smallest number over seeds."""
    chance: Number
    """Accuracy of always giving the most frequent answer, in [0, 1]."""
    accuracy: Estimate
    """Accuracy, with its interval over seeds and queries."""
    difference: Paired | None
    """Accuracy minus the baseline's; positive is better, None for a baseline."""


class MomentumArm(Record):
    """A kind of attention, trained once for each seed."""

    named_by = ("name",)

    name: str
    """Kind and eta, such as `momentum 0.3`."""
    kind: str
    """`vanilla`; with softmax attention `momentum` (adds the decaying sum of values of arXiv:2212.10559), `normalised`
    (that sum with weights that add up to 1), `learned` (that sum with a learned eta for each head) or `convolution` (a
    learned convolution over the last few values); without softmax `linear`, `linear-momentum` (adds that sum),
    `heavy-ball` or `nesterov` (whose dual form has the momentum of gradient descent)."""
    eta: Number
    """Decay for each token; for `learned` the initial one; None for kinds without a decay."""
    baseline: str | None
    """Name of the arm that it is compared with; None for `vanilla` and `linear`."""
    parameters: int
    """Parameters, tied ones counted once."""
    step_ratio: Number
    """Duration of a training step divided by the baseline's; median of a few alternating steps; None for a baseline."""
    perplexity: dict[Length, Estimate]
    """By length of the text in tokens, exp of the mean loss on test text: mean over seeds with Student's interval; `n`
    counts seeds. Seeds whose training diverged are left out and named in `warnings`."""
    difference: dict[Length, Paired]
    """By length of the text in tokens, mean loss minus the baseline's, nats a token; negative is better. Empty for a
    baseline."""
    curve: list[CurvePoint]
    """Validation loss during training."""
    learned_eta: list[Number] = []
    """Eta of each layer after training, mean over heads and seeds; empty except for `learned`."""
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
    """Squared error at each point, divided by that of predicting zero; before the first point there is no example. `n`
    counts seeds."""
    difference: Paired | None
    """Mean log error over all points but the first, minus the baseline's; negative is better, None for a baseline."""


class MomentumRegression(Record):
    """Errors of all arms, trained on in-context regression, and of exact predictors."""

    dimension: int
    """Dimension of the inputs."""
    points: int
    """Points of a sequence."""
    steps: int
    """Training steps."""
    curves: list[RegressionCurve]
    """Each arm at each condition number."""
    references: dict[Predictor, list[RegressionCurve]] = {}
    """Exact predictors at each condition number: least squares, and gradient descent and heavy ball with a fixed number
    of steps."""


class PretrainedMomentum(Record):
    """Effect of momentum on a model that was trained without it."""

    named_by = ("model", "eta")

    model: str
    """Name of the model."""
    eta: Number
    """Decay for each token."""
    perplexity: Number
    """Perplexity on test text with momentum, with unchanged weights."""
    base: Number
    """Perplexity without momentum."""
    tuned: Estimate | None
    """Perplexity after a short finetune with momentum; `n` counts seeds."""
    base_tuned: Estimate | None
    """Perplexity after the same finetune without momentum."""
    difference: Paired | None
    """Loss after the finetune with momentum minus loss after the finetune without, nats a token."""


class MomentumReport(Record):
    """Results of `dualform momentum compare`."""

    recipe: str
    """Recipe of the models: its name, or the name of its file."""
    tokens: int
    """Training tokens of each run."""
    length: int
    """Tokens of a training sequence."""
    arms: list[MomentumArm]
    """All arms; each baseline comes before the arms that are compared with it."""
    regression: MomentumRegression | None = None
    """In-context regression; None if `config.regress` is off."""
    pretrained: list[PretrainedMomentum] = []
    """One record for each model of `config.pretrained` and each eta."""


class MomentumResult(Result):
    """Result of a comparison of momentum attention with vanilla."""

    study: Literal["momentum"] = "momentum"
    """Always `momentum`."""
    momentum: MomentumReport | None = None
    """Results of `dualform momentum compare`."""

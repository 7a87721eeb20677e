"""What a run found: the schema of `result.json`, the one thing that `studies` write and `report` reads.

Numbers that do not exist (a ratio over nothing, an interval of one seed) are `null` in the file and None here;
their count `n` says why. A share of fewer than `FEWEST_FOR_INTERVAL` answers has no interval.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal[1] = 1

FEWEST_FOR_INTERVAL = 10
"""A share of fewer answers than this is reported as a count, without an interval and without a verdict.

Resampling a handful of answers cannot show how far the share could be off: one answer has no spread at all. Measured
on corrections that are independent by construction, one seed, the bootstrap interval of Rec2FTP's lift leaves out the
true value 0 in 99 % of runs with one corrected answer and in 26 to 52 % with two to four, instead of in 5 %; from ten
on it is right (`tests/studies/comparison/test_few_answers.py` repeats a part of that simulation)."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]


class Record(BaseModel):
    """One part of a schema: frozen, and without fields that are not named."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Estimate(Record):
    """A mean with its uncertainty."""

    mean: Number
    """Mean over examples (within a seed), then over seeds."""
    ci95: tuple[Number, Number]
    """95 % bootstrap interval, resampling demonstration seeds and, independently, the queries that all seeds share. A
    share of 0 or 1 has the exact binomial interval of its queries, because resampling equal answers shows no spread; a
    share with `n` below `FEWEST_FOR_INTERVAL` has none."""
    n: int
    """Numbers that the mean stands on: (seed, query) pairs, or the denominator of a ratio."""


class Accuracy(Estimate):
    """Share of queries answered rightly, in [0, 1]."""

    per_seed: dict[str, Number]
    """The same for each demonstration seed."""
    over_majority: Estimate | None = None
    """Accuracy less that of always giving the commonest label, query by query; see `Baselines`."""
    macro_f1: Estimate | None = None
    """Mean over labels of the F1 score, in [0, 1], mean over seeds. Labels that no reported query has are left out.
    None for free-text choices, whose numbers are no classes."""
    per_label: dict[str, Estimate] = {}
    """Label word -> share of that label's queries answered rightly (recall); empty for free-text choices."""


class Baselines(Record):
    """What accuracy costs nothing: the scores of two answerers that have read no query."""

    chance: Number
    """Accuracy of guessing uniformly: 1 / number of answers, mean over queries."""
    majority: Number
    """Accuracy of always giving the answer that is right most often among the reported queries themselves."""
    majority_label: str | None
    """That answer: a label's word, or for free-text choices the number of the choice, counted from 0."""
    label_counts: dict[str, int]
    """Reported queries of each label, by label word; for free-text choices by the number of the right choice."""
    n: int
    """Reported queries."""


class Predictions(Record):
    """What a learner answers, rightly or wrongly."""

    majority_share: Number
    """Share of the most frequent predicted label, in [0, 1]; near 1 means collapse into one class."""
    majority_label: str | None
    """That label's word (None for tasks with free-text choices)."""
    entropy: Number
    """Mean entropy of the label distribution, nats."""
    counts: dict[str, int]
    """Predictions of each label over all seeds, by label word (choice index for free-text choices)."""


class Similarity(Estimate):
    """One measure of likeness between what context did and what finetuning did."""

    per_seed: dict[str, Number] = {}
    """The mean for each demonstration seed."""
    per_layer: list[Number] | None = None
    """The mean for each layer, first block first; None where the measure has no layers."""
    per_layer_ci95: list[tuple[Number, Number]] | None = None
    """Interval for each layer."""
    per_layer_q: list[Number] | None = None
    """For each layer, the false-discovery-adjusted p-value that the score is no higher than the control that
    `calibrated` names; None without layers or control."""
    per_head: list[list[Number]] | None = None
    """The mean for each layer and head, `per_head[layer][head]`; None where the measure has no heads."""
    details: dict[str, Any] = {}
    """The counts and companions that a reader needs beside the number: chance level, lift, numerators."""
    rounding: Number = None
    """How far the number moves when finetuning is repeated from weights moved by rounding, over the queries that the
    repeat read; None where it was not repeated, or the number does not depend on finetuning."""


class Cost(Record):
    """What a learner costs, mean over seeds (the search for a rate: in all)."""

    adapt_seconds: Number
    """Seconds to adapt to one set of demonstrations (for ICL: encoding them), without the search for a rate."""
    query_seconds: Number
    """Seconds a query, demonstrations already encoded, labels and recording included."""
    tokens: Number
    """Tokens that one query makes the model read when nothing is shared: demonstrations + prompt."""
    flops: Number
    """Floating-point operations of one such query."""
    adapt_tokens: Number = None
    """Tokens read while adapting once."""
    adapt_flops: Number = None
    """Floating-point operations of adapting once."""
    search_seconds: Number = None
    """Seconds spent on choosing the learning rate (0 without a search)."""
    kept_tokens: Number = None
    """Tokens that one query makes the model read when keys and values of what stands before it are kept."""
    kept_flops: Number = None
    """Floating-point operations of one such query: its own tokens, attention to what is kept included."""


class Trial(Record):
    """One learning rate tried for one learner on one seed."""

    learner: str
    seed: int
    learning_rate: float
    validation_accuracy: Number
    """Accuracy on the selection split, in [0, 1]; None when the trial was dropped."""
    validation_log_probability: Number
    """Mean log-probability of the right label on the selection split, nats; breaks ties."""
    first_loss: Number
    last_loss: Number
    status: str
    """`finished`, `diverged` (NaN or infinite loss, rate dropped) or `skipped` (early-out)."""
    chosen: bool
    rounding: Number = None
    """Largest change of an answer's log-probability on the selection split, nats, when this training is repeated from
    weights moved by rounding; None where the search did not repeat it, or the repeat diverged."""
    rounding_flips: int | None = None
    """Answers on the selection split that are others when it is repeated."""


class DemonstrationReport(Record):
    """Which demonstrations were used."""

    k_requested: int
    k_effective: int
    """How many fitted, the smallest over seeds; every learner used these."""
    k_effective_per_seed: dict[str, int]
    rows: dict[str, list[int]]
    """Row numbers in the train split, in order, for each seed."""
    tokens: dict[str, int]
    """Tokens of the encoded demonstrations, for each seed."""


class Calibrated(Estimate):
    """A score on the scale of its own controls: 0 is what nothing scores, 1 is what the same thing twice scores.

    `mean` is (score - f) / (ceiling - f) with f = floor - floor_bias, all over the same (seed, query) pairs.
    """

    score: Number
    """The raw score over those pairs."""
    control: str
    """The floor: of the controls in which nothing is learned from these demonstrations, the one that scores highest."""
    floor: Number
    """Its mean."""
    floor_bias: Number = 0.0
    """How far the highest of several floors is expected to lie above the truth for being the highest, estimated by the
    bootstrap; subtracted from `floor` in `mean`. 0 where one control always scores highest, and in older files."""
    ceiling: Number
    """Geometric mean of the two ceilings (each side beside itself under another order): what two noisy measurements
    of one and the same update reach."""
    minimum_detectable: Number
    """Smallest difference score - floor that this n finds with 80 % power at the 5 % level."""
    by_control: dict[str, Estimate] = {}
    """The calibrated value with each other control as the floor."""
    rounding: Number = None
    """How far `mean` moves when finetuning is repeated from weights moved by rounding, floor and ceiling held."""


class SeedEstimate(Estimate):
    """An estimate with the mean of each demonstration seed."""

    per_seed: dict[str, Number]


class Rounding(Record):
    """How far a learner's numbers depend on rounding.

    Its training is compared with a repeat of it, from weights that were moved by one unit in their last place.
    One repeat a seed, read on the queries on which controls are read. It shows an order of magnitude, which no interval
    of the result includes.
    """

    learning_rate: dict[str, Number]
    """Of each seed."""
    log_probability: SeedEstimate
    """Difference of an answer's log-probability without its sign, nats, mean over answers."""
    largest: dict[str, Number]
    """The largest such difference of each seed."""
    flips: SeedEstimate
    """Share of queries that the two answer differently, in [0, 1]."""
    accuracy: Number
    """Accuracy of the training on these queries."""
    accuracy_repeated: Number
    """Accuracy of its repeat."""
    similarity: dict[str, SeedEstimate] = {}
    """Measure -> its value between the training and its repeat: the ceiling that rounding alone sets."""
    loss: list[Number] = []
    """Difference of the training loss before each step without its sign, nats a token, mean over seeds."""
    diverged: list[int] = []
    """Seeds whose repeat diverged; they have no other numbers here."""
    stable: bool
    """No repeat diverged, no answer changed, no log-probability moved by more than 0.01 nats, and raw SimAOU between
    training and repeat is no lower than between two orders of the demonstrations (control `ft_order`, where run)."""


class PairedTest(Record):
    """Two learners' accuracies on the same queries under the same seeds."""

    first: str
    second: str
    difference: Number
    """Accuracy of `first` less that of `second`."""
    ci95: tuple[Number, Number]
    """None where no query tells the two apart: equal answers show no spread."""
    n: int
    """(seed, query) pairs."""
    p_queries: Number
    """Sign-flip test over queries: would other queries, under these very demonstrations, show the difference?"""
    p_seeds: Number
    """Sign-flip test over demonstration seeds: would other demonstrations? With S seeds never below 2 / 2**S."""
    minimum_detectable: Number
    """Smallest difference that this n finds with 80 % power at the 5 % level; None without a query that tells the two
    apart, because nothing then shows how much a difference would vary."""


class SweepPoint(Record):
    """Finetuning at one learning rate: how likeness moves with the size of the step."""

    learning_rate: float
    accuracy: Estimate
    update_norm: Estimate
    """Length of FT's change of the attention output over that of ICL's."""
    similarity: dict[str, Estimate]
    """Measure -> value at this rate."""


class Spread(Record):
    """How a number is spread over runs; a run is one demonstration set in one order."""

    mean: Number
    sd: Number
    """Standard deviation over runs; None for one run."""
    sd_ci95: tuple[Number, Number]
    """95 % interval of it, resampling demonstration sets."""
    low: Number
    q25: Number
    median: Number
    q75: Number
    high: Number
    n: int
    """Runs."""


class VarianceSplit(Record):
    """Where the variance of a run's accuracy comes from; the three add up to `total`."""

    set: Number
    """Which demonstrations were drawn."""
    order: Number
    """In which order they stand, the set given; None when each set was run in one order only."""
    residual: Number
    """How these queries fall out under this very prompt: what more queries would average away."""
    total: Number
    set_ci95: tuple[Number, Number]
    order_ci95: tuple[Number, Number]


class Behaviour(Record):
    """How one learner answers over many demonstration sets and orders."""

    accuracy: Spread
    majority_share: Spread
    """Share of the most frequent prediction, in [0, 1]."""
    entropy: Spread
    """Mean entropy of the label distribution, nats."""
    collapse_rate: Estimate
    """Share of runs that give one label to more than 90 % of the queries; interval over sets."""
    order_range: Estimate
    """Best less worst order of a set, mean over sets; n = sets with two orders or more."""
    variance: VarianceSplit | None = None
    """None with fewer than two sets."""
    over_majority: Estimate | None = None
    """Accuracy less that of always giving the commonest label, query by query; see `Baselines`."""
    macro_f1: Estimate | None = None
    """As in `Accuracy`, mean over sets and orders."""
    per_label: dict[str, Estimate] = {}
    """As in `Accuracy`."""


class RunBehaviour(Record):
    """How one run answers."""

    accuracy: Number
    majority_share: Number
    majority_label: str | None
    entropy: Number


class StabilityRun(Record):
    """One demonstration set in one order, with one rule for its labels."""

    seed: int
    order: int
    """0 is the order drawn."""
    labels: str
    """Labels shown: true, random or flipped."""
    plain: RunBehaviour
    calibrated: RunBehaviour | None
    """After contextual calibration (arXiv:2102.09690); None for free-text choices."""


class LearnerStability(Record):
    """One learner over all its runs."""

    plain: Behaviour
    calibrated: Behaviour | None
    """After contextual calibration; None for free-text choices."""
    labels: dict[str, Estimate] = {}
    """Accuracy by the labels shown (true, random, flipped), on the same sets in the order drawn."""
    label_effects: dict[str, Estimate] = {}
    """Accuracy with random or flipped labels less that with true ones, query by query on the same sets."""
    learning_rate: Number = None
    runs: list[StabilityRun]


class Contrast(Record):
    """Two spreads compared: is one learner, or one model, less stable than the other?"""

    question: str
    """`ft_beside_icl` (within one model) or `size` (one learner, two models)."""
    learner: str
    """`ft` or `icl`; for `ft_beside_icl` the learner above the line."""
    first: str
    """Model above the line."""
    second: str
    """Model below the line; the same as `first` for `ft_beside_icl`."""
    sd_first: Number
    sd_second: Number
    ratio: Number
    """sd_first / sd_second, over the runs that both have."""
    ci95: tuple[Number, Number]
    """95 % interval of the ratio, resampling demonstration sets."""
    n: int
    """Demonstration sets."""
    calibrated: bool
    """Whether predictions were calibrated first."""


class FairGap(Record):
    """ICL's accuracy less FT's when one demonstration set is chosen by its accuracy on half of the queries."""

    select: str
    """By whose accuracy there: `none` (all sets), `icl`, `ft` or `both`."""
    icl_chosen_on: Number
    """ICL's accuracy on the half that chose."""
    icl_untouched: Number
    """On the other half."""
    ft_chosen_on: Number
    ft_untouched: Number
    gap_chosen_on: Estimate
    """ICL less FT on the half that chose: what a report on the selecting queries would say."""
    gap_untouched: Estimate
    """The same on the other half."""


class ModelStability(Record):
    """One model's learners."""

    model: dict[str, Any]
    """As `Result.model`."""
    learners: dict[str, LearnerStability]
    """`zsl` (one run), `icl`, `ft`, and `ft@RATE` for each further learning rate."""
    trials: list[Trial] = []
    """The search for FT's rate, on the first set."""
    fairness: list[FairGap] = []
    """What choosing a set does to the comparison, over the sets that both learners were run on, in the order drawn."""


class Stability(Record):
    """What `dualform stability` found."""

    models: dict[str, ModelStability]
    """By name, smallest first."""
    contrasts: list[Contrast]


class ChoiceScore(Record):
    """What one way of choosing does for one learner."""

    selected: Estimate
    """Accuracy of what was chosen, on the queries that it was chosen on."""
    untouched: Estimate
    """Its accuracy on queries that nothing was chosen on."""
    optimism: Estimate
    """selected - untouched; the interval repeats the choice in every resample."""
    tokens: Number
    """Tokens read forwards in search of it (a backward pass counts as two)."""
    trials: int
    """How many were compared."""


class Choice(Record):
    """One way of choosing: by whose accuracy, on which queries."""

    select: str
    """`icl`, `ft`, `both` or `none` (the first seed, order and the middle rate)."""
    select_on: str
    """`validation` or `report`."""
    seed: int
    """Demonstration seed that it chose."""
    order: int
    """Order of ICL's demonstrations that it chose."""
    learning_rate: float
    """FT's rate that it chose."""
    scores: dict[str, ChoiceScore]
    """`icl` and `ft`."""
    similarity: dict[str, Estimate]
    """Measure -> its value for what was chosen."""


class Selection(Record):
    """What `dualform selection` found."""

    choices: list[Choice]
    similarity_range: dict[str, Estimate]
    """Measure -> highest less lowest value over the choices; its interval resamples queries."""
    n_validation: int
    n_report: int
    n_untouched: int
    baselines: dict[str, Baselines] = {}
    """`validation`, `report` and `untouched` -> chance and majority baseline on those queries."""


class Against(Record):
    """One learner beside prompting: does it answer as ICL does, and when is it cheaper?"""

    agreement: Estimate
    """Share of queries that it answers as ICL does, in [0, 1]."""
    expected: Number = None
    """The same if both gave each answer as often as they do, but independently of each other; mean over seeds."""
    kappa: Number = None
    """Cohen's kappa, (agreement - expected) / (1 - expected): 0 is what the shares of answers alone give; None where
    both always give one and the same answer."""
    recovered: Estimate
    """(accuracy - zero-shot's) / (ICL's - zero-shot's): 1 is all that the prompt gained; n as of `agreement`. Reports
    call a number outside 0 to 1.5 undefined: it says that there was hardly a gain."""
    gained: int | None = None
    """Right answers that ICL has more than zero-shot: the denominator of `recovered`."""
    break_even: Number
    """Queries after which adapting and asking it has taken fewer operations than prompting, the prompt read anew for
    every query; 0 where it is cheaper from the first, None where it never is."""
    break_even_kept: Number
    """The same against a prompt whose keys and values are kept."""


class WrittenFold(Record):
    """A fold on disk (`dualform fold`)."""

    form: str
    """`checkpoint` or `lora`."""
    kept: Number
    """Share of the change's squared norm that the adapter keeps, in [0, 1]; None for a checkpoint."""
    perplexity: list[float] | None
    """On plain text before and after; None where it was not measured."""
    difference: Number
    """Largest difference, nats, between log-probabilities of what was loaded anew and what was in memory; None where
    this was not asked for."""


class FoldReport(Record):
    """How the prompt was folded in a comparison, and what its update is like."""

    method: str
    texts: int
    """Unlabelled calibration texts of a seed."""
    source: str
    """Where they came from: `train` (rows of the train split that are no demonstrations, labels unread), `generated`
    (by the model behind the demonstrations) or a file's name."""
    plain_tokens: int
    """Tokens of plain text on which the fold was asked to change nothing."""
    plain_source: str
    """`generated` (by the model from nothing), a file's name, or `none`."""
    strength: Number
    """Ridge strength, mean over layers and seeds; None for methods without one."""
    explained: list[Number]
    """Share of the target that each layer's map explains on its own rows, mean over seeds; empty for other methods."""
    similarity: dict[str, dict[str, Similarity]]
    """`icl` and `ft` -> measure -> likeness of the fold's update to that learner's."""
    written: WrittenFold | None = None
    """None in a comparison, which writes no fold."""


class Perplexity(Record):
    """What folding does to plain text."""

    source: str
    """The file."""
    tokens: int
    before: Number
    """exp of the mean negative log-probability of a token, base model."""
    after: Estimate
    """The same of the folded models, mean over seeds; n = seeds."""
    ratio: Estimate
    """after / before; n = texts."""


class FoldPoint(Record):
    """One way of folding, over all seeds."""

    axis: str
    """What is varied: `method`, `k`, `texts`, `strength`, `layers` or `source`."""
    value: str
    """Where on the axis, in words or digits."""
    accuracy: Estimate
    icl: Estimate
    """Accuracy of ICL with the same demonstrations."""
    agreement: Estimate
    """Share of queries answered as ICL does."""
    recovered: Estimate
    """Share of ICL's gain over zero-shot that is recovered; n as of `agreement`."""
    gained: int | None = None
    """Right answers that ICL has more than zero-shot: the denominator of `recovered`."""
    strength: Number = None
    """Ridge strength chosen, mean over layers and seeds."""
    adapt_flops: Number = None
    query_tokens: Number = None
    """Tokens that one query makes the model read."""
    perplexity_ratio: Number = None
    """Perplexity on plain text, folded over base, mean over seeds."""
    note: str = ""
    """What a reader must know about this point."""


class Transfer(Record):
    """A fold made for one task, asked another's queries."""

    task: str
    zero_shot: Estimate
    """Accuracy of the base model there."""
    folded: Estimate
    """Accuracy of the model folded for the study's own task."""
    difference: Estimate
    """folded - zero_shot."""
    majority: Number = None
    """Accuracy there of always giving the commonest label."""


class Composition(Record):
    """Several folds added up in one model."""

    parts: list[str]
    """Names of the tasks whose folds were added."""
    accuracy: dict[str, Estimate]
    """Task -> accuracy of the sum."""
    alone: dict[str, Estimate]
    """Task -> accuracy of its own fold alone."""
    majority: dict[str, Number] = {}
    """Task -> accuracy of always giving the commonest label."""


class Folding(Record):
    """What `dualform folding` found."""

    zero_shot: Estimate
    icl: Estimate
    ft: Estimate | None
    """At the rate chosen on the selection split; None when it was not asked for."""
    points: list[FoldPoint]
    perplexity: Perplexity | None
    """Of the default fold."""
    transfer: list[Transfer]
    compositions: list[Composition]


class Paired(Record):
    """A difference between two arms that began with the same weights and read the same text, seed by seed."""

    mean: Number
    """Over seeds."""
    ci95: tuple[Number, Number]
    """Student's interval over the seeds; None of one seed."""
    p: Number
    """Two-sided paired t-test; None of fewer than two seeds."""
    p_signs: Number
    """Two-sided exact sign-flip test, which assumes no distribution; never below 2 / 2^n."""
    per_seed: dict[str, Number]
    n: int
    """Seeds."""


class CurvePoint(Record):
    """Where training stood."""

    tokens: int
    """Read so far."""
    loss: Number
    """Validation loss, nats a token, mean over seeds."""


class TaskScore(Record):
    """Accuracy of a trained model on one task, by mean log-probability of each answer behind demonstrations."""

    task: str
    k: int
    """Demonstrations in the prompt, the fewest over seeds."""
    chance: Number
    """Accuracy of always giving the most frequent answer, in [0, 1]."""
    accuracy: Estimate
    """n = (seed, query) pairs."""
    difference: Paired | None
    """Less the baseline's; None for the baseline itself."""


class MomentumArm(Record):
    """One way of attending, trained once a seed."""

    name: str
    kind: str
    """`vanilla`, `momentum`, `normalised` (momentum whose weights sum to 1), `learned` (eta a parameter of each head),
    `convolution` (of values), `linear` (linear attention), `linear-momentum` (the same sum of values beside it),
    `heavy-ball` or `nesterov` (linear attention with the momentum of gradient descent)."""
    eta: Number
    """Decay a token; None where there is none, where learning starts for `learned`."""
    baseline: str | None
    """Name of the arm that it is compared with; None for one that others are compared with."""
    parameters: int
    step_ratio: Number
    """Seconds of a training step over the baseline's, steps taken in turn, median of a few; None for a baseline."""
    perplexity: dict[str, Estimate]
    """Length of the text in tokens -> exp of the mean loss on test text; mean over seeds with Student's interval.
    n = seeds whose training did not diverge; the others are named in `warnings`."""
    difference: dict[str, Paired]
    """Length -> mean loss less the baseline's, nats a token; negative is better."""
    curve: list[CurvePoint]
    learned_eta: list[Number] = []
    """For `learned`: eta of each layer after training, mean over heads and seeds."""
    tasks: list[TaskScore] = []


class RegressionCurve(Record):
    """Error of one arm in in-context regression."""

    arm: str
    condition: float
    """Condition number of the inputs' covariance."""
    loss: list[Estimate]
    """Squared error at each point over that of predicting zero, in order: the first has seen no example. n = seeds."""
    difference: Paired | None
    """Mean of the log error less the baseline's, over all points but the first, which has seen nothing; negative is
    better; None for the baseline."""


class MomentumRegression(Record):
    """Does momentum speed up in-context regression as it speeds up gradient descent?"""

    dimension: int
    points: int
    steps: int
    """Of training."""
    curves: list[RegressionCurve]
    references: dict[str, list[RegressionCurve]] = {}
    """`least squares`, `gradient descent, 3 steps`, `heavy ball, 3 steps`: exact predictors, by condition number."""


class PretrainedMomentum(Record):
    """Momentum put into a model that was trained without."""

    model: str
    eta: Number
    perplexity: Number
    """Of test text at inference, no weight changed."""
    base: Number
    """The same without momentum."""
    tuned: Estimate | None
    """After a short finetune with momentum; n = seeds."""
    base_tuned: Estimate | None
    """After the same finetune without."""
    difference: Paired | None
    """Loss after finetuning, with less without, nats a token."""


class MomentumReport(Record):
    """What `dualform momentum compare` found."""

    recipe: str
    tokens: int
    """Of training, each run."""
    length: int
    """Tokens of a training sequence."""
    arms: list[MomentumArm]
    regression: MomentumRegression | None = None
    pretrained: list[PretrainedMomentum] = []


class Claim(Record):
    """Something that theory says, beside what was found."""

    says: str
    """The claim, one sentence."""
    expected: str
    """What should be found, with its tolerance, such as `below 1e-12` or `0.207 within 2 %`."""
    found: Estimate
    """n = seeds, or 1 for a number without chance."""
    holds: bool
    """Whether what was found is what was expected."""
    must_fail: bool = False
    """A case made so that the claim is false: then it must not hold, or the measure could not tell."""
    source: str = ""
    """arXiv id and section."""


class LabCurve(Record):
    """One line of a chart of the laboratory."""

    name: str
    x: list[float]
    y: list[Estimate]
    """At each x, over seeds."""
    reference: bool = False
    """An exact predictor, beside which trained models are read."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"the curve {self.name!r} has {len(self.x)} x and {len(self.y)} y; give an Estimate for each x, with "
                "mean None where there is no number"
            )
        return self


class LabChart(Record):
    """Curves over a common axis."""

    title: str
    x: str
    """Name of the axis, with its unit."""
    y: str
    log_x: bool = False
    log_y: bool = False
    curves: list[LabCurve]
    note: str = ""


class LabRow(Record):
    """One row of a table."""

    name: str
    cells: list[Estimate | None]
    """One a column; None where there is no such number."""


class LabTable(Record):
    """Numbers with a name for each row and column."""

    title: str
    columns: list[str]
    rows: list[LabRow]
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"row {row.name!r} of the table {self.title!r} has {len(row.cells)} cells for {len(self.columns)} "
                    "columns; give one for each column, None where there is no number"
                )
        return self


class LabStudy(Record):
    """One study of the laboratory."""

    name: str
    """`constructed`, `trained`, `phases`, `layers` or `shift`."""
    question: str
    answer: str
    """What the numbers say, in a sentence or two."""
    claims: list[Claim] = []
    charts: list[LabChart] = []
    tables: list[LabTable] = []
    notes: list[str] = []
    """What was left out, cut short or looked odd."""


class Laboratory(Record):
    """What `dualform regress` found."""

    studies: list[LabStudy]


class Result(Record):
    """A study's outcome."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    dualform: str
    """Version that wrote it."""
    study: str
    """`comparison`, `stability`, `selection`, `folding` or `momentum`."""
    config: dict[str, Any]
    environment: dict[str, Any]
    """Python, library versions, CPU, threads, device, seconds: with the seconds of `cost`, all that may differ between
    two equal runs."""
    model: dict[str, Any] = {}
    """name, architecture, parameters, n_layers, n_heads, d_model, dtype, route, revision (on the hub), vocabulary,
    notes (of how it was loaded), inputs (digest of weights, texts and labels)."""
    task: dict[str, Any] = {}
    """name, source, label_words, labels (label of the data -> its word), prompt (one rendered example), prompt_tokens
    (mean), opening, separator, separator_tokens, n_report, report_split, n_selection, selection_split."""
    demonstrations: DemonstrationReport | None = None
    baselines: Baselines | None = None
    """Chance and majority baseline on the reported queries; None in files written before there were any."""
    accuracy: dict[str, Accuracy] = {}
    predictions: dict[str, Predictions] = {}
    similarity: dict[str, Similarity] = {}
    controls: dict[str, dict[str, Similarity]] = {}
    """Control -> measure -> what it scores there; `accuracy` is that of the control's own learner, where it has one."""
    calibrated: dict[str, Calibrated] = {}
    tests: list[PairedTest] = []
    rate_sweep: list[SweepPoint] = []
    precision: dict[str, Rounding] = {}
    """Learner (`ft`) -> how far its numbers depend on rounding."""
    cost: dict[str, Cost] = {}
    against_icl: dict[str, Against] = {}
    """Learner -> how it stands beside prompting; every learner but `icl`, where zero-shot and ICL were run."""
    fold: FoldReport | None = None
    trials: list[Trial] = []
    stability: Stability | None = None
    selection: Selection | None = None
    folding: Folding | None = None
    momentum: MomentumReport | None = None
    laboratory: Laboratory | None = None
    warnings: list[str] = []
    """What a reader must know before believing the numbers, in plain sentences."""

    def to_json(self) -> str:
        """The text of `result.json`, `schema` first."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read `result.json`.

        Raises:
            pydantic.ValidationError: The text does not follow the schema.
        """
        return cls.model_validate_json(text)

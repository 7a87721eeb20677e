"""What a run found: the schema of `result.json`, the one thing that `studies` write and `report` reads.

Numbers that do not exist (a ratio over nothing, an interval of one seed) are `null` in the file and None here;
their count `n` says why. A share of fewer than `FEWEST_FOR_INTERVAL` answers has no interval.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

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

# What the keys of a mapping are, for a reader of the file.
Control = Annotated[str, "control"]
LabelRule = Annotated[str, "rule"]
LabelWord = Annotated[str, "label word"]
Learner = Annotated[str, "learner"]
Length = Annotated[str, "length"]
Measure = Annotated[str, "measure"]
ModelName = Annotated[str, "name"]
Predictor = Annotated[str, "predictor"]
QuerySet = Annotated[str, "set of queries"]
Seed = Annotated[str, "seed"]
TaskName = Annotated[str, "task"]


class Record(BaseModel):
    """One part of a schema: frozen, and without fields that are not named."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    named_by: ClassVar[tuple[str, ...] | None] = None
    """Fields that distinguish records of this kind in a list, for the flat names of trackers and tables of results;
    () for its place in the list, None for records that have no such names."""


class Estimate(Record):
    """A mean with its uncertainty."""

    mean: Number
    """Mean over examples within a seed, then over seeds; for `rec2ftp`, the ratio over all seeds' queries together."""
    ci95: tuple[Number, Number]
    """95 % bootstrap interval, resampling demonstration seeds and, independently, the queries that all seeds share. A
    share of 0 or 1 has the exact binomial interval of its queries, because resampling equal answers shows no spread; a
    share with `n` below 10 (`FEWEST_FOR_INTERVAL`) has none."""
    n: int
    """How many numbers the mean is taken over: pairs of seed and query, or the denominator of a ratio."""


class Accuracy(Estimate):
    """Share of queries answered rightly, in [0, 1]."""

    per_seed: dict[Seed, Number]
    """The share of right answers for each demonstration seed."""
    over_majority: Estimate | None = None
    """Accuracy less that of always giving the commonest label, query by query; its interval is None where no query
    tells the two apart."""
    macro_f1: Estimate | None = None
    """Mean over labels of the F1 score, in [0, 1], mean over seeds. Labels that no reported query has are left out.
    None for multiple choice, whose numbers are no classes. Its interval is None where a label has fewer than 10
    answers."""
    per_label: dict[LabelWord, Estimate] = {}
    """Share of that label's queries answered rightly (recall); empty for multiple choice."""


class Baselines(Record):
    """What accuracy costs nothing: the scores of two answerers that have read no query."""

    chance: Number
    """Accuracy of guessing uniformly: 1 / number of answers, mean over queries."""
    majority: Number
    """Accuracy of always giving the answer that is right most often among the reported queries themselves."""
    majority_label: str | None
    """That answer: a label's word, or for multiple choice the number of the choice, counted from 0."""
    label_counts: dict[LabelWord, int]
    """Reported queries of each label, by label word; for multiple choice by the number of the right choice."""
    n: int
    """Reported queries."""


class Predictions(Record):
    """What a learner answers, rightly or wrongly."""

    majority_share: Number
    """Share of the most frequent predicted label, in [0, 1]; near 1 means collapse into one class."""
    majority_label: str | None
    """That label's word; None for multiple choice."""
    entropy: Number
    """Mean entropy of the label distribution, nats."""
    counts: dict[LabelWord, int]
    """Predictions of each label over all seeds, by label word (choice index for multiple choice)."""


class Similarity(Estimate):
    """One measure of likeness between what context did and what finetuning did."""

    per_seed: dict[Seed, Number] = {}
    """The mean for each demonstration seed."""
    per_layer: list[Number] | None = None
    """The mean for each layer, first block first; None where the measure has no layers."""
    per_layer_ci95: list[tuple[Number, Number]] | None = None
    """Interval for each layer."""
    per_layer_q: list[Number] | None = None
    """For each layer, the p-value, adjusted for false discoveries, that the score is no higher than the control that
    `calibrated` names; None without layers or control."""
    per_head: list[list[Number]] | None = None
    """The mean for each layer and head, `per_head[layer][head]`, heads of keys and values for `direct_update`; None
    where the measure has no heads."""
    details: dict[str, Any] = {}
    """The counts and companions that a reader needs next to the number: chance level, lift, numerators."""
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
    """Seconds spent on choosing the learning rate, over all seeds; 0 without a search."""
    kept_tokens: Number = None
    """Tokens that one query makes the model read when keys and values of what stands before it are kept."""
    kept_flops: Number = None
    """Floating-point operations of one such query: its own tokens, attention to what is kept included."""


class Trial(Record):
    """One learning rate tried for one learner on one seed."""

    learner: str
    """`ft` or `lora`, or a control with a rate of its own: `batch`, `lcgd`, `value_one_layer`, `mlp`."""
    seed: int
    """Demonstration seed."""
    learning_rate: float
    """The learning rate."""
    validation_accuracy: Number
    """Accuracy on the selection split, in [0, 1]; None when the trial was dropped."""
    validation_log_probability: Number
    """Mean log-probability of the right label on the selection split, nats; breaks ties."""
    first_loss: Number
    """Training loss before the first step."""
    last_loss: Number
    """Training loss before the last step."""
    status: str
    """`finished`; `diverged`: the loss became NaN or infinite, and the rate was dropped; `skipped`: lower rates had
    shown that this one is worse."""
    chosen: bool
    """Whether this rate was used."""
    rounding: Number = None
    """Largest change of an answer's log-probability on the selection split, nats, when this training is repeated from
    weights moved by rounding; None where the search did not repeat it, or the repeat diverged."""
    rounding_flips: int | None = None
    """Answers on the selection split that change when it is repeated."""


class DemonstrationReport(Record):
    """Which demonstrations were used."""

    k_requested: int
    """Demonstrations asked for."""
    k_effective: int
    """How many fitted, the smallest over seeds; every learner used these."""
    k_effective_per_seed: dict[Seed, int]
    """The same for each seed."""
    rows: dict[Seed, list[int]]
    """Row numbers in the train split's file, from 0, in the order shown."""
    tokens: dict[Seed, int]
    """Tokens of the encoded demonstrations, for each seed."""


class Calibrated(Estimate):
    """A score on the scale of its own controls: 0 is what nothing scores, 1 is what the same thing twice scores.

    `mean` is (score - f) / (ceiling - f) with f = floor - floor_bias, all over the same (seed, query) pairs.
    """

    score: Number
    """The raw score, over the pairs of seed and query on which all of these controls have a number."""
    control: str
    """The floor: of the controls in which nothing is learned from these demonstrations, the one that scores highest;
    `chance` is the chance level of `rec2ftp`."""
    floor: Number
    """Its score."""
    floor_bias: Number = 0.0
    """How far the highest of several floors is expected to lie above the truth for being the highest, estimated by the
    bootstrap; subtracted from `floor` in `mean`. 0 where one control always scores highest, and in older files."""
    ceiling: Number
    """Geometric mean of the scores of `icl_order` and `ft_order` (each side compared with itself under another order):
    what two noisy measurements of one and the same update reach."""
    minimum_detectable: Number
    """Smallest difference score - floor that this n finds with 80 % power at the 5 % level."""
    by_control: dict[Control, Estimate] = {}
    """The calibrated value with each other control in the floor's place, comparisons included."""
    rounding: Number = None
    """How far `mean` moves when finetuning is repeated from weights moved by rounding, floor and ceiling held."""


class SeedEstimate(Estimate):
    """An estimate with the mean of each demonstration seed."""

    per_seed: dict[Seed, Number]
    """The mean for each demonstration seed."""


class Rounding(Record):
    """How far a learner's numbers depend on rounding.

    Its training is compared with a repeat of it, from weights that were moved by one unit in their last place.
    One repeat a seed, read on the queries on which controls are read. It shows an order of magnitude, which no interval
    of the result includes.
    """

    learning_rate: dict[Seed, Number]
    """Learning rate at which both were trained."""
    log_probability: SeedEstimate
    """Difference of an answer's log-probability without its sign, nats, mean over answers."""
    largest: dict[Seed, Number]
    """The largest such difference of each seed; None where the repeat diverged."""
    flips: SeedEstimate
    """Share of queries that the two answer differently, in [0, 1]."""
    accuracy: Number
    """Accuracy of the training on these queries."""
    accuracy_repeated: Number
    """Accuracy of its repeat."""
    similarity: dict[Measure, SeedEstimate] = {}
    """Each measure between the training and its repeat, where `zsl` and `icl` were run: the ceiling that rounding alone
    sets."""
    loss: list[Number] = []
    """Difference of the training loss before each step without its sign, nats a token, mean over seeds."""
    diverged: list[int] = []
    """Seeds whose repeat diverged; they have no other numbers here."""
    stable: bool
    """No repeat diverged, no answer changed, no log-probability moved by more than 0.01 nats, and raw SimAOU between
    training and repeat is no lower than between two orders of the demonstrations (control `ft_order`, where run)."""


class PairedTest(Record):
    """Two learners' accuracies on the same queries under the same seeds."""

    named_by = ("first", "second")

    first: str
    """A learner."""
    second: str
    """Another learner."""
    difference: Number
    """Accuracy of `first` less that of `second`."""
    ci95: tuple[Number, Number]
    """95 % interval of the difference; None where no query tells the two apart, because equal answers show no
    spread."""
    n: int
    """Pairs of seed and query."""
    p_queries: Number
    """Sign-flip test over queries: would other queries, under these very demonstrations, show the difference?"""
    p_seeds: Number
    """p-value by flipping signs of seeds: what other demonstrations would show. With S seeds never below 2 / 2^S; None
    with one."""
    minimum_detectable: Number
    """Smallest difference that this n finds with 80 % power at the 5 % level; None without a query that tells the two
    apart, because nothing then shows how much a difference would vary."""


class SweepPoint(Record):
    """Finetuning at one learning rate: how likeness moves with the size of the step."""

    named_by = ("learning_rate",)

    learning_rate: float
    """The learning rate."""
    accuracy: Estimate
    """Accuracy at this rate."""
    update_norm: Estimate
    """Length of finetuning's change of the attention output over that of ICL's: `norm_ratio` at this rate."""
    similarity: dict[Measure, Estimate]
    """Value of each measure at this rate."""


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


class ChoiceScore(Record):
    """What one way of choosing does for one learner."""

    selected: Estimate
    """Accuracy of what was chosen, on the queries that it was chosen on."""
    untouched: Estimate
    """Its accuracy on queries on which nothing was chosen."""
    optimism: Estimate
    """The first less the second; its interval repeats the choice in every resample."""
    tokens: Number
    """Tokens read in search of it; a backward pass counts as two forward ones, and no search as 0."""
    trials: int
    """How many were compared; 1 is no search."""


class Choice(Record):
    """One way of choosing: by whose accuracy, on which queries."""

    named_by = ("select", "select_on")

    select: str
    """By whose accuracy: `icl`, `ft`, `both` or `none` (the first seed, the order drawn and the middle rate)."""
    select_on: str
    """On which queries: `validation` or `report`; for `none`, `report` stands in."""
    seed: int
    """Demonstration seed chosen."""
    order: int
    """Order of ICL's demonstrations chosen."""
    learning_rate: float
    """FT's learning rate chosen."""
    scores: dict[Learner, ChoiceScore]
    """Scores of `icl` and `ft`."""
    similarity: dict[Measure, Estimate]
    """Value of each measure for the seed and rate chosen, ICL in the order drawn, which is FT's; `rec2ftp` is that of
    the very trials chosen."""


class Selection(Record):
    """What `dualform selection` found."""

    choices: list[Choice]
    """`none`, then `icl`, `ft` and `both`, each on `validation` and on `report`."""
    similarity_range: dict[Measure, Estimate]
    """Highest less lowest value of each measure over the choices, never below 0; its interval resamples queries, the
    choices stay."""
    n_validation: int
    """Queries to choose on, not reported."""
    n_report: int
    """Reported queries, to choose on as the paper does."""
    n_untouched: int
    """Queries on which nothing was chosen."""
    baselines: dict[QuerySet, Baselines] = {}
    """Chance and majority baseline of `validation`, `report` and `untouched`."""


class Against(Record):
    """One learner beside prompting: does it answer as ICL does, and when is it cheaper?"""

    agreement: Estimate
    """Share of queries that it answers as ICL does, rightly or wrongly."""
    expected: Number = None
    """Agreement by chance: the same if both gave each answer as often as they do, independently of each other; mean
    over seeds."""
    kappa: Number = None
    """Cohen's kappa, (agreement - expected) / (1 - expected): 0 is what the shares of answers alone give; None where
    both always give one and the same answer."""
    recovered: Estimate
    """Share of ICL's gain over zero-shot that it has, (accuracy - zero-shot's) / (ICL's - zero-shot's); 1 is all.
    Reports call a number outside 0 to 1.5 undefined. None where ICL gained nothing; its interval is None where the run
    is not sure that it did, or where fewer than 10 answers separate ICL from zero-shot."""
    gained: int | None = None
    """Right answers that ICL has more than zero-shot, over all pairs: the denominator of `recovered`."""
    break_even: Number
    """Queries after which adapting and asking has taken fewer operations than a prompt read anew with every query; 0
    where it is cheaper from the first, None where it never is or a cost is not known."""
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
    """Largest difference, nats, between log-probabilities of what was loaded anew in a fresh process and what was in
    memory; None without `--verify`."""


class FoldReport(Record):
    """How the prompt was folded in a comparison, and what its update is like."""

    method: str
    """`ridge`, `thought-vector`, `thought-matrix`, `rank-one`, `task-vector`, `kv-momentum` or `mezo`."""
    texts: int
    """Unlabelled calibration texts of a seed; 0 for methods that read none."""
    source: str
    """Where they came from: `train` (rows of the train split that are no demonstrations, labels unread), `generated`
    (by the model behind the demonstrations), a file's name, or `none`."""
    plain_tokens: int
    """Tokens of plain text on which the fold was asked to change nothing."""
    plain_source: str
    """`generated` (by the model from nothing), a file's name, or `none`."""
    strength: Number
    """Ridge strength, mean over layers and seeds; None for methods without one."""
    explained: list[Number]
    """For each layer, the share of its target that the map explains on its own rows, mean over seeds; None for a layer
    that was not folded, empty for other methods."""
    similarity: dict[Learner, dict[Measure, Similarity]]
    """Under `icl`, ICL's change compared with the fold's; under `ft`, the fold's with FT's. The measures are those of a
    comparison but for Rec2FTP and Kendall's, without `per_head`. Empty unless `zsl`, `icl` and `ft` were run too and
    the method changes weights."""
    written: WrittenFold | None = None
    """What `dualform fold` put on disk; None in a comparison, which writes no fold."""


class Perplexity(Record):
    """What folding does to plain text."""

    source: str
    """The file's name."""
    tokens: int
    """Tokens predicted."""
    before: Number
    """Perplexity of the base model: exp of the mean negative log-probability of a token."""
    after: Estimate
    """The same of the folded models; `n` counts seeds."""
    ratio: Estimate
    """Perplexity of the folded models over the base model's, all seeds' losses together; its interval resamples seeds
    and texts, `n` counts texts."""


class FoldPoint(Record):
    """One way of folding, over all seeds."""

    named_by = ("axis", "value")

    axis: str
    """What is varied: `method`, `k` (demonstrations), `texts` (how many), `strength`, `layers` or `source` (of the
    texts)."""
    value: str
    """Where on it, in words or digits, such as `ridge`, `16` or `first half`."""
    accuracy: Estimate
    """Accuracy of the fold."""
    icl: Estimate
    """Accuracy of ICL with the same demonstrations."""
    agreement: Estimate
    """As in `Against`: share of queries answered as ICL does."""
    recovered: Estimate
    """As in `Against`, of the gain with these demonstrations."""
    gained: int | None = None
    """Right answers that ICL has more than zero-shot, over all pairs: the denominator of `recovered`."""
    strength: Number = None
    """Ridge strength, mean over layers and seeds; None for other methods."""
    adapt_flops: Number = None
    """Operations of folding once."""
    query_tokens: Number = None
    """Tokens read for one query, what stands before it included."""
    perplexity_ratio: Number = None
    """Perplexity on plain text, mean of the seeds' folded models over the base model's; None without `--perplexity` and
    for methods that change no weights."""
    note: str = ""
    """What to know about this point, such as how many demonstrations fitted; often empty."""


class Transfer(Record):
    """A fold made for one task, asked another's queries."""

    named_by = ("task",)

    task: str
    """The other task."""
    zero_shot: Estimate
    """Accuracy of the base model there."""
    folded: Estimate
    """Accuracy there of the model folded for the study's own task."""
    difference: Estimate
    """The second less the first, query by query."""
    majority: Number = None
    """Accuracy there of always giving the commonest label."""


class Composition(Record):
    """Several folds added up in one model."""

    named_by = ("parts",)

    parts: list[str]
    """Names of the tasks whose folds were added."""
    accuracy: dict[TaskName, Estimate]
    """Accuracy of the sum on its queries."""
    alone: dict[TaskName, Estimate]
    """Accuracy of the task's own fold on them."""
    majority: dict[TaskName, Number] = {}
    """Accuracy there of always giving the commonest label."""


class Folding(Record):
    """What `dualform folding` found."""

    zero_shot: Estimate
    """Accuracy of the base model."""
    icl: Estimate
    """Accuracy of ICL with the study's `k` demonstrations."""
    ft: Estimate | None
    """Accuracy of FT on them, at the rate that the selection split chooses for each seed; None with `--no-ft`."""
    points: list[FoldPoint]
    """Each way of folding, axis by axis; one that could not be had is left out, and `warnings` says why."""
    perplexity: Perplexity | None
    """What the default fold does to plain text; None without `--perplexity`."""
    transfer: list[Transfer]
    """The default fold asked other tasks' queries."""
    compositions: list[Composition]
    """The default fold added to other tasks' folds."""


class Paired(Record):
    """A difference between two arms that began with the same weights and read the same text, seed by seed."""

    mean: Number
    """Mean over seeds."""
    ci95: tuple[Number, Number]
    """Student's interval over the seeds; None of one seed."""
    p: Number
    """Two-sided paired t-test; None of fewer than two seeds."""
    p_signs: Number
    """Exact sign-flip test, two-sided; with S seeds never below 2 / 2^S, None with one."""
    per_seed: dict[Seed, Number]
    """The difference of each seed; None where a run failed."""
    n: int
    """Seeds."""


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


class Claim(Record):
    """Something that theory says, beside what was found."""

    named_by = ()

    says: str
    """The claim, one sentence."""
    expected: str
    """What should be found, with its tolerance, such as `below 1e-12` or `0.207 within 2 %`."""
    found: Estimate
    """What was found; `n` counts seeds, or is 1 for a number without chance."""
    holds: bool
    """Whether what was found is what was expected."""
    must_fail: bool = False
    """A case made so that the claim is false: then it must not hold, or the measure could not tell."""
    source: str = ""
    """arXiv id and section, or empty."""


class LabCurve(Record):
    """One line of a chart of the laboratory."""

    name: str
    """Name of the curve."""
    x: list[float]
    """Where it was evaluated."""
    y: list[Estimate]
    """Value at each `x`, over seeds."""
    reference: bool = False
    """Whether it is an exact predictor, with which trained models are compared."""

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
    """Title of the chart."""
    x: str
    """Name of the axis, with its unit."""
    y: str
    """Name of the axis, with its unit."""
    log_x: bool = False
    """Whether the axis is logarithmic."""
    log_y: bool = False
    """Whether the axis is logarithmic."""
    curves: list[LabCurve]
    """Its curves."""
    note: str = ""
    """A note below it, or empty."""


class LabRow(Record):
    """One row of a table."""

    name: str
    """Name of the row."""
    cells: list[Estimate | None]
    """One a column; None where there is no such number."""


class LabTable(Record):
    """Numbers with a name for each row and column."""

    title: str
    """Title of the table."""
    columns: list[str]
    """Names of the columns."""
    rows: list[LabRow]
    """Its rows."""
    note: str = ""
    """A note below it, or empty."""

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

    named_by = ("name",)

    name: str
    """`constructed`, `trained`, `phases`, `layers` or `shift`."""
    question: str
    """What was asked."""
    answer: str
    """What the numbers say, in a sentence or two."""
    claims: list[Claim] = []
    """What theory says, and what was found."""
    charts: list[LabChart] = []
    """Its charts."""
    tables: list[LabTable] = []
    """Its tables."""
    notes: list[str] = []
    """What was left out, cut short or looked odd."""


class Laboratory(Record):
    """What `dualform regress` found."""

    studies: list[LabStudy]
    """Its studies, in the order in which they were run."""


class Result(Record):
    """A study's outcome."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    """Version of this schema, 1; it changes when a field's meaning does."""
    dualform: str
    """Version that wrote the file."""
    study: str
    """`comparison`, `stability`, `selection`, `folding`, `momentum` or `regression`."""
    config: dict[str, Any]
    """The settings, as in `config.yaml`."""
    environment: dict[str, Any]
    """What may differ between two equal runs, as do the seconds of `cost`: `python`, versions of `torch`,
    `transformers`, `peft`, `scikit-learn` and `scipy`, `platform`, `cores`, `threads`, `device`, `finished` (UTC),
    `seconds`, `command` (null from Python); of a comparison also `control_seconds`, what its controls took in all."""
    model: dict[str, Any] = {}
    """`name`, `architecture`, `parameters`, `n_layers`, `n_heads`, `d_model`, `dtype`, `route`, `revision` (on the
    hub), `vocabulary`, `notes` (what is known of how it was loaded; also among `warnings`), `inputs` (digest of
    weights, texts and labels), of a selection or a folding study also `refused_routes`; of a stability study `name`
    alone, the rest stands with each of its models."""
    task: dict[str, Any] = {}
    """`name`, `source`, `label_words` (None for multiple choice), `labels` (label as the data name it → its label word,
    in label order; None for multiple choice; absent in older files), `prompt` (one rendered example), `prompt_tokens`
    (mean), `opening` (names of the tokens that begin every sequence), `separator` (its text; that of the
    end-of-sequence token where it was used) and `separator_tokens` (they stand behind every demonstration, the last one
    included), `n_report`, `report_split`, `n_selection`, `selection_split`, of a selection study also `n_untouched`."""
    demonstrations: DemonstrationReport | None = None
    """Which demonstrations were used."""
    baselines: Baselines | None = None
    """What answerers that read no query score on the reported queries; None in files written before there were any."""
    accuracy: dict[Learner, Accuracy] = {}
    """Accuracy of each learner."""
    predictions: dict[Learner, Predictions] = {}
    """What each learner answers."""
    similarity: dict[Measure, Similarity] = {}
    """Similarity by each measure."""
    controls: dict[Control, dict[Measure, Similarity]] = {}
    """Similarity under each control, by each measure."""
    calibrated: dict[Measure, Calibrated] = {}
    """Calibrated score of each measure that has both a floor and a ceiling."""
    tests: list[PairedTest] = []
    """Every pair of learners."""
    rate_sweep: list[SweepPoint] = []
    """Finetuning at each rate of the grid, lowest first; empty without the control `rates`."""
    precision: dict[Learner, Rounding] = {}
    """How far the numbers of `ft` depend on rounding; empty with `rounding: none`, and in files written before there
    was such a measurement."""
    cost: dict[Learner, Cost] = {}
    """What each learner costs."""
    against_icl: dict[Learner, Against] = {}
    """Each learner but `icl` compared with it, where `zsl` and `icl` were run."""
    fold: FoldReport | None = None
    """How the prompt was folded; None without the learner `fold`."""
    trials: list[Trial] = []
    """Every learning rate tried, those of controls with rates of their own included."""
    stability: Stability | None = None
    """What a stability study found."""
    selection: Selection | None = None
    """What a selection study found."""
    folding: Folding | None = None
    """What a folding study found."""
    momentum: MomentumReport | None = None
    """What a comparison of momentum attention with vanilla found."""
    laboratory: Laboratory | None = None
    """What `dualform regress` found."""
    own: dict[str, Any] = {}
    """What a study of another package found, under names of its own choice."""
    warnings: list[str] = []
    """What to know before believing the numbers, in plain sentences."""

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

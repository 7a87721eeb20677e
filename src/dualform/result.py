"""What a run found: the schema of `result.json`, the one thing that `studies` write and `report` reads.

Numbers that do not exist (a ratio over nothing, an interval of one seed) are `null` in the file and None here;
their count `n` says why. A share of fewer than `FEWEST_FOR_INTERVAL` answers has no interval.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny
from pydantic_core import from_json

from dualform.registry import Registry
from dualform.schema_versions import RESULT_SCHEMA, migrate_result

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


class PromptingComparison(Record):
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


class Result(Record):
    """A study's outcome: what all studies report. A study's own class adds what only that study finds."""

    schema_version: Literal[2] = Field(default=RESULT_SCHEMA, alias="schema")
    """Version of this schema, 2. It changes when fields come, go or change their meaning; older files are migrated when
    they are read."""
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
    against_icl: dict[Learner, PromptingComparison] = {}
    """Each learner but `icl` compared with it, where `zsl` and `icl` were run."""
    fold: FoldReport | None = None
    """How the prompt was folded; None without the learner `fold`."""
    trials: list[Trial] = []
    """Every learning rate tried, those of controls with rates of their own included."""
    own: dict[str, Any] = {}
    """What a study of another package found, under names of its own choice."""
    warnings: list[str] = []
    """What to know before believing the numbers, in plain sentences."""

    def to_json(self) -> str:
        """The text of `result.json`, `schema` first."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read `result.json`, written by this version of dualform or an older one.

        Returns:
            A result of the study's own class; of a study that is not installed here, one that keeps all of its fields.

        Raises:
            ConfigError: A newer version of dualform wrote it.
            ValueError: The text is damaged, or does not follow the schema (`pydantic.ValidationError`).
        """
        return read_result(from_json(text))


class ResultOfAbsentStudy(Result):
    """The result of a study that no installed package has; fields that only that study knows are kept unread."""

    model_config = ConfigDict(extra="allow")


def read_result(fields: Any) -> Result:
    """A result from the content of `result.json`; see `Result.from_json`."""
    if not isinstance(fields, dict):
        return Result.model_validate(fields)
    fields = migrate_result(fields)
    return result_class(fields.get("study")).model_validate(fields)


def result_class(study: Any) -> type[Result]:
    """The class of a study's results.

    Args:
        study: As in `result.json`.
    """
    # Found by name, because studies stand above this module.
    studies = Registry[Any]("dualform.studies", "study", object)
    found: type[Result] = next((one.result() for one in studies if one.result_name == study), ResultOfAbsentStudy)
    return found


AnyResult = Annotated[
    SerializeAsAny[Result], BeforeValidator(lambda found: read_result(found) if isinstance(found, dict) else found)
]
"""A result inside another record, of any study and any known version."""

"""The schema of `result.json`, which `studies` write and `report` reads.

A number that is undefined (a ratio with denominator 0, an interval over one seed) is `null` in the file and None here.
A share of fewer than `FEWEST_FOR_INTERVAL` answers has no interval.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny
from pydantic_core import from_json

from dualform.registry import Registry
from dualform.schema_versions import RESULT_SCHEMA, migrate_result

if TYPE_CHECKING:
    import altair as alt
    import pandas

FEWEST_FOR_INTERVAL = 10
"""A share of fewer answers than this is reported as a count, without an interval or a verdict.

The bootstrap fails on a few answers, because they have too little spread. In a simulation with independent corrections
and one seed, the interval of Rec2FTP's lift missed the true value 0 in 99 % of runs with one corrected answer and in
26 to 52 % with two to four, instead of in 5 %; from ten on its coverage was right
(`tests/studies/comparison/test_few_answers.py` repeats part of that simulation)."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]

# The reference in docs/result.md names the keys of each mapping by these.
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
    """Base class of the schema's records: frozen, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    named_by: ClassVar[tuple[str, ...] | None] = None
    """Fields that identify a record of this kind in a list, for the flat names of trackers and tables of results; ()
    identifies it by its position, None means that records of this kind get no flat names."""


class Estimate(Record):
    """A mean with its uncertainty."""

    mean: Number
    """Mean over examples within a seed, then over seeds; for `rec2ftp`, the ratio over the queries of all seeds."""
    ci95: tuple[Number, Number]
    """95 % bootstrap interval, resampling demonstration seeds and, independently, the queries that all seeds share. A
    share of 0 or 1 has the exact binomial interval of its queries, because resampling equal answers shows no spread; a
    share with `n` below 10 (`FEWEST_FOR_INTERVAL`) has none."""
    n: int
    """How many numbers the mean is taken over: (seed, query) pairs, or the denominator of a ratio."""


class Accuracy(Estimate):
    """Share of queries answered correctly, in [0, 1]."""

    per_seed: dict[Seed, Number]
    """Accuracy of each demonstration seed."""
    over_majority: Estimate | None = None
    """Accuracy minus that of always giving the most common label, query by query; its interval is None if both are
    right on the same queries."""
    macro_f1: Estimate | None = None
    """Mean over labels of the F1 score, in [0, 1], mean over seeds. Labels that no reported query has are left out.
    None for multiple choice, which has no classes. Its interval is None if a label has fewer than 10 answers."""
    per_label: dict[LabelWord, Estimate] = {}
    """Recall of each label: the share of its queries answered correctly; empty for multiple choice."""


class Baselines(Record):
    """Accuracies that can be reached without reading any query."""

    chance: Number
    """Accuracy of guessing uniformly: 1 / number of answers, mean over queries."""
    majority: Number
    """Accuracy of always giving the most common right answer of the reported queries."""
    majority_label: str | None
    """That answer: a label word, or for multiple choice the number of the choice, counted from 0."""
    label_counts: dict[LabelWord, int]
    """Number of reported queries with each label, by label word (choice index for multiple choice)."""
    n: int
    """Number of reported queries."""


class Predictions(Record):
    """A learner's answers, right or wrong."""

    majority_share: Number
    """Share of the most frequent answer, in [0, 1]; near 1 means collapse into one class."""
    majority_label: str | None
    """The label word of that answer; None for multiple choice."""
    entropy: Number
    """Mean entropy of the predicted distribution over answers, nats."""
    counts: dict[LabelWord, int]
    """How often each label was predicted, over all seeds, by label word (choice index for multiple choice)."""


class ClassScores(Record):
    """Scores of one class."""

    precision: Estimate
    """Share of the answers with this label that are right, over all seeds; `n` counts these answers. None if the label
    was never predicted."""
    recall: Estimate
    """Share of the queries with this label that are answered correctly, over all seeds."""
    f1: Estimate
    """F1 score, 2 right / (true + predicted), mean over seeds; 0 for a label that is never predicted."""
    support: int
    """Number of reported queries with this label."""
    predicted: int
    """How often this label was predicted, over all seeds."""


class ReliabilityBin(Record):
    """The answers whose confidence, the predicted label's probability, lies in one of ten bins of equal width."""

    low: float
    """Lower end of the bin, excluded."""
    high: float
    """Upper end, included."""
    confidence: Number
    """Mean confidence of these answers, in [0, 1]."""
    accuracy: Estimate
    """Share of them that are right; `n` is their number, over all seeds."""


class Classification(Record):
    """Scores of a learner's answers by class, and of its label probabilities.

    Probabilities are the softmax of the log-probabilities of the labels. Answers of a learner without demonstrations
    count once. A score of fewer than 10 answers has no interval.
    """

    accuracy: Estimate
    """Share of queries answered correctly, as in `Accuracy`."""
    balanced_accuracy: Estimate | None = None
    """Mean over labels of the recall, mean over seeds, in [0, 1]. Labels that no reported query has are left out. None
    for multiple choice. Its interval is None if a label has fewer than 10 answers, or all answers are right."""
    macro_f1: Estimate | None = None
    """Mean over labels of the F1 score, as in `Accuracy`."""
    log_loss: Estimate
    """Mean of minus the logarithm of the right label's probability, nats. A probability below 2.2e-16, the machine
    precision, counts as 2.2e-16, that is 36.04 nats, as in scikit-learn; `zero_probability` says how often."""
    zero_probability: Number
    """Share of answers in which the right label has a probability below 2.2e-16: 0 to machine precision. If it is not
    0, the log-loss without the limit is infinite or nearly so."""
    brier: Estimate
    """Brier score: mean over queries of the sum over labels of (probability - outcome)², in [0, 2]; 1 - 1 / labels for
    equal probabilities."""
    ece: Estimate
    """Expected calibration error, in [0, 1]: mean over answers of the absolute difference between accuracy and
    confidence of the answer's bin in `reliability`. Its interval is the basic bootstrap's, which corrects the upward
    bias in small samples; it begins at 0 unless the error is larger than 97.5 % of those simulated for
    `ece_if_calibrated`."""
    ece_if_calibrated: Number
    """The expected calibration error of a learner with these confidences that is right exactly as often as they say,
    mean over simulations: `ece` is above 0 by chance by this much."""
    reliability: list[ReliabilityBin]
    """The bins that hold answers, by increasing confidence."""
    per_class: dict[LabelWord, ClassScores] = {}
    """Scores of each label that a reported query has; empty for multiple choice."""
    labels: list[str] = []
    """Label words in the order of `confusion`; empty for multiple choice."""
    confusion: list[list[int]] = []
    """How often each label was predicted, over all seeds: `confusion[i][j]` counts the answers `labels[j]` to queries
    whose right label is `labels[i]`."""
    left_out: int = 0
    """Number of answers without a number (a NaN among the log-probabilities), which are in no score."""


class Similarity(Estimate):
    """One measure of the similarity between what context changes and what finetuning changes."""

    per_seed: dict[Seed, Number] = {}
    """The mean for each demonstration seed."""
    per_layer: list[Number] | None = None
    """The mean for each layer, first block first; None where the measure has no layers."""
    per_layer_ci95: list[tuple[Number, Number]] | None = None
    """95 % interval of each layer's mean."""
    per_layer_q: list[Number] | None = None
    """For each layer, the p-value, adjusted for false discoveries, of the hypothesis that the score is no higher than
    the control that `calibrated` names; None without layers or control."""
    per_head: list[list[Number]] | None = None
    """The mean for each layer and head, `per_head[layer][head]` (heads of keys and values for `direct_update`); None
    if the measure has no heads."""
    details: dict[str, Any] = {}
    """Counts and companion numbers of the measure, such as chance level, lift and numerators."""
    rounding: Number = None
    """How much the number changes when finetuning is repeated from weights changed by one unit in the last place, over
    the queries that the repeat read; None if it was not repeated, or the number does not depend on finetuning."""


class Cost(Record):
    """The cost of a learner, mean over seeds (`search_seconds`: sum)."""

    adapt_seconds: Number
    """Seconds to adapt to one set of demonstrations (for ICL: to encode them), without the learning rate search."""
    query_seconds: Number
    """Seconds a query, with the demonstrations already encoded; reading all labels and recording are included."""
    tokens: Number
    """Tokens of one query that is read with its full prompt: demonstrations and query."""
    flops: Number
    """Floating-point operations of one such query."""
    adapt_tokens: Number = None
    """Tokens read while adapting once."""
    adapt_flops: Number = None
    """Floating-point operations of adapting once."""
    search_seconds: Number = None
    """Seconds of the learning rate search, over all seeds; 0 without a search."""
    kept_tokens: Number = None
    """Tokens of one query if the keys and values of the tokens before it are cached."""
    kept_flops: Number = None
    """Floating-point operations of one such query, its attention to the cache included."""


class LabelCount(Record):
    """Number of labels that a learner used, the largest over seeds."""

    demonstrations: int
    """Labels in the prompt."""
    training: int
    """Labels that it trained on."""
    settings: int
    """Labels on which its learning rate or other settings were chosen."""
    total: int
    """Number of different labels in all of these."""


class Trial(Record):
    """One learning rate tried for one learner on one seed."""

    learner: str
    """`ft`, `lora`, `full` or `bitfit`, or a control with a learning rate of its own: `batch`, `lcgd`,
    `value_one_layer`, `mlp`."""
    seed: int
    """Demonstration seed."""
    learning_rate: float
    """The learning rate."""
    validation_accuracy: Number
    """Accuracy on the selection split, in [0, 1]; None if the trial diverged or was skipped."""
    validation_log_probability: Number
    """Mean log-probability of the right label on the selection split, nats; decides between equal accuracies."""
    first_loss: Number
    """Training loss before the first step."""
    last_loss: Number
    """Training loss before the last step."""
    status: str
    """`finished`, `diverged` (the loss became NaN or infinite) or `skipped` (lower rates had shown that this one is
    worse)."""
    chosen: bool
    """Whether this rate was used."""
    rounding: Number = None
    """Largest change of an answer's log-probability on the selection split, nats, when this training is repeated from
    weights changed by one unit in the last place; None if the search did not repeat it, or the repeat diverged."""
    rounding_flips: int | None = None
    """Number of answers on the selection split that change when the training is repeated."""


class DemonstrationReport(Record):
    """The demonstrations that were used."""

    k_requested: int
    """Number of demonstrations requested."""
    k_effective: int
    """Number of demonstrations that fit into the context, the smallest over seeds; every learner used these."""
    k_effective_per_seed: dict[Seed, int]
    """Number of demonstrations used, for each seed."""
    rows: dict[Seed, list[int]]
    """Row numbers in the train split's file, from 0, in the order of the prompt."""
    tokens: dict[Seed, int]
    """Tokens of the encoded demonstrations, for each seed."""


class Calibrated(Estimate):
    """A score between its controls: 0 is the score if nothing is learned, 1 that of the same learner twice.

    `mean` is (score - f) / (ceiling - f) with f = floor - floor_bias, all over the same (seed, query) pairs.
    """

    score: Number
    """The raw score, over the (seed, query) pairs for which all of these controls have a number."""
    control: str
    """The floor: the highest-scoring control in which nothing is learned from these demonstrations; `chance` is the
    chance level of `rec2ftp`."""
    floor: Number
    """Score of the floor."""
    floor_bias: Number = 0.0
    """Selection bias of `floor`, estimated by the bootstrap: the highest of several noisy scores tends to exceed its
    true value. Subtracted from `floor` in `mean`; 0 if one control always scores highest, and in older files."""
    ceiling: Number
    """Geometric mean of the scores of `icl_order` and `ft_order`, which compare each learner with itself under another
    order of the demonstrations: the score of two noisy measurements of the same update."""
    minimum_detectable: Number
    """Smallest difference score - floor that this n detects with 80 % power at the 5 % level."""
    by_control: dict[Control, Estimate] = {}
    """The calibrated value with each other control as the floor, comparisons included."""
    rounding: Number = None
    """How much `mean` changes when finetuning is repeated from weights changed by one unit in the last place, with
    floor and ceiling held fixed."""


class SeedEstimate(Estimate):
    """An estimate with the mean of each demonstration seed."""

    per_seed: dict[Seed, Number]
    """The mean for each demonstration seed."""


class Rounding(Record):
    """How much a learner's numbers depend on rounding.

    Its training is compared with a repeat from weights changed by one unit in the last place: one repeat a seed, on the
    queries on which controls are read. This shows an order of magnitude, which no interval of the result includes.
    """

    learning_rate: dict[Seed, Number]
    """Learning rate at which both were trained."""
    log_probability: SeedEstimate
    """Mean absolute difference of an answer's log-probability, nats."""
    largest: dict[Seed, Number]
    """The largest such difference of each seed; None if the repeat diverged."""
    flips: SeedEstimate
    """Share of queries that the two answer differently, in [0, 1]."""
    accuracy: Number
    """Accuracy of the trained model on these queries."""
    accuracy_repeated: Number
    """Accuracy of the repeat."""
    similarity: dict[Measure, SeedEstimate] = {}
    """Each measure between the trained model and its repeat, if `zsl` and `icl` were run: the ceiling set by rounding
    alone."""
    loss: list[Number] = []
    """Absolute difference of the training loss before each step, nats a token, mean over seeds."""
    diverged: list[int] = []
    """Seeds whose repeat diverged; they have no other numbers here."""
    stable: bool
    """Whether no repeat diverged, no answer changed, no log-probability changed by more than 0.01 nats, and raw SimAOU
    with the repeat is no lower than between two orders of the demonstrations (control `ft_order`, if it was run)."""


class PairedTest(Record):
    """The difference between two learners' accuracies on the same queries and seeds."""

    named_by = ("first", "second")

    first: str
    """A learner."""
    second: str
    """Another learner."""
    difference: Number
    """Accuracy of `first` minus that of `second`."""
    ci95: tuple[Number, Number]
    """95 % interval of the difference; None if both are right on the same queries, because there is no spread then."""
    n: int
    """Number of (seed, query) pairs."""
    p_queries: Number
    """p-value of the sign-flip test over queries: would other queries with these demonstrations show the difference?"""
    p_seeds: Number
    """p-value of the sign-flip test over seeds: would other demonstrations show the difference? With S seeds it is
    never below 2 / 2^S; None with one seed."""
    minimum_detectable: Number
    """Smallest difference that this n detects with 80 % power at the 5 % level; None if both are right on the same
    queries, because the spread is unknown then."""


class SweepPoint(Record):
    """Finetuning at one learning rate, to show how similarity depends on it."""

    named_by = ("learning_rate",)

    learning_rate: float
    """The learning rate."""
    accuracy: Estimate
    """Accuracy at this rate."""
    update_norm: Estimate
    """Length of finetuning's update of the attention output divided by that of ICL's: `norm_ratio` at this rate."""
    similarity: dict[Measure, Estimate]
    """Value of each measure at this rate."""


class PromptingComparison(Record):
    """One learner compared with prompting: whether it answers as ICL does, and when it is cheaper."""

    agreement: Estimate
    """Share of queries to which it gives the same answer as ICL, right or wrong."""
    expected: Number = None
    """Agreement expected by chance, from how often each of the two gives each answer; mean over seeds."""
    kappa: Number = None
    """Cohen's kappa, (agreement - expected) / (1 - expected): 0 is agreement by chance; None if both always give one
    and the same answer."""
    recovered: Estimate
    """Share of ICL's gain over zero-shot that it recovers, (accuracy - zero-shot's) / (ICL's - zero-shot's); 1 is all.
    Reports call a number outside 0 to 1.5 undefined. None if ICL gained nothing; its interval is None if the gain is
    not significant, or if fewer than 10 answers separate ICL from zero-shot."""
    gained: int | None = None
    """Number of right answers of ICL minus that of zero-shot, over all pairs: the denominator of `recovered`."""
    break_even: Number
    """Number of queries after which adapting and answering have taken fewer operations than a prompt that is re-read
    with every query; 0 if it is cheaper from the first query, None if it never is or a cost is unknown."""
    break_even_kept: Number
    """The same, compared with a prompt whose keys and values are cached."""


class WrittenFold(Record):
    """A fold written to disk by `dualform fold`."""

    form: str
    """`checkpoint` or `lora`."""
    kept: Number
    """Share of the update's squared norm that the adapter keeps, in [0, 1]; None for a checkpoint."""
    perplexity: list[float] | None
    """Perplexity on plain text before and after folding; None if it was not measured."""
    difference: Number
    """Largest difference, nats, between the log-probabilities of the written fold, loaded in a new process, and of the
    fold in memory; None without `--verify`."""


class FoldReport(Record):
    """How the prompt was folded in a comparison, and how similar its update is to others."""

    method: str
    """`ridge`, `thought-vector`, `thought-matrix`, `rank-one`, `task-vector`, `kv-momentum` or `mezo`."""
    texts: int
    """Number of unlabelled calibration texts a seed; 0 for methods that read none."""
    source: str
    """Source of these texts: `train` (rows of the train split other than the demonstrations, without their labels),
    `generated` (by the model after the demonstrations), a file's name, or `none`."""
    plain_tokens: int
    """Number of tokens of plain text on which the fold was fitted to change nothing."""
    plain_source: str
    """`generated` (by the model without a prompt), a file's name, or `none`."""
    strength: Number
    """Ridge strength, mean over layers and seeds; None for methods without one."""
    explained: list[Number]
    """For each layer, the share of its target that the fitted map explains on its training rows, mean over seeds; None
    for a layer that was not folded, empty for other methods."""
    similarity: dict[Learner, dict[Measure, Similarity]]
    """Under `icl`, ICL's update compared with the fold's; under `ft`, the fold's with FT's. All measures of a
    comparison except Rec2FTP and Kendall's, without `per_head`. Empty unless `zsl`, `icl` and `ft` were run too and the
    method changes weights."""
    written: WrittenFold | None = None
    """The fold that `dualform fold` wrote to disk; None in a comparison, which writes no fold."""


class Paired(Record):
    """A difference between two arms that start from the same weights and read the same text, paired by seed."""

    mean: Number
    """Mean over seeds."""
    ci95: tuple[Number, Number]
    """Student's t interval over the seeds; None with one seed."""
    p: Number
    """p-value of the two-sided paired t-test; None with fewer than two seeds."""
    p_signs: Number
    """p-value of the exact two-sided sign-flip test; with S seeds never below 2 / 2^S, None with one."""
    per_seed: dict[Seed, Number]
    """The difference for each seed; None if a run failed."""
    n: int
    """Number of seeds."""


class Result(Record):
    """The result of a study: the fields that all studies share. A study's own class adds its own fields."""

    schema_version: Literal[3] = Field(default=RESULT_SCHEMA, alias="schema")
    """Version of this schema, 3. It changes when fields are added, removed or change their meaning; older files are
    migrated when they are read."""
    dualform: str
    """Version of dualform that wrote the file."""
    study: str
    """`comparison`, `stability`, `selection`, `folding`, `momentum` or `regression`."""
    config: dict[str, Any]
    """The settings, as in `config.yaml`."""
    environment: dict[str, Any]
    """The machine and time of the run, which may differ between runs with equal settings: `python`, versions of
    `torch`, `transformers`, `peft`, `scikit-learn` and `scipy`, `platform`, `cores`, `threads`, `device`, `finished`
    (UTC), `seconds`, `command` (null from Python); of a comparison also `control_seconds`, the total time of its
    controls."""
    model: dict[str, Any] = {}
    """`name`, `architecture`, `parameters`, `n_layers`, `n_heads`, `d_model`, `dtype`, `route`, `revision` (on the
    hub), `vocabulary`, `notes` (on how it was loaded; also among `warnings`), `inputs` (digest of weights, texts and
    labels); of a selection or a folding study also `refused_routes`; of a stability study only `name`, the rest is
    given with each of its models."""
    task: dict[str, Any] = {}
    """`name`, `source`, `label_words` (None for multiple choice), `labels` (label in the data → its label word, in
    label order; None for multiple choice; absent in older files), `prompt` (one rendered example), `prompt_tokens`
    (mean), `opening` (names of the tokens that begin every sequence), `separator` (its text, or that of the
    end-of-sequence token if that was used) and `separator_tokens` (they follow every demonstration, including the
    last), `form` (`plain`, or `chat` if demonstrations and queries are turns of the chat template) and `form_reason`
    (why; both absent in older files), `n_report`, `report_split`, `n_selection`, `selection_split`, of a selection
    study also `n_untouched`. In a chat, `opening` includes the system message, `prompt` goes up to the beginning of the
    assistant's answer, and `separator` is all text between an answer and the next message."""
    demonstrations: DemonstrationReport | None = None
    """The demonstrations that were used."""
    baselines: Baselines | None = None
    """Scores of baselines that read no query; None in older files."""
    accuracy: dict[Learner, Accuracy] = {}
    """Accuracy of each learner."""
    predictions: dict[Learner, Predictions] = {}
    """Answers of each learner."""
    classification: dict[Learner, Classification] = {}
    """Scores of each learner by class, and of its label probabilities; empty in older files."""
    similarity: dict[Measure, Similarity] = {}
    """Similarity by each measure."""
    controls: dict[Control, dict[Measure, Similarity]] = {}
    """Similarity under each control, by each measure."""
    calibrated: dict[Measure, Calibrated] = {}
    """Calibrated score of each measure that has both a floor and a ceiling."""
    tests: list[PairedTest] = []
    """Paired test of each pair of learners."""
    rate_sweep: list[SweepPoint] = []
    """Finetuning at each learning rate of the grid, lowest first; empty without the control `rates`."""
    precision: dict[Learner, Rounding] = {}
    """How much the numbers of `ft` depend on rounding; empty with `rounding: none`, and in older files."""
    cost: dict[Learner, Cost] = {}
    """Cost of each learner."""
    labels: dict[Learner, LabelCount] = {}
    """Labels that each learner used; empty in older files, and for studies other than `comparison`."""
    against_icl: dict[Learner, PromptingComparison] = {}
    """Each other learner compared with `icl`, if `zsl` and `icl` were run."""
    fold: FoldReport | None = None
    """How the prompt was folded; None without the learner `fold`."""
    trials: list[Trial] = []
    """Every learning rate tried, including those of controls with a learning rate of their own."""
    own: dict[str, Any] = {}
    """Results of a study from another package, under names of its choice."""
    warnings: list[str] = []
    """What to consider before relying on the numbers, one sentence each."""

    def to_json(self) -> str:
        """The text of `result.json`, with `schema` first."""
        return self.model_dump_json(by_alias=True, indent=2)

    def to_pandas(self, table: str | None = None) -> "pandas.DataFrame":
        """The result as a data frame.

        Args:
            table: Title of a table of the result's page, such as `"Scores by label"` or `"Paired tests"` of a
                comparison. None for the main one: of a comparison, one row for each learner; of another study, its
                first table.

        Returns:
            Unrounded numbers, NaN where there is none; shares and accuracies lie in [0, 1]. The frame of a comparison
            has the columns `learner` (its key), `accuracy`, `n`, `over_majority`, `balanced_accuracy`, `macro_f1`,
            `log_loss`, `zero_probability`, `brier`, `ece`, `ece_if_calibrated`, `majority_share` and
            `agreement_with_icl`, with `_low` and `_high` for the ends of a 95 % interval, and the fields of `Cost`.

        Raises:
            ConfigError: There is no such table, or pandas is not installed.
        """
        return self._study().data_frame(self, table)

    def charts(self) -> "dict[str, alt.TopLevelMixin]":
        """The charts of the result's page by name, as altair objects that can be shown, changed and saved.

        Returns:
            Such as `against` (accuracy against cost), `accuracy`, `confusion`, `reliability` and `bands` (similarity)
            of a comparison; only charts for which the result has data. `altair.theme.enable("dualform")` draws them as
            on the page.
        """
        charts: dict[str, alt.TopLevelMixin] = self._study().charts(self)
        return charts

    def _repr_html_(self) -> str:
        """The answer, the first table and the warnings, for notebooks."""
        html: str = self._study().notebook_html(self)
        return html

    def _study(self) -> Any:
        """The study that wrote the result; comparison if it is not installed, which shows accuracies and costs."""
        # Use the registry, because this module must not import the studies.
        studies = Registry[Any]("dualform.studies", "study", object)
        return next((each for each in studies if each.result_name == self.study), studies["compare"])

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read the text of `result.json`, written by this version of dualform or an older one.

        Returns:
            A result of the study's own class; for a study that is not installed, one that keeps all its fields.

        Raises:
            ConfigError: The file was written by a newer version of dualform.
            ValueError: The text is damaged, or does not follow the schema (`pydantic.ValidationError`).
        """
        return read_result(from_json(text))


class ResultOfAbsentStudy(Result):
    """The result of a study that is not installed; fields that only that study defines are kept unvalidated."""

    model_config = ConfigDict(extra="allow")


def read_result(fields: Any) -> Result:
    """A result from the content of `result.json`; see `Result.from_json`."""
    if not isinstance(fields, dict):
        return Result.model_validate(fields)
    fields = migrate_result(fields)
    return result_class(fields.get("study")).model_validate(fields)


def result_class(study: Any) -> type[Result]:
    """The class of a study's results, by its name in `result.json`."""
    # Use the registry, because this module must not import the studies.
    studies = Registry[Any]("dualform.studies", "study", object)
    matching: type[Result] = next((each.result() for each in studies if each.result_name == study), ResultOfAbsentStudy)
    return matching


AnyResult = Annotated[
    SerializeAsAny[Result], BeforeValidator(lambda value: read_result(value) if isinstance(value, dict) else value)
]
"""A result inside another record, of any study and any known schema version."""

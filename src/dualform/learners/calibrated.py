"""Prompting with calibrated answers, corrected for a preference for some labels that does not depend on the query.

Three ways to estimate the preference: content-free inputs (`icl_contextual`), random words of the task (`icl_domain`),
and unlabelled texts of the task (`icl_batch`). None needs a label beyond those in the prompt.
"""

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.errors import NumericalError
from dualform.learners.adapted import AdaptationCost, AdaptedModel, answer_log_probabilities
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.learners.prompting import InContext
from dualform.learners.saved_parts import SavedParts
from dualform.learners.words import pieces
from dualform.models.cost.work import Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.models.reading.layout import Probe, Query
from dualform.ops.calibration import batch_calibration, contextual_calibration
from dualform.tasks.task import Example

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Content-free texts for contextual calibration, as in arXiv:2102.09690, section 5."""

RANDOM_TEXTS = 20
"""Texts of random words for domain calibration, as in arXiv:2305.19148."""

FEWEST_TEXTS = 8
"""Unlabelled texts below which batch calibration would correct for these texts rather than for the prompt."""

Calibration = Callable[[Tensor, Tensor], Tensor]
"""Function of the answers to queries and of those to reference inputs, see `dualform.ops.calibration`."""


def content_free_queries(setup: Setup) -> tuple[Query, ...]:
    """Content-free queries; none for multiple choice, which has no label words to calibrate."""
    if setup.task.is_multiple_choice:
        return ()
    return _queries(setup, [dict.fromkeys(setup.task.template.fields, text) for text in CONTENT_FREE])


def unlabelled_examples(context: AdaptationContext) -> list[Example]:
    """Rows of the train split that are not among the labelled ones, in an order that depends on the seed.

    Their labels must not be used. Empty if every row is a labelled one.
    """
    used = set(context.labelled.rows)
    rows = [example for example in context.task.split("train") if example.row not in used]
    return random.Random(f"{context.seed}/unlabelled").sample(rows, len(rows))


def unlabelled_queries(context: AdaptationContext, most: int) -> tuple[Query, ...]:
    """The first unlabelled texts that fit behind the demonstrations, at most `most`."""
    room = context.setup.context - len(context.encoded.prefix)
    chosen: list[Query] = []
    for example in unlabelled_examples(context):
        query = context.setup.encoder.query(example)
        if query.longest() < room:
            chosen.append(query)
        if len(chosen) == most:
            break
    return tuple(chosen)


def random_queries(context: AdaptationContext) -> tuple[Query, ...]:
    """Texts of words drawn at random from the unlabelled texts, each as long as these are on average.

    Every field of the template gets words of that field. In scripts without spaces, characters are drawn.
    """
    examples = unlabelled_examples(context) or list(context.labelled.examples)
    generator = random.Random(f"{context.seed}/random words")
    words: dict[str, list[str]] = {}
    lengths: dict[str, int] = {}
    for name in context.task.template.fields:
        texts = [example.fields[name] for example in examples]
        # Where words have spaces between them, the first one of a text gets one as well.
        words[name] = [piece for text in texts for piece in pieces(f" {text}" if " " in text else text)]
        lengths[name] = max(1, round(len(words[name]) / max(1, len(examples))))
    # No longer than the longest query, for which there is room.
    longest = max((len(query.prompt) for query in context.setup.queries), default=0)

    def draw(share: float) -> Query | None:
        fields = {
            name: "".join(generator.choices(words[name], k=max(1, int(lengths[name] * share)))).strip()
            for name in words
            if words[name]
        }
        drawn = _queries(context.setup, [dict.fromkeys(words, "") | fields])
        return drawn[0] if drawn else None

    queries = []
    for _ in range(RANDOM_TEXTS):
        share = 1.0
        query = draw(share)
        while query is not None and len(query.prompt) > longest and share > 0.1:
            share /= 2
            query = draw(share)
        if query is not None:
            queries.append(query)
    return tuple(queries) or content_free_queries(context.setup)


def _queries(setup: Setup, fields: Sequence[dict[str, str]]) -> tuple[Query, ...]:
    """Texts as queries, without those that leave the prompt empty."""
    examples = [Example(fields=each, label=0, row=-1) for each in fields]
    return tuple(setup.encoder.query(each) for each in examples if setup.task.template.render(each).strip())


@dataclass(frozen=True)
class CalibratedModel:
    """The prompted model with calibrated answers."""

    learner: str
    prompted: AdaptedModel
    reference: Tensor
    """The prompted model's answers to the reference inputs, `(reference, label)`, nats."""
    calibrate: Calibration
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        return self.prompted.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries after the demonstrations."""
        return self.answer(self.prompted.read_group(queries, indices, want, probe))

    def answer(self, readings: Readings) -> Readings:
        """Calibrate the answers in readings after the same demonstrations.

        Raises:
            NumericalError: A label has probability 0 for all reference inputs.
        """
        table = self.calibrate(readings.log_probabilities.double().cpu(), self.reference)
        if torch.isnan(table).any():
            raise NumericalError(
                f"{self.learner}: some label has probability 0 for all reference inputs, so answers cannot be divided "
                "by it. Use --dtype float32, or other label words."
            )
        return replace(readings, log_probabilities=table)

    def saved_parts(self) -> SavedParts:
        """See `Saveable`; every calibration here adds a constant to the log-probability of each label."""
        shift = self.calibrate(torch.zeros(1, self.reference.shape[1], dtype=torch.float64), self.reference)[0]
        return replace(self.prompted.saved_parts(), shift=shift)


class CalibratedLearner(Learner):
    """In-context learning with answers calibrated on reference inputs, for tasks with label words."""

    needs_label_words = True
    shows_demonstrations = True
    answers_from = "icl"

    @abstractmethod
    def references(self, context: AdaptationContext) -> tuple[Query, ...]:
        """The reference inputs, at least one."""

    @abstractmethod
    def calibrate(self, log_probabilities: Tensor, reference: Tensor) -> Tensor:
        """Calibrated answers, see `Calibration`."""

    def adapt(self, context: AdaptationContext) -> CalibratedModel:
        """Encode the demonstrations, and read the reference inputs after them."""
        start = time.perf_counter()
        prompted = InContext().adapt(context.lm, context.encoded)
        reference = answer_log_probabilities(prompted, context.lm, self.references(context))
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return CalibratedModel(self.name, prompted, reference, self.calibrate, cost)

    def prefix_length(self, context: AdaptationContext) -> int:
        """Number of tokens of the demonstrations."""
        return len(context.encoded.prefix)

    def work(self, context: AdaptationContext) -> Work:
        """Encoding the demonstrations, and reading the reference inputs."""
        n_prefix = self.prefix_length(context)
        return encode(n_prefix) + read(self.references(context), n_prefix)


class ContextualCalibration(CalibratedLearner):
    """Answers divided by those to content-free inputs (`contextual_calibration`, arXiv:2102.09690)."""

    name = "icl_contextual"
    title = "ICL, contextual calibration"
    noun = "in-context learning with contextual calibration"
    meaning = "In-context learning, with answers divided by those to inputs without content."
    colour = "#56B4E9"

    def references(self, context: AdaptationContext) -> tuple[Query, ...]:
        """The content-free texts."""
        return content_free_queries(context.setup)

    def calibrate(self, log_probabilities: Tensor, reference: Tensor) -> Tensor:
        """Divide by the mean probability."""
        return contextual_calibration(log_probabilities, reference)


class DomainCalibration(ContextualCalibration):
    """Answers divided by those to random words of the task (arXiv:2305.19148): 20 texts of average length.

    The words are drawn from the texts of the train split that are not labelled examples.
    """

    name = "icl_domain"
    title = "ICL, domain calibration"
    noun = "in-context learning with domain calibration"
    meaning = "In-context learning, with answers divided by those to random words of the task."
    colour = "#3E8FB0"

    def references(self, context: AdaptationContext) -> tuple[Query, ...]:
        """Texts of random words."""
        return random_queries(context)


class BatchCalibration(CalibratedLearner):
    """Answers relative to the mean over unlabelled texts (`batch_calibration`, arXiv:2309.17249).

    The batch consists of `batch_texts` texts of the train split that are not labelled examples. The paper takes the
    reported queries themselves; then the answer to one query depends on the others, and none can be given before all
    have been read. Either assumes that the classes are about equally frequent in the batch.
    """

    name = "icl_batch"
    title = "ICL, batch calibration"
    noun = "in-context learning with batch calibration"
    meaning = "In-context learning, with answers relative to their mean over unlabelled texts."
    colour = "#1F5F8B"

    def references(self, context: AdaptationContext) -> tuple[Query, ...]:
        """Unlabelled texts; content-free ones if there are fewer than `FEWEST_TEXTS`."""
        batch = unlabelled_queries(context, context.config.batch_texts)
        few = len(batch) < min(FEWEST_TEXTS, context.config.batch_texts)
        return content_free_queries(context.setup) if few else batch

    def calibrate(self, log_probabilities: Tensor, reference: Tensor) -> Tensor:
        """Subtract the mean log-probability."""
        return batch_calibration(log_probabilities, reference)


CONTEXTUAL = ContextualCalibration()
DOMAIN = DomainCalibration()
BATCH = BatchCalibration()

"""Context distillation: weights trained so that a model without a prompt predicts what it predicted with the prompt.

Folding approximates this with forward passes alone. Distillation shows how close to in-context learning a model without
the prompt can come, and at which cost of training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.learners.adapted import AdaptedModel
from dualform.learners.batch_trained import TrainableWeights
from dualform.learners.batches import minimise_in_batches, opening_work, padded_logits, steps_work
from dualform.learners.finetuned import require_learning_rate, trained_model
from dualform.learners.training_settings import TrainingSettings
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work, encode, read
from dualform.models.editing.edit import WeightDelta
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.ops.rounding import at_least_float32


@dataclass(frozen=True)
class Distilled:
    """Some weights, trained by AdamW on unlabelled texts to imitate the original model with the demonstrations.

    The loss is the mean over texts of KL(p || q), where p is the distribution over the vocabulary that the original
    model predicts after the demonstrations and the text, where the answer begins, and q is that of the trained model
    after the opening and the text. Without demonstrations p = q, and nothing is trained.

    Source:
        Context distillation, arXiv:2112.00861 and arXiv:2209.15189.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...] = field(repr=False)
    """Unlabelled texts, in the format of queries; their answers are not read."""
    learning_rate: float
    weights: TrainableWeights
    settings: TrainingSettings
    """Epochs, batches and schedule; `loss_on` does not apply."""
    seed: int
    """Seed of the order of the texts, of adapters' initialisation, and of dropout."""
    name: str = "distill"

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, compute the weight changes, and restore the weights.

        The losses of the result are nats per text.

        Raises:
            TrainingError: The loss became NaN or infinite.
            ModelError: The model does not have these weights, or they cannot be trained.
        """
        start = time.perf_counter()
        losses: list[float] = []
        deltas: tuple[WeightDelta, ...] = ()
        if self._distils(demonstrations):
            teacher = prompted_log_probabilities(lm, demonstrations, self.texts)
            sequences = self._sequences()

            def summed_loss(piece: Sequence[int]) -> Tensor:
                return summed_divergence(lm, [sequences[i] for i in piece], teacher[list(piece)])

            lengths = [len(ids) for ids in sequences]
            with self.weights.open(lm, self.seed) as training:
                losses = minimise_in_batches(
                    summed_loss,
                    lengths,
                    [1] * len(lengths),
                    training.parameters,
                    self.settings,
                    self.learning_rate,
                    self.seed,
                )
                # Without a change the model is zero-shot bit for bit, also where changed weights are read another way.
                deltas = tuple(delta for delta in training.deltas() if delta.delta.any())
        return trained_model(self, lm, demonstrations, deltas, losses, time.perf_counter() - start)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The texts read once after the demonstrations, and the forwards and backwards of all batches."""
        if not self._distils(demonstrations):
            return opening_work(len(self.opening))
        prefix = len(demonstrations.prefix)
        lengths = [len(ids) for ids in self._sequences()]
        steps = steps_work(
            lengths,
            [1] * len(lengths),
            self.settings,
            self.weights.kind,
            seed=self.seed,
            rank=self.weights.rank,
            targets=self.weights.targets,
        )
        return encode(prefix) + read(_unanswered(self.texts), prefix) + steps + opening_work(len(self.opening))

    def _distils(self, demonstrations: EncodedDemonstrations) -> bool:
        """Whether the demonstrations can change any prediction."""
        return demonstrations.prefix != self.opening

    def _sequences(self) -> list[tuple[int, ...]]:
        return [(*self.opening, *text.prompt) for text in self.texts]


def prompted_log_probabilities(
    lm: LanguageModel, demonstrations: EncodedDemonstrations, texts: tuple[Query, ...]
) -> Tensor:
    """Log-probabilities of the token after each text, which follows the demonstrations.

    Returns:
        `(text, vocab)`, nats.
    """
    queries = _unanswered(texts)
    with torch.no_grad():
        prefix = lm.encode(demonstrations.prefix)
        groups = [list(indices) for indices in lm.groups(queries)]
        rows = torch.cat([at_least_float32(lm.read_group(prefix, queries, indices).next_token) for indices in groups])
    order = torch.tensor([index for indices in groups for index in indices], device=rows.device)
    return rows[order.argsort()]


def summed_divergence(lm: LanguageModel, sequences: list[tuple[int, ...]], teacher: Tensor) -> Tensor:
    """Sum over sequences of KL(p || q), nats, with its graph.

    Args:
        lm: The model that predicts q after each sequence's last token.
        sequences: Token ids.
        teacher: log p, `(sequence, vocab)`.
    """
    logits = padded_logits(lm, sequences, [[len(ids) - 1] for ids in sequences])
    return F.kl_div(at_least_float32(logits).log_softmax(dim=-1), teacher, reduction="sum", log_target=True)


def _unanswered(texts: tuple[Query, ...]) -> tuple[Query, ...]:
    return tuple(Query(text.prompt, ()) for text in texts)

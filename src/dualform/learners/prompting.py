"""Zero-shot and in-context learning: the model is not changed, only its prefix."""

import time
from dataclasses import dataclass

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work, encode
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel


@dataclass(frozen=True)
class ZeroShot:
    """No demonstrations: the opening token, then the query."""

    opening: tuple[int, ...]
    """Tokens before every query, usually the beginning-of-sequence token alone."""
    name: str = "zsl"

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Encode the opening; `demonstrations` are ignored."""
        return _with_prefix(self.name, lm, self.opening, self.work(lm.shape, demonstrations))

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The opening, read once."""
        return encode(len(self.opening))


@dataclass(frozen=True)
class InContext:
    """Demonstrations in front of the query, encoded once for all queries."""

    name: str = "icl"

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Encode the demonstrations."""
        return _with_prefix(self.name, lm, demonstrations.prefix, self.work(lm.shape, demonstrations))

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The demonstrations, read once."""
        return encode(len(demonstrations.prefix))


def _with_prefix(learner: str, lm: LanguageModel, prefix: tuple[int, ...], work: Work) -> AdaptedModel:
    start = time.perf_counter()
    encoded = lm.encode(prefix)
    seconds = time.perf_counter() - start
    return AdaptedModel(learner, lm, encoded, AdaptationCost.of(work, lm.shape, seconds))


class ZeroShotLearner(Learner):
    """See `ZeroShot`."""

    name = "zsl"
    uses_demonstrations = False

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Encode the opening."""
        return ZeroShot(context.opening).adapt(context.lm, context.encoded)


class InContextLearner(Learner):
    """See `InContext`."""

    name = "icl"
    shows_demonstrations = True

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Encode the demonstrations."""
        return InContext().adapt(context.lm, context.encoded)

    def prefix_length(self, context: AdaptationContext) -> int:
        """Number of tokens of the demonstrations."""
        return len(context.encoded.prefix)


ZERO_SHOT = ZeroShotLearner()
IN_CONTEXT = InContextLearner()

"""Weights and prompt together: a trained model reads its queries after the demonstrations."""

import math
import random
from dataclasses import replace
from typing import Any

from dualform.errors import ModelError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.learners.batch_trained import BatchTrained
from dualform.learners.lora import LORA, LoraLearner, LoraWeights
from dualform.models.cost.work import Work, encode
from dualform.models.editing.edit import applied
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel


class LoraAndPromptLearner(Learner):
    """LoRA trained on all labelled examples one by one, with the demonstrations in the prompt of every query.

    At learning rate 0 it is in-context learning, and without demonstrations it is LoRA.

    Source:
        arXiv:2512.19879.
    """

    name = "lora_icl"
    changes_weights = True
    grid = "lora_rates"
    trains_on = "labelled"
    shows_demonstrations = True

    trained: LoraLearner = LORA
    """The learner that trains the weights."""

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Train, and encode the demonstrations with the changed weights."""
        return _prompted(self, self.trained.adapt(context), context)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """As for the training."""
        self.trained.check(lm, config)

    def prefix_length(self, context: AdaptationContext) -> int:
        """The demonstrations, as for in-context learning."""
        return len(context.encoded.prefix)

    def work(self, context: AdaptationContext) -> Work:
        """Training, and reading the demonstrations once."""
        return self.trained.work(context) + encode(self.prefix_length(context))

    def extra_bytes(self, setup: Setup) -> int:
        """As for the training."""
        return self.trained.extra_bytes(setup)


class TestTimeTrainingLearner(Learner):
    """LoRA trained to answer each demonstration after the others, which are then the prompt of every query.

    Each example is predicted after all others in a random order. The loss is that of its label word. With automatic
    epochs there are about 20 steps of two examples each, because every example is as long as a whole prompt.

    Source:
        arXiv:2411.07279, whose leave-one-out tasks are these.
    """

    # Otherwise pytest would take the class for a test.
    __test__ = False

    name = "ttt"
    changes_weights = True
    grid = "lora_rates"
    trains_on = "demonstrations"
    shows_demonstrations = True

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Train, and encode the demonstrations with the changed weights."""
        return _prompted(self, self._method(context).adapt(context.lm, leave_one_out(context)), context)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """As for LoRA, with the recipe practised."""
        if config.lora.recipe == "one-pass":
            raise ModelError("it trains in epochs, so the recipe one-pass cannot be used: leave out ttt, or the recipe")
        LORA.check(lm, config)

    def prefix_length(self, context: AdaptationContext) -> int:
        """The demonstrations, as for in-context learning."""
        return len(context.encoded.prefix)

    def work(self, context: AdaptationContext) -> Work:
        """Training on prompts, and reading the demonstrations once."""
        training = self._method(context).work(context.lm.shape, leave_one_out(context))
        return training + encode(self.prefix_length(context))

    def extra_bytes(self, setup: Setup) -> int:
        """As for LoRA."""
        return LORA.extra_bytes(setup)

    def _method(self, context: AdaptationContext) -> BatchTrained:
        settings = context.config.training
        if settings.epochs == "auto":
            size = min(2, settings.batch_size)
            steps = math.ceil(len(context.encoded.sequences) / size)
            settings = settings.model_copy(update={"batch_size": size, "epochs": math.ceil(20 / max(1, steps))})
        weights = LoraWeights(context.config.lora)
        return BatchTrained(context.opening, context.rate or 0.0, weights, settings, context.seed, self.name)


def leave_one_out(context: AdaptationContext) -> EncodedDemonstrations:
    """The demonstrations, each of whose training sequences begins with all others in a random order."""
    encoded, n_opening = context.encoded, len(context.opening)
    separator = context.setup.encoder.separator
    own = [ids[n_opening:] for ids in encoded.sequences]
    generator = random.Random(f"{context.seed}/leave-one-out")
    sequences = []
    for number, answered in enumerate(own):
        others = [other for place, other in enumerate(own) if place != number]
        generator.shuffle(others)
        before = [token for other in others for token in (*other, *separator)]
        sequences.append((*context.opening, *before, *answered))
    return replace(encoded, sequences=tuple(sequences))


def _prompted(learner: Learner, trained: AdaptedModel, context: AdaptationContext) -> AdaptedModel:
    """The trained model, with the demonstrations before every query."""
    with applied(context.lm.model, trained.deltas):
        prefix = context.lm.encode(context.encoded.prefix)
    cost = AdaptationCost.of(learner.work(context), context.lm.shape, trained.cost.seconds)
    return replace(trained, learner=learner.name, prefix=prefix, cost=cost)


LORA_AND_PROMPT = LoraAndPromptLearner()
TEST_TIME_TRAINING = TestTimeTrainingLearner()

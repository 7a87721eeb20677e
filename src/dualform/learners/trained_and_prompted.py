"""Weights and prompt together: a trained model reads its queries after the demonstrations."""

from dataclasses import replace
from typing import Any

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.learners.lora import LORA, LoraLearner
from dualform.models.cost.work import Work, encode
from dualform.models.editing.edit import applied
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
        trained = self.trained.adapt(context)
        with applied(context.lm.model, trained.deltas):
            prefix = context.lm.encode(context.encoded.prefix)
        cost = AdaptationCost.of(self.work(context), context.lm.shape, trained.cost.seconds)
        return replace(trained, learner=self.name, prefix=prefix, cost=cost)

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


LORA_AND_PROMPT = LoraAndPromptLearner()

"""The learner `distill`, which trains adapters to answer without the prompt as the model does with it."""

import time
from typing import Any

from dualform.errors import ModelError
from dualform.learners.adapted import Adapted
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.learners.distill import Distilled
from dualform.learners.lora import LORA, LoraWeights
from dualform.models.cost.work import Work, WorkPart
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.studies.fold_work import calibration_parts
from dualform.studies.folds import FoldTexts, calibration_texts, check_calibration, cost_of_writing, with_cost


class DistillationLearner(Learner):
    """LoRA trained by `Distilled` on the texts from which `fold` is fitted, so that the two can be compared."""

    name = "distill"
    needs_demonstrations = True
    changes_weights = True
    grid = "lora_rates"
    trains_on = "demonstrations"

    def adapt(self, context: AdaptationContext) -> Adapted:
        """Train at the context's learning rate, and record the number and source of the texts."""
        begin = time.perf_counter()
        texts, source = calibration_texts(context.setup, context.drawn, context.config.fold)
        seconds = time.perf_counter() - begin
        context.record({"texts": len(texts), "source": source})
        adapted = self._method(context, texts).adapt(context.lm, context.encoded)
        read = FoldTexts(texts, source, (), "none")
        return with_cost(adapted, cost_of_writing(context.setup, context.drawn, read, seconds))

    def check(self, lm: LanguageModel, config: Any) -> None:
        """As for LoRA, with the recipe practised."""
        if config.lora.recipe == "one-pass":
            raise ModelError(
                "it trains in epochs, so the recipe one-pass cannot be used: leave out distill, or the recipe"
            )
        LORA.check(lm, config)

    def prepare(self, setup: Setup) -> tuple[str, ...]:
        """See `check_calibration`."""
        return check_calibration(setup, setup.config.fold)

    def work(self, context: AdaptationContext) -> Work:
        """The sum of `parts`."""
        return sum((part.work for part in self.parts(context)), Work())

    def parts(self, context: AdaptationContext) -> list[WorkPart]:
        """Training, and before it the generation of texts where the model has to."""
        texts, parts = calibration_parts(context.setup, context.drawn, context.config.fold, self.name)
        training = self._method(context, texts).work(context.lm.shape, context.encoded)
        return [*parts, WorkPart(self.name, training)]

    def extra_bytes(self, setup: Setup) -> int:
        """As for LoRA, and a distribution over the vocabulary for each text."""
        return LORA.extra_bytes(setup) + 4 * setup.config.fold.texts * setup.lm.shape.vocabulary

    def _method(self, context: AdaptationContext, texts: tuple[Query, ...]) -> Distilled:
        weights = LoraWeights(context.config.lora)
        return Distilled(
            context.opening, texts, context.rate or 0.0, weights, context.config.training, context.seed, self.name
        )


DISTILLATION = DistillationLearner()

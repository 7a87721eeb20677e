"""Finetuning repeated from slightly rounded weights, to measure how much it depends on rounding."""

from dataclasses import replace

from dualform.errors import NumericalError
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.rate import RateSearch
from dualform.studies.comparison.repeated import FinetuningRepeat
from dualform.studies.learner_training import train_at_rate


def repeat_training(learner: Learner, context: AdaptationContext, search: RateSearch) -> FinetuningRepeat | None:
    """The training repeated from weights changed by one unit in the last place; None without demonstrations."""
    if not context.encoded_labelled.sequences:
        return None
    model = search.repeat
    if model is None:
        repeat_context = replace(context, rate=search.learning_rate, rounding_seed=context.seed)
        try:
            model = train_at_rate(learner, repeat_context)
        except NumericalError:
            # Reported as a repeat that diverged.
            model = None
    return FinetuningRepeat(model, search.learning_rate, search.best.losses)

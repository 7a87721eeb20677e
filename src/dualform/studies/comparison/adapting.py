"""Learners adapted to one seed's demonstrations, at learning rates that are known or searched for."""

from dataclasses import replace
from functools import partial

from dualform.errors import ConfigError, NumericalError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.rate import RateSearch
from dualform.progress import Progress
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.repeated import FinetuningRepeat
from dualform.studies.experiment import Experiment
from dualform.studies.tuning import train_at_best_rate


class LearnerProgress:
    """Reports shares of one learner's work to a progress bar.

    Args:
        progress: The bar.
        work: All of the work.
        doing: Text next to the bar.
    """

    def __init__(self, progress: Progress, work: float, doing: str) -> None:
        self._progress, self._work, self._doing = progress, work, doing
        self.share = 0.0
        """Share of the work that is done."""

    def __call__(self, share: float) -> None:
        """Report that a further share of the work is done."""
        self.share += share
        self._progress.advance(self._work * share, self._doing)


def train_learner(
    experiment: Experiment[ComparisonConfig], learner: Learner, context: AdaptationContext, known: float | None
) -> RateSearch:
    """Train at a known learning rate, or search the learner's grid.

    Raises:
        TrainingError: Every rate diverged.
    """
    config = experiment.config

    def adapt(rate: float, rounding_seed: int | None = None) -> AdaptedModel:
        return train_at_rate(learner, replace(context, rate=rate, rounding_seed=rounding_seed))

    chooses = learner.can_repeat and config.repeats_finetuning and config.rounding == "choose"
    return train_at_best_rate(
        adapt,
        config.grid_of(learner),
        experiment,
        name=learner.name,
        seed=context.seed,
        known=known,
        report=context.report,
        repeat=partial(adapt, rounding_seed=context.seed) if chooses and context.encoded.sequences else None,
        option=f"--{learner.grid}".replace("_", "-"),
    )


def train_at_rate(learner: Learner, context: AdaptationContext) -> AdaptedModel:
    """Train once, at the context's learning rate.

    Raises:
        ConfigError: What the learner made has no training losses and no changes of weight.
    """
    adapted = learner.adapt(context)
    if not isinstance(adapted, AdaptedModel):
        raise ConfigError(
            f"the learner {learner.name} searches the grid {learner.grid}, so its adapt should return an AdaptedModel, "
            f"not a {type(adapted).__name__}"
        )
    return adapted


def repeat_training(learner: Learner, context: AdaptationContext, found: RateSearch) -> FinetuningRepeat | None:
    """Training repeated from weights moved by rounding; None without demonstrations to train on."""
    if not context.encoded.sequences:
        return None
    model = found.repeat
    if model is None:
        again = replace(context, rate=found.learning_rate, rounding_seed=context.seed)
        try:
            model = train_at_rate(learner, again)
        except NumericalError:
            # The repeat diverged: the largest effect that rounding can have, and reported as such.
            model = None
    return FinetuningRepeat(model, found.learning_rate, found.best.losses)

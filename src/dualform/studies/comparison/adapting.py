"""Training learners on one seed's demonstrations, at known learning rates or with a search."""

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
from dualform.studies.inner_selection import InnerSelection
from dualform.studies.tuning import InsideLabels, train_at_best_rate


class LearnerProgress:
    """Reports one learner's progress to a progress bar.

    Args:
        progress: The progress bar.
        work: The learner's total work, as `passes` counts it.
        doing: Text next to the bar.
    """

    def __init__(self, progress: Progress, work: float, doing: str) -> None:
        self._progress, self._work, self._doing = progress, work, doing
        self.share = 0.0
        """Share of the work done so far."""

    def __call__(self, share: float) -> None:
        """Report that a further share of the work was done."""
        self.share += share
        self._progress.advance(self._work * share, self._doing)


def train_learner(
    experiment: Experiment[ComparisonConfig], learner: Learner, context: AdaptationContext, known: float | None
) -> RateSearch:
    """Train at a known learning rate; None searches the learner's grid.

    Raises:
        TrainingError: Every rate diverged.
    """
    config = experiment.config
    grid = config.grid_of(learner)
    if config.labels is not None and known is None and len(grid) == 1:
        # There is nothing to choose, so no label is spent on it.
        known = grid[0]

    def adapt(rate: float, rounding_seed: int | None = None) -> AdaptedModel:
        return train_at_rate(learner, replace(context, rate=rate, rounding_seed=rounding_seed))

    inside = None
    if config.labels is not None and known is None:
        selection = InnerSelection(experiment, context.labelled)
        inside = InsideLabels(
            selection.labels,
            lambda rate: selection.predict(
                lambda part: train_at_rate(learner, replace(context, drawn=part, rate=rate, rounding_seed=None))
            ),
        )
    chooses = learner.can_repeat and config.repeats_finetuning and config.rounding == "choose"
    return train_at_best_rate(
        adapt,
        grid,
        experiment,
        name=learner.name,
        seed=context.seed,
        known=known,
        report=context.report,
        repeat=partial(adapt, rounding_seed=context.seed) if chooses and context.encoded.sequences else None,
        option=f"--{learner.grid}".replace("_", "-"),
        inside=inside,
    )


def train_at_rate(learner: Learner, context: AdaptationContext) -> AdaptedModel:
    """Train once, at the context's learning rate.

    Raises:
        ConfigError: The learner did not return an `AdaptedModel`.
    """
    adapted = learner.adapt(context)
    if not isinstance(adapted, AdaptedModel):
        raise ConfigError(
            f"the learner {learner.name} searches the grid {learner.grid}, so its adapt should return an AdaptedModel, "
            f"not a {type(adapted).__name__}"
        )
    return adapted


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

"""Training learners on one seed's labelled examples, at known learning rates or with a search."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import AdaptationContext, LabelUse, Learner
from dualform.learners.rate import RateSearch
from dualform.models.cost.work import WorkPart
from dualform.progress import Progress
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.inner_selection import InnerSelection
from dualform.studies.tuning import InsideLabels, train_at_best_rate
from dualform.studies.work import search_part


class LearnerProgress:
    """Reports one learner's progress to a progress bar.

    Args:
        progress: The progress bar.
        work: The learner's total work in the unit of progress bars, see `Work.passes`.
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


def refused(names: tuple[str, ...], check: Callable[[str], None]) -> dict[str, str]:
    """The names that a check refuses, each with the reason."""
    reasons = {}
    for name in names:
        try:
            check(name)
        except ModelError as error:
            reasons[name] = str(error).rstrip(".") + "."
    return reasons


def train_learner(
    experiment: Experiment[Any],
    learner: Learner,
    context: AdaptationContext,
    known: float | None,
    *,
    prefer_stable: bool = False,
) -> RateSearch:
    """Train a learner at a known learning rate, or at the best one of its grid.

    Args:
        experiment: Model, task and settings. With a budget of labels, the search uses no other labels.
        learner: A learner with a grid.
        context: What it learns from.
        known: The learning rate; None to search. If training diverges at it, lower rates of the grid are tried. With a
            budget of labels and a grid of one rate, that rate is used.
        prefer_stable: Whether the search prefers rates whose training does not depend on rounding.

    Returns:
        The trained model, its learning rate, which may be lower than `known`, and all trials.

    Raises:
        TrainingError: Every rate diverged.
    """

    def adapt(rate: float, rounding_seed: int | None = None) -> AdaptedModel:
        return train_at_rate(learner, replace(context, rate=rate, rounding_seed=rounding_seed))

    config, inside = experiment.config, None
    grid = config.grid_of(learner)
    if config.label_budget is not None and len(grid) == 1:
        # There is nothing to choose, so no label is spent on it.
        known = grid[0]
    if config.label_budget is not None and known is None:
        selection = InnerSelection(experiment, context.labelled)
        inside = InsideLabels(
            selection.labels,
            lambda rate: selection.predict(
                lambda part: train_at_rate(learner, replace(context, drawn=part, rate=rate, rounding_seed=None))
            ),
        )
    prefer_stable = prefer_stable and learner.can_repeat and bool(context.encoded.sequences)
    return train_at_best_rate(
        adapt,
        grid,
        experiment,
        name=learner.name,
        seed=context.seed,
        known=known,
        report=context.report,
        repeat=partial(adapt, rounding_seed=context.seed) if prefer_stable else None,
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


def training_part(
    experiment: Experiment[Any], learner: Learner, context: AdaptationContext, *, known: bool, label: str | None = None
) -> WorkPart:
    """The work of `train_learner`.

    Args:
        experiment: Model, task and settings.
        learner: A learner with a grid.
        context: What it learns from.
        known: Whether the learning rate is known.
        label: Name of the part; by default the learner's.
    """
    inside, rates = None, experiment.config.grid_of(learner)
    known = known or (experiment.config.label_budget is not None and len(rates) == 1)
    if experiment.config.label_budget is not None and not known:
        selection = InnerSelection(experiment, context.labelled)
        known = not selection.labels
        inside = selection.work(learner, context)
    return search_part(label or learner.name, learner.work(context), rates, experiment, known=known, inside=inside)


def count_labels(experiment: Experiment[Any], learner: Learner, drawn: DemonstrationSet) -> LabelUse:
    """Number of labels that a learner uses, including those on which its learning rate is chosen."""
    use, budget = learner.labels_used(AdaptationContext(experiment, drawn)), experiment.config.label_budget
    if learner.grid is None or len(experiment.config.grid_of(learner)) == 1:
        return use
    if budget is None:
        n = len(experiment.selection)
        return replace(use, selected=use.selected + n, total=use.total + n)
    n = len(drawn.labelled.examples)
    return replace(use, selected=n, total=max(use.total, n))


def label_counts(use: LabelUse) -> dict[str, int]:
    """The numbers by the names of `LabelCount`'s fields."""
    return {"demonstrations": use.shown, "training": use.trained, "settings": use.selected, "total": use.total}

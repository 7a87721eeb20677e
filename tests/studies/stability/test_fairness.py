import numpy as np
import pytest

from dualform.studies.stability.config import stability_config
from dualform.studies.stability.run import stability
from tests.studies.small import small_lm, small_task


@pytest.fixture(scope="module")
def study():
    config = stability_config(
        ("tiny",),
        "toy",
        k=4,
        seeds=(1, 2, 3),
        orders=2,
        ft_seeds=2,
        ft_orders=1,
        label_seeds=1,
        limit=8,
        selection_limit=6,
        rates=(1e-2,),
        resamples=200,
    )
    return stability(config, lms=[small_lm()], task=small_task())


def accuracy(study, learner: str) -> float:
    """Mean over the sets that FT was run on too, in the order drawn, with true labels."""
    labels = np.array([example.label for example in study.description.examples])
    runs = [
        run
        for run in study.models[0].runs
        if (run.learner, run.order, run.labels) == (learner, 0, "true") and run.seed in (1, 2)
    ]
    assert len(runs) == 2
    return float(np.mean([(run.answers.argmax(dim=1).numpy() == labels).mean() for run in runs]))


def test_the_sets_that_both_learners_have_are_compared(study):
    gaps = {gap.select: gap for gap in study.result.stability.models["tiny"].fairness}
    assert list(gaps) == ["none", "icl", "ft", "both"]
    assert all(gap.gap_untouched.n == 2 for gap in gaps.values())
    # Halves of eight queries add up to the whole.
    none = gaps["none"]
    assert (none.icl_chosen_on + none.icl_untouched) / 2 == pytest.approx(accuracy(study, "icl"))
    assert (none.ft_chosen_on + none.ft_untouched) / 2 == pytest.approx(accuracy(study, "ft"))


def test_the_learner_that_chose_is_at_its_best_where_it_chose(study):
    gaps = {gap.select: gap for gap in study.result.stability.models["tiny"].fairness}
    assert gaps["icl"].icl_chosen_on >= max(gap.icl_chosen_on for gap in gaps.values())
    assert gaps["ft"].ft_chosen_on >= max(gap.ft_chosen_on for gap in gaps.values())


def test_without_finetuning_there_is_nothing_to_be_fair_to():
    config = stability_config(
        ("tiny",), "toy", k=4, seeds=(1, 2), orders=1, ft_seeds=0, label_seeds=0, limit=8, resamples=50
    )
    result = stability(config, lms=[small_lm()], task=small_task()).result
    assert result.stability is not None
    assert result.stability.models["tiny"].fairness == []

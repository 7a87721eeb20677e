import pytest

from dualform.studies.stability.contrast_words import gain_over_zero_shot
from dualform.studies.stability.result import Stability, VarianceSplit
from dualform.studies.stability.words import stability_answers, variance_shares
from tests.report.example_result import empty_result
from tests.report.example_stability import LARGE, SMALL, contrast, example_model, example_stability, learner, one_model


def said(result, question: str | None = None) -> str:
    return "\n".join(stability_answers(result)[question] if question else all_said(result))


def all_said(result) -> list[str]:
    return [sentence for sentences in stability_answers(result).values() for sentence in sentences]


def compared(ratio: float | None, low: float | None, high: float | None, level: float = 0.7, **changes) -> str:
    """What is said of one model whose finetuning has this ratio of deviations to ICL."""
    learners = {
        "zsl": learner(0.5, 0, 0, sets=1, orders=1),
        "icl": learner(0.65, 0.05, 0.02),
        "ft": learner(level, 0.02, 0.01, **changes),
    }
    return said(one_model(learners, [contrast("ft", 0.02, 0.05, ratio, (low, high), SMALL)]), "stable")


def test_another_study_has_nothing_to_say():
    assert stability_answers(empty_result(study="stability")) == {}
    assert stability_answers(example_stability(stability=Stability(models={}, contrasts=[]))) == {}


def test_a_ratio_clear_of_one_says_who_is_more_stable():
    below, above = compared(0.4, 0.2, 0.8), compared(2.5, 1.2, 4.0)
    assert "Finetuning is more stable than in-context learning" in below
    assert "a standard deviation of 2.0 points, in-context learning's 5.0" in below
    assert "ratio 0.40 (95 % interval 0.20 to 0.80, 8 sets)" in below
    assert "Finetuning is less stable than in-context learning" in above


def test_a_ratio_whose_interval_holds_one_tells_nobody_apart():
    text = compared(0.6, 0.3, 1.1)
    assert "do not differ significantly in stability" in text
    assert "more stable" not in text


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.4, None, None), (None, None, None), (None, 0.2, 0.8)])
def test_without_a_ratio_or_its_interval_no_order_is_claimed(ratio, low, high):
    text = compared(ratio, low, high)
    assert "no order is claimed" in text
    assert "more stable" not in text


def test_after_calibration_the_two_are_compared_anew():
    contrasts = [
        contrast("ft", 0.02, 0.08, 0.25, (0.1, 0.5), SMALL),
        contrast("ft", 0.02, 0.02, 1.0, (0.7, 1.4), SMALL, calibrated=True),
    ]
    text = said(one_model(contrasts=contrasts), "stable")
    assert (
        "After contextual calibration of both, they do not differ significantly: 2.0 points compared with 2.0" in text
    )


def test_a_learner_that_hardly_moves_is_stable_for_free():
    still = compared(0.4, 0.2, 0.8, level=0.51)
    assert "a learner that hardly moves is stable for free" in still
    moved = compared(0.4, 0.2, 0.8, level=0.7)
    assert "points over zero-shot" in moved
    assert "for free" not in moved


def test_one_answer_to_everything_is_stable_for_free():
    text = compared(0.4, 0.2, 0.8, top=0.97)
    assert "of finetuning's runs collapse into one class, and one answer to all is stable for free" in text
    assert "one answer to all" not in compared(0.4, 0.2, 0.8, top=0.6)


def test_in_context_learning_moves_beside_it_on_the_same_runs():
    model = example_model(SMALL, 10)
    runs = {(run.seed, run.order): run for run in model.learners["icl"].runs if run.labels == "true"}
    shared = [runs[seed, order].plain.accuracy or 0.0 for seed in (1, 2, 3, 4) for order in (0, 1)]
    zsl = model.learners["zsl"].plain.accuracy.mean or 0.0
    assert gain_over_zero_shot(model, "icl", like="ft") == pytest.approx(sum(shared) / 8 - zsl)
    assert gain_over_zero_shot(model, "icl") != gain_over_zero_shot(model, "icl", like="ft")
    assert gain_over_zero_shot(model, "lora") is None


def test_without_finetuning_that_is_said():
    learners = {"icl": learner(0.65, 0.05, 0.02)}
    assert "Finetuning was not run" in said(one_model(learners), "stable")


def test_too_few_runs_leave_the_comparison_open():
    learners = {"icl": learner(0.65, 0.05, 0.02), "ft": learner(0.7, 0.02, 0.01, sets=1)}
    assert "The runs are too few to compare" in said(one_model(learners), "stable")


def test_several_models_are_answered_in_one_sentence_first():
    first = all_said(example_stability())[0]
    assert first == (
        f"Finetuning is more stable than in-context learning in {SMALL}; "
        f"it is less stable than in-context learning in {LARGE}."
    )


def test_a_further_rate_is_told_on_its_own():
    text = said(example_stability(), "stable")
    assert "Finetuning at rate 0.01 and in-context learning do not differ significantly" in text


def test_one_model_says_nothing_of_size():
    assert "nothing here says whether instability shrinks with size" in said(one_model(), "size")


def test_two_sizes_are_no_trend():
    text = said(example_stability(), "size")
    assert f"{LARGE} (268 million parameters) compared with {SMALL} (135 million parameters): the larger" in text
    assert "the larger is less stable, a standard deviation of 6.0 points compared with 2.0" in text
    assert "Two sizes are not a trend" in text


@pytest.mark.parametrize(("last", "claim"), [((0.4, 0.8), "is more stable at every"), ((0.4, 1.8), "is not shown")])
def test_three_sizes_shrink_only_where_every_step_does(last, claim):
    models = {name: example_model(name, size) for name, size in (("a", 10**6), ("b", 10**7), ("c", 3 * 10**9))}
    contrasts = [
        contrast("icl", 0.04, 0.08, 0.5, (0.3, 0.8), "b", "a", question="size"),
        contrast("icl", 0.02, 0.04, 0.6, last, "c", "b", question="size"),
    ]
    text = said(example_stability(stability=Stability(models=models, contrasts=contrasts)), "size")
    assert f"In-context learning {claim}" in text
    assert "c (3.00 billion parameters)" in text
    assert "not the effect of size alone" in text


def test_models_that_were_not_run_alike_are_not_compared():
    models = {name: example_model(name, 10) for name in ("a", "b")}
    assert "No two models were run alike" in said(example_stability(stability=Stability(models=models, contrasts=[])))


def test_collapse_is_told_before_and_after_calibration():
    text = said(one_model(), "collapse")
    assert "In-context learning collapses into one class in 30.0 % (20.0 to 40.0 %) of its runs" in text
    assert "after contextual calibration in 0.0 %" in text
    assert "of 8 sets 2 do so in every order, 1 in some and 5 in none" in text
    assert "the one answer is “Positive” in 12 of 12 such runs" in text
    assert "Without demonstrations the model already gives one answer to 94.7 % of the queries" in text


def test_calibration_claims_less_spread_only_where_the_intervals_lie_apart():
    apart = said(one_model({"icl": learner(0.65, 0.09, 0.03)}), "collapse")
    assert "less spread than before" in apart
    level = learner(0.65, 0.05, 0.02).model_copy(update={"calibrated": learner(0.65, 0.05, 0.02).plain})
    assert "no change of spread is claimed" in said(one_model({"icl": level}), "collapse")


def test_multiple_choice_has_no_calibration_and_no_label_to_name():
    learners = {"icl": learner(0.6, 0.08, 0.05, calibrated=False), "ft": learner(0.6, 0.05, 0.02, calibrated=False)}
    for key, each in learners.items():
        runs = [
            run.model_copy(update={"plain": run.plain.model_copy(update={"majority_label": None})}) for run in each.runs
        ]
        learners[key] = each.model_copy(update={"runs": runs})
    text = said(one_model(learners))
    assert "calibration" not in text
    assert "the one answer is" not in text
    assert "When in-context learning collapses" in text


def test_one_order_leaves_set_and_order_together():
    text = said(one_model({"icl": learner(0.6, 0.08, 0.05, orders=1)}))
    assert "with one order of each set, set and order are one" in text
    assert "in every order" not in text
    assert "8 sets in 1 order for in-context learning" in text


def test_set_and_order_are_ranked_only_where_their_intervals_lie_apart():
    assert "the set matters more than the order" in said(one_model({"icl": learner(0.6, 0.08, 0.02)}), "variance")
    assert "the order matters more than the set" in said(one_model({"icl": learner(0.6, 0.02, 0.08)}), "variance")
    assert "does not say which" in said(one_model({"icl": learner(0.6, 0.05, 0.05)}), "variance")


def test_shares_of_a_variance_add_up_and_nothing_has_none():
    split = VarianceSplit(set=2, order=1, residual=1, total=4, set_ci95=(1, 3), order_ci95=(0, 2))
    assert variance_shares(split) == {"set": 0.5, "order": 0.25, "residual": 0.25}
    assert variance_shares(split.model_copy(update={"total": 0.0})) == {}
    assert variance_shares(None) == {}


def test_no_variance_at_all_is_said():
    still = learner(0.6, 0.05, 0.02)
    nothing = VarianceSplit(set=0, order=0, residual=0, total=0, set_ci95=(0, 0), order_ci95=(0, 0))
    still = still.model_copy(update={"plain": still.plain.model_copy(update={"variance": nothing})})
    assert "In-context learning's accuracy did not vary" in said(one_model({"icl": still}), "variance")


def test_labels_matter_only_where_intervals_lie_apart():
    lower = {"true": (0.7, 0.66, 0.74), "random": (0.69, 0.64, 0.73), "flipped": (0.4, 0.35, 0.45)}
    text = said(one_model({"icl": learner(0.7, 0.05, 0.02, labels=lower)}), "labels")
    assert "it is lower with flipped ones (-39.0 to -21.0 points, 95 %), so it depends on the labels shown" in text
    assert "with random ones it is not distinguished from that with true ones" in text
    level = {"true": (0.7, 0.6, 0.8), "random": (0.6, 0.5, 0.7)}
    assert "depends" not in said(one_model({"icl": learner(0.7, 0.05, 0.02, labels=level)}), "labels")
    unknown = {"true": (0.7, None, None), "flipped": (0.4, None, None)}
    text = said(one_model({"icl": learner(0.7, 0.05, 0.02, labels=unknown)}), "labels")
    assert "without intervals no dependence on the labels is claimed" in text


def test_labels_that_were_not_varied_are_passed_over():
    assert said(one_model({"icl": learner(0.7, 0.05, 0.02)}), "labels") == ""


def test_how_much_it_stands_on_closes_the_verdict():
    last = all_said(example_stability())[-1]
    assert last == (
        "This stands on 8 sets in 5 orders for in-context learning; "
        "4 sets in 2 orders for finetuning and finetuning at rate 0.01, on 100 queries each."
    )

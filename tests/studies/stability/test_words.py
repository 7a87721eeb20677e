import pytest

from dualform.studies.stability.contrast_words import gain_over_zero_shot
from dualform.studies.stability.result import Stability, VarianceSplit
from dualform.studies.stability.words import stability_answers, variance_shares
from tests.report.example_result import empty_result
from tests.report.example_stability import LARGE, SMALL, contrast, example_model, example_stability, learner, one_model


def text_of(result, question: str | None = None) -> str:
    return "\n".join(stability_answers(result)[question] if question else all_sentences(result))


def all_sentences(result) -> list[str]:
    return [sentence for sentences in stability_answers(result).values() for sentence in sentences]


def compared(ratio: float | None, low: float | None, high: float | None, level: float = 0.7, **changes) -> str:
    """The findings on one model with this ratio of FT's standard deviation to ICL's."""
    learners = {
        "zsl": learner(0.5, 0, 0, sets=1, orders=1),
        "icl": learner(0.65, 0.05, 0.02),
        "ft": learner(level, 0.02, 0.01, **changes),
    }
    return text_of(one_model(learners, [contrast("ft", 0.02, 0.05, ratio, (low, high), SMALL)]), "stable")


def test_without_a_stability_study_there_are_no_findings():
    assert stability_answers(empty_result(study="stability")) == {}
    assert stability_answers(example_stability(stability=Stability(models={}, contrasts=[]))) == {}


def test_a_ratio_whose_interval_excludes_one_decides_which_is_more_stable():
    below, above = compared(0.4, 0.2, 0.8), compared(2.5, 1.2, 4.0)
    assert "Finetuning is more stable than in-context learning" in below
    assert "the standard deviation of its accuracy is 2.0 points, that of in-context learning 5.0" in below
    assert "(ratio 0.40, 95 % interval 0.20 to 0.80, 8 sets)" in below
    assert "Finetuning is less stable than in-context learning" in above


def test_a_ratio_whose_interval_contains_one_is_not_significant():
    text = compared(0.6, 0.3, 1.1)
    assert "do not differ significantly in stability" in text
    assert "more stable" not in text


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.4, None, None), (None, None, None), (None, 0.2, 0.8)])
def test_without_a_ratio_or_its_interval_there_is_no_conclusion(ratio, low, high):
    text = compared(ratio, low, high)
    assert "no interval of their ratio, so no conclusion" in text
    assert "more stable" not in text


def test_the_two_are_also_compared_after_calibration():
    contrasts = [
        contrast("ft", 0.02, 0.08, 0.25, (0.1, 0.5), SMALL),
        contrast("ft", 0.02, 0.02, 1.0, (0.7, 1.4), SMALL, calibrated=True),
    ]
    text = text_of(one_model(contrasts=contrasts), "stable")
    assert (
        "After contextual calibration of both, they do not differ significantly: 2.0 points compared with 2.0" in text
    )


def test_a_small_change_over_zero_shot_comes_with_a_caution():
    still = compared(0.4, 0.2, 0.8, level=0.51)
    assert "Under 2.0 points, a learner may be stable only because it changes little" in still
    moved = compared(0.4, 0.2, 0.8, level=0.7)
    assert "points over zero-shot" in moved
    assert "changes little" not in moved


def test_a_learner_that_mostly_collapses_comes_with_a_caution():
    text = compared(0.4, 0.2, 0.8, top=0.97)
    assert (
        "of finetuning's runs collapse into one class, and giving every query the same answer is stable as well" in text
    )
    assert "the same answer is stable" not in compared(0.4, 0.2, 0.8, top=0.6)


def test_the_gain_of_in_context_learning_is_that_on_the_same_runs():
    model = example_model(SMALL, 10)
    runs = {(run.seed, run.order): run for run in model.learners["icl"].runs if run.labels == "true"}
    shared = [runs[seed, order].plain.accuracy or 0.0 for seed in (1, 2, 3, 4) for order in (0, 1)]
    zsl = model.learners["zsl"].plain.accuracy.mean or 0.0
    assert gain_over_zero_shot(model, "icl", same_runs_as="ft") == pytest.approx(sum(shared) / 8 - zsl)
    assert gain_over_zero_shot(model, "icl") != gain_over_zero_shot(model, "icl", same_runs_as="ft")
    assert gain_over_zero_shot(model, "lora") is None


def test_missing_finetuning_is_reported():
    learners = {"icl": learner(0.65, 0.05, 0.02)}
    assert "Finetuning was not run" in text_of(one_model(learners), "stable")


def test_too_few_runs_leave_the_comparison_open():
    learners = {"icl": learner(0.65, 0.05, 0.02), "ft": learner(0.7, 0.02, 0.01, sets=1)}
    assert "There are too few runs to compare" in text_of(one_model(learners), "stable")


def test_several_models_are_first_summarised_in_one_sentence():
    first = all_sentences(example_stability())[0]
    assert first == (
        f"Finetuning is more stable than in-context learning in {SMALL}; "
        f"it is less stable than in-context learning in {LARGE}."
    )


def test_a_further_rate_has_its_own_finding():
    text = text_of(example_stability(), "stable")
    assert "Finetuning at rate 0.01 and in-context learning do not differ significantly" in text


def test_one_model_allows_no_conclusion_on_size():
    assert "no conclusion on stability and model size" in text_of(one_model(), "size")


def test_two_sizes_are_no_trend():
    text = text_of(example_stability(), "size")
    assert f"{LARGE} (268 million parameters) compared with {SMALL} (135 million parameters): the larger" in text
    assert "the larger is less stable, a standard deviation of 6.0 points compared with 2.0" in text
    assert "Two sizes are not a trend" in text


@pytest.mark.parametrize(
    ("last", "claim"), [((0.4, 0.8), "is more stable at every"), ((0.4, 1.8), "is not shown to be")]
)
def test_larger_is_more_stable_only_if_it_is_at_every_step(last, claim):
    models = {name: example_model(name, size) for name, size in (("a", 10**6), ("b", 10**7), ("c", 3 * 10**9))}
    contrasts = [
        contrast("icl", 0.04, 0.08, 0.5, (0.3, 0.8), "b", "a", question="size"),
        contrast("icl", 0.02, 0.04, 0.6, last, "c", "b", question="size"),
    ]
    text = text_of(example_stability(stability=Stability(models=models, contrasts=contrasts)), "size")
    assert f"In-context learning {claim}" in text
    assert "c (3.00 billion parameters)" in text
    assert "not the effect of size alone" in text


def test_models_without_a_common_learner_are_not_compared():
    models = {name: example_model(name, 10) for name in ("a", "b")}
    assert "No learner was run on two models" in text_of(
        example_stability(stability=Stability(models=models, contrasts=[]))
    )


def test_collapse_is_reported_before_and_after_calibration():
    text = text_of(one_model(), "collapse")
    assert "In-context learning collapses into one class in 30.0 % (20.0 to 40.0 %) of its runs" in text
    assert "after contextual calibration in 0.0 %" in text
    assert "of 8 sets, 2 do so in every order, 1 in some and 5 in none" in text
    assert "the answer is “Positive” in 12 of 12 such runs" in text
    assert "Without demonstrations the model already gives 94.7 % of the queries the same answer" in text


def test_calibration_reduces_the_spread_only_if_the_intervals_do_not_overlap():
    apart = text_of(one_model({"icl": learner(0.65, 0.09, 0.03)}), "collapse")
    assert "less spread than before" in apart
    level = learner(0.65, 0.05, 0.02).model_copy(update={"calibrated": learner(0.65, 0.05, 0.02).plain})
    assert "the spread does not change significantly" in text_of(one_model({"icl": level}), "collapse")


def test_multiple_choice_has_no_calibration_and_no_label_to_name():
    learners = {"icl": learner(0.6, 0.08, 0.05, calibrated=False), "ft": learner(0.6, 0.05, 0.02, calibrated=False)}
    for key, each in learners.items():
        runs = [
            run.model_copy(update={"plain": run.plain.model_copy(update={"majority_label": None})}) for run in each.runs
        ]
        learners[key] = each.model_copy(update={"runs": runs})
    text = text_of(one_model(learners))
    assert "calibration" not in text
    assert "the answer is" not in text
    assert "When in-context learning collapses" in text


def test_with_one_order_set_and_order_cannot_be_separated():
    text = text_of(one_model({"icl": learner(0.6, 0.08, 0.05, orders=1)}))
    assert "with one order per set, set and order cannot be separated" in text
    assert "in every order" not in text
    assert "8 sets in 1 order for in-context learning" in text


def test_set_and_order_are_ranked_only_if_their_intervals_do_not_overlap():
    assert "the set matters more than the order" in text_of(one_model({"icl": learner(0.6, 0.08, 0.02)}), "variance")
    assert "the order matters more than the set" in text_of(one_model({"icl": learner(0.6, 0.02, 0.08)}), "variance")
    assert "the shares of set and order do not differ significantly" in text_of(
        one_model({"icl": learner(0.6, 0.05, 0.05)}), "variance"
    )


def test_shares_of_a_variance_add_up_and_no_variance_has_none():
    split = VarianceSplit(set=2, order=1, residual=1, total=4, set_ci95=(1, 3), order_ci95=(0, 2))
    assert variance_shares(split) == {"set": 0.5, "order": 0.25, "residual": 0.25}
    assert variance_shares(split.model_copy(update={"total": 0.0})) == {}
    assert variance_shares(None) == {}


def test_zero_variance_is_reported():
    still = learner(0.6, 0.05, 0.02)
    nothing = VarianceSplit(set=0, order=0, residual=0, total=0, set_ci95=(0, 0), order_ci95=(0, 0))
    still = still.model_copy(update={"plain": still.plain.model_copy(update={"variance": nothing})})
    assert "In-context learning's accuracy did not vary" in text_of(one_model({"icl": still}), "variance")


def test_labels_matter_only_if_the_interval_of_the_difference_excludes_zero():
    lower = {"true": (0.7, 0.66, 0.74), "random": (0.69, 0.64, 0.73), "flipped": (0.4, 0.35, 0.45)}
    text = text_of(one_model({"icl": learner(0.7, 0.05, 0.02, labels=lower)}), "labels")
    assert (
        "it is lower with flipped ones (95 % interval of the difference -39.0 to -21.0 points), so it depends on"
        in text
    )
    assert "with random ones it does not differ significantly from that with true ones" in text
    level = {"true": (0.7, 0.6, 0.8), "random": (0.6, 0.5, 0.7)}
    assert "depends" not in text_of(one_model({"icl": learner(0.7, 0.05, 0.02, labels=level)}), "labels")
    unknown = {"true": (0.7, None, None), "flipped": (0.4, None, None)}
    text = text_of(one_model({"icl": learner(0.7, 0.05, 0.02, labels=unknown)}), "labels")
    assert "no intervals, so no conclusion on the labels" in text


def test_labels_that_were_not_varied_have_no_finding():
    assert text_of(one_model({"icl": learner(0.7, 0.05, 0.02)}), "labels") == ""


def test_the_last_sentence_counts_sets_orders_and_queries():
    last = all_sentences(example_stability())[-1]
    assert last == (
        "Based on 8 sets in 5 orders for in-context learning; "
        "4 sets in 2 orders for finetuning and finetuning at rate 0.01, each on 100 queries."
    )

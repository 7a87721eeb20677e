import pytest

from dualform.result import Accuracy, Baselines, Cost, PairedTest, Result
from dualform.studies.comparison.answer import MOST_MEASURES, acts_alike, first_measures, which_to_use
from tests.report.example_result import empty_result, example_result, old_result


def accuracy(low: float, high: float, n: int = 900) -> Accuracy:
    return Accuracy(mean=(low + high) / 2, ci95=(low, high), n=n, per_seed={})


def cost(flops: float) -> Cost:
    return Cost(adapt_seconds=1, query_seconds=1, tokens=9, flops=flops)


def compared(p: float | None = None, **spans: tuple[float, float]) -> Result:
    levels = {key: accuracy(*span) for key, span in spans.items()}
    tests = [
        PairedTest(
            first=better,
            second=worse,
            difference=(levels[better].mean or 0) - (levels[worse].mean or 0),
            ci95=(0.0, 0.1),
            n=900,
            p_queries=p,
            p_seeds=p,
            minimum_detectable=0.03,
        )
        for better in levels
        for worse in levels
        if better < worse and p is not None
    ]
    prices = {"zsl": 1.0, "ft": 2.0, "fold": 3.0, "icl": 40.0}
    return empty_result(
        accuracy=levels,
        cost={key: cost(prices[key]) for key in levels},
        tests=tests,
        baselines=Baselines(chance=0.5, majority=0.5, majority_label=" a", label_counts={" a": 50, " b": 50}, n=100),
    )


def test_the_only_unbeaten_learner_is_recommended_with_its_lead():
    sentence = which_to_use(compared(0.001, icl=(0.7, 0.8), ft=(0.58, 0.62), zsl=(0.5, 0.52)))
    assert sentence.startswith(
        "Use in-context learning: it answers 75 % (70 to 80 %) of the queries correctly, 15 points more"
    )
    assert sentence.endswith("by paired tests that holds for other queries and other demonstrations.")


def test_of_learners_that_do_not_differ_significantly_the_cheapest_is_recommended():
    sentence = which_to_use(compared(0.4, icl=(0.6, 0.8), ft=(0.58, 0.78), fold=(0.6, 0.79)))
    assert sentence.startswith("Use finetuning: it answers 68 % (58 to 78 %)")
    assert "not significantly different from in-context learning (70 %) and folding (70 %)" in sentence


def test_a_learner_that_may_be_guessing_is_not_recommended_for_being_cheap():
    sentence = which_to_use(compared(0.4, icl=(0.6, 0.8), zsl=(0.45, 0.75)))
    assert sentence.startswith("Use in-context learning")
    assert "guessing" in sentence


def test_nothing_is_recommended_where_nothing_answers_better_than_guessing():
    sentence = which_to_use(compared(icl=(0.4, 0.6), ft=(0.45, 0.55)))
    assert sentence.startswith("No recommendation: no learner is significantly better than")
    assert "50.0 %" in sentence


def test_without_intervals_or_with_few_answers_no_confidence_is_claimed():
    bare = {
        key: Accuracy(mean=mean, ci95=(None, None), n=900, per_seed={}) for key, mean in (("icl", 0.8), ("ft", 0.7))
    }
    assert "intervals are missing" in which_to_use(empty_result(accuracy=bare))
    few = {key: accuracy(0.5, 1.0, n=4) for key in ("icl", "ft")}
    assert "Too few answers" in which_to_use(empty_result(accuracy=few))
    assert which_to_use(empty_result()) == ""


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 0.3), "In part"),
        ((0.4, 1.1), "Yes"),
        ((-0.1, 0.2), "Not shown"),
        ((-0.1, 1.2), "Inconclusive"),
        ((-0.3, -0.1), "No:"),
        ((0.01, 0.04), "Hardly"),
        ((None, None), "Inconclusive"),
    ],
)
def test_whether_context_acts_like_finetuning_follows_the_interval_of_its_place(interval, word):
    result = example_result()
    place = result.calibrated["sim_aou_raw"].model_copy(update={"ci95": interval})
    assert acts_alike(result.model_copy(update={"calibrated": {"sim_aou_raw": place}})).startswith(word)


def test_the_first_chart_of_similarity_holds_at_most_five_measures():
    result = example_result()
    many = dict.fromkeys(result.similarity, result.calibrated["sim_aou"])
    keys = first_measures(result.model_copy(update={"calibrated": many}))
    assert len(keys) == MOST_MEASURES
    assert "sim_aou_raw" in keys
    assert first_measures(old_result()) == []
    assert acts_alike(old_result()) == ""

import pytest

from dualform.report.numerals import MISSING
from dualform.result import Accuracy, Cost, Estimate, PairedTest, PromptingComparison, Result
from dualform.studies.against_words import break_even, choice_heading, choice_sentences, fold_sentences
from tests.report.example_result import empty_result, example_result, old_result

Span = tuple[float, float]


def result_of(intervals: dict[str, Span], *tests: PairedTest) -> Result:
    """Learners with these intervals of accuracy, their means in the middle."""
    accuracy = {key: Accuracy(mean=sum(ends) / 2, ci95=ends, n=400, per_seed={}) for key, ends in intervals.items()}
    return empty_result(accuracy=accuracy, tests=list(tests))


def beside(anew: float | None, kept: float | None, recovered: tuple[float | None, Span | None] = (0.9, (0.7, 1.1))):
    mean, ends = recovered
    return PromptingComparison(
        agreement=Estimate(mean=0.9, ci95=(0.88, 0.92), n=400),
        recovered=Estimate(mean=mean, ci95=ends or (None, None), n=400),
        break_even=anew,
        break_even_kept=kept,
    )


def paired(first: str, second: str, difference: float, p: float, p_seeds: float | None = None) -> PairedTest:
    return PairedTest(
        first=first,
        second=second,
        difference=difference,
        ci95=(difference - 0.01, difference + 0.01),
        n=400,
        p_queries=p,
        p_seeds=p if p_seeds is None else p_seeds,
        minimum_detectable=0.03,
    )


def test_the_example_gets_a_paragraph_each_on_accuracy_agreement_and_cost():
    accuracy, agreement, cost = choice_sentences(example_result())
    assert accuracy == (
        "In-context learning and folding do not differ significantly in accuracy (paired tests): in-context learning "
        "answers 72 % (68 to 76 %) of the queries correctly, finetuning 68 % (66 to 71 %) and folding 71 % (68 to "
        "74 %). Finetuning is less accurate than in-context learning (by 4 points in a paired test, which holds for "
        "other queries under these demonstrations only)."
    )
    assert agreement == (
        "Folding agrees with in-context learning on 88 % (86 to 90 %) of the queries (zero-shot on 56 %, finetuning on "
        "79 %) and recovers 94 % (80 to 108 %) of the prompt's gain over zero-shot."
    )
    assert cost == (
        "Cheaper in operations, adaptation included, than a prompt that is read with every query: finetuning and LoRA "
        "after 3 queries, the linear probe unknown, folding after 13 queries. Cheaper than a prompt whose keys and "
        "values are cached: finetuning after 244 queries, LoRA never, the linear probe unknown, folding after 1,084 "
        "queries."
    )


def test_an_older_result_is_compared_by_its_intervals_alone():
    [sentence] = choice_sentences(old_result())
    assert sentence.startswith(
        "In-context learning, finetuning and folding do not differ significantly in accuracy (95 % intervals overlap): "
    )


def test_only_intervals_that_do_not_overlap_decide():
    [apart] = choice_sentences(result_of({"icl": (0.5, 0.6), "fold": (0.61, 0.7)}))
    assert apart == (
        "Folding is the most accurate: in-context learning answers 55 % (50 to 60 %) of the queries correctly and "
        "folding 66 % (61 to 70 %). In-context learning is less accurate than folding (95 % intervals do not overlap)."
    )
    [touching] = choice_sentences(result_of({"icl": (0.5, 0.62), "fold": (0.61, 0.7)}))
    assert touching.startswith("In-context learning and folding do not differ significantly in accuracy")


def test_a_paired_test_decides_where_intervals_overlap():
    spans = {"icl": (0.5, 0.62), "fold": (0.55, 0.7)}
    [significant] = choice_sentences(result_of(spans, paired("fold", "icl", 0.065, 0.001)))
    assert significant.startswith("Folding is the most accurate")
    assert "(by 6 points in a paired test, which holds for other queries and other demonstrations)" in significant
    [not_significant] = choice_sentences(result_of(spans, paired("icl", "fold", -0.065, 0.3)))
    assert "In-context learning and folding do not differ significantly in accuracy (paired tests)" in not_significant


def test_without_intervals_nothing_is_decided():
    accuracy = {key: Accuracy(mean=0.6, ci95=(None, None), n=9, per_seed={}) for key in ("ft", "fold")}
    [sentence] = choice_sentences(empty_result(accuracy=accuracy))
    assert sentence == (
        "Without intervals the run cannot show which learner is more accurate: finetuning answers 60.0 % of the "
        "queries correctly and folding 60.0 %."
    )


@pytest.mark.parametrize("keys", [(), ("zsl",), ("icl",), ("fold",), ("zsl", "lora")], ids="+".join)
def test_fewer_than_two_of_the_three_leave_nothing_to_decide(keys):
    assert choice_sentences(result_of(dict.fromkeys(keys, (0.5, 0.6)))) == []


def test_finetuning_is_described_where_nothing_was_folded():
    result = result_of({"zsl": (0.4, 0.45), "icl": (0.6, 0.7), "ft": (0.6, 0.7)}).model_copy(
        update={"against_icl": {"zsl": beside(0, 0), "ft": beside(1, None)}}
    )
    _, agreement, cost = choice_sentences(result)
    assert agreement.startswith("Finetuning agrees with in-context learning on 90 % (88 to 92 %) of the queries")
    assert "a prompt that is read with every query: finetuning after 1 query. Cheaper than" in cost
    assert cost.endswith("are cached: finetuning unknown.")


def test_a_share_of_a_gain_that_is_not_significant_gets_a_caution():
    against = {"fold": beside(3, 4)}
    level = result_of({"zsl": (0.5, 0.65), "icl": (0.6, 0.7), "fold": (0.6, 0.7)}).model_copy(
        update={"against_icl": against}
    )
    assert "that gain is not significant, so the share means little." in " ".join(choice_sentences(level))
    significant = result_of({"zsl": (0.4, 0.5), "icl": (0.6, 0.7), "fold": (0.6, 0.7)}).model_copy(
        update={"against_icl": against}
    )
    assert "means little" not in " ".join(choice_sentences(significant))


def test_an_interval_that_holds_zero_shows_no_recovery():
    spans = {"zsl": (0.4, 0.5), "icl": (0.6, 0.7), "fold": (0.6, 0.7)}
    wide = result_of(spans).model_copy(update={"against_icl": {"fold": beside(3, 4, (0.2, (-0.1, 0.5)))}})
    assert "the interval includes 0, so no recovery is shown." in " ".join(choice_sentences(wide))
    # A share without an interval: the run is not sure that there is a gain.
    bare = result_of(spans).model_copy(update={"against_icl": {"fold": beside(3, 4, (0.9, None))}})
    assert "that gain is not significant" in " ".join(choice_sentences(bare))
    none = result_of(spans).model_copy(update={"against_icl": {"fold": beside(3, 4, (None, None))}})
    assert "the prompt gained nothing over zero-shot that it could recover." in " ".join(choice_sentences(none))


def test_what_is_cheaper_at_once_is_so_from_the_first_query():
    result = empty_result(against_icl={"ft": beside(0, 0.2)})
    sentence = choice_sentences(result)[-1]
    assert "finetuning from the first query. Cheaper than" in sentence
    assert "finetuning after 1 query." in sentence


@pytest.mark.parametrize(
    ("queries", "flops", "text"),
    [(None, 1e9, "never"), (None, None, MISSING), (0, None, "0"), (12.4, 1e9, "13"), (20312.0, 1e9, "20,312")],
)
def test_a_break_even_is_a_whole_number_of_queries_or_never_and_a_dash_where_a_cost_is_unknown(queries, flops, text):
    cost = Cost(adapt_seconds=1, query_seconds=1, tokens=9, flops=flops, kept_flops=flops, adapt_flops=1e12)
    result = empty_result(against_icl={"ft": beside(queries, queries)}, cost={"ft": cost, "icl": cost})
    assert break_even(result, "ft", cached=False) == break_even(result, "ft", cached=True) == text


def test_the_question_names_what_was_run():
    assert choice_heading(example_result()) == "Prompt, finetune or fold?"
    assert choice_heading(result_of({"icl": (0, 1), "fold": (0, 1)})) == "Prompt or fold?"
    assert choice_heading(result_of({"zsl": (0, 1), "fold": (0, 1)})) == "What accuracy costs"


def test_how_the_prompt_was_folded_is_described_as_far_as_it_is_known():
    fold = example_result().fold
    assert fold is not None
    assert fold_sentences(fold)[0] == (
        "Folded by “ridge” on 256 unlabelled texts per seed, taken from the train split (no demonstrations; labels not "
        "used)."
    )
    assert "on 8,192 tokens of plain text (generated by the model without a prompt)" in fold_sentences(fold)[1]
    bare = fold.model_copy(
        update={"plain_tokens": 0, "plain_source": "none", "strength": None, "explained": [None], "source": "a.txt"}
    )
    assert fold_sentences(bare) == ["Folded by “ridge” on 256 unlabelled texts per seed, taken from “a.txt”."]
    generated = fold.model_copy(update={"source": "generated", "plain_source": "b.txt", "texts": 1})
    assert "on 1 unlabelled text per seed, generated by the model" in fold_sentences(generated)[0]
    assert "(b.txt)" in fold_sentences(generated)[1]

import re
from typing import Any

import pytest

from dualform.report.phrases import compare_intervals
from dualform.result import Accuracy, Calibrated, PairedTest, Predictions, Result, Similarity
from dualform.studies.baseline_words import chance_level, collapsed
from dualform.studies.comparison.similarity_words import judged_by, layers_above_floor
from dualform.studies.comparison.words import cost_sentence, findings
from dualform.studies.paired_words import generality, least_p, pair_sentences, paired_test, seeds_note
from tests.report.example_result import empty_result, example_result, old_result


def accuracy(mean: float | None, low: float | None, high: float | None, n: int = 2000, seeds: int = 3) -> Accuracy:
    return Accuracy(mean=mean, ci95=(low, high), n=n, per_seed={str(seed): mean for seed in range(seeds)})


def verdict(**changes) -> str:
    return "\n".join(findings(empty_result(**changes)))


def alike(value: Similarity, random: Similarity, **controls: Similarity) -> str:
    named = {key: {"sim_aou": control} for key, control in ({"random": random} | controls).items()}
    return verdict(similarity={"sim_aou": value}, controls=named)


def similarity(mean: float | None, low: float | None, high: float | None, **details) -> Similarity:
    return Similarity(mean=mean, ci95=(low, high), n=500, details=details)


def test_an_empty_result_has_nothing_to_say():
    assert findings(empty_result()) == []


def test_the_example_names_the_best_learner_and_those_level_with_it():
    first = findings(old_result())[0]
    assert first.startswith("In-context learning has the highest mean accuracy, 72 %")
    assert "overlaps that of finetuning, LoRA and folding." in first


def test_intervals_that_do_not_overlap_are_reported_as_such():
    text = verdict(accuracy={"icl": accuracy(0.8, 0.75, 0.85), "ft": accuracy(0.6, 0.55, 0.65)})
    assert "Its interval overlaps that of no other learner." in text
    assert "ICL is 20.0 points above finetuning, and their 95 % intervals do not overlap." in text


def test_intervals_that_overlap_show_no_difference():
    text = verdict(accuracy={"icl": accuracy(0.65, 0.58, 0.72), "ft": accuracy(0.7, 0.64, 0.76)})
    assert "ICL is 5.0 points below finetuning, and their 95 % intervals overlap" in text
    assert "do not overlap" not in text


def test_touching_intervals_overlap_and_unknown_ones_have_no_order():
    interval = (0.0, 0.2)
    assert compare_intervals(interval, (0.2, 0.4)) == 0
    assert (compare_intervals(interval, (0.21, 0.4)), compare_intervals((0.21, 0.4), interval)) == (-1, 1)
    assert compare_intervals(interval, (None, 0.4)) is None


def test_without_intervals_no_order_is_claimed():
    text = verdict(accuracy={"icl": accuracy(0.8, None, None), "ft": accuracy(0.6, 0.5, 0.7)})
    assert "Some learners have no interval, so the difference may be due to chance." in text
    assert "without intervals this may be due to chance" in text


def test_a_tie_is_called_a_tie():
    text = verdict(accuracy={"icl": accuracy(0.8, 0.7, 0.9), "ft": accuracy(0.8, 0.7, 0.9)})
    assert "In-context learning and finetuning share the highest mean accuracy" in text
    assert "ICL and finetuning have the same mean accuracy" in text


def test_similarity_is_claimed_only_clear_of_the_random_control():
    random = similarity(0.0, -0.01, 0.01)
    assert "are more similar than chance: SimAOU 0.20 (0.18 to 0.22)" in alike(similarity(0.2, 0.18, 0.22), random)
    assert "not significantly more similar than chance" in alike(similarity(0.02, 0.005, 0.035), random)
    assert "less similar than chance" in alike(similarity(-0.2, -0.22, -0.18), random)
    assert "without intervals there is no conclusion" in alike(similarity(0.2, None, None), random)


def test_a_control_that_scores_as_high_adds_a_caveat():
    random, score = similarity(0.0, -0.01, 0.01), similarity(0.2, 0.18, 0.22)
    text = alike(score, random, untrained=similarity(0.19, 0.17, 0.21))
    assert (
        "The interval of SimAOU overlaps or lies below that of the control “untrained model”, 0.19 (0.17 to 0.21)"
        in text
    )
    assert "overlaps or lies below" not in alike(score, random, untrained=similarity(0.05, 0.03, 0.07))


def test_comparisons_and_ceilings_above_the_score_add_no_caveat():
    above = {"icl_order": similarity(0.9, 0.88, 0.92), "lcgd": similarity(0.3, 0.28, 0.32)}
    text = alike(similarity(0.2, 0.18, 0.22), similarity(0.0, -0.01, 0.01), **above)
    assert "overlaps or lies below" not in text


@pytest.mark.parametrize(
    ("interval", "claim"),
    [
        ([0.1, 0.3], ": above chance (95 % interval of the difference +10 to +30 points)."),
        ([-0.1, 0.3], ": not significantly above chance (95 % interval of the difference -10 to +30 points)."),
        ([-0.3, -0.1], ": below chance (95 % interval of the difference -30 to -10 points)."),
        ([None, None], "without an interval of the difference there is no conclusion"),
        (None, "without an interval of the difference there is no conclusion"),
    ],
)
def test_rec2ftp_is_judged_by_the_interval_of_its_lift(interval, claim):
    text = verdict(similarity={"rec2ftp": similarity(0.8, 0.7, 0.9, chance=0.6, lift_ci95=interval)})
    assert "Of the 500 answers that finetuning corrected" in text
    assert "compared with 60 % of all answers that zero-shot had wrong" in text
    assert claim in text


def test_no_corrections_at_all_are_reported():
    nothing = Similarity(mean=float("nan"), ci95=(None, None), n=0)
    assert "Finetuning corrected none of zero-shot's wrong answers" in verdict(similarity={"rec2ftp": nothing})


@pytest.mark.parametrize(("share", "fallen"), [(0.9, []), (0.901, ["ft"]), (None, [])])
def test_a_learner_collapses_above_nine_tenths(share, fallen):
    predictions = {"ft": Predictions(majority_share=share, majority_label=" good", entropy=0.1, counts={" good": 1})}
    result = empty_result(predictions=predictions)
    assert collapsed(result) == fallen
    if fallen:
        [sentence] = [each for each in findings(result) if "collapsed" in each]
        assert sentence.startswith("Finetuning has collapsed into one class: it answers “good” to 90.1 %")


def test_learners_level_with_guessing_are_named():
    levels = {"icl": accuracy(0.8, 0.75, 0.85), "zsl": accuracy(0.52, 0.48, 0.56)}
    text = verdict(accuracy=levels, task={"label_words": [" bad", " good"]})
    assert "Zero-shot is not significantly more accurate than guessing (50.0 %), so there is no evidence" in text
    assert "guessing" not in verdict(accuracy=levels)


def test_chance_needs_label_words():
    assert chance_level(empty_result(task={"label_words": ["a", "b", "c", "d"]})) == 0.25
    assert chance_level(empty_result(task={"label_words": []})) is None
    assert chance_level(empty_result()) is None


def test_few_answers_and_one_seed_are_pointed_out():
    text = verdict(accuracy={"icl": accuracy(0.8, 0.6, 0.9, n=40, seeds=1)})
    assert "from only 40 answers" in text
    assert "only one demonstration seed" in text
    assert "preliminary" not in verdict(accuracy={"icl": accuracy(0.8, 0.6, 0.9, n=2000)})


def test_cost_is_put_into_one_sentence():
    assert cost_sentence(empty_result()) is None
    sentence = cost_sentence(example_result())
    assert sentence is not None
    assert "reads 37.1 times as many tokens a query as the finetuned model" in sentence
    assert "a query took 18.0 ms with ICL and 11.2 ms with the finetuned model" in sentence


def place(mean: float | None, low: float | None, high: float | None, **changes) -> Calibrated:
    fields: dict[str, Any] = {
        "n": 500,
        "score": 0.2,
        "control": "position_shift",
        "floor": 0.02,
        "ceiling": 0.45,
        "minimum_detectable": 0.013,
    }
    return Calibrated(mean=mean, ci95=(low, high), **(fields | changes))


def placed(
    where: Calibrated, score: Similarity | None = None, key: str = "sim_aou_raw", **controls: Similarity
) -> list[str]:
    named = {control: {key: each} for control, each in controls.items()}
    score = score or similarity(0.2, 0.18, 0.22)
    return findings(empty_result(similarity={key: score}, calibrated={key: where}, controls=named))


@pytest.mark.parametrize(
    ("low", "high", "judgement"),
    [
        (-0.02, 0.04, ": not significantly above the floor."),
        (0.0, 0.04, ": not significantly above the floor."),
        (0.01, 0.04, ": significantly above the floor, but negligible."),
        (0.06, 0.2, ": significantly above the floor and significantly below the ceiling."),
        (0.4, 1.0, ": significantly above the floor and not significantly below the ceiling."),
        (-0.4, 1.2, ": inconclusive, because the interval includes both floor and ceiling."),
        (-0.4, -0.1, ": significantly below the floor."),
        (None, None, ": no interval, so no conclusion."),
    ],
)
def test_similarity_is_judged_by_its_place_between_floor_and_ceiling(low, high, judgement):
    [sentence] = placed(place(0.01, low, high))
    assert sentence.startswith("Similarity of the updates by ICL and by finetuning: raw SimAOU 0.20 (0.18 to 0.22). ")
    assert "from its floor (position shift, 0.02) to its ceiling (0.45) that is 0.0" in sentence
    assert judgement in sentence


def test_a_score_over_fewer_queries_is_reported_if_it_differs():
    [sentence] = placed(place(0.3, 0.2, 0.4, score=0.21))
    start = "raw SimAOU 0.20 (0.18 to 0.22), or 0.21 over the 500 (seed, query) pairs on which controls were read. On"
    assert start in sentence
    assert "pairs" not in placed(place(0.3, 0.2, 0.4))[0]


def test_without_room_between_floor_and_ceiling_there_is_no_scale():
    [sentence] = placed(place(None, None, None, ceiling=0.01))
    assert "it has no scale, because its ceiling (0.01) is not above its floor (position shift" in sentence


def test_similarity_is_judged_by_raw_sim_aou_where_it_has_a_place():
    result = example_result()
    assert judged_by(result) == ("sim_aou_raw", "raw SimAOU")
    homeless = result.calibrated | {"sim_aou_raw": place(None, None, None)}
    assert judged_by(result.model_copy(update={"calibrated": homeless})) == ("sim_aou", "SimAOU")
    assert judged_by(old_result()) is None


def test_other_demonstrations_that_score_as_high_make_the_similarity_unspecific():
    [_, sentence] = placed(place(0.3, 0.2, 0.4), other_demonstrations=similarity(0.19, 0.17, 0.21))
    assert "scores raw SimAOU 0.19 (0.17 to 0.21), which is not significantly lower" in sentence
    assert "specific to these demonstrations" in sentence
    assert len(placed(place(0.3, 0.2, 0.4), other_demonstrations=similarity(0.1, 0.08, 0.12))) == 1


def test_an_untrained_model_that_scores_as_high_adds_a_caveat():
    [_, sentence] = placed(place(0.3, 0.2, 0.4), untrained=similarity(0.3, 0.28, 0.32))
    assert "The untrained model scores raw SimAOU 0.30" in sentence
    assert "arXiv:2311.07772" in sentence
    assert len(placed(place(0.3, 0.2, 0.4), untrained=similarity(0.1, 0.08, 0.12))) == 1


def weighed(p_queries: float | None, p_seeds: float | None, gap: float = 0.05, first: str = "icl") -> PairedTest:
    second = "ft" if first == "icl" else "icl"
    return PairedTest(
        first=first,
        second=second,
        difference=gap,
        ci95=(gap - 0.02, gap + 0.02),
        n=900,
        p_queries=p_queries,
        p_seeds=p_seeds,
        minimum_detectable=0.03,
    )


def with_test(test: PairedTest, seeds: int = 7) -> Result:
    levels = {"icl": accuracy(0.7, 0.6, 0.8, seeds=seeds), "ft": accuracy(0.65, 0.55, 0.75, seeds=seeds)}
    return empty_result(accuracy=levels, tests=[test])


@pytest.mark.parametrize(
    ("p_queries", "p_seeds", "kind", "claim"),
    [
        (0.0004, 0.0156, "both", "that holds for other queries and for other demonstrations."),
        (0.01, 0.2, "queries", "but is not shown for other demonstrations."),
        (0.06, 0.03, "demonstrations", "but is not shown for other queries."),
        (0.06, 0.2, "neither", "not a significant difference."),
        (0.01, None, "queries", "but is not shown for other demonstrations."),
        (None, None, "neither", "not a significant difference."),
    ],
)
def test_a_difference_is_claimed_only_for_what_its_tests_show(p_queries, p_seeds, kind, claim):
    result = with_test(weighed(p_queries, p_seeds))
    assert generality(result.tests[0]) == kind
    [sentence] = [each for each in findings(result) if each.startswith("ICL is 5 points above finetuning")]
    assert "(95 % interval +3 to +7)" in sentence
    # p-values and power are in the table.
    assert not re.search(r"\bp [=<]|power", sentence)
    assert claim in sentence


def test_a_test_in_the_other_direction_gives_the_same_sentence():
    turned = paired_test(with_test(weighed(0.01, 0.2, gap=-0.05, first="ft")), "icl", "ft")
    assert turned is not None
    assert (turned.first, turned.difference) == ("icl", 0.05)
    assert turned.ci95 == pytest.approx((0.03, 0.07))
    assert findings(with_test(weighed(0.01, 0.2, gap=-0.05, first="ft"))) == findings(with_test(weighed(0.01, 0.2)))


def test_the_best_learner_is_judged_by_tests_if_there_are_any_and_not_by_overlap():
    first = findings(with_test(weighed(0.001, 0.0156)))[0]
    assert first.endswith("By paired tests it is ahead of finetuning for other queries and other demonstrations.")
    assert "overlaps" not in first
    assert findings(with_test(weighed(0.3, 0.3)))[0].endswith("it does not differ significantly from finetuning.")


@pytest.mark.parametrize(("seeds", "least"), [(0, None), (1, None), (2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_few_seeds_cannot_give_a_small_p(seeds, least):
    result = with_test(weighed(0.01, 0.2), seeds=seeds)
    assert least_p(result) == least
    note = seeds_note(result)
    assert ("at least six seeds" in note) == (least is not None and least >= 0.05)
    assert ("no test over demonstrations" in note) == (least is None)


def test_pairs_are_sorted_by_what_they_generalise_to():
    pairs = [
        weighed(0.001, 0.01).model_copy(update={"second": "zsl", "difference": 0.2}),
        weighed(0.001, 0.01).model_copy(update={"second": "lora"}),
        weighed(0.01, 0.2, gap=-0.05),
        weighed(0.2, 0.01).model_copy(update={"first": "lora", "second": "zsl"}),
        weighed(0.4, 0.4).model_copy(update={"first": "ft", "second": "zsl"}),
        weighed(0.01, 0.01).model_copy(update={"difference": None}),
    ]
    assert pair_sentences(empty_result(tests=pairs)) == [
        "Significant for other queries and for other demonstrations: in-context learning above zero-shot (20 points) "
        "and LoRA (5 points).",
        "Significant for other queries under these demonstrations only: finetuning above in-context learning (5 "
        "points).",
        "Significant for other demonstrations on these queries only: LoRA above zero-shot (5 points).",
        "Not significantly different: finetuning and zero-shot.",
    ]
    assert pair_sentences(empty_result()) == []


def test_layers_above_their_floor_are_counted_among_those_tested():
    assert layers_above_floor(example_result()) == [
        "SimAOU: 16 of 29 (floor: shuffled labels)",
        "SimAOU, raw: 16 of 29 (floor: shuffled labels)",
    ]
    assert layers_above_floor(old_result()) == []

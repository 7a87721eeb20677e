import pytest

from dualform.report.words import chance_level, collapsed, cost_sentence, overlap, verdict
from dualform.result import Accuracy, Estimate, Predictions, Similarity
from tests.report.example_result import empty_result, example_result


def accuracy(mean: float | None, low: float | None, high: float | None, n: int = 2000, seeds: int = 3) -> Accuracy:
    return Accuracy(mean=mean, ci95=(low, high), n=n, per_seed={str(seed): mean for seed in range(seeds)})


def said(**changes) -> str:
    return "\n".join(verdict(empty_result(**changes)))


def alike(value: Similarity, random: Similarity, **controls: Similarity) -> str:
    named = {key: {"sim_aou": control} for key, control in ({"random": random} | controls).items()}
    return said(similarity={"sim_aou": value}, controls=named)


def similarity(mean: float | None, low: float | None, high: float | None, **details) -> Similarity:
    return Similarity(mean=mean, ci95=(low, high), n=500, details=details)


def test_an_empty_result_has_nothing_to_say():
    assert verdict(empty_result()) == []


def test_the_example_names_the_best_learner_and_those_level_with_it():
    first = verdict(example_result())[0]
    assert first.startswith("In-context learning has the highest mean accuracy, 72.1 %")
    assert "overlaps that of finetuning, LoRA and folding: the run does not separate them" in first


def test_intervals_apart_are_called_apart():
    text = said(accuracy={"icl": accuracy(0.8, 0.75, 0.85), "ft": accuracy(0.6, 0.55, 0.65)})
    assert "No other learner's interval reaches it." in text
    assert "ICL is 20.0 points above finetuning, and their 95 % intervals do not overlap." in text


def test_intervals_that_overlap_are_not_called_apart():
    text = said(accuracy={"icl": accuracy(0.65, 0.58, 0.72), "ft": accuracy(0.7, 0.64, 0.76)})
    assert "ICL is 5.0 points below finetuning, and their 95 % intervals overlap" in text
    assert "do not overlap" not in text


def test_without_intervals_no_order_is_claimed():
    text = said(accuracy={"icl": accuracy(0.8, None, None), "ft": accuracy(0.6, 0.5, 0.7)})
    assert "cannot say how sure that order is" in text
    assert "there are no intervals to weigh that by" in text


def test_a_tie_is_called_a_tie():
    text = said(accuracy={"icl": accuracy(0.8, 0.7, 0.9), "ft": accuracy(0.8, 0.7, 0.9)})
    assert "In-context learning and finetuning share the highest mean accuracy" in text
    assert "ICL and finetuning have the same mean accuracy" in text


def test_touching_intervals_overlap_and_unknown_ones_do_not_say():
    one = Estimate(mean=0.1, ci95=(0.0, 0.2), n=5)
    assert overlap(one, Estimate(mean=0.3, ci95=(0.2, 0.4), n=5)) is True
    assert overlap(one, Estimate(mean=0.3, ci95=(0.21, 0.4), n=5)) is False
    assert overlap(one, Estimate(mean=0.3, ci95=(None, 0.4), n=5)) is None


def test_likeness_is_claimed_only_clear_of_the_random_control():
    random = similarity(0.0, -0.01, 0.01)
    assert "more alike than chance: SimAOU 0.200 (0.180 to 0.220)" in alike(similarity(0.2, 0.18, 0.22), random)
    assert "no more alike than chance allows" in alike(similarity(0.02, 0.005, 0.035), random)
    assert "less alike than chance" in alike(similarity(-0.2, -0.22, -0.18), random)
    assert "cannot be compared" in alike(similarity(0.2, None, None), random)


def test_a_control_that_scores_as_high_takes_the_claim_back():
    random, found = similarity(0.0, -0.01, 0.01), similarity(0.2, 0.18, 0.22)
    text = alike(found, random, untrained=similarity(0.19, 0.17, 0.21))
    assert "does not lie clearly above its control “untrained model”, 0.190 (0.170 to 0.210)" in text
    assert "clearly above" not in alike(found, random, untrained=similarity(0.05, 0.03, 0.07))


def test_a_ceiling_above_the_score_takes_nothing_back():
    text = alike(similarity(0.2, 0.18, 0.22), similarity(0.0, -0.01, 0.01), icl_order=similarity(0.9, 0.88, 0.92))
    assert "clearly above" not in text


@pytest.mark.parametrize(
    ("interval", "claim"),
    [
        ([0.1, 0.3], "; the difference is +10.0 to +30.0 points (95 %), above chance."),
        ([-0.1, 0.3], "; the difference is -10.0 to +30.0 points (95 %), so it is not clearly more than luck."),
        ([-0.3, -0.1], "; the difference is -30.0 to -10.0 points (95 %), below chance."),
        ([None, None], "cannot be compared"),
        (None, "cannot be compared"),
    ],
)
def test_rec2ftp_is_weighed_by_the_interval_of_its_lift(interval, claim):
    text = said(similarity={"rec2ftp": similarity(0.8, 0.7, 0.9, chance=0.6, lift_ci95=interval)})
    assert "Of 500 answers that finetuning put right" in text
    assert "against 60.0 % of all answers that zero-shot had wrong" in text
    assert claim in text


def test_nothing_fixed_is_said():
    nothing = Similarity(mean=float("nan"), ci95=(None, None), n=0)
    assert "Finetuning put right no answer that zero-shot had wrong" in said(similarity={"rec2ftp": nothing})


@pytest.mark.parametrize(("share", "fallen"), [(0.9, []), (0.901, ["ft"]), (None, [])])
def test_a_learner_collapses_above_nine_tenths(share, fallen):
    predictions = {"ft": Predictions(majority_share=share, majority_label=" good", entropy=0.1, counts={" good": 1})}
    result = empty_result(predictions=predictions)
    assert collapsed(result) == fallen
    if fallen:
        [sentence] = [each for each in verdict(result) if "collapsed" in each]
        assert sentence.startswith("Finetuning has collapsed into one class: it answers “good” to 90.1 %")


def test_learners_level_with_guessing_are_named():
    levels = {"icl": accuracy(0.8, 0.75, 0.85), "zsl": accuracy(0.52, 0.48, 0.56)}
    text = said(accuracy=levels, task={"label_words": [" bad", " good"]})
    assert "Not told apart from guessing (50.0 %): zero-shot." in text
    assert "guessing" not in said(accuracy=levels)


def test_chance_needs_label_words():
    assert chance_level(empty_result(task={"label_words": ["a", "b", "c", "d"]})) == 0.25
    assert chance_level(empty_result(task={"label_words": []})) is None
    assert chance_level(empty_result()) is None


def test_few_answers_and_one_seed_are_pointed_out():
    text = said(accuracy={"icl": accuracy(0.8, 0.6, 0.9, n=40, seeds=1)})
    assert "as few as 40 answers" in text
    assert "one demonstration seed" in text
    assert "answers: read" not in said(accuracy={"icl": accuracy(0.8, 0.6, 0.9, n=2000)})


def test_cost_is_put_into_one_sentence():
    assert cost_sentence(empty_result()) is None
    sentence = cost_sentence(example_result())
    assert sentence is not None
    assert "reads 37.1 times the tokens of a finetuned one" in sentence
    assert "18.0 ms beside 11.2 ms" in sentence

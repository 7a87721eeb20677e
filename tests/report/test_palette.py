import pytest

from dualform.report.palette import learner_style, learners_in_order


def test_a_further_rate_is_named_after_its_learner_and_stands_behind_it():
    assert learner_style("ft@0.001").title == "FT, rate 0.001"
    assert learner_style("ft@0.001").noun == "finetuning at rate 0.001"
    assert learner_style("ft@0.001").colour != learner_style("ft").colour
    order = learners_in_order(["other", "ft@0.1", "lora", "ft@0.02", "ft", "icl", "zsl"])
    assert order == ["zsl", "icl", "ft", "ft@0.02", "ft@0.1", "lora", "other"]


@pytest.mark.parametrize("key", ["ft@", "ft@fast", "ft@-1", "ft@nan", "ft@inf", "mezo@0.1", "@0.1", "a@b@c"])
def test_what_is_no_rate_of_a_known_learner_stays_a_name(key):
    assert learner_style(key).title == key
    assert learners_in_order([key, "icl"]) == ["icl", key]

from typing import Any

import pytest

from dualform.studies.momentum.figures import (
    nats,
    over_tasks,
    relative_interval,
)
from dualform.studies.momentum.result import MomentumArm
from dualform.studies.momentum.words import (
    averaging_sentences,
    caution_sentences,
    cost_sentence,
    dual_sentences,
    learned_sentences,
    momentum_verdict,
    paper_sentences,
    pretrained_sentences,
    regression_sentences,
    task_sentences,
)
from tests.report.example_momentum import (
    arm,
    broken,
    curve,
    estimate,
    example_momentum,
    paired,
    pretrained,
    regression,
    score,
    study,
    tasks,
)
from tests.report.example_result import empty_result

LOST = arm("momentum", None, eta=0.5)
"""An arm without a number, as of runs that failed."""


def said(*arms: MomentumArm, **changes) -> list[str]:
    nothing: dict[str, Any] = {"regression": None, "pretrained": []}
    return momentum_verdict(example_momentum(momentum=study(arms=list(arms), **(nothing | changes))))


def lead(*losses: float | None, seeds: int = 5) -> str:
    """The first sentence, of momentum with these differences from vanilla at etas 0.1, 0.2, ..."""
    arms = [arm("momentum", loss, eta=(place + 1) / 10, seeds=seeds) for place, loss in enumerate(losses)]
    return said(arm("vanilla", 0.0), *arms)[0]


def test_another_study_and_one_without_arms_have_nothing_to_say():
    assert momentum_verdict(empty_result(study="momentum")) == []
    assert said() == []


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((-0.01,), "predicts better than vanilla with eta 0.1."),
        ((-0.01, -0.02), "predicts better than vanilla with eta 0.1 and 0.2."),
        ((0.0005,), "is not distinguished from vanilla with eta 0.1."),
        ((0.01, 0.02, 0.03), "is worse than vanilla with eta 0.1, 0.2 and 0.3."),
        ((0.0005, 0.02), "is not distinguished from vanilla with eta 0.1, and is worse than it with eta 0.2."),
        ((0.02, -0.02), "predicts better than vanilla with eta 0.2, and is worse than it with eta 0.1."),
        (
            (0.02, -0.02, 0.0),
            "predicts better than vanilla with eta 0.2, is not distinguished from it with eta 0.3, and is worse than "
            "it with eta 0.1.",
        ),
    ],
)
def test_the_first_sentence_says_with_which_etas_momentum_won_or_lost(losses, sentence):
    assert lead(*losses) == f"On text of 256 tokens, momentum attention {sentence}"


def test_one_seed_decides_nothing():
    sentence = (
        "On text of 256 tokens, momentum attention cannot be compared with vanilla, without an interval, with eta"
    )
    assert lead(-0.5, seeds=1) == f"{sentence} 0.1."
    single = said(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3, seeds=1))
    assert single[2] == (
        "“momentum 0.3” less “vanilla”: -0.0100 nats a token, -1.00 % of perplexity, 1 seed: no interval, so "
        "no conclusion."
    )
    text = "\n".join(single)
    assert "cannot be compared with “vanilla”" in text
    for claim in ("better", "distinguished", "p =", "p <", "sign-flip"):
        assert claim not in text


def test_runs_that_failed_are_said_to_be_missing_and_the_rest_is_told():
    sentences = said(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.1), LOST)
    assert sentences[0].endswith("predicts better than vanilla with eta 0.1.")
    assert "“momentum 0.5” could not be compared with “vanilla”: a loss is missing." in sentences
    failed = LOST.model_copy(update={"difference": {"256": broken()}, "perplexity": {"256": estimate(None)}})
    assert said(arm("vanilla", 0.0, tasks=[]), failed) == [
        "“momentum 0.5” could not be compared with “vanilla”: a loss is missing."
    ]


def test_each_arm_is_told_with_nats_perplexity_intervals_test_and_seeds():
    text = "\n".join(momentum_verdict(example_momentum(momentum=study(pretrained=[]))))
    found = paired(-0.0081, 0.002).ci95
    assert None not in found
    assert f"“momentum 0.3” less “vanilla”: -0.0081 nats a token ({nats(found[0])} to {nats(found[1])}), " in text
    assert f"-0.81 % of perplexity ({relative_interval(found)}), 5 seeds: better." in text
    assert "“momentum 0.9” less “vanilla”: +0.0382 nats a token" in text
    assert "“nesterov 0.3” less “linear”: +0.0007 nats a token" in text
    assert text.count("5 seeds: not distinguished.") == 2
    assert text.count("5 seeds: worse.") == 1


def test_the_lowest_is_named_with_those_it_is_not_distinguished_from():
    vanilla = arm("vanilla", 0.0)
    clear = said(vanilla, arm("momentum", -0.02, eta=0.1), arm("momentum", -0.01, eta=0.3))[1]
    assert clear.startswith("Lowest of 3 is the perplexity of “momentum 0.1”: 25.5")
    assert clear.endswith(
        "; it lies below all others. It was picked as the lowest on this very text, which flatters it."
    )
    level = said(vanilla, arm("momentum", -0.0204, eta=0.1), arm("momentum", -0.0200, eta=0.4))[1]
    assert "; it is not distinguished from “momentum 0.4”." in level
    beaten = said(vanilla, arm("momentum", -0.0005, eta=0.1), arm("momentum", 0.02, eta=0.3))[1]
    assert "“momentum 0.1”" in beaten
    assert "not distinguished from “vanilla”." in beaten


def test_vanilla_can_be_the_lowest():
    sentence = said(arm("vanilla", 0.0), arm("momentum", 0.02, eta=0.1))[1]
    assert sentence.startswith("Lowest of 2 is the perplexity of “vanilla”: 26.05 (25.70 to 26.40); it lies below all")


def test_arms_of_two_baselines_are_distinguished_by_their_own_intervals():
    assert "not distinguished from “linear”" in said(arm("vanilla", 0.0), arm("linear", 0.001))[0]
    assert "lies below all others" in said(arm("vanilla", 0.0), arm("linear", 0.3))[0]


@pytest.mark.parametrize(
    ("convolution", "answer"),
    [
        (-0.001, "momentum does better than averaging over a few tokens."),
        (-0.03, "averaging over a few tokens does better than momentum."),
        (-0.0101, "the two are not distinguished, so that local averaging may be all that momentum is."),
    ],
)
def test_the_sceptic_is_answered_by_the_difference_of_two_differences(convolution, answer):
    arms = [arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3), arm("convolution", convolution)]
    [sentence] = averaging_sentences(study(arms=arms))
    assert sentence.startswith("Is it just local averaging? “momentum 0.3” less “convolution”, a short convolution of ")
    assert f"{nats(-0.01 - convolution)} nats a token" in sentence
    assert sentence.endswith(f"5 seeds: {answer}")


def test_without_a_gain_local_averaging_explains_nothing():
    arms = [arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.3), arm("convolution", 0.0001)]
    [sentence] = averaging_sentences(study(arms=arms))
    assert sentence.endswith("the two are not distinguished.")


def test_the_best_of_several_etas_is_said_to_be_that():
    arms = [
        arm("vanilla", 0.0),
        arm("momentum", -0.01, eta=0.3),
        arm("momentum", 0.1, eta=0.9),
        arm("convolution", 0.0),
    ]
    assert "“momentum 0.3”, the best of 2 etas, less" in averaging_sentences(study(arms=arms))[0]
    assert averaging_sentences(study(arms=arms[:-1])) == []
    assert averaging_sentences(study(arms=[arms[0], LOST, arms[-1]])) == []


def test_the_true_dual_is_told_in_linear_attention_beside_the_papers_sum():
    [sentence] = dual_sentences(study())
    assert sentence.startswith(
        "In linear attention the momentum that gradient descent really has helps as “heavy-ball 0.3”, and is not shown "
        "to change anything as “nesterov 0.3”. “heavy-ball 0.3” less “linear-momentum 0.3”: -0.0107 nats a token ("
    )
    assert sentence.endswith("it does better than the paper's sum there.")
    alone = [arm("linear", 0.31), arm("heavy-ball", 0.35, eta=0.3)]
    assert dual_sentences(study(arms=alone)) == [
        "In linear attention the momentum that gradient descent really has does harm as “heavy-ball 0.3”."
    ]
    assert dual_sentences(study(arms=[arm("linear", 0.31), arm("linear-momentum", 0.3, eta=0.3)])) == []


def test_learned_decays_are_told_by_layer():
    assert learned_sentences(study()) == [
        "“learned 0.3”, which began at 0.3, has learned etas between 0.031 (layer 0) and 0.420 (layer 3), means over "
        "heads and seeds."
    ]
    single = arm("learned", -0.01, eta=0.3, learned_eta=[None, 0.2])
    assert learned_sentences(study(arms=[single]))[0].endswith(
        "has learned an eta of 0.200, mean over heads and seeds."
    )
    assert learned_sentences(study(arms=[arm("learned", -0.01, eta=0.3, learned_eta=[None])])) == []


def test_tasks_are_averaged_within_a_seed_and_those_at_chance_are_named():
    means, chance = task_sentences(study())
    assert means.startswith(
        "Mean accuracy over 3 tasks, against 49.3 % of “vanilla” and 49.3 % of “linear”: above its "
    )
    assert "above its baseline's for “learned 0.3” (+1.9 points, +" in means
    assert "; below it for “momentum 0.9” (-4.8 points, -" in means
    assert "; not distinguished from it for “momentum 0.1”, “momentum 0.3”" in means
    assert chance == (
        "On “cb” no arm is, with momentum or without, shown to lie above chance level, which is always to give the "
        "most frequent answer: differences there say nothing of learning in context."
    )


def test_a_task_is_at_chance_only_where_every_arm_is():
    low, high = score("cb", 0.5, 0.5, None), score("cb", 0.6, 0.5, paired(0.1, 0.01))
    both = [arm("vanilla", 0.0, tasks=[low]), arm("momentum", 0.0, eta=0.1, tasks=[high])]
    assert not any("chance" in sentence for sentence in task_sentences(study(arms=both)))
    lost = [arm("vanilla", 0.0, tasks=[low, score("rte", 0.5, 0.5, None)])]
    assert task_sentences(study(arms=lost)) == [
        "Mean accuracy over 2 tasks: 50.0 % of “vanilla”.",
        "On no task is any arm, with momentum or without, shown to lie above chance level, which is always to give the "
        "most frequent answer: differences there say nothing of learning in context.",
    ]
    unsure = score("cb", 0.5, 0.5, None).model_copy(update={"accuracy": estimate(0.5, None)})
    assert len(task_sentences(study(arms=[arm("vanilla", 0.0, tasks=[unsure])]))) == 1


def test_tasks_without_a_difference_or_with_one_seed_are_not_weighed():
    one = arm("momentum", 0.0, eta=0.1, tasks=tasks("vanilla", 0.1, seeds=1))
    [means, _] = task_sentences(study(arms=[arm("vanilla", 0.0), one]))
    assert means.endswith(": not comparable, without an interval, for “momentum 0.1”.")
    missing = [*tasks("vanilla", 0.1)[:2], score("cb", 0.5, 0.5, None)]
    assert over_tasks(arm("momentum", 0.0, eta=0.1, tasks=missing)) is None
    assert task_sentences(study(arms=[arm("vanilla", 0.0, tasks=[])])) == []


def test_regression_is_told_by_condition_number_and_beside_what_momentum_gives_descent():
    first, second, last = regression_sentences(regression())
    assert first.startswith(
        "In-context regression, condition number 1: the error is above its baseline's for “heavy-ball 0.3” (+11.6 %, +"
    )
    assert first.endswith("; not distinguished from it for “momentum 0.3”.")
    assert second.startswith("In-context regression, condition number 100: the error is below its baseline's for “mom")
    assert last == (
        "For comparison, after 20 examples momentum takes the error of exact gradient descent, in as many steps, from "
        "0.111 to 0.018 at condition number 1 and from 0.208 to 0.057 at condition number 100."
    )
    alone = regression(references={}, curves=[curve("vanilla", 1.0, 0.1, None)])
    assert regression_sentences(alone) == []


@pytest.mark.parametrize(("change", "told"), [(-0.01, "better"), (0.01, "worse"), (0.0, "not distinguished")])
def test_a_pretrained_model_is_told_before_and_after_a_finetune(change, told):
    before, after = pretrained_sentences("gpt2", [pretrained("gpt2", change)])
    assert before == (
        "Put into “gpt2”, which was trained without, momentum takes its perplexity from 18.42 to 31.27 with eta 0.1."
    )
    assert after.startswith(
        f"After the same short finetune, loss with it less without: with eta 0.1 {nats(change)} nats a token ("
    )
    assert after.endswith(f"5 seeds: {told}.")


def test_several_etas_of_a_pretrained_model_share_their_sentences():
    tried = [pretrained("gpt2", 0.0), pretrained("gpt2", 0.01, eta=0.3)]
    before, after = pretrained_sentences("gpt2", tried)
    assert before.endswith("from 18.42 to 31.27 with eta 0.1 and 31.27 with eta 0.3.")
    assert ": not distinguished; with eta 0.3 +0.0100 nats a token (" in after
    told = said(arm("vanilla", None, tasks=[]), pretrained=[*tried, pretrained("other", 0.0)])
    assert told == [f"{before} {after}", " ".join(pretrained_sentences("other", [pretrained("other", 0.0)]))]


def test_a_pretrained_model_without_numbers_or_finetune_is_passed_over():
    untuned = pretrained("gpt2", 0.0).model_copy(update={"difference": None, "perplexity": None})
    assert pretrained_sentences("gpt2", [untuned]) == []
    only_tuned = pretrained("gpt2", 0.0).model_copy(update={"base": None, "eta": None})
    [sentence] = pretrained_sentences("gpt2", [only_tuned])
    assert sentence.startswith(
        "After the same short finetune of “gpt2”, which was trained without, loss with it less without: +0.0000 nats"
    )


def test_the_papers_difference_stands_beside_as_one_run_without_interval():
    def last(loss: float, sd: float = 0.002) -> str:
        momentum = arm("momentum", loss, eta=0.3, difference={"256": paired(loss, sd)})
        return paper_sentences(study(arms=[arm("vanilla", 0.0), momentum]))[0]

    published = (
        "The paper's own models of 350M parameters, one run each and so without an interval, differ by -0.0080 nats a "
        "token at 1,024 tokens (perplexity 15.14 and 15.02); the interval of “momentum 0.3” here, of another model on "
        "other text, "
    )
    assert last(-0.008) == f"{published}holds that."
    assert last(-0.02) == f"{published}lies below that, a larger gain."
    assert last(0.0) == f"{published}lies above that, a smaller gain or none."
    assert last(0.02) == f"{published}lies above 0: a loss."
    assert last(-0.005, sd=0.02) == f"{published}holds that, and is too wide to show so small a one."
    one_seed = study(arms=[arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3, seeds=1)])
    assert paper_sentences(one_seed)[0].endswith("(perplexity 15.14 and 15.02).")
    assert paper_sentences(study(arms=[arm("vanilla", 0.0)])) == []


def test_many_comparisons_and_few_seeds_are_owned_up_to():
    many, few = caution_sentences(study())
    assert many.startswith("No correction is made for there being 10 comparisons:")
    assert few.endswith("a sign-flip test, which does not, cannot give less than 0.0625 with 5 seeds.")
    single = [arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.1, seeds=3)]
    assert caution_sentences(study(arms=single)) == [few.replace("0.0625 with 5", "0.25 with 3")]
    assert caution_sentences(study(arms=single[:1])) == []


def test_what_it_costs_is_told_by_the_ends():
    assert cost_sentence(study()) == (
        "A training step takes 1.08 times (“momentum 0.1”) to 1.21 times (“heavy-ball 0.3”) as long as the baseline's; "
        "“learned 0.3” and “convolution” have more parameters than the baseline."
    )
    assert cost_sentence(study(arms=[arm("vanilla", 0.0)])) is None
    alone = [arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.1)]
    assert (
        cost_sentence(study(arms=alone))
        == "A training step takes 1.08 times (“momentum 0.1”) as long as the baseline's."
    )


def test_names_are_neither_templates_nor_searched_for_words():
    name = "{0} is it {x}"
    curves = [curve(name, 1.0, 0.1, -0.1)]
    vanilla = arm("vanilla", 0.0, name=name)
    momentum = arm("momentum", -0.01, eta=0.1, name=f"{name}!", baseline=name)
    text = "\n".join(said(vanilla, momentum, regression=regression(curves=curves, references={})))
    assert f"predicts better than {name} with eta 0.1." in text
    assert f"“{name}!” less “{name}”: " in text
    assert f"below its baseline's for “{name}” (" in text
    assert f"“{name}!”." in text

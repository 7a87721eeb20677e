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


def verdict(*arms: MomentumArm, **changes) -> list[str]:
    nothing: dict[str, Any] = {"regression": None, "pretrained": []}
    return momentum_verdict(example_momentum(momentum=study(arms=list(arms), **(nothing | changes))))


def lead(*losses: float | None, seeds: int = 5) -> str:
    """The first sentence, of momentum with these differences from vanilla at etas 0.1, 0.2, ..."""
    arms = [arm("momentum", loss, eta=(place + 1) / 10, seeds=seeds) for place, loss in enumerate(losses)]
    return verdict(arm("vanilla", 0.0), *arms)[0]


def test_another_study_and_one_without_arms_have_no_verdict():
    assert momentum_verdict(empty_result(study="momentum")) == []
    assert verdict() == []


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((-0.01,), "is significantly better than vanilla with eta 0.1."),
        ((-0.01, -0.02), "is significantly better than vanilla with eta 0.1 and 0.2."),
        ((0.0005,), "is not significantly different from vanilla with eta 0.1."),
        ((0.01, 0.02, 0.03), "is significantly worse than vanilla with eta 0.1, 0.2 and 0.3."),
        (
            (0.0005, 0.02),
            "is not significantly different from vanilla with eta 0.1, and is significantly worse than it with eta "
            "0.2.",
        ),
        (
            (0.02, -0.02),
            "is significantly better than vanilla with eta 0.2, and is significantly worse than it with eta 0.1.",
        ),
        (
            (0.02, -0.02, 0.0),
            "is significantly better than vanilla with eta 0.2, is not significantly different from it with eta 0.3, "
            "and "
            "is significantly worse than it with eta 0.1.",
        ),
    ],
)
def test_the_first_sentence_says_with_which_etas_momentum_won_or_lost(losses, sentence):
    assert lead(*losses) == f"On text of 256 tokens, momentum attention {sentence}"


def test_one_seed_decides_nothing():
    sentence = "On text of 256 tokens, momentum attention cannot be compared with vanilla (no interval) with eta"
    assert lead(-0.5, seeds=1) == f"{sentence} 0.1."
    single = verdict(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3, seeds=1))
    assert single[2] == (
        "“momentum 0.3” minus “vanilla”: -0.0100 nats a token, -1.00 % of perplexity, 1 seed: no interval, so "
        "no conclusion."
    )
    text = "\n".join(single)
    assert "cannot be compared with “vanilla”" in text
    for claim in ("better", "significantly different", "p =", "p <", "sign-flip"):
        assert claim not in text


def test_failed_runs_are_reported_as_missing_next_to_the_others():
    sentences = verdict(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.1), LOST)
    assert sentences[0].endswith("is significantly better than vanilla with eta 0.1.")
    assert "“momentum 0.5” could not be compared with “vanilla”: a loss is missing." in sentences
    failed = LOST.model_copy(update={"difference": {"256": broken()}, "perplexity": {"256": estimate(None)}})
    assert verdict(arm("vanilla", 0.0, tasks=[]), failed) == [
        "“momentum 0.5” could not be compared with “vanilla”: a loss is missing."
    ]


def test_each_arm_is_reported_with_nats_perplexity_intervals_test_and_seeds():
    text = "\n".join(momentum_verdict(example_momentum(momentum=study(pretrained=[]))))
    interval = paired(-0.0081, 0.002).ci95
    assert None not in interval
    assert (
        f"“momentum 0.3” minus “vanilla”: -0.0081 nats a token (95% CI {nats(interval[0])} to {nats(interval[1])}), "
        in text
    )
    assert f"-0.81 % of perplexity ({relative_interval(interval)}), 5 seeds: better." in text
    assert "“momentum 0.9” minus “vanilla”: +0.0382 nats a token" in text
    assert "“nesterov 0.3” minus “linear”: +0.0007 nats a token" in text
    assert text.count("5 seeds: not significantly different.") == 2
    assert text.count("5 seeds: worse.") == 1


def test_the_lowest_is_named_with_arms_that_are_not_significantly_different():
    vanilla = arm("vanilla", 0.0)
    clear = verdict(vanilla, arm("momentum", -0.02, eta=0.1), arm("momentum", -0.01, eta=0.3))[1]
    assert clear.startswith("“momentum 0.1” has the lowest perplexity of 3 arms: 25.5")
    assert clear.endswith(
        "; it is significantly below all others. It was chosen as the lowest on this test text, so its perplexity is "
        "biased downwards."
    )
    level = verdict(vanilla, arm("momentum", -0.0204, eta=0.1), arm("momentum", -0.0200, eta=0.4))[1]
    assert "; it is not significantly different from “momentum 0.4”." in level
    beaten = verdict(vanilla, arm("momentum", -0.0005, eta=0.1), arm("momentum", 0.02, eta=0.3))[1]
    assert "“momentum 0.1”" in beaten
    assert "not significantly different from “vanilla”." in beaten


def test_vanilla_can_be_the_lowest():
    sentence = verdict(arm("vanilla", 0.0), arm("momentum", 0.02, eta=0.1))[1]
    assert sentence.startswith(
        "“vanilla” has the lowest perplexity of 2 arms: 26.05 (95% CI 25.70 to 26.40); it is significantly below all"
    )


def test_arms_with_different_baselines_are_compared_by_their_own_intervals():
    assert "not significantly different from “linear”" in verdict(arm("vanilla", 0.0), arm("linear", 0.001))[0]
    assert "significantly below all others" in verdict(arm("vanilla", 0.0), arm("linear", 0.3))[0]


@pytest.mark.parametrize(
    ("convolution", "answer"),
    [
        (-0.001, "momentum is significantly better than local averaging."),
        (-0.03, "local averaging is significantly better than momentum."),
        (-0.0101, "not significantly different, so the gain of momentum may be due to local averaging alone."),
    ],
)
def test_momentum_is_compared_with_local_averaging_by_a_paired_difference(convolution, answer):
    arms = [arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3), arm("convolution", convolution)]
    [sentence] = averaging_sentences(study(arms=arms))
    assert sentence.startswith(
        "Is momentum more than local averaging? “momentum 0.3” minus “convolution”, a short convolution of "
    )
    assert f"{nats(-0.01 - convolution)} nats a token" in sentence
    assert sentence.endswith(f"5 seeds: {answer}")


def test_without_a_gain_local_averaging_explains_nothing():
    arms = [arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.3), arm("convolution", 0.0001)]
    [sentence] = averaging_sentences(study(arms=arms))
    assert sentence.endswith("5 seeds: not significantly different.")


def test_the_best_of_several_etas_is_called_so():
    arms = [
        arm("vanilla", 0.0),
        arm("momentum", -0.01, eta=0.3),
        arm("momentum", 0.1, eta=0.9),
        arm("convolution", 0.0),
    ]
    assert "“momentum 0.3”, the best of 2 etas, minus" in averaging_sentences(study(arms=arms))[0]
    assert averaging_sentences(study(arms=arms[:-1])) == []
    assert averaging_sentences(study(arms=[arms[0], LOST, arms[-1]])) == []


def test_the_momentum_of_gradient_descent_is_compared_with_the_papers_sum_in_linear_attention():
    [sentence] = dual_sentences(study())
    assert sentence.startswith(
        "In linear attention, the momentum of gradient descent significantly lowers the loss in “heavy-ball 0.3”, and "
        "does not change the loss significantly in “nesterov 0.3”. “heavy-ball 0.3” minus “linear-momentum 0.3”: "
        "-0.0107 nats a token (95% CI "
    )
    assert sentence.endswith("it is significantly better than the paper's sum.")
    alone = [arm("linear", 0.31), arm("heavy-ball", 0.35, eta=0.3)]
    assert dual_sentences(study(arms=alone)) == [
        "In linear attention, the momentum of gradient descent significantly raises the loss in “heavy-ball 0.3”."
    ]
    assert dual_sentences(study(arms=[arm("linear", 0.31), arm("linear-momentum", 0.3, eta=0.3)])) == []


def test_learned_decays_are_reported_by_layer():
    assert learned_sentences(study()) == [
        "“learned 0.3”, which started at 0.3, learned etas from 0.031 (layer 0) to 0.420 (layer 3), means over "
        "heads and seeds."
    ]
    single = arm("learned", -0.01, eta=0.3, learned_eta=[None, 0.2])
    assert learned_sentences(study(arms=[single]))[0].endswith("learned an eta of 0.200, mean over heads and seeds.")
    assert learned_sentences(study(arms=[arm("learned", -0.01, eta=0.3, learned_eta=[None])])) == []


def test_tasks_are_averaged_within_a_seed_and_those_at_chance_are_named():
    means, chance = task_sentences(study())
    assert means.startswith(
        "Mean accuracy over 3 tasks, compared with 49.3 % for “vanilla” and 49.3 % for “linear”: significantly above "
        "the "
    )
    assert "significantly above the baseline for “learned 0.3” (+1.9 points, +" in means
    assert "; significantly below the baseline for “momentum 0.9” (-4.8 points, -" in means
    assert "; not significantly different from the baseline for “momentum 0.1”, “momentum 0.3”" in means
    assert chance == (
        "On “cb” no arm is significantly above chance level (always giving the most frequent answer), so the "
        "differences are not evidence about in-context learning."
    )


def test_a_task_is_at_chance_only_where_every_arm_is():
    low, high = score("cb", 0.5, 0.5, None), score("cb", 0.6, 0.5, paired(0.1, 0.01))
    both = [arm("vanilla", 0.0, tasks=[low]), arm("momentum", 0.0, eta=0.1, tasks=[high])]
    assert not any("chance" in sentence for sentence in task_sentences(study(arms=both)))
    lost = [arm("vanilla", 0.0, tasks=[low, score("rte", 0.5, 0.5, None)])]
    assert task_sentences(study(arms=lost)) == [
        "Mean accuracy over 2 tasks: 50.0 % for “vanilla”.",
        "On no task is any arm significantly above chance level (always giving the most frequent answer), so the "
        "differences are not evidence about in-context learning.",
    ]
    unsure = score("cb", 0.5, 0.5, None).model_copy(update={"accuracy": estimate(0.5, None)})
    assert len(task_sentences(study(arms=[arm("vanilla", 0.0, tasks=[unsure])]))) == 1


def test_tasks_without_a_difference_or_with_one_seed_give_no_conclusion():
    each = arm("momentum", 0.0, eta=0.1, tasks=tasks("vanilla", 0.1, seeds=1))
    [means, _] = task_sentences(study(arms=[arm("vanilla", 0.0), each]))
    assert means.endswith(": without an interval, so no conclusion, for “momentum 0.1”.")
    missing = [*tasks("vanilla", 0.1)[:2], score("cb", 0.5, 0.5, None)]
    assert over_tasks(arm("momentum", 0.0, eta=0.1, tasks=missing)) is None
    assert task_sentences(study(arms=[arm("vanilla", 0.0, tasks=[])])) == []


def test_regression_is_reported_by_condition_number_and_compared_with_exact_descent():
    first, second, last = regression_sentences(regression())
    assert first.startswith(
        "In-context regression, condition number 1: the error is significantly above the baseline for “heavy-ball "
        "0.3” (+11.6 %, +"
    )
    assert first.endswith("; not significantly different from the baseline for “momentum 0.3”.")
    assert second.startswith(
        "In-context regression, condition number 100: the error is significantly below the baseline for “mom"
    )
    assert last == (
        "For comparison, after 20 examples momentum changes the error of exact gradient descent with the same number "
        "of "
        "steps from 0.111 to 0.018 at condition number 1 and from 0.208 to 0.057 at condition number 100."
    )
    alone = regression(references={}, curves=[curve("vanilla", 1.0, 0.1, None)])
    assert regression_sentences(alone) == []


@pytest.mark.parametrize(
    ("change", "conclusion"), [(-0.01, "better"), (0.01, "worse"), (0.0, "not significantly different")]
)
def test_a_pretrained_model_is_reported_before_and_after_a_finetune(change, conclusion):
    before, after = pretrained_sentences("gpt2", [pretrained("gpt2", change)])
    assert before == (
        "Adding momentum to “gpt2”, which was trained without it, changes its perplexity from 18.42 to 31.27 with "
        "eta 0.1."
    )
    assert after.startswith(
        f"After the same short finetune, loss with momentum minus loss without: with eta 0.1 {nats(change)} nats a "
        "token (95% "
    )
    assert after.endswith(f"5 seeds: {conclusion}.")


def test_several_etas_of_a_pretrained_model_share_their_sentences():
    tried = [pretrained("gpt2", 0.0), pretrained("gpt2", 0.01, eta=0.3)]
    before, after = pretrained_sentences("gpt2", tried)
    assert before.endswith("from 18.42 to 31.27 with eta 0.1 and 31.27 with eta 0.3.")
    assert ": not significantly different; with eta 0.3 +0.0100 nats a token (" in after
    sentences = verdict(arm("vanilla", None, tasks=[]), pretrained=[*tried, pretrained("other", 0.0)])
    assert sentences == [f"{before} {after}", " ".join(pretrained_sentences("other", [pretrained("other", 0.0)]))]


def test_a_pretrained_model_without_numbers_or_finetune_is_skipped():
    untuned = pretrained("gpt2", 0.0).model_copy(update={"difference": None, "perplexity": None})
    assert pretrained_sentences("gpt2", [untuned]) == []
    only_tuned = pretrained("gpt2", 0.0).model_copy(update={"base": None, "eta": None})
    [sentence] = pretrained_sentences("gpt2", [only_tuned])
    assert sentence.startswith(
        "After the same short finetune of “gpt2”, which was trained without it, loss with momentum minus loss without: "
        "+0.0000 nats"
    )


def test_the_papers_difference_is_quoted_as_one_run_without_interval():
    def last(loss: float, sd: float = 0.002) -> str:
        momentum = arm("momentum", loss, eta=0.3, difference={"256": paired(loss, sd)})
        return paper_sentences(study(arms=[arm("vanilla", 0.0), momentum]))[0]

    published = (
        "The paper's models with 350M parameters, one run each and therefore without an interval, differ by -0.0080 "
        "nats a "
        "token at 1,024 tokens (perplexity 15.14 and 15.02); the interval of “momentum 0.3” here, for another model "
        "and "
        "other text, "
    )
    assert last(-0.008) == f"{published}contains this difference."
    assert last(-0.02) == f"{published}lies below it, a larger gain."
    assert last(0.0) == f"{published}lies above it, a smaller gain or none."
    assert last(0.02) == f"{published}lies above 0, a loss."
    assert (
        last(-0.005, sd=0.02)
        == f"{published}contains this difference, but is too wide to detect so small a difference."
    )
    one_seed = study(arms=[arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.3, seeds=1)])
    assert paper_sentences(one_seed)[0].endswith("(perplexity 15.14 and 15.02).")
    assert paper_sentences(study(arms=[arm("vanilla", 0.0)])) == []


def test_many_comparisons_and_few_seeds_are_mentioned():
    many, few = caution_sentences(study())
    assert many.startswith("The 10 comparisons are not corrected for multiplicity:")
    assert few.endswith("a sign-flip test, which does not, cannot give p below 0.0625 with 5 seeds.")
    single = [arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.1, seeds=3)]
    assert caution_sentences(study(arms=single)) == [few.replace("0.0625 with 5", "0.25 with 3")]
    assert caution_sentences(study(arms=single[:1])) == []


def test_costs_are_given_as_lowest_and_highest():
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
    text = "\n".join(verdict(vanilla, momentum, regression=regression(curves=curves, references={})))
    assert f"is significantly better than {name} with eta 0.1." in text
    assert f"“{name}!” minus “{name}”: " in text
    assert f"significantly below the baseline for “{name}” (" in text
    assert f"“{name}!”." in text

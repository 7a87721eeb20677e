"""Runs over demonstration sets, orders and labels: how many there are, what each says, and what is made of them."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from dualform.errors import ConfigError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.calibrated import CONTENT_FREE
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.calibration import contextual_calibration
from dualform.result import Result
from dualform.studies.experiment import Experiment
from dualform.studies.pieces import Piece
from dualform.studies.stability import run as study
from dualform.studies.stability.config import StabilityConfig, stability_config
from dualform.studies.stability.result import LearnerStability, StabilityResult, StabilityRun
from dualform.studies.stability.run import StabilityStudy, stability
from dualform.studies.stability.summary import RunAnswers, runs_table
from dualform.tasks.build import build_task
from dualform.tasks.demonstrations import LabelRule
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task import Example, Task
from tests.studies.small import MemoryStore, RecordedProgress, long_and_short_task, sentences, small_lm, small_task
from tests.tiny import tiny_model, tiny_tokenizer

N_QUERIES = 8
RATES = (1e-3, 1e-2)


def small(models: tuple[str, ...] = ("small",), **changes: Any) -> StabilityConfig:
    """Three sets of four demonstrations, ICL in three orders, FT on two sets in two orders, labels on two sets."""
    settings: dict[str, Any] = {
        "k": 4,
        "seeds": (1, 2, 3),
        "orders": 3,
        "ft_seeds": 2,
        "ft_orders": 2,
        "label_seeds": 2,
        "limit": N_QUERIES,
        "selection_limit": 6,
        "rates": RATES,
        "resamples": 50,
    }
    return stability_config(models, "toy", **(settings | changes))


@cache
def larger_lm() -> LanguageModel:
    """Three layers."""
    model = tiny_model("gpt2", seed=1, dtype=torch.float64, n_layer=3)
    return LanguageModel.wrap(model, tiny_tokenizer(), "larger")


@cache
def run(**changes: Any) -> StabilityStudy:
    """A small study; tests only read it."""
    return stability(small(**changes), lms=[small_lm()], task=small_task())


@cache
def two_models() -> StabilityStudy:
    """The larger one named first."""
    return stability(small(("large", "small")), lms=[larger_lm(), small_lm()], task=small_task())


def runs_of(found: StabilityStudy, learner: str, labels: str = "true") -> list[RunAnswers]:
    return [run for run in found.models[0].runs if run.learner == learner and run.labels == labels]


def learner_of(found: StabilityStudy, name: str, model: str = "small") -> LearnerStability:
    assert found.result.stability is not None
    return found.result.stability.models[model].learners[name]


def numbers(result: StabilityResult) -> dict[str, Any]:
    """All but what may differ between two equal runs."""
    return result.model_dump(mode="json", exclude={"environment"})


def labels() -> list[int]:
    return [example.label for example in run().description.examples]


# The plan.


@pytest.mark.filterwarnings("ignore:.*demonstrations take:UserWarning")
@pytest.mark.parametrize(("context", "k_effective", "n_orders"), [(200, [1, 1, 3], 1), (220, [2, 2, 3], 2)])
def test_every_set_is_run_in_as_many_orders_as_the_smallest_has(
    context: int, k_effective: list[int], n_orders: int
) -> None:
    config = small(k=3, context=context)
    experiment = Experiment.of(config, small_lm(), long_and_short_task())
    drawn = experiment.draw_all(config.seeds)
    assert [one.demonstrations.k_effective for one in drawn.values()] == k_effective

    found = stability(config, lms=[small_lm()], task=long_and_short_task())

    assert Counter((run.seed, run.order) for run in runs_of(found, "icl")) == {
        (seed, order): 1 for seed in config.seeds for order in range(n_orders)
    }
    assert learner_of(found, "icl").plain.accuracy.n == len(config.seeds) * n_orders
    (note,) = [note for note in found.result.warnings if "orders of each set were requested" in note]
    assert f"3 orders of each set were requested, but some sets have only {n_orders}" in note


def test_nothing_is_noted_where_every_set_has_the_orders_requested() -> None:
    assert not any("orders of each set" in note for note in run().result.warnings)


def test_runs_are_as_many_as_asked_for() -> None:
    counts = Counter((run.learner, run.labels) for run in run().models[0].runs)

    assert counts == {
        ("zsl", "true"): 1,
        ("icl", "true"): 3 * 3,
        ("ft", "true"): 2 * 2,
        ("icl", "random"): 2,
        ("icl", "flipped"): 2,
        ("ft", "random"): 2,
        ("ft", "flipped"): 2,
    }
    assert [(run.seed, run.order) for run in runs_of(run(), "icl")] == [(s, o) for s in (1, 2, 3) for o in range(3)]


def test_finetuning_is_run_on_the_first_sets_alone() -> None:
    assert [(run.seed, run.order) for run in runs_of(run(), "ft")] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [run.seed for run in runs_of(run(), "ft", "flipped")] == [1, 2]
    # Labels on more sets than finetuning: the rest is ICL's alone.
    more = run(label_seeds=3, ft_seeds=1)
    assert [run.seed for run in runs_of(more, "icl", "random")] == [1, 2, 3]
    assert [run.seed for run in runs_of(more, "ft", "random")] == [1]


def test_finetuning_and_labels_can_be_left_out() -> None:
    found = run(ft_seeds=0, label_seeds=0)

    assert {(run.learner, run.labels) for run in found.models[0].runs} == {("zsl", "true"), ("icl", "true")}
    assert found.result.stability is not None
    assert found.result.stability.contrasts == []
    assert found.models[0].trials == ()
    assert learner_of(found, "icl").labels == {}


def test_further_rates_are_run_beside_the_one_chosen() -> None:
    found = run(further_rates=(1e-4, 5e-2))

    for name, rate in (("ft@0.0001", 1e-4), ("ft@0.05", 5e-2)):
        runs = runs_of(found, name)
        assert [(run.seed, run.order, run.rate) for run in runs] == [(s, o, rate) for s in (1, 2) for o in (0, 1)]
        assert learner_of(found, name).learning_rate == rate
        # Wrong labels are tried at the rate chosen.
        assert learner_of(found, name).labels == {}
    # One is no trial of the search.
    assert {trial.learning_rate for trial in found.models[0].trials} == set(RATES)
    (chosen,) = [trial.learning_rate for trial in found.models[0].trials if trial.chosen]
    assert {run.rate for run in runs_of(found, "ft")} == {chosen}
    # What was run before is the same.
    assert learner_of(found, "ft") == learner_of(run(), "ft")
    assert learner_of(found, "ft@0.05").plain != learner_of(found, "ft").plain


def test_the_first_set_chooses_the_rate_for_all() -> None:
    trials = run().models[0].trials

    assert [(trial.seed, trial.learning_rate) for trial in trials] == [(1, rate) for rate in RATES]
    (chosen,) = [trial.learning_rate for trial in trials if trial.chosen]
    assert {one.rate for name in ("true", "random", "flipped") for one in runs_of(run(), "ft", name)} == {chosen}
    assert {one.rate for one in runs_of(run(), "icl")} == {None}
    assert learner_of(run(), "ft").learning_rate == chosen


# The twin: learners called by hand.


class _ByHand:
    """One model's runs, made with the learners themselves."""

    def __init__(self, lm: LanguageModel, task: Task) -> None:
        self.lm = lm
        self.task = task
        self.experiment = Experiment.of(small(), lm, task)

    def answers(self, adapted: AdaptedModel) -> Tensor:
        return answer_log_probabilities(adapted, self.lm, self.experiment.queries)

    def content_free(self, adapted: AdaptedModel) -> Tensor:
        encoder = Encoder(self.lm, self.task)
        queries = [encoder.query(Example({"text": text}, 0, 0)) for text in ("N/A", "", "[MASK]")]
        return answer_log_probabilities(adapted, self.lm, queries)

    def adapted(self, run: RunAnswers) -> AdaptedModel:
        opening = self.experiment.encoder.opening
        demonstrations = self.experiment.draw(run.seed).demonstrations.reordered(run.order)
        encoded = self.experiment.encoder.demonstrations(demonstrations.relabelled(self.task, run.labels))  # type: ignore[arg-type]
        if run.learner == "zsl":
            return ZeroShot(opening).adapt(self.lm, encoded)
        if run.learner == "icl":
            return InContext().adapt(self.lm, encoded)
        assert run.rate is not None
        return Finetuned(opening, run.rate).adapt(self.lm, encoded)


def test_every_run_is_what_the_learner_itself_answers() -> None:
    by_hand = _ByHand(small_lm(), small_task())

    for one in run(further_rates=(1e-4,)).models[0].runs:
        adapted = by_hand.adapted(one)
        torch.testing.assert_close(one.answers, by_hand.answers(adapted), rtol=0, atol=1e-10)
        torch.testing.assert_close(one.content_free, by_hand.content_free(adapted), rtol=0, atol=1e-10)


def test_the_twin_would_notice_another_order_set_rule_or_rate() -> None:
    by_hand = _ByHand(small_lm(), small_task())
    ft = runs_of(run(), "ft")[0]
    assert ft.rate is not None

    for one, changes in (
        (runs_of(run(), "icl")[0], {"order": 1}),
        (runs_of(run(), "icl")[0], {"seed": 2}),
        (runs_of(run(), "icl", "flipped")[0], {"labels": "true"}),
        (ft, {"order": 1}),
        (ft, {"rate": ft.rate / 2}),
    ):
        other = by_hand.answers(by_hand.adapted(dataclasses.replace(one, **changes)))
        assert (other - one.answers).abs().max() > 1e-4, changes


def test_orders_are_permutations_of_one_set_and_the_first_is_the_order_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[EncodedDemonstrations] = []
    adapt = InContext.adapt

    def watched(self: InContext, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        shown.append(demonstrations)
        return adapt(self, lm, demonstrations)

    monkeypatch.setattr(InContext, "adapt", watched)
    stability(small(seeds=(1, 2), orders=4, ft_seeds=0, label_seeds=0), lms=[small_lm()], task=small_task())
    experiment = Experiment.of(small(), small_lm(), small_task())

    for number, seed in enumerate((1, 2)):
        orders = [each.sequences for each in shown[4 * number : 4 * number + 4]]
        assert orders[0] == experiment.draw(seed).encoded.sequences
        assert len(set(orders)) == 4
        assert len({tuple(sorted(order)) for order in orders}) == 1


def test_zero_shot_is_run_once_and_hangs_on_nothing() -> None:
    (only,) = runs_of(run(), "zsl")

    assert (only.order, only.rate) == (0, None)
    (other,) = runs_of(run(seeds=(7, 8, 9)), "zsl")
    torch.testing.assert_close(only.answers, other.answers, rtol=0, atol=0)


# Calibration.


def test_calibration_is_that_of_the_content_free_answers() -> None:
    assert CONTENT_FREE == ("N/A", "", "[MASK]")
    for one in run().models[0].runs:
        assert one.content_free.shape == (3, 2)
        assert one.calibrated is not None
        torch.testing.assert_close(one.calibrated, contextual_calibration(one.answers, one.content_free))
        # By hand: divide by the mean answer to what says nothing, then renormalise.
        p = one.answers.log_softmax(1).exp() / one.content_free.log_softmax(1).exp().mean(dim=0)
        torch.testing.assert_close(one.calibrated.exp(), p / p.sum(dim=1, keepdim=True))


def test_calibrated_behaviour_is_that_of_calibrated_answers() -> None:
    for name in ("zsl", "icl", "ft"):
        found = learner_of(run(), name)
        assert found.calibrated is not None
        accuracies = []
        for one in runs_of(run(), name):
            assert one.calibrated is not None
            predicted = one.calibrated.argmax(dim=1).tolist()
            accuracies.append(np.mean([p == y for p, y in zip(predicted, labels(), strict=True)]))
        assert found.calibrated.accuracy.mean == pytest.approx(np.mean(accuracies))
    # It is not the plain one.
    found = learner_of(run(), "icl")
    assert found.calibrated is not None
    assert found.plain.majority_share != found.calibrated.majority_share


@cache
def choices_task() -> Task:
    rows = [
        {"text": text, "choices": ["the bad one", "works everywhere", "nothing"][: 2 + i % 2], "label": i % 2}
        for i, (text, _) in enumerate(sentences())
    ]
    return build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), TaskOptions(choices="choices"))


def test_free_text_choices_have_no_bias_to_calibrate() -> None:
    found = stability(small(), lms=[small_lm()], task=choices_task())

    for name in ("zsl", "icl", "ft"):
        learner = learner_of(found, name)
        assert learner.calibrated is None
        assert all(one.calibrated is None for one in learner.runs)
        assert all(one.plain.majority_label is None for one in learner.runs)
        assert learner.plain.accuracy.mean is not None
        assert 0 <= learner.plain.accuracy.mean <= 1
    assert all(len(one.content_free) == 0 for one in found.models[0].runs)
    assert found.result.stability is not None
    assert not any(contrast.calibrated for contrast in found.result.stability.contrasts)
    rows = runs_table(found.description, found.models).to_pylist()
    assert all(row["calibrated_prediction"] is None for row in rows)
    assert any(row["log_probability:2"] is None for row in rows)
    assert any(row["log_probability:2"] is not None for row in rows)
    assert all(row["prediction"] < 2 for row in rows if row["log_probability:2"] is None)


def test_a_prompt_that_shows_the_text_alone_is_calibrated_too() -> None:
    # Of the content-free texts one is empty, and so is its prompt.
    template = dataclasses.replace(small_task().template, prompt="{text}")

    found = stability(
        small(ft_seeds=0, label_seeds=0), lms=[small_lm()], task=dataclasses.replace(small_task(), template=template)
    )

    assert learner_of(found, "icl").calibrated is not None


# What is made of the runs.


def accuracy_of(one: RunAnswers) -> float:
    return float(np.mean([p == y for p, y in zip(one.answers.argmax(dim=1).tolist(), labels(), strict=True)]))


def share_of(one: RunAnswers) -> float:
    return max(Counter(one.answers.argmax(dim=1).tolist()).values()) / N_QUERIES


def entropy_of(one: RunAnswers) -> float:
    p = one.answers.log_softmax(1).exp().numpy()
    return float(-(p * np.log(p)).sum(axis=1).mean())


@pytest.mark.parametrize("name", ["zsl", "icl", "ft"])
@pytest.mark.parametrize(
    ("measure", "of"), [("accuracy", accuracy_of), ("majority_share", share_of), ("entropy", entropy_of)]
)
def test_spreads_are_what_numpy_makes_of_the_runs(name: str, measure: str, of: Any) -> None:
    values = np.array([of(one) for one in runs_of(run(), name)])
    spread = getattr(learner_of(run(), name).plain, measure)

    assert spread.n == len(values)
    assert spread.mean == pytest.approx(values.mean())
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    assert [spread.low, spread.q25, spread.median, spread.q75, spread.high] == pytest.approx(list(quantiles))
    if len(values) > 1:
        assert spread.sd == pytest.approx(values.std(ddof=1))
        low, high = spread.sd_ci95
        assert 0 <= low <= high
    else:
        assert (spread.sd, spread.sd_ci95) == (None, (None, None))


def test_each_runs_behaviour_is_told() -> None:
    words = small_task().label_words or ()

    for name in ("zsl", "icl", "ft"):
        told = learner_of(run(), name).runs
        runs = [one for one in run().models[0].runs if one.learner == name]
        assert [(one.seed, one.order, one.labels) for one in told] == [(o.seed, o.order, o.labels) for o in runs]
        for mine, theirs in zip(told, runs, strict=True):
            assert isinstance(mine, StabilityRun)
            assert mine.plain.accuracy == pytest.approx(accuracy_of(theirs))
            assert mine.plain.majority_share == pytest.approx(share_of(theirs))
            assert mine.plain.entropy == pytest.approx(entropy_of(theirs))
            predicted = theirs.answers.argmax(dim=1).tolist()
            assert mine.plain.majority_label in {words[label] for label, n in Counter(predicted).items()
                                                 if n == max(Counter(predicted).values())}  # fmt: skip


def test_best_less_worst_order_is_a_mean_over_sets() -> None:
    found = learner_of(run(), "icl").plain.order_range
    ranges = []
    for seed in (1, 2, 3):
        accuracies = [accuracy_of(one) for one in runs_of(run(), "icl") if one.seed == seed]
        ranges.append(max(accuracies) - min(accuracies))

    assert (found.mean, found.n) == (pytest.approx(np.mean(ranges)), 3)
    # With one order of each there is none.
    alone = learner_of(run(orders=1, ft_orders=1), "icl").plain
    assert (alone.order_range.mean, alone.order_range.n) == (None, 0)
    assert alone.variance is not None
    assert alone.variance.order is None


def test_one_set_has_no_variance_between_sets() -> None:
    found = learner_of(run(seeds=(1,)), "icl").plain

    assert found.variance is None
    assert found.accuracy.sd is not None
    assert found.accuracy.sd_ci95 == (None, None)
    assert found.order_range.ci95 == (None, None)
    assert learner_of(run(), "icl").plain.variance is not None


def made_up(answers: Sequence[Sequence[int]], learner: str = "icl", n_orders: int = 2) -> list[RunAnswers]:
    """Runs in which the queries are answered by these labels, sets in turn."""
    runs = []
    for number, predicted in enumerate(answers):
        table = torch.nn.functional.one_hot(torch.tensor(predicted), 2).double().log_softmax(1)
        uniform = torch.zeros(1, 2, dtype=torch.float64)
        runs.append(RunAnswers(learner, number // n_orders, number % n_orders, "true", table, uniform, None))
    return runs


def summarised(runs: list[RunAnswers], config: StabilityConfig | None = None) -> StabilityResult:
    from dualform.studies.stability.summary import ModelRuns, summarise_stability

    facts = {"parameters": 1, "k_effective": 4, "orders": 3, "refused_routes": [], "route": "packed"}
    models = [ModelRuns("small", facts, tuple(runs), ())]
    return summarise_stability(config or small(), run().description, models, {})


def test_a_run_that_gives_one_label_to_more_than_nine_in_ten_has_collapsed() -> None:
    n = N_QUERIES
    collapsed, split, other = [1] * n, [0, 1] * (n // 2), [0] * n
    nearly = [0] + [1] * (n - 1)  # 7 of 8 is less than 9 of 10

    for answers, rate in (
        ([collapsed, split, split, split], 0.25),
        ([collapsed, other, split, split], 0.5),
        ([nearly] * 4, 0.0),
        ([collapsed] * 4, 1.0),
    ):
        result = summarised(made_up(answers))
        assert result.stability is not None
        found = result.stability.models["small"].learners["icl"].plain
        assert found.collapse_rate.mean == pytest.approx(rate)
        assert found.collapse_rate.n == 4
        # Four runs are a count, not a rate with an interval.
        assert found.collapse_rate.ci95 == (None, None)


def test_the_interval_of_a_rate_of_collapse_is_over_sets_and_never_without_width() -> None:
    n = N_QUERIES
    collapsed, split = [1] * n, [0, 1] * (n // 2)
    ends = []
    for answers in ([collapsed] * 4 + [split] * 8, [collapsed] * 12):
        result = summarised(made_up(answers))
        assert result.stability is not None
        found = result.stability.models["small"].learners["icl"].plain.collapse_rate
        low, high = found.ci95
        assert low is not None
        assert high is not None
        assert low <= (found.mean or 0.0) <= high
        ends.append((low, high))
    # All of six sets, two orders each: Clopper and Pearson's lower end is 0.025 ** (1 / 6).
    assert ends[1] == pytest.approx((0.025 ** (1 / 6), 1.0))
    assert ends[0][1] < 0.9


def test_runs_that_all_answer_alike_are_not_spread() -> None:
    result = summarised(made_up([[0, 1] * (N_QUERIES // 2)] * 6))
    assert result.stability is not None
    found = result.stability.models["small"].learners["icl"].plain

    assert (found.accuracy.sd, found.order_range.mean) == (0.0, 0.0)
    assert found.variance is not None
    assert (found.variance.set, found.variance.order, found.variance.residual) == (0.0, 0.0, 0.0)


def test_sets_are_told_from_orders() -> None:
    # Sets answer all rightly or all wrongly; then orders do.
    right = labels()
    wrong = [1 - label for label in right]
    for answers, larger, smaller in (
        ([right, right, wrong, wrong, right, right, wrong, wrong], "set", "order"),
        ([right, wrong] * 4, "order", "set"),
    ):
        result = summarised(made_up(answers))
        assert result.stability is not None
        parts = result.stability.models["small"].learners["icl"].plain.variance
        assert parts is not None
        assert getattr(parts, larger) > 0.2
        assert getattr(parts, smaller) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["icl", "ft"])
def test_accuracy_by_label_is_over_the_sets_that_have_all_rules_in_the_order_drawn(name: str) -> None:
    found = learner_of(run(), name)

    assert list(found.labels) == ["true", "random", "flipped"]
    of_rule = {}
    for rule, estimate in found.labels.items():
        chosen = [one for one in runs_of(run(), name, rule) if one.order == 0 and one.seed in (1, 2)]
        of_rule[rule] = np.mean([accuracy_of(one) for one in chosen])
        assert len(chosen) == 2
        assert (estimate.mean, estimate.n) == (pytest.approx(of_rule[rule]), 2 * N_QUERIES)
    assert set(found.label_effects) == {"random", "flipped"}
    for rule, effect in found.label_effects.items():
        assert effect.mean == pytest.approx(of_rule[rule] - of_rule["true"])
        assert effect.n == 2 * N_QUERIES
    # The third set, which has true labels only, is left out.
    if name == "icl":
        all_sets = np.mean([accuracy_of(one) for one in runs_of(run(), name) if one.order == 0])
        assert all_sets != of_rule["true"]


def test_spreads_of_finetuning_and_context_are_compared_over_the_runs_that_both_have() -> None:
    assert run().result.stability is not None
    plain, calibrated = run().result.stability.contrasts  # type: ignore[union-attr]
    icl = [accuracy_of(one) for one in runs_of(run(), "icl") if one.seed in (1, 2) and one.order in (0, 1)]
    ft = [accuracy_of(one) for one in runs_of(run(), "ft")]

    assert (plain.question, plain.learner, plain.first, plain.second) == ("ft_beside_icl", "ft", "small", "small")
    assert (plain.calibrated, calibrated.calibrated) == (False, True)
    assert plain.n == calibrated.n == 2
    assert plain.sd_second == pytest.approx(np.std(icl, ddof=1))
    assert plain.sd_first == pytest.approx(np.std(ft, ddof=1))
    # ICL's other runs are spread otherwise.
    assert plain.sd_second != pytest.approx(learner_of(run(), "icl").plain.accuracy.sd)
    if plain.sd_second:
        assert plain.ratio == pytest.approx((plain.sd_first or 0) / plain.sd_second)


def test_further_rates_are_compared_with_context_too() -> None:
    result = run(further_rates=(1e-4,)).result
    assert result.stability is not None

    assert [(each.question, each.learner, each.calibrated) for each in result.stability.contrasts] == [
        ("ft_beside_icl", name, calibrated) for name in ("ft", "ft@0.0001") for calibrated in (False, True)
    ]


def test_models_are_listed_by_size_and_each_is_compared_with_the_next_smaller() -> None:
    result = two_models().result
    assert result.stability is not None
    sizes = [contrast for contrast in result.stability.contrasts if contrast.question == "size"]

    assert list(result.stability.models) == ["small", "large"]
    assert result.model["name"] == "small, large"
    assert [(each.learner, each.first, each.second, each.calibrated) for each in sizes] == [
        (name, "large", "small", calibrated) for name in ("icl", "ft") for calibrated in (False, True)
    ]
    icl = {name: learner_of(two_models(), "icl", name).plain.accuracy.sd for name in ("small", "large")}
    assert (sizes[0].sd_first, sizes[0].sd_second) == (
        pytest.approx(icl["large"]), pytest.approx(icl["small"]),
    )  # fmt: skip
    # A model's numbers do not depend on its company.
    assert two_models().result.stability.models["small"].learners == run().result.stability.models["small"].learners  # type: ignore[union-attr]


def test_one_set_in_common_is_too_little_to_compare() -> None:
    result = run(ft_seeds=1).result

    assert result.stability is not None
    assert result.stability.contrasts == []


# Pieces, determinism, progress.


class StoppedError(Exception):
    """In place of whatever ends a process."""


class Stopping(MemoryStore):
    """Cells that are pulled away after so many pieces."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def put(self, piece: Piece) -> None:
        super().put(piece)
        if len(self.put_names) == self.after:
            raise StoppedError


@pytest.mark.parametrize("after", [1, 4])
def test_a_study_that_is_stopped_goes_on_and_gives_the_same_numbers(after: int) -> None:
    store = Stopping(after)
    settings = small(("large", "small"), further_rates=(1e-4,))
    with pytest.raises(StoppedError):
        stability(settings, lms=[larger_lm(), small_lm()], task=small_task(), pieces=store)
    done = list(store.put_names)
    store.after = -1

    found = stability(settings, lms=[larger_lm(), small_lm()], task=small_task(), pieces=store)

    everything = [f"{name}, seed {seed}" for name in ("large", "small") for seed in (1, 2, 3)]
    assert done == everything[:after]
    assert store.put_names == everything
    whole = stability(settings, lms=[larger_lm(), small_lm()], task=small_task())
    assert numbers(found.result) == numbers(whole.result)
    assert runs_table(found.description, found.models) == runs_table(whole.description, whole.models)


def test_a_piece_survives_its_file(tmp_path: Path) -> None:
    store = MemoryStore()
    whole = stability(small(), lms=[small_lm()], task=small_task(), pieces=store)
    for number, (name, piece) in enumerate(store.pieces.items()):
        # A file each: what is read stays mapped.
        path = tmp_path / f"piece-{number}"
        path.write_bytes(piece.to_bytes())
        store.pieces[name] = Piece.from_file(str(path))

    again = stability(small(), lms=[small_lm()], task=small_task(), pieces=store)

    assert len(store.put_names) == 3
    assert numbers(again.result) == numbers(whole.result)


def test_pieces_made_with_other_weights_are_made_again() -> None:
    store = MemoryStore()
    stability(small(), lms=[small_lm()], task=small_task(), pieces=store)
    other = LanguageModel.wrap(tiny_model("gpt2", seed=3, dtype=torch.float64), tiny_tokenizer(), "tiny")

    stability(small(), lms=[other], task=small_task(), pieces=store)

    assert len(store.put_names) == 6


def test_the_same_settings_give_the_same_numbers() -> None:
    again = stability(small(), lms=[small_lm()], task=small_task())

    assert numbers(again.result) == numbers(run().result)
    assert again.result.config == small().model_dump(mode="json")
    assert again.result.study == "stability"
    assert Result.from_json(again.result.to_json()) == again.result


def test_the_model_is_as_before() -> None:
    lm = small_lm()
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}

    stability(small(), lms=[lm], task=small_task())

    after = lm.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("changes", [{}, {"further_rates": (1e-4,)}, {"ft_seeds": 0}, {"rates": (1e-2,)}])
def test_the_bar_ends_where_it_said_it_would(changes: dict[str, Any]) -> None:
    progress, again, store = RecordedProgress(), RecordedProgress(), MemoryStore()
    stability(small(**changes), lms=[small_lm()], task=small_task(), progress=progress, pieces=store)
    stability(small(**changes), lms=[small_lm()], task=small_task(), progress=again, pieces=store)

    assert progress.total > 0
    assert progress.done == pytest.approx(progress.total)
    # Also when all was done before.
    assert again.done == pytest.approx(again.total) == pytest.approx(progress.total)


# Rates that diverge.


def diverging(limit: float, on: Any) -> Any:
    """Finetuning that diverges above a rate on some demonstrations."""

    class Stubborn:
        def __init__(self, opening: tuple[int, ...], rate: float, loss_on: Any) -> None:
            self.inner = Finetuned(opening, rate, loss_on)

        def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
            if on(demonstrations) and self.inner.learning_rate > limit:
                raise TrainingError("diverged")
            return self.inner.adapt(lm, demonstrations)

    return Stubborn


def test_a_run_that_diverges_is_made_again_at_the_next_lower_rate_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Experiment.of(small(), small_lm(), small_task()).draw(2).encoded.sequences
    monkeypatch.setattr(study, "Finetuned", diverging(1e-3, lambda each: each.sequences == second))
    (chosen,) = {one.rate for one in runs_of(run(), "ft")}
    assert chosen == 1e-2, "the case needs a lower rate to fall back to"

    found = stability(small(label_seeds=0), lms=[small_lm()], task=small_task())

    rates = {(one.seed, one.order): one.rate for one in runs_of(found, "ft")}
    assert rates == {(1, 0): 1e-2, (1, 1): 1e-2, (2, 0): 1e-3, (2, 1): 1e-2}
    failed = [trial for trial in found.models[0].trials if trial.status == "diverged"]
    assert [(trial.seed, trial.learning_rate) for trial in failed] == [(2, 1e-2)]
    (warning,) = [each for each in found.result.warnings if "NaN or infinite" in each]
    assert warning.startswith(
        "small: the loss became NaN or infinite at the learning rates 0.01; these runs were repeated"
    )


def test_a_further_rate_that_diverges_takes_the_next_lower_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Finetuned", diverging(1e-2, lambda each: True))

    found = stability(small(further_rates=(0.5,), label_seeds=0), lms=[small_lm()], task=small_task())

    assert {one.rate for one in runs_of(found, "ft@0.5")} == {1e-2}
    assert any("at the learning rates 0.5;" in each for each in found.result.warnings)


def test_every_rate_diverging_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Finetuned", diverging(-1.0, lambda each: True))

    with pytest.raises(TrainingError, match=r"every learning rate tried diverged \(0\.001\)"):
        stability(small(), lms=[small_lm()], task=small_task())


# The table.


def test_the_table_has_one_row_for_each_run_and_query() -> None:
    found = two_models()
    table = runs_table(found.description, found.models)
    rows = table.to_pylist()

    assert table.column_names == [
        "model", "learner", "seed", "order", "labels", "query", "label", "prediction", "calibrated_prediction",
        "log_probability:negative", "log_probability:positive",
    ]  # fmt: skip
    n_runs = sum(len(one.runs) for one in found.models)
    assert len(rows) == n_runs * N_QUERIES
    keys = {tuple(row[name] for name in ("model", "learner", "seed", "order", "labels", "query")) for row in rows}
    assert len(keys) == len(rows)
    assert [row["query"] for row in rows[:N_QUERIES]] == [example.row for example in found.description.examples]
    for row in rows:
        answers = [row["log_probability:negative"], row["log_probability:positive"]]
        assert row["prediction"] == answers.index(max(answers))
    flat = [(one, name, i) for name, model in zip(("large", "small"), found.models, strict=True)
            for one in model.runs for i in range(N_QUERIES)]  # fmt: skip
    for row, (one, name, i) in zip(rows, flat, strict=True):
        assert one.calibrated is not None
        assert (row["model"], row["learner"], row["order"]) == (name, one.learner, one.order)
        assert row["calibrated_prediction"] == int(one.calibrated[i].argmax())
        assert row["log_probability:positive"] == float(one.answers[i, 1])


# What must be said.


def test_few_sets_are_warned_about() -> None:
    assert any(each.startswith("Only 3 demonstration sets: the intervals of spreads") for each in run().result.warnings)
    eight = small(seeds=tuple(range(8)), ft_seeds=0, orders=1, label_seeds=0)
    result = stability(eight, lms=[small_lm()], task=small_task()).result
    assert not any("demonstration sets" in each for each in result.warnings)


def test_a_rate_at_the_edge_of_its_grid_is_warned_about() -> None:
    (warning,) = [each for each in run().result.warnings if "edge of its grid" in each]

    assert warning == "small: FT's learning rate (0.01) is at the edge of its grid. Widen the grid."
    assert not any("edge" in each for each in run(rates=(1e-2,)).result.warnings)


def test_demonstrations_that_do_not_fit_are_left_out_and_said() -> None:
    with pytest.warns(UserWarning, match=r"4 demonstrations take \d+ tokens, but a context of 85"):
        found = stability(small(context=85), lms=[small_lm()], task=small_task())

    k = found.models[0].facts["k_effective"]
    assert 0 < k < 4
    (warning,) = [each for each in found.result.warnings if "demonstrations were requested" in each]
    assert f"small: 4 demonstrations were requested, but for some sets only {k} fit a context of 85 tokens" in warning


def test_wrong_labels_of_more_tokens_still_fit_the_models_context() -> None:
    rows = [{"text": text, "label": label} for text, label in sentences()]
    words = TaskOptions(label_words=("ok", "an unbelievably long label"))
    task = build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), words)
    settings = small(k=5, balanced=False, ft_seeds=0, orders=1, label_seeds=1)
    experiment = Experiment.of(settings, small_lm(), task)
    queries = (*experiment.queries, *experiment.selection_queries)
    own = max(len(query.prompt) + max(map(len, query.answers)) for query in queries)

    def tokens(seed: int, rule: LabelRule) -> int:
        demonstrations = experiment.draw(seed).demonstrations.relabelled(task, rule)
        return own + len(experiment.encoder.demonstrations(demonstrations).prefix)

    # Mostly short labels, so that the wrong ones take more room.
    seed = next(seed for seed in range(100) if tokens(seed, "flipped") > tokens(seed, "true"))
    model = tiny_model("gpt2", dtype=torch.float64, n_positions=tokens(seed, "true"))
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "tight")

    with warnings.catch_warnings():
        # Fewer demonstrations for everybody are one way out.
        warnings.filterwarnings("ignore", r"\d+ demonstrations take")
        found = stability(settings.model_copy(update={"seeds": (seed,)}), lms=[lm], task=task)

    assert len(runs_of(found, "icl", "flipped")) == 1


# Settings.


def test_settings_have_their_defaults() -> None:
    config = stability_config(("m",), "t", k=None, rates=None)

    assert (config.k, config.seeds, config.orders) == (32, tuple(range(1, 21)), 10)
    assert (config.ft_seeds, config.ft_orders, config.label_seeds) == (10, 2, 10)
    assert (config.limit, config.further_rates) == (100, ())
    assert stability_config(("m",), "t", limit=0).limit is None
    assert stability_config(("m", "n"), "t").model == "m, n"


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        (("m",), {"k": 0}, "k 0 leaves no demonstrations to draw or reorder: set k to at least 1"),
        ((), {}, r"models \[\]: give at least one model, and each only once"),
        (("m", "m"), {}, r"models \['m', 'm'\]: give at least one model, and each only once"),
        (("m",), {"seeds": ()}, r"seeds \[\] must be one or more different numbers"),
        (("m",), {"rates": (-1.0,)}, r"rates \[-1.0\] must be one or more numbers between"),
        (("m",), {"further_rates": (1e38,)}, r"further_rates \[1e\+38\] must be one or more numbers between"),
        (("m",), {"orders": 0}, "orders: .*0"),
        (("m",), {"ft_orders": 0}, "ft_orders: .*0"),
        (("m",), {"ft_seeds": -1}, "ft_seeds: .*-1"),
        (("m",), {"label_seeds": -1}, "label_seeds: .*-1"),
        (("m",), {"learners": ("zsl",)}, "learners"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(models: tuple[str, ...], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stability_config(models, "t", **settings)


def test_one_message_names_all_invalid_settings() -> None:
    with pytest.raises(ConfigError) as caught:
        stability_config(("m", "m"), "t", k=0, seeds=(1, 1))

    assert all(words in str(caught.value) for words in ("models ['m', 'm']", "k 0", "seeds [1, 1]"))


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = small(("a", "b"), further_rates=(1e-4,), label_words={"0": "schlecht", "1": "größer"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")

    assert StabilityConfig.read(path) == config

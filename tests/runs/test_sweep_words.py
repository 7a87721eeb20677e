import re

import pytest
from scipy import stats

from dualform.result import Accuracy
from dualform.runs.sweep_words import (
    SHARE_RANGE,
    accuracy_of,
    cell_sentence,
    comparison_results,
    difference_of,
    group_name,
    groups_by_winner,
    learners_above_zero_shot,
    list_group_names,
    mean_over_tasks,
    model_and_options,
    option_text,
    seed_spread,
    sweep_verdict,
    varied_axes,
)
from dualform.sweep_result import SweepGroup
from tests.report.example_sweep import empty_sweep, example_sweep, group_result, mixed_sweep, sweep_over_k


def test_the_verdict_says_who_wins_where_by_how_much_and_what_is_missing():
    sentences = sweep_verdict(example_sweep())
    assert sentences[0].startswith("Significantly the most accurate of ")
    assert "in 11 groups (2 models, 6 tasks, 2 to 3 seeds): " in sentences[0]
    assert re.search(r"; none of them in \d+\.$", sentences[0])
    text = " ".join(sentences)
    assert "smollm2-135m, mean accuracy over 6 tasks: in-context learning 5" in text
    assert "gemma3-270m, mean accuracy over 5 tasks: " in text
    assert "points (95% CI over tasks -" in text
    assert "No learner is significantly better than zero-shot in 1 of 11 groups: smollm2-135m on cb." in text
    assert "In-context learning has collapsed into one class in 1 of 11 groups: smollm2-135m on cb." in text
    assert (
        "is significantly above 0 in 10 of 11 groups; in 2 of these the interval includes the ceiling (1) or lies "
        "above it" in text
    )
    assert sentences[-1].startswith("Of 36 cells, 2 failed and 2 were not started; ")


def test_each_group_is_counted_once_and_for_the_learner_that_its_own_tests_put_first():
    results = comparison_results(example_sweep())
    by_learner = groups_by_winner(results)
    assert sum(map(len, by_learner.values())) == len(results) == 11
    for key, groups in by_learner.items():
        for group in groups:
            assert group.result is not None
            others = [other for other in ("icl", "ft", "fold") if other != key]
            tests = {(test.first, test.second): test for test in group.result.tests}
            beaten = [
                other
                for other in others
                if any(
                    pair in tests and (tests[pair].p_queries or 1) < 0.05 and sign * (tests[pair].difference or 0) > 0
                    for pair, sign in (((key, other), 1), ((other, key), -1))
                )
            ]
            # Ahead means above both others; undecided claims nothing.
            assert key is None or beaten == others


def test_without_tests_and_intervals_nothing_is_decided():
    sweep = example_sweep()
    bare = []
    for group, result in comparison_results(sweep):
        accuracy = {key: each.model_copy(update={"ci95": (None, None)}) for key, each in result.accuracy.items()}
        bare.append((group, result.model_copy(update={"accuracy": accuracy, "tests": []})))
    assert len(groups_by_winner(bare)[None]) == len(bare)
    assert all(learners_above_zero_shot(result) is None for _, result in bare)


def test_the_mean_over_tasks_has_students_interval_over_one_number_per_task():
    results = [each for each in comparison_results(example_sweep()) if each[0].model == "smollm2-135m"]
    gap = mean_over_tasks(results, difference_of("icl", "ft"))
    values = [(result.accuracy["icl"].mean or 0) - (result.accuracy["ft"].mean or 0) for _, result in results]
    mean = sum(values) / 6
    interval = stats.t.interval(0.95, 5, loc=mean, scale=stats.sem(values))
    assert gap is not None
    assert gap.n == 6
    assert gap.mean == pytest.approx(mean)
    assert gap.ci95 == pytest.approx(interval)
    assert gap.low[0] == pytest.approx(min(values))


def test_two_models_on_one_task_are_one_number_and_two_tasks_have_no_interval():
    results = [each for each in comparison_results(example_sweep()) if each[0].task in ("sst2", "mr")]
    assert len(results) == 4
    mean = mean_over_tasks(results, accuracy_of("icl"))
    assert mean is not None
    assert (mean.n, mean.ci95) == (2, (None, None))
    assert mean_over_tasks(results, accuracy_of("no such learner")) is None
    assert mean_over_tasks([], accuracy_of("icl")) is None


def test_the_spread_over_seeds_has_a_deviation_from_three_seeds_on():
    def result_with(*values: float | None):
        per_seed = {str(seed): value for seed, value in enumerate(values)}
        accuracy = {"icl": Accuracy(mean=0.5, ci95=(None, None), n=9, per_seed=per_seed)}
        return group_result("smollm2-135m", "sst2").model_copy(update={"accuracy": accuracy})

    assert seed_spread(result_with(0.4), "icl") is None
    assert seed_spread(result_with(0.4, 0.6, None), "icl") == (0.4, 0.6, None, 2)
    low, high, sd, n = seed_spread(result_with(0.4, 0.6, 0.8), "icl") or (0, 0, 0, 0)
    assert (low, high, n) == (0.4, 0.8, 3)
    assert sd == pytest.approx(0.2)
    assert seed_spread(result_with(0.4, 0.6), "ft") is None


def test_names_hold_options_and_long_lists_are_cut():
    group = sweep_over_k().groups[0]
    assert group_name(group) == "smollm2-135m on sst2 (k 16, fold.method ridge)"
    assert model_and_options(group) == "smollm2-135m (k 16, fold.method ridge)"
    assert list_group_names(sweep_over_k().groups).endswith("and 11 others")
    laboratory = mixed_sweep().groups[2]
    assert group_name(laboratory) == "laboratory (n 20)"


def test_axes_are_those_that_vary_with_numbers_in_order():
    assert varied_axes(comparison_results(sweep_over_k())) == {"k": [4, 8, 16, 32], "fold.method": ["ridge", "mean"]}
    assert varied_axes(comparison_results(example_sweep())) == {}
    texts = [option_text(value) for value in (True, 0.001, ["zsl", "icl"], {"method": "ridge"}, None)]
    assert texts == ["true", "0.001", "zsl, icl", "method: ridge", "\N{EN DASH}"]


def test_many_models_and_options_are_left_to_the_table():
    assert not any("mean accuracy over" in sentence for sentence in sweep_verdict(sweep_over_k()))


def test_other_studies_are_mentioned_and_so_are_missing_results():
    assert any("other studies" in each and "stability" in each for each in sweep_verdict(mixed_sweep()))
    assert sweep_verdict(empty_sweep()) == ["No group of this sweep has a result yet. 3 cells: 3 not started."]
    assert sweep_verdict(example_sweep(groups=[])) == []
    assert cell_sentence(example_sweep()) == (
        "36 cells: 26 computed in this run, 6 reused from the store, 2 failed, 2 not started."
    )


def test_an_interval_of_shares_ends_where_shares_do() -> None:
    accuracies = [(group_of(task), accuracy) for task, accuracy in (("a", 0.35), ("b", 0.90), ("c", 0.98))]
    values = {group.name: accuracy for group, accuracy in accuracies}
    results = [(group, group.name) for group, _ in accuracies]

    free = mean_over_tasks(results, values.get)  # type: ignore[arg-type]
    cut = mean_over_tasks(results, values.get, SHARE_RANGE)  # type: ignore[arg-type]

    assert free is not None
    assert cut is not None
    assert (free.ci95[0] or 0) < 0 < 1 < (free.ci95[1] or 0)
    assert cut.ci95 == (0.0, 1.0)
    assert cut.mean == free.mean


def group_of(task: str) -> SweepGroup:
    return SweepGroup(name=task, study="compare", model="m", task=task, result=None)

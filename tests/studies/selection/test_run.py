import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, TrainingError
from dualform.result import FEWEST_FOR_INTERVAL, Result
from dualform.studies.comparison.run import compare
from dualform.studies.selection import run as selection_module
from dualform.studies.selection.choosing import CHOICES, SETS, QuerySet, Select, TrialAnswers, TrialTables
from dualform.studies.selection.config import SelectionConfig, selection_config
from dualform.studies.selection.result import Choice, SelectionResult
from dualform.studies.selection.run import SelectionStudy, search_budget, selection
from dualform.studies.selection.summary import COUNTED
from dualform.studies.selection.trials import trials_table
from dualform.tasks.task import Task
from tests.studies.small import (
    MemoryStore,
    RecordedProgress,
    long_and_short_task,
    numbers,
    small_config,
    small_experiment,
    small_lm,
    small_task,
    write_choices,
)

SEEDS, RATES = (3, 1, 2), (1e-3, 1e-2, 1e-1)
"""Not in ascending order: the first seed is not the lowest."""


def config(**changes: Any) -> SelectionConfig:
    settings: dict[str, Any] = {
        "k": 4,
        "seeds": SEEDS,
        "rates": RATES,
        "limit": 8,
        "selection_limit": 6,
        "untouched_limit": 10,
        "resamples": 50,
    }
    return selection_config("tiny", "toy", **(settings | changes))


def run(task: Task | None = None, **changes: Any) -> SelectionStudy:
    return selection(config(**changes), lm=small_lm(), task=task or small_task())


@pytest.fixture(scope="module")
def study() -> SelectionStudy:
    return run()


def choices(result: SelectionResult) -> dict[tuple[str, str], Choice]:
    assert result.selection is not None
    return {(each.select, each.select_on): each for each in result.selection.choices}


def picked(choice: Choice) -> tuple[int, int, float]:
    return choice.seed, choice.order, choice.learning_rate


def relabelled(task: Task, name: QuerySet, study: SelectionStudy, labels: Sequence[int]) -> Task:
    """The task with other labels for one set of the report split's queries."""
    new = {id(example): label for example, label in zip(study.trials.examples[name], labels, strict=True)}
    split = tuple(
        dataclasses.replace(example, label=new[id(example)]) if id(example) in new else example
        for example in task.split(task.report_split)
    )
    return dataclasses.replace(task, splits={**task.splits, task.report_split: split})


# Orders.


@pytest.mark.filterwarnings("ignore:.*demonstrations take:UserWarning")
def test_no_set_is_run_in_more_orders_than_the_smallest_has() -> None:
    done = run(long_and_short_task(), k=3, context=220, orders=5, rates=(1e-2,))

    assert {len(one.rows) for one in done.trials.ascending} == {2, 3}
    assert {len(one.icl["report"]) for one in done.trials.ascending} == {2}
    (note,) = [note for note in done.result.warnings if "orders of each set" in note]
    assert note.startswith("5 orders of each set were requested, but some sets have only 2")


def test_there_is_no_note_if_every_set_has_the_requested_orders() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=2)

    assert {len(one.icl["report"]) for one in done.trials.ascending} == {2}
    assert not any("orders of each set" in note for note in done.result.warnings)


# Leaks.


@pytest.mark.parametrize("learner", ["icl", "ft"])
def test_labels_of_the_report_split_that_one_trial_alone_gets_right_change_nothing_that_validation_chooses(
    study: SelectionStudy, learner: str
) -> None:
    before = choices(study.result)
    seed, place, leaked = _leaking_trial(study, learner)

    task = relabelled(small_task(), "report", study, leaked["report"])
    # The untouched labels are planted too: they are the same split's.
    planted = run(_also(task, study, leaked["untouched"]))
    after = choices(planted.result)

    answers = getattr(planted.trials.ascending[seed], learner)
    for name in ("report", "untouched"):
        labels = [example.label for example in planted.trials.examples[name]]
        assert answers[name][place].argmax(dim=1).tolist() == labels
    for select in ("icl", "ft", "both"):
        one, two = before[select, "validation"], after[select, "validation"]
        assert _chosen_bytes(two) == _chosen_bytes(one)
    assert planted.result.trials == study.result.trials
    # The failing twin: where the report queries choose, the leak is taken.
    chosen = picked(after[learner, "report"])
    seeds = sorted(SEEDS)
    assert chosen[0] == seeds[seed]
    assert chosen[1 if learner == "icl" else 2] == (place if learner == "icl" else RATES[place])
    assert picked(before[learner, "report"]) != chosen
    assert after[learner, "report"].scores[learner].selected.mean == 1.0


def _also(task: Task, study: SelectionStudy, labels: Sequence[int]) -> Task:
    """The untouched queries' labels changed too."""
    return relabelled(task, "untouched", study, labels)


def _leaking_trial(study: SelectionStudy, learner: str) -> tuple[int, int, dict[QuerySet, list[int]]]:
    """A trial that the report queries would not choose, and that answers them unlike every other: its answers."""
    found = [
        (seed, place, {name: getattr(one, learner)[name][place].argmax(dim=1).tolist() for name in SETS})
        for seed, one in enumerate(study.trials.ascending)
        for place in range(len(getattr(one, learner)["report"]))
        if learner == "ft" or place < study.trials.budget.orders["report"]
    ]
    now = picked(choices(study.result)[learner, "report"])
    for seed, place, answers in found:
        same = [each for each in found if each[2]["report"] == answers["report"]]
        setting = (place, now[1]) if learner == "icl" else (RATES[place], now[2])
        if len(same) == 1 and (sorted(SEEDS)[seed], setting[0]) != (now[0], setting[1]):
            return seed, place, answers
    raise AssertionError("every trial answers like another: the test cannot plant a leak")


def _chosen_bytes(choice: Choice) -> bytes:
    """The chosen settings and their scores on the validation queries."""
    scores = {learner: (score.selected, score.tokens, score.trials) for learner, score in choice.scores.items()}
    return json.dumps([picked(choice), repr(scores)]).encode()


def test_untouched_labels_change_no_choice_at_all(study: SelectionStudy) -> None:
    labels = [1 - example.label for example in study.trials.examples["untouched"]]
    turned = choices(run(relabelled(small_task(), "untouched", study, labels)).result)

    for name, before in choices(study.result).items():
        assert picked(turned[name]) == picked(before)
        for learner, score in before.scores.items():
            found = turned[name].scores[learner]
            assert found.selected == score.selected
            assert found.untouched.mean == pytest.approx(1 - (score.untouched.mean or 0))


def test_the_three_sets_share_no_text(study: SelectionStudy) -> None:
    texts = [{example.fields["text"] for example in study.trials.examples[name]} for name in SETS]

    assert [len(some) for some in texts] == [6, 8, 10]
    assert len(set.union(*texts)) == 24


def test_a_text_that_occurs_twice_in_the_report_split_is_not_both_reported_and_untouched(study: SelectionStudy) -> None:
    task = small_task()
    split = task.split("report")
    again = tuple(dataclasses.replace(example, row=1000 + example.row) for example in split)
    doubled = dataclasses.replace(task, splits={**task.splits, "report": (*split, *again)})
    found = run(doubled, seeds=(1,), rates=(1e-2,), orders=1).trials.examples

    reported, untouched = ({example.fields["text"] for example in found[name]} for name in ("report", "untouched"))
    assert not reported & untouched
    assert len(untouched) > 0


# Budgets.


def test_icl_may_read_as_many_tokens_as_ft_and_uses_them(study: SelectionStudy) -> None:
    budget, seeds = study.trials.budget, study.trials.seeds
    for name in ("validation", "report"):
        orders = budget.orders[name]
        assert orders >= 1
        for seed in SEEDS:
            assert budget.icl[name][seed] <= budget.ft[name][seed]
        # With one more order some seed would read more than FT.
        assert any(budget.icl[name][seed] * (orders + 1) / orders > budget.ft[name][seed] for seed in SEEDS)
        width = sum(query.width() for query in _queries(name))
        for one in seeds:
            assert budget.icl[name][one.seed] == orders * (one.prefix_tokens + width)
            assert budget.ft[name][one.seed] == len(RATES) * (3 * one.training_tokens + width)
        both = choices(study.result)["both", name].scores
        assert both["icl"].tokens == sum(budget.icl[name].values())
        assert both["ft"].tokens == sum(budget.ft[name].values())
        assert both["icl"].trials == orders * len(SEEDS)
        assert both["ft"].trials == len(RATES) * len(SEEDS)


def _queries(name: str) -> Sequence[Any]:
    experiment = small_experiment()
    return experiment.queries if name == "report" else experiment.selection_queries


def test_orders_that_are_given_are_run_whatever_they_cost() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=9)
    one, scores = done.trials.seeds[0], choices(done.result)["both", "validation"].scores

    assert len(one.icl["validation"]) == 9
    assert scores["icl"].trials == 9
    assert (scores["icl"].tokens or 0) > (scores["ft"].tokens or 0)


def test_no_more_orders_are_tried_than_there_are() -> None:
    experiment = small_experiment(k=2)
    drawn = {1: experiment.draw(1)}
    rates = tuple(1e-3 * n for n in range(1, 30))

    assert search_budget(config(rates=rates), drawn, {"validation": 10, "report": 10}).orders == {
        "validation": 2,
        "report": 2,
    }
    four = {1: small_experiment(k=4).draw(1)}
    assert search_budget(config(rates=rates), four, {"validation": 10, "report": 10}).orders["report"] == 24


def test_without_a_search_the_cost_is_zero(study: SelectionStudy) -> None:
    found, budget = choices(study.result), study.trials.budget
    for learner in ("icl", "ft"):
        none = found["none", "report"].scores[learner]
        assert (none.tokens, none.trials) == (0.0, 1)
    for name in ("validation", "report"):
        by_ft, by_icl = found["ft", name], found["icl", name]
        assert (by_ft.order, by_ft.scores["icl"].tokens, by_ft.scores["icl"].trials) == (0, 0.0, 1)
        # Choosing by ICL searches FT's rate under one seed alone.
        assert by_icl.scores["ft"].tokens == budget.ft[name][by_icl.seed]
        assert by_icl.scores["ft"].trials == len(RATES)


# Choices, on made-up tables.


def made_up(
    generator: torch.Generator, *, seeds: int = 4, orders: int = 3, rates: int = 3, sizes: Sequence[int] = (30, 40, 60)
) -> TrialTables:
    """Answers of trials that are all equally good: right half of the time."""

    def table(settings: int, n: int, compared: Tensor) -> TrialAnswers:
        right = (torch.rand(seeds, settings, n, generator=generator) < 0.5).double()
        return TrialAnswers(right, torch.randn(seeds, settings, n, generator=generator, dtype=torch.float64), compared)

    everything = torch.ones(seeds, orders, dtype=torch.bool), torch.ones(seeds, rates, dtype=torch.bool)
    icl, ft = (
        {name: table(settings, n, compared) for name, n in zip(SETS, sizes, strict=True)}
        for settings, compared in zip((orders, rates), everything, strict=True)
    )
    return TrialTables(icl, ft, first=1, middle=1)


def without(tables: TrialTables, learner: str, places: Sequence[tuple[int, int]]) -> TrialTables:
    """The same, but for some trials that are not compared."""
    compared = tables.of(learner)["report"].compared.clone()
    for place in places:
        compared[place] = False
    changed = {name: dataclasses.replace(table, compared=compared) for name, table in tables.of(learner).items()}
    return dataclasses.replace(tables, icl=changed) if learner == "icl" else dataclasses.replace(tables, ft=changed)


def naively_chosen(tables: TrialTables, select: Select, name: QuerySet, queries: Sequence[int]) -> tuple[int, int, int]:
    """(seed, order, rate), by the rule's own words, from the queries listed (some of them more than once)."""
    if select == "none":
        return tables.first, 0, tables.middle

    def score(learner: str, seed: int, setting: int) -> tuple[float, float]:
        table = tables.of(learner)[name]
        right = sum(float(table.right[seed, setting, query]) for query in queries) / len(queries)
        sure = sum(float(table.log_probability[seed, setting, query]) for query in queries) / len(queries)
        return right, sure

    def best(learner: str, seed: int) -> tuple[tuple[float, float], int]:
        compared = tables.of(learner)[name].compared[seed].tolist()
        tried = [(score(learner, seed, setting), -setting) for setting, there in enumerate(compared) if there]
        found, setting = max(tried)
        return found, -setting

    candidates = []
    for seed in range(len(tables.icl[name].right)):
        (icl, order), (ft, rate) = best("icl", seed), best("ft", seed)
        both = (icl[0] + ft[0]) / 2, (icl[1] + ft[1]) / 2
        key = {"icl": icl, "ft": ft, "both": both}[select]
        candidates.append(((round(key[0], 12), key[1]), -seed, 0 if select == "ft" else order, rate))
    _, seed, order, rate = max(candidates)
    return -seed, order, rate


@pytest.mark.parametrize(("select", "name"), CHOICES)
def test_the_choice_in_every_resample_is_the_one_made_naively_on_its_queries(select: Select, name: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    tables = without(made_up(generator), "ft", [(0, 2), (1, 0), (1, 2)])
    tables = without(tables, "icl", [(seed, 2) for seed in range(4)])
    weights = tables.resampled(40)
    picks = tables.choose(select, name, weights)

    chosen = set()
    naive: dict[str, list[float]] = {"icl": [], "ft": []}
    for number in range(40):
        drawn = {key: _listed(each[number]) for key, each in weights.items()}
        seed, order, rate = naively_chosen(tables, select, name, drawn[name])
        assert (int(picks.seed[number]), int(picks.order[number]), int(picks.rate[number])) == (seed, order, rate)
        for learner, setting in (("icl", order), ("ft", rate)):
            accuracies = [
                sum(float(tables.of(learner)[key].right[seed, setting, query]) for query in drawn[key])
                / len(drawn[key])
                for key in (name, "untouched")
            ]
            naive[learner].append(accuracies[0] - accuracies[1])
        chosen.add((seed, order, rate))
    for learner, values in naive.items():
        resampled = tables.optimism(select, name, learner, weights)
        assert resampled.tolist() == pytest.approx(values, abs=1e-12)
        # The interval is theirs: choices made anew, moved until the mean is the estimate.
        estimate = tables.optimism_estimate(select, name, learner, weights)
        move = (estimate.mean or 0.0) - sum(values) / len(values)
        ends = [float(np.quantile(values, at)) + move for at in (0.025, 0.975)]
        assert estimate.ci95 == pytest.approx(ends, abs=1e-12)
    # The test says something about choosing anew only if resamples choose differently.
    assert len(chosen) == 1 if select == "none" else len(chosen) > 1


def _listed(weights: Tensor) -> list[int]:
    return [query for query, times in enumerate(weights.int().tolist()) for _ in range(times)]


def test_every_resample_draws_each_set_independently_and_with_its_own_size() -> None:
    weights = made_up(torch.Generator().manual_seed(0), sizes=(30, 30, 30)).resampled(20)

    for each in weights.values():
        assert each.sum(dim=1).tolist() == [30.0] * 20
    assert not torch.equal(weights["validation"], weights["report"])
    assert not torch.equal(weights["report"], weights["untouched"])


@pytest.mark.parametrize("select", ["icl", "ft", "both"])
def test_ties_go_to_the_surer_trial_then_to_the_lower_seed_order_and_rate(select: Select) -> None:
    def table(log_probability: Tensor) -> TrialAnswers:
        return TrialAnswers(
            torch.ones(3, 2, 5, dtype=torch.float64), log_probability, torch.ones(3, 2, dtype=torch.bool)
        )

    def chosen(log_probability: Tensor) -> tuple[int, ...]:
        each = dict.fromkeys(SETS, table(log_probability))
        tables = TrialTables(each, each, first=2, middle=1)
        picks = tables.choose(select, "validation", tables.unit_weights())
        return int(picks.seed), int(picks.order), int(picks.rate)

    equal = torch.full((3, 2, 5), -1.0, dtype=torch.float64)
    assert chosen(equal) == (0, 0, 0)
    surer = equal.clone()
    surer[1, 1] += 0.01
    assert chosen(surer) == (1, 0 if select == "ft" else 1, 1)
    # Rounding decides nothing.
    noisy = equal.clone()
    noisy[2, 1] += 1e-13
    assert chosen(noisy) == (0, 0, 0)


def test_impossible_right_answers_of_queries_that_were_not_drawn_do_not_spoil_a_choice() -> None:
    tables = made_up(torch.Generator().manual_seed(0), sizes=(4, 4, 4))
    tables.icl["report"].log_probability[0, 0, 0] = -torch.inf
    weights = {name: torch.tensor([[0.0, 2, 1, 1]], dtype=torch.float64) for name in SETS}

    scores = tables.icl["report"].scores(weights["report"])

    assert scores.log_probability.isfinite().all()


def test_a_best_score_among_trials_that_are_all_alike_is_too_good_and_a_fixed_one_is_not() -> None:
    generator = torch.Generator().manual_seed(7)
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(60):
        tables = made_up(generator, seeds=6, orders=4, rates=4, sizes=(60, 60, 120))
        for select, name in CHOICES:
            for learner in ("icl", "ft"):
                optimism = float(tables.optimism(select, name, learner, tables.unit_weights()))
                found.setdefault((select, name, learner), []).append(optimism)
    mean = {key: sum(values) / len(values) for key, values in found.items()}

    # One accuracy of 60 queries is uncertain by 6 points, the mean of 60 differences by 1.
    for learner in ("icl", "ft"):
        assert abs(mean["none", "report", learner]) < 0.04
        for name in ("validation", "report"):
            # The best of 24 normal numbers lies 1.9 standard deviations up: 12 points.
            assert 0.09 < mean[learner, name, learner] < 0.16
            assert 0.06 < mean["both", name, learner] < mean[learner, name, learner]
    # The other's order is not chosen when FT chooses the seed; FT's rate is when ICL does: the best of 4.
    assert abs(mean["ft", "report", "icl"]) < 0.04
    assert 0.03 < mean["icl", "report", "ft"] < 0.11


def test_the_interval_of_optimism_holds_the_estimate_and_what_is_expected() -> None:
    generator = torch.Generator().manual_seed(11)
    estimates = []
    for _ in range(50):
        tables = made_up(generator, seeds=5, orders=4, rates=2, sizes=(40, 60, 100))
        estimates.append(tables.optimism_estimate("icl", "report", "icl", tables.resampled(100)))
    means = [one.mean or 0.0 for one in estimates]
    expected = sum(means) / len(means)

    inside = 0
    for one in estimates:
        low, high = one.ci95
        assert low is not None
        assert high is not None
        assert low < (one.mean or 0.0) < high
        inside += low <= expected <= high
    # 95 % of 50 is 47.5 with a standard deviation of 1.5.
    assert inside >= 43
    assert estimates[0].n == 60


def test_resamples_left_where_they_fall_lie_above_the_estimate() -> None:
    """Why the interval moves them: each chooses the luck of its own draw too."""
    generator = torch.Generator().manual_seed(11)
    differences = []
    for _ in range(20):
        tables = made_up(generator, seeds=8, orders=5, rates=2, sizes=(40, 60, 100))
        resampled = tables.optimism("icl", "report", "icl", tables.resampled(100)).mean()
        differences.append(float(resampled - tables.optimism("icl", "report", "icl", tables.unit_weights())))

    # The best of 40 lies 2.2 standard deviations up, of twice the variance 3.1: a difference of 0.9 x 6 points.
    assert 0.03 < sum(differences) / len(differences) < 0.08


# The study.


def test_the_first_seed_is_the_settings_own_and_the_middle_rate_the_middle_of_the_grid(study: SelectionStudy) -> None:
    assert picked(choices(study.result)["none", "report"]) == (3, 0, 1e-2)


def test_choices_are_those_of_the_trials_answers(study: SelectionStudy) -> None:
    """Once more from the answers, one trial after the other."""
    found = study.trials
    for name in ("validation", "report"):
        labels = torch.tensor([example.label for example in found.examples[name]])

        def scored(answers: Tensor, labels: Tensor = labels) -> tuple[float, float]:
            right = (answers.argmax(dim=1) == labels).double().mean()
            return float(right), round(float(answers.gather(1, labels[:, None]).mean()), 8)

        best = max(
            (scored(one.icl[name][order]), -one.seed, -order)
            for one in found.seeds
            for order in range(found.budget.orders[name])
        )
        choice = choices(study.result)["icl", name]
        assert (choice.seed, choice.order) == (-best[1], -best[2])
        assert choice.scores["icl"].selected.mean == pytest.approx(best[0][0])
        one = next(one for one in found.seeds if one.seed == choice.seed)
        rate = max((scored(answers), -rate) for rate, answers in zip(one.rates, one.ft[name], strict=True))
        assert choice.learning_rate == -rate[1]


def test_scores_are_accuracies_and_optimism_their_difference(study: SelectionStudy) -> None:
    assert study.result.selection is not None
    found = study.result.selection
    assert [(each.select, each.select_on) for each in found.choices] == list(CHOICES)
    assert (found.n_validation, found.n_report, found.n_untouched) == (6, 8, 10)
    for choice in found.choices:
        for score in choice.scores.values():
            assert score.selected.mean is not None
            assert score.untouched.mean is not None
            assert score.optimism.mean == pytest.approx(score.selected.mean - score.untouched.mean)
            assert (score.selected.n, score.untouched.n) == (6 if choice.select_on == "validation" else 8, 10)
            # Six or eight queries are too few for an interval.
            assert score.optimism.ci95 == score.selected.ci95 == (None, None)


def test_similarity_of_what_was_chosen_is_what_a_comparison_measures(study: SelectionStudy) -> None:
    choice = choices(study.result)["both", "validation"]
    settings = small_config(seeds=(choice.seed,), rates=(choice.learning_rate,), controls=(), limit=8)
    compared = compare(settings, lm=small_lm(), task=small_task()).result

    assert len(choice.similarity) == 8
    for name, estimate in choice.similarity.items():
        if name == "rec2ftp":
            continue  # of the order chosen, below
        # Other queries share its rows, so sums round differently.
        assert estimate.mean == pytest.approx(compared.similarity[name].mean, abs=1e-9), name
        assert estimate.n == compared.similarity[name].n
    for learner, estimate in study.result.accuracy.items():
        assert estimate.per_seed.keys() == {"1", "2", "3"}
        if learner != "ft":
            assert estimate.per_seed[str(choice.seed)] == compared.accuracy[learner].mean


def test_rec2ftp_is_that_of_the_chosen_trials(study: SelectionStudy) -> None:
    labels = torch.tensor([example.label for example in study.trials.examples["report"]])
    wrong = study.trials.zsl.argmax(dim=1) != labels
    for choice in choices(study.result).values():
        one = next(one for one in study.trials.seeds if one.seed == choice.seed)
        icl = one.icl["report"][choice.order].argmax(dim=1) == labels
        ft = one.ft["report"][one.rates.index(choice.learning_rate)].argmax(dim=1) == labels
        fixed = int((ft & wrong).sum())
        assert choice.similarity["rec2ftp"].n == fixed
        expected = None if not fixed else int((ft & wrong & icl).sum()) / fixed
        assert choice.similarity["rec2ftp"].mean == expected


def test_the_range_of_similarity_is_that_over_the_choices(study: SelectionStudy) -> None:
    assert study.result.selection is not None
    for name, reach in study.result.selection.similarity_range.items():
        means = [choice.similarity[name].mean for choice in study.result.selection.choices]
        known = [mean for mean in means if mean is not None]
        assert reach.mean == pytest.approx(max(known) - min(known))
        if name in COUNTED and reach.n < FEWEST_FOR_INTERVAL:
            assert reach.ci95 == (None, None)
            continue
        assert reach.ci95[0] is not None
        assert reach.ci95[0] >= 0
    assert (study.result.selection.similarity_range["sim_aou"].mean or 0) > 0.01


def test_similarity_cannot_depend_on_a_choice_among_one() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=1).result

    assert done.selection is not None
    assert {picked(choice) for choice in done.selection.choices} == {(1, 0, 1e-2)}
    for name in ("sim_aou", "sim_am", "kendall"):
        reach = done.selection.similarity_range[name]
        assert (reach.mean, *reach.ci95) == (0.0, 0.0, 0.0)
    assert any("Only one demonstration seed" in warning for warning in done.warnings)


def test_similarity_is_measured_on_as_many_report_queries_as_requested() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=1, similarity_limit=3).result

    assert choices(done)["none", "report"].similarity["sim_aou"].n == 3
    assert choices(done)["none", "report"].scores["icl"].selected.n == 8


def test_equal_settings_give_equal_numbers(study: SelectionStudy) -> None:
    assert numbers(run().result) == numbers(study.result)


def test_the_result_says_what_it_is_of_and_survives_its_file(study: SelectionStudy) -> None:
    result = study.result
    again = Result.from_json(result.to_json())
    assert isinstance(again, SelectionResult)
    assert again.selection == result.selection
    assert result.study == "selection"
    assert result.config == config().model_dump(mode="json")
    assert result.task["n_untouched"] == 10
    assert result.model["name"] == "tiny gpt2"
    assert result.demonstrations is not None
    assert list(result.demonstrations.rows) == ["3", "1", "2"]
    assert list(result.accuracy) == ["zsl", "icl", "ft"]


def test_all_trials_of_ft_are_reported_and_the_best_of_each_seed_is_marked(study: SelectionStudy) -> None:
    trials = study.result.trials
    assert [(trial.seed, trial.learning_rate) for trial in trials] == [(seed, rate) for seed in SEEDS for rate in RATES]
    for seed in SEEDS:
        mine = [trial for trial in trials if trial.seed == seed]
        best = max(mine, key=lambda trial: (trial.validation_accuracy, trial.validation_log_probability))
        assert [trial for trial in mine if trial.chosen] == [best]
        assert all(trial.first_loss is not None for trial in mine)


def test_diverged_trials_are_reported_and_never_chosen() -> None:
    done = run(seeds=(1, 2), rates=(1e-2, 1e30), orders=1)

    assert [trial.status for trial in done.result.trials] == ["finished", "diverged"] * 2
    assert done.trials.seeds[0].rates == (1e-2,)
    assert {choice.learning_rate for choice in choices(done.result).values()} == {1e-2}
    both = choices(done.result)["both", "report"].scores["ft"]
    # Its tokens are spent all the same.
    assert both.trials == 2
    assert both.tokens == sum(done.trials.budget.ft["report"].values())
    assert any("1e+30 (seed 1), 1e+30 (seed 2)" in warning for warning in done.result.warnings)


def test_where_the_middle_rate_diverged_nothing_chosen_means_the_nearest_that_finished() -> None:
    done = run(seeds=(1,), rates=(1e-2, 1e30, 1e31), orders=1)

    assert picked(choices(done.result)["none", "report"]) == (1, 0, 1e-2)


def test_every_rate_diverged() -> None:
    with pytest.raises(TrainingError, match=r"ft, seed 2: every learning rate diverged \(1e\+30\).*--rates"):
        run(seeds=(2,), rates=(1e30,))


def test_finished_seeds_are_not_run_again(study: SelectionStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seeds = MemoryStore(), []
    run_seed = selection_module._run_seed

    def stopping(sets: Any, drawn: Any, *rest: Any) -> Any:
        seeds.append(drawn.demonstrations.seed)
        if len(seeds) == 3:
            raise KeyboardInterrupt
        return run_seed(sets, drawn, *rest)

    monkeypatch.setattr(selection_module, "_run_seed", stopping)
    with pytest.raises(KeyboardInterrupt):
        selection(config(), lm=small_lm(), task=small_task(), pieces=kept)
    assert kept.put_names == ["seed 3", "seed 1"]
    progress = RecordedProgress()
    done = selection(config(), lm=small_lm(), task=small_task(), pieces=kept, progress=progress)

    assert seeds == [3, 1, 2, 2]
    assert numbers(done.result) == numbers(study.result)
    assert progress.done == pytest.approx(progress.total)


def test_seeds_finished_on_other_texts_or_labels_are_run_again(study: SelectionStudy) -> None:
    kept = MemoryStore()
    settings = config(seeds=(1,), rates=(1e-2,), orders=1)
    selection(settings, lm=small_lm(), task=small_task(), pieces=kept)
    labels = [1 - example.label for example in study.trials.examples["untouched"]]
    selection(settings, lm=small_lm(), task=relabelled(small_task(), "untouched", study, labels), pieces=kept)

    assert kept.put_names == ["seed 1", "seed 1"]


def test_progress_ends_at_its_total() -> None:
    progress = RecordedProgress()
    settings = config(seeds=(1,), rates=(1e-2, 1e30), similarity_limit=5)
    selection(settings, lm=small_lm(), task=small_task(), progress=progress)

    assert progress.total > 0
    assert progress.done == pytest.approx(progress.total)


def test_every_answer_is_in_the_table(study: SelectionStudy) -> None:
    rows = trials_table(study.description, study.trials).to_pylist()
    n_orders = max(study.trials.budget.orders.values())

    assert len(rows) == 8 + len(SEEDS) * (n_orders + len(RATES)) * (6 + 8 + 10)
    of = [row for row in rows if (row["learner"], row["seed"], row["learning_rate"]) == ("ft", 2, 1e-2)]
    assert [row["set"] for row in of] == ["validation"] * 6 + ["report"] * 8 + ["untouched"] * 10
    one = next(one for one in study.trials.seeds if one.seed == 2)
    for row, answers in zip([row for row in of if row["set"] == "report"], one.ft["report"][1], strict=True):
        assert row["order"] is None
        assert [row["log_probability:negative"], row["log_probability:positive"]] == answers.tolist()
        assert row["prediction"] == int(answers.argmax())
    assert {row["learning_rate"] for row in rows if row["learner"] == "icl"} == {None}


def test_multiple_choice_works(tmp_path: Path) -> None:
    path = write_choices(tmp_path / "choices.jsonl")
    settings = selection_config(
        "tiny",
        str(path),
        prompt="{goal}\nAnswer:",
        choices="choices",
        label="label",
        k=3,
        seeds=(1, 2),
        rates=(1e-2, 1e-1),
        limit=6,
        selection_limit=6,
        untouched_limit=6,
        resamples=20,
    )
    done = selection(settings, lm=small_lm())

    found = choices(done.result)
    assert len(found) == len(CHOICES)
    assert found["both", "report"].scores["icl"].selected.mean is not None
    assert "agreement" in found["both", "report"].similarity
    names = trials_table(done.description, done.trials).column_names
    assert [name for name in names if name.startswith("log_probability")] == [f"log_probability:{i}" for i in range(3)]


# Mistakes and shortages.


def test_too_few_rows_for_all_sets_are_divided_with_a_warning() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=1, limit=200, untouched_limit=400)

    assert done.result.selection is not None
    assert (done.result.selection.n_report, done.result.selection.n_untouched) == (9, 9)
    message = (
        "The report split has only 18 rows, too few for all requested queries: 9 are report queries and 9 untouched"
    )
    assert any(warning.startswith(message) for warning in done.result.warnings)


def test_all_rows_is_half_for_each_and_nothing_to_warn_of() -> None:
    done = run(seeds=(1,), rates=(1e-2,), orders=1, limit=0, untouched_limit=0)

    assert done.result.selection is not None
    assert (done.result.selection.n_report, done.result.selection.n_untouched) == (9, 9)
    assert not any("too few" in warning for warning in done.result.warnings)


def test_a_report_split_of_one_text_leaves_nothing_untouched() -> None:
    task = small_task()
    one = task.split("report")[:1]
    alone = dataclasses.replace(task, splits={**task.splits, "report": one})
    with pytest.raises(ConfigError, match="report split 'report' of task 'toy' has 1 rows, which leaves no untouched"):
        run(alone)
    with pytest.raises(ConfigError, match="has 3 rows"):
        run(dataclasses.replace(task, splits={**task.splits, "report": one * 3}))


def test_a_task_with_one_split_for_selection_and_report_is_rejected() -> None:
    with pytest.raises(ConfigError, match="task 'toy' uses one split, 'report', for selection and report"):
        run(dataclasses.replace(small_task(), selection_split="report"))


def test_untouched_queries_that_do_not_fit_are_reported_before_any_work() -> None:
    """Demonstrations must leave room for the longest untouched query too."""
    task = small_task()
    reported = {id(example) for example in run(seeds=(1,), rates=(1e-2,), orders=1).trials.examples["report"]}
    split = tuple(
        example
        if id(example) in reported
        else dataclasses.replace(example, fields={"text": example.fields["text"] + " and so on" * 20})
        for example in task.split("report")
    )
    long = dataclasses.replace(task, splits={**task.splits, "report": split})
    with pytest.warns(UserWarning, match="the prompt has the first"):
        done = run(long, seeds=(1,), rates=(1e-2,), orders=1, context=200)

    assert done.result.demonstrations is not None
    assert done.result.demonstrations.k_effective < 4
    assert any("4 demonstrations were requested" in warning for warning in done.result.warnings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": (1, 1)}, r"seeds \[1, 1\] must be one or more different"),
        ({"rates": ()}, r"rates \[\] must be one or more numbers between"),
        ({"k": 0}, "k 0 leaves no demonstrations to choose"),
        ({"orders": 0}, r"orders: .*\(given 0\)"),
        ({"untouched_limit": -1}, r"untouched_limit: .*\(given -1\)"),
        ({"select_on": "report"}, "select_on"),
    ],
)
def test_settings_that_cannot_be_used(settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def test_settings_survive_their_file_and_have_the_promised_defaults(tmp_path: Path) -> None:
    plain = selection_config("tiny", "toy")
    assert plain.seeds == tuple(range(1, 9))
    limits = (plain.limit, plain.untouched_limit, plain.selection_limit, plain.similarity_limit, plain.orders)
    assert limits == (200, 400, 100, 64, None)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config(similarity_limit=0).model_dump(mode="json")))
    again = SelectionConfig.read(path)
    assert again == config(similarity_limit=0)
    assert again.similarity_limit is None
    assert config(rates=(1e-2, 1e-3, 1e-2)).grid == (1e-3, 1e-2)

import dataclasses
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from dualform.result import Result, Trial
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.summary import examples_table, summarise
from dualform.studies.facts import TaskDescription
from dualform.tasks.task import Task
from tests.studies.small import N_REPORT, small_config, small_lm, small_task

SEEDS = (1, 2, 3)
LEARNERS = ("zsl", "icl", "ft")


@cache
def comparison() -> Comparison:
    """Real outcomes of three seeds; tests only read them."""
    return compare(small_config(seeds=SEEDS, limit=None), lm=small_lm(), task=small_task())


def description(task: Task | None = None) -> TaskDescription:
    task = task or small_task()
    examples = task.split("report")
    return TaskDescription(task, examples, 8, "report", "selection", 20.0, 2048, ("A note on the protocol.",))


def trial(seed: int, rate: float) -> Trial:
    """The rate chosen on a seed."""
    return Trial(
        learner="ft",
        seed=seed,
        learning_rate=rate,
        validation_accuracy=0.5,
        validation_log_probability=-1.0,
        first_loss=2.0,
        last_loss=1.0,
        status="finished",
        chosen=True,
    )


def made_up(seed: int, task: Task | None = None) -> SeedRecord:
    """Answers at random, so that every cell of right and wrong is filled; zero-shot the same for all seeds."""
    n = len(description(task).examples)

    def answers(generator_seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(generator_seed)
        return torch.randn(n, 2, generator=generator, dtype=torch.float64).log_softmax(1)

    tables = {"zsl": answers(0), "icl": answers(100 + seed), "ft": answers(200 + seed)}
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(n, 2, 4, generator=generator, dtype=torch.float64)
    heads[0, 0, 0] = torch.nan
    measures = {
        "agreement": (tables["icl"].argmax(1) == tables["ft"].argmax(1)).double(),
        "agreement.total_variation": torch.full((n,), 0.25, dtype=torch.float64),
        "sim_am": heads,
        "sim_aou": heads[..., 0],
        "control/random/sim_aou": heads[..., 1],
    }
    costs = {
        name: {"adapt_seconds": float(seed), "query_seconds": 0.5, "tokens": 20.0, "flops": 1e6,
               "search_seconds": 6.0 if seed == SEEDS[0] else 0.0}
        for name in LEARNERS
    }  # fmt: skip
    return SeedRecord(
        seed, (3, 1, 4, 5), 40 + seed, tables, measures, costs, rates={"ft": 1e-2}, trials=(trial(seed, 1e-2),)
    )


def summary(records: list[SeedRecord], seconds: float = 1.0, **changes: Any) -> Result:
    return summarise(small_config(seeds=SEEDS, **changes), small_lm(), description(), records, seconds)


@cache
def of_made_up() -> Result:
    return summary([made_up(seed) for seed in SEEDS])


def test_the_same_records_give_the_same_numbers() -> None:
    study = comparison()
    again = summarise(
        small_config(seeds=SEEDS, limit=None), small_lm(), study.description, study.records, seconds=999.0
    )

    assert again.environment["seconds"] == 999.0
    assert again.model_dump(exclude={"environment"}) == study.result.model_dump(exclude={"environment"})


def test_zero_shot_is_counted_once() -> None:
    result = comparison().result

    assert result.accuracy["zsl"].n == N_REPORT
    assert result.accuracy["icl"].n == result.accuracy["ft"].n == len(SEEDS) * N_REPORT
    assert sum(result.predictions["zsl"].counts.values()) == N_REPORT
    assert sum(result.predictions["icl"].counts.values()) == len(SEEDS) * N_REPORT
    assert len(set(result.accuracy["zsl"].per_seed.values())) == 1


def test_accuracy_is_the_share_of_right_answers() -> None:
    result = of_made_up()
    labels = [example.label for example in description().examples]

    for learner in LEARNERS:
        shares = {}
        for seed in SEEDS:
            predicted = [
                max(range(2), key=row.__getitem__) for row in made_up(seed).log_probabilities[learner].tolist()
            ]
            shares[str(seed)] = sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)
        assert result.accuracy[learner].per_seed == pytest.approx(shares)
        assert result.accuracy[learner].mean == pytest.approx(sum(shares.values()) / len(shares))
        low, high = result.accuracy[learner].ci95
        assert low is not None
        assert high is not None
        assert low <= (result.accuracy[learner].mean or 0) <= high


def test_rec2ftp_counts_what_a_loop_counts() -> None:
    labels = [example.label for example in description().examples]
    fixed = both = zsl_wrong = icl_right = broken = both_broken = changed = both_changed = 0
    for seed in SEEDS:
        tables = made_up(seed).log_probabilities
        for i, label in enumerate(labels):
            z, c, f = (int(tables[name][i].argmax()) == label for name in LEARNERS)
            fixed += f and not z
            both += f and c and not z
            zsl_wrong += not z
            icl_right += c and not z
            broken += z and not f
            both_broken += z and not f and not c
            changed += (f != z) or (c != z)
            both_changed += (f != z) and (c != z)
    score = of_made_up().similarity["rec2ftp"]

    assert 0 < both < fixed, "the case must tell right from wrong"
    assert score.mean == pytest.approx(both / fixed)
    assert score.n == score.details["denominator"] == fixed
    assert score.details["numerator"] == both
    assert score.details["chance"] == pytest.approx(icl_right / zsl_wrong)
    assert score.details["lift"] == pytest.approx(both / fixed - icl_right / zsl_wrong)
    assert (score.details["reverse_numerator"], score.details["reverse_denominator"]) == (both_broken, broken)
    assert (score.details["jaccard_numerator"], score.details["jaccard_denominator"]) == (both_changed, changed)
    low, high = score.details["lift_ci95"]
    assert low <= score.details["lift"] <= high


def test_rec2ftp_of_nothing_fixed_has_no_value_but_a_count() -> None:
    records = []
    for seed in SEEDS:
        record = made_up(seed)
        record.log_probabilities["ft"] = record.log_probabilities["zsl"]
        records.append(record)

    score = summary(records).similarity["rec2ftp"]

    assert (score.mean, score.ci95, score.n) == (None, (None, None), 0)
    assert score.details["lift"] is None


def test_means_are_over_heads_then_layers_then_queries_then_seeds() -> None:
    score = of_made_up().similarity["sim_am"]
    by_seed = []
    for seed in SEEDS:
        rows = made_up(seed).measures["sim_am"]
        by_query = [sum(float(layer[~layer.isnan()].mean()) for layer in query) / len(query) for query in rows]
        by_seed.append(sum(by_query) / len(by_query))

    assert score.per_seed == pytest.approx(dict(zip(map(str, SEEDS), by_seed, strict=True)))
    assert score.mean == pytest.approx(sum(by_seed) / len(by_seed))
    assert score.n == len(SEEDS) * N_REPORT
    assert score.per_layer is not None
    assert score.per_head is not None
    assert score.per_layer_ci95 is not None
    assert len(score.per_layer) == len(score.per_layer_ci95) == len(score.per_head) == 2
    assert [len(heads) for heads in score.per_head] == [4, 4]
    last_layer = [float(made_up(seed).measures["sim_am"][:, 1].mean()) for seed in SEEDS]
    assert score.per_layer[1] == pytest.approx(sum(last_layer) / len(last_layer))


def test_companion_numbers_and_controls_are_in_their_fields() -> None:
    result = of_made_up()

    assert set(result.similarity) == {"agreement", "sim_am", "sim_aou", "rec2ftp"}
    assert set(result.controls) == {"random"}
    assert set(result.controls["random"]) == {"sim_aou"}
    assert result.similarity["agreement"].details["total_variation"]["mean"] == 0.25
    assert result.similarity["agreement"].per_layer is None
    assert result.similarity["sim_aou"].per_head is None


# Controls: `random` is a floor without answers, `icl_order` a ceiling with them, `rate:` a point of the sweep.


def controlled(seed: int, unread: int = 6) -> SeedRecord:
    """Made-up outcomes with made-up controls, which the last queries were not read for."""
    record = made_up(seed)
    n = len(description().examples)
    there = torch.arange(n) < n - unread
    generator = torch.Generator().manual_seed(1000 + seed)

    def measure(level: float) -> torch.Tensor:
        values = level + 0.1 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return values.masked_fill(~there[:, None], torch.nan)

    def answers() -> torch.Tensor:
        table = torch.randn(n, 2, generator=generator, dtype=torch.float64).log_softmax(1)
        return table.masked_fill(~there[:, None], torch.nan)

    base = 0.4 + 0.1 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    measures = {
        **{name: value for name, value in record.measures.items() if not name.startswith("control/")},
        "sim_aou": base,
        "control/random/sim_aou": measure(0.1),
        "control/icl_order/sim_aou": measure(0.9),
        "control/ft_order/sim_aou": measure(0.8),
        "control/untrained/sim_aou": measure(0.0),
        "control/rate:0.01/sim_aou": measure(0.3),
        "control/rate:0.01/update_norm": measure(2.0),
    }
    names = ("icl_order", "ft_order", "untrained.zsl", "untrained.icl", "untrained.ft", "rate:0.01")
    return dataclasses.replace(
        record, measures=measures, control_answers={name: answers() for name in names}, notes=("A note.",),
        control_seconds=1.5,
    )  # fmt: skip


@cache
def of_controlled() -> Result:
    return summary([controlled(seed) for seed in SEEDS])


def right_of(table: torch.Tensor) -> list[bool | None]:
    labels = [example.label for example in description().examples]
    return [
        None if any(x != x for x in row) else row.index(max(row)) == label
        for row, label in zip(table.tolist(), labels, strict=True)
    ]


def test_controls_are_reported_by_name_without_the_sweep() -> None:
    result = of_controlled()

    assert list(result.controls) == ["random", "icl_order", "ft_order", "untrained"]
    assert set(result.controls["random"]) == {"sim_aou"}
    assert set(result.controls["icl_order"]) == {"sim_aou", "rec2ftp", "accuracy"}
    score = result.controls["icl_order"]["sim_aou"]
    values = [controlled(seed).measures["control/icl_order/sim_aou"] for seed in SEEDS]
    assert score.n == len(SEEDS) * (N_REPORT - 6)
    assert score.mean == pytest.approx(float(torch.stack([value.nanmean() for value in values]).mean()))
    assert score.per_layer is not None
    assert score.per_head is None
    assert result.environment["control_seconds"] == 4.5


@pytest.mark.parametrize(
    ("control", "names"),
    [
        ("icl_order", ("zsl", "icl", "icl_order")),
        ("ft_order", ("zsl", "ft", "ft_order")),
        ("untrained", ("untrained.zsl", "untrained.icl", "untrained.ft")),
    ],
)
def test_a_controls_rec2ftp_counts_what_a_loop_counts(control: str, names: tuple[str, ...]) -> None:
    fixed = both = 0
    own: list[bool] = []
    for seed in SEEDS:
        record = controlled(seed)
        tables = {**record.log_probabilities, **record.control_answers}
        for before, first, second in zip(*(right_of(tables[name]) for name in names), strict=True):
            if before is None or first is None or second is None:
                continue
            fixed += second and not before
            both += second and not before and first
        mine = control if control in tables else f"{control}.icl"
        own += [each for each in right_of(tables[mine]) if each is not None]
    control_scores = of_controlled().controls[control]

    assert 0 < both < fixed, "the case must tell right from wrong"
    assert (control_scores["rec2ftp"].mean, control_scores["rec2ftp"].n) == (pytest.approx(both / fixed), fixed)
    assert control_scores["accuracy"].mean == pytest.approx(sum(own) / len(own))
    assert control_scores["accuracy"].n == len(own) == len(SEEDS) * (N_REPORT - 6)


def test_a_measure_is_calibrated_by_its_own_controls() -> None:
    calibrated = of_controlled().calibrated

    assert set(calibrated) == {"sim_aou", "rec2ftp"}
    parts = {}
    for name in ("sim_aou", "control/random/sim_aou", "control/icl_order/sim_aou", "control/ft_order/sim_aou"):
        values = [controlled(seed).measures[name][: N_REPORT - 6].mean() for seed in SEEDS]
        parts[name] = float(torch.stack(values).mean())
    score, floor, first, second = parts.values()
    assert calibrated["sim_aou"].mean == pytest.approx((score - floor) / ((first * second) ** 0.5 - floor))
    assert (calibrated["sim_aou"].control, calibrated["sim_aou"].n) == ("random", len(SEEDS) * (N_REPORT - 6))
    assert set(calibrated["sim_aou"].by_control) == {"untrained"}
    assert calibrated["rec2ftp"].control in ("chance", "untrained")
    # The other layered measure has no controls here, and no p-values.
    assert of_controlled().similarity["sim_am"].per_layer_q is None
    q = of_controlled().similarity["sim_aou"].per_layer_q
    assert q is not None
    assert len(q) == 2
    assert all(each is not None and each < 0.05 for each in q)


def test_without_controls_nothing_is_calibrated() -> None:
    assert of_made_up().calibrated == {}
    assert of_made_up().rate_sweep == []
    assert of_made_up().similarity["sim_aou"].per_layer_q is None


def test_the_sweep_has_a_point_for_each_rate() -> None:
    (point,) = of_controlled().rate_sweep

    assert point.learning_rate == 1e-2
    assert point.update_norm.mean == pytest.approx(2.0, abs=0.1)
    assert set(point.similarity) == {"sim_aou"}
    assert point.similarity["sim_aou"].mean == pytest.approx(0.3, abs=0.05)
    right = [each for seed in SEEDS for each in right_of(controlled(seed).control_answers["rate:0.01"])
             if each is not None]  # fmt: skip
    assert point.accuracy.mean == pytest.approx(sum(right) / len(right))


def test_a_control_that_some_seed_lacks_is_left_out() -> None:
    records = [controlled(seed) for seed in SEEDS]
    records[1] = dataclasses.replace(
        records[1],
        measures={name: value for name, value in records[1].measures.items() if "rate:" not in name},
        control_answers={name: value for name, value in records[1].control_answers.items() if "rate:" not in name},
    )

    result = summary(records)

    assert result.rate_sweep == []
    assert result.controls == of_controlled().controls


def test_every_pair_of_learners_is_tested_on_the_same_queries() -> None:
    result = of_made_up()

    assert [(test.first, test.second) for test in result.tests] == [("zsl", "icl"), ("zsl", "ft"), ("icl", "ft")]
    labels = torch.tensor([example.label for example in description().examples])
    right = {
        name: torch.stack([made_up(seed).log_probabilities[name].argmax(1) == labels for seed in SEEDS]).double()
        for name in LEARNERS
    }
    for test in result.tests:
        difference = (right[test.first] - right[test.second]).numpy()
        accuracies = [result.accuracy[name].mean or 0 for name in (test.first, test.second)]
        assert test.difference == pytest.approx(accuracies[0] - accuracies[1])
        assert test.n == len(SEEDS) * N_REPORT
        # Three seeds: scipy enumerates all eight patterns too.
        expected = permutation_test(
            (difference.mean(1), difference.mean(1) * 0), lambda x, y: (x - y).mean(), permutation_type="samples"
        )
        assert test.p_seeds == pytest.approx(expected.pvalue)
        assert test.p_seeds is not None
        assert test.p_seeds >= 2 / 2 ** len(SEEDS)
        expected = permutation_test(
            (difference.mean(0), difference.mean(0) * 0), lambda x, y: (x - y).mean(), permutation_type="samples",
            rng=np.random.default_rng(0),
        )  # fmt: skip
        assert test.p_queries == pytest.approx(expected.pvalue, abs=0.03)
        low, high = test.ci95
        assert low is not None
        assert high is not None
        # 2.8 standard errors, of which an interval has 3.92.
        assert test.minimum_detectable == pytest.approx((high - low) * 2.8016 / 3.92, rel=1e-3)


def test_a_learner_compared_with_itself_does_not_differ() -> None:
    records = []
    for seed in SEEDS:
        record = made_up(seed)
        record.log_probabilities["ft"] = record.log_probabilities["icl"]
        records.append(record)

    test = summary(records).tests[-1]

    assert (test.difference, test.p_queries, test.p_seeds) == (0.0, 1.0, 1.0)
    # Equal answers to every query do not show how much a difference would vary.
    assert (test.minimum_detectable, test.ci95) == (None, (None, None))


def test_notes_of_controls_are_reported_once() -> None:
    study = compare(small_config(k=20, controls=("other_demonstrations",)), lm=small_lm(), task=small_task())

    notes = [each for each in study.result.warnings if "too small for a second, disjoint set of demonstrations" in each]
    assert len(study.records) == 2
    assert len(notes) == 1


def test_chance_agreement_is_that_of_independent_answerers() -> None:
    expected = []
    for seed in SEEDS:
        tables = made_up(seed).log_probabilities
        shares = [
            [float((tables[name].argmax(1) == label).double().mean()) for label in (0, 1)] for name in LEARNERS[1:]
        ]
        expected.append(sum(p * q for p, q in zip(*shares, strict=True)))

    assert of_made_up().similarity["agreement"].details["chance"] == pytest.approx(sum(expected) / len(expected))


def test_predictions_show_collapse_into_one_class() -> None:
    record = made_up(1)
    certain = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64).expand(N_REPORT, 2)
    record.log_probabilities["ft"] = certain
    result = summarise(small_config(seeds=(1,)), small_lm(), description(), [record], 1.0)

    collapsed, free = result.predictions["ft"], result.predictions["icl"]
    assert (collapsed.majority_share, collapsed.majority_label, collapsed.entropy) == (1.0, "negative", 0.0)
    assert collapsed.counts == {"negative": N_REPORT, "positive": 0}
    assert free.majority_share is not None
    assert free.majority_share < 1
    assert free.entropy is not None
    assert free.entropy > 0


def test_a_search_done_once_is_charged_once() -> None:
    cost = of_made_up().cost["ft"]

    assert cost.search_seconds == 6.0
    assert cost.adapt_seconds == pytest.approx(2.0)
    assert cost.adapt_tokens is None


@pytest.mark.parametrize(
    ("n_seeds", "words"),
    [
        (1, "One demonstration seed: the intervals do not include"),
        (3, "Bootstrap intervals over only 3 demonstration seeds"),
    ],
)
def test_few_seeds_are_warned_about(n_seeds: int, words: str) -> None:
    seeds = SEEDS[:n_seeds]
    records = [made_up(seed) for seed in seeds]
    result = summarise(small_config(seeds=seeds), small_lm(), description(), records, 1.0)

    assert any(warning.startswith(words) for warning in result.warnings)


def test_eight_seeds_are_not_warned_about() -> None:
    seeds = tuple(range(8))
    result = summarise(small_config(seeds=seeds), small_lm(), description(), [made_up(seed) for seed in seeds], 1.0)

    assert not any("demonstration seed" in warning for warning in result.warnings)


@pytest.mark.parametrize(("rates", "warned"), [((1e-3, 1e-2), True), ((1e-3, 1e-2, 1e-1), False), ((1e-2,), False)])
def test_a_rate_at_the_edge_of_its_grid_is_warned_about(rates: tuple[float, ...], warned: bool) -> None:
    result = summary([made_up(seed) for seed in SEEDS], rates=rates)

    assert any("edge of its grid: ft (0.01)" in warning for warning in result.warnings) is warned


def test_a_rate_at_the_edge_on_a_later_seed_is_warned_about_too() -> None:
    records = [made_up(seed) for seed in SEEDS]
    records[2] = dataclasses.replace(records[2], trials=(trial(3, 1e-1),))

    result = summary(records, rates=(1e-3, 1e-2, 1e-1))

    assert any("edge of its grid: ft (0.1)." in warning for warning in result.warnings)


def test_demonstrations_left_out_are_warned_about_with_the_models_own_limit() -> None:
    # Asked for: no limit. The model's: 2048.
    result = summary([made_up(seed) for seed in SEEDS], k=5, context=None)

    assert any("fewer fit the context of 2048 tokens" in warning for warning in result.warnings)


def test_the_command_is_written_as_a_shell_would_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/bin/dualform", "compare", "my model", "{text}:"])
    assert summary([made_up(1)]).environment["command"] == "dualform compare 'my model' '{text}:'"

    monkeypatch.setattr(sys, "argv", ["notebook.py", "compare"])
    assert summary([made_up(1)]).environment["command"] is None


def test_the_model_is_known_by_revision_and_inputs() -> None:
    result = comparison().result

    assert result.model["revision"] is None
    assert result.model["inputs"] == comparison().records[0].inputs != ""


@pytest.mark.parametrize(("dtype", "warned"), [("float32", False), ("bfloat16", True)])
def test_half_precision_is_warned_about(dtype: str, warned: bool) -> None:
    result = summary([made_up(seed) for seed in SEEDS], dtype=dtype)

    assert any("small updates are rounded away" in warning for warning in result.warnings) is warned


def test_notes_of_protocol_and_task_are_passed_on() -> None:
    warnings = of_made_up().warnings

    assert "A note on the protocol." in warnings
    assert set(small_task().notes) <= set(warnings)


def test_the_table_has_one_row_for_each_seed_learner_and_query() -> None:
    study = comparison()
    table = examples_table(study.description, study.records)
    rows = table.to_pylist()

    assert table.column_names == [
        "seed", "learner", "query", "label", "prediction", "log_probability:negative", "log_probability:positive",
    ]  # fmt: skip
    keys = [(row["seed"], row["learner"], row["query"]) for row in rows]
    queries = [example.row for example in small_task().split("report")]
    assert keys == [(seed, learner, query) for seed in SEEDS for learner in LEARNERS for query in queries]
    for row in rows:
        answers = [row["log_probability:negative"], row["log_probability:positive"]]
        assert row["prediction"] == answers.index(max(answers))
    right = [row["prediction"] == row["label"] for row in rows if row["learner"] == "icl"]
    assert sum(right) / len(right) == pytest.approx(study.result.accuracy["icl"].mean)


def test_the_facts_describe_what_was_compared() -> None:
    result = comparison().result

    assert (result.model["name"], result.model["n_layers"], result.model["n_heads"]) == ("tiny gpt2", 2, 4)
    assert (result.model["dtype"], result.model["route"]) == ("float64", "packed")
    assert result.task["prompt"].endswith("\nLabel:")
    assert result.task["label_words"] == ["negative", "positive"]
    assert result.environment["device"] == "cpu"
    assert result.environment["seconds"] >= 0

"""Advice on a tiny model: its numbers are those of a comparison with the same labels, and no other label is read."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import ConfigError, ContextError, TrainingError
from dualform.result import Result
from dualform.studies.advice.config import AdviceConfig, advice_config
from dualform.studies.advice.page import render
from dualform.studies.advice.result import AdviceResult
from dualform.studies.advice.run import advise
from dualform.studies.advice.table import tables
from dualform.studies.advice.words import headlines
from dualform.studies.comparison.run import compare
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import plan_of
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.task import Task
from tests.fixed_machine import fixed_machine
from tests.studies.small import MemoryStore, RecordedProgress, small_config, small_lm, small_task, write_csv
from tests.tiny import save_tiny

LEARNERS = ("zsl", "icl", "ft", "probe", "tfidf")
SETTINGS: dict[str, Any] = {
    "budgets": (3, 6),
    "seeds": (1, 2),
    "learners": LEARNERS,
    "limit": 12,
    "rates": (1e-3, 1e-2),
    "resamples": 20,
}


def settings(**changes: Any) -> AdviceConfig:
    return advice_config("tiny", "toy", **(SETTINGS | changes))


def run(task: Task, **changes: Any) -> tuple[AdviceResult, Any]:
    return advise(settings(**changes), small_lm(), task, NoPieceStore(), RecordedProgress())


@cache
def result() -> AdviceResult:
    return run(small_task())[0]


def untimed(found: AdviceResult) -> dict[str, Any]:
    values = found.model_dump(mode="json", exclude={"environment"})
    for points in values["advice"]["curves"].values():
        for point in points:
            del point["adapt_seconds"], point["query_seconds"]
    return values


def test_accuracies_are_those_of_a_comparison_with_the_same_labels():
    advice = result().advice
    assert advice is not None
    assert advice.budgets == [3, 6]
    for place, n in enumerate(advice.budgets):
        config = small_config(
            labels=n,
            k=None,
            learners=LEARNERS,
            rates=SETTINGS["rates"],
            controls=None,
            rounding=None,
            selection_limit=None,
            limit=12,
            resamples=20,
        )
        comparison = compare(config, lm=small_lm(), task=small_task()).result
        for name in LEARNERS:
            assert advice.curves[name][place].accuracy == comparison.accuracy[name]
            assert advice.curves[name][place].used == comparison.labels[name]
            assert advice.curves[name][place].query_flops == comparison.cost[name].kept_flops


def test_no_label_outside_the_budgets_is_read():
    task = small_task()
    bought = {row for seed in (1, 2) for row in draw_demonstrations(task, 6, seed).rows}
    splits = {
        name: tuple(
            example
            if name == task.report_split or (name == "train" and example.row in bought)
            else dataclasses.replace(example, label=1 - example.label)
            for example in examples
        )
        for name, examples in task.splits.items()
    }
    assert untimed(run(dataclasses.replace(task, splits=splits))[0]) == untimed(result())


def test_finished_draws_are_not_computed_again_and_the_progress_ends_at_its_total():
    store, progress = MemoryStore(), RecordedProgress()
    first, answers = advise(settings(), small_lm(), small_task(), store, progress)
    assert progress.done == pytest.approx(progress.total)
    assert store.put_names == [f"seed {seed}, {n} labels" for seed in (1, 2) for n in (3, 6)]
    again, answers_again = advise(settings(), small_lm(), small_task(), store, RecordedProgress())
    assert len(store.put_names) == 4
    assert untimed(again) == untimed(first) == untimed(result())
    assert answers_again == answers
    assert answers.num_rows == 2 * 2 * len(LEARNERS) * 12


def test_each_budget_contains_the_smaller_ones():
    task = small_task()
    assert draw_demonstrations(task, 6, 1).rows[:3] == draw_demonstrations(task, 3, 1).rows


def test_the_result_reads_back_and_is_told_in_four_sentences_at_most():
    read = Result.from_json(result().to_json())
    assert read == result()
    sentences = headlines(result())
    assert 1 <= len(sentences) <= 4
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in sentences)
    assert "best in" in sentences[0]


def test_the_page_and_the_tables_hold_every_learner():
    page = render(result())
    titles = [table.title for table in tables(result())]
    assert titles[0] == "Recommended learner by number of labels"
    for name in ("zero-shot", "linear probe"):
        assert name in page
    assert all(table.frame().shape[0] for table in tables(result()))


def test_budgets_double_up_to_the_train_split():
    assert advice_config("m", "t").budgets_of(1000) == (4, 8, 16, 32, 64, 128)
    assert advice_config("m", "t").budgets_of(20) == (4, 8, 16)
    assert advice_config("m", "t").budgets_of(3) == (3,)
    assert advice_config("m", "t", budgets=(64, 8)).budgets_of(50) == (8,)


def test_larger_budgets_than_the_train_split_are_left_out_with_a_note():
    found, _ = run(small_task(), budgets=(3, 5000), learners=("zsl", "icl"))
    assert found.advice is not None
    assert found.advice.budgets == [3]
    assert any("5000 labels" in warning for warning in found.warnings)
    with pytest.raises(ConfigError, match="has only 34 rows"):
        run(small_task(), budgets=(5000,))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budgets": ()}, "labels"),
        ({"budgets": (4, 4)}, "must be different numbers"),
        ({"learners": ("zsl",)}, "at least two"),
        ({"balanced": True}, "balanced demonstrations need the labels of the whole train split"),
    ],
)
def test_settings_that_give_no_advice_are_refused(given: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        settings(**given)


def test_a_plan_has_every_learner_that_the_run_has(tmp_path: Path):
    save_tiny("llama", tmp_path / "model")
    write_csv(tmp_path / "task.csv")
    config = advice_config(
        str(tmp_path / "model"), str(tmp_path / "task.csv"), text="body", label="topic", budgets=(4,), limit=4
    )
    plan = plan_of(config, fixed_machine())
    names = {part.name for part in plan.parts}
    assert {"zsl", "icl", "icl_batch", "lora", "embedding", "tfidf", "reading queries"} <= names
    assert plan.notes == ()


def test_a_learner_whose_training_diverges_is_left_out_with_the_reason():
    advice, answers = run(small_task(), learners=("zsl", "icl", "ft"), rates=(1e30,), budgets=(4,))
    assert advice.advice is not None
    assert set(advice.advice.curves) == {"zsl", "icl"}
    assert any(warning.startswith("Left out: ft: ") for warning in advice.warnings)
    assert set(answers["learner"].to_pylist()) == {"zsl", "icl"}
    with pytest.raises(TrainingError, match="Too few learners could be adapted"):
        run(small_task(), learners=("icl", "ft"), rates=(1e30,), budgets=(4,))


def test_a_labelled_text_that_is_longer_than_the_context_is_refused():
    task = small_task()
    first = draw_demonstrations(task, 6, 1).rows[5]
    train = tuple(
        dataclasses.replace(example, fields={"text": "and so on " * 120}) if example.row == first else example
        for example in task.split("train")
    )
    with pytest.raises(ContextError, match=r"1 query does not fit the context of \d+ tokens"):
        run(dataclasses.replace(task, splits={**task.splits, "train": train}), context=200)


def test_one_draw_and_one_budget_are_enough():
    found, _ = run(small_task(), budgets=(4,), seeds=(1,), learners=("icl", "probe"))
    assert found.advice is not None
    assert len(found.advice.recommendations) == 1
    assert headlines(found)

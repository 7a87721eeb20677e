"""A fold beside the other learners of a comparison: its answers, its inside, its costs."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dualform.errors import ConfigError, TaskError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING
from dualform.result import Result
from dualform.runs.store import RunFolder
from dualform.studies import fold_learner
from dualform.studies.against import against_icl
from dualform.studies.comparison import run as study
from dualform.studies.comparison import seed as one_seed
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.experiment import Experiment
from dualform.studies.folds import make_fold
from dualform.studies.learner_training import train_learner
from dualform.studies.pieces import Piece
from dualform.studies.statistics import Statistics
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task
from tests.studies.small import RecordedProgress, numbers, sentences, small_config, small_lm, small_task, write_choices

PROSE = ["a cold and plain morning, and with wit and grace it went", "one of the worst films of the year", "so it is"]
LEARNERS = ("zsl", "icl", "ft", "fold")


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "prose.txt"
    path.write_text("\n".join(PROSE) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A multiple-choice task, each row with choices of its own."""
    path = write_choices(tmp_path_factory.mktemp("choices") / "endings.jsonl")
    return load_task(str(path), text="goal", choices="choices")


def config(prose: str, **changes: Any) -> ComparisonConfig:
    fold = {"texts": 12, "plain": prose, **changes.pop("fold", {})}
    return small_config(**{"learners": LEARNERS, "controls": (), "fold": fold, **changes})


@cache
def whole(prose: str) -> Comparison:
    """One comparison that many tests read."""
    return compare(config(prose), lm=small_lm("llama"), task=small_task())


def test_the_fold_in_a_comparison_is_the_fold_by_hand(prose: str) -> None:
    comparison = whole(prose)
    experiment = Experiment.of(config(prose), small_lm("llama"), small_task())
    for record in comparison.records:
        fold = make_fold(experiment, experiment.draw(record.seed), experiment.config.fold)
        table = answer_log_probabilities(fold.adapted, experiment.lm, experiment.queries)
        torch.testing.assert_close(record.log_probabilities["fold"], table, rtol=0, atol=1e-10)
        assert record.facts == {"fold": fold.about()}
        assert record.costs["fold"]["adapt_flops"] == fold.adapted.cost.flops
    assert list(comparison.result.accuracy) == list(LEARNERS)


def test_a_comparison_reports_how_the_fold_was_made(prose: str) -> None:
    fold = whole(prose).result.fold
    assert fold is not None
    assert (fold.method, fold.texts, fold.source, fold.plain_source) == ("ridge", 12, "train", "prose.txt")
    assert len(fold.explained) == 2
    assert all(0 < (share or 0) <= 1 for share in fold.explained)
    assert (fold.strength or 0) > 0
    assert compare(config(prose, learners=("zsl", "icl")), lm=small_lm("llama"), task=small_task()).result.fold is None


def test_the_folds_update_is_compared_with_both_others(prose: str) -> None:
    result = whole(prose).result
    assert result.fold is not None

    assert set(result.fold.similarity) == {"icl", "ft"}
    for other, measures in result.fold.similarity.items():
        assert {"sim_aou", "sim_am", "sim_am_delta", "agreement", "direct_update"} <= set(measures), other
        for name, measure in measures.items():
            assert measure.mean is not None, (other, name)
            assert math.isfinite(measure.mean)
            assert measure.per_head is None
    aou = result.fold.similarity["icl"]["sim_aou"]
    assert aou.per_layer is not None
    assert len(aou.per_layer) == 2
    # Agreement inside the report is that of the answers.
    agreement = result.fold.similarity["icl"]["agreement"].mean
    assert agreement == pytest.approx(result.against_icl["fold"].agreement.mean)
    # The fold is fitted to what the prompt does to these very outputs; finetuning is not.
    assert (aou.mean or 0) > (result.fold.similarity["ft"]["sim_aou"].mean or 0)
    # What the comparison itself is about is untouched by the fold.
    without = compare(config(prose, learners=("zsl", "icl", "ft")), lm=small_lm("llama"), task=small_task()).result
    assert result.similarity.keys() == without.similarity.keys()
    assert result.similarity["sim_aou"] == without.similarity["sim_aou"]


def test_the_fold_compared_with_itself_has_similarity_one(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Finetuning replaced by the fold: the two must have similarity 1.
    run = train_learner

    def folded(experiment: Any, learner: Any, context: Any, *rest: Any, **options: Any) -> Any:
        fold = make_fold(experiment, context.drawn, experiment.config.fold)
        assert isinstance(fold.adapted, AdaptedModel)
        return dataclasses.replace(run(experiment, learner, context, *rest, **options), best=fold.adapted)

    monkeypatch.setattr(one_seed, "train_learner", folded)
    result = compare(config(prose, seeds=(1,)), lm=small_lm("llama"), task=small_task()).result
    assert result.fold is not None

    for name in ("sim_aou", "sim_am", "sim_am_delta", "agreement", "direct_update", "top_k_overlap"):
        assert result.fold.similarity["ft"][name].mean == pytest.approx(1, abs=1e-6), name
        assert result.fold.similarity["icl"][name].mean == pytest.approx(result.similarity[name].mean), name
    assert (result.fold.similarity["icl"]["sim_aou"].mean or 0) < 0.99


def test_the_fold_is_compared_with_prompting(prose: str) -> None:
    comparison = whole(prose)
    result = comparison.result
    assert list(result.against_icl) == ["zsl", "ft", "fold"]
    labels = torch.tensor([example.label for example in comparison.description.examples])
    tables = {name: torch.stack([record.log_probabilities[name] for record in comparison.records]) for name in LEARNERS}
    assert result.against_icl == against_icl(tables, labels, result.cost, Statistics(50, ("1", "2")))
    cost, icl = result.cost["fold"], result.cost["icl"]
    assert cost.tokens == result.cost["zsl"].tokens
    assert cost.flops is not None
    assert icl.flops is not None
    assert cost.flops < icl.flops
    assert (result.against_icl["fold"].break_even or 0) > 0
    assert {(test.first, test.second) for test in result.tests} >= {("icl", "fold"), ("ft", "fold")}


def test_a_seed_comes_back_from_its_piece_with_its_fold(prose: str, tmp_path: Path) -> None:
    for record in whole(prose).records:
        path = tmp_path / "piece.safetensors"
        path.write_bytes(record.to_piece().to_bytes())
        back = SeedRecord.from_piece(Piece.from_file(str(path)))
        fold = back.facts["fold"]
        assert {"fold": {**fold, "explained": tuple(fold["explained"])}} == record.facts
        assert list(back.measures) == list(record.measures)
        assert any(name.startswith("learner/fold/icl/") for name in back.measures)
        for name, value in record.measures.items():
            torch.testing.assert_close(back.measures[name], value, rtol=0, atol=0, equal_nan=True)


def test_a_comparison_read_back_gives_the_same_numbers(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(prose)
    compare(settings, lm=small_lm("llama"), task=small_task(), pieces=RunFolder(tmp_path / "run", settings))

    def unwanted(*arguments: object, **more: object) -> Any:
        raise AssertionError("nothing was to be folded")

    monkeypatch.setattr(fold_learner, "make_fold", unwanted)
    again = compare(settings, lm=small_lm("llama"), task=small_task(), pieces=RunFolder(tmp_path / "run", settings))
    assert numbers(again.result) == numbers(whole(prose).result)
    assert Result.from_json(again.result.to_json()) == again.result


@pytest.mark.parametrize("method", ["kv-momentum", "rank-one", "task-vector"])
def test_a_method_that_changes_no_weights_is_compared_without_its_activations(prose: str, method: str) -> None:
    settings = config(prose, fold={"method": method}, seeds=(1,))
    result = compare(settings, lm=small_lm("llama"), task=small_task()).result

    assert result.fold is not None
    assert (result.fold.method, result.fold.similarity, result.fold.explained) == (method, {}, [])
    assert (result.fold.strength, result.fold.plain_source) == (None, "none")
    assert result.against_icl["fold"].agreement.n == 8
    assert "sim_aou" in result.similarity


@pytest.mark.parametrize("method", ["thought-vector", "thought-matrix"])
def test_activations_of_other_methods_that_change_weights_are_compared_too(prose: str, method: str) -> None:
    settings = config(prose, fold={"method": method}, seeds=(1,))
    result = compare(settings, lm=small_lm("llama"), task=small_task()).result

    assert result.fold is not None
    assert set(result.fold.similarity) == {"icl", "ft"}
    assert math.isfinite(result.fold.similarity["icl"]["sim_aou"].mean or math.nan)


@pytest.mark.parametrize("learners", [("zsl", "fold"), ("fold",), ("icl", "fold")])
def test_a_fold_can_be_run_without_other_learners(prose: str, learners: tuple[str, ...]) -> None:
    result = compare(config(prose, learners=learners, seeds=(1,)), lm=small_lm("llama"), task=small_task()).result

    assert list(result.accuracy) == list(learners)
    assert result.fold is not None
    assert (result.fold.similarity, result.against_icl) == ({}, {})
    assert result.accuracy["fold"].per_seed["1"] == whole(prose).result.accuracy["fold"].per_seed["1"]


def test_activations_are_recorded_for_changed_weights_only(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_group = AdaptedModel.read_group
    wanted: dict[str, Recording] = {}

    def watched(self: AdaptedModel, queries: Any, indices: Any, want: Recording = NO_RECORDING, *args: Any) -> Any:
        wanted[self.learner] = want
        return read_group(self, queries, indices, want, *args)

    monkeypatch.setattr(AdaptedModel, "read_group", watched)
    compare(config(prose, seeds=(1,)), lm=small_lm("llama"), task=small_task())
    assert wanted["fold"] == wanted["ft"] != NO_RECORDING
    compare(config(prose, seeds=(1,), learners=("zsl", "icl", "fold")), lm=small_lm("llama"), task=small_task())
    assert wanted["fold"] == NO_RECORDING


@pytest.mark.parametrize("method", ["ridge", "thought-vector", "rank-one", "kv-momentum", "task-vector"])
def test_choices_of_a_querys_own_can_be_folded(prose: str, choices: Task, method: str) -> None:
    settings = config(prose, learners=("zsl", "icl", "ft", "fold"), seeds=(1,), fold={"method": method, "texts": 8})
    comparison = compare(settings, lm=small_lm("llama"), task=choices)

    table = comparison.records[0].log_probabilities["fold"]
    assert table.shape == (8, 3)
    # Some queries have two choices, some three.
    assert 0 < int(table.isinf().sum()) < 8
    assert torch.equal(table.isinf(), comparison.records[0].log_probabilities["zsl"].isinf())
    assert comparison.result.against_icl["fold"].agreement.n == 8


def test_progress_counts_the_fold(prose: str) -> None:
    watched = RecordedProgress()
    settings = config(prose, learners=("zsl", "icl", "fold"), seeds=(1,))
    compare(settings, lm=small_lm("llama"), task=small_task(), progress=watched)

    assert watched.done == pytest.approx(watched.total)


def test_without_demonstrations_there_is_nothing_to_fold(prose: str) -> None:
    with pytest.raises(ConfigError, match="k 0 leaves fold nothing to learn from"):
        config(prose, k=0)


def test_files_that_a_fold_reads_are_checked_before_any_work(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*arguments: object, **more: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr(study, "compute_seed", unwanted)
    settings = config(prose, fold={"calibration": str(tmp_path / "none.txt")})
    with pytest.raises(TaskError, match=r"none\.txt does not exist"):
        compare(settings, lm=small_lm("llama"), task=small_task())
    # Without the learner nobody reads them.
    with pytest.raises(AssertionError, match="this is work"):
        compare(settings.model_copy(update={"learners": ("zsl", "icl")}), lm=small_lm("llama"), task=small_task())


def test_other_texts_in_a_file_of_the_same_name_are_other_inputs(prose: str, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(text for text, _ in sentences()), encoding="utf-8")
    settings = config(prose, learners=("zsl", "icl", "fold"), seeds=(1,), fold={"calibration": str(path)})
    before = compare(settings, lm=small_lm("llama"), task=small_task()).result
    path.write_text("\n".join(reversed([text for text, _ in sentences()])), encoding="utf-8")
    after = compare(settings, lm=small_lm("llama"), task=small_task()).result
    assert before.model["inputs"] != after.model["inputs"]

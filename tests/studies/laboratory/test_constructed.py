"""The positive control: every measure is 1 on the constructed layer, and is not where it must not be."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dualform.lab.constructed_model import ConstructedWeights, construct
from dualform.lab.token_world import TokenWorld
from dualform.lab.toy_model import train_toy
from dualform.learners.finetuned import Finetuned
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.config import comparison_config
from dualform.studies.comparison.run import compare
from dualform.studies.laboratory import constructed as study
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.constructed import (
    CASES,
    INSENSITIVE,
    MEASURES,
    PERFECT,
    RATIOS,
    SENSITIVE,
    PromptedModel,
    constructed,
    gradient_step,
    output_gap,
    pieces,
)
from dualform.studies.laboratory.result import LabStudy
from dualform.studies.laboratory.words import as_expected, count_claims
from dualform.tasks.task import Task
from tests.studies.small import MemoryStore

CONFIG = RegressionConfig(studies=("constructed",), seeds=(1, 2), dimension=3, points=4, steps=0.01)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def progress() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def result(store: MemoryStore, progress: list[tuple[float, str]]) -> LabStudy:
    return constructed(CONFIG, store, lambda amount, doing: progress.append((amount, doing)))


def cell(result: LabStudy, measure: str, column: str) -> float | None:
    (table,) = result.tables
    (row,) = [row for row in table.rows if row.name == MEASURES[measure]]
    estimate = row.cells[table.columns.index(CASES.get(column, column))]
    return None if estimate is None else estimate.mean


def test_every_claim_holds_and_every_case_that_must_fail_fails(result: LabStudy) -> None:
    wrong = [claim.says for claim in result.claims if claim.holds == claim.must_fail]
    assert wrong == []
    n_failing = sum(claim.must_fail for claim in result.claims)
    assert n_failing == 3 + sum(map(len, SENSITIVE.values())) + 6
    assert len(result.claims) - n_failing == 1 + len(PERFECT) + sum(map(len, INSENSITIVE.values())) + 4
    assert result.answer.startswith("Yes: ")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_seed_without_a_number_leaves_nothing_found(
    lost: int, result: LabStudy, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MemoryStore()
    kept.pieces = dict(store.pieces)
    name = f"constructed, seed {lost + 1}"
    about = copy.deepcopy(kept.pieces[name].about)
    about["cases"]["constructed"]["sim_aou"] = about["cases"]["softmax"]["sim_aou"] = math.nan
    about["gaps"]["rate"] = math.nan
    kept.pieces[name] = replace(kept.pieces[name], about=about)
    holed = constructed(CONFIG, kept)

    unlike = [after for before, after in zip(result.claims, holed.claims, strict=True) if before != after]
    # Neither holds, and neither is said to have failed: a claim, and two cases that must fail.
    assert [(claim.found.mean, claim.holds) for claim in unlike] == [(None, False)] * 3
    assert [claim.must_fail for claim in unlike] == [True, False, True]
    assert not any(map(as_expected, unlike))
    assert count_claims(holed.claims).unmeasured == 3
    assert holed.answer.startswith("Undecided: ")


def test_the_constructed_layer_scores_one_to_machine_precision(result: LabStudy) -> None:
    for measure in PERFECT:
        assert cell(result, measure, "constructed") == pytest.approx(1, abs=1e-12), measure
    for measure in ("distance", "agreement.total_variation", "agreement.kl_icl_ft", "relaxation.relative_error"):
        assert cell(result, measure, "constructed") == pytest.approx(0, abs=1e-12), measure
    assert cell(result, "accuracy_icl", "constructed") == cell(result, "accuracy_ft", "constructed")


def test_only_measures_that_look_at_length_see_a_longer_step(result: LabStudy) -> None:
    assert cell(result, "sim_aou_raw.norm_ratio", "rate") == pytest.approx(3, abs=1e-12)
    assert cell(result, "distance", "rate") == pytest.approx(2, abs=1e-12)
    for measure, seen in (("sim_aou", True), ("sim_aou_raw", False), ("direct_update", False), ("kendall", False)):
        value = cell(result, measure, "rate")
        assert value is not None
        assert (abs(value - 1) > 1e-6) == seen, measure


def test_what_does_not_move_has_no_direction(result: LabStudy) -> None:
    for case in CASES:
        assert cell(result, "sim_am_delta", case) is None
        assert cell(result, "sim_am", case) == pytest.approx(1, abs=1e-12)


def test_random_directions_have_no_answers_and_no_raw_similarity(result: LabStudy) -> None:
    for measure in ("agreement", "rec2ftp", "accuracy_ft"):
        assert cell(result, measure, "random") is None
    raw, published = (cell(result, measure, "random") for measure in ("sim_aou_raw", "sim_aou"))
    assert raw is not None
    assert published is not None
    # In 34 features and more, over 80 pairs: the mean of cosines has a deviation of 0.02.
    assert abs(raw) < 0.1 < published
    assert any(f"has a SimAOU of {published:.2f} as published" in note for note in result.notes)


def test_the_toy_has_a_column_of_its_own(result: LabStudy) -> None:
    (table,) = result.tables
    assert table.columns == [*CASES.values(), "a trained toy: finetuning"]
    for measure in (
        "sim_aou_raw",
        "sim_am_softmax",
        "sim_am_delta",
        "kendall_demo",
        "agreement",
        "accuracy_icl",
        "relaxation",
    ):
        value = cell(result, measure, "a trained toy: finetuning")
        assert value is not None
        assert abs(value) < 1 or measure == "agreement"
    # Eight steps of training are none.
    assert any("have not learned to use their context" in note for note in result.notes)


def test_the_chart_is_one_at_the_layers_own_rate(result: LabStudy) -> None:
    (chart,) = result.charts
    assert chart.log_x
    for curve in chart.curves:
        assert curve.x == list(RATIOS)
        assert curve.y[RATIOS.index(1.0)].mean == pytest.approx(1, abs=1e-12)
        assert {point.n for point in curve.y} == {2}
    published = next(curve for curve in chart.curves if curve.name == MEASURES["sim_aou"])
    assert all((point.mean or 0) < 1 - 1e-6 for point, ratio in zip(published.y, RATIOS, strict=True) if ratio != 1)


def test_a_killed_run_goes_on_with_what_is_finished(
    result: LabStudy, store: MemoryStore, progress: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{what}, seed {seed}" for seed in (1, 2) for what in ("constructed", "trained toy")]
    assert store.put_names == names
    assert progress == [(1.0, name) for name in names]
    assert len(progress) == pieces(CONFIG)
    for name in ("_exact", "_toy"):
        monkeypatch.setattr(study, name, lambda *args: pytest.fail("made again"))
    assert constructed(CONFIG, store).model_dump() == result.model_dump()


def test_other_settings_make_other_pieces(
    result: LabStudy, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []

    def exact(config: RegressionConfig, seed: int) -> dict[str, Any]:
        others.append("exact")
        return store.pieces["constructed, seed 1"].about

    def toy(config: RegressionConfig, seed: int) -> dict[str, Any]:
        others.append("toy")
        return store.pieces["trained toy, seed 1"].about

    monkeypatch.setattr(study, "_exact", exact)
    monkeypatch.setattr(study, "_toy", toy)
    kept = MemoryStore()
    kept.pieces = dict(store.pieces)
    constructed(CONFIG.model_copy(update={"steps": 2.0, "seeds": (1,)}), kept)
    assert others == ["toy"]
    constructed(CONFIG.model_copy(update={"dimension": 4, "seeds": (2,)}), kept)
    assert others == ["toy", "exact"]


@pytest.fixture(scope="module")
def toy() -> tuple[LanguageModel, Task]:
    world = TokenWorld.draw(2, 36, seed=1)
    model = train_toy(world, steps=20, seed=1, examples=6, batch=8).double()
    return LanguageModel.wrap(model, world.tokenizer(), "toy"), world.task(seed=1, asking=True)


def small_comparison(lm: LanguageModel, task: Task, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "k": 4,
        "balanced": False,
        "seeds": (3,),
        "limit": 0,
        "selection_limit": 4,
        "rates": (0.1,),
        "loss_on": "label",
        "controls": ["none"],
        "learners": ("zsl", "icl", "ft"),
    }
    return compare(comparison_config("toy", "token world", **(settings | changes)), lm=lm, task=task).result


def test_a_comparison_of_the_toy_gives_the_very_numbers(toy: tuple[LanguageModel, Task]) -> None:
    lm, task = toy
    result = small_comparison(lm, task)
    setup = PromptedModel.of(lm, task, 4, seed=3)
    measures = setup.measures(Finetuned(setup.encoder.opening, 0.1, "label").adapt(lm, setup.encoded))
    compared = 0
    for name, value in measures.items():
        if name in result.similarity and math.isfinite(value):
            assert result.similarity[name].mean == pytest.approx(value, rel=1e-4, abs=1e-6), name
            compared += 1
    assert compared >= 10
    for name in ("zsl", "icl", "ft"):
        assert result.accuracy[name].mean == pytest.approx(measures[f"accuracy_{name}"])


def test_a_comparison_runs_on_the_constructed_model_unchanged() -> None:
    world = TokenWorld.draw(3, 36, seed=1)
    model = construct(world, ConstructedWeights.draw(world, 4, seed=1), rate=1.0, n_demonstrations=4, positions=64)
    lm = LanguageModel.wrap(model, world.tokenizer(), "constructed")
    result = small_comparison(lm, world.task(seed=1, remembering=True), rates=(0.01,))
    # Finetuning on words is another step than the layer's own, on squares: alike, and not the same.
    raw = result.similarity["sim_aou_raw"].mean
    assert raw is not None
    assert -1 < raw < 0.999
    assert result.similarity["relaxation"].mean == pytest.approx(1, abs=1e-9)


def test_the_gap_is_taken_from_vectors_and_not_from_the_model() -> None:
    world = TokenWorld.draw(3, 36, seed=1)
    layer = ConstructedWeights.draw(world, 4, seed=1)
    model = construct(world, layer, rate=0.5, n_demonstrations=4, positions=64)
    lm = LanguageModel.wrap(model, world.tokenizer(), "constructed")
    setup = PromptedModel.of(lm, world.task(seed=1, remembering=True), 4, seed=2)
    assert output_gap(world, layer, setup, setup.encoded, 0.5) < 1e-12
    assert output_gap(world, layer, setup, setup.encoded, 0.6) > 1e-2
    with torch.no_grad():
        model.get_parameter("layers.1.v_proj.weight")[0, model.parts.memory.start] += 0.1
    assert output_gap(world, layer, setup, setup.encoded, 0.5) > 1e-3


def test_the_learner_is_told_vectors_and_where_the_layer_is_kept() -> None:
    world = TokenWorld.draw(3, 36, seed=1)
    layer = ConstructedWeights.draw(world, 4, seed=1)
    model = construct(world, layer, rate=0.5, n_demonstrations=4, positions=64)
    setup = PromptedModel.of(
        LanguageModel.wrap(model, world.tokenizer(), "constructed"), world.task(seed=1, remembering=True), 4, seed=2
    )
    values = setup.measures(gradient_step(world, layer, setup, 0.5).adapt(setup.lm, setup.encoded))
    assert list(values) == list(MEASURES)
    assert values["distance"] < 1e-12
    half = setup.measures(gradient_step(world, layer, setup, 0.25).adapt(setup.lm, setup.encoded))
    assert half["distance"] == pytest.approx(0.5, abs=1e-12)

"""A plan's operations are those that torch counts while the study runs.

Products with weights are compared. Attention's own products, of which torch counts the whole square of tokens, are
compared model by model in `tests/models/cost/test_shape.py`; here they are left out on both sides.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.loading.load import load_model
from dualform.models.reading.language_model import LanguageModel
from dualform.progress import SilentProgress
from dualform.studies.advice.config import advice_config
from dualform.studies.advice.run import advise
from dualform.studies.comparison.config import ComparisonConfig, comparison_config
from dualform.studies.comparison.run import compare
from dualform.studies.experiment import Experiment
from dualform.studies.fold.config import fold_config
from dualform.studies.fold.run import fold
from dualform.studies.folding.config import folding_config
from dualform.studies.folding.run import folding
from dualform.studies.laboratory.config import regression_config
from dualform.studies.laboratory.plan import run_of
from dualform.studies.laboratory.shift import shift
from dualform.studies.momentum import regression
from dualform.studies.momentum.plan import regression_run
from dualform.studies.momentum.pretrained import put_into
from dualform.studies.momentum.regression import regress
from dualform.studies.momentum.run import compare_momentum
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import Plan, plan_of
from dualform.studies.plan_costs import FIRST_BLOCK_READS, Costs
from dualform.studies.sampling import LinearCost, Run, count_operations, sample
from dualform.studies.selection.config import selection_config
from dualform.studies.selection.run import selection
from dualform.studies.stability.config import stability_config
from dualform.studies.stability.run import stability
from tests.chats import CHAT_FAMILIES
from tests.fixed_machine import fixed_machine
from tests.studies.momentum_setting import small_momentum, write_task, write_texts
from tests.studies.small import write_csv
from tests.tiny import VOCABULARY, save_tiny

MACHINE = fixed_machine()
WITHIN = 0.05
SMALL: dict[str, Any] = {
    "text": "body",
    "label": "topic",
    "k": 3,
    "seeds": (1,),
    "limit": 5,
    "selection_limit": 4,
    "resamples": 10,
    # Packed products are float32's, and are counted by no mode of torch.
    "dtype": "float64",
}
RATES = (1e-7, 1e-6)
"""So low that every rate is as accurate as the others, and none is left out."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task and a model deep and wide enough for products with weights to be nearly all."""
    folder = tmp_path_factory.mktemp("flops")
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}
    save_tiny("llama", folder / "model", **sizes)
    write_csv(folder / "task.csv")
    return folder


@pytest.fixture(scope="module")
def lm(here: Path) -> LanguageModel:
    """The model, loaded before anything is counted."""
    return load_model(str(here / "model"), dtype="float64")


def products(run: Callable[[], object]) -> float:
    """Operations of products of two matrices in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counts.items() if operation in (torch.ops.aten.mm, torch.ops.aten.addmm))


def without_attention(shape: ModelShape) -> ModelShape:
    """The shape of the model, were attention's own products free."""
    return replace(shape, layers=tuple(replace(layer, n_heads=0) for layer in shape.layers))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Plan]:
    """Plans in which attention's own products are free."""
    of_work = Work.flops
    monkeypatch.setattr(Work, "flops", lambda self, shape: of_work(self, without_attention(shape)))
    return lambda config: plan_of(config, MACHINE)


def small(here: Path, **changes: Any) -> ComparisonConfig:
    settings = {**SMALL, "learners": ("zsl", "icl", "ft"), "rates": RATES, "controls": (), **changes}
    return comparison_config(str(here / "model"), str(here / "task.csv"), **settings)


PROMPTED = ("lora_icl", "ttt", "icl_contextual", "icl_batch", "icl_domain", "icl_ensemble", "knn", "distill")


@pytest.mark.parametrize("name", ["zsl", "icl", "ft", "lora", "full", "bitfit", "probe", "embedding", *PROMPTED])
def test_a_learner_computes_what_its_work_says(name: str, here: Path, lm: LanguageModel):
    config = small(here, learners=(name,), training={"epochs": 2, "batch_size": 2})
    experiment = Experiment.of(config, lm, config.load_task())
    context = AdaptationContext(experiment, experiment.draw(1), rate=1e-6)
    learner = LEARNERS[name]
    counted = products(lambda: learner.adapt(context))
    work = learner.work(context)
    assert work.flops(without_attention(lm.shape)) == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize("method", ["thought-vector", "thought-matrix", "rank-one", "task-vector", "kv-momentum"])
def test_a_way_of_folding_computes_what_its_work_says(method: str, here: Path, lm: LanguageModel):
    config = small(here, learners=("zsl", "fold"), fold={"method": method, "texts": 12})
    experiment = Experiment.of(config, lm, config.load_task())
    context = AdaptationContext(experiment, experiment.draw(1))
    learner = LEARNERS["fold"]
    counted = products(lambda: learner.adapt(context))
    assert learner.work(context).flops(without_attention(lm.shape)) == pytest.approx(counted, rel=WITHIN)


def test_a_comparison_computes_what_was_planned(here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]):
    controls = ("random", "position_shift", "icl_order", "ft_order", "lcgd", "value_one_layer", "mlp", "rates")
    config = small(here, controls=controls, control_limit=3, learners=("zsl", "icl", "ft", "probe"))
    counted = products(lambda: compare(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize("how", ["cross-validation", "prequential"])
def test_a_comparison_within_a_budget_of_labels_computes_what_was_planned(
    how: str, here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]
):
    learners = ("zsl", "icl", "ft", "probe", "tfidf", "embedding")
    config = small(here, labels=7, selection_limit=None, choose_inside=how, learners=learners)
    counted = products(lambda: compare(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_a_comparison_of_chats_computes_what_was_planned(here: Path, tmp_path: Path, planned: Callable[[Any], Plan]):
    shutil.copytree(here / "model", tmp_path / "model")
    CHAT_FAMILIES["chatml"].tokenizer().save_pretrained(tmp_path / "model")
    lm = load_model(str(tmp_path / "model"), dtype="float64")
    settings = {**SMALL, "learners": ("zsl", "icl", "ft", "probe"), "rates": RATES, "controls": ("position_shift",)}
    config = comparison_config(
        str(tmp_path / "model"), str(here / "task.csv"), chat="on", system="Answer with one word.", **settings
    )
    counted = products(lambda: compare(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)
    # The template's tokens are work too.
    assert planned(config.model_copy(update={"chat": "off", "system": None})).cost.flops < 0.9 * counted


def test_a_comparison_of_ways_of_prompting_computes_what_was_planned(
    here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]
):
    config = small(here, learners=PROMPTED, knn_neighbours=2, ensemble_orders=2, batch_texts=7)
    counted = products(lambda: compare(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_advice_computes_what_was_planned(here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]):
    settings = {**SMALL, "k": None, "selection_limit": None, "budgets": (3, 6), "rates": RATES}
    config = advice_config(
        str(here / "model"), str(here / "task.csv"), **settings, learners=("zsl", "icl", "ft", "probe", "tfidf")
    )
    task = config.load_task()
    counted = products(lambda: advise(config, lm, task, NoPieceStore(), SilentProgress()))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_a_stability_study_computes_what_was_planned(here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]):
    settings = {**SMALL, "orders": 2, "ft_seeds": 1, "ft_orders": 2, "label_seeds": 1, "rates": RATES}
    config = stability_config((str(here / "model"),), str(here / "task.csv"), **settings)
    counted = products(lambda: stability(config, lms=[lm]))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_a_selection_study_computes_what_was_planned(here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]):
    settings = {**SMALL, "orders": 2, "untouched_limit": 4, "similarity_limit": 3, "rates": RATES}
    config = selection_config(str(here / "model"), str(here / "task.csv"), **settings)
    counted = products(lambda: selection(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_a_study_of_folding_computes_what_was_planned(here: Path, lm: LanguageModel, planned: Callable[[Any], Plan]):
    settings = {
        **SMALL,
        "fold": {"texts": 12, "method": "thought-vector"},
        "axes": ("method", "k"),
        "methods": ("thought-vector", "task-vector", "kv-momentum"),
        "ks": (2,),
        "rates": RATES,
    }
    config = folding_config(str(here / "model"), str(here / "task.csv"), **settings)
    counted = products(lambda: folding(config, lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_folding_one_prompt_for_good_computes_what_was_planned(
    here: Path, lm: LanguageModel, planned: Callable[[Any], Plan], tmp_path: Path
):
    settings = {**SMALL, "fold": {"texts": 12, "method": "thought-vector"}, "form": "lora", "verify": False}
    config = fold_config(str(here / "model"), str(here / "task.csv"), **settings)
    counted = products(lambda: fold(config, tmp_path / "folded", lm=lm))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize(("family", "more"), [("llama", {}), ("mistral", {"sliding_window": 6}), ("qwen3", {})])
def test_loading_reads_what_was_planned(
    family: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tiny(family, tmp_path / "model", **more)
    reads: list[list[int]] = []
    embedding, linear = torch.nn.functional.embedding, torch.nn.functional.linear

    def embedded(tokens: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        reads.append([tokens.numel(), 0])
        return embedding(tokens, *arguments, **options)

    def multiplied(x: torch.Tensor, weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(weight) == VOCABULARY:
            reads[-1][1] += x.numel() // x.shape[-1]
        return linear(x, weight, *arguments)

    monkeypatch.setattr(torch.nn.functional, "embedding", embedded)
    monkeypatch.setattr(torch.nn.functional, "linear", multiplied)
    loaded = load_model(str(tmp_path / "model"))
    # The one forward with gradients is planned as a step of training.
    others = [(5, 5), *[(5, 0)] * FIRST_BLOCK_READS]
    assert sorted(map(tuple, reads)) == sorted([*Costs(loaded.shape, MACHINE).loading_reads(), *others])


# Plans of small models are drawn through runs of a few steps: of these the counts alone are made here, not the times.


def operations(run: Callable[[], object]) -> float:
    """All operations that torch counts in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def counted_line(run: Run, seeds: int) -> LinearCost:
    """The line through a few steps, whose times are left out."""
    return sample(lambda share, n: share, count_operations(run), seeds, lambda: 0.0)


# Momentum.


def test_a_comparison_of_arms_computes_what_was_planned(tmp_path: Path, here: Path, planned: Callable[[Any], Plan]):
    config = small_momentum(
        write_texts(tmp_path),
        seeds=(1,),
        controls=("convolution", "heavy-ball"),
        tasks=(write_task(tmp_path),),
        k=2,
        limit=12,
        settings={"tokens": 128 * 24},
    )
    counted = products(lambda: compare_momentum(config, tmp_path / "runs"))
    assert planned(config).cost.flops == pytest.approx(counted, rel=WITHIN)


def test_momentum_put_into_a_model_computes_what_was_planned(
    tmp_path: Path, here: Path, planned: Callable[[Any], Plan]
):
    texts = write_texts(tmp_path)
    name = str(here / "model")
    more: dict[str, Any] = {"pretrained": (name,), "pretrained_etas": (0.3,), "pretrained_steps": 3}
    config = small_momentum(texts, seeds=(1,), etas=(), **more)
    counted = products(lambda: put_into(config, name, NoPieceStore()))
    own = sum(part.cost.flops for part in planned(config).parts if part.name.startswith(name))
    assert own == pytest.approx(counted, rel=WITHIN)


@pytest.mark.filterwarnings("ignore")
def test_training_on_regression_with_momentum_computes_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(regression, "_TESTED", 32)
    config = small_momentum(write_texts(tmp_path), seeds=(1,), etas=(), regress=True, regression_steps=5)
    line = counted_line(regression_run(config), 1)
    counted = operations(lambda: regress(config, NoPieceStore()))
    assert line.cost(config.regression_steps / 1000, 1).flops == pytest.approx(counted, rel=WITHIN)


# The laboratory.


@pytest.mark.filterwarnings("ignore")
def test_a_study_of_the_laboratory_computes_what_was_planned():
    config = regression_config(studies=("shift",), seeds=(1,), dimension=2, points=3, steps=0.005)
    line = counted_line(run_of("shift", config), 1)
    counted = operations(lambda: shift(config, NoPieceStore(), lambda amount, doing: None))
    assert line.cost(config.steps, 1).flops == pytest.approx(counted, rel=WITHIN)

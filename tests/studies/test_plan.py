"""Plans answer to what small runs really read: every token that passes the first block is counted."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dualform.errors import ConfigError, ContextError, DualformError, ModelError
from dualform.learners.mezo import Mezo
from dualform.models.cost.memory import MemoryEstimate, MemoryOption
from dualform.models.cost.work import encode
from dualform.models.loading.load import load_model
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.config import ComparisonConfig, comparison_config
from dualform.studies.comparison.run import compare
from dualform.studies.experiment import Experiment
from dualform.studies.fold.config import fold_config
from dualform.studies.fold.run import fold
from dualform.studies.fold_work import fold_parts
from dualform.studies.folding.config import folding_config
from dualform.studies.folding.run import folding
from dualform.studies.plan import Cost, GroupPlan, Plan, PricedPart, plan_of, plan_sweep
from dualform.studies.plan_costs import Costs
from dualform.studies.planning import estimated_memory, planned_model
from dualform.studies.selection.config import selection_config
from dualform.studies.selection.run import selection
from dualform.studies.settings import StudyConfig
from dualform.studies.stability.config import stability_config
from dualform.studies.stability.run import stability
from tests.fixed_machine import GIB, fixed_machine
from tests.models.mixture import save_mixture
from tests.studies.small import write_choices, write_csv
from tests.tiny import save_tiny

MACHINE = fixed_machine()
SMALL: dict[str, Any] = {
    "text": "body",
    "label": "topic",
    "k": 4,
    "seeds": (1, 2),
    "limit": 8,
    "selection_limit": 6,
    "resamples": 20,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a task."""
    folder = tmp_path_factory.mktemp("plans")
    save_tiny("llama", folder / "model")
    write_csv(folder / "task.csv")
    return folder


@pytest.fixture(scope="module")
def lm(here: Path) -> LanguageModel:
    """The same model, loaded: so that its self-checks are over when counting begins."""
    return load_model(str(here / "model"))


def small(here: Path, **changes: Any) -> ComparisonConfig:
    """Two seeds of four demonstrations."""
    settings = {**SMALL, "learners": ("zsl", "icl", "ft"), "rates": (1e-2,), "controls": (), **changes}
    return comparison_config(str(here / "model"), str(here / "task.csv"), **settings)


@contextmanager
def counted(lm: LanguageModel) -> Iterator[list[int]]:
    """Tokens of every forward. Where blocks are taken one by one, the embedding would count each token for each."""
    seen: list[int] = []

    def count(module: torch.nn.Module, args: Any, out: Any) -> None:
        seen.append(args[0].shape[:-1].numel())

    handle = lm.model.get_submodule("model.layers.0.mlp").register_forward_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def read_by_comparing(config: ComparisonConfig, lm: LanguageModel) -> int:
    with counted(lm) as seen:
        compare(config, lm=lm)
    return sum(seen)


@pytest.mark.parametrize(
    "learners",
    [("zsl",), ("icl",), ("ft",), ("zsl", "icl", "ft"), ("probe",), ("zsl", "probe"), ("probe", "zsl"), ("lora",)],
    ids="-".join,
)
def test_a_comparison_reads_the_tokens_that_were_planned(learners: tuple[str, ...], here: Path, lm: LanguageModel):
    config = small(here, learners=learners, lora_rates=(1e-4,))
    assert plan_of(config, MACHINE).cost.forwards == read_by_comparing(config, lm)


@pytest.mark.parametrize("method", ["ridge", "thought-matrix", "rank-one", "task-vector"])
def test_a_comparison_with_a_fold_reads_the_tokens_that_were_planned(method: str, here: Path, lm: LanguageModel):
    settings = {"method": method, "texts": 12, **({"plain": "none"} if method == "ridge" else {})}
    config = small(here, learners=("zsl", "fold"), fold=settings)
    assert plan_of(config, MACHINE).cost.forwards == read_by_comparing(config, lm)


@pytest.mark.filterwarnings("ignore:label words")
@pytest.mark.parametrize(
    "control",
    [
        "random", "random_update", "position_shift", "shuffled_labels", "random_labels", "other_demonstrations",
        "other_task", "icl_order", "ft_order", "batch", "lcgd", "value_one_layer", "mlp", "rates",
    ],
)  # fmt: skip
def test_each_control_reads_the_tokens_that_were_planned(control: str, here: Path, lm: LanguageModel):
    config = small(here, controls=(control,), control_limit=5, rates=(1e-3, 1e-2), patience=2)
    assert plan_of(config, MACHINE).cost.forwards == read_by_comparing(config, lm)


def test_an_untrained_model_reads_what_the_trained_one_does(here: Path, lm: LanguageModel):
    with_it = plan_of(small(here, controls=("untrained",), control_limit=5), MACHINE)
    with_prompt = plan_of(small(here, controls=("icl_order",), control_limit=5), MACHINE)
    (part,) = (part for part in with_it.parts if part.name == "control untrained")
    assert part.cost.backwards > 0
    assert part.cost.forwards > 2 * next(
        part.cost.forwards for part in with_prompt.parts if part.name == "control icl_order"
    )
    assert with_it.memory["untrained models"] == with_it.memory["weights"]


def test_a_search_for_each_seed_is_counted_for_each(here: Path, lm: LanguageModel):
    config = small(here, tune="each", rates=(1e-3, 1e-2), patience=2)
    assert plan_of(config, MACHINE).cost.forwards == read_by_comparing(config, lm)


def test_a_search_that_may_stop_early_is_a_range_that_holds_what_happens(here: Path, lm: LanguageModel):
    config = small(here, rates=(1e-3, 1e-2, 1e-1, 1.0), patience=1, seeds=(1,), rounding="report")
    plan = plan_of(config, MACHINE)
    (search,) = (part for part in plan.parts if part.name == "ft")
    assert search.least is not None
    assert search.least.forwards * 2 == search.cost.forwards
    low, high = plan.seconds_range
    assert low < plan.seconds == high
    open_ended = plan.cost.forwards - search.cost.forwards
    assert open_ended + search.least.forwards <= read_by_comparing(config, lm) <= plan.cost.forwards


@pytest.mark.parametrize("rounding", ["none", "report", "choose"])
def test_a_repeat_from_rounded_weights_reads_the_tokens_that_were_planned(rounding: str, here: Path, lm: LanguageModel):
    config = small(here, rates=(1e-3, 1e-2), patience=2, rounding=rounding, control_limit=5, controls=("random",))
    plan = plan_of(config, MACHINE)
    assert plan.cost.forwards == read_by_comparing(config, lm)
    repeated = {part.name: part for part in plan.parts if "repeat" in part.name}
    assert set(repeated) == (set() if rounding == "none" else {"repeating ft", "reading ft repeated"})
    if rounding == "choose":
        # In the worst case no rate is stable but the last that is tried.
        most = repeated["repeating ft"].most
        assert most is not None
        assert most.forwards > 2 * repeated["repeating ft"].cost.forwards / len(config.seeds)


def test_a_seed_that_is_chosen_costs_its_candidates(here: Path, lm: LanguageModel):
    config = small(here, select="icl", learners=("zsl", "icl"), k=2)
    planned, read = plan_of(config, MACHINE).cost.forwards, read_by_comparing(config, lm)
    # Which seed is chosen cannot be known, and demonstrations are not equally long.
    assert planned == pytest.approx(read, abs=20)


def test_multiple_choice_is_counted_with_its_answers(here: Path, lm: LanguageModel):
    task = write_choices(here / "choices.jsonl")
    settings = {**SMALL, "text": "goal", "label": "label", "choices": "choices", "rates": (1e-2,), "controls": ()}
    config = comparison_config(str(here / "model"), str(task), learners=("zsl", "icl", "ft", "probe"), **settings)
    plan = plan_of(config, MACHINE)
    assert plan.cost.forwards == read_by_comparing(config, lm)
    assert any("probe was left out" in note for note in plan.notes)


def test_a_backward_goes_through_the_demonstrations_alone(here: Path, lm: LanguageModel):
    config = small(here, rates=(1e-3, 1e-2), patience=2, rounding="none")
    experiment = Experiment.of(config, lm, config.load_task())
    tokens = {seed: sum(map(len, experiment.draw(seed).encoded.sequences)) for seed in (1, 2)}
    assert plan_of(config, MACHINE).cost.backwards == 2 * tokens[1] + tokens[2]


def test_descent_without_gradients_is_planned_for_all_its_steps_and_rates(here: Path, lm: LanguageModel):
    config = small(here, learners=("zsl", "fold"), fold={"method": "mezo"})
    experiment: Experiment[StudyConfig] = Experiment.of(config, lm, config.load_task())
    drawn = experiment.draw(1)
    short = Mezo(experiment.encoder.opening, learning_rates=(1e-6, 1e-5), steps=5)
    with counted(lm) as seen:
        adapted = short.adapt(lm, drawn.encoded)
    work = short.work(lm.shape, drawn.encoded)
    assert work.tokens == sum(seen)
    # The search for the rate is no part of what a learner costs.
    assert work.charged.tokens == adapted.cost.tokens
    whole = Mezo(experiment.encoder.opening)
    (part,) = fold_parts(experiment, drawn, config.fold)
    assert part.work.tokens == whole.work(lm.shape, drawn.encoded).tokens


def test_texts_that_the_model_would_write_are_a_part_of_their_own(here: Path):
    config = small(here, learners=("zsl", "fold"), fold={"calibration": "generated", "texts": 12, "plain": "generated"})
    parts = {part.name: part for part in plan_of(config, MACHINE).parts}
    written = parts["fold: texts generated by the model"]
    assert written.least is not None
    assert written.most is not None
    assert written.least.seconds < written.cost.seconds < written.most.seconds
    assert parts["plain text generated by the model (once)"].cost.forwards > 0


def test_plain_text_that_is_kept_is_not_written_again(
    here: Path, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    plain = {"texts": 12, "plain_texts": 2, "plain_length": 8}
    config = small(here, learners=("zsl", "fold"), seeds=(1,), fold=plain)
    written = "plain text generated by the model (once)"
    assert written in {part.name for part in plan_of(config, MACHINE).parts}
    compare(config, lm=lm)
    assert written not in {part.name for part in plan_of(config, MACHINE).parts}


def test_a_stability_study_reads_the_tokens_that_were_planned(here: Path, lm: LanguageModel):
    settings = {**SMALL, "orders": 3, "ft_seeds": 1, "ft_orders": 2, "label_seeds": 1, "rates": (1e-3, 1e-2)}
    config = stability_config((str(here / "model"),), str(here / "task.csv"), **settings)
    with counted(lm) as seen:
        stability(config, lms=[lm])
    assert plan_of(config, MACHINE).cost.forwards == sum(seen)


def test_several_models_are_loaded_one_after_the_other(here: Path):
    settings = {**SMALL, "orders": 2, "ft_seeds": 0, "label_seeds": 0}
    save_tiny("gpt2", here / "other")
    one = plan_of(stability_config((str(here / "model"),), str(here / "task.csv"), **settings), MACHINE)
    both = stability_config((str(here / "model"), str(here / "other")), str(here / "task.csv"), **settings)
    two = plan_of(both, MACHINE)
    assert two.cost.forwards == 2 * one.cost.forwards
    assert sum(part.name == "start" for part in two.parts) == 1
    assert two.peak < 2 * one.peak


def test_a_selection_study_reads_the_tokens_that_were_planned(here: Path, lm: LanguageModel):
    settings = {**SMALL, "orders": 2, "untouched_limit": 6, "similarity_limit": 4, "rates": (1e-3, 1e-2)}
    config = selection_config(str(here / "model"), str(here / "task.csv"), **settings)
    with counted(lm) as seen:
        selection(config, lm=lm)
    plan = plan_of(config, MACHINE)
    assert plan.cost.forwards == sum(seen)
    assert plan.seconds_range == (plan.seconds, plan.seconds)


def test_a_study_of_folding_reads_the_tokens_that_were_planned(here: Path, lm: LanguageModel):
    settings = {
        **SMALL,
        "fold": {"texts": 12, "plain": "none"},
        "axes": ("method", "k"),
        "methods": ("ridge", "rank-one", "thought-matrix", "task-vector", "kv-momentum"),
        "ks": (2,),
        "rates": (1e-2,),
    }
    config = folding_config(str(here / "model"), str(here / "task.csv"), **settings)
    with counted(lm) as seen:
        folding(config, lm=lm)
    assert plan_of(config, MACHINE).cost.forwards == sum(seen)


def test_folding_one_prompt_for_good_reads_the_tokens_that_were_planned(here: Path, lm: LanguageModel, tmp_path: Path):
    settings = {**SMALL, "seeds": (1,), "fold": {"texts": 12, "plain": "none"}, "form": "lora"}
    config = fold_config(str(here / "model"), str(here / "task.csv"), **settings)
    with counted(lm) as seen:
        fold(config, tmp_path / "folded", lm=lm)
    assert plan_of(config, MACHINE).cost.forwards == sum(seen)


def test_more_of_anything_costs_more(here: Path):
    base = plan_of(small(here), MACHINE)
    for more in ({"limit": 16}, {"seeds": (1, 2, 3)}, {"k": 8}, {"rates": (1e-3, 1e-2)}, {"controls": ("random",)}):
        plan = plan_of(small(here, **more), MACHINE)
        assert plan.seconds > base.seconds, more
    assert plan_of(small(here, k=8), MACHINE).peak > base.peak


def test_a_faster_machine_takes_less_time_for_the_same_work(here: Path):
    config = small(here)
    slow, fast = (plan_of(config, fixed_machine(packed=(rate,) * 5, plain=(rate,) * 5)) for rate in (1e9, 1e11))
    assert fast.seconds < slow.seconds
    assert fast.cost.forwards == slow.cost.forwards
    assert fast.cost.flops == slow.cost.flops


def test_memory_falls_into_parts_that_are_known(here: Path, lm: LanguageModel):
    plan = plan_of(small(here), MACHINE)
    weights = 4 * sum(weight.numel() for weight in lm.model.parameters())
    assert plan.memory["Python and libraries"] == MACHINE.base
    assert plan.memory["weights"] == weights
    trained = sum(len(rows.index) * 32 for layer in lm.anatomy.layers for rows in (layer.W_K, layer.W_V) if rows)
    # Finetuning's own change, the best so far, its gradient and the step, and the repeat's change.
    assert plan.memory["changes of weights"] == 5 * 4 * trained
    unrepeated = plan_of(small(here, rounding="none"), MACHINE)
    assert unrepeated.memory["changes of weights"] == 4 * 4 * trained
    assert plan.peak == sum(plan.memory.values())
    # A zero-shot comparison trains nothing, and packs weights in one direction.
    alone = plan_of(small(here, learners=("zsl",)), MACHINE)
    assert "changes of weights" not in alone.memory
    assert "recordings" not in alone.memory
    assert alone.memory["packed copies"] * 2 == plan.memory["packed copies"]


def test_half_precision_halves_the_weights_and_packs_nothing(here: Path):
    whole, half = (plan_of(small(here, dtype=dtype), MACHINE) for dtype in ("float32", "bfloat16"))
    assert half.memory["weights"] * 2 == whole.memory["weights"]
    assert "packed copies" not in half.memory


def test_a_model_that_does_not_fit_is_told_what_would(here: Path):
    plan = plan_of(small(here), fixed_machine(ram=GIB // 2))
    assert plan.fit is not None
    assert not plan.fit.fits
    assert {option.how for option in plan.fit.options} >= {"--dtype bfloat16", "--quantize 8bit", "--quantize 4bit"}


def test_fewer_bits_take_less_memory_and_their_speed_is_not_vouched_for(here: Path):
    asked: dict[str, Any] = {"learners": ("zsl", "icl")}
    whole, eight = (plan_of(small(here, **asked, **more), MACHINE) for more in ({}, {"quantize": "8bit"}))
    assert eight.memory["weights"] < whole.memory["weights"]
    assert "packed copies" not in eight.memory
    assert any("8bit" in note for note in eight.notes)


def test_a_divided_model_leaves_room_for_the_work(here: Path):
    config = small(here, device_map="auto")
    plan = plan_of(config, fixed_machine(ram=GIB // 2 + 2_000_000))
    assert plan.fit is not None
    assert plan.fit.options == ()
    assert plan.memory["weights"] < plan_of(small(here), MACHINE).memory["weights"]
    assert any("copying offloaded weights" in note for note in plan.notes)


def test_a_plan_says_what_the_study_itself_would_say(here: Path):
    with pytest.raises(ModelError, match="no model folder"):
        plan_of(comparison_config("./missing", str(here / "task.csv")), MACHINE)
    with pytest.raises(DualformError, match=r"missing\.csv"):
        plan_of(comparison_config(str(here / "model"), str(here / "missing.csv")), MACHINE)
    with pytest.raises(ContextError, match="not fit the context of 24 tokens"):
        plan_of(small(here, context=24), MACHINE)
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="cannot be planned"):
        plan_of(Other(task="reviews"), MACHINE)


class Other(StudyConfig):
    """A study that nobody plans."""


def test_costs_add_up_and_are_multiplied():
    one = Cost(10, 4, 100.0, 2.0)
    assert one + one == one * 2 == Cost(20, 8, 200.0, 4.0)


def test_a_plan_is_plain_data(here: Path):
    told = plan_of(small(here), MACHINE).as_dict()
    assert told["seconds"] == pytest.approx(sum(part["seconds"] for part in told["parts"]))
    assert told["peak_bytes"] == sum(told["memory"].values())
    assert told["fit"]["fits"] is True
    assert told["machine"]["threads"] == 1


def a_plan(seconds: float, name: str = "m t") -> Plan:
    parts = (PricedPart("start", Cost(seconds=5.0)), PricedPart("loading and self-checks", Cost(seconds=3.0)))
    return Plan(f"compare {name}", (*parts, PricedPart("ft", Cost(1000, 500, 1e9, seconds))), {"weights": GIB})


def groups(*plans: tuple[Plan, int, int]) -> list[GroupPlan]:
    """Groups of one model: plan, cells, finished."""
    return [GroupPlan(f"g{i}", "m", plan, cells, done) for i, (plan, cells, done) in enumerate(plans)]


def test_a_sweep_with_one_worker_takes_the_sum_of_its_cells():
    plan = plan_sweep("s", groups((a_plan(60.0), 3, 0), (a_plan(40.0), 2, 0)), workers=1, machine=MACHINE)
    # What a worker keeps is paid for once.
    assert plan.seconds == pytest.approx(100 + 5 + 3)
    assert plan.cost.forwards == 2000
    assert plan.peak == GIB


def test_each_model_is_loaded_once_whatever_spaces_its_name_has():
    names = ("my models/one", "my models/two", "my models/two")
    plans = [GroupPlan(f"g{i}", name, a_plan(10.0, f"{name} t"), 1) for i, name in enumerate(names)]
    assert plan_sweep("s", plans, workers=1, machine=MACHINE).seconds == pytest.approx(3 * 10 + 5 + 2 * 3)


def test_groups_are_told_apart_by_their_names():
    plan = plan_sweep("s", groups((a_plan(60.0), 3, 1), (a_plan(60.0), 3, 0)), workers=1, machine=MACHINE)
    assert [part.name for part in plan.parts][1:] == ["g0 (2 of 3 cells)", "g1 (3 of 3 cells)"]


def test_workers_share_the_machine_and_do_not_multiply_it():
    plans = groups((a_plan(60.0), 3, 0), (a_plan(40.0), 3, 0))
    two_cores = fixed_machine(threads=2)
    alone = plan_sweep("s", plans, workers=1, machine=two_cores, threads=2)
    shared = plan_sweep("s", plans, workers=2, machine=two_cores, threads=1)
    assert shared.seconds - 100 == pytest.approx(2 * (alone.seconds - 100))
    assert shared.peak == 2 * GIB


def ten_gib(**fit: Any) -> Plan:
    """A run that takes ten GiB of sixteen."""
    return replace(
        a_plan(60.0), memory={"weights": 10 * GIB}, fit=MemoryEstimate("memory", 10 * GIB, 16 * GIB, (), **fit)
    )


@pytest.mark.parametrize("estimated", [True, False], ids=["a model", "none"])
def test_workers_that_do_not_fit_together_have_fewer_workers_as_an_option(estimated: bool):
    single = ten_gib() if estimated else replace(ten_gib(), fit=None)
    plan = plan_sweep("s", groups((single, 4, 0)), workers=2, machine=MACHINE)
    assert plan.fit is not None
    assert (plan.fit.needed, plan.fit.room, plan.fit.fits) == (20 * GIB, 16 * GIB, False)
    (option,) = plan.fit.options
    assert (option.how, option.bytes, option.fits) == ("fewer workers: --workers 1", 10 * GIB, True)
    assert plan.as_dict()["fit"]["fits"] is False


def test_workers_that_fit_together_are_told_so():
    plan = plan_sweep("s", groups((ten_gib(), 4, 0)), workers=1, machine=MACHINE)
    assert plan.fit is not None
    assert plan.fit.fits
    # A worker without a cell takes no memory.
    single = plan_sweep("s", groups((ten_gib(), 4, 3)), workers=2, machine=MACHINE)
    assert single.fit is not None
    assert single.fit.fits
    assert single.peak == 10 * GIB


def test_where_one_worker_does_not_fit_either_it_is_told_what_would():
    options = (MemoryOption("--dtype bfloat16", 10 * GIB, True),)
    large = replace(ten_gib(), memory={"weights": 20 * GIB}, fit=MemoryEstimate("memory", 20 * GIB, 16 * GIB, options))
    plan = plan_sweep("s", groups((large, 4, 0)), workers=2, machine=MACHINE)
    assert plan.fit is not None
    assert [(option.how, option.fits) for option in plan.fit.options] == [
        ("fewer workers: --workers 1", False),
        ("--workers 1, --dtype bfloat16", True),
    ]


def test_finished_cells_cost_nothing():
    plan = plan_sweep("s", groups((a_plan(60.0), 3, 2), (a_plan(40.0), 2, 2)), workers=1, machine=MACHINE)
    assert plan.seconds == pytest.approx(20 + 8)
    nothing = plan_sweep("s", groups((a_plan(60.0), 3, 3)), workers=2, machine=MACHINE)
    assert nothing.seconds == nothing.peak == 0
    assert nothing.fit is None


def test_workers_that_find_no_cell_do_not_help():
    two, eight = (
        plan_sweep("s", groups((a_plan(60.0), 2, 0)), workers=n, machine=fixed_machine(threads=8), threads=8 // n)
        for n in (2, 8)
    )
    assert eight.seconds > two.seconds


def test_why_a_time_is_a_range_is_told_of_what_makes_it_one(here: Path):
    search = plan_of(small(here, rates=(1e-3, 1e-2, 1e-1), patience=1, seeds=(1,), rounding="none"), MACHINE)
    (why,) = search.why
    assert why.startswith("a search stops early")
    control = plan_of(small(here, rates=(1e-3,), patience=1, seeds=(1,), controls=("rates",), rounding="none"), MACHINE)
    assert not any("search" in why for why in control.why)
    assert plan_of(small(here, learners=("zsl", "icl")), MACHINE).why == ()
    in_a_sweep = plan_sweep("s", groups((search, 1, 0)), workers=1, machine=MACHINE)
    assert in_a_sweep.why == search.why
    assert plan_sweep("s", groups((search, 1, 1)), workers=1, machine=MACHINE).why == ()


def test_a_mixture_of_experts_is_planned_with_the_experts_that_a_token_is_sent_to(here: Path, tmp_path: Path):
    folder = save_mixture(tmp_path / "mixture")
    config = comparison_config(str(folder), str(here / "task.csv"), **SMALL, learners=("zsl",), controls=())
    plan = plan_of(config, MACHINE)
    assert not any("not counted" in note for note in plan.notes)
    shape = planned_model(small(here), str(folder)).shape
    unknown = replace(shape, experts=0, experts_share=0.0, uncounted=shape.experts)
    _, notes = estimated_memory(small(here), Costs(unknown, MACHINE), {"weights": 1}, trains=False)
    assert notes == (f"operations of {shape.experts:,} parameters outside linear layers are not counted",)
    assert Costs(unknown, MACHINE).cost(encode(8)).seconds < Costs(shape, MACHINE).cost(encode(8)).seconds

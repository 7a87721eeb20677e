import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import controls, engine, fast_weights, finetuning, folding, lm_eval_harness, memory, momentum
from benchmarks.__main__ import BENCHMARKS, main, table
from benchmarks.common import (
    FULL,
    QUICK,
    GemmRate,
    Job,
    Others,
    Outcome,
    Patience,
    Size,
    beside_rate,
    features,
    linears,
    make_job,
)

from dualform.models.editing.momentum import momentum_of
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.fast_weights import fast_weights as descended
from dualform.tasks.task import Example, Task, Template
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TINY = Size(k=4, n_queries=5, rounds=2, harness_queries=3, memory_queries=(2, 4), gemm_seconds=0.0005)


@pytest.fixture(scope="module")
def job() -> Job:
    lm = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "tiny")
    rows = tuple(Example({"text": f"a film, number {row}"}, row % 2, row) for row in range(24))
    task = Task(
        name="toy",
        source="a test",
        splits={"train": rows[:12], "validation": rows[12:16], "test": rows[16:]},
        template=Template("Review: {text}\nSentiment:", "\n"),
        label_words=("negative", "positive"),
        label_names=None,
        selection_split="validation",
        report_split="test",
    )
    return make_job(lm, task, TINY.k, TINY.n_queries)


def test_an_outcome_keeps_to_its_target_by_its_median_round():
    outcome = Outcome("a", (1.0, 9.0, 1.2), "at most", 1.3, "")
    assert outcome.ratio == 1.2
    assert outcome.met is True
    assert replace(outcome, target=1.1).met is False
    assert replace(outcome, wanted="at least").met is False
    assert replace(outcome, ratios=()).met is None
    assert replace(outcome, target=None).met is None


def test_times_come_in_the_order_of_the_calls_and_with_the_better_rate():
    rates = iter([3.0, 5.0, 7.0, 4.0])
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    times, rate = beside_rate(lambda: next(rates), calls)
    assert (len(times), rate, order) == (2, 5.0, ["a", "b"])
    _, rate = beside_rate(lambda: next(rates), calls, backwards=True)
    assert (rate, order) == (7.0, ["a", "b", "b", "a"])


def test_the_engine_is_charged_for_the_prefix_once_and_for_each_query_once(job):
    over_bound, over_plain = engine.run(job, TINY)
    lm, n_prefix = job.lm, len(job.encoded.prefix)
    expected = lm.shape.forward(n_prefix, scored=0) + sum(
        lm.shape.forward(len(query.prompt), n_prefix, scored=1) for query in job.queries
    )
    assert sum(over_bound.raw["flops"]) == pytest.approx(expected)
    assert len(over_bound.ratios) == len(over_plain.ratios) == TINY.rounds
    assert all(ratio > 0 for outcome in (over_bound, over_plain) for ratio in outcome.ratios)
    pieces = over_bound.raw["pieces"]
    assert pieces[0] == "prefix"
    assert all(len(measured[kind]) == len(pieces) for measured in over_bound.raw["rounds"] for kind in measured)


def test_longer_answers_are_charged_for_the_tokens_that_they_add(job):
    longer = make_job(job.lm, replace(job.task, label_words=("negative", "lukewarm and warm")), TINY.k, TINY.n_queries)
    plain, more = (sum(engine.run(each, TINY)[0].raw["flops"][1:]) for each in (job, longer))
    assert more > plain


def test_every_linear_gives_a_shape_but_the_output_head(job):
    shapes = {features(module) for module in linears(job.lm)}
    assert shapes == {(32, 32), (32, 16), (32, 64), (64, 32)}
    rate = GemmRate(job.lm, height=8, seconds=0.0005)
    assert rate() > 0
    assert len(rate.seen) == 1


def test_finetuning_is_measured_against_both_rates_and_leaves_the_model_as_it_was(job):
    before = {name: weight.clone() for name, weight in job.lm.model.state_dict().items()}
    over_bound, over_low = finetuning.run(job, TINY)
    assert over_bound.raw["sequences"] == TINY.k
    assert over_low.target is None
    assert len(over_bound.ratios) == len(over_low.ratios) == TINY.rounds
    assert all(torch.equal(weight, before[name]) for name, weight in job.lm.model.state_dict().items())


def test_controls_are_timed_inside_the_run_that_they_are_compared_with(job):
    # A round is a whole comparison with every learner and two seeds.
    (outcome,) = controls.run(job, replace(TINY, rounds=1))
    assert outcome.ratio is not None
    assert outcome.ratio > 1
    assert outcome.target == 2.0
    for one in outcome.raw["rounds"]:
        assert 0 < one["control_seconds"] < one["seconds"]


def test_a_fold_is_measured_against_reading_its_own_texts_and_its_solves_apart(job):
    before = {name: weight.clone() for name, weight in job.lm.model.state_dict().items()}
    over_forward, solves = folding.run(job, TINY)
    assert (over_forward.target, solves.target) == (3.0, None)
    assert len(over_forward.ratios) == len(solves.ratios) == TINY.rounds
    assert over_forward.raw["texts"] == 8
    given = folding.read_by_a_fold(job, 8)
    shown = {job.encoded.sequences[i][1 : -job.encoded.n_answer_tokens[i]] for i in range(TINY.k)}
    assert not shown & {text.prompt for text in given.texts}
    assert over_forward.raw["tokens"]["texts"] == sum(text.width() for text in given.texts)
    for one in over_forward.raw["rounds"]:
        assert 0 < one["solves"] < one["fold"]
    assert all(torch.equal(weight, before[name]) for name, weight in job.lm.model.state_dict().items())


def test_every_solve_is_timed_and_only_while_it_is_asked_for(job):
    learner = folding._learner(job, folding.read_by_a_fold(job, 8))
    with folding.solves_timed() as found:
        learner.adapt(job.lm, job.encoded)
    assert len(found) == len(job.lm.anatomy.layers)
    learner.adapt(job.lm, job.encoded)
    assert len(found) == len(job.lm.anatomy.layers)


def test_momentum_is_timed_beside_the_same_model_without_and_beside_the_square_form(job):
    model = job.lm.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    implementation = model.config._attn_implementation
    outcomes = momentum.run(job, TINY)
    assert [outcome.name for outcome in outcomes] == [
        "momentum: forward of tiny over vanilla",
        "momentum: training step of small over vanilla",
    ]
    for outcome in outcomes:
        assert (outcome.wanted, outcome.target) == ("at most", 1.15)
        assert outcome.raw["length"] == momentum.QUICK_LENGTH
        assert len(outcome.raw["rounds"]) == TINY.rounds
        assert all(set(one) == {"vanilla", "momentum", "square"} for one in outcome.raw["rounds"])
        assert outcome.ratios == tuple(one["momentum"] / one["vanilla"] for one in outcome.raw["rounds"])
        assert all(ratio > 0 for ratio in outcome.ratios)
    assert model.config._attn_implementation == implementation
    assert momentum_of(model) is None
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


REFERENCE = """
from dualform.ops.fast_weights import fast_weights

def naive_chunk_linear_attn(q, k, v, scale):
    return fast_weights("linear", *(x.transpose(1, 2) for x in (q, k, v))).output.transpose(1, 2)

def delta_rule_chunkwise(q, k, v, beta, chunk_size):
    return fast_weights("delta", q / q.shape[-1] ** 0.5, k, v, rate=beta).output, None

def gated(rule, q, k, v, g, beta):
    q, k, v, g, beta = (x.transpose(1, 2) for x in (q, k, v, g, beta))
    return fast_weights(rule, q, k, v, rate=beta, decay=g.exp()).output.transpose(1, 2), None, None

def naive_chunk_gated_delta_rule(q, k, v, g, beta, chunk_size, scale):
    return gated("gated-delta", q, k, v, g, beta)

def naive_mesa_net_exact(q, k, v, g, lamb, beta):
    return gated("mesa", q, k, v, g, beta)
"""
"""In place of `fla-core`'s, with their signatures."""


def test_fast_weights_are_timed_in_both_forms_and_beside_references_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_weights, "QUICK_LENGTH", 24)
    monkeypatch.setattr(fast_weights, "WIDTHS", (4, 8))
    monkeypatch.setattr(fast_weights, "LARGE", 64)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    threads = torch.get_num_threads()
    outcomes = fast_weights.run(TINY)
    assert torch.get_num_threads() == threads
    assert len(outcomes) == 2 * 2 * len(fast_weights.CASES)
    for forms, bound in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert forms.target == 10
        assert bound.target is None
        assert forms.ratios == tuple(one["recurrent"] / one["chunked"] for one in forms.raw["rounds"])
        assert bound.ratios == tuple(one["chunked"] / one["bound"] for one in forms.raw["rounds"])
        assert all(ratio > 0 for ratio in (*forms.ratios, *bound.ratios))
    monkeypatch.undo()
    for name in ("linear_attn", "delta_rule", "gated_delta_rule", "mesa_net"):
        (tmp_path / "fla" / "ops" / name).mkdir(parents=True)
        (tmp_path / "fla" / "ops" / name / "naive.py").write_text(REFERENCE, encoding="utf-8")
    (tmp_path / "fla" / "__init__.py").write_text("raise ImportError('needs a compiler')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    outcomes = fast_weights._references(24, TINY, Patience(0))
    assert len(outcomes) == 4
    assert all(outcome.raw["error"] < 1e-5 for outcome in outcomes)


def test_both_sides_of_a_ratio_of_fast_weights_are_measured_alike(monkeypatch):
    called: dict[str, int] = {}

    def counted(*args, **given):
        called[given["form"]] = called.get(given["form"], 0) + 1
        return descended(*args, **given)

    monkeypatch.setattr(fast_weights, "fast_weights", counted)
    monkeypatch.setattr(fast_weights, "LARGE", 64)
    fast_weights._case("delta", 8, 4, TINY, Patience(0))
    each = 2 + TINY.rounds * (fast_weights.SAMPLES + fast_weights.STEP_SAMPLES)
    assert called == {"recurrent": each, "chunked": each}


def test_a_fold_of_more_texts_than_there_are_is_refused_by_number(job):
    with pytest.raises(ValueError, match=r"9 texts were requested, but toy has 8 besides the demonstrations"):
        folding.read_by_a_fold(job, 9)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_gives_the_same_log_probabilities(job, tmp_path):
    (outcome,) = lm_eval_harness.run(job, TINY, str(save_tiny("llama", tmp_path / "tiny")))
    assert outcome.raw["same_tokens"]
    assert outcome.raw["same_predictions"]
    assert outcome.raw["largest_difference"] < 1e-4  # float32, two orders of summation
    assert len(outcome.ratios) == TINY.rounds


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_another_model_in_lm_eval_is_noticed(job, tmp_path):
    (outcome,) = lm_eval_harness.run(job, TINY, str(save_tiny("llama", tmp_path / "tiny", seed=1)))
    assert outcome.raw["largest_difference"] > 0.01


def test_without_lm_eval_its_line_says_what_to_install(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    (outcome,) = lm_eval_harness.run(job, TINY, "nowhere")
    assert outcome.ratio is None
    assert "dualform[bench]" in outcome.detail


def test_the_peak_of_memory_outlives_the_block_that_made_it():
    before = memory.peak_memory()
    block = torch.ones(32 * 2**18)  # 32 MiB, written to
    after = memory.peak_memory()
    del block
    # The kernel adds up each thread's pages now and then, so its count is off by some of them.
    assert before > 32
    assert memory.peak_memory() == pytest.approx(after, abs=2)
    assert after > before - 2


def test_the_table_shows_verdicts_and_names_in_brackets(capsys):
    from rich.console import Console

    outcomes = [
        Outcome("fast", (1.0, 1.2, 3.0), "at most", 1.5, "pip install 'dualform[bench]'"),
        Outcome("slow", (2.0,), "at least", 40.0, ""),
    ]
    Console(width=160).print(table(outcomes))
    printed = capsys.readouterr().out
    assert "1.20" in printed
    assert "1.00 to 3.00" in printed
    assert "≥ 40" in printed
    assert "yes" in printed
    assert "no" in printed
    assert "dualform[bench]" in printed


def test_this_process_does_not_count_among_the_others():
    if not Path("/proc/stat").exists():
        assert Others().share() is None
        return
    others = Others()
    share = others.share()
    assert share is not None
    assert 0 <= share <= 1
    # Of 10 seconds on each processor 6 were work, and 2 of those its own.
    others._start = (0.0, 0.0, 0.0)
    others._now = lambda: (10.0, 6.0 * (os.cpu_count() or 1), 2.0 * (os.cpu_count() or 1))  # type: ignore[method-assign]
    assert others.share() == pytest.approx(0.4)


@pytest.fixture
def busy(monkeypatch):
    """What others do while we look, one share a look; the clock of `Patience` ticks a second a look."""

    def others(*shares: float) -> None:
        left = iter(shares)
        monkeypatch.setattr(Others, "share", lambda self: next(left))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    return others


def test_a_disturbed_measurement_is_made_again_and_a_calm_one_stands_whatever_it_is(busy):
    values = iter([1, 5, 3])
    #    calm before, disturbed within; disturbed before, then calm; calm within
    busy(0.0, 0.5, 0.5, 0.0, 0.01)
    patience = Patience(60)
    assert patience.undisturbed(lambda: next(values)) == 5
    assert patience.others == 0.01


def test_without_patience_the_first_measurement_stands(busy):
    busy(0.9, 0.9)
    values = iter([1, 5])
    assert Patience(0).undisturbed(lambda: next(values)) == 1


def test_patience_ends_on_a_machine_that_is_never_quiet(busy):
    busy(*[0.9] * 10)
    assert Patience(3).undisturbed(lambda: "measured") == "measured"


def test_an_unknown_benchmark_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["engin"])
    assert stopped.value.code == 2
    assert "unknown benchmark engin" in capsys.readouterr().err


def test_too_many_queries_are_refused_by_number(job):
    with pytest.raises(ValueError, match=r"9 queries were requested, but toy has 8"):
        make_job(job.lm, job.task, TINY.k, 9)


def test_the_full_size_is_the_stated_job():
    assert (FULL.k, FULL.n_queries, FULL.memory_queries) == (32, 200, (100, 400, 1600))
    assert QUICK.n_queries < FULL.n_queries
    assert set(BENCHMARKS) == {
        "engine",
        "lm_eval_harness",
        "finetuning",
        "memory",
        "controls",
        "folding",
        "momentum",
        "fast_weights",
        "plan",
        "sweep",
        "pages",
    }


@pytest.mark.real
def test_a_quick_run_of_the_engine_prints_a_table_and_keeps_the_raw_numbers(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(
        ["--quick", "engine", "--threads", str(threads), "--json", str(tmp_path / "numbers.json")],
        size=Size(k=2, n_queries=3, rounds=1, gemm_seconds=0.001),
    )
    assert "engine: time over FLOP bound" in capsys.readouterr().out
    report = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert report["machine"]["threads"] == threads
    assert set(report["benchmarks"]["engine"]) == {"seconds", "outcomes"}
    assert report["job"]["queries"] == 3
    assert report["job"]["model"] == "smollm2-135m"
    over_bound, over_plain = report["benchmarks"]["engine"]["outcomes"]
    assert (over_bound["target"], over_plain["target"]) == (1.35, 1.15)
    assert over_bound["ratio"] > 0
    assert isinstance(over_bound["met"], bool)

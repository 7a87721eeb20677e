import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualform.cli.plan import format_seconds, sentences
from dualform.models.cost import machine
from dualform.studies.plan import Cost, GroupPlan, Plan, PricedPart, plan_sweep
from tests.cli.conftest import QUICK, SMALL, Done
from tests.fixed_machine import GIB, fixed_machine

Command = Callable[..., Done]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of all calls of `this_machine`, which is replaced because measuring takes seconds."""
    recorded: list[dict[str, Any]] = []

    def this_machine(device: str = "cpu", dtype: str = "float32", **more: Any) -> machine.Machine:
        recorded.append({"device": device, "dtype": dtype, **more})
        return fixed_machine(device=device, dtype=dtype)

    monkeypatch.setattr(machine, "this_machine", this_machine)
    return recorded


def printed_plan(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    recorded: dict[str, Any] = json.loads(done.out)
    return recorded


def test_a_plan_shows_parts_memory_and_time_and_runs_nothing(dualform: Command, requests: list[dict[str, Any]]) -> None:
    # Other tests leave runs in the folder that they share.
    before = sorted(Path().rglob("*"))
    done = dualform("plan", "compare", "gpt2", "tickets.csv", *QUICK)

    assert done.code == 0, done.err
    assert done.message.endswith("Nothing was run.")
    output = " ".join(done.out.split())
    for words in ("compare gpt2 tickets", "tokens", "TFLOP", "packed", "control random", "weights", "GiB of memory."):
        assert words in output
    assert re.search(r"It will take about [\d.]+ s, with 1 thread on cpu", output)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "gpt2", "tickets.csv", *QUICK],
        ["stability", "gpt2", "--task", "tickets.csv", *SMALL, "--seeds", "2", "--orders", "2", "--ft-seeds", "0"],
        ["selection", "gpt2", "tickets.csv", *SMALL, "--untouched-limit", "6", "--seeds", "1", "--rates", "1e-2"],
        ["fold", "gpt2", "tickets.csv", *SMALL[:6], "--limit", "8", "--fold-texts", "12", "--plain", "none"],
        ["folding", "gpt2", "tickets.csv", *SMALL, "--axes", "k", "--ks", "2", "--fold-texts", "12", "--seeds", "1"],
    ],
    ids=lambda command: command[0],
)
def test_every_study_can_be_planned(command: list[str], dualform: Command, requests: list[dict[str, Any]]) -> None:
    plan = printed_plan(dualform("plan", *command, "--json"))
    assert plan["command"].startswith(command[0])
    assert plan["tokens_forwards"] > 0
    assert plan["flops"] > 0
    assert plan["seconds"] > 0
    assert plan["peak_bytes"] > GIB // 2
    assert plan["fit"]["fits"]


def test_options_reach_the_plan(dualform: Command, requests: list[dict[str, Any]]) -> None:
    few = printed_plan(dualform("plan", "compare", "gpt2", "tickets.csv", *QUICK, "--json"))
    more = printed_plan(dualform("plan", "compare", "gpt2", "tickets.csv", *QUICK, "--dtype", "bfloat16", "--json"))
    assert more["memory"]["weights"] * 2 == few["memory"]["weights"]
    assert [each["dtype"] for each in requests] == ["float32", "bfloat16"]
    dualform("plan", "compare", "gpt2", "tickets.csv", *QUICK, "--measure")
    assert [each["measure"] for each in requests] == [False, False, True]


def test_mistakes_are_reported_as_by_the_command_itself(dualform: Command, requests: list[dict[str, Any]]) -> None:
    for mistake in (
        ["compare", "gpt2", "missing.csv"],
        ["compare", "./missing", "tickets.csv", *SMALL],
        ["compare", "gpt2", "tickets.csv", *SMALL, "--learners", "zsl,zsl"],
        ["compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "3..1"],
        ["compare", "gpt2", "tickets.csv", "--text", "nothing", "--label", "topic"],
    ):
        planned, run = dualform("plan", *mistake), dualform(*mistake)
        assert planned.code == run.code == 2, mistake
        assert planned.message == run.message


def test_a_model_that_does_not_fit_is_no_mistake_and_alternatives_are_listed(
    dualform: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda *given, **more: fixed_machine(ram=GIB // 2))
    done = dualform("plan", "compare", "gpt2", "tickets.csv", *QUICK)
    assert done.code == 0
    output = " ".join(done.out.split())
    assert "It does not fit: 0.5 GiB are needed, but only 0.5 GiB of memory are available." in output
    assert "--dtype bfloat16: 0.5 GiB, would not fit either" in output
    assert "Use a smaller model, or a machine with more memory." in output


def test_training_with_momentum_can_be_planned(
    dualform: Command, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    text = tmp_path / "prose.txt"
    text.write_text("a warm and funny film about a cold and tedious plot\n" * 400, encoding="utf-8")
    settings = ["--set", "tokens=4096", "--set", "vocab_size=300"]
    plan = printed_plan(dualform("plan", "momentum", "train", text, *settings, "--json"))
    (training,) = (part for part in plan["parts"] if part["name"] == "training: vanilla")
    assert training["tokens_forwards"] == training["tokens_backwards"] == 4096
    slower = printed_plan(dualform("plan", "momentum", "train", text, *settings, "--eta", "0.3", "--json"))
    assert slower["flops"] > plan["flops"]
    arms = ["--validation", text, "--test", text, "--etas", "0.3", "--controls", "none", "--seeds", "1..2"]
    assert "Training a tokenizer" in dualform("plan", "momentum", "train", text, *settings).err
    done = dualform("plan", "momentum", "compare", text, *arms, *settings)
    assert "Training a tokenizer" in done.err
    assert done.message.endswith("Nothing was run except samples for the estimates.")
    both = printed_plan(dualform("plan", "momentum", "compare", text, *arms, *settings, "--json"))
    assert {part["name"] for part in both["parts"]} >= {"training: vanilla", "training: momentum", "validation"}
    trained = sum(part["tokens_backwards"] for part in both["parts"] if part["name"].startswith("training"))
    assert trained == 2 * 2 * 4096


def test_workers_of_a_sweep_that_do_not_fit_together_are_reported() -> None:
    alone = Plan("compare m t", (PricedPart("ft", Cost(seconds=9.0)),), {"weights": 10 * GIB})
    plan = plan_sweep("s", [GroupPlan("m-t", "m", alone, 4)], workers=2, machine=fixed_machine())
    assert sentences(plan) == [
        "It will take about 9.0 s, with 1 thread on cpu, and 20.0 of 16.0 GiB of memory.",
        "It does not fit: 20.0 GiB are needed, but only 16.0 GiB of memory are available.",
        "  fewer workers: --workers 1: 10.0 GiB, would fit",
    ]


def test_the_reason_for_a_range_is_given_if_there_is_one() -> None:
    parts = (PricedPart("ft", Cost(seconds=40.0), Cost(seconds=20.0), None, ("a search stops early",)),)
    assert sentences(Plan("s", parts)) == ["It will take about 40 s (20 s to 40 s: a search stops early)."]
    assert sentences(Plan("s", (replace(parts[0], why=()),))) == ["It will take about 40 s (20 s to 40 s)."]


def test_help_speaks_of_the_plan(dualform: Command) -> None:
    done = dualform("plan", "compare", "--help")
    output = " ".join(done.out.split())
    assert "Estimate the cost of `dualform compare` with these options: adapt a model" in output
    assert "dualform plan compare smollm2-135m reviews" in output
    assert "--measure" in output
    assert "--overwrite" not in output
    assert "--to" not in " ".join(dualform("plan", "fold", "--help").out.split()).replace("--tolerance", "")


def test_times_are_spoken_at_a_glance() -> None:
    times = [0.04, 9.9, 12, 89, 130, 700, 5399, 5401, 200_000, 1e9]
    assert [format_seconds(seconds) for seconds in times] == [
        "0.0 s", "9.9 s", "12 s", "89 s", "2.2 min", "12 min", "90 min", "1.5 h", "2.3 days", "11,574.1 days",
    ]  # fmt: skip


def test_a_sweep_is_the_sum_of_its_groups(dualform: Command, requests: list[dict[str, Any]], tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    settings = "text: body, label: topic, limit: 8, selection_limit: 6, learners: [zsl, icl], controls: []"
    grid.write_text(
        f"models: [gpt2]\ntasks: [tickets.csv]\nseeds: 1..2\nsettings: {{{settings}}}\ngrid: {{k: [2, 4]}}\n",
        encoding="utf-8",
    )
    plan = printed_plan(dualform("plan", "sweep", grid, "--store", tmp_path / "store", "--workers", "1", "--json"))
    alone = [
        printed_plan(dualform("plan", "compare", "gpt2", "tickets.csv", *SMALL[:4], "-k", k, "--limit", "8",
                      "--selection-limit", "6", "--learners", "zsl,icl", "--seeds", "1..2", "--controls", "none",
                      "--json"))
        for k in ("2", "4")
    ]  # fmt: skip
    assert plan["tokens_forwards"] == sum(each["tokens_forwards"] for each in alone)
    assert plan["seconds"] < sum(each["seconds"] for each in alone)
    names = [part["name"] for part in plan["parts"]][1:]
    assert names == ["gpt2-tickets-k-2 (2 of 2 cells)", "gpt2-tickets-k-4 (2 of 2 cells)"]
    assert "estimated for the local engine on this machine" in plan["notes"]
    # To look for finished cells is no reason to make a store.
    assert not (tmp_path / "store").exists()

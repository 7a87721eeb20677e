"""Commands whose every number is kept: small inputs, all learners, controls and studies.

They go in by the names that users type and come out as the files that users read, so that the code between may take any
shape.
"""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from typer.testing import CliRunner

from dualform.cli.main import app
from tests.fixed_machine import fixed_machine
from tests.lab.setting import write_text
from tests.studies.momentum_setting import RECIPE, write_task
from tests.studies.small import write_choices, write_csv
from tests.tiny import save_tiny

TIMES = {
    *("seconds", "adapt_seconds", "query_seconds", "search_seconds", "step_ratio", "seconds_range"),
    *("environment", "machine", "inputs"),
}
"""Fields that may differ between two equal runs, and digests of temporary files."""

EXACT, TRAINED, REAL = 1e-7, 2e-3, 1e-2
"""Tolerances: in float64 machines differ in the last digits, which finetuning magnifies; in float32 from the sixth on,
which matters for models trained from nothing, and for the differences of nearby vectors in a model of 30 layers."""

TABLE = "tickets.csv --text body --label topic"
SMALL = "-k 4 --limit 8 --selection-limit 6 --resamples 50 --dtype float64"
FOLD = "--fold-texts 12 --plain prose.txt"
COMPARE = f"{TABLE} {SMALL} {FOLD} --seeds 1,2"
LEARNERS = "--learners zsl,icl,ft,lora,probe,fold --rates 1e-3,1e-2 --lora-recipe one-pass --lora-rates 1e-3"
REGRESS = "--seeds 1,2 --dimension 3 --points 5 --out out"
TEXTS = "train.txt --validation validation.txt --test test.txt --test-tokens 400"
TRAINING = f"{TEXTS} --etas 0.3 " + " ".join(f"--set {name}={value}" for name, value in RECIPE.items())


@dataclass(frozen=True)
class Case:
    """A command and the file that it leaves."""

    command: str
    """Behind `dualform`."""
    file: str = "out/result.json"
    """What it leaves; standard output where empty."""
    tolerance: float = EXACT
    """Relative and absolute, of every number that is not whole."""
    real: bool = False
    """Whether it needs the packaged model and task, which the package index serves on first use."""


CASES: dict[str, Case] = {
    "compare": Case(f"compare gpt2 {COMPARE} {LEARNERS} --controls all --out out"),
    "compare_each": Case(
        f"compare llama {COMPARE} --learners zsl,icl,ft --rates 1e-3,1e-2 --select both --probe label0 --loss-on label "
        "--shuffled --out out"
    ),
    "compare_dai2023": Case(
        f"compare gpt2 {TABLE} {SMALL} --preset dai2023 --seeds 1,2 --rates 1e-2 --learners zsl,icl,ft --out out"
    ),
    "compare_choices": Case(
        f"compare gpt2 choices.jsonl --text goal --choices choices --label label {SMALL} --seeds 1,2 "
        "--learners zsl,icl,ft --rates 1e-2 --out out"
    ),
    "compare_real": Case(
        "compare smollm2-135m reviews -k 4 --limit 4 --selection-limit 4 --seeds 1 --learners zsl,icl,ft --rates 1e-3 "
        "--rounding none --controls random,position_shift --resamples 50 --device cpu --out out",
        tolerance=REAL,
        real=True,
    ),
    "stability": Case(
        f"stability gpt2 llama --task {TABLE} {SMALL} --seeds 1..3 --orders 3 --ft-seeds 2 --ft-orders 2 "
        "--label-seeds 2 --rates 1e-3,1e-2 --out out"
    ),
    "selection": Case(
        f"selection gpt2 {TABLE} {SMALL} --seeds 3,1,2 --rates 1e-3,1e-2,1e-1 --orders 2 --untouched-limit 10 "
        "--similarity-limit 6 --out out"
    ),
    "folding": Case(
        f"folding llama {TABLE} {SMALL} {FOLD} --seeds 1,2 --axes method,k,texts,strength,layers "
        "--methods ridge,thought-vector,rank-one --ks 2 --text-counts 8 --perplexity prose.txt --transfer other.csv "
        "--ft --rates 1e-2 --out out"
    ),
    "fold": Case(f"fold llama {TABLE} {FOLD} -k 4 --limit 8 --resamples 50 --dtype float64 --to out"),
    "regress_constructed": Case(f"regress --study constructed {REGRESS} --steps 0.01", tolerance=TRAINED),
    "regress_trained": Case(f"regress --study trained {REGRESS} --steps 0.002", tolerance=TRAINED),
    "regress_rest": Case(
        "regress --study phases,layers,shift --seeds 1 --dimension 3 --points 5 --out out --steps 0.001",
        tolerance=TRAINED,
    ),
    "momentum": Case(
        f"momentum compare {TRAINING} --seeds 1,2 --controls convolution,learned,heavy-ball --resamples 50 "
        "--device cpu --tasks letters.yaml -k 1 --limit 6 --pretrained llama --pretrained-etas 0.3 "
        "--pretrained-steps 2 --out out",
        tolerance=TRAINED,
    ),
    "momentum_regress": Case(
        f"momentum compare {TRAINING} --seeds 1 --controls convolution --device cpu --regress --regression-steps 4 "
        "--out out",
        tolerance=TRAINED,
    ),
    "sweep": Case("sweep grid.yaml --workers 1 --out out --store store", "out/sweep.json"),
    **{
        f"plan_{words.split()[0]}": Case(f"plan {words} --json", "")
        for words in (
            f"compare gpt2 {COMPARE} {LEARNERS} --controls all",
            f"stability gpt2 --task {TABLE} {SMALL} --seeds 1..3 --orders 3",
            f"selection gpt2 {TABLE} {SMALL} --seeds 3,1,2",
            f"folding llama {TABLE} {SMALL} --seeds 1,2 --plain prose.txt",
            f"fold llama {TABLE} -k 4 --limit 8 --plain prose.txt",
            f"momentum compare {TRAINING} --seeds 1,2",
        )
    },
}

GRID = """
name: grid
models: [gpt2, llama]
tasks: [{task: tickets.csv, text: body, label: topic}]
seeds: 1..2
settings: {limit: 8, selection_limit: 6, resamples: 50, learners: [zsl, icl, ft], rates: [1e-2], controls: [random],
           dtype: float64}
grid: {k: [2, 4]}
"""


def make_inputs(folder: Path) -> None:
    """Write models, tables and texts that the commands name."""
    for family in ("gpt2", "llama"):
        save_tiny(family, folder / family)
    write_csv(folder / "tickets.csv")
    write_csv(folder / "other.csv", "text", "label")
    write_choices(folder / "choices.jsonl")
    write_task(folder)
    for seed, (name, n) in enumerate({"train": 300, "validation": 60, "test": 60, "prose": 12}.items()):
        write_text(folder / f"{name}.txt", n, seed)
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """What a command leaves, run in `folder`, which is the current one."""
    torch.set_num_threads(1)
    shutil.rmtree(folder / "out", ignore_errors=True)
    with patch("dualform.models.cost.machine.this_machine", lambda *given, **more: fixed_machine()):
        done = CliRunner().invoke(app, shlex.split(case.command))
    if done.exit_code:
        raise AssertionError(f"dualform {case.command}: exit {done.exit_code}\n{done.output}") from done.exception
    text = (folder / case.file).read_text(encoding="utf-8") if case.file else done.stdout
    found: dict[str, Any] = json.loads(text)
    return found


def numbers_in(
    value: Any, path: str = "", keep: Callable[[str], bool] = lambda name: name not in TIMES
) -> dict[str, Any]:
    """Every number, truth value and null below `value`, by its path; words are left to the tests of words."""
    if isinstance(value, dict):
        parts = [(str(name), part) for name, part in value.items() if keep(str(name))]
    elif isinstance(value, list):
        parts = [(str(place), part) for place, part in enumerate(value)]
    else:
        return {} if isinstance(value, str) else {path: value}
    return {name: number for key, part in parts for name, number in numbers_in(part, f"{path}/{key}", keep).items()}

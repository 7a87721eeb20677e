"""`python -m benchmarks [NAME ...]`: measure, print a table, keep the raw numbers."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import (
    controls,
    engine,
    fast_weights,
    finetuning,
    folding,
    lm_eval_harness,
    memory,
    momentum,
    pages,
    plan,
    sweep,
)
from benchmarks.common import CALM, FULL, MODEL, QUICK, Job, Outcome, Size, loaded, make_job
from dualform._version import __version__
from dualform.files import atomic_write
from dualform.models.loading.packaged import packaged_model


def _job(size: Size) -> Job:
    return _example_job(size.k, size.n_queries)


@cache
def _example_job(k: int, n_queries: int) -> Job:
    return make_job(*loaded(), k, n_queries)


BENCHMARKS: dict[str, Callable[[Size], list[Outcome]]] = {
    "engine": lambda size: _packed(engine.run, size),
    "lm_eval_harness": lambda size: _packed(lm_eval_harness.run, size, str(packaged_model(MODEL))),
    "finetuning": lambda size: _packed(finetuning.run, size),
    "memory": memory.run,
    "controls": lambda size: controls.run(_job(size), size),
    "folding": lambda size: [*_packed(folding.run, size), *folding.run_memory(size)],
    "momentum": lambda size: momentum.run(_job(size), size),
    "fast_weights": fast_weights.run,
    "plan": plan.run,
    "pages": pages.run,
    "sweep": sweep.run,
}


def _packed(run: Callable[..., list[Outcome]], size: Size, *rest: str) -> list[Outcome]:
    """Run one as a comparison runs: with packed products. The bound stays that of torch's plain ones."""
    job = _job(size)
    with job.lm.packed_products():
        return run(job, size, *rest)


def main(arguments: Sequence[str] | None = None, size: Size | None = None) -> None:
    """Run the benchmarks named, all by default.

    Args:
        arguments: The command line's, without the program's name.
        size: How much, in place of what `--quick` or its absence says.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few queries and rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw numbers")
    parser.add_argument("--threads", type=int, default=_cores(), help="of torch; as many as cores by default")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait for other processes to leave the processors alone, at most so long in each benchmark; default 0",
    )
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    size = replace(size or (QUICK if given.quick else FULL), patience=given.patience)
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    report: dict[str, Any] = {"dualform": __version__, "machine": machine(), "size": asdict(size), "benchmarks": {}}
    outcomes: list[Outcome] = []
    try:
        for name in given.names or BENCHMARKS:
            Console(stderr=True).print(f"{name} ...", style="dim")
            start = time.perf_counter()
            result = BENCHMARKS[name](size)
            outcomes += result
            report["benchmarks"][name] = {
                "seconds": time.perf_counter() - start,
                "outcomes": [{**asdict(outcome), "ratio": outcome.ratio, "met": outcome.met} for outcome in result],
            }
    finally:
        torch.set_num_threads(threads)
    if _example_job.cache_info().currsize:
        report["job"] = _job(size).facts
    console = Console()
    # Into a file or a pipe, lines may be long; a terminal says itself how long.
    console = console if console.is_terminal else Console(width=180)
    console.print(table(outcomes))
    if given.quick:
        console.print("The targets are meant for the full job, not for --quick.", style="dim")
    disturbed = max((outcome.raw.get("others", 0.0) for outcome in outcomes), default=0.0)
    if disturbed > CALM:
        console.print(
            f"Other processes had {disturbed:.0%} of the processors: ratios are unsteady. Try --patience 1000."
        )
    if given.json:
        with atomic_write(given.json) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes for reading: the median round, and the range of rounds beside it."""
    drawn = Table(title=f"dualform {__version__}: median round of each ratio")
    for heading in ("benchmark", "ratio", "range", "target", "met", "detail"):
        drawn.add_column(heading, justify="right" if heading in ("ratio", "range", "target") else "left")
    for outcome in outcomes:
        measured = "" if outcome.ratio is None else f"{outcome.ratio:.2f}"
        spread = f"{min(outcome.ratios):.2f} to {max(outcome.ratios):.2f}" if len(outcome.ratios) > 1 else ""
        target = "" if outcome.target is None else f"{'≤' if outcome.wanted == 'at most' else '≥'} {outcome.target:g}"
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[outcome.met]
        drawn.add_row(outcome.name, measured, spread, target, met, escape(outcome.detail))
    return drawn


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()

"""How long a sweep takes beside its cells run one by one by hand, each as a command of its own."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import MODEL, Outcome, Size

TASKS = ("reviews", "tweets")
SEEDS = (1, 2, 3)
KS = (2, 4, 8, 16)
SETTINGS: dict[str, Any] = {
    "limit": 12,
    "selection_limit": 8,
    "learners": ["zsl", "icl", "ft"],
    "rates": [1e-3],
    "controls": [],
    "explore": 0,
}
BY_HAND = 6
"""Cells of the 24 that are run by hand, evenly spread; the rest is estimated from these."""
_START = "from dualform.cli.main import main; main()"


def run(size: Size) -> list[Outcome]:
    """A grid of 24 cells on two workers over the same cells by hand, each with all cores.

    Args:
        size: With fewer rounds than two, six cells, two of them by hand.
    """
    ks = KS if size.rounds > 1 else KS[:1]
    cells = [(task, k, seed) for task in TASKS for k in ks for seed in SEEDS]
    by_hand = cells[:: max(1, len(cells) // (BY_HAND if size.rounds > 1 else 2))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        grid = {"models": [MODEL], "tasks": list(TASKS), "seeds": list(SEEDS), "settings": SETTINGS, "grid": {"k": ks}}
        (folder / "grid.json").write_text(json.dumps(grid), encoding="utf-8")
        # YAML reads JSON.
        (folder / "grid.json").rename(folder / "grid.yaml")
        alone = [_seconds(_command(task, k, seed), folder) for task, k, seed in by_hand]
        workers = ["--workers", "2", "--out", "swept", "--store", "store"]
        swept = _seconds(["sweep", "grid.yaml", *workers], folder)
    together = sum(alone) / len(alone) * len(cells)
    detail = f"{len(cells)} cells: {swept:.0f} s; by hand {together:.0f} s, from {len(alone)} of them"
    raw = {"sweep": swept, "by_hand": alone, "cells": len(cells)}
    return [Outcome("sweep of 24 cells over one by one by hand", (swept / together,), "at most", 0.6, detail, raw)]


def _command(task: str, k: int, seed: int) -> list[str]:
    return [
        *("compare", MODEL, task, "-k", str(k), "--seed", str(seed), "--out", f"{task}-{k}-{seed}"),
        *("--limit", str(SETTINGS["limit"]), "--selection-limit", str(SETTINGS["selection_limit"])),
        *("--learners", ",".join(SETTINGS["learners"]), "--rates", "1e-3", "--controls", "none", "--explore", "0"),
    ]


def _seconds(arguments: list[str], folder: Path) -> float:
    """Wall-clock seconds of a command in a process of its own.

    Raises:
        CalledProcessError: It failed.
    """
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _START, *arguments], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start

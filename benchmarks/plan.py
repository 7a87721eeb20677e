"""How far a plan is from what the command then takes: processor time and peak memory, command by command.

Each command runs in a process of its own, with one thread, so that its processor time is what it would take on a quiet
machine; its plan is made just before, from rates measured just before.
"""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Outcome, Size

_FEW = "--limit 24 --selection-limit 32 --seeds 1 -k 16"
COMMANDS: dict[str, str] = {
    "compare": f"compare smollm2-135m reviews {_FEW} --learners zsl,icl,ft --rates 1e-3,3e-3",
    "compare, another model": f"compare gemma3-270m reviews {_FEW} --learners zsl,icl,ft --controls none --rates 1e-3",
    "compare, all learners": f"compare smollm2-135m reviews {_FEW} --controls none --rates 1e-3 --lora-rates 3e-4",
    "stability": "stability smollm2-135m --task reviews --seeds 1..2 --orders 2 --ft-seeds 1 --ft-orders 2"
    " --label-seeds 1 --limit 24 --selection-limit 32 -k 16 --rates 1e-3,3e-3",
    "selection": "selection smollm2-135m reviews --seeds 1 --limit 24 --selection-limit 24 --untouched-limit 24 -k 8"
    " --orders 2 --rates 1e-3 --similarity-limit 16",
    "fold": "fold smollm2-135m reviews --limit 24 -k 16 --fold-texts 64 --plain none --to {folder}/folded",
    "momentum train": "momentum train {folder}/text.txt --to {folder}/trained",
    "regress": "regress --study constructed --seeds 1..2 --steps 0.2",
}
"""What is measured. `{folder}` is a temporary one, which holds `text.txt`."""
_WITH_OUT = ("compare", "stability", "selection", "regress")
# At its end the process writes down how much memory it took; what the system says of a child begins with its parent's.
_START = """
import atexit, os, pathlib, sys
from dualform.cli.main import main
from dualform.models.cost.machine import peak_memory
atexit.register(lambda: pathlib.Path(os.environ["PEAK"]).write_text(str(peak_memory())))
sys.argv[0] = "dualform"
main()
"""
_PLAN = "import json, sys; from dualform.cli.plan import app; sys.argv[0] = 'dualform plan'; app()"  # reads sys.argv


@dataclass(frozen=True)
class Took:
    """What a process took."""

    seconds: float
    """Of processor time."""
    peak: int
    """Bytes."""


def run(size: Size) -> list[Outcome]:
    """All commands once; with fewer rounds than two, the first and the last."""
    names = list(COMMANDS) if size.rounds > 2 else [*COMMANDS][:1] + [*COMMANDS][-2:]
    return [outcome for name in names for outcome in measured(name)]


def measured(name: str) -> list[Outcome]:
    """One command: predicted over measured seconds, and bytes."""
    import json

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "text.txt").write_text(prose(), encoding="utf-8")
        command = shlex.split(COMMANDS[name].format(folder=folder))
        arguments = [word for word in command if word not in ("--to", f"{folder}/folded", f"{folder}/trained")]
        plan_process = subprocess.run(
            [sys.executable, "-c", _PLAN, *arguments, "--measure", "--json"],
            capture_output=True,
            text=True,
            check=True,
            env=_alone(),
        )
        plan = json.loads(plan_process.stdout)
        if command[0] in _WITH_OUT:
            command += ["--out", str(folder / "run")]
        took = timed([sys.executable, "-c", _START, *command], folder / "log")
    low, high = plan["seconds_range"]
    nearest = min(max(took.seconds, low), high)
    detail = f"{plan['seconds']:.0f} s ({low:.0f} to {high:.0f}) planned, {took.seconds:.0f} s of processor time taken"
    memory = f"{plan['peak_bytes'] / 2**30:.2f} GiB planned, {took.peak / 2**30:.2f} GiB taken"
    raw = {"plan": plan, "seconds": took.seconds, "peak": took.peak}
    return [
        Outcome(f"plan of {name}: time", (plan["seconds"] / took.seconds,), "at most", 1.3, detail, raw),
        Outcome(f"plan of {name}: time, off by", (_off(nearest, took.seconds),), "at most", 1.3, "beyond its range"),
        Outcome(f"plan of {name}: memory", (plan["peak_bytes"] / took.peak,), "at most", 1.3, memory),
    ]


def timed(command: list[str], log: Path) -> Took:
    """Run a command to its end and say what it took, its children included.

    Raises:
        RuntimeError: It failed; the message ends with what it said last.
    """
    with log.open("w", encoding="utf-8") as out:
        peak = log.with_suffix(".peak")
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**_alone(), "PEAK": str(peak)})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command[3:])} failed: {log.read_text(encoding='utf-8')[-2000:]}")
    return Took(usage.ru_utime + usage.ru_stime, int(peak.read_text(encoding="utf-8")))


def prose() -> str:
    """Half a megabyte of sentences from a fixed grammar, hundreds of words in them."""
    import random

    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubdfgklmnprst", k=draw.randint(2, 9))) for _ in range(3000)]
    weights = [1 / (place + 3) for place in range(len(words))]
    lines = [" ".join(draw.choices(words, weights, k=draw.randint(5, 25))) + "." for _ in range(6000)]
    return "\n".join(lines) + "\n"


def _off(a: float, b: float) -> float:
    return max(a / b, b / a)


def _alone() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    """`python -m benchmarks.plan [NAME ...]`: print the ratio of each command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(COMMANDS)}; all by default")
    for name in parser.parse_args().names or COMMANDS:
        with contextlib.suppress(BrokenPipeError):
            try:
                for outcome in measured(name):
                    print(f"{outcome.name:45s} {outcome.ratio:.2f}  {outcome.detail}", flush=True)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                print(f"{name}: {getattr(error, 'stderr', None) or error}", flush=True)


if __name__ == "__main__":
    main()

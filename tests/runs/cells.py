"""Cells for tests of the store: small cells with a content that depends on their number, and further processes."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

from dualform.runs.cell_store import CellKey

ROOT = Path(__file__).parents[2]


def key(number: int = 1) -> CellKey:
    return CellKey({"settings": {"k": 4, "seed": number, "rates": [1e-3, 3e-3]}, "dualform": "0", "data": "abc"})


def files(number: int = 1, size: int = 100) -> dict[str, bytes]:
    """Two files, the second of `size` bytes."""
    block = hashlib.sha256(str(number).encode()).digest()
    return {"outcome.json": f'{{"seed": {number}}}'.encode(), "answers.bin": (block * (size // 32 + 1))[:size]}


def facts(number: int = 1) -> dict[str, object]:
    return {"study": "compare", "model": "tiny", "task": "toy", "seed": number, "accuracy.icl": 0.5}


def in_another_process(code: str, *arguments: object) -> list[str]:
    """The lines that a script prints in a new process, which has one thread and may fork."""
    script = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]

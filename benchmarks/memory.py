"""Peak memory of reading 100, 400 and 1,600 queries with everything recorded: a stream, so it must not grow.

Each number of queries has a process of its own, because a process never lowers its peak.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Outcome, Size, loaded, make_job
from benchmarks.engine import COMPARISON_RECORDS
from dualform.models.reading.capture import Trace

ROOT = Path(__file__).parent.parent
MIB = 2**20


def run(size: Size) -> list[Outcome]:
    """One process for each number of queries, one after the other."""
    peaks = [_in_process(size.k, n) for n in size.memory_queries]
    mib = [peak["peak"] for peak in peaks]
    slope = float(np.polyfit(size.memory_queries, mib, 1)[0])
    peaks_text = ", ".join(f"{n:,}: {peak:,.0f}" for n, peak in zip(size.memory_queries, mib, strict=True))
    first, last = size.memory_queries[0], size.memory_queries[-1]
    return [
        Outcome(
            f"memory: peak of {last:,} over {first:,} queries",
            (mib[-1] / mib[0],),
            "at most",
            1.05,
            f"MiB: {peaks_text}; {slope:+.3f} MiB a query, of which {peaks[-1]['recorded']:.2f} MiB are recorded",
            {"queries": size.memory_queries, "processes": peaks, "slope_mib_a_query": slope},
        )
    ]


def _in_process(k: int, n_queries: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", str(k), str(n_queries), str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


def measure(k: int, n_queries: int) -> dict[str, float]:
    """Read, record and drop; all in MiB.

    Returns:
        `loaded`, the peak before reading; `peak`, afterwards; `recorded`, the mean size of a query's records.
    """
    lm, task = loaded()
    job = make_job(lm, task, k, n_queries)
    before = peak_memory()
    recorded = 0
    for readings in lm.read(lm.encode(job.encoded.prefix), job.queries, COMPARISON_RECORDS):
        assert readings.trace is not None
        recorded += _size(readings.trace)
    return {"loaded": before, "peak": peak_memory(), "recorded": recorded / MIB / n_queries}


def _size(trace: Trace) -> int:
    return sum(value.nbytes for value in vars(trace).values() if value is not None)


def peak_memory() -> float:
    """Most resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux carries `ru_maxrss` over from the parent, across fork and exec; this line begins anew.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # not on Windows, where nothing here knows the peak

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))

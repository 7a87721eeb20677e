"""A fold against what it reads: time over one forward of its texts, and peak memory over that of reading them.

A fold reads its calibration texts with and without the demonstrations, and plain text; at each layer it computes
attention once more before the weights change. This should take no more time than three forwards, apart from solving for
the weights, which depends on the model's width and not on the texts, and is timed separately. Weights are never copied
and texts are read in groups, so memory should stay within twice that of reading.

Each peak has a process of its own, because a process never lowers its peak.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.common import Job, Outcome, Patience, Size, loaded, make_job, seconds
from benchmarks.memory import ROOT, peak_memory
from dualform.learners.adapted import Method
from dualform.learners.folded import FEWEST_TEXTS
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.layout import Query
from dualform.ops.ridge import NormalEquations
from dualform.studies.fold_settings import FoldSettings
from dualform.studies.folds import FoldTexts, fold_learner

TEXTS = 64
"""Most calibration texts, and passages of plain text."""


def run(job: Job, size: Size) -> list[Outcome]:
    """Time forwards and folds in turn, then measure both peaks."""
    given = read_by_a_fold(job, _n_texts(size))
    learner = _learner(job, given)
    patience = Patience(size.patience)
    _read_all(job, given)  # and so pay for what happens once

    def one_round() -> dict[str, float]:
        before = seconds(partial(_read_all, job, given))
        with solves_timed() as solves:
            fold = seconds(partial(learner.adapt, job.lm, job.encoded))
        after = seconds(partial(_read_all, job, given))
        return {"forward": min(before, after), "fold": fold, "solves": sum(solves)}

    # A fold takes a minute on a slow machine, so a few say enough.
    rounds = [patience.undisturbed(one_round) for _ in range(min(size.rounds, 3))]
    tokens = {
        "texts": sum(text.width() for text in given.texts),
        "plain": sum(map(len, given.plain)),
        "prefix": len(job.encoded.prefix),
    }
    raw = {"rounds": rounds, "tokens": tokens, "texts": len(given.texts), "others": patience.others}
    fastest = min(rounds, key=lambda r: r["fold"])
    return [
        Outcome(
            "folding: over one forward, solves apart",
            tuple((r["fold"] - r["solves"]) / r["forward"] for r in rounds),
            "at most",
            3.0,
            f"{len(given.texts)} texts of {tokens['texts']:,} tokens behind {tokens['prefix']:,}, {tokens['plain']:,} "
            f"plain: {fastest['fold']:.1f} s, solves {fastest['solves']:.1f} s, forward {fastest['forward']:.1f} s",
            raw,
        ),
        Outcome(
            "folding: solves over the whole",
            tuple(r["solves"] / r["fold"] for r in rounds),
            "at most",
            None,
            f"{len(job.lm.anatomy.layers)} layers, strength by cross-validation",
        ),
    ]


def run_memory(size: Size) -> list[Outcome]:
    """Peak of a fold over the peak of reading the same tokens."""
    peaks = {what: _in_process(what, size) for what in MEASURED}
    mib = {what: peak["peak"] for what, peak in peaks.items()}
    return [
        Outcome(
            "folding: peak memory over inference",
            (mib["fold"] / mib["forward"],),
            "at most",
            2.0,
            f"MiB: fold {mib['fold']:,.0f}, reading the same {mib['forward']:,.0f}, loaded "
            f"{peaks['fold']['loaded']:,.0f}; {_n_texts(size)} texts",
            {"processes": peaks},
        )
    ]


def read_by_a_fold(job: Job, n: int) -> FoldTexts:
    """The first rows of train that are no demonstrations, and as many texts of the queries without their template.

    Raises:
        ValueError: Train has fewer.
    """
    encoder = Encoder(job.lm, job.task)
    used_rows = set(job.demonstrations.rows)
    rows = [example for example in job.task.split("train") if example.row not in used_rows][:n]
    if len(rows) < n:
        raise ValueError(f"{n} texts were requested, but {job.task.name} has {len(rows)} besides the demonstrations.")
    plain = [" ".join(example.fields.values()) for example in job.examples[:n]]
    ids = [tuple(job.lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in plain]
    return FoldTexts(tuple(encoder.query(example) for example in rows), "train", tuple(ids), "queries")


@contextmanager
def solves_timed() -> Iterator[list[float]]:
    """Seconds of each solve for a layer's weights, collected while the block lasts."""
    solve_seconds: list[float] = []

    def timed(solve: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            fit = solve(*arguments)
            solve_seconds.append(time.perf_counter() - start)
            return fit

        return run

    with ExitStack() as stack:
        for name in ("solve", "cross_validated"):
            stack.enter_context(patch.object(NormalEquations, name, timed(getattr(NormalEquations, name))))
        yield solve_seconds


def _n_texts(size: Size) -> int:
    return min(TEXTS, max(FEWEST_TEXTS, size.n_queries))


def _learner(job: Job, given: FoldTexts) -> Method:
    """As `dualform fold` makes it by default."""
    return fold_learner(job.lm, job.opening, given, FoldSettings(), job.demonstrations.seed)


def _read_all(job: Job, given: FoldTexts) -> None:
    """One forward of all that a fold reads: texts behind the demonstrations, plain text behind the opening."""
    lm = job.lm
    plain = [Query(tokens, ()) for tokens in given.plain]
    for prefix, texts in ((job.encoded.prefix, given.texts), (job.opening, plain)):
        encoded = lm.encode(prefix)
        for indices in lm.groups(texts):
            lm.read_group(encoded, texts, indices)


MEASURED: dict[str, Callable[[Job, FoldTexts], object]] = {
    "forward": _read_all,
    "fold": lambda job, given: _learner(job, given).adapt(job.lm, job.encoded),
}


def _in_process(what: str, size: Size) -> dict[str, float]:
    numbers = (size.k, size.n_queries, _n_texts(size), torch.get_num_threads())
    command = [sys.executable, "-m", "benchmarks.folding", what, *map(str, numbers)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


def measure(what: str, k: int, n_queries: int, n_texts: int) -> dict[str, float]:
    """Read or fold once; `loaded`, the peak before, and `peak`, afterwards, in MiB."""
    job = make_job(*loaded(), k, n_queries)
    given = read_by_a_fold(job, n_texts)
    before = peak_memory()
    MEASURED[what](job, given)
    return {"loaded": before, "peak": peak_memory()}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]))))

"""What the default controls add to a comparison, from one run that takes the time of both parts.

Controls share the forwards of zero-shot, ICL and FT, are read on some of the queries only, and search for no learning
rate of their own.
"""

import time

from benchmarks.common import Job, Outcome, Patience, Size
from dualform.studies.comparison.config import comparison_config
from dualform.studies.comparison.run import compare


def run(job: Job, size: Size) -> list[Outcome]:
    """Time a comparison with its default settings, two seeds a round."""
    patience = Patience(size.patience)

    def one_run() -> dict[str, float]:
        config = comparison_config(
            job.lm.name,
            job.task.name,
            k=size.k,
            seeds=(1, 2),
            limit=size.n_queries,
            selection_limit=size.n_queries // 2,
        )
        start = time.perf_counter()
        outcomes = compare(config, lm=job.lm, task=job.task).records
        return {
            "seconds": time.perf_counter() - start,
            "control_seconds": sum(outcome.control_seconds for outcome in outcomes),
        }

    # A run takes minutes, so a few say enough.
    rounds = [patience.undisturbed(one_run) for _ in range(min(size.rounds, 2))]
    return [
        Outcome(
            "comparison with default controls over without",
            tuple(r["seconds"] / (r["seconds"] - r["control_seconds"]) for r in rounds),
            "at most",
            2.0,
            f"{size.n_queries} queries, 2 seeds, controls on up to 100 of the queries",
            {"rounds": rounds, "others": patience.others},
        )
    ]

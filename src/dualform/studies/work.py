"""How much work lies ahead in a comparison, in tokens read: what the progress bar counts."""

import random
from collections.abc import Collection

from dualform.learners.base import LEARNERS, Context, Learner
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.studies.bench import Bench, Drawn
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.controls import CONTROLS

TRAINING = 3.0
"""A training step reads its tokens forwards, and works twice as much backwards."""


def work_of_seed(bench: Bench[ComparisonConfig], drawn: Drawn, first: bool, known: Collection[str]) -> float:
    """Work of one seed.

    Args:
        bench: What is run.
        drawn: The seed's demonstrations.
        first: Its learning rates are still to be searched for.
        known: Learners whose learning rates the choice of the seed has found, so that they need no search.
    """
    config = bench.config
    searching = first or config.tune == "each"
    work = sum(
        work_of_adapting(bench, LEARNERS[name], drawn, searching and name not in known) for name in config.learners
    )
    widths = [query.width() for query in bench.queries]
    controls = sum(CONTROLS[name].readings(config) for name in config.controls)
    controls += config.repeats_finetuning and bool(drawn.encoded.sequences)
    # Stand-ins are adapted under a word on the bar and counted when they read.
    return work + sum(widths) * len(config.learners) + controls * sum(widths[i] for i in controlled_queries(bench))


def controlled_queries(bench: Bench[ComparisonConfig]) -> list[int]:
    """The queries on which controls, and finetuning repeated, are read, in order."""
    config, n = bench.config, len(bench.queries)
    limit = n if config.control_limit is None else min(n, config.control_limit)
    wanted = bool(config.controls) or config.repeats_finetuning
    return sorted(random.Random(1).sample(range(n), limit)) if wanted else []


def work_of_adapting(bench: Bench[ComparisonConfig], learner: Learner, drawn: Drawn, searching: bool) -> float:
    """Work of adapting one learner once; a search counts every rate."""
    if learner.grid is None:
        return learner.work(Context(bench, drawn))
    if searching:
        return work_of_search(bench, bench.config.grid_of(learner), drawn.encoded)
    return len(drawn.encoded.prefix) * TRAINING


def work_of_search(bench: Bench[ComparisonConfig], rates: tuple[float, ...], encoded: EncodedDemonstrations) -> float:
    """Work of a search over all of a grid."""
    return len(rates) * (len(encoded.prefix) * TRAINING + sum(query.width() for query in bench.selection_queries))

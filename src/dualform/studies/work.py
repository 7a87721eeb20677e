"""How much work lies ahead in a comparison, in tokens read: what the progress bar counts."""

import random

from dualform.models.encoding import EncodedDemonstrations
from dualform.studies.bench import Bench
from dualform.studies.comparison.config import ComparisonConfig

TRAINING = 3.0
"""A training step reads its tokens forwards, and works twice as much backwards."""


def work_of_seed(bench: Bench[ComparisonConfig], encoded: EncodedDemonstrations, first: bool, ft_known: bool) -> float:
    """Work of one seed.

    Args:
        bench: What is run.
        encoded: The seed's demonstrations.
        first: Its learning rates are still to be searched for.
        ft_known: All but FT's, which the choice of the seed has found.
    """
    config = bench.config
    searching = first or config.tune == "each"
    work = sum(
        work_of_adapting(bench, name, encoded, searching and not (name == "ft" and ft_known))
        for name in config.learners
    )
    widths = [query.width() for query in bench.queries]
    controls = len(config.controls) + (len(config.rates) - 1 if "rates" in config.controls else 0)
    controls += config.repeats_finetuning and bool(encoded.sequences)
    # Stand-ins are adapted under a word on the bar and counted when they read.
    return work + sum(widths) * len(config.learners) + controls * sum(widths[i] for i in controlled_queries(bench))


def controlled_queries(bench: Bench[ComparisonConfig]) -> list[int]:
    """The queries on which controls, and finetuning repeated, are read, in order."""
    config, n = bench.config, len(bench.queries)
    limit = n if config.control_limit is None else min(n, config.control_limit)
    wanted = bool(config.controls) or config.repeats_finetuning
    return sorted(random.Random(1).sample(range(n), limit)) if wanted else []


def work_of_adapting(
    bench: Bench[ComparisonConfig], name: str, encoded: EncodedDemonstrations, searching: bool
) -> float:
    """Work of adapting one learner once; a search counts every rate."""
    tokens = len(encoded.prefix)
    if name in ("ft", "lora"):
        rates = bench.config.rates if name == "ft" else bench.config.lora_rates
        return work_of_search(bench, rates, encoded) if searching else tokens * TRAINING
    if name == "fold":
        return _work_of_fold(bench, tokens)
    return float(tokens) if name in ("icl", "probe") else 0.0


def _work_of_fold(bench: Bench[ComparisonConfig], tokens: int) -> float:
    """Work of one fold: its texts behind the demonstrations and alone, as long as queries are."""
    settings = bench.config.fold
    query = sum(query.width() for query in bench.queries) / len(bench.queries)
    plain = 0 if settings.plain == "none" else settings.plain_texts * settings.plain_length
    return tokens + 2 * settings.texts * query + plain


def work_of_search(bench: Bench[ComparisonConfig], rates: tuple[float, ...], encoded: EncodedDemonstrations) -> float:
    """Work of a search over all of a grid."""
    return len(rates) * (len(encoded.prefix) * TRAINING + sum(query.width() for query in bench.selection_queries))

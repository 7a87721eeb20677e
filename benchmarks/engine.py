"""In-context label log-probabilities against the floating-point bound, and what recording adds.

The bound is what cannot be saved: the demonstrations once, each query once, at the rate of plain matrix products that
the machine shows at that moment. Everything else (norms, activations, softmax, attention's own inefficiency, Python)
is overhead.
"""

from functools import partial

from benchmarks.common import GemmRate, Job, Outcome, Patience, Size, beside_rate
from dualform.models.reading.capture import Recording

COMPARISON_RECORDS = Recording(
    output=True, scores=True, demo_scores=True, q=True, head_output=True, update=True
)  # fmt: skip
"""What a comparison takes down of each query."""


def run(job: Job, size: Size) -> list[Outcome]:
    """Time the prefix and every group of queries, plain and recorded, each beside the machine's rate."""
    lm, queries = job.lm, job.queries
    n_prefix = len(job.encoded.prefix)
    groups = lm.groups(queries)
    flops = [lm.shape.forward(n_prefix, scored=0), *(_flops(job, group) for group in groups)]
    patience = Patience(size.patience)
    rate = GemmRate(lm, lm.max_row, size.gemm_seconds)
    prefix = lm.encode(job.encoded.prefix)
    for group in groups[:1]:  # so that no round pays for what happens once
        lm.read_group(prefix, queries, group, COMPARISON_RECORDS)
    rounds = []
    for number in range(size.rounds):
        encode = partial(lm.encode, job.encoded.prefix)
        (encoding,), rate_there = patience.undisturbed(partial(beside_rate, rate, [encode]))
        plain, recorded, rates = [encoding], [encoding], [rate_there]
        for group in groups:
            read = partial(lm.read_group, prefix, queries, group)
            calls = (read, partial(read, COMPARISON_RECORDS))
            pair = partial(beside_rate, rate, calls, backwards=number % 2 == 1)
            (without, with_), rate_there = patience.undisturbed(pair)
            plain.append(without)
            recorded.append(with_)
            rates.append(rate_there)
        rounds.append({"plain": plain, "recorded": recorded, "rate": rates})
    over_bound = [
        sum(r["plain"]) / sum(work / there for work, there in zip(flops, r["rate"], strict=True)) for r in rounds
    ]
    over_plain = [sum(r["recorded"]) / sum(r["plain"]) for r in rounds]
    best = max(sum(flops) / sum(r["plain"]) for r in rounds)
    raw = {
        "flops": flops,
        "rounds": rounds,
        "pieces": ["prefix", *(f"{len(group)} queries" for group in groups)],
        "others": patience.others,
    }
    return [
        Outcome(
            "engine: time over FLOP bound",
            tuple(over_bound),
            "at most",
            1.35,
            f"{sum(flops) / 1e9:,.0f} GFLOP; at best {best / 1e9:.0f} of {max(rate.seen) / 1e9:.0f} GFLOP/s",
            raw,
        ),
        Outcome(
            "engine: recorded over plain",
            tuple(over_plain),
            "at most",
            1.15,
            "output, scores, demo_scores, q, head_output, update",
        ),
    ]


def _flops(job: Job, group: list[int]) -> float:
    n_prefix = len(job.encoded.prefix)
    total = 0.0
    for query in (job.queries[i] for i in group):
        # The prompt's last token is scored, and so is every token of an answer but its last.
        scored = 1 + query.width() - len(query.prompt)
        total += job.lm.shape.forward(query.width(), n_prefix, scored)
    return total

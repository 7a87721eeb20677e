"""What one forward, one training, one look inside takes: the pieces that all plans are made of.

Tokens and operations are exact. Seconds are the sum of what a block does: products, at the rate that the machine has
for so many rows; attention; elementwise passes over memory; and what Python takes however small the tensors are. How
many passes a block makes is counted below for a block with two norms, rotary positions and a gated MLP, which most
families have by now; others differ by less than these passes are of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualform.learners.finetuned import LossOn
from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import BYTES, Fit, fit_of
from dualform.models.cost.shape import ModelShape
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LONGEST_CHECK, LanguageModel
from dualform.models.reading.layout import Probe, Query, group
from dualform.studies.plan import Cost

_NORM_PASSES = 14
"""Over the residual stream: two norms of six each (square, mean, shift, root, two products), two sums."""
_ROTARY_PASSES = 5
"""Over queries and keys: two products, a turned copy of two halves, a sum."""
_JOIN_PASSES = 6
"""Over the heads' output, where queries share a row: own tokens out of the row and back, two parts merged."""
_VOCABULARY_PASSES = 4
"""Over logits: the softmax's shift, sum and difference, and the copy that is kept. Exponentials come on top."""
_BACKWARD = 2.0
"""Elementwise work of a backward, as a multiple of the forward's: each operation has about two gradients."""


@dataclass(frozen=True)
class Reading:
    """One row of queries behind a prefix."""

    own: tuple[int, ...]
    """Tokens of each query."""
    scored: int
    """Tokens at which the head is applied."""
    prefix: int


@dataclass(frozen=True)
class Costs:
    """Prices of one model on one machine."""

    shape: ModelShape
    machine: Machine
    dtype: str = "float32"
    packed: bool = False
    """Inside a block of packed products."""

    @property
    def can_pack(self) -> bool:
        """As `models.products.packable` decides it."""
        shape = self.shape
        n = (shape.linears - shape.unpacked + shape.head) * 4
        cpu = self.machine.device == "cpu" and self.dtype == "float32"
        return cpu and shape.packable and n <= 2 << 30 and self.machine.packed != self.machine.plain

    def within(self) -> "Costs":
        """Prices inside `LanguageModel.packed_products`."""
        return replace(self, packed=self.can_pack)

    # Forwards

    def encode(self, tokens: int) -> Cost:
        """One prefix read, every layer's keys and values kept."""
        if not tokens:
            return Cost()
        seconds = self._block(tokens, self._square(tokens)) + self._head(1) + self.machine.model
        return Cost(tokens, 0.0, self.shape.forward(tokens, scored=0), seconds)

    def read_row(self, row: Reading) -> Cost:
        """One row of queries, as the packed route reads it."""
        shape, machine = self.shape, self.machine
        tokens, longest = sum(row.own), max(row.own, default=0)
        flops = sum(shape.forward(own, row.prefix, scored=0) for own in row.own) + 2.0 * shape.head * row.scored
        # Own tokens are padded to the longest of the row; every token sees the prefix, or its window's part of it.
        own_pairs = len(row.own) * longest**2
        seen = row.prefix if not shape.window else min(row.prefix, shape.window)
        windowed = shape.n_windowed / shape.n_layers
        pairs = own_pairs + tokens * (row.prefix * (1 - windowed) + seen * windowed)
        seconds = self._block(tokens, pairs)
        joined = tokens * shape.n_heads * shape.d_head
        seconds += shape.n_layers * machine.passes(joined, _JOIN_PASSES, BYTES[self.dtype])
        seconds += self._head(row.scored) + self._softmax(row.scored)
        # The tap's own operations, beside those of the family's block.
        seconds += shape.n_layers * machine.block + machine.model
        return Cost(tokens, 0.0, flops, seconds)

    def read(self, queries: Sequence[Query], prefix: int, probe: Probe = "prompt") -> Cost:
        """All queries, group by group."""
        cost = Cost()
        for indices in rows_of(queries, probe):
            cost += self.read_row(reading([queries[i] for i in indices], prefix, probe))
        return cost

    def looked_at(self, times: int = 1) -> Cost:
        """Five tokens read to find out how the model is built, or that it was found out rightly."""
        one = self.encode(5)
        return Cost(one.forwards, 0.0, one.flops, one.seconds) * times

    def applied(self, times: int) -> Cost:
        """Changes of W_K and W_V lent to the model, so many times."""
        return Cost(0.0, 0.0, 0.0, times * self.machine.passes(self.shape.key_value, 1, BYTES[self.dtype]))

    # Training

    def train(
        self,
        encoded: EncodedDemonstrations,
        loss_on: LossOn = "all",
        *,
        opening: int = 1,
        layerwise: bool = False,
        weight_gradients: bool = True,
    ) -> Cost:
        """One pass of finetuning W_K and W_V, and the opening read with the new weights.

        Args:
            encoded: The demonstrations.
            loss_on: Which tokens are learned.
            opening: Tokens that are read afterwards.
            layerwise: Every layer has a loss of its own (layer-causal descent).
            weight_gradients: Of W_K and W_V; LoRA passes through them and trains beside them.
        """
        cost = Cost()
        for ids, n_answer in zip(encoded.sequences, encoded.n_answer_tokens, strict=True):
            n = len(ids)
            learned = n - 1 if loss_on == "all" else min(n_answer, n - 1)
            cost += self.step(n, learned, layerwise=layerwise, weight_gradients=weight_gradients)
        if layerwise:
            cost += self.looked_at()
        return cost + self.encode(opening) + self.applied(1)

    def step(self, tokens: int, learned: int, *, layerwise: bool = False, weight_gradients: bool = True) -> Cost:
        """One sequence forwards and backwards, and the step."""
        shape, machine, itemsize = self.shape, self.machine, BYTES[self.dtype]
        heads = shape.n_layers if layerwise else 1
        flops = shape.training(tokens, learned, "key_value" if weight_gradients else "adapters")
        flops += (heads - 1) * 4.0 * shape.head * learned
        forward = self._products(tokens) + shape.n_layers * self._beside(tokens)
        backward = self._products(tokens) + _BACKWARD * shape.n_layers * self._beside(tokens)
        gradients = 2.0 * shape.key_value * tokens / machine.rate(tokens, packed=False) if weight_gradients else 0.0
        # The kernel of attention's backward does its forward again: two and a half times the forward, as is usual.
        attention = 3.5 * self._attention(self._square(tokens))
        # Change added to the weight, gradient summed, step taken, gradient cleared.
        trained = machine.passes(shape.key_value / (2 * shape.n_layers), 5 * 2 * shape.n_layers, itemsize)
        # Logits twice over, and their softmax there and back.
        head = heads * (2 * self._head(learned) + 2 * self._softmax(learned))
        overhead = shape.n_layers * (machine.block_training + machine.block) + machine.model_training
        seconds = forward + backward + gradients + attention + trained + head + overhead
        return Cost(tokens, tokens, flops, seconds)

    def full_step(self, sequences: int, length: int, micro_batch: int) -> Cost:
        """One step of AdamW on all weights: whole sequences, every token learned, a few sequences at a time."""
        shape, machine = self.shape, self.machine
        cost = Cost()
        for first in range(0, sequences, micro_batch):
            n = min(micro_batch, sequences - first)
            rows = n * length
            flops = n * shape.full_training(length, length)
            # Gradients of activations and of weights are as much work as the forward, each.
            products = 3 * self._products(rows) + 3 * self._head(rows)
            beside = (1 + _BACKWARD) * shape.n_layers * self._beside(rows)
            attention = 3.5 * n * self._attention(self._square(length))
            seconds = products + beside + attention + 2 * self._softmax(rows)
            seconds += shape.n_layers * machine.block_training + machine.model_training
            cost += Cost(rows, rows, flops, seconds)
        return cost + Cost(seconds=self._optimiser())

    def _optimiser(self) -> float:
        """Gradient's norm, two averages, root, quotient, decay, step."""
        shape, machine = self.shape, self.machine
        # Norms and embeddings are weights as well.
        calls = (shape.n_linears + 2 * shape.n_layers + 2) * machine.optimiser
        return machine.passes(shape.parameters / max(1, shape.n_linears), 12 * max(1, shape.n_linears), 4) + calls

    def whole_rows(self, sequences: int, length: int, micro_batch: int) -> Cost:
        """Whole sequences forwards, the head at every token, as validation does it."""
        shape, cost = self.shape, Cost()
        for first in range(0, sequences, micro_batch):
            n = min(micro_batch, sequences - first)
            rows = n * length
            block = self._block(rows, 0) + n * self._attention(self._square(length))
            seconds = block + self._head(rows) + self._softmax(rows) + self.machine.model
            cost += Cost(rows, 0.0, n * shape.forward(length, scored=length), seconds)
        return cost

    # Inside

    def measured(self, examples: int, seen: int, demonstration_tokens: int, relaxed: bool = True) -> Cost:
        """Seconds of all measures for one group: ranks, maps, and the linear form of each head.

        Args:
            examples: Queries of the group.
            seen: Own tokens of the longest.
            demonstration_tokens: That are ranked; 0 for none.
            relaxed: The linear form is laid beside the head's output, as for ICL alone.
        """
        shape, machine = self.shape, self.machine
        rows = examples * shape.n_layers
        seconds = 0.0
        if demonstration_tokens:
            # Tokens, and demonstrations.
            seconds += rows * (self._ranking(demonstration_tokens) + self._ranking(64))
        # Five readings of the maps, each product and two norms; as many of the outputs.
        seconds += machine.passes(rows * shape.n_heads * seen, 5 * 6, 4)
        seconds += machine.passes(rows * shape.d_model, 2 * 6, 4)
        # Taken down by two models, subtracted, three sums; for every head of queries where it is laid beside outputs.
        updates = rows * shape.n_kv_heads * shape.d_head**2
        seconds += machine.passes(updates, 8, 4)
        if relaxed:
            seconds += machine.passes(rows * shape.n_heads * shape.d_head**2, 6, 4)
        return Cost(seconds=seconds)

    def _ranking(self, n: int) -> float:
        short, long = self.machine.ranking
        return short + (long - short) * max(0, n - 64) / (1024 - 64)

    # Around it

    def loading(self) -> Cost:
        """Reading the weights, finding the anatomy, and the self-check of the route."""
        shape, machine = self.shape, self.machine
        bytes_ = shape.parameters * BYTES[self.dtype]
        # Laid out empty, read, copied.
        cost = Cost(seconds=3 * bytes_ / machine.copying)
        plain = replace(self, packed=False)
        # Seen once with gradients, then three times as it is, W_K and W_V of the first layer nudged in between.
        probe = plain.step(5, 5)
        cost += Cost(seconds=probe.seconds) + Cost(seconds=3 * plain.encode(5).seconds)
        prefix = shape.window + 3 if 0 < shape.window <= LONGEST_CHECK else 9
        # Three queries of 19 own tokens in all; the naive route reads each of nine answers alone, prefix and all.
        naive = sum((plain.encode(prefix + own) for own in (5, 7, 6, 8, 8, 8, 3, 2, 3)), Cost())
        fast = plain.encode(prefix) + plain.read_row(Reading((9, 7, 4), 9, prefix))
        return cost + Cost(seconds=naive.seconds + fast.seconds)

    def packing(self, backwards: bool) -> Cost:
        """Every weight laid out anew once, in each direction that is used."""
        if not self.packed:
            return Cost()
        n = (self.shape.linears - self.shape.unpacked + self.shape.head) * BYTES[self.dtype]
        return Cost(seconds=(2 if backwards else 1) * 3.0 * n / self.machine.copying)

    # What a block does

    def _products(self, rows: float) -> float:
        shape, machine = self.shape, self.machine
        # Each expert gets its share of the rows, and all of them together as many as they do.
        sent = rows * shape.experts_share
        experts = 2.0 * sent * shape.experts / machine.rate(sent, packed=False) if shape.experts else 0.0
        if not self.packed:
            return 2.0 * rows * shape.linears / machine.rate(rows, packed=False) + experts
        fast, slow = shape.linears - shape.unpacked, shape.unpacked
        return 2.0 * rows * (fast / machine.rate(rows, packed=True) + slow / machine.rate(rows, packed=False)) + experts

    def _head(self, rows: float) -> float:
        return 2.0 * rows * self.shape.head / self.machine.rate(rows, self.packed) if rows else 0.0

    def _softmax(self, rows: float) -> float:
        n = rows * self.shape.vocabulary
        # Logits are float32 at least.
        return n / self.machine.exponentials + self.machine.passes(n, _VOCABULARY_PASSES, 4)

    def _attention(self, pairs: float) -> float:
        shape = self.shape
        return 4.0 * shape.n_heads * shape.d_head * pairs * shape.n_layers / self.machine.attention

    def _square(self, tokens: float) -> float:
        """Pairs that the kernel looks at in one causal row: blocks above the diagonal are skipped, others are not."""
        return tokens**2 * 0.6 if tokens > 512 else tokens**2

    def _beside(self, rows: float) -> float:
        """Elementwise work of one block."""
        shape, machine, itemsize = self.shape, self.machine, BYTES[self.dtype]
        seconds = machine.passes(rows * shape.d_model, _NORM_PASSES, itemsize)
        rotated = rows * (shape.n_heads + shape.n_kv_heads) * shape.d_head
        seconds += machine.passes(rotated, _ROTARY_PASSES, itemsize)
        inner = rows * shape.d_inner
        return seconds + machine.passes(inner, 2, itemsize) + inner / machine.exponentials

    def _block(self, tokens: float, pairs: float) -> float:
        """All blocks of a forward."""
        shape = self.shape
        beside = shape.n_layers * (self._beside(tokens) + self.machine.block)
        return self._products(tokens) + self._attention(pairs) + beside


def rows_of(queries: Sequence[Query], probe: Probe = "prompt") -> list[list[int]]:
    """Queries that share a row, as `LanguageModel.groups`."""
    return group(queries, LanguageModel.max_row, LanguageModel.max_examples, probe)


def reading(queries: Sequence[Query], prefix: int, probe: Probe = "prompt") -> Reading:
    """A group of queries as one row: every token at which an answer's next token is predicted is scored."""
    own = tuple(query.width(probe) for query in queries)
    scored = sum(1 + sum(len(answer) - 1 for answer in query.answers) for query in queries)
    return Reading(own, scored, prefix)


def memory_of(
    costs: Costs,
    *,
    base: int,
    prefix: int,
    queries: Sequence[Query],
    longest_training: int,
    learned: int,
    learners: int,
    recorded: bool,
    trains: bool,
    deltas: int,
    more: int = 0,
) -> dict[str, int]:
    """Bytes at the peak of a study that reads queries and trains, by what they are for.

    Args:
        costs: The model, in packed products or not.
        base: Bytes of Python and its libraries.
        prefix: Tokens of the longest prefix.
        queries: All of them.
        longest_training: Tokens of the longest training sequence.
        learned: Of these, tokens that are learned.
        learners: Whose readings of one group exist at once.
        recorded: The inside is taken down.
        trains: Weights are trained.
        deltas: Trained sets of W_K and W_V kept at once.
        more: Bytes of anything else, such as a fold's equations.
    """
    shape, itemsize = costs.shape, BYTES[costs.dtype]
    weights = shape.parameters * itemsize
    found = {"Python and libraries": base, "weights": weights}
    if costs.packed:
        n = (shape.linears - shape.unpacked + shape.head) * 4
        found["packed copies"] = n * (2 if trains else 1)
    rows = [reading([queries[i] for i in group], prefix) for group in rows_of(queries)]
    widest = max((sum(row.own) for row in rows), default=0)
    scored = max((row.scored for row in rows), default=0)
    examples = max((len(row.own) for row in rows), default=0)
    # The block's widest moment: inputs, heads and both of the MLP's branches.
    block = shape.d_model * 4 + shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads) + 3 * shape.d_inner
    logits = 3 * scored * shape.vocabulary * max(4, itemsize)
    kept = learners * examples * shape.vocabulary * max(4, itemsize)
    reads = max(prefix, widest) * block * itemsize + logits + kept
    # Every block's intermediate results until the backward has passed it.
    a_token = shape.n_layers * (10 * shape.d_model + 6 * shape.d_head * shape.n_heads + 4 * shape.d_inner)
    training = longest_training * a_token * itemsize + 4 * learned * shape.vocabulary * max(4, itemsize)
    found["activations"] = max(reads, training if trains else 0)
    found["keys and values"] = 2 * prefix * shape.n_kv_heads * shape.d_head * shape.n_layers * itemsize
    if trains:
        found["changes of weights"] = (deltas + 2) * shape.key_value * max(4, itemsize)
    if recorded:
        longest = max((max(row.own) for row in rows), default=0)
        one = shape.n_heads * (longest + 2 * shape.d_head) + shape.d_model + shape.n_kv_heads * shape.d_head**2
        traces = learners * examples * shape.n_layers * one * itemsize
        traces += examples * shape.n_layers * shape.n_heads * prefix * itemsize * 2
        # The linear form for every head of queries, and what is laid beside it, in float64 where it is averaged.
        measures = 4 * examples * shape.n_layers * shape.n_heads * shape.d_head**2 * itemsize
        found["recordings"] = traces + measures
    if more:
        found["fold"] = more
    return found


def fit_for(costs: Costs, memory: dict[str, int], *, trains: bool, divided: bool) -> Fit:
    """The memory of a plan held against the machine's."""
    machine = costs.machine
    return fit_of(
        costs.shape,
        memory,
        dtype=costs.dtype,
        device=machine.device,
        ram=machine.ram,
        gpu=machine.gpu,
        trains=trains,
        divided=divided,
    )

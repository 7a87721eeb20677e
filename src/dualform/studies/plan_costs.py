"""The price of work on one machine: seconds, memory and whether it fits.

Tokens and operations are those of the `Work`. Seconds are the sum of what a block does: products, at the rate that the
machine has for so many rows; attention; elementwise passes over memory; and what Python takes however small the tensors
are. How many passes a block makes is counted below for a block with two norms, rotary positions and a gated MLP, which
most families have by now; others differ by less than these passes are of the whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import BYTES, MemoryEstimate, memory_estimate
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import (
    Cost,
    Decoding,
    Evaluation,
    Forward,
    FullTraining,
    MeasureComputation,
    PricedPart,
    RandomDirection,
    RidgeRegression,
    Training,
    WeightChange,
    Work,
    WorkPart,
    WorkStep,
    row_of,
    rows,
)
from dualform.models.reading.layout import Query
from dualform.models.reading.self_check import LONGEST_CHECK

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
_DECODED_ROWS = 16
"""Texts that are written side by side."""


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
        """As `models.reading.products.packable` decides it."""
        shape = self.shape
        n = (shape.linears - shape.unpacked + shape.head) * 4
        cpu = self.machine.device == "cpu" and self.dtype == "float32"
        return cpu and shape.packable and n <= 2 << 30 and self.machine.packed != self.machine.plain

    def within(self) -> "Costs":
        """Prices inside `LanguageModel.packed_products`."""
        return replace(self, packed=self.can_pack)

    def cost(self, work: Work) -> Cost:
        """The price of some work."""
        seconds = sum(times * self._seconds(step) for times, step in work.steps + work.overhead)
        return Cost(work.tokens, work.backward_tokens, work.flops(self.shape), seconds)

    def part(self, part: WorkPart) -> PricedPart:
        """A part of a run with its price."""
        least, most = (None if end is None else self.cost(end) for end in (part.least, part.most))
        return PricedPart(part.name, self.cost(part.work), least, most, part.why)

    def _seconds(self, step: WorkStep) -> float:
        match step:
            case Forward(own, prefix=0, scored=0) if len(own) == 1:
                return self._prefix(own[0])
            case Forward():
                return self._row(step)
            case Evaluation(sequences, length, micro_batch):
                return sum(self._batch(n, length) for n in _pieces(sequences, micro_batch))
            case Decoding():
                return self._decoding(step)
            case Training():
                return self._training(step)
            case FullTraining():
                return self._full_training(step)
            case RidgeRegression():
                return self._ridge(step)
            case MeasureComputation():
                return self._measuring(step)
            case WeightChange():
                return self.machine.passes(self.shape.key_value, 1, BYTES[self.dtype])
            case RandomDirection():
                return self.shape.key_value / self.machine.exponentials
        # A step of another package: its operations, at the rate of large products.
        return step.flops(self.shape) / self.machine.rate(1024, self.packed)

    # Forwards

    def _prefix(self, tokens: int) -> float:
        """One prefix read, every layer's keys and values kept."""
        return self._block(tokens, _square(tokens)) + self._head(1) + self.machine.model

    def _row(self, row: Forward) -> float:
        """One row of queries, as the packed route reads it."""
        shape, machine = self.shape, self.machine
        tokens, longest = sum(row.own), max(row.own, default=0)
        # Own tokens are padded to the longest of the row; every token sees the prefix, or its window's part of it.
        own_pairs = len(row.own) * longest**2
        seen = row.prefix if not shape.window else min(row.prefix, shape.window)
        windowed = shape.n_windowed / shape.n_layers
        pairs = own_pairs + tokens * (row.prefix * (1 - windowed) + seen * windowed)
        seconds = self._block(tokens, pairs)
        joined = tokens * shape.n_heads * shape.d_head
        seconds += shape.n_layers * machine.passes(joined, _JOIN_PASSES, BYTES[self.dtype])
        seconds += self._head(row.scored) + self._softmax(row.scored)
        # The tap's own operations come on top of those of the family's block.
        return seconds + shape.n_layers * machine.block + machine.model

    def _batch(self, sequences: int, length: int) -> float:
        n = sequences * length
        block = self._block(n, 0) + sequences * self._attention(_square(length))
        return block + self._head(n) + self._softmax(n) + self.machine.model

    def _decoding(self, step: Decoding) -> float:
        """Sampling, token by token, some texts side by side."""
        seconds = 0.0
        for first in range(0, len(step.own), _DECODED_ROWS):
            own = step.own[first : first + _DECODED_ROWS]
            longest = max(own)
            # Tokens that are drawn but the last are read; the average one stands in the middle of its text.
            token = self._row(Forward((1,) * len(own), step.prefix + longest // 2, len(own)))
            # In double precision, sorted: a dozen passes and as many again for each halving that a sort makes.
            logits = len(own) * self.shape.vocabulary
            drawing = self.machine.passes(logits, 6 + math.log2(self.shape.vocabulary), 8)
            seconds += (token + drawing) * (longest - 1) * sum(own) / (longest * len(own))
        return seconds

    # Training

    def _training(self, step: Training) -> float:
        """One sequence forwards and backwards, and the step."""
        shape, machine, itemsize = self.shape, self.machine, BYTES[self.dtype]
        heads = shape.n_layers if step.layer_causal else 1
        tokens = step.tokens
        trained, _ = shape.trained(step.weights)
        forward = self._products(tokens) + shape.n_layers * self._elementwise(tokens)
        backward = self._products(tokens) + _BACKWARD * shape.n_layers * self._elementwise(tokens)
        gradients = 2.0 * trained * tokens / machine.rate(tokens, packed=False)
        # The kernel of attention's backward does its forward again: two and a half times the forward, as is usual.
        attention = 3.5 * self._attention(_square(tokens))
        # Change added to the weight, gradient summed, step taken, gradient cleared.
        stepping = machine.passes(trained / (2 * shape.n_layers), 5 * 2 * shape.n_layers, itemsize)
        # Logits twice over, and their softmax there and back.
        head = heads * (2 * self._head(step.learned) + 2 * self._softmax(step.learned))
        overhead = shape.n_layers * (machine.block_training + machine.block) + machine.model_training
        return forward + backward + gradients + attention + stepping + head + overhead

    def _full_training(self, step: FullTraining) -> float:
        """One step of AdamW on all weights."""
        shape, machine = self.shape, self.machine
        seconds = self._optimiser()
        for sequences in _pieces(step.sequences, step.micro_batch):
            n = sequences * step.length
            # Gradients of activations and of weights are as much work as the forward, each.
            seconds += 3 * self._products(n) + 3 * self._head(n)
            seconds += (1 + _BACKWARD) * shape.n_layers * self._elementwise(n)
            seconds += 3.5 * sequences * self._attention(_square(step.length)) + 2 * self._softmax(n)
            seconds += shape.n_layers * machine.block_training + machine.model_training
            if step.attends_twice:
                seconds += 3 * sequences * self._attention(step.length**2) + shape.n_layers * machine.block_training
        return seconds

    def _optimiser(self) -> float:
        """Gradient's norm, two averages, root, quotient, decay, step."""
        shape, machine = self.shape, self.machine
        # Norms and embeddings are weights as well.
        calls = (shape.n_linears + 2 * shape.n_layers + 2) * machine.optimiser
        return machine.passes(shape.parameters / max(1, shape.n_linears), 12 * max(1, shape.n_linears), 4) + calls

    def _ridge(self, step: RidgeRegression) -> float:
        """A second look, which is a forward that ends behind attention; equations; their solution."""
        shape, machine = self.shape, self.machine
        again = 0.4 * self._block(sum(step.lengths), sum(n**2 for n in step.lengths)) / shape.n_layers
        # Equations are in float64, at half of the rate, and an eigendecomposition reaches a quarter of that.
        rate = machine.rate(1024, packed=False) / (1 if self.dtype == "float64" else 2)
        equations = shape.ridge_equations(step.lengths, step.layer) / rate
        return again + equations + shape.ridge_solution(step.layer) / (rate / 4)

    # Inside

    def _measuring(self, step: MeasureComputation) -> float:
        shape, machine = self.shape, self.machine
        n = step.examples * shape.n_layers
        seconds = 0.0
        if step.demonstration_tokens:
            # Tokens, and demonstrations.
            seconds += n * (self._ranking(step.demonstration_tokens) + self._ranking(64))
        # Five readings of the maps, each product and two norms; as many of the outputs.
        seconds += machine.passes(n * shape.n_heads * step.seen, 5 * 6, 4)
        seconds += machine.passes(n * shape.d_model, 2 * 6, 4)
        # Taken down by two models, subtracted, three sums; for every head of queries where it is compared with outputs.
        seconds += machine.passes(n * shape.n_kv_heads * shape.d_head**2, 8, 4)
        if step.relaxed:
            seconds += machine.passes(n * shape.n_heads * shape.d_head**2, 6, 4)
        return seconds

    def _ranking(self, n: int) -> float:
        short, long = self.machine.ranking
        return short + (long - short) * max(0, n - 64) / (1024 - 64)

    # Around it

    def loading(self) -> Cost:
        """Reading the weights, finding the anatomy, and the self-check of the route."""
        shape, machine = self.shape, self.machine
        bytes_ = shape.parameters * BYTES[self.dtype]
        # Made empty, read, copied.
        seconds = 3 * bytes_ / machine.copying
        plain = replace(self, packed=False)
        # Seen once with gradients, then three times as it is, W_K and W_V of the first layer nudged in between.
        seconds += plain._training(Training(5, 5)) + 3 * plain._prefix(5)
        prefix = shape.window + 3 if 0 < shape.window <= LONGEST_CHECK else 9
        # Three queries of 19 own tokens in all; the naive route reads each of nine answers alone, prefix and all.
        naive = sum(plain._prefix(prefix + own) for own in (5, 7, 6, 8, 8, 8, 3, 2, 3))
        fast = plain._prefix(prefix) + plain._row(Forward((9, 7, 4), prefix, 9))
        return Cost(seconds=seconds + naive + fast)

    def packing(self, backwards: bool) -> Cost:
        """Every weight written anew once, in each direction that is used."""
        if not self.packed:
            return Cost()
        n = (self.shape.linears - self.shape.unpacked + self.shape.head) * BYTES[self.dtype]
        return Cost(seconds=(2 if backwards else 1) * 3.0 * n / self.machine.copying)

    # What a block does

    def _products(self, n: float) -> float:
        shape, machine = self.shape, self.machine
        # Each expert gets its share of the rows, and all of them together as many as they do.
        sent = n * shape.experts_share
        experts = 2.0 * sent * shape.experts / machine.rate(sent, packed=False) if shape.experts else 0.0
        if not self.packed:
            return 2.0 * n * shape.linears / machine.rate(n, packed=False) + experts
        fast, slow = shape.linears - shape.unpacked, shape.unpacked
        return 2.0 * n * (fast / machine.rate(n, packed=True) + slow / machine.rate(n, packed=False)) + experts

    def _head(self, n: float) -> float:
        return 2.0 * n * self.shape.head / self.machine.rate(n, self.packed) if n else 0.0

    def _softmax(self, n: float) -> float:
        logits = n * self.shape.vocabulary
        # Logits are float32 at least.
        return logits / self.machine.exponentials + self.machine.passes(logits, _VOCABULARY_PASSES, 4)

    def _attention(self, pairs: float) -> float:
        return sum(layer.attention(pairs) for layer in self.shape.layers) / self.machine.attention

    def _elementwise(self, n: float) -> float:
        """Elementwise work of one block."""
        shape, machine, itemsize = self.shape, self.machine, BYTES[self.dtype]
        seconds = machine.passes(n * shape.d_model, _NORM_PASSES, itemsize)
        rotated = n * (shape.n_heads + shape.n_kv_heads) * shape.d_head
        seconds += machine.passes(rotated, _ROTARY_PASSES, itemsize)
        inner = n * shape.d_inner
        return seconds + machine.passes(inner, 2, itemsize) + inner / machine.exponentials

    def _block(self, tokens: float, pairs: float) -> float:
        """All blocks of a forward."""
        elementwise = self.shape.n_layers * (self._elementwise(tokens) + self.machine.block)
        return self._products(tokens) + self._attention(pairs) + elementwise


def _square(tokens: float) -> float:
    """Pairs that the kernel looks at in one causal row: blocks above the diagonal are skipped, others are not."""
    return tokens**2 * 0.6 if tokens > 512 else tokens**2


def _pieces(n: int, most: int) -> list[int]:
    return [min(most, n - first) for first in range(0, n, most)]


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
        learners: Number of learners whose readings of one group exist at once.
        recorded: The inside is recorded.
        trains: Weights are trained.
        deltas: Trained sets of W_K and W_V kept at once.
        more: Bytes of anything else, such as a fold's equations.
    """
    shape, itemsize = costs.shape, BYTES[costs.dtype]
    weights = shape.parameters * itemsize
    needed = {"Python and libraries": base, "weights": weights}
    if costs.packed:
        n = (shape.linears - shape.unpacked + shape.head) * 4
        needed["packed copies"] = n * (2 if trains else 1)
    packed = [row_of([queries[i] for i in group], prefix) for group in rows(queries)]
    widest = max((sum(row.own) for row in packed), default=0)
    scored = max((row.scored for row in packed), default=0)
    examples = max((len(row.own) for row in packed), default=0)
    # The block's widest moment: inputs, heads and both of the MLP's branches.
    block = shape.d_model * 4 + shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads) + 3 * shape.d_inner
    logits = 3 * scored * shape.vocabulary * max(4, itemsize)
    kept = learners * examples * shape.vocabulary * max(4, itemsize)
    reads = max(prefix, widest) * block * itemsize + logits + kept
    # Every block's intermediate results until the backward has passed it.
    a_token = shape.n_layers * (10 * shape.d_model + 6 * shape.d_head * shape.n_heads + 4 * shape.d_inner)
    training = longest_training * a_token * itemsize + 4 * learned * shape.vocabulary * max(4, itemsize)
    needed["activations"] = max(reads, training if trains else 0)
    needed["keys and values"] = 2 * prefix * shape.n_kv_heads * shape.d_head * shape.n_layers * itemsize
    if trains:
        needed["changes of weights"] = (deltas + 2) * shape.key_value * max(4, itemsize)
    if recorded:
        longest = max((max(row.own) for row in packed), default=0)
        one = shape.n_heads * (longest + 2 * shape.d_head) + shape.d_model + shape.n_kv_heads * shape.d_head**2
        traces = learners * examples * shape.n_layers * one * itemsize
        traces += examples * shape.n_layers * shape.n_heads * prefix * itemsize * 2
        # The linear form for every head of queries, and what it is compared with, in float64 where it is averaged.
        measures = 4 * examples * shape.n_layers * shape.n_heads * shape.d_head**2 * itemsize
        needed["recordings"] = traces + measures
    if more:
        needed["fold"] = more
    return needed


def compared_with_machine(costs: Costs, memory: dict[str, int], *, trains: bool, divided: bool) -> MemoryEstimate:
    """The memory of a plan compared with that of the machine."""
    machine = costs.machine
    return memory_estimate(
        costs.shape,
        memory,
        dtype=costs.dtype,
        device=machine.device,
        ram=machine.ram,
        gpu=machine.gpu,
        trains=trains,
        divided=divided,
    )

"""The price of work on one machine: seconds, memory and whether it fits.

Tokens and operations follow from the `Work`. Seconds are the sum over a block's operations: matrix products, at the
measured rate for their number of rows; attention; elementwise passes over memory; and a fixed overhead of Python. The
passes are counted for a block with two norms, rotary positions and a gated MLP, as in most families; the passes of
other blocks differ little compared with the total.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import BYTES, MemoryEstimate, memory_estimate
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import (
    BatchTraining,
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
"""Passes over the residual stream: two norms of six each (square, mean, shift, root, two products) and two sums."""
_ROTARY_PASSES = 5
"""Passes over queries and keys: two products, a rotated copy of two halves, a sum."""
_JOIN_PASSES = 6
"""Passes over the heads' output where queries share a row: gather own tokens, scatter them, merge two parts."""
_VOCABULARY_PASSES = 4
"""Passes over logits: shift, sum and difference of the softmax, and a copy. Exponentials are added to these."""
_BACKWARD = 2.0
"""Elementwise work of a backward pass relative to the forward: each operation has about two gradients."""
FIRST_BLOCK_READS = 3
"""Number of forwards of five tokens, at load, that stop after the first attention."""
_DECODED_ROWS = 16
"""Number of texts that are generated at the same time."""


@dataclass(frozen=True)
class Costs:
    """The prices of work with one model on one machine."""

    shape: ModelShape
    machine: Machine
    dtype: str = "float32"
    packed: bool = False
    """Whether the work runs inside `LanguageModel.packed_products`."""

    @property
    def can_pack(self) -> bool:
        """Whether products can be packed, by the same rule as `models.reading.products.packable`."""
        shape = self.shape
        n = (shape.linears - shape.unpacked + shape.head) * 4
        cpu = self.machine.device == "cpu" and self.dtype == "float32"
        return cpu and shape.packable and n <= 2 << 30 and self.machine.packed != self.machine.plain

    def with_packing(self) -> "Costs":
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
                return sum(self._batch(n, length) for n in _micro_batches(sequences, micro_batch))
            case Decoding():
                return self._decoding(step)
            case Training():
                return self._training(step)
            case BatchTraining():
                return self._batch_training(step)
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
        # A step that another package defines: its operations at the rate of large products.
        return step.flops(self.shape) / self.machine.rate(1024, self.packed)

    # Forward passes

    def _prefix(self, tokens: int) -> float:
        """Reading one prefix and keeping the keys and values of every layer, without the output head."""
        return self._block(tokens, _square(tokens)) + self.machine.model

    def _row(self, row: Forward) -> float:
        """Reading one row of queries by the packed route."""
        shape, machine = self.shape, self.machine
        tokens, longest = sum(row.own), max(row.own, default=0)
        # Own tokens are padded to the longest of the row; every token attends to the prefix, or its window of it.
        own_pairs = len(row.own) * longest**2
        seen = row.prefix if not shape.window else min(row.prefix, shape.window)
        windowed = shape.n_windowed / shape.n_layers
        pairs = own_pairs + tokens * (row.prefix * (1 - windowed) + seen * windowed)
        seconds = self._block(tokens, pairs)
        joined = tokens * shape.n_heads * shape.d_head
        seconds += shape.n_layers * machine.passes(joined, _JOIN_PASSES, BYTES[self.dtype])
        seconds += self._head(row.scored) + self._softmax(row.scored)
        # The recording attention adds operations to those of the family's block.
        return seconds + shape.n_layers * machine.block + machine.model

    def _batch(self, sequences: int, length: int) -> float:
        n = sequences * length
        block = self._block(n, 0) + sequences * self._attention(_square(length))
        return block + self._head(n) + self._softmax(n) + self.machine.model

    def _decoding(self, step: Decoding) -> float:
        """Generating token by token, several texts at a time."""
        seconds = 0.0
        for first in range(0, len(step.own), _DECODED_ROWS):
            own = step.own[first : first + _DECODED_ROWS]
            longest = max(own)
            # Every generated token but the last is read; on average half of the text precedes it.
            token = self._row(Forward((1,) * len(own), step.prefix + longest // 2, len(own)))
            # Sampling sorts the logits in double precision.
            logits = len(own) * self.shape.vocabulary
            drawing = self.machine.passes(logits, 6 + math.log2(self.shape.vocabulary), 8)
            seconds += (token + drawing) * (longest - 1) * sum(own) / (longest * len(own))
        return seconds

    # Training

    def _training(self, step: Training) -> float:
        """One training step: forward, backward and update for one sequence."""
        shape, machine, itemsize = self.shape, self.machine, BYTES[self.dtype]
        heads = shape.n_layers if step.layer_causal else 1
        tokens = step.tokens
        trained, _ = shape.trained(step.weights)
        forward = self._products(tokens) + shape.n_layers * self._elementwise(tokens)
        backward = self._products(tokens) + _BACKWARD * shape.n_layers * self._elementwise(tokens)
        gradients = 2.0 * trained * tokens / machine.rate(tokens, packed=False)
        # The backward of attention recomputes its forward, so both together take about 3.5 forwards.
        attention = 3.5 * self._attention(_square(tokens))
        # Add the change to the weight, sum the gradient, take the step, clear the gradient.
        stepping = machine.passes(trained / (2 * shape.n_layers), 5 * 2 * shape.n_layers, itemsize)
        # Logits and their softmax, forward and backward.
        head = heads * (2 * self._head(step.learned) + 2 * self._softmax(step.learned))
        overhead = shape.n_layers * (machine.block_training + machine.block) + machine.model_training
        return forward + backward + gradients + attention + stepping + head + overhead

    def _batch_training(self, step: BatchTraining) -> float:
        """Forward, backward and update for padded sequences."""
        shape, machine, n = self.shape, self.machine, round(step.tokens)
        everything = step.weights == "all"
        adapters = shape.adapters(step.rank, step.targets) if step.rank else 0
        seconds = (3 if everything else 2) * self._products(n) + 6.0 * n * adapters / machine.rate(n, packed=False)
        seconds += (1 + _BACKWARD) * shape.n_layers * self._elementwise(n)
        seconds += 3.5 * step.sequences * self._attention(_square(step.length))
        seconds += (3 if everything else 2) * self._head(step.learned) + 2 * self._softmax(step.learned)
        seconds += shape.n_layers * machine.block_training + machine.model_training
        if everything:
            return seconds + self._optimiser()
        # Every linear has one or two small parameters of its own.
        return seconds + machine.passes(adapters, 12, 4) + 2 * shape.n_linears * machine.optimiser

    def _full_training(self, step: FullTraining) -> float:
        """One step of AdamW on all weights."""
        shape, machine = self.shape, self.machine
        seconds = self._optimiser()
        for sequences in _micro_batches(step.sequences, step.micro_batch):
            n = sequences * step.length
            # The gradients of activations and of weights each take as much work as the forward.
            seconds += 3 * self._products(n) + 3 * self._head(n)
            seconds += (1 + _BACKWARD) * shape.n_layers * self._elementwise(n)
            seconds += 3.5 * sequences * self._attention(_square(step.length)) + 2 * self._softmax(n)
            seconds += shape.n_layers * machine.block_training + machine.model_training
            if step.attends_twice:
                seconds += 3 * sequences * self._attention(step.length**2) + shape.n_layers * machine.block_training
        return seconds

    def _optimiser(self) -> float:
        """AdamW: gradient norm, two averages, root, quotient, decay, step."""
        shape, machine = self.shape, self.machine
        # Norms and embeddings are optimised too.
        calls = (shape.n_linears + 2 * shape.n_layers + 2) * machine.optimiser
        return machine.passes(shape.parameters / max(1, shape.n_linears), 12 * max(1, shape.n_linears), 4) + calls

    def _ridge(self, step: RidgeRegression) -> float:
        """A second forward up to the attention output, then building and solving the equations."""
        shape, machine = self.shape, self.machine
        again = 0.4 * self._block(sum(step.lengths), sum(n**2 for n in step.lengths)) / shape.n_layers
        # Equations are in float64, at half the rate; an eigendecomposition reaches a quarter of that.
        rate = machine.rate(1024, packed=False) / (1 if self.dtype == "float64" else 2)
        equations = shape.ridge_equations(step.lengths, step.layer) / rate
        return again + equations + shape.ridge_solution(step.layer) / (rate / 4)

    # Measures

    def _measuring(self, step: MeasureComputation) -> float:
        shape, machine = self.shape, self.machine
        n = step.examples * shape.n_layers
        seconds = 0.0
        if step.demonstration_tokens:
            # Kendall's tau over tokens and over demonstrations.
            seconds += n * (self._ranking(step.demonstration_tokens) + self._ranking(64))
        # Cosines of attention maps (five measures) and of outputs: a product and two norms each.
        seconds += machine.passes(n * shape.n_heads * step.seen, 5 * 6, 4)
        seconds += machine.passes(n * shape.d_model, 2 * 6, 4)
        # Weight updates of two models: recorded, subtracted and compared.
        seconds += machine.passes(n * shape.n_kv_heads * shape.d_head**2, 8, 4)
        if step.relaxed:
            seconds += machine.passes(n * shape.n_heads * shape.d_head**2, 6, 4)
        return seconds

    def _ranking(self, n: int) -> float:
        short, long = self.machine.ranking
        return short + (long - short) * max(0, n - 64) / (1024 - 64)

    # Loading and packing

    def loading(self) -> Cost:
        """Reading the weights, finding the anatomy, and the self-check of the route."""
        shape, machine = self.shape, self.machine
        bytes_ = shape.parameters * BYTES[self.dtype]
        plain = replace(self, packed=False)
        # The weights are allocated, read and copied; one forward has gradients.
        seconds = machine.loading + 3 * bytes_ / machine.copying + plain._training(Training(5, 5))
        for tokens, scored in self.loading_reads():
            seconds += plain._prefix(tokens) + plain._head(scored) + plain._softmax(scored)
        return Cost(seconds=seconds + FIRST_BLOCK_READS * (plain._block(5, 5**2) / shape.n_layers + machine.model))

    def loading_reads(self) -> tuple[tuple[int, int], ...]:
        """The forwards through all blocks, without gradients, while a model is loaded.

        Returns:
            For each forward, the number of tokens that are read, and of those at which the output head is applied, in
            the order of `LanguageModel.wrap`.
        """
        windowed = 0 < self.shape.window <= LONGEST_CHECK
        prefix = self.shape.window + 3 if windowed else 9
        # The family's own forward and the naive route also read beyond a short window.
        beyond = ((prefix, 1),) * windowed
        reference = ((11, 1), (12, 12), (12, 12), *beyond)
        anatomy = ((5, 5),)
        rows = ((6, 3), (5, 1), (7, 1), (2, 2), (2, 1))
        naive = ((11, 5), (11, 1), *beyond, *((prefix + own, scored) for own, scored in rows), (7, 1))
        fast = ((prefix, 0), (17, 8), (3, 0), (4, 1))
        query_scale = ((8, 0), (8, 0), (4, 1), (8, 0), (4, 1))
        return reference + anatomy + naive + fast + query_scale

    def packing(self, backwards: bool) -> Cost:
        """Repacking every weight once for each direction that is used."""
        if not self.packed:
            return Cost()
        n = (self.shape.linears - self.shape.unpacked + self.shape.head) * BYTES[self.dtype]
        return Cost(seconds=(2 if backwards else 1) * 3.0 * n / self.machine.copying)

    # Operations of a block

    def _products(self, n: float) -> float:
        shape, machine = self.shape, self.machine
        # Each expert gets its share of the rows.
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
        """All blocks of a forward pass."""
        elementwise = self.shape.n_layers * (self._elementwise(tokens) + self.machine.block)
        return self._products(tokens) + self._attention(pairs) + elementwise


def _square(tokens: float) -> float:
    """Pairs that the attention kernel computes in one causal row; it skips whole blocks above the diagonal."""
    return tokens**2 * 0.6 if tokens > 512 else tokens**2


def _micro_batches(n: int, most: int) -> list[int]:
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
    """Bytes at the peak of a study that reads queries and trains, by purpose.

    Args:
        costs: Prices of the model, with or without packing.
        base: Bytes of Python and its libraries.
        prefix: Tokens of the longest prefix.
        queries: All queries.
        longest_training: Tokens of the longest training sequence.
        learned: Tokens of that sequence with a loss.
        learners: Number of learners whose readings of one group exist at once.
        recorded: Whether activations are recorded.
        trains: Whether weights are trained.
        deltas: Number of trained sets of W_K and W_V that exist at once.
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
    # The largest tensors of a block: inputs, heads and both branches of the MLP.
    block = shape.d_model * 4 + shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads) + 3 * shape.d_inner
    logits = 3 * scored * shape.vocabulary * max(4, itemsize)
    kept = learners * examples * shape.vocabulary * max(4, itemsize)
    reads = max(prefix, widest) * block * itemsize + logits + kept
    # Training keeps the intermediate results of every block for the backward pass.
    per_token = shape.n_layers * (10 * shape.d_model + 6 * shape.d_head * shape.n_heads + 4 * shape.d_inner)
    training = longest_training * per_token * itemsize + 4 * learned * shape.vocabulary * max(4, itemsize)
    needed["activations"] = max(reads, training if trains else 0)
    needed["keys and values"] = 2 * prefix * shape.n_kv_heads * shape.d_head * shape.n_layers * itemsize
    if trains:
        needed["changes of weights"] = (deltas + 2) * shape.key_value * max(4, itemsize)
    if recorded:
        longest = max((max(row.own) for row in packed), default=0)
        per_layer = shape.n_heads * (longest + 2 * shape.d_head) + shape.d_model + shape.n_kv_heads * shape.d_head**2
        traces = learners * examples * shape.n_layers * per_layer * itemsize
        traces += examples * shape.n_layers * shape.n_heads * prefix * itemsize * 2
        # The updates of the linear form and what they are compared with, for every head.
        measures = 4 * examples * shape.n_layers * shape.n_heads * shape.d_head**2 * itemsize
        needed["recordings"] = traces + measures
    if more:
        needed["fold"] = more
    return needed


def largest_training(works: Iterable[Work]) -> tuple[int, int]:
    """Tokens of the largest forward pass with gradients, and tokens in its loss; zeros without training."""
    steps = [
        step
        for work in works
        for _, step in work.steps + work.overhead
        if isinstance(step, Training | BatchTraining) and step.backward_tokens
    ]
    tokens = max((int(step.tokens) for step in steps), default=0)
    return tokens, max((step.learned for step in steps), default=0)


def compared_with_machine(costs: Costs, memory: dict[str, int], *, trains: bool, divided: bool) -> MemoryEstimate:
    """The memory of a plan compared with the machine's."""
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

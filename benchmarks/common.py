"""What the benchmarks share: the job, the machine's rate at matrix products, and timing beside that rate."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dualform.models.loading.load import load_model
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import is_linear, row_axis
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.sources import load_task
from dualform.tasks.task import Example, Task

MODEL = "smollm2-135m"
TASK = "reviews"
# One line break, where the task's own separator is two: behind two, a text tokenised as a whole (as other tools do it)
# and the same text tokenised piece by piece become different tokens, and results could not be compared.
SEPARATOR = "\n"
SEED = 0

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    k: int = 32
    """Demonstrations, balanced."""
    n_queries: int = 200
    rounds: int = 5
    """How often each measurement is repeated; the table shows the median round."""
    harness_queries: int = 4
    """Queries put to lm-eval, which takes seconds for each."""
    memory_queries: tuple[int, ...] = (100, 400, 1600)
    gemm_seconds: float = 0.04
    """How long each matrix shape is multiplied at a time."""
    patience: float = 0.0
    """Seconds that a benchmark may lose, in all, to waiting for a quiet machine and to measuring anew."""


FULL = Size()
QUICK = Size(k=8, n_queries=48, rounds=2, harness_queries=2, memory_queries=(32, 64, 128))


@dataclass(frozen=True)
class Job:
    """Demonstrations and queries of one task, for one model."""

    lm: LanguageModel
    task: Task
    demonstrations: Demonstrations
    encoded: EncodedDemonstrations
    examples: tuple[Example, ...]
    queries: tuple[Query, ...]
    opening: tuple[int, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """The job in numbers."""
        return {
            "model": self.lm.name,
            "task": self.task.name,
            "route": self.lm.route.name,
            "dtype": str(self.lm.model.dtype).removeprefix("torch."),
            "demonstrations": self.demonstrations.k_effective,
            "prefix_tokens": len(self.encoded.prefix),
            "queries": len(self.queries),
            "query_tokens": sum(query.width() for query in self.queries),
        }


def make_job(lm: LanguageModel, task: Task, k: int, n_queries: int) -> Job:
    """The first queries of the report split behind `k` balanced demonstrations.

    Raises:
        ValueError: The split has fewer queries.
    """
    encoder = Encoder(lm, task)
    demonstrations = draw_demonstrations(task, k, SEED, balanced=True)
    examples = task.split(task.report_split)[:n_queries]
    if len(examples) < n_queries:
        raise ValueError(f"{n_queries} queries were requested, but {task.name} has {len(examples)}.")
    return Job(
        lm=lm,
        task=task,
        demonstrations=demonstrations,
        encoded=encoder.demonstrations(demonstrations),
        examples=examples,
        queries=tuple(encoder.query(example) for example in examples),
        opening=encoder.opening,
    )


@cache
def loaded() -> tuple[LanguageModel, Task]:
    """The packaged model in float32 on the processor, and the packaged task."""
    return load_model(MODEL, device="cpu"), load_task(TASK, separator=SEPARATOR)


@dataclass(frozen=True)
class Outcome:
    """One line of the table, with the numbers behind it."""

    name: str
    ratios: tuple[float, ...]
    """One a round; empty when it could not be measured, and `detail` says why."""
    wanted: Literal["at most", "at least"]
    target: float | None
    """None for a ratio that is shown for information."""
    detail: str
    raw: dict[str, Any] = field(default_factory=dict)
    """Times in seconds, rates in FLOP/s, operations in FLOP."""

    @property
    def ratio(self) -> float | None:
        """The median round."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the target; None without one of the two."""
        if self.ratio is None or self.target is None:
            return None
        return self.ratio <= self.target if self.wanted == "at most" else self.ratio >= self.target


class GemmRate:
    """The rate of plain matrix products in the shapes of a model's linears, at the model's dtype.

    Args:
        lm: The model. Its output head is left out: the memory of its output makes it slower than the others.
        height: Rows of the activations, such as the tokens of a full row.
        seconds: How long each shape is multiplied at a time.
    """

    def __init__(self, lm: LanguageModel, height: int, seconds: float) -> None:
        self._seconds = seconds
        generator = torch.Generator().manual_seed(SEED)
        shapes = {features(module) for module in linears(lm)}
        # Outputs are allocated once: fresh memory would be part of the time.
        self._products = [
            (
                torch.randn(height, n_in, generator=generator).to(lm.model.dtype),
                torch.randn(n_out, n_in, generator=generator).to(lm.model.dtype).t(),
                torch.empty(height, n_out, dtype=lm.model.dtype),
            )
            for n_in, n_out in sorted(shapes)
        ]
        self.seen: list[float] = []
        """Every rate measured, FLOP/s."""

    def __call__(self) -> float:
        """The best of the shapes now, FLOP/s."""
        self.seen.append(max(self._sustained(*product) for product in self._products))
        return self.seen[-1]

    def _sustained(self, left: Tensor, right: Tensor, out: Tensor) -> float:
        torch.mm(left, right, out=out)
        start, times = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < self._seconds or not times:
            torch.mm(left, right, out=out)
            times += 1
        return 2.0 * left.shape[0] * right.numel() * times / passed


def linears(lm: LanguageModel) -> list[nn.Module]:
    """All linears of the model but its output head."""
    head = lm.model.get_output_embeddings()
    return [module for module in lm.model.modules() if is_linear(module) and module is not head]


def features(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear, whichever way round its weight lies."""
    weight, axis = module.get_parameter("weight"), row_axis(module)
    return weight.shape[1 - axis], weight.shape[axis]


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes; its result is dropped within that time, as a stream of results would be."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def beside_rate(
    rate: Callable[[], float], calls: Sequence[Callable[[], object]], backwards: bool = False
) -> tuple[list[float], float]:
    """Time calls in a row, with the machine's rate taken just before and just after.

    Args:
        rate: Measures it, FLOP/s.
        calls: What to time.
        backwards: Run the last call first: alternating rounds cancel a drift.

    Returns:
        Seconds of each call, in the order of `calls`, and the better of the two rates. A neighbour's work slows both
        calls and rate, and so leaves their product alone.
    """
    before = rate()
    order = list(enumerate(calls))
    times = {number: seconds(call) for number, call in (reversed(order) if backwards else order)}
    return [times[number] for number in range(len(calls))], max(before, rate())


CALM = 0.03
"""Part of all processor time that others may take of an undisturbed measurement."""


class Patience:
    """Repeats what others disturbed, as long as its seconds last.

    Whether a measurement stands is decided by what other processes did meanwhile, never by its outcome.

    Args:
        seconds: How long all waiting and repeating may take.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._shares: list[float] = []

    @property
    def others(self) -> float:
        """Mean part of all processor time that others took of the measurements that stand."""
        return statistics.mean(self._shares) if self._shares else 0.0

    def undisturbed(self, measure: Callable[[], Measured]) -> Measured:
        """The first measurement that nobody disturbed, or the one at hand when patience ends."""
        while True:
            self._wait()
            start, others = time.perf_counter(), Others()
            measured = measure()
            share = others.share() or 0.0
            if self._left <= 0 or share < CALM:
                self._shares.append(share)
                return measured
            self._left -= time.perf_counter() - start

    def _wait(self) -> None:
        while self._left > 0:
            others = Others()
            time.sleep(_GLANCE)
            if (others.share() or 0.0) < CALM:
                return
            self._left -= _GLANCE


_GLANCE = 1.0  # second; the system counts processor time in hundredths


class Others:
    """What other processes take of the machine, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float | None:
        """Their part of all processor time so far, in [0, 1]; None where the system does not tell."""
        if self._start is None or (now := self._now()) is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / (wall * (os.cpu_count() or 1)))) if wall else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds: of the clock, of all processors at work, of this process and its children."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, sum(os.times()[:4])

"""What this machine can do, measured once: the rates from which the time of a run is estimated.

A run is matrix products, attention, and passes over memory, and each has a rate of its own that depends on how many
rows it is done for at once. Products are taken over many different matrices in turn, as a model's layers are, because a
single one would stay in the cache and promise a rate that no model reaches.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from dualform.files import atomic_write, cache_dir
from dualform.models.compat import pack_weight, packed_product
from dualform.models.loading.load import torch_device
from dualform.models.reading.attention import NAME
from dualform.models.reading.products import packable
from dualform.ops.rank import kendall_tau_b
from dualform.source_digest import source_digest

_STUDIES = "dualform.cli.compare, dualform.runs.store, dualform.studies.comparison.run"
_LABORATORY = "dualform.cli.momentum, dualform.runs.store, dualform.studies.laboratory.constructed"

ROWS = (1, 16, 64, 256, 1024)
"""Rows at which rates of products are measured; between them they are read off a straight line on logarithms."""

_WIDTH = 768
_MATRICES = 48
"""Of `_WIDTH` columns and rows: together 113 MB in float32, more than caches hold."""
_CACHED = 1 << 14
"""Numbers of a tensor that stays in the cache."""
_FRESH = 1 << 22
"""Numbers of a tensor that does not, and whose memory is asked for anew each time."""
_KEPT = 4
"""So many results are kept before they are dropped: memory freed at once would be used again at once."""


@dataclass(frozen=True)
class Machine:
    """Rates of one device in one dtype. All are what a quiet machine reaches, in the shapes of a model."""

    device: str
    dtype: str
    threads: int
    """Of torch."""
    cores: int
    """That this process may use."""
    ram: int
    """Bytes."""
    gpu: int
    """Bytes of the accelerator's memory; 0 without one."""
    plain: tuple[float, ...]
    """FLOP/s of plain products with as many rows as `ROWS` says, weights read from memory."""
    packed: tuple[float, ...]
    """The same with packed weights (`models.products`); as `plain` where nothing is packed."""
    attention: float
    """FLOP/s of softmax attention, counted over all pairs that the kernel looks at."""
    bandwidth: float
    """Bytes/s that elementwise operations read and write where their results need fresh memory."""
    cached: float
    """The same where all stays in the cache."""
    exponentials: float
    """Numbers/s of which an exponential is taken."""
    dispatch: float
    """Seconds that a call to a torch operation takes for no more than being one."""
    block: float
    """Seconds that Python takes for one transformer block, whatever its size."""
    block_training: float
    """The same forwards and backwards."""
    model: float
    """What it takes for a model around its blocks."""
    model_training: float
    """The same forwards and backwards."""
    optimiser: float
    """Seconds that a step of AdamW takes for one weight tensor, whatever its size."""
    ranking: tuple[float, float]
    """Seconds of Kendall's tau of 64 and of 1024 numbers."""
    copying: float
    """Bytes/s at which weights that the system has in memory are copied into a model."""
    start: float
    """Seconds until Python has imported what a study of a language model needs."""
    base: int
    """Bytes of memory that it takes then."""
    start_laboratory: float
    """The same of what trains small models."""
    base_laboratory: int
    """Likewise."""

    def rate(self, rows: float, packed: bool) -> float:
        """FLOP/s of products with so many rows."""
        rates = self.packed if packed else self.plain
        rows = min(max(rows, ROWS[0]), ROWS[-1])
        for (low, slow), (high, fast) in zip(
            zip(ROWS, rates, strict=True), zip(ROWS[1:], rates[1:], strict=True), strict=False
        ):
            if rows <= high:
                share = math.log(rows / low) / math.log(high / low)
                return slow ** (1 - share) * fast**share
        return rates[-1]

    def passes(self, numbers: float, times: float, itemsize: int) -> float:
        """Seconds of elementwise passes over a tensor of so many numbers, each reading two and writing one."""
        moved = 3.0 * numbers * itemsize * times
        if numbers <= _CACHED:
            return moved / self.cached
        if numbers >= _FRESH:
            return moved / self.bandwidth
        share = math.log(numbers / _CACHED) / math.log(_FRESH / _CACHED)
        return moved / (self.cached ** (1 - share) * self.bandwidth**share)


def this_machine(device: str = "cpu", dtype: str = "float32", *, measure: bool = False) -> Machine:
    """The rates of this machine, measured the first time and kept in the cache; its memory, looked up each time.

    Args:
        device: `cpu`, `cuda`, `mps`, with a number where there are several.
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        measure: Measure anew.
    """
    about = {
        "host": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "source": source_digest(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "device": device,
        "gpu": _gpu_name(device),
        "dtype": dtype,
        "rows": ROWS,
    }
    # A container's limits may be others the next time: memory is no rate, and is not kept.
    ram, gpu = memory(device)
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_dir() / "machine" / f"{name}.json"
    if not measure:
        # One that is damaged is measured anew.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(kept.read_text(encoding="utf-8"))
            listed = ("plain", "packed", "ranking")
            return Machine(**{**found, **{field: tuple(found[field]) for field in listed}, "ram": ram, "gpu": gpu})
    machine = replace(measured(device, dtype), ram=ram, gpu=gpu)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        rates = {name: value for name, value in asdict(machine).items() if name not in ("ram", "gpu")}
        temporary.write_text(json.dumps(rates) + "\n", encoding="utf-8")
    return machine


def where_to_run(device: str) -> str:
    """The device that a name means: `auto` is a GPU where there is one.

    Raises:
        ConfigError: It cannot be used here.
    """
    return str(torch_device(device))


def cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: str) -> tuple[int, int]:
    """Bytes of main memory that this process may take, and of the accelerator's (0 without one)."""
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        ram = 0
    limit = container_limit()
    if limit is not None:
        ram = min(ram, limit) if ram else limit
    where = torch.device(device)
    gpu = int(torch.cuda.get_device_properties(where).total_memory) if where.type == "cuda" else 0
    return ram, gpu


def container_limit(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a container or a job's control group allows this process; None without a limit.

    Args:
        groups: In which control groups the process is: `0::/path` (version 2), `4:memory:/path` (version 1).
        root: Where these are mounted.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    limits = []
    for line in lines:
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if not controllers:
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Every group above limits it as well. Inside a container the path may be the host's, and only the top is seen.
        place = top / path.strip("/")
        for folder in (place, *place.parents):
            # No limit is told as `max`, by version 1 as a number that no machine has.
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / file).read_text(encoding="ascii")))
            if folder == top:
                break
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _gpu_name(device: str) -> str:
    where = torch.device(device)
    return str(torch.cuda.get_device_properties(where).name) if where.type == "cuda" else ""


@torch.no_grad()
def measured(device: str, dtype: str) -> Machine:
    """Measure. What counts is processor time at the best of several moments, so that what else runs matters little."""
    where, kind = torch.device(device), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device=where, dtype=kind)

    weights = [draw(_WIDTH, _WIDTH) for _ in range(_MATRICES)]
    plain = tuple(_product_rate(draw(rows, _WIDTH), weights, F.linear, where) for rows in ROWS)
    packed = plain
    if packable(weights):
        packs = [pack_weight(weight) for weight in weights]

        def multiply(x: torch.Tensor, pack: torch.Tensor) -> torch.Tensor:
            return packed_product(x, pack, None)

        packed = tuple(_product_rate(draw(rows, _WIDTH), packs, multiply, where) for rows in ROWS)
    heads, length, d_head = 8, 512, 64
    q = draw(1, heads, length, d_head)
    small, large, tiny = draw(_CACHED), draw(_FRESH), draw(1)
    ram, gpu = memory(device)
    reading, training = (_overheads(where, kind, training=training) for training in (False, True))
    return Machine(
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
        cores=cores(),
        ram=ram,
        gpu=gpu,
        plain=plain,
        packed=packed,
        attention=4.0 * heads * d_head * length**2 / _best(lambda: F.scaled_dot_product_attention(q, q, q), where),
        bandwidth=3.0 * _FRESH * kind.itemsize * _KEPT / _best(lambda: [large * large for _ in range(_KEPT)], where),
        cached=3.0 * _CACHED * kind.itemsize / _best(lambda: small * small, where, times=64),
        exponentials=_FRESH / _best(lambda: F.silu(large), where),
        dispatch=_best(lambda: tiny * tiny, where, times=512),
        block=reading[0],
        block_training=training[0],
        model=reading[1],
        model_training=training[1],
        optimiser=_optimiser_seconds(where, kind),
        ranking=(_ranking_seconds(64), _ranking_seconds(1024)),
        copying=_copy_rate(),
        start=_started(_STUDIES)[0],
        base=_started(_STUDIES)[1],
        start_laboratory=_started(_LABORATORY)[0],
        base_laboratory=_started(_LABORATORY)[1],
    )


def _product_rate(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    where: torch.device,
) -> float:
    """FLOP/s over different weights in turn; with many rows some of them do."""
    some = weights if len(x) < 256 else weights[: len(weights) // 4]

    def all_of_them() -> None:
        for weight in some:
            multiply(x, weight)

    return 2.0 * len(x) * _WIDTH**2 * len(some) / _best(all_of_them, where)


def _best(call: Callable[[], object], where: torch.device, times: int = 1, seconds: float = 0.06) -> float:
    """Seconds of a call: the best of what was tried in so long, three times at least."""
    now = _clock(where)
    call()
    found: list[float] = []
    begin = now()
    while now() - begin < seconds or len(found) < 3:
        _settle(where)
        start = now()
        for _ in range(times):
            call()
        _settle(where)
        found.append((now() - start) / times)
    return min(found)


def _clock(where: torch.device) -> Callable[[], float]:
    """What counts seconds: on processors the time that our threads had, so that waiting for others does not count."""
    threads = torch.get_num_threads()
    return (lambda: time.process_time() / threads) if where.type == "cpu" else time.perf_counter


def _settle(where: torch.device) -> None:
    """Wait until an accelerator has done what it was told."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    elif where.type == "mps":
        torch.mps.synchronize()


def _overheads(where: torch.device, kind: torch.dtype, training: bool) -> tuple[float, float]:
    """Seconds of a block and of what is around blocks, in models so small that their arithmetic takes no time."""
    few, many = 2, 8
    short, long = (_small_model_seconds(where, kind, layers, training) for layers in (few, many))
    block = max(0.0, long - short) / (many - few)
    return block, max(0.0, short - few * block)


def _small_model_seconds(where: torch.device, kind: torch.dtype, layers: int, training: bool) -> float:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation=NAME).to(where)
    ids = torch.zeros(1, 2, dtype=torch.long, device=where)

    def run() -> None:
        with torch.set_grad_enabled(training):
            logits = model(input_ids=ids, use_cache=False).logits
            if training:
                torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)

    return _best(run, where)


def _optimiser_seconds(where: torch.device, kind: torch.dtype) -> float:
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=kind, device=where)) for _ in range(32)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    adamw = torch.optim.AdamW(weights)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()

    return _best(step, where) / len(weights)


def _ranking_seconds(n: int) -> float:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 8, n, generator=generator)
    return _best(lambda: kendall_tau_b(a, b), torch.device("cpu")) / len(a)


def _copy_rate() -> float:
    given = torch.zeros(1 << 23)
    return 4.0 * given.numel() / _best(lambda: given.clone(), torch.device("cpu"))


@cache
def _started(modules: str) -> tuple[float, int]:
    """Seconds and bytes of importing. Of processor time, as one thread does it and others may keep it waiting."""
    code = (
        f"import {modules}, time; from dualform.models.cost.machine import peak_memory; "
        "print(time.process_time(), peak_memory())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, memory = ran.stdout.split()
    return float(seconds), int(memory)


def peak_memory() -> int:
    """Bytes of main memory that this process has taken at most."""
    # A process begins with the highest mark of the one that started it in getrusage, but not here.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        # Windows has none.
        return 0
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

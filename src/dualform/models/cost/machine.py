"""Speed of this machine, measured once; the time of a run is estimated from it.

A run consists of matrix products, attention and passes over memory. Each has its own rate, which depends on the number
of rows processed at once. Products are measured over many different matrices in turn, like the layers of a model; a
single matrix would stay in the cache and give a rate that no model reaches.

Other processes slow a measurement down. Each rate is therefore the best of two rounds that lie some seconds apart.
Rates are measured again when they are older than `LONGEST_USE`, or when a short check finds the machine much faster
than it was: it was busy then. A machine that is slower at the moment keeps its rates.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from dualform.files import atomic_write, cache_dir
from dualform.models.compat import pack_weight, packed_product
from dualform.models.loading.load import load_model, torch_device
from dualform.models.reading.attention import NAME
from dualform.models.reading.products import packable
from dualform.ops.rank import kendall_tau_b
from dualform.source_digest import source_digest

_STUDIES = "dualform.cli.compare, dualform.runs.store, dualform.studies.comparison.run"
_LABORATORY = "dualform.cli.momentum, dualform.runs.store, dualform.studies.laboratory.constructed"

ROWS = (1, 16, 64, 256, 1024)
"""Numbers of rows at which rates of products are measured; between them, rates are interpolated on a log scale."""

_WIDTH = 768
_MATRICES = 48
"""Number of matrices with `_WIDTH` columns and rows: together 113 MB in float32, larger than the cache."""
_CACHED = 1 << 14
"""Entries of a tensor that fits into the cache."""
_FRESH = 1 << 22
"""Entries of a tensor that does not, so that each result is allocated anew."""
LONGEST_USE = 30 * 24 * 3600.0
"""Seconds after which rates are measured again."""
_MUCH_FASTER = 1.4
"""If products run this many times as fast as measured, the machine was busy when it was measured."""
_KEPT = 4
"""Results kept alive at a time; memory that is freed immediately would be reused from the cache."""


@dataclass(frozen=True)
class Machine:
    """Rates of one device in one dtype, as reached by an idle machine with tensor shapes typical of a model."""

    device: str
    dtype: str
    threads: int
    """Threads of torch."""
    cores: int
    """CPU cores available to this process."""
    ram: int
    """Bytes of main memory."""
    gpu: int
    """Bytes of GPU memory; 0 without a GPU."""
    plain: tuple[float, ...]
    """FLOP/s of ordinary matrix products, one rate for each entry of `ROWS`."""
    packed: tuple[float, ...]
    """The same with packed weights (`models.reading.products`); equal to `plain` if weights are not packed."""
    attention: float
    """FLOP/s of softmax attention, counted over all pairs that the kernel computes."""
    bandwidth: float
    """Bytes/s read and written by elementwise operations whose results need new memory."""
    cached: float
    """Bytes/s read and written by elementwise operations within the cache."""
    exponentials: float
    """Exponentials per second."""
    dispatch: float
    """Overhead of a call to a torch operation, seconds."""
    block: float
    """Overhead of one transformer block in a forward pass, seconds."""
    block_training: float
    """Overhead of one transformer block in a forward and backward pass, seconds."""
    model: float
    """Overhead outside the blocks in a forward pass, seconds."""
    model_training: float
    """Overhead outside the blocks in a forward and backward pass, seconds."""
    optimiser: float
    """Overhead of an AdamW step for one weight tensor, seconds."""
    ranking: tuple[float, float]
    """Seconds for Kendall's tau of 64 and of 1024 numbers."""
    copying: float
    """Bytes/s at which weights in the file cache are copied into a model."""
    loading: float
    """Seconds to load a model that has hardly any weights: files, tokenizer, transformers' classes."""
    start: float
    """Seconds to start Python and import a study of a language model."""
    base: int
    """Bytes of memory used after that."""
    start_laboratory: float
    """Seconds to start Python and import the laboratory."""
    base_laboratory: int
    """Bytes of memory used after that."""

    def rate(self, rows: float, packed: bool) -> float:
        """FLOP/s of products with that number of rows."""
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
        """Seconds for elementwise passes over a tensor, each of which reads two tensors and writes one.

        Args:
            numbers: Entries of the tensor.
            times: Number of passes.
            itemsize: Bytes of an entry.
        """
        moved = 3.0 * numbers * itemsize * times
        if numbers <= _CACHED:
            return moved / self.cached
        if numbers >= _FRESH:
            return moved / self.bandwidth
        share = math.log(numbers / _CACHED) / math.log(_FRESH / _CACHED)
        return moved / (self.cached ** (1 - share) * self.bandwidth**share)


def this_machine(device: str = "cpu", dtype: str = "float32", *, measure: bool = False) -> Machine:
    """The rates of this machine, measured the first time and cached, and its current memory.

    Args:
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        measure: Measure even if there are cached rates.
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
    # Memory is not cached, because a container's limits may change.
    ram, gpu = memory(device)
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    kept = cache_dir() / "machine" / f"{name}.json"
    if not measure:
        # If the cached file is missing or damaged, measure.
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            rates = json.loads(kept.read_text(encoding="utf-8"))
            tuples = {field: tuple(rates[field]) for field in ("plain", "packed", "ranking")}
            cached = Machine(**{**rates, **tuples, "ram": ram, "gpu": gpu})
            recent = time.time() - kept.stat().st_mtime < LONGEST_USE
            if recent and checked_rate(device, dtype) < _MUCH_FASTER * cached.plain[_CHECKED]:
                return cached
    machine = replace(measure_machine(device, dtype), ram=ram, gpu=gpu)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        rates = {name: value for name, value in asdict(machine).items() if name not in ("ram", "gpu")}
        temporary.write_text(json.dumps(rates) + "\n", encoding="utf-8")
    return machine


def where_to_run(device: str) -> str:
    """Name of the device to use: `auto` becomes a GPU if there is one.

    Raises:
        ConfigError: The device cannot be used here.
    """
    return str(torch_device(device))


def cores() -> int:
    """Number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: str) -> tuple[int, int]:
    """Bytes of main memory that this process may use, and of GPU memory (0 without a GPU)."""
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
    """Memory limit of this process's control group (a container or a job), bytes; None without a limit.

    Args:
        groups: File that lists the control groups of the process: `0::/path` (version 2) or `4:memory:/path`
            (version 1).
        root: Folder at which control groups are mounted.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    limits = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Parent groups limit the process too. In a container the path may be the host's; only the top exists then.
        place = top / path.strip("/")
        for folder in (place, *place.parents):
            # Without a limit, version 2 has `max` and version 1 a huge number.
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / file).read_text(encoding="ascii")))
            if folder == top:
                break
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _gpu_name(device: str) -> str:
    where = torch.device(device)
    return str(torch.cuda.get_device_properties(where).name) if where.type == "cuda" else ""


_CHECKED = 2
"""Index in `ROWS` of the products that `checked_rate` measures."""


@torch.no_grad()
def checked_rate(device: str, dtype: str) -> float:
    """FLOP/s of one kind of product, measured in a fraction of a second, to compare with cached rates."""
    where, kind = torch.device(device), getattr(torch, dtype)
    weights = [torch.ones(_WIDTH, _WIDTH, dtype=kind, device=where) for _ in range(_MATRICES)]
    x = torch.ones(ROWS[_CHECKED], _WIDTH, dtype=kind, device=where)
    return _product_rate(x, weights, F.linear, where)


def measure_machine(device: str, dtype: str) -> Machine:
    """Measure all rates in processor time: the best of several trials in two rounds, some seconds apart."""
    first = _measure(device, dtype)
    # Starting other processes takes some seconds, which separates the rounds.
    start, base, loading = _import_cost(_STUDIES, device)
    start_laboratory, base_laboratory, _ = _import_cost(_LABORATORY)
    return replace(
        faster_of(first, _measure(device, dtype)),
        start=start,
        base=base,
        loading=loading,
        start_laboratory=start_laboratory,
        base_laboratory=base_laboratory,
    )


_RATES = ("plain", "packed", "attention", "bandwidth", "cached", "exponentials", "copying")
"""Fields of `Machine` of which the higher number is the faster."""
_DURATIONS = ("dispatch", "block", "block_training", "model", "model_training", "optimiser", "ranking")
"""Fields of `Machine` of which the lower number is the faster."""


def faster_of(first: Machine, second: Machine) -> Machine:
    """The faster of two measurements of one machine, rate by rate."""

    def choose(field: str, better: Callable[[float, float], float]) -> float | tuple[float, ...]:
        a, b = getattr(first, field), getattr(second, field)
        return tuple(map(better, a, b)) if isinstance(a, tuple) else better(a, b)

    rates = {field: choose(field, max) for field in _RATES} | {field: choose(field, min) for field in _DURATIONS}
    return replace(first, **rates)  # type: ignore[arg-type]


@torch.no_grad()
def _measure(device: str, dtype: str) -> Machine:
    """One round of measurements, without those of new processes."""
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
        loading=0.0,
        start=0.0,
        base=0,
        start_laboratory=0.0,
        base_laboratory=0,
    )


def _product_rate(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    where: torch.device,
) -> float:
    """FLOP/s of products with different weights in turn; a quarter of the weights is enough with many rows."""
    weights = weights if len(x) < 256 else weights[: len(weights) // 4]

    def multiply_all() -> None:
        for weight in weights:
            multiply(x, weight)

    return 2.0 * len(x) * _WIDTH**2 * len(weights) / _best(multiply_all, where)


def _best(call: Callable[[], object], where: torch.device, times: int = 1, seconds: float = 0.06) -> float:
    """Seconds of a call: the best of all trials within `seconds`, and of at least three."""
    now = _clock(where)
    call()
    durations: list[float] = []
    begin = now()
    while now() - begin < seconds or len(durations) < 3:
        _synchronize(where)
        start = now()
        for _ in range(times):
            call()
        _synchronize(where)
        durations.append((now() - start) / times)
    return min(durations)


def _clock(where: torch.device) -> Callable[[], float]:
    """A clock in seconds: on a CPU, processor time per thread, so that waiting for other processes does not count."""
    threads = torch.get_num_threads()
    return (lambda: time.process_time() / threads) if where.type == "cpu" else time.perf_counter


def _synchronize(where: torch.device) -> None:
    """Wait for an accelerator to finish."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    elif where.type == "mps":
        torch.mps.synchronize()


def _overheads(where: torch.device, kind: torch.dtype, training: bool) -> tuple[float, float]:
    """Overhead of a block, and of the rest of the model, measured with models too small for arithmetic to matter."""
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
    source = torch.zeros(1 << 23)
    return 4.0 * source.numel() / _best(lambda: source.clone(), torch.device("cpu"))


@cache
def _import_cost(modules: str, device: str = "") -> tuple[float, int, float]:
    """Cost of importing modules in a new process: processor time in seconds, bytes, and `loading_seconds` on a device.

    The last number is 0 without a device.
    """
    code = (
        f"import {modules}, time; from dualform.models.cost.machine import loading_seconds, peak_memory; "
        f"print(time.process_time(), peak_memory()); print(loading_seconds({device!r}) if {device!r} else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, memory, loading = process.stdout.split()
    return float(seconds), int(memory), float(loading)


def loading_seconds(device: str) -> float:
    """Processor time in seconds of `load_model` for a checkpoint with hardly any weights."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), bos_token="w0", eos_token="w1", unk_token="w2"
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = AutoModelForCausalLM.from_config(config).state_dict()
        # Not by `save_pretrained`, which would build tables that transformers builds once in a process, when it loads.
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        start = time.process_time()
        load_model(folder, device=device)
        return time.process_time() - start


def peak_memory() -> int:
    """Peak memory of this process, bytes."""
    # Preferred to getrusage, in which a process inherits the peak of its parent.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        # Not available on Windows.
        return 0
    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

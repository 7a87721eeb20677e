"""Fast weights in chunks against the same rule token by token, and against the bound of their own products.

The bound of a form is the time of its products at the rate of large ones, or of reading its inputs and writing its
output once at the rate of a copy, whichever is longer. All is measured on one thread, in seconds of processor time: a
short call may slip in between what other processes do, a long one never does, and their ratio would tell of that.

Where the package `fla-core` is installed, its references in plain PyTorch are timed on the same tokens.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import SEED, Outcome, Patience, Size
from dualform.ops.fast_weights import MINI_BATCH, OPTIONS, FastWeightForm, FastWeightRule, FastWeightState, fast_weights
from dualform.ops.fast_weights_chunked import decayed_mesa_chunk

LENGTH = 2048
QUICK_LENGTH = 256
CHUNK = 32
HEADS = 2
WIDTHS = (16, 64)
"""d_k and d_v: that of the laboratory's layers and that of language models'."""
TARGET = 10.0
"""Recurrent over chunked, at both widths. At the larger one two were measured below it: mesa with decay, 1.9, of which
both forms factor a matrix for each token, and titans, 9.4."""
SAMPLES = 3
"""Calls of which the fastest counts, of either side of a ratio alike, behind one that warms up."""
STEP_SAMPLES = 2
LARGE = 1024
"""Rows and columns of the product whose rate is the bound's."""

CASES: dict[str, tuple[FastWeightRule, bool]] = {
    "linear": ("linear", False),
    "linear, decay": ("linear", True),
    "delta": ("delta", False),
    "gated-delta": ("gated-delta", True),
    "longhorn": ("longhorn", False),
    "mesa": ("mesa", False),
    "mesa, decay": ("mesa", True),
    "ttt-linear": ("ttt-linear", False),
    "titans": ("titans", True),
}
"""Rule, and whether it decays."""


def run(size: Size) -> list[Outcome]:
    """Time a forward of every rule in both forms, and a training step."""
    length = LENGTH if size.rounds > 2 else QUICK_LENGTH
    patience = Patience(size.patience)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcomes = [
            outcome for width in WIDTHS for name in CASES for outcome in _case(name, length, width, size, patience)
        ]
        return outcomes + _references(length, size, patience)
    finally:
        torch.set_num_threads(threads)


def _case(name: str, length: int, width: int, size: Size, patience: Patience) -> list[Outcome]:
    rule, decays = CASES[name]
    tokens = _tokens(length, width)
    given = _options(rule, decays, length, width)
    flop, traffic = _flop(rule, decays, width) * HEADS * length, 4.0 * HEADS * length * (4 * width + 3)

    def work(form: FastWeightForm) -> None:
        with torch.no_grad():
            fast_weights(rule, *tokens, form=form, chunk=CHUNK, **given)

    def step(form: FastWeightForm) -> None:
        leaves = [x.clone().requires_grad_() for x in tokens]
        fast_weights(rule, *leaves, form=form, chunk=CHUNK, **given).output.square().mean().backward()

    def one_round() -> dict[str, float]:
        product, copied = _product_rate(size.gemm_seconds), _copy_rate(size.gemm_seconds)
        return {
            "chunked": fastest_of(SAMPLES, partial(work, "chunked")),
            "recurrent": fastest_of(SAMPLES, partial(work, "recurrent")),
            "chunked_step": fastest_of(STEP_SAMPLES, partial(step, "chunked")),
            "recurrent_step": fastest_of(STEP_SAMPLES, partial(step, "recurrent")),
            "bound": max(flop / product, traffic / copied),
            "product_rate": product,
            "copy_rate": copied,
        }

    for form in get_args(FastWeightForm):  # and so pay for what happens once
        work(form)
        step(form)
    rounds = [patience.undisturbed(one_round) for _ in range(size.rounds)]
    fastest = min(rounds, key=lambda r: r["chunked"])
    slower = statistics.median(r["recurrent_step"] / r["chunked_step"] for r in rounds)
    raw = {"rounds": rounds, "length": length, "width": width, "flop": flop, "bytes": traffic}
    raw["others"] = patience.others
    return [
        Outcome(
            f"fast weights: {name}, d {width}, recurrent over chunked",
            tuple(r["recurrent"] / r["chunked"] for r in rounds),
            "at least",
            TARGET,
            f"length {length}, {HEADS} heads: chunked {fastest['chunked'] * 1e3:,.1f} ms; training step {slower:.1f}",
            raw,
        ),
        Outcome(
            f"fast weights: {name}, d {width}, chunked over bound",
            tuple(r["chunked"] / r["bound"] for r in rounds),
            "at most",
            None,
            f"bound {fastest['bound'] * 1e3:,.2f} ms at {fastest['product_rate'] / 1e9:,.0f} GFLOP/s",
            raw,
        ),
    ]


def seconds(call: Callable[[], object]) -> float:
    """Of processor time, for one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def fastest_of(samples: int, call: Callable[[], object]) -> float:
    """The least seconds of so many calls."""
    return min(seconds(call) for _ in range(samples))


def _tokens(length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (torch.randn(1, HEADS, length, width, generator=generator) for _ in range(3))
    return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v


def _options(rule: FastWeightRule, decays: bool, length: int, width: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(SEED + 1)

    def by_token(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, HEADS, length, generator=generator)

    given: dict[str, Any] = {"rate": by_token(0.1, 0.4)}
    if decays:
        given["decay"] = by_token(0.9, 1.0)
    if "momentum" in OPTIONS[rule]:
        given["momentum"] = by_token(0.2, 0.8)
    if "norm" in OPTIONS[rule]:
        given["norm"] = torch.ones(HEADS, width), torch.zeros(HEADS, width)
        given["state"] = FastWeightState(rule, torch.randn(1, HEADS, width, width, generator=generator))
    return given


def _flop(rule: FastWeightRule, decays: bool, d: int) -> float:
    """Of the products that the chunked form consists of, a token and head."""
    chunk = MINI_BATCH if rule in ("ttt-linear", "titans") else CHUNK
    # Scores, their product with u; what passes on from a chunk, and what is read of what came.
    products: float = 2 * chunk * d + 2 * d * d
    if rule in ("delta", "gated-delta", "longhorn"):
        # The system, its solution for values and keys, and the weights before the chunk put in.
        products += chunk * d + chunk * d + d * d
    elif rule == "mesa" and decays:
        # Gram matrices of chunks and of tokens, a factor of each, two triangular systems.
        products += 2 * d * d + decayed_mesa_chunk(d) * d * d + d**3 / 6 + d * d
    elif rule == "mesa":
        # Gram matrix and its factor; p, Z and the way back; R, of its products the factor; two systems with R.
        products += d * d + d**3 / 6 / chunk + 3 * d * d / 2 + 3 * chunk * d + chunk**2 / 6 + chunk**2
    elif rule in ("ttt-linear", "titans"):
        products += d * d
    if rule == "titans":
        products += 2 * d * d + chunk**2
    return 2.0 * products


def _product_rate(lasting: float) -> float:
    """FLOP/s of a large product, in single precision."""
    n = LARGE
    left, right, out = (torch.randn(n, n) for _ in range(3))
    return _per_second(lambda: torch.mm(left, right, out=out), 2.0 * n**3, lasting)


def _copy_rate(lasting: float) -> float:
    """Bytes a second read and written by a copy larger than the caches."""
    source = torch.randn(16 * LARGE**2)
    target = torch.empty_like(source)
    return _per_second(lambda: target.copy_(source), 2.0 * source.nbytes, lasting)


def _per_second(call: Callable[[], object], amount: float, lasting: float) -> float:
    call()
    passed, times = 0.0, 0
    while passed < lasting:
        passed += seconds(call)
        times += 1
    return amount * times / passed


def _references(length: int, size: Size, patience: Patience) -> list[Outcome]:
    """The references of `fla-core` beside the chunked form, where it is installed."""
    if importlib.util.find_spec("fla") is None:
        return []
    outcomes = []
    width = WIDTHS[1]
    q, k, v = _tokens(length, width)
    rows = [x.transpose(1, 2) for x in (q, k, v)]
    rate = _options("delta", False, length, width)["rate"]
    decay = _options("gated-delta", True, length, width)["decay"]
    by_row = rate.transpose(1, 2), decay.log().transpose(1, 2)
    linear, delta, gated, mesa = (
        _reference(name) for name in ("linear_attn", "delta_rule", "gated_delta_rule", "mesa_net")
    )
    # A reference divides queries by the root of their width; where it can, it is asked not to.
    calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "linear": (
            lambda: linear.naive_chunk_linear_attn(*rows, scale=1.0).transpose(1, 2),
            lambda: fast_weights("linear", q, k, v, chunk=CHUNK).output,
        ),
        "delta": (
            lambda: delta.delta_rule_chunkwise(q * width**0.5, k, v, rate, chunk_size=CHUNK)[0],
            lambda: fast_weights("delta", q, k, v, rate=rate, chunk=CHUNK).output,
        ),
        "gated-delta": (
            lambda: gated.naive_chunk_gated_delta_rule(*rows, by_row[1], by_row[0], chunk_size=CHUNK, scale=1.0)[
                0
            ].transpose(1, 2),
            lambda: fast_weights("gated-delta", q, k, v, rate=rate, decay=decay, chunk=CHUNK).output,
        ),
        "mesa, decay": (
            lambda: mesa.naive_mesa_net_exact(*rows, by_row[1], torch.ones(HEADS, width), by_row[0])[0].transpose(1, 2),
            lambda: fast_weights("mesa", q, k, v, rate=rate, decay=decay, chunk=CHUNK).output,
        ),
    }
    for name, (theirs, ours) in calls.items():
        with torch.no_grad():
            expected, got = theirs(), ours()  # which warms both up
            error = float((got - expected).abs().max() / expected.abs().max())

            def one_round(theirs: Callable[[], Tensor] = theirs, ours: Callable[[], Tensor] = ours) -> dict[str, float]:
                return {"theirs": fastest_of(SAMPLES, theirs), "ours": fastest_of(SAMPLES, ours)}

            rounds = [patience.undisturbed(one_round) for _ in range(size.rounds)]
        outcomes.append(
            Outcome(
                f"fast weights: {name}, d {width}, fla-core's reference over chunked",
                tuple(r["theirs"] / r["ours"] for r in rounds),
                "at least",
                1.0,
                f"length {length}: largest difference {error:.1e} of the largest number",
                {"rounds": rounds, "error": error, "others": patience.others},
            )
        )
    return outcomes


def _reference(name: str) -> ModuleType:
    """A file of references alone: the package around it needs a GPU's compiler."""
    package = importlib.util.find_spec("fla")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "ops" / name / "naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_reference_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

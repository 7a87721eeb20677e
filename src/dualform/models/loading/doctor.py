"""Diagnosis of one model: its layout, self-checks, and what could not be verified."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dualform.models.loading.offloading import named_weights
from dualform.models.loading.quantized import UPDATES_LOST, token_by_token
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.self_check import ROUTES, check_readings, largest_difference, tolerance, window_of
from dualform.models.reading.tokens import TextTokenizer, chat_template_notes, opening_tokens
from dualform.models.structure.anatomy import Anatomy


@dataclass(frozen=True)
class Check:
    """One self-check: two computations that must agree."""

    name: str
    passed: bool
    deviation: float | None
    """Largest difference, relative to the largest entry; None if the check could not be run."""
    note: str = ""

    @property
    def deviation_text(self) -> str:
        """The deviation, formatted for a table."""
        return "-" if self.deviation is None else f"{self.deviation:.1e}"


@dataclass(frozen=True)
class DoctorReport:
    """What `dualform doctor` prints."""

    facts: dict[str, str]
    checks: tuple[Check, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Notes on loading, see `LanguageModel.notes`."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(lm: LanguageModel) -> DoctorReport:
    """Describe a model and check every route by which it can be run."""
    layers = lm.anatomy.layers
    window = window_of(lm.model)
    facts = {
        "architecture": type(lm.model).__name__,
        "parameters": f"{lm.n_parameters:,}",
        "layers": _layers(lm.anatomy),
        "heads": _heads(lm.anatomy),
        "context": "no limit in its config" if lm.max_positions is None else f"{lm.max_positions} tokens",
        "sliding window": "none" if not window else f"{window} tokens",
        "attention reached": "through the registry" if lm.anatomy.registry else "by intercepting softmax",
        **_projections(lm.anatomy),
        **_token_facts(lm),
        "dtype and device": f"{str(lm.model.dtype).removeprefix('torch.')} on {lm.device}",
        "weights": _weight_locations(lm),
        "stored in": lm.quantized or f"{8 * lm.model.dtype.itemsize} bits, not quantized",
        "route": lm.route.name,
    }
    with token_by_token(lm.model):
        checks = [*_route_checks(lm), *_untouched_checks(lm), *([_attention_check(lm)] if layers else [])]
    facts["peak memory"] = peak_memory()
    unverified = list(lm.anatomy.unclear)
    if lm.quantized is not None:
        unverified.append(
            f"W_K and W_V: located by gradients; not confirmed by perturbing them, since weights in {lm.quantized} "
            "cannot be changed slightly"
        )
        if lm.quantized == "8 bit":
            unverified.append("how much an answer depends on other texts in its row: 8-bit outliers are chosen per row")
        unverified.append(f"anything that compares weights or their changes, in {lm.quantized}: {UPDATES_LOST}")
    elif len(layers) > 1:
        unverified.append("W_K and W_V after the first layer: located by gradients, not confirmed by perturbing them")
    if lm.verification is not None:
        unverified += [f"the model's own forward of {skipped}" for skipped in lm.verification.unverified]
        unverified += [
            f"route {lm.route.name} beyond {check.switch.length} tokens ({check.switch.setting}): "
            f"{check.why or 'differs'}. Longer rows use the naive route, with one forward a token where the length "
            "changes how earlier tokens are read"
            for check in lm.verification.switches
            if not check.agrees
        ]
    return DoctorReport(facts, tuple(checks), tuple(unverified), lm.notes)


def _layers(anatomy: Anatomy) -> str:
    """Number of attention layers, and their blocks if not every block has one."""
    blocks = [layer.block for layer in anatomy.layers]
    if not blocks:
        return "none with attention that can be recorded"
    if blocks == list(range(len(blocks))) or None in blocks:
        return str(len(blocks))
    return f"{len(blocks)}, at blocks {', '.join(map(str, blocks))}"


def _heads(anatomy: Anatomy) -> str:
    shapes = dict.fromkeys(
        f"{layer.n_heads}, keys and values {layer.n_kv_heads}, {layer.d_head} wide"
        + ("" if layer.d_value is None else f", values {layer.d_value}")
        for layer in anatomy.layers
    )
    return " / ".join(shapes) or "-"


def _projections(anatomy: Anatomy) -> dict[str, str]:
    """Where the first layer's projections are, and operations between the heads and W_O in any layer."""
    if not anatomy.layers:
        return {}
    first = anatomy.layers[0]
    facts = {
        f"{name} (layer 0)": "not found"
        if rows is None
        else f"{rows.module} ({'all' if rows.whole else len(rows.index)} rows)"
        for name, rows in (("W_Q", first.W_Q), ("W_K", first.W_K), ("W_V", first.W_V))
    }
    facts["W_O (layer 0)"] = first.W_O or "not found"
    between: dict[str, list[int]] = {}
    for number, layer in enumerate(anatomy.layers):
        if layer.between:
            between.setdefault(layer.between, []).append(number)
    if between:
        facts["between heads and W_O"] = "; ".join(
            f"{operation} (layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))})"
            for operation, numbers in between.items()
        )
    return facts


def _token_facts(lm: LanguageModel) -> dict[str, str]:
    """Opening tokens, vocabulary, and peculiarities of the tokenizer."""
    opening, tokens = opening_tokens(lm.tokenizer), TextTokenizer(lm.tokenizer, lm.model, lm.name)
    names = " ".join(f"{name!r} ({index})" for name, index in zip(opening.tokens, opening.ids, strict=True))
    own = f"; the tokenizer itself puts {' '.join(map(repr, opening.own)) or 'nothing'} in front of a text"
    facts = {"opening token": names or "none", "opening from": opening.origin + (own if opening.note else "")}
    without = len(tokens.without_rows)
    rows = f"; {without} tokens have no row, such as {tokens.without_rows[0]!r}" if without else ""
    facts["vocabulary"] = f"{len(lm.tokenizer):,} tokens, an embedding of {tokens.rows:,} rows{rows}"
    if chat_template_notes(lm.tokenizer):
        facts["chat template"] = "applied with --chat on; by default prompts are plain text"
    if tokens.loses_line_breaks:
        facts["line breaks"] = "cannot be encoded: the tokenizer turns them into spaces or unknown tokens"
    return facts


def _weight_locations(lm: LanguageModel) -> str:
    """Size of the weights on each device, largest first."""
    places: dict[str, str | int] = getattr(lm.model, "hf_device_map", None) or {"": str(lm.device)}
    sizes: dict[str, int] = {}
    for name, weight in named_weights(lm.model):
        containing = [key for key in places if not key or f"{name}.".startswith(f"{key}.")]
        # Modules that the device map does not name stay on the model's own device.
        place = str(places[max(containing, key=len)]) if containing else str(lm.device)
        place = f"cuda:{place}" if place.isdigit() else place
        sizes[place] = sizes.get(place, 0) + weight.numel() * weight.element_size()
    parts = [f"{size / (1 << 20):,.0f} MiB on {place}" for place, size in sorted(sizes.items(), key=lambda it: -it[1])]
    return ", ".join(parts) + (", loaded when needed" if lm.offloaded else "")


def peak_memory() -> str:
    """Peak memory of this process as text: main memory, and each GPU's."""
    peaks = []
    try:
        import resource
    except ImportError:
        # Not available on Windows.
        pass
    else:
        # In KiB on Linux, in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1 << 10
        peaks.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20):,.0f} MiB")
    for number in range(torch.cuda.device_count()):
        peaks.append(f"{torch.cuda.max_memory_allocated(number) / (1 << 20):,.0f} MiB on cuda:{number}")
    return ", ".join(peaks) or "not known on this system"


def _route_checks(lm: LanguageModel) -> list[Check]:
    expected = check_readings(lm.model, NaiveRoute(lm.model, lm.anatomy))
    checks = []
    for name, route in ROUTES.items():
        if name == "naive" or (name == "packed" and not lm.anatomy.registry):
            continue
        title = f"route {name} = naive forward"
        try:
            deviation = largest_difference(expected, check_readings(lm.model, route(lm.model, lm.anatomy)))
        except Exception as error:
            # A family's code may fail in any way on a route that does not suit it.
            reason = (str(error).splitlines() or [""])[0][:60]
            checks.append(Check(title, False, None, f"{type(error).__name__}: {reason}"))
            continue
        checks.append(Check(title, deviation < tolerance(lm.model), deviation))
    return checks


def _untouched_checks(lm: LanguageModel) -> list[Check]:
    """Checks made while loading: against the model's own forward, and of routes on long inputs."""
    verification = lm.verification
    if verification is None:
        return []
    checks = [
        Check("changing the last token leaves earlier logits unchanged", True, verification.causality),
        Check(f"naive forward = the model's own ({verification.implementation})", True, verification.deviation),
    ]
    for check in verification.switches:
        if check.deviation is not None and lm.route.name != "naive":
            title = f"route {lm.route.name} = naive forward beyond {check.switch.length} tokens"
            checks.append(Check(title, check.agrees, check.deviation, check.why))
    return checks


def _attention_check(lm: LanguageModel) -> Check:
    """Check that softmax of the recorded scores, times the values, gives the recorded head outputs."""
    title = "softmax(scores) x values = head outputs"
    size = lm.model.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(16) * 7919 % (size - 4) + 4).tolist()
    prefix = lm.encode(tokens[:6])
    want = Recording(scores=True, demo_scores=True, mixed=True, q=True)
    queries = [Query(tuple(tokens[6:]), ((tokens[0],),))]
    trace = lm.read_group(prefix, queries, [0], want).trace
    assert trace is not None
    assert trace.scores is not None
    assert trace.demo_scores is not None
    assert trace.mixed is not None
    scores = torch.cat([trace.demo_scores, trace.scores], dim=-1)[0].float()
    if trace.sinks is not None:
        # An attention sink takes part in the softmax but has no value.
        scores = torch.cat([scores, trace.sinks.to(scores)[..., None]], dim=-1)
    expected, recorded = [], []
    for number, (layer, (_, value)) in enumerate(zip(lm.anatomy.layers, lm.encode(tokens).layers, strict=True)):
        weights = torch.softmax(scores[number, : layer.n_heads], dim=-1)[:, : len(tokens)]
        values = value.to(weights.device).float().repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=0)
        expected.append(torch.einsum("hp,hpd->hd", weights, values))
        recorded.append(trace.mixed[0, number, : layer.n_heads, : layer.head_width])
    deviation = largest_difference(expected, recorded)
    return Check(title, deviation < tolerance(lm.model), deviation)

"""An examination of one model: what was found, what was checked, and what has to be taken on trust."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dualform.models.loading.offloading import named_weights
from dualform.models.loading.quantized import WHY, token_by_token
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.self_check import ROUTES, check_readings, largest_difference, tolerance, window_of
from dualform.models.reading.tokens import TextTokenizer, chat_template_notes, opening_tokens
from dualform.models.structure.anatomy import Anatomy


@dataclass(frozen=True)
class Check:
    """One comparison of a fast path with the obvious one."""

    name: str
    passed: bool
    deviation: float | None
    """Relative to the largest entry; None when it could not be run."""
    note: str = ""

    @property
    def shown(self) -> str:
        """The deviation in words."""
        return "-" if self.deviation is None else f"{self.deviation:.1e}"


@dataclass(frozen=True)
class DoctorReport:
    """All that `dualform doctor` knows."""

    facts: dict[str, str]
    checks: tuple[Check, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What is known of how the model was loaded, see `LanguageModel.notes`."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(lm: LanguageModel) -> DoctorReport:
    """Look a model over, running every route it might take."""
    layers = lm.anatomy.layers
    window = window_of(lm.model)
    facts = {
        "architecture": type(lm.model).__name__,
        "parameters": f"{lm.n_parameters:,}",
        "layers": _layers(lm.anatomy),
        "heads": _heads(lm.anatomy),
        "context": "no limit named" if lm.max_positions is None else f"{lm.max_positions} tokens",
        "sliding window": "none" if not window else f"{window} tokens",
        "attention reached": "through the registry" if lm.anatomy.registry else "watched from underneath",
        **_projections(lm.anatomy),
        **_token_facts(lm),
        "dtype and device": f"{str(lm.model.dtype).removeprefix('torch.')} on {lm.device}",
        "weights": _where(lm),
        "stored in": lm.quantized or f"{8 * lm.model.dtype.itemsize} bits, nothing rounded",
        "route": lm.route.name,
    }
    with token_by_token(lm.model):
        checks = [*_route_checks(lm), *_untouched_checks(lm), *([_attention_check(lm)] if layers else [])]
    facts["peak memory"] = peak_memory()
    unverified = list(lm.anatomy.unclear)
    if lm.quantized is not None:
        unverified.append(f"W_K and W_V: found by gradients; weights in {lm.quantized} cannot be nudged")
        if lm.quantized == "8 bit":
            unverified.append("how far an answer hangs on what is read in the same row: outliers are found row by row")
        unverified.append(f"anything that compares weights or their changes, in {lm.quantized}: {WHY}")
    elif len(layers) > 1:
        unverified.append("W_K and W_V of layers after the first: found by gradients, not nudged")
    if lm.verification is not None:
        unverified += [f"the model's own forward of {skipped}" for skipped in lm.verification.unverified]
        unverified += [
            f"route {lm.route.name} beyond {one.switch.length} tokens ({one.switch.setting}): {one.why or 'differs'}. "
            "Longer rows are read naively, one forward a token where the length decides how all tokens are read"
            for one in lm.verification.switches
            if not one.agrees
        ]
    return DoctorReport(facts, tuple(checks), tuple(unverified), lm.notes)


def _layers(anatomy: Anatomy) -> str:
    """How many, and at which blocks where these are counted differently."""
    blocks = [layer.block for layer in anatomy.layers]
    if not blocks:
        return "none whose attention can be recorded"
    if blocks == list(range(len(blocks))) or None in blocks:
        return str(len(blocks))
    return f"{len(blocks)}, at blocks {', '.join(map(str, blocks))}"


def _heads(anatomy: Anatomy) -> str:
    shapes = dict.fromkeys(
        f"{one.n_heads}, keys and values {one.n_kv_heads}, {one.d_head} wide"
        + ("" if one.d_value is None else f", values {one.d_value}")
        for one in anatomy.layers
    )
    return " / ".join(shapes) or "-"


def _projections(anatomy: Anatomy) -> dict[str, str]:
    """Where the first layer's are, and what stands between heads and W_O in any layer."""
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
            f"{what} (layer{'s' if len(where) > 1 else ''} {', '.join(map(str, where))})"
            for what, where in between.items()
        )
    return facts


def _token_facts(lm: LanguageModel) -> dict[str, str]:
    """What begins a sequence, and what else sets the tokenizer's use here apart from its use in a chat."""
    opening, tokens = opening_tokens(lm.tokenizer), TextTokenizer(lm.tokenizer, lm.model, lm.name)
    shown = " ".join(f"{name!r} ({index})" for name, index in zip(opening.tokens, opening.ids, strict=True))
    own = f"; the tokenizer itself puts {' '.join(map(repr, opening.own)) or 'nothing'} in front of a text"
    facts = {"opening token": shown or "none", "opening from": opening.origin + (own if opening.note else "")}
    without = len(tokens.without_rows)
    rows = f"; {without} tokens have none, such as {tokens.without_rows[0]!r}" if without else ""
    facts["vocabulary"] = f"{len(lm.tokenizer):,} tokens, an embedding of {tokens.rows:,} rows{rows}"
    if chat_template_notes(lm.tokenizer):
        facts["chat template"] = "not applied: prompts are plain text"
    if tokens.loses_line_breaks:
        facts["line breaks"] = "cannot be encoded: the tokenizer makes spaces or unknown tokens of them"
    return facts


def _where(lm: LanguageModel) -> str:
    """On which devices the weights lie, largest share first."""
    places: dict[str, str | int] = getattr(lm.model, "hf_device_map", None) or {"": str(lm.device)}
    sizes: dict[str, int] = {}
    for name, weight in named_weights(lm.model):
        inside = [key for key in places if not key or f"{name}.".startswith(f"{key}.")]
        # What a map does not name stays where the model would be without one.
        place = str(places[max(inside, key=len)]) if inside else str(lm.device)
        place = f"cuda:{place}" if place.isdigit() else place
        sizes[place] = sizes.get(place, 0) + weight.numel() * weight.element_size()
    shown = [f"{size / (1 << 20):,.0f} MiB on {place}" for place, size in sorted(sizes.items(), key=lambda it: -it[1])]
    return ", ".join(shown) + (", read as they are needed" if lm.offloaded else "")


def peak_memory() -> str:
    """The most memory that this process has had, in words: its own, and on each GPU."""
    found = []
    try:
        import resource
    except ImportError:
        # Windows has none.
        pass
    else:
        # Kilobytes, but on a Mac bytes.
        unit = 1 if sys.platform == "darwin" else 1 << 10
        found.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20):,.0f} MiB")
    for number in range(torch.cuda.device_count()):
        found.append(f"{torch.cuda.max_memory_allocated(number) / (1 << 20):,.0f} MiB on cuda:{number}")
    return ", ".join(found) or "not known on this system"


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
            # Whatever a family's code makes of a route that does not fit it: that is the finding.
            reason = (str(error).splitlines() or [""])[0][:60]
            checks.append(Check(title, False, None, f"{type(error).__name__}: {reason}"))
            continue
        checks.append(Check(title, deviation < tolerance(lm.model), deviation))
    return checks


def _untouched_checks(lm: LanguageModel) -> list[Check]:
    """What loading compared with the model's own forward, and routes beyond lengths where the model changes."""
    found = lm.verification
    if found is None:
        return []
    checks = [
        Check("another last token leaves earlier logits alone", True, found.causality),
        Check(f"naive forward = the model's own ({found.implementation})", True, found.deviation),
    ]
    for one in found.switches:
        if one.deviation is not None and lm.route.name != "naive":
            title = f"route {lm.route.name} = naive forward beyond {one.switch.length} tokens"
            checks.append(Check(title, one.agrees, one.deviation, one.why))
    return checks


def _attention_check(lm: LanguageModel) -> Check:
    """Recorded scores, after softmax, times values must give the recorded head outputs."""
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
        # What a sink takes of the softmax is multiplied with no value.
        scores = torch.cat([scores, trace.sinks.to(scores)[..., None]], dim=-1)
    expected, recorded = [], []
    for number, (layer, (_, value)) in enumerate(zip(lm.anatomy.layers, lm.encode(tokens).layers, strict=True)):
        weights = torch.softmax(scores[number, : layer.n_heads], dim=-1)[:, : len(tokens)]
        values = value.to(weights.device).float().repeat_interleave(layer.n_heads // layer.n_kv_heads, dim=0)
        expected.append(torch.einsum("hp,hpd->hd", weights, values))
        recorded.append(trace.mixed[0, number, : layer.n_heads, : layer.head_width])
    deviation = largest_difference(expected, recorded)
    return Check(title, deviation < tolerance(lm.model), deviation)

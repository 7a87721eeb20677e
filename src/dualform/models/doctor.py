"""An examination of one model: what was found, what was checked, and what has to be taken on trust."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from dualform.models.cached import NaiveRoute
from dualform.models.capture import Recording
from dualform.models.language_model import (
    ROUTES,
    LanguageModel,
    check_readings,
    largest_difference,
    tolerance,
    window_of,
)
from dualform.models.layout import Query


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
class Examination:
    """All that `dualform doctor` knows."""

    facts: dict[str, str]
    checks: tuple[Check, ...]
    unverified: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(lm: LanguageModel) -> Examination:
    """Look a model over, running every route it might take."""
    layers = lm.anatomy.layers
    first = layers[0]
    window = window_of(lm.model)
    places = {
        name: "not found" if rows is None else f"{rows.module} ({'all' if rows.whole else len(rows.index)} rows)"
        for name, rows in (("W_Q", first.W_Q), ("W_K", first.W_K), ("W_V", first.W_V))
    }
    facts = {
        "architecture": type(lm.model).__name__,
        "parameters": f"{sum(parameter.numel() for parameter in lm.model.parameters()):,}",
        "layers": str(len(layers)),
        "heads": f"{first.n_heads}, keys and values {first.n_kv_heads}, {first.d_head} wide",
        "context": "no limit named" if lm.max_positions is None else f"{lm.max_positions} tokens",
        "sliding window": "none" if not window else f"{window} tokens",
        "attention reached": "through the registry" if lm.anatomy.registry else "watched from underneath",
        **{f"{name} (layer 0)": place for name, place in places.items()},
        "W_O (layer 0)": first.W_O or "not found",
        "opening token": "none" if lm.bos is None else f"{lm.tokenizer.convert_ids_to_tokens(lm.bos)!r} ({lm.bos})",
        "dtype and device": f"{str(lm.model.dtype).removeprefix('torch.')} on {lm.device}",
        "route": lm.route.name,
    }
    checks = [*_route_checks(lm), _attention_check(lm)]
    unverified = list(lm.anatomy.unclear)
    if len(layers) > 1:
        unverified.append("W_K and W_V of layers after the first: found by gradients, not nudged")
    if window and window > 1024:
        unverified.append(f"behaviour beyond the sliding window of {window} tokens: the self-check's prefix is shorter")
    return Examination(facts, tuple(checks), tuple(unverified))


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
        checks.append(Check(title, deviation < tolerance(lm.model.dtype), deviation))
    return checks


def _attention_check(lm: LanguageModel) -> Check:
    """Recorded scores, after softmax, times values must give the recorded head outputs."""
    title = "softmax(scores) x values = head outputs"
    size = lm.model.get_input_embeddings().weight.shape[0]
    tokens = (torch.arange(16) * 7919 % (size - 4) + 4).tolist()
    prefix = lm.encode(tokens[:6])
    want = Recording(scores=True, demo_scores=True, head_output=True, q=True)
    queries = [Query(tuple(tokens[6:]), ((tokens[0],),))]
    trace = lm.read_group(prefix, queries, [0], want).trace
    assert trace is not None
    assert trace.scores is not None
    assert trace.demo_scores is not None
    assert trace.head_output is not None
    weights = torch.softmax(torch.cat([trace.demo_scores, trace.scores], dim=-1).float(), dim=-1)
    values = torch.stack([value for _, value in lm.encode(tokens).layers])
    groups = weights.shape[2] // values.shape[1]
    mixed = torch.einsum("lhp,lhpd->lhd", weights[0], values.repeat_interleave(groups, dim=1).float())
    deviation = largest_difference([trace.head_output[0]], [mixed])
    return Check(title, deviation < tolerance(lm.model.dtype), deviation)

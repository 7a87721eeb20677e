"""Self-check at load: each faster route must agree with the naive route on a small example."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ModelError, type_and_first_line
from dualform.models.loading.offloading import input_device
from dualform.models.loading.untouched import difference_allowed, special_ids
from dualform.models.reading.cached import MaskedRoute, NaiveRoute, RepeatedRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import KeysValues
from dualform.models.reading.layout import Query, lay_out
from dualform.models.reading.packed import PackedRoute
from dualform.models.reading.route import Route
from dualform.models.reading.switch_lengths import SwitchLength, switch_lengths, text_config
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.probing import ordinary_ids
from dualform.ops.rounding import at_least_float32


@dataclass(frozen=True)
class Verification:
    """Result of the self-check when the model was loaded."""

    implementation: str
    """Attention implementation of the model's own forward, with which the naive route was compared."""
    causality: float
    """Largest change of earlier logits when the last token changes, relative to the largest logit."""
    deviation: float
    """Largest difference between the naive route and the model's own forward, relative to the largest entry."""
    unverified: tuple[str, ...] = ()
    """Descriptions of what could not be compared."""
    switches: tuple["CheckedSwitch", ...] = ()
    """The model's switch lengths, shortest first."""


@dataclass(frozen=True)
class CheckedSwitch:
    """A switch length, and whether the route agrees with the naive route beyond it."""

    switch: SwitchLength
    agrees: bool
    """Whether the route may be used for rows beyond this length; if not, they are read on the naive route."""
    deviation: float | None
    """Largest difference, relative to the largest entry; None if no row of this length was compared."""
    why: str = ""
    """Why nothing was compared, or the error that was raised."""


ROUTES = {route.name: route for route in (PackedRoute, MaskedRoute, RepeatedRoute, NaiveRoute)}


def require_known_route(name: str | None) -> None:
    """Check that a route of this name exists.

    Raises:
        ModelError: It does not exist.
    """
    if name is not None and name not in ROUTES:
        raise ModelError(f"unknown route {name!r}: choose one of {', '.join(ROUTES)}")


def choose_route(
    model: PreTrainedModel, anatomy: Anatomy, requested: str | None = None
) -> tuple[Route, tuple[str, ...]]:
    """The fastest route that agrees with the naive route on a small example, for a model in eval mode.

    Returns:
        The route (`requested`, if given), and for each faster route the reason why it was refused.

    Raises:
        ModelError: The requested route is unknown or refused, or the naive route fails.
    """
    require_known_route(requested)
    naive = NaiveRoute(model, anatomy)
    names = [requested] if requested else [name for name in ROUTES if anatomy.registry or name != "packed"]
    refused: list[str] = []
    expected = None
    for name in names:
        if name == "naive":
            return naive, tuple(refused)
        if name == "packed" and not anatomy.registry:
            refused.append("packed: the family computes attention in its own code")
            continue
        if name == "packed-mask" and window_of(model) > (LONGEST_CHECK if model.dtype.itemsize >= 4 else 0):
            refused.append(f"packed-mask: a window of {window_of(model)} tokens cannot be checked in {model.dtype}")
            continue
        expected = expected or _naive_readings(model, naive)
        try:
            difference = largest_difference(expected, check_readings(model, ROUTES[name](model, anatomy)))
        except Exception as error:
            # A family's code may raise anything (KeyError, AttributeError, an empty AssertionError, ...) on a route
            # that it does not support; another route may still work.
            refused.append(f"{name}: {type_and_first_line(error)}")
            continue
        if difference < tolerance(model):
            return ROUTES[name](model, anatomy), tuple(refused)
        refused.append(f"{name}: log-probabilities or records differ from the naive forward's by {difference:.1e}")
    raise ModelError(
        f"route {requested!r} does not agree with the naive route on this model: {'; '.join(refused)}. Leave out the "
        "route, or choose naive."
    )


def _naive_readings(model: PreTrainedModel, naive: NaiveRoute) -> list[Tensor]:
    try:
        return check_readings(model, naive)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be read, not even on the naive route: {type_and_first_line(error)}"
        ) from error


def checked_lengths(model: PreTrainedModel) -> list[int]:
    """Row lengths, in tokens, that are slightly longer than each switch length that can be checked."""
    return sorted({switch.length + 3 for switch in switch_lengths(model.config) if can_be_checked(model, switch)})


def can_be_checked(model: PreTrainedModel, switch: SwitchLength) -> bool:
    """Whether a row beyond a switch length is short enough to be read at load and within the model's positions."""
    if switch.reach == "token":
        return switch.length <= longest_check(model)
    return switch.length <= LONGEST_CHECK


def longest_check(model: PreTrainedModel) -> int:
    """The longest window, in tokens, that the self-check fills in this model."""
    config = text_config(model.config)
    positions = getattr(config, "max_position_embeddings", None)
    # The check reads some tokens beyond the window (`check_readings`), and learned positions end at this maximum.
    return min(LONGEST_CHECK, positions - _BEYOND) if isinstance(positions, int) and positions > 0 else LONGEST_CHECK


def check_switches(model: PreTrainedModel, anatomy: Anatomy, route: Route) -> Iterator[CheckedSwitch]:
    """Compare a route with the naive route beyond every switch length that is short enough.

    Yields:
        One result per switch length of the model, shortest first.
    """
    naive = NaiveRoute(model, anatomy)
    for switch in switch_lengths(model.config):
        if isinstance(route, NaiveRoute):
            yield CheckedSwitch(switch, True, 0.0)
        elif switch.reach == "every length":
            # Forwards of two lengths never share a prefix there, so a faster route has nothing to reuse.
            yield CheckedSwitch(switch, False, None, "the states of all tokens change with every further token")
        elif switch.reach == "token" and switch.length == window_of(model) <= longest_check(model):
            yield CheckedSwitch(switch, True, None, "the route was chosen with a prefix longer than this")
        elif not can_be_checked(model, switch):
            yield CheckedSwitch(switch, False, None, f"longer than the {longest_check(model)} tokens of the self-check")
        else:
            length = switch.length + 3
            try:
                expected = check_readings(model, naive, length)
                difference = largest_difference(expected, check_readings(model, route, length))
            except Exception as error:
                yield CheckedSwitch(switch, False, None, type_and_first_line(error))
                continue
            yield CheckedSwitch(switch, difference < tolerance(model), difference)


def check_readings(model: PreTrainedModel, route: Route, n_prefix: int | None = None) -> list[Tensor]:
    """Log-probabilities and records of three queries with answers of one to three tokens, after a prefix.

    Args:
        model: In eval mode.
        route: The route to use.
        n_prefix: Number of tokens of the prefix, with fewer queries and answers to save time. None for a few tokens, or
            slightly more than a short sliding window.
    """
    # A prefix longer than a short sliding window tests whether the route handles the window.
    window = window_of(model)
    length = (window + 3 if 0 < window <= longest_check(model) else 9) if n_prefix is None else n_prefix
    tokens = ordinary_ids(model, length + 40)
    # Families may treat special tokens differently: RoBERTa does not count padding among the positions.
    for place, special in zip((2, length + 1, 5, length + 12, 8, length + 14), special_ids(model), strict=False):
        tokens[place] = special
    own = tokens[length:]
    queries = [
        Query(tuple(own[:4]), ((own[4],), (own[5], own[6], own[7]), (own[8], own[9]))),
        Query(tuple(own[10:17]), ((own[17],), (own[18],), (own[19],))),
        Query((own[20],), ((own[21], own[22]), (own[23],), (own[24], own[25]))),
    ]
    if n_prefix is not None:
        queries = [Query(queries[0].prompt, queries[0].answers[1:2]), Query(queries[1].prompt, queries[1].answers[:1])]
    layout = lay_out(queries, "prompt", input_device(model))
    # Attention outputs can be recorded only if every W_O is known; scores need no W_O.
    has_layers = bool(route.anatomy.layers)
    want = Recording(output=route.anatomy.knows_outputs, scores=has_layers, head_output=has_layers)
    logits, _, trace = route.read(_prefix(route, tuple(tokens[:length])), queries, layout, want)
    readings = [layout.score(torch.log_softmax(at_least_float32(logits), dim=-1))]
    if n_prefix is None:
        readings.append(_short_reading(model, route))
    if trace is not None and trace.scores is not None:
        visible = trace.mask[:, None, None] & torch.isfinite(trace.scores)
        readings.append(trace.scores.masked_fill(~visible, 0.0))
        readings += [record for record in (trace.output, trace.head_output) if record is not None]
    return readings


def _short_reading(model: PreTrainedModel, route: Route) -> Tensor:
    """Log-probabilities of one answer to a query with special tokens, after a prefix of ordinary tokens.

    With a single prefix, two deviations can cancel: RoBERTa counts positions from one more than its padding id and
    skips padding, so with id 0 and one padding token in the prefix the query has the same positions as in other
    families.
    """
    tokens = ordinary_ids(model, 8, start=60)
    tokens[4:6] = (*special_ids(model), *tokens[4:6])[:2]
    query = Query(tuple(tokens[3:7]), ((tokens[7],),))
    layout = lay_out([query], "prompt", input_device(model))
    logits, _, _ = route.read(_prefix(route, tuple(tokens[:3])), [query], layout, Recording())
    return layout.score(torch.log_softmax(at_least_float32(logits), dim=-1))


def _prefix(route: Route, tokens: tuple[int, ...]) -> Any:
    """The prefix for `route.read`; the naive route reads it again with every answer, so it need not be encoded."""
    return KeysValues((), tokens) if isinstance(route, NaiveRoute) else route.encode(tokens)


LONGEST_CHECK = 1024
"""The longest window, in tokens, that the self-check fills; a longer one would take a real model many seconds."""
_BEYOND = 12
"""How many positions beyond a window the self-check uses: three of the prefix and its longest query."""


def window_of(model: PreTrainedModel) -> int:
    """Size of the sliding window in tokens; 0 without one."""
    config = text_config(model.config)
    # GPT-Neo calls it `window_size`.
    return int(getattr(config, "sliding_window", None) or getattr(config, "window_size", None) or 0)


def largest_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Largest deviation, relative to the largest entry of each expected tensor; NaN if any tensor has a NaN."""
    # Python's max would drop a NaN that is not the first entry.
    return float(
        torch.stack(
            [
                (a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-9)
                for a, b in zip(expected, actual, strict=True)
            ]
        ).max()
    )


def tolerance(model: PreTrainedModel) -> float:
    """Largest difference that counts as rounding (`untouched.difference_allowed`)."""
    return difference_allowed(model)

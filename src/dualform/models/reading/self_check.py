"""Each faster way of reading a model must agree with the naive one, on a small case that is read at load."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ModelError, type_and_first_line
from dualform.models.loading.offloading import input_device
from dualform.models.loading.untouched import difference_allowed, special_ids
from dualform.models.reading.cached import MaskedRoute, NaiveRoute, RepeatedRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.layout import Query, lay_out
from dualform.models.reading.packed import PackedRoute
from dualform.models.reading.route import Route
from dualform.models.reading.switch_lengths import SwitchLength, switch_lengths, text_config
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.probing import ordinary_ids
from dualform.ops.rounding import at_least_float32


@dataclass(frozen=True)
class Verification:
    """What the self-check found when the model was loaded."""

    implementation: str
    """Attention implementation of the model's own forward, which the naive route was compared with."""
    causality: float
    """Largest change of earlier logits when the last token changes, relative to the largest logit."""
    deviation: float
    """Largest difference between naive route and the model's own forward, relative to the largest entry."""
    unverified: tuple[str, ...] = ()
    """What could not be compared, in words."""
    switches: tuple["CheckedSwitch", ...] = ()
    """Lengths at which the model begins to compute something else, shortest first."""


@dataclass(frozen=True)
class CheckedSwitch:
    """A switch length, and whether the route was compared with the naive one beyond it."""

    switch: SwitchLength
    agrees: bool
    """The route was right on a row beyond this length; otherwise longer rows are read on the naive route."""
    deviation: float | None
    """Relative to the largest entry; None where no row of this length was read."""
    why: str = ""
    """Why it was not compared, or what it raised."""


ROUTES = {route.name: route for route in (PackedRoute, MaskedRoute, RepeatedRoute, NaiveRoute)}


def require_known_route(name: str | None) -> None:
    """Check that a route of this name exists.

    Raises:
        ModelError: It does not.
    """
    if name is not None and name not in ROUTES:
        raise ModelError(f"unknown route {name!r}: choose one of {', '.join(ROUTES)}")


def choose_route(model: PreTrainedModel, anatomy: Anatomy, insist: str | None = None) -> tuple[Route, tuple[str, ...]]:
    """The fastest route that gives the naive route's numbers on a small case.

    Args:
        model: In eval mode.
        anatomy: Its anatomy.
        insist: Accept only the route of this name.

    Returns:
        The route, and for each faster one why it was refused.

    Raises:
        ModelError: The route insisted upon is unknown or refused, or the naive route fails.
    """
    require_known_route(insist)
    naive = NaiveRoute(model, anatomy)
    names = [insist] if insist else [name for name in ROUTES if anatomy.registry or name != "packed"]
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
            # Whatever a family's code makes of a route that does not suit it (KeyError, AttributeError, an empty
            # AssertionError, ...): another route may suit it.
            refused.append(f"{name}: {type_and_first_line(error)}")
            continue
        if difference < tolerance(model):
            return ROUTES[name](model, anatomy), tuple(refused)
        refused.append(f"{name}: log-probabilities or records differ from the naive forward's by {difference:.1e}")
    raise ModelError(
        f"route {insist!r} does not read this model rightly: {'; '.join(refused)}. Leave out the route, or take naive."
    )


def _naive_readings(model: PreTrainedModel, naive: NaiveRoute) -> list[Tensor]:
    try:
        return check_readings(model, naive)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be read, not even on the naive route: {type_and_first_line(error)}"
        ) from error


def checked_lengths(model: PreTrainedModel) -> list[int]:
    """Tokens of rows that reach a little beyond each switch length that is short enough to be checked."""
    return sorted({one.length + 3 for one in switch_lengths(model.config) if can_be_checked(model, one)})


def can_be_checked(model: PreTrainedModel, switch: SwitchLength) -> bool:
    """Whether a row beyond a switch length is short enough to be read at load, and within the model's positions."""
    if switch.reach == "token":
        return switch.length <= longest_check(model)
    return switch.length <= LONGEST_CHECK


def longest_check(model: PreTrainedModel) -> int:
    """The longest window, in tokens, that the self-check fills in this model."""
    config = text_config(model.config)
    positions = getattr(config, "max_position_embeddings", None)
    # Learned positions end there, and the check reads some tokens beyond the window (`check_readings`).
    return min(LONGEST_CHECK, positions - _BEYOND) if isinstance(positions, int) and positions > 0 else LONGEST_CHECK


def check_switches(model: PreTrainedModel, anatomy: Anatomy, route: Route) -> Iterator[CheckedSwitch]:
    """Compare a route with the naive one beyond every switch length that is short enough.

    Args:
        model: In eval mode.
        anatomy: Its anatomy.
        route: The one chosen.

    Yields:
        Every switch length of the model, shortest first.
    """
    naive = NaiveRoute(model, anatomy)
    for switch in switch_lengths(model.config):
        if isinstance(route, NaiveRoute):
            yield CheckedSwitch(switch, True, 0.0)
        elif switch.reach == "every length":
            # Two lengths never share a prefix there, so there is nothing that a faster route could reuse.
            yield CheckedSwitch(switch, False, None, "a forward of every length is another function")
        elif switch.reach == "token" and switch.length == window_of(model) <= longest_check(model):
            yield CheckedSwitch(switch, True, None, "the choice of the route was made behind a prefix longer than this")
        elif not can_be_checked(model, switch):
            yield CheckedSwitch(switch, False, None, f"longer than the {longest_check(model)} tokens of the check")
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
    """Log-probabilities and records of three queries with answers of one to three tokens, behind a prefix.

    Args:
        model: In eval mode.
        route: Reads them.
        n_prefix: Tokens of the prefix; default: a few, or more than a short sliding window holds. Behind a longer one
            there are fewer answers, to save time.
    """
    # A prefix that a short sliding window cannot hold shows whether the route knows the window.
    window = window_of(model)
    length = (window + 3 if 0 < window <= longest_check(model) else 9) if n_prefix is None else n_prefix
    tokens = ordinary_ids(model, length + 40)
    # Families may treat special tokens unlike others: RoBERTa does not count padding among the positions.
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
    # Attention outputs can be recorded only where every W_O is known; answers and scores need none.
    some = bool(route.anatomy.layers)
    want = Recording(output=route.anatomy.knows_outputs, scores=some, head_output=some)
    logits, _, trace = route.read(route.encode(tuple(tokens[:length])), queries, layout, want)
    found = [layout.score(torch.log_softmax(at_least_float32(logits), dim=-1))]
    if n_prefix is None:
        found.append(_short_reading(model, route))
    if trace is not None and trace.scores is not None:
        visible = trace.mask[:, None, None] & torch.isfinite(trace.scores)
        found.append(trace.scores.masked_fill(~visible, 0.0))
        found += [record for record in (trace.output, trace.head_output) if record is not None]
    return found


def _short_reading(model: PreTrainedModel, route: Route) -> Tensor:
    """Log-probabilities of one answer, behind a prefix of ordinary tokens, to a query with special ones.

    Two departures can cancel behind a single prefix: RoBERTa counts positions from one more than its padding id and
    leaves padding out, so with id 0 and one padding token in the prefix the query stands where any other family has it.
    """
    tokens = ordinary_ids(model, 8, start=60)
    tokens[4:6] = (*special_ids(model), *tokens[4:6])[:2]
    query = Query(tuple(tokens[3:7]), ((tokens[7],),))
    layout = lay_out([query], "prompt", input_device(model))
    logits, _, _ = route.read(route.encode(tuple(tokens[:3])), [query], layout, Recording())
    return layout.score(torch.log_softmax(at_least_float32(logits), dim=-1))


LONGEST_CHECK = 1024
"""The longest window, in tokens, that the self-check fills; longer ones would cost a real model many seconds."""
_BEYOND = 12
"""Positions beyond a window that the self-check may reach: three of the prefix and its longest query."""


def window_of(model: PreTrainedModel) -> int:
    """How far back layers with a sliding window look, tokens; 0 when there are none."""
    config = text_config(model.config)
    # GPT-Neo has a name of its own for it.
    return int(getattr(config, "sliding_window", None) or getattr(config, "window_size", None) or 0)


def largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest deviation, relative to the largest entry of each tensor; NaN where one of them has a NaN."""
    # Python's max would lose a NaN that is not the first.
    return float(
        torch.stack(
            [
                (a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-9)
                for a, b in zip(expected, found, strict=True)
            ]
        ).max()
    )


def tolerance(model: PreTrainedModel) -> float:
    """Largest difference that counts as rounding (`untouched.difference_allowed`)."""
    return difference_allowed(model)

"""Repeated reading of the demonstrations, each of which moves their keys and values towards new ones.

No weights are changed. Queries attend to the demonstrations as in in-context learning, but with the moved keys and
values.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dualform.errors import ConfigError, ModelError, NumericalError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Forward, Work, encode
from dualform.models.reading.attention import AttentionCall, attention_backend, plain_attention
from dualform.models.reading.cached import CachedPrefix
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import KeysValues, LayerOrder, cache_argument, run_layers
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.route import EncodedPrefix
from dualform.ops.rounding import at_least_float32

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, `(kv_head, pos, d_head)`."""


@dataclass(frozen=True)
class KeyValueMomentum:
    """In-context learning with demonstrations that were read `passes` times.

    Pass 1 is the ordinary forward. In pass t, each token of the demonstrations attends to all keys and values (K, V) of
    pass t - 1, and to preceding tokens of the current pass. Then, for K and V alike,

        G_t = K_fresh - K_{t-1}     M_t = G_t + momentum * M_{t-1}     K_t = K_{t-1} + step * M_t

    With one pass, or step 0, this is in-context learning, bit for bit.

    Source:
        Deep-Thinking, arXiv:2305.13016, with the update, step 0.01 and momentum 0.9 of its released code (version 3
        of the paper prints K_t = eta K_fresh + (1 - eta) K_{t-1}, which is this update with momentum 0). There are
        three differences. Demonstrations keep their positions in every pass, whereas the code continues counting, so
        that keys with rotary positions would also differ by a rotation. The opening token keeps its first keys and
        values, because it is not a demonstration and serves as an attention sink in many models. The number of passes
        is fixed, whereas the authors choose it on labelled data.
    """

    opening: tuple[int, ...]
    """Tokens at the start of the prefix, which are not changed; usually only the beginning-of-sequence token."""
    passes: int = 10
    """Number of times the demonstrations are read, including the ordinary forward. With the default step and momentum,
    ten passes move keys and values about a third of the way to convergence."""
    step: float = 0.01
    """eta, at least 0."""
    momentum: float = 0.9
    """beta, in [0, 1)."""
    name: str = "fold"

    def __post_init__(self) -> None:
        mistakes = []
        if self.passes < 1:
            mistakes.append(f"passes {self.passes} must be at least 1, which is in-context learning")
        if not 0 <= self.step < float("inf"):
            mistakes.append(f"step {self.step} must be 0 or more, and finite")
        if not 0 <= self.momentum < 1:
            mistakes.append(f"momentum {self.momentum} must be at least 0 and below 1")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    @torch.no_grad()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Read the demonstrations repeatedly.

        Raises:
            ConfigError: The demonstrations' prefix does not begin with `opening`.
            ModelError: The model's route does not accept given keys, values and positions.
            NumericalError: Keys or values became NaN or infinite; the message names step and pass.
            ContextError: The demonstrations exceed a switch length (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        prefix, n_fixed = demonstrations.prefix, len(self.opening)
        if prefix[:n_fixed] != self.opening:
            raise ConfigError(
                f"the demonstrations begin with the tokens {list(prefix[:n_fixed])}, not with the opening "
                f"{list(self.opening)}. Give the opening with which they were encoded."
            )
        if self.passes > 1 and lm.route.name not in _ROUTES:
            raise ModelError(
                f"{lm.name} is read by the route {lm.route.name!r}, which does not support given keys and values. "
                f"Choose a model that is read by the route {' or '.join(_ROUTES)}."
            )
        encoded = lm.encode(prefix)
        if isinstance(encoded, CachedPrefix) and encoded.attended is not None and self.passes > 1:
            raise ModelError(
                f"{lm.name} does not cache keys and values (latent attention), so they cannot be moved by further "
                "passes. Choose another method of folding, or another model."
            )
        if self.passes > 1 and prefix[n_fixed:]:
            lm.require_usable_prefix(0, [Query(prefix, ())])
            encoded = self._read_repeatedly(lm, encoded, prefix, n_fixed)
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return AdaptedModel(self.name, lm, encoded, cost)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Reading the prefix once, and the demonstrations after it in every further pass."""
        n = len(demonstrations.prefix)
        own = n - len(self.opening)
        return encode(n) + (Work.of(Forward((own,), n)) * (self.passes - 1) if own else Work())

    def _read_repeatedly(
        self, lm: LanguageModel, first: EncodedPrefix, tokens: tuple[int, ...], n_fixed: int
    ) -> EncodedPrefix:
        """All passes after the first, starting from its keys and values; the first `n_fixed` tokens do not change."""
        read, make_prefix = _ROUTES[lm.route.name]
        fixed = [(key[:, :n_fixed], value[:, :n_fixed]) for key, value in first.layers]
        # At least float32, because small steps would be rounded away in half precision.
        state = [[at_least_float32(part[:, n_fixed:]) for part in layer] for layer in first.layers]
        velocity = [[torch.zeros_like(part) for part in layer] for layer in state]
        dtypes = [[part.dtype for part in layer] for layer in first.layers]

        def current() -> Layers:
            """Current keys and values of the whole prefix."""
            return tuple(
                (
                    torch.cat([opening[0], demonstrations[0].to(kinds[0])], dim=1),
                    torch.cat([opening[1], demonstrations[1].to(kinds[1])], dim=1),
                )
                for opening, demonstrations, kinds in zip(fixed, state, dtypes, strict=True)
            )

        for number in range(2, self.passes + 1):
            fresh = read(lm, current(), tokens[n_fixed:], n_fixed)
            for layer, speed, target in zip(state, velocity, fresh, strict=True):
                for part in range(2):
                    speed[part] = at_least_float32(target[part]) - layer[part] + self.momentum * speed[part]
                    layer[part] = layer[part] + self.step * speed[part]
            if not all(torch.isfinite(part).all() for layer in state for part in layer):
                raise NumericalError(
                    f"step {self.step:g}, momentum {self.momentum:g}: keys or values became infinite in pass {number} "
                    f"of {self.passes}. Use a smaller step."
                )
        return replace(make_prefix(current(), tokens), edited=True)


class _AttentionToGiven:
    """Attention of tokens to all given keys and values of each layer, and to their own preceding tokens."""

    builds_mask = False

    def __init__(self, order: LayerOrder, given: Layers) -> None:
        self._order = order
        self._given = given
        self.new: dict[int, tuple[Tensor, Tensor]] = {}
        """Index of a layer -> keys and values of the tokens themselves."""

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """Compute attention, and record the tokens' own keys and values."""
        layer = self._order.next(module)
        if layer is None:
            raise ModelError("some of its attention is not a recorded layer, so its keys and values are not available")
        self.new[layer] = (call.key[0], call.value[0])
        key, value = (
            torch.cat([given[None], own], dim=2)
            for given, own in zip(self._given[layer], (call.key, call.value), strict=True)
        )
        n_before, n_own = self._given[layer][0].shape[1], call.query.shape[2]
        visible = _visible(n_before, n_own, call.window, key.device)
        return plain_attention(replace(call, key=key, value=value, mask=visible[None, None]))


def _visible(n_before: int, n_own: int, window: int | None, device: torch.device) -> Tensor:
    """Attention mask `(own, before + own)`, True where attention is allowed; a window is measured along this row."""
    distance = (n_before + torch.arange(n_own, device=device))[:, None] - torch.arange(n_before + n_own, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _read_through_attention(lm: LanguageModel, given: Layers, own: tuple[int, ...], first_position: int) -> Layers:
    backend = _AttentionToGiven(LayerOrder(lm.model, lm.anatomy), given)
    ids = torch.tensor([own], device=lm.device)
    positions = torch.arange(first_position, first_position + len(own), device=lm.device)[None]
    with attention_backend(backend):
        run_layers(lm.model, input_ids=ids, position_ids=positions, use_cache=False)
    return tuple(backend.new[layer] for layer in range(len(lm.anatomy.layers)))


def _read_through_cache(lm: LanguageModel, given: Layers, own: tuple[int, ...], first_position: int) -> Layers:
    n_before = given[0][0].shape[1]
    cache = _cached(given, ()).repeated(1)
    ids = torch.tensor([own], device=lm.device)
    positions = torch.arange(first_position, first_position + len(own), device=lm.device)[None]
    dtype = lm.model.dtype
    visible = _visible(n_before, len(own), None, lm.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=lm.device).masked_fill(~visible, torch.finfo(dtype).min)
    run_layers(
        lm.model,
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask[None, None],
        use_cache=True,
        **cache_argument(lm.model, cache),
    )
    return tuple((layer.keys[0, :, n_before:], layer.values[0, :, n_before:]) for layer in cache.layers)


def _cached(layers: Layers, tokens: tuple[int, ...]) -> CachedPrefix:
    cache = DynamicCache()
    for number, (key, value) in enumerate(layers):
        cache.update(key[None], value[None], number)
    return CachedPrefix(cache, tokens)


_ROUTES: dict[
    str,
    tuple[
        Callable[[LanguageModel, Layers, tuple[int, ...], int], Layers],
        Callable[[Layers, tuple[int, ...]], KeysValues | CachedPrefix],
    ],
] = {
    "packed": (_read_through_attention, KeysValues),
    "packed-mask": (_read_through_cache, _cached),
}
"""Supported route -> function that reads tokens after given keys and values, and the type of prefix to return."""

"""The demonstrations read again and again: keys and values move towards what each reading makes of them.

Nothing is written into weights. A query attends to the demonstrations as in-context learning does, only to keys and
values that have been thought over.
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
from dualform.models.reading.forward import KeysValues, LayerOrder, cache_argument, forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.route import EncodedPrefix
from dualform.ops.rounding import at_least_float32

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of each layer, `(kv_head, pos, d_head)`."""


@dataclass(frozen=True)
class KeyValueMomentum:
    """In-context learning behind demonstrations that were read `passes` times.

    Pass 1 is the ordinary forward. In pass t the demonstrations stand behind the keys and values (K, V) of pass t - 1,
    all of which they see, and see their own preceding tokens as ever; then, for K and V alike,

        G_t = K_fresh - K_{t-1}     M_t = G_t + momentum * M_{t-1}     K_t = K_{t-1} + step * M_t

    With one pass, or step 0, this is in-context learning, bit for bit.

    Source:
        Deep-Thinking, arXiv:2305.13016, with the update, step 0.01 and momentum 0.9 of its released code (version 3
        of the paper prints K_t = eta K_fresh + (1 - eta) K_{t-1}, which is ours at momentum 0). We depart in three
        places. Demonstrations keep their positions in every reading, where the code
        lets them count on: keys with rotary positions would otherwise differ by a rotation that says nothing. The
        opening token keeps its first keys and values and is not read again: it is no demonstration, and many models
        rest their attention on it. The number of passes, which the authors choose on labelled data, is fixed.
    """

    opening: tuple[int, ...]
    """Tokens that open the prefix and are left as they are, usually the beginning-of-sequence token alone."""
    passes: int = 10
    """Times that the demonstrations are read, the ordinary reading included. Ten go about a third of the way."""
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
        """Read the demonstrations over and over.

        Raises:
            ConfigError: The demonstrations' prefix does not begin with `opening`.
            ModelError: The route reads queries without the prefix's keys and values, or computes positions itself.
            NumericalError: Keys or values became NaN or infinite; the message names step and pass.
            ContextError: The demonstrations go beyond a switch length (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        prefix, n_fixed = demonstrations.prefix, len(self.opening)
        if prefix[:n_fixed] != self.opening:
            raise ConfigError(
                f"the demonstrations begin with the tokens {list(prefix[:n_fixed])}, not with the opening "
                f"{list(self.opening)}. Give the opening that they were encoded with."
            )
        if self.passes > 1 and lm.route.name not in _READERS:
            raise ModelError(
                f"{lm.name} is read by the route {lm.route.name!r}, which takes no keys and values from elsewhere at "
                f"positions of our choice. Choose a model that is read by {' or '.join(_READERS)}."
            )
        encoded = lm.encode(prefix)
        if isinstance(encoded, CachedPrefix) and encoded.attended is not None and self.passes > 1:
            raise ModelError(
                f"{lm.name} keeps something else than keys and values in its cache (latent attention), so they cannot "
                "be moved by reading again. Choose another method of folding, or another model."
            )
        if self.passes > 1 and prefix[n_fixed:]:
            lm.require_usable_prefix(0, [Query(prefix, ())])
            encoded = self._thought_over(lm, encoded, prefix, n_fixed)
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return AdaptedModel(self.name, lm, encoded, cost)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The prefix once, and its demonstrations behind it in every further pass."""
        n = len(demonstrations.prefix)
        own = n - len(self.opening)
        return encode(n) + (Work.of(Forward((own,), n)) * (self.passes - 1) if own else Work())

    def _thought_over(
        self, lm: LanguageModel, first: EncodedPrefix, tokens: tuple[int, ...], n_fixed: int
    ) -> EncodedPrefix:
        """All readings but the first, from its keys and values; the first `n_fixed` tokens stay."""
        read, prefix_of = _READERS[lm.route.name]
        fixed = [(key[:, :n_fixed], value[:, :n_fixed]) for key, value in first.layers]
        # Small steps would be rounded away in half precision, so the running sums are at least float32.
        state = [[at_least_float32(part[:, n_fixed:]) for part in layer] for layer in first.layers]
        velocity = [[torch.zeros_like(part) for part in layer] for layer in state]
        dtypes = [[part.dtype for part in layer] for layer in first.layers]

        def before() -> Layers:
            """Keys and values of the whole prefix as they are now."""
            return tuple(
                (
                    torch.cat([held[0], moved[0].to(kinds[0])], dim=1),
                    torch.cat([held[1], moved[1].to(kinds[1])], dim=1),
                )
                for held, moved, kinds in zip(fixed, state, dtypes, strict=True)
            )

        for number in range(2, self.passes + 1):
            fresh = read(lm, before(), tokens[n_fixed:], n_fixed)
            for moved, speed, target in zip(state, velocity, fresh, strict=True):
                for part in range(2):
                    speed[part] = at_least_float32(target[part]) - moved[part] + self.momentum * speed[part]
                    moved[part] = moved[part] + self.step * speed[part]
            if not all(torch.isfinite(part).all() for layer in state for part in layer):
                raise NumericalError(
                    f"step {self.step:g}, momentum {self.momentum:g}: keys or values became infinite in pass {number} "
                    f"of {self.passes}. Use a smaller step."
                )
        return replace(prefix_of(before(), tokens), edited=True)


class _BehindKeysValues:
    """Attention to given keys and values of each layer, all visible, and to one's own preceding tokens."""

    builds_mask = False

    def __init__(self, order: LayerOrder, before: Layers) -> None:
        self._order = order
        self._before = before
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """Compute, and keep the tokens' own keys and values."""
        layer = self._order.next(module)
        if layer is None:
            raise ModelError("some of its attention is not a recorded layer, so its keys and values are not available")
        self.seen[layer] = (call.key[0], call.value[0])
        key, value = (
            torch.cat([old[None], own], dim=2)
            for old, own in zip(self._before[layer], (call.key, call.value), strict=True)
        )
        n_before, n_own = self._before[layer][0].shape[1], call.query.shape[2]
        visible = _visible(n_before, n_own, call.window, key.device)
        return plain_attention(replace(call, key=key, value=value, mask=visible[None, None]))


def _visible(n_before: int, n_own: int, window: int | None, device: torch.device) -> Tensor:
    """True where an own token sees a key, `(own, before + own)`; a window counts back along this row."""
    distance = (n_before + torch.arange(n_own, device=device))[:, None] - torch.arange(n_before + n_own, device=device)
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _read_through_attention(lm: LanguageModel, before: Layers, own: tuple[int, ...], first_position: int) -> Layers:
    backend = _BehindKeysValues(LayerOrder(lm.model, lm.anatomy), before)
    ids = torch.tensor([own], device=lm.device)
    positions = torch.arange(first_position, first_position + len(own), device=lm.device)[None]
    with attention_backend(backend):
        forward_rows(lm.model, ids.new_tensor([len(own) - 1]), input_ids=ids, position_ids=positions, use_cache=False)
    return tuple(backend.seen[layer] for layer in range(len(lm.anatomy.layers)))


def _read_through_cache(lm: LanguageModel, before: Layers, own: tuple[int, ...], first_position: int) -> Layers:
    n_before = before[0][0].shape[1]
    cache = _cached(before, ()).repeated(1)
    ids = torch.tensor([own], device=lm.device)
    positions = torch.arange(first_position, first_position + len(own), device=lm.device)[None]
    dtype = lm.model.dtype
    visible = _visible(n_before, len(own), None, lm.device)
    mask = torch.zeros(visible.shape, dtype=dtype, device=lm.device).masked_fill(~visible, torch.finfo(dtype).min)
    forward_rows(
        lm.model,
        ids.new_tensor([len(own) - 1]),
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


_READERS: dict[
    str,
    tuple[
        Callable[[LanguageModel, Layers, tuple[int, ...], int], Layers],
        Callable[[Layers, tuple[int, ...]], KeysValues | CachedPrefix],
    ],
] = {
    "packed": (_read_through_attention, KeysValues),
    "packed-mask": (_read_through_cache, _cached),
}
"""For each route that can do it: how demonstrations are read behind given keys and values, and the prefix made of
such."""

"""Momentum attention inside any transformers model: next to softmax attention, a decaying sum of each head's values.

The term is added to the heads' output before they are joined, wherever attention is computed: in the registered
function, in the shared-prefix route, and in families that compute attention themselves. Values of earlier tokens are
in the cache already, so generation needs nothing more than the cache it has. A token's momentum reaches as far as its
attention: what padding, packing or a sliding window hides from the one is hidden from the other, and the lag between
two tokens is counted over the tokens that are seen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from dualform.errors import ConfigError, ModelError
from dualform.models.compat import attention_implementation, can_set_attention
from dualform.models.hooks import attach_permanently, detach
from dualform.models.reading.attention import MOMENTUM, NAME, AttentionCall, hidden
from dualform.models.reading.attention_tracer import AttentionTracer, is_traced
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.ops.momentum import momentum_chunked

ENTRY = "dualform_momentum"
"""Name of the config's entry, by which a saved model keeps its momentum."""

_WATCH = "dualform_watch"
"""Attribute of a model that holds its watch while its forward runs."""


@dataclass(frozen=True)
class MomentumSettings:
    """What momentum a model has; kept in its config.

    Source:
        arXiv:2212.10559v3, momentum attention; where eta sits and what it is, is not printed there.
    """

    eta: float | tuple[float, ...]
    """Decay a token, in [0, 1): one, or one a query head. Where it is learned, what learning starts from."""
    learned: bool = False
    """Eta is a parameter of each layer, the sigmoid of what is trained."""
    normalised: bool = False
    """Multiply by (1 - eta) / eta, so that the weights of a long past sum to 1."""
    modules: tuple[str, ...] = ()
    """Names of the attention modules that have it, first layer first."""

    def __post_init__(self) -> None:
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,)
        if wrong := [eta for eta in etas if not 0 <= eta < 1]:
            raise ConfigError(f"eta {wrong[0]} must be 0 or more and below 1")
        if self.learned and 0 in etas:
            raise ConfigError("a learned eta cannot start from 0, where nothing would move it: give one such as 0.1")


class Momentum(nn.Module):
    """One layer's momentum: the child of an attention module.

    Args:
        settings: See there.
    """

    def __init__(self, settings: MomentumSettings) -> None:
        super().__init__()
        self._settings = settings
        if settings.learned:
            self.logit = nn.Parameter(torch.logit(torch.tensor(settings.eta, dtype=torch.float32)))

    @property
    def inactive(self) -> bool:
        """Whether it adds nothing at all, so that attention is left as it is, bit for bit."""
        return self._settings.eta == 0 or (isinstance(self._settings.eta, tuple) and not any(self._settings.eta))

    def eta(self, like: Tensor) -> float | Tensor:
        """Its decay: a number for all heads, or `(head,)`."""
        if self._settings.learned:
            return self.logit.to(device=like.device).sigmoid()
        if isinstance(self._settings.eta, tuple):
            return torch.tensor(self._settings.eta, device=like.device)
        return self._settings.eta

    def forward(self, call: AttentionCall) -> Tensor:
        """What is to be added to the heads' output.

        Returns:
            `(batch, q_pos, head, d_head)`.
        """
        n_query, n_key = call.query.shape[2], call.key.shape[2]
        placed = None
        if n_query == n_key:
            placed = _EVERY_TOKEN if call.mask is None else _placement(call.mask)
        if placed is not None:
            eta = self.eta(call.value)
            value, groups = self._by_eta(call.value, call.query.shape[1], eta)
            term = momentum_chunked(
                value, eta, segments=placed.segments, valid=placed.valid, normalised=self._settings.normalised
            ).term
            return spread(term, groups)
        if call.mask is None:
            visible = torch.ones(1, n_query, n_key, dtype=torch.bool, device=call.value.device)
        else:
            visible = seen_by(call.mask)
        return self.by_lag(call.value, lags(visible), visible, call.query.shape[1])

    def by_lag(self, value: Tensor, lag: Tensor, visible: Tensor, n_heads: int) -> Tensor:
        """The same from lags: the plain form, for whatever the fast ones do not fit.

        Args:
            value: `(batch, kv_head, k_pos, d_head)`.
            lag: Tokens between key and query, `(batch or 1, q_pos, k_pos)`; only what is visible and above 0 counts.
            visible: Who sees whom, of the same shape.
            n_heads: Query heads.

        Returns:
            `(batch, q_pos, head, d_head)`.
        """
        eta = self.eta(value)
        value, groups = self._by_eta(value, n_heads, eta)
        weights = self.weights(lag[:, None], visible[:, None], eta, value)
        term = torch.matmul(weights, value.to(weights.dtype)).to(value.dtype)
        return spread(term, groups)

    def weights(self, lag: Tensor, visible: Tensor, eta: float | Tensor, like: Tensor) -> Tensor:
        """eta^lag where visible and lag above 0, else 0, normalised where asked for; of `lag`'s shape, head second."""
        dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
        counts = visible & (lag > 0)
        decay = torch.as_tensor(eta, dtype=dtype, device=like.device)
        decay = decay[:, None, None] if decay.dim() else decay
        # Zeros where nothing counts keep negative powers, and their gradients, out.
        weights = torch.where(counts, decay ** torch.where(counts, lag, 1).to(dtype), 0.0)
        if not self._settings.normalised:
            return weights
        # A head whose eta is 0 has no weights to bring to a sum of 1.
        some = decay > 0
        return weights * torch.where(some, (1 - decay) / torch.where(some, decay, 1.0), 0.0)

    def _by_eta(self, value: Tensor, n_heads: int, eta: float | Tensor) -> tuple[Tensor, int]:
        """Values with a head for each eta, and how many query heads share one."""
        groups = n_heads // value.shape[1]
        if isinstance(eta, Tensor) and eta.dim() and groups > 1:
            return value.repeat_interleave(groups, dim=1), 1
        return value, groups


def spread(term: Tensor, groups: int) -> Tensor:
    """`(batch, kv_head, q_pos, d_head)` -> `(batch, q_pos, head, d_head)`."""
    term = term.transpose(1, 2)
    return term.repeat_interleave(groups, dim=2) if groups > 1 else term


def seen_by(mask: Tensor) -> Tensor:
    """Who sees whom, `(batch or 1, q_pos, k_pos)`, from a mask or from scores with a mask added, head second."""
    first = mask[:, 0]
    # Families mask by minus infinity or by the lowest number there is, to which scores have been added.
    return first if first.dtype == torch.bool else ~hidden(first)


def lags(visible: Tensor) -> Tensor:
    """How many visible tokens lie behind each key, the query's own included, `(batch or 1, q_pos, k_pos)`.

    The query's own token has lag 0 and the one before it 1, whatever padding or other sequences lie between.
    """
    return visible.flip(-1).cumsum(-1).flip(-1) - visible.long()


@dataclass(frozen=True)
class _Placement:
    """A causal mask of padded or packed sequences, described by two rows."""

    valid: Tensor | None
    """`(batch or 1, pos)`; None for no padding."""
    segments: Tensor | None
    """`(batch or 1, pos)`; None for one sequence."""


_EVERY_TOKEN = _Placement(None, None)
"""Of a row without a mask."""

# A mask is the same tensor in every layer.
_placements: Any = WeakTensorKeyDictionary()


def _placement(mask: Tensor) -> _Placement | None:
    """Padding and packing, where they are all that the mask says besides causality; None where it says more."""
    if mask not in _placements:
        _placements[mask] = _described_by_rows(seen_by(mask))
    found: _Placement | None = _placements[mask]
    return found


def _described_by_rows(visible: Tensor) -> _Placement | None:
    valid = visible.diagonal(dim1=-2, dim2=-1)
    # Each sequence begins where its tokens' sight does.
    segments = torch.where(valid, visible.int().argmax(-1), -1)
    before = torch.ones(visible.shape[-2:], dtype=torch.bool, device=visible.device).tril()
    same = (segments[:, :, None] == segments[:, None, :]) & valid[:, None, :] & before
    return _Placement(valid, segments) if bool((same == visible)[valid].all()) else None


def apply_momentum(
    model: PreTrainedModel,
    eta: float | Sequence[float] = 0.1,
    *,
    learned: bool = False,
    per_head: bool = False,
    normalised: bool = False,
    layers: Sequence[int] | None = None,
) -> MomentumSettings:
    """Give a model momentum attention for good: forward, training, generation, saving and loading have it from now on.

    The weights stay as they are. `dualform.load_model` restores it from a saved checkpoint; transformers by itself does
    not know it and would load the model without.

    Args:
        model: Any causal language model that dualform can look into.
        eta: Decay a token, in [0, 1); one number, or one a query head. 0 leaves attention as it is, bit for bit.
        learned: Make it a parameter of every layer (its sigmoid's argument), which starts from `eta`.
        per_head: Where it is learned, one for each query head.
        normalised: Multiply by (1 - eta) / eta.
        layers: Which layers; None for all.

    Returns:
        The settings, as the model's config keeps them.

    Raises:
        ConfigError: `eta` is out of range or not one a head, a layer does not exist, or the model has momentum or a
            convolution (`apply_convolution`).
        ModelError: No attention was seen in the model.

    Source:
        arXiv:2212.10559v3, momentum attention: MoAttn(V, K, q_t) = V softmax(K^T q_t / sqrt(d)) + sum over i < t of
        eta^(t-i) v_i. Per head and before W_O is dualform's choice, since the paper does not say.
    """
    if momentum_of(model) is not None:
        raise ConfigError("the model has momentum already: take it off first (remove_momentum)")
    given = eta if isinstance(eta, int | float) else tuple(float(one) for one in eta)
    MomentumSettings(given, learned)
    training = model.training
    anatomy = find_anatomy(model.eval())
    model.train(training)
    n_layers, n_heads = len(anatomy.layers), anatomy.n_heads
    chosen = tuple(range(n_layers)) if layers is None else tuple(layers)
    if missing := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise ConfigError(f"layers {missing} do not exist: the model has layers 0 to {n_layers - 1}")
    if any(hasattr(model.get_submodule(layer.attention), MOMENTUM) for layer in anatomy.layers):
        raise ConfigError("the model adds something to its values already (apply_convolution): take another model")
    if isinstance(given, tuple) and len(given) != n_heads:
        raise ConfigError(
            f"eta has {len(given)} numbers, but a layer has {n_heads} heads: give one each, or one for all"
        )
    if learned and per_head and not isinstance(given, tuple):
        given = (float(given),) * n_heads
    settings = MomentumSettings(
        given, learned, normalised, tuple(anatomy.layers[layer].attention for layer in sorted(chosen))
    )
    setattr(model.config, ENTRY, asdict(settings))
    restore_momentum(model, anatomy.registry)
    return settings


def restore_momentum(model: PreTrainedModel, registry: bool = True) -> None:
    """Give a model the momentum that its config describes; parameters start where learning started.

    Args:
        model: The model.
        registry: Have it compute attention through dualform's function, if its family can; watch it otherwise.

    Raises:
        ModelError: The config names attention modules that the model does not have.
    """
    settings = momentum_of(model)
    if settings is None:
        return
    modules = dict(model.named_modules())
    if unknown := [name for name in settings.modules if name not in modules]:
        raise ModelError(
            f"the config gives momentum to {unknown[0]}, which {type(model).__name__} does not have. Choose the model "
            "that it was saved from."
        )
    for name in settings.modules:
        modules[name].add_module(MOMENTUM, Momentum(settings))
    if registry and can_set_attention(model):
        model.set_attn_implementation(NAME)
    # Where another function is set later on, momentum must not be lost in silence.
    attach_permanently(model, _begin_watching, _end_watching)


def class_with_momentum(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A model class whose instances begin with the momentum of their config, so that its parameters are loaded too."""

    def begin(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        restore_momentum(self)

    # Under its own name, which saving writes into the config.
    return type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})


def remove_momentum(model: PreTrainedModel) -> None:
    """Take a model's momentum off; nothing happens where it has none."""
    settings = momentum_of(model)
    if settings is None:
        return
    for name in settings.modules:
        delattr(model.get_submodule(name), MOMENTUM)
    detach(model, _begin_watching, _end_watching)
    delattr(model.config, ENTRY)


def momentum_of(model: PreTrainedModel) -> MomentumSettings | None:
    """A model's momentum, as its config has it; None where there is none."""
    entry = getattr(model.config, ENTRY, None)
    if entry is None:
        return None
    eta = entry["eta"]
    return MomentumSettings(
        tuple(eta) if isinstance(eta, list | tuple) else float(eta),
        bool(entry["learned"]),
        bool(entry["normalised"]),
        tuple(entry["modules"]),
    )


@contextmanager
def momentum(
    model: PreTrainedModel,
    eta: float | Sequence[float] = 0.1,
    *,
    normalised: bool = False,
    layers: Sequence[int] | None = None,
) -> Iterator[MomentumSettings]:
    """A block in which a model has momentum attention; afterwards it is as before, even when the block raises.

    Args:
        model: As in `apply_momentum`, as are the others.
        eta: Decay.
        normalised: Weights sum to 1.
        layers: Which.

    Yields:
        The settings.

    Raises:
        ConfigError: As `apply_momentum`.
        ModelError: Likewise.
    """
    before = attention_implementation(model)
    settings = None
    try:
        settings = apply_momentum(model, eta, normalised=normalised, layers=layers)
        yield settings
    finally:
        # Momentum that was there before, and was the reason to refuse, stays.
        if settings is not None:
            remove_momentum(model)
        if before is not None and can_set_attention(model):
            model.set_attn_implementation(before)


def _begin_watching(model: Any, args: Any, kwargs: Any) -> None:
    """Attention that is not computed by dualform's function is watched, and changed, from underneath."""
    if is_traced(model) or attention_implementation(model) == NAME:
        return
    settings = momentum_of(model)
    assert settings is not None
    modules = [model.get_submodule(name) for name in settings.modules]
    given = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    watch = AttentionTracer(modules, len(given), lambda module, seen: None)
    watch.__enter__()
    setattr(model, _WATCH, watch)


def _end_watching(model: Any, args: Any, out: Any) -> None:
    watch = vars(model).pop(_WATCH, None)
    if watch is not None:
        watch.__exit__(None, None, None)

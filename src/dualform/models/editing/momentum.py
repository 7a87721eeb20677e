"""Momentum attention in any transformers model: adds a decaying sum of each head's values to softmax attention.

The term is added to the heads' output before they are joined, in the registered attention function, in the packed
route, and in families that compute attention in their own code. Generation needs no additional cache, because the
values of earlier tokens are in the ordinary one. Momentum covers the same tokens as attention: tokens masked by
padding, packing or a sliding window are left out, and the lag between two tokens counts only visible tokens.
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
from dualform.models.reading.attention import ADDED_TERM, NAME, AttentionCall, hidden
from dualform.models.reading.attention_tracer import AttentionTracer, is_traced
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.ops.momentum import momentum_chunked

ENTRY = "dualform_momentum"
"""Name of the config's entry that stores the settings of momentum."""

_TRACER = "dualform_tracer"
"""Attribute of a model that holds its `AttentionTracer` while its forward runs."""


@dataclass(frozen=True)
class MomentumSettings:
    """Settings of a model's momentum attention, stored in its config.

    Source:
        arXiv:2212.10559v3, momentum attention; the paper does not state the value of eta or the place of the term.
    """

    eta: float | tuple[float, ...]
    """Decay per token, in [0, 1): one number, or one per query head. The initial value if eta is learned."""
    learned: bool = False
    """Whether eta is a parameter of each layer (the sigmoid of the trained parameter)."""
    normalised: bool = False
    """Multiply by (1 - eta) / eta, so that the weights over a long sequence sum to 1."""
    modules: tuple[str, ...] = ()
    """Names of the attention modules with momentum, in the order of layers."""

    def __post_init__(self) -> None:
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,)
        if wrong := [eta for eta in etas if not 0 <= eta < 1]:
            raise ConfigError(f"eta {wrong[0]} must be 0 or more and below 1")
        if self.learned and 0 in etas:
            raise ConfigError("a learned eta cannot start from 0, where its gradient is 0. Give one such as 0.1.")


class Momentum(nn.Module):
    """One layer's momentum, a child of its attention module."""

    def __init__(self, settings: MomentumSettings) -> None:
        super().__init__()
        self._settings = settings
        if settings.learned:
            self.logit = nn.Parameter(torch.logit(torch.tensor(settings.eta, dtype=torch.float32)))

    @property
    def inactive(self) -> bool:
        """Whether eta is zero for all heads, so that attention is unchanged, bit for bit."""
        return self._settings.eta == 0 or (isinstance(self._settings.eta, tuple) and not any(self._settings.eta))

    def eta(self, like: Tensor) -> float | Tensor:
        """The decay: one number for all heads, or `(head,)`."""
        if self._settings.learned:
            return self.logit.to(device=like.device).sigmoid()
        if isinstance(self._settings.eta, tuple):
            return torch.tensor(self._settings.eta, device=like.device)
        return self._settings.eta

    def forward(self, call: AttentionCall) -> Tensor:
        """The term to add to the heads' output, `(batch, q_pos, head, d_head)`."""
        n_query, n_key = call.query.shape[2], call.key.shape[2]
        placement = None
        if n_query == n_key:
            placement = _UNPADDED if call.mask is None else _placement(call.mask)
        if placement is not None:
            eta = self.eta(call.value)
            value, groups = self._values_for_eta(call.value, call.query.shape[1], eta)
            term = momentum_chunked(
                value, eta, segments=placement.segments, valid=placement.valid, normalised=self._settings.normalised
            ).term
            return to_query_heads(term, groups)
        if call.mask is None:
            visible = torch.ones(1, n_query, n_key, dtype=torch.bool, device=call.value.device)
        else:
            visible = visible_from_mask(call.mask)
        return self.term_from_lags(call.value, lags(visible), visible, call.query.shape[1])

    def term_from_lags(self, value: Tensor, lag: Tensor, visible: Tensor, n_heads: int) -> Tensor:
        """The same term computed from lags, for any mask.

        Args:
            value: `(batch, kv_head, k_pos, d_head)`.
            lag: Number of tokens between key and query, `(batch or 1, q_pos, k_pos)`; entries that are 0 or not visible
                are ignored.
            visible: True where the query attends to the key, of the same shape.
            n_heads: Number of query heads.

        Returns:
            `(batch, q_pos, head, d_head)`.
        """
        eta = self.eta(value)
        value, groups = self._values_for_eta(value, n_heads, eta)
        weights = self.weights(lag[:, None], visible[:, None], eta, value)
        term = torch.matmul(weights, value.to(weights.dtype)).to(value.dtype)
        return to_query_heads(term, groups)

    def weights(self, lag: Tensor, visible: Tensor, eta: float | Tensor, like: Tensor) -> Tensor:
        """eta^lag where visible and lag above 0, else 0, normalised if so set; of `lag`'s shape, head second."""
        dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
        counts = visible & (lag > 0)
        decay = torch.as_tensor(eta, dtype=dtype, device=like.device)
        decay = decay[:, None, None] if decay.dim() else decay
        # The inner `where` avoids negative powers, which would spoil the gradients.
        weights = torch.where(counts, decay ** torch.where(counts, lag, 1).to(dtype), 0.0)
        if not self._settings.normalised:
            return weights
        # A head with eta 0 has no weights to normalise.
        positive = decay > 0
        return weights * torch.where(positive, (1 - decay) / torch.where(positive, decay, 1.0), 0.0)

    def _values_for_eta(self, value: Tensor, n_heads: int, eta: float | Tensor) -> tuple[Tensor, int]:
        """Values with one head for each eta, and the number of query heads that share a value head."""
        groups = n_heads // value.shape[1]
        if isinstance(eta, Tensor) and eta.dim() and groups > 1:
            return value.repeat_interleave(groups, dim=1), 1
        return value, groups


def to_query_heads(term: Tensor, groups: int) -> Tensor:
    """`(batch, kv_head, q_pos, d_head)` -> `(batch, q_pos, head, d_head)`."""
    term = term.transpose(1, 2)
    return term.repeat_interleave(groups, dim=2) if groups > 1 else term


def visible_from_mask(mask: Tensor) -> Tensor:
    """True where a query attends to a key, `(batch or 1, q_pos, k_pos)`.

    Args:
        mask: Boolean or additive mask, or masked scores, `(batch or 1, head or 1, q_pos, k_pos)`.
    """
    first = mask[:, 0]
    return first if first.dtype == torch.bool else ~hidden(first)


def lags(visible: Tensor) -> Tensor:
    """Number of visible tokens after each key, up to and including the query's own, `(batch or 1, q_pos, k_pos)`.

    The query's own token has lag 0, and the visible token before it has lag 1, even with padding or other sequences in
    between.
    """
    return visible.flip(-1).cumsum(-1).flip(-1) - visible.long()


@dataclass(frozen=True)
class _Placement:
    """A causal mask of padded or packed sequences."""

    valid: Tensor | None
    """False for padding, `(batch or 1, pos)`; None without padding."""
    segments: Tensor | None
    """Position of the first token of each token's sequence, -1 for padding, `(batch or 1, pos)`; None for one
    sequence."""


_UNPADDED = _Placement(None, None)

# All layers of a forward get the same mask tensor, so each mask is analysed once.
_placements: Any = WeakTensorKeyDictionary()


def _placement(mask: Tensor) -> _Placement | None:
    """Padding and packing of a causal mask; None if the mask hides anything else, too."""
    if mask not in _placements:
        _placements[mask] = _find_placement(visible_from_mask(mask))
    placement: _Placement | None = _placements[mask]
    return placement


def _find_placement(visible: Tensor) -> _Placement | None:
    valid = visible.diagonal(dim1=-2, dim2=-1)
    # A sequence is identified by the position of its first token, the first one visible to all its tokens.
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
    """Add momentum attention to a model permanently: it applies in forwards, training and generation, and is saved.

    Weights are not changed. `dualform.load_model` restores momentum from a saved checkpoint; transformers alone would
    load the model without it.

    Args:
        model: Any causal language model whose attention dualform recognises.
        eta: Decay per token, in [0, 1): one number, or one per query head. 0 leaves attention unchanged, bit for bit.
        learned: Make eta a parameter of every layer (through a sigmoid) with `eta` as its initial value.
        per_head: If eta is learned, learn one for each query head.
        normalised: Multiply by (1 - eta) / eta, so that the weights over a long sequence sum to 1.
        layers: Indices of the layers; None for all.

    Returns:
        The settings, as stored in the model's config.

    Raises:
        ConfigError: `eta` is out of range or has the wrong number of entries, a layer does not exist, or the model
            already has momentum or a convolution (`apply_convolution`).
        ModelError: The model has no attention that dualform recognises.

    Source:
        arXiv:2212.10559v3, momentum attention: MoAttn(V, K, q_t) = V softmax(K^T q_t / sqrt(d)) + sum over i < t of
        eta^(t-i) v_i. Adding the term per head and before W_O is dualform's choice; the paper does not specify it.
    """
    if momentum_of(model) is not None:
        raise ConfigError("the model has momentum already. Remove it first (remove_momentum).")
    etas = eta if isinstance(eta, int | float) else tuple(float(entry) for entry in eta)
    MomentumSettings(etas, learned)
    training = model.training
    anatomy = find_anatomy(model.eval())
    model.train(training)
    n_layers, n_heads = len(anatomy.layers), anatomy.n_heads
    chosen = tuple(range(n_layers)) if layers is None else tuple(layers)
    if missing := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise ConfigError(f"layers {missing} do not exist: the model has layers 0 to {n_layers - 1}")
    if any(hasattr(model.get_submodule(layer.attention), ADDED_TERM) for layer in anatomy.layers):
        raise ConfigError("the model has a convolution already (apply_convolution). Load it again without it.")
    if isinstance(etas, tuple) and len(etas) != n_heads:
        raise ConfigError(
            f"eta has {len(etas)} numbers, but a layer has {n_heads} heads. Give one each, or one number."
        )
    if learned and per_head and not isinstance(etas, tuple):
        etas = (float(etas),) * n_heads
    settings = MomentumSettings(
        etas, learned, normalised, tuple(anatomy.layers[layer].attention for layer in sorted(chosen))
    )
    setattr(model.config, ENTRY, asdict(settings))
    restore_momentum(model, anatomy.registry)
    return settings


def restore_momentum(model: PreTrainedModel, registry: bool = True) -> None:
    """Add the momentum that a model's config describes; learned parameters get their initial values.

    It uses dualform's attention function if `registry` is True and the family allows it, else it traces attention.

    Raises:
        ModelError: The config lists attention modules that the model does not have.
    """
    settings = momentum_of(model)
    if settings is None:
        return
    modules = dict(model.named_modules())
    if unknown := [name for name in settings.modules if name not in modules]:
        raise ModelError(
            f"the config lists momentum for {unknown[0]}, which {type(model).__name__} does not have. Use the config "
            "with the model that it was saved from."
        )
    for name in settings.modules:
        modules[name].add_module(ADDED_TERM, Momentum(settings))
    if registry and can_set_attention(model):
        model.set_attn_implementation(NAME)
    # If another attention function is set later, tracing still adds momentum.
    attach_permanently(model, _start_tracing, _stop_tracing)


def class_with_momentum(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A subclass that creates the momentum of its config on initialisation, so that its parameters can be loaded."""

    def initialise(self: PreTrainedModel, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        restore_momentum(self)

    # It keeps the class's name, which is written to the config on saving.
    return type(kind.__name__, (kind,), {"__init__": initialise, "__module__": kind.__module__})


def remove_momentum(model: PreTrainedModel) -> None:
    """Remove a model's momentum, if it has any."""
    settings = momentum_of(model)
    if settings is None:
        return
    for name in settings.modules:
        delattr(model.get_submodule(name), ADDED_TERM)
    detach(model, _start_tracing, _stop_tracing)
    delattr(model.config, ENTRY)


def momentum_of(model: PreTrainedModel) -> MomentumSettings | None:
    """Settings of a model's momentum, from its config; None without momentum."""
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
    """Context manager in which a model has momentum attention; the model is restored afterwards, also on errors.

    Args:
        model: Any causal language model whose attention dualform recognises.
        eta: Decay per token, in [0, 1): one number, or one per query head.
        normalised: Multiply by (1 - eta) / eta, so that the weights over a long sequence sum to 1.
        layers: Indices of the layers; None for all.

    Yields:
        The settings.

    Raises:
        ConfigError: As for `apply_momentum`.
        ModelError: As for `apply_momentum`.
    """
    before = attention_implementation(model)
    settings = None
    try:
        settings = apply_momentum(model, eta, normalised=normalised, layers=layers)
        yield settings
    finally:
        # If `apply_momentum` raised because the model already had momentum, that momentum stays.
        if settings is not None:
            remove_momentum(model)
        if before is not None and can_set_attention(model):
            model.set_attn_implementation(before)


def _start_tracing(model: Any, args: Any, kwargs: Any) -> None:
    """If attention is not computed by dualform's function, trace it, which adds momentum."""
    if is_traced(model) or attention_implementation(model) == NAME:
        return
    settings = momentum_of(model)
    assert settings is not None
    modules = [model.get_submodule(name) for name in settings.modules]
    inputs = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    tracer = AttentionTracer(modules, len(inputs), lambda module, trace: None)
    tracer.__enter__()
    setattr(model, _TRACER, tracer)


def _stop_tracing(model: Any, args: Any, out: Any) -> None:
    tracer = vars(model).pop(_TRACER, None)
    if tracer is not None:
        tracer.__exit__(None, None, None)

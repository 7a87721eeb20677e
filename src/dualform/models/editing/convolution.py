"""A short causal convolution over each head's values, as a control: is momentum more than local averaging?"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.momentum import lags, to_query_heads, visible_from_mask
from dualform.models.reading.attention import ADDED_TERM, NAME, AttentionCall
from dualform.models.structure.find_anatomy import find_anatomy

TAPS = 3


class ValueConvolution(nn.Module):
    """Adds sum over j = 1 .. taps of w_j v_{t-j} to softmax attention, with one weight per channel of a head.

    Unlike momentum, it covers only the last few tokens, and it learns a weight for each lag instead of one decay. All
    weights start at zero, so that the model's outputs are unchanged at first.

    Args:
        n_heads: Number of value heads.
        d_head: Number of channels of a head.
        taps: Number of preceding tokens whose values are added.
    """

    inactive = False
    """Whether the term is zero, so that attention is computed without it; never for a convolution."""

    def __init__(self, n_heads: int, d_head: int, taps: int = TAPS) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(n_heads, d_head, taps))

    def forward(self, call: AttentionCall) -> Tensor:
        """The term to add to the heads' output, `(batch, q_pos, head, d_head)`."""
        n_query, n_key = call.query.shape[2], call.key.shape[2]
        if call.mask is None and n_query == n_key:
            value = call.value
            term = torch.zeros_like(value)
            for j in range(1, min(self.kernel.shape[-1], n_key - 1) + 1):
                term[:, :, j:] += self._weight(j, value) * value[:, :, :-j]
            return to_query_heads(term, call.query.shape[1] // value.shape[1])
        if call.mask is None:
            visible = torch.ones(1, n_query, n_key, dtype=torch.bool, device=call.value.device)
        else:
            visible = visible_from_mask(call.mask)
        return self.term_from_lags(call.value, lags(visible), visible, call.query.shape[1])

    def term_from_lags(self, value: Tensor, lag: Tensor, visible: Tensor, n_heads: int) -> Tensor:
        """The same term computed from lags, see `Momentum.term_from_lags`."""
        term = torch.zeros(*value.shape[:2], lag.shape[-2], value.shape[-1], dtype=value.dtype, device=value.device)
        for j in range(1, self.kernel.shape[-1] + 1):
            selection = (visible & (lag == j))[:, None].to(value.dtype)
            term = term + self._weight(j, value) * (selection @ value)
        return to_query_heads(term, n_heads // value.shape[1])

    def _weight(self, lag: int, like: Tensor) -> Tensor:
        return self.kernel[:, None, :, lag - 1].to(like)


def apply_convolution(model: PreTrainedModel, taps: int = TAPS) -> None:
    """Add a convolution over values to every layer of a model; outputs do not change until it is trained.

    For models that are trained and evaluated in one process: the convolution is not stored in the config, so a saved
    model is loaded without it.

    Args:
        model: A model whose family uses transformers' attention registry.
        taps: Number of preceding tokens whose values are added.

    Raises:
        ConfigError: `taps` is below 1, the family does not use the attention registry, or the model already has
            momentum or a convolution.
        ModelError: The model has no attention that dualform recognises.
    """
    if taps < 1:
        raise ConfigError(f"taps {taps} must be at least 1")
    training = model.training
    anatomy = find_anatomy(model.eval())
    model.train(training)
    require_registry(model, anatomy.registry)
    modules = [model.get_submodule(layer.attention) for layer in anatomy.layers]
    if any(hasattr(module, ADDED_TERM) for module in modules):
        raise ConfigError("the model has momentum or a convolution already. Load it again without them.")
    for layer, module in zip(anatomy.layers, modules, strict=True):
        module.add_module(
            ADDED_TERM, ValueConvolution(layer.n_kv_heads, layer.d_head, taps).to(model.device, model.dtype)
        )
    model.set_attn_implementation(NAME)


def require_registry(model: PreTrainedModel, registry: bool) -> None:
    """Check that a model's attention can be replaced.

    Raises:
        ConfigError: The family computes attention in its own code.
    """
    if not registry:
        raise ConfigError(
            f"{type(model).__name__} computes attention in its own code, so its attention cannot be replaced. Choose a "
            "family such as llama or gpt2."
        )

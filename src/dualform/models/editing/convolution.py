"""A short causal convolution over each head's values, in momentum's place: is momentum anything but local averaging?"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.momentum import lags, seen_by, spread
from dualform.models.reading.attention import MOMENTUM, NAME, AttentionCall
from dualform.models.structure.find_anatomy import find_anatomy

TAPS = 3


class ValueConvolution(nn.Module):
    """Beside softmax attention, sum over j = 1 .. taps of w_j v_{t-j}, with a weight for every channel of a head.

    It sees the last few tokens where momentum sees them all, and learns its weights where momentum has one number. All
    weights begin at zero, so that the model begins as it was.

    Args:
        n_heads: Heads of values.
        d_head: Channels of a head.
        taps: Tokens before the query's own that it sees.
    """

    inactive = False

    def __init__(self, n_heads: int, d_head: int, taps: int = TAPS) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(n_heads, d_head, taps))

    def forward(self, call: AttentionCall) -> Tensor:
        """What is to be added to the heads' output, `(batch, q_pos, head, d_head)`."""
        n_query, n_key = call.query.shape[2], call.key.shape[2]
        if call.mask is None and n_query == n_key:
            value = call.value
            term = torch.zeros_like(value)
            for j in range(1, min(self.kernel.shape[-1], n_key - 1) + 1):
                term[:, :, j:] += self._weight(j, value) * value[:, :, :-j]
            return spread(term, call.query.shape[1] // value.shape[1])
        if call.mask is None:
            visible = torch.ones(1, n_query, n_key, dtype=torch.bool, device=call.value.device)
        else:
            visible = seen_by(call.mask)
        return self.by_lag(call.value, lags(visible), visible, call.query.shape[1])

    def by_lag(self, value: Tensor, lag: Tensor, visible: Tensor, n_heads: int) -> Tensor:
        """The same from lags; see `Momentum.by_lag`."""
        term = torch.zeros(*value.shape[:2], lag.shape[-2], value.shape[-1], dtype=value.dtype, device=value.device)
        for j in range(1, self.kernel.shape[-1] + 1):
            chosen = (visible & (lag == j))[:, None].to(value.dtype)
            term = term + self._weight(j, value) * (chosen @ value)
        return spread(term, n_heads // value.shape[1])

    def _weight(self, lag: int, like: Tensor) -> Tensor:
        return self.kernel[:, None, :, lag - 1].to(like)


def apply_convolution(model: PreTrainedModel, taps: int = TAPS) -> None:
    """Give every layer of a model a convolution over its values; the model's outputs stay as they are until it learns.

    Made for models that are trained and asked in one go: a saved model keeps the kernels, but its config does not tell
    of them, so that what is loaded again attends without.

    Args:
        model: One that computes attention through transformers' registry.
        taps: Tokens before the query's own that each sees.

    Raises:
        ConfigError: `taps` is below 1, the model computes attention in code of its own, or it has momentum or a
            convolution.
        ModelError: No attention was seen in it.
    """
    if taps < 1:
        raise ConfigError(f"taps {taps} must be at least 1")
    training = model.training
    anatomy = find_anatomy(model.eval())
    model.train(training)
    require_registry(model, anatomy.registry)
    modules = [model.get_submodule(layer.attention) for layer in anatomy.layers]
    if any(hasattr(module, MOMENTUM) for module in modules):
        raise ConfigError("the model has momentum or a convolution already: take one that has neither")
    for layer, module in zip(anatomy.layers, modules, strict=True):
        module.add_module(
            MOMENTUM, ValueConvolution(layer.n_kv_heads, layer.d_head, taps).to(model.device, model.dtype)
        )
    model.set_attn_implementation(NAME)


def require_registry(model: PreTrainedModel, registry: bool) -> None:
    """Check that attention can be computed otherwise in this model.

    Raises:
        ConfigError: It is computed in the family's own code.
    """
    if not registry:
        raise ConfigError(
            f"{type(model).__name__} computes attention in code of its own, so its attention cannot be replaced: "
            "choose a family such as llama or gpt2"
        )

"""Causal linear attention in place of softmax attention, optionally with momentum.

Linear attention is gradient descent with one step per token. Heavy-ball and Nesterov momentum for this descent have a
dual form, which differs from the decaying sum of values that arXiv:2212.10559 adds.
"""

from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.convolution import require_registry
from dualform.models.reading.attention import NAME, REPLACED_ATTENTION, AttentionCall
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.ops.momentum_dual import MomentumKind, momentum_linear_attention


class LinearAttention(nn.Module):
    """o_t = M_t q_t, where M_t is the sum of v_i k_i^T over the tokens so far, without or with momentum.

    The feature map of queries and keys is elu + 1. The sums grow with the number of tokens, and with momentum by a
    further factor of 1 / (1 - eta), so each head's output is normalised to a root mean square of 1. No parameters are
    added, and attention dropout does not apply.

    Args:
        kind: `none`, `heavy-ball` or `nesterov`.
        eta: Momentum coefficient, in [0, 1).

    Source:
        Linear attention: arXiv:2006.16236; a norm in place of the normaliser: arXiv:2210.10340.
    """

    def __init__(self, kind: MomentumKind, eta: float) -> None:
        super().__init__()
        self._kind: MomentumKind = kind
        self._eta = eta

    def forward(self, call: AttentionCall) -> Tensor:
        """The heads' output, `(batch, q_pos, head, d_head)`.

        Raises:
            ConfigError: The input is not a batch of whole sequences without padding or a sliding window.
        """
        if call.mask is not None or call.query.shape[2] != call.key.shape[2]:
            raise ConfigError(
                "linear attention needs whole sequences, but got padding, packing, a sliding window or a cache. "
                "Give sequences of equal length without a window, and use_cache=False."
            )
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (call.key, call.value))
        # Scale queries and keys before the feature map, so that their product has the usual scale.
        q, k = (F.elu(x * call.scale**0.5) + 1 for x in (call.query, key))
        out = momentum_linear_attention(q, k, value, self._eta, kind=self._kind)
        return F.rms_norm(out, out.shape[-1:], eps=1e-6).transpose(1, 2)


def apply_linear_attention(model: PreTrainedModel, kind: MomentumKind = "none", eta: float = 0.0) -> None:
    """Use linear attention in every layer of a model.

    For models that are trained and evaluated in one process: it is not stored in the config, so a saved model is loaded
    with softmax attention.

    Args:
        model: A model whose family uses transformers' attention registry.
        kind: `none`, `heavy-ball` or `nesterov`.
        eta: Momentum coefficient, in [0, 1).

    Raises:
        ConfigError: `kind` is unknown, `eta` is out of range, or the family does not use the attention registry.
        ModelError: The model has no attention that dualform recognises.
    """
    if kind not in get_args(MomentumKind):
        raise ConfigError(f"kind {kind!r} is unknown: choose one of {', '.join(get_args(MomentumKind))}")
    if not 0 <= eta < 1:
        raise ConfigError(f"eta {eta} must be 0 or more and below 1")
    training = model.training
    anatomy = find_anatomy(model.eval())
    model.train(training)
    require_registry(model, anatomy.registry)
    for layer in anatomy.layers:
        model.get_submodule(layer.attention).add_module(REPLACED_ATTENTION, LinearAttention(kind, eta))
    model.set_attn_implementation(NAME)

"""Causal linear attention in softmax attention's place, with the momentum that gradient descent really has.

Linear attention is gradient descent on its past, one step a token. Heavy-ball and Nesterov momentum of that descent
have a dual form, which is not the decaying sum of values that arXiv:2212.10559 adds: here both can be trained.
"""

from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.convolution import require_registry
from dualform.models.reading.attention import ATTENTION, NAME, AttentionCall
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.ops.momentum_dual import MomentumKind, momentum_linear_attention


class LinearAttention(nn.Module):
    """o_t = M_t q_t with M_t a sum of v_i k_i^T over the tokens so far, by plain descent or with momentum.

    Queries and keys pass elu + 1, as usual. Sums grow with the past, and with momentum by 1 / (1 - eta) more, so each
    head's output is brought to a root mean square of 1; no parameters are added. Dropout of attention weights, of which
    there are none, does not apply.

    Args:
        kind: `none`, `heavy-ball` or `nesterov`.
        eta: In [0, 1).

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
            ConfigError: Something else than whole, unpadded sequences is asked for.
        """
        if call.mask is not None or call.query.shape[2] != call.key.shape[2]:
            raise ConfigError("linear attention reads whole sequences only: no padding, no packing, no cache")
        groups = call.query.shape[1] // call.key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (call.key, call.value))
        # The usual scale of the scores, shared between the two.
        q, k = (F.elu(x * call.scale**0.5) + 1 for x in (call.query, key))
        out = momentum_linear_attention(q, k, value, self._eta, kind=self._kind)
        return F.rms_norm(out, out.shape[-1:], eps=1e-6).transpose(1, 2)


def apply_linear_attention(model: PreTrainedModel, kind: MomentumKind = "none", eta: float = 0.0) -> None:
    """Have every layer of a model attend linearly; made for models that are then trained and asked in one go.

    A saved model's config does not tell of it, so that what is loaded again attends by softmax.

    Args:
        model: One that computes attention through transformers' registry.
        kind: `none`, `heavy-ball` or `nesterov`.
        eta: In [0, 1).

    Raises:
        ConfigError: No such `kind`, `eta` is out of range, or the model computes attention in code of its own.
        ModelError: No attention was seen in it.
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
        model.get_submodule(layer.attention).add_module(ATTENTION, LinearAttention(kind, eta))
    model.set_attn_implementation(NAME)

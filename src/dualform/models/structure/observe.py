"""Observe every attention and linear layer in one forward of a model on a few tokens, with the autograd graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.models.compat import can_set_attention, set_config_attention
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import frozen, reload_in_backward
from dualform.models.reading.attention import NAME, AttentionCall, attention_backend, plain_attention
from dualform.models.reading.attention_tracer import AttentionTrace, AttentionTracer
from dualform.models.structure.anatomy import is_linear
from dualform.models.structure.probing import probe_tokens


@dataclass
class AttentionUse:
    """One run of attention in the observed forward."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    """The heads' output that the family's code continues with, with its autograd graph."""
    joined: Tensor
    """The heads' output with heads joined, `(batch, q_pos, head * d_value)`."""
    call_index: int
    """Number of linear layers and attentions that ran before it."""
    heads_first: bool = False
    """Whether `out` is `(batch, head, q_pos, d_value)`, perhaps with the first two axes joined."""


@dataclass
class LinearUse:
    """One run of a linear layer in the observed forward."""

    module: nn.Module
    input: Tensor
    output: Tensor
    call_index: int
    """Number of linear layers and attentions that ran before it."""
    use: int
    """Number of earlier runs of the same linear layer."""


@dataclass
class ObservedForward:
    """Every run of attention and of a linear layer in one forward on a few tokens."""

    attention: list[AttentionUse] = field(default_factory=list)
    linears: list[LinearUse] = field(default_factory=list)
    unrecognised: dict[nn.Module, str] = field(default_factory=dict)
    """Modules with a softmax that is not attention of a known form -> what is different."""
    n_tokens: int = 0
    starts: dict[nn.Module, list[int]] = field(default_factory=dict)
    """Module -> the values of `n_calls` at which it started to run."""

    def start(self, module: nn.Module, call_index: int) -> int:
        """Start of the module's run that was in progress at a call; 0 if there was none."""
        return max((start for start in self.starts.get(module, ()) if start <= call_index), default=0)

    @property
    def n_calls(self) -> int:
        """Number of linear layers and attentions that ran so far."""
        return len(self.attention) + len(self.linears)


class _RecordingBackend:
    """Computes plain attention and records each call."""

    builds_mask = True

    def __init__(self, observed: ObservedForward, nudge: Callable[[Tensor], Tensor] | None = None) -> None:
        self._observed = observed
        self._nudge = nudge

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        out = plain_attention(call)
        if self._nudge is not None:
            out = self._nudge(out)
        self._observed.attention.append(
            AttentionUse(module, call.query, call.key, call.value, out, out.flatten(2), self._observed.n_calls)
        )
        return out


def use_registry(model: PreTrainedModel) -> bool:
    """Set dualform's attention function; return False if the family does not use the attention registry."""
    if not can_set_attention(model):
        return False
    model.set_attn_implementation(NAME)
    return True


def use_eager(model: PreTrainedModel) -> None:
    """Set the family's eager attention, whose softmax can be traced."""
    if can_set_attention(model):
        model.set_attn_implementation("eager")
    else:
        # transformers' setter rejects such families, so set it in the config.
        set_config_attention(model.config, "eager")


def observe_forward(
    model: PreTrainedModel,
    registry: bool,
    nudge: Callable[[Tensor], Tensor] | None = None,
    stop_after: str | None = None,
) -> ObservedForward:
    """Run a model on a few tokens and observe every attention (through the registry or a tracer) and linear layer.

    `nudge` changes the heads' output before the model continues. The forward stops after the module `stop_after`.
    """
    observed = ObservedForward()
    uses: dict[nn.Module, int] = {}

    def keep(module: nn.Module, x: Any, out: Any) -> None:
        use = uses.get(module, 0)
        uses[module] = use + 1
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            observed.linears.append(LinearUse(module, x, out, observed.n_calls, use))

    def begin(module: nn.Module, x: Any) -> None:
        observed.starts.setdefault(module, []).append(observed.n_calls)

    def begin_graph(x: Any, out: Tensor) -> Tensor:
        # The sum, because a family may scale the output in place, which is not allowed for a leaf tensor.
        return out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)

    ids = probe_tokens(model)
    observed.n_tokens = ids.shape[1]
    with Hooks(model) as hooks:
        for module in model.modules():
            if is_linear(module):
                hooks.after(module, partial(keep, module), whole=True)
            else:
                hooks.before(module, partial(begin, module))
        hooks.after(model.get_input_embeddings(), begin_graph)
        if stop_after is not None:
            hooks.after(stop_after, lambda x, out: hooks.stop())
        attention = _observing_attention(model, registry, observed, nudge)
        with torch.enable_grad(), frozen(model), reload_in_backward(model), attention:
            model(input_ids=ids, use_cache=False)
    return observed


@contextmanager
def _observing_attention(
    model: PreTrainedModel, registry: bool, observed: ObservedForward, nudge: Callable[[Tensor], Tensor] | None
) -> Iterator[None]:
    if registry:
        with attention_backend(_RecordingBackend(observed, nudge)):
            yield
        return

    def keep(module: nn.Module, trace: AttentionTrace) -> None:
        joined = trace.head_output.transpose(1, 2).flatten(2)
        out = trace.head_output if trace.returned is None else trace.returned
        observed.attention.append(
            AttentionUse(module, trace.query, trace.key, trace.value, out, joined, observed.n_calls, heads_first=True)
        )

    tracer = AttentionTracer([m for m in model.modules() if m is not model], 1, keep, nudge=nudge)
    with tracer:
        yield
    observed.unrecognised = dict(tracer.unrecognised)

"""One forward of a model on a few tokens, observed: every use of attention and of a linear, with its graph."""

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
from dualform.models.loading.offloading import frozen, read_again_backward
from dualform.models.reading.attention import NAME, AttentionCall, attention_backend, plain_attention
from dualform.models.reading.attention_tracer import AttentionTrace, AttentionTracer
from dualform.models.structure.anatomy import is_linear
from dualform.models.structure.probing import probe_tokens


@dataclass
class AttentionUse:
    """One use of attention in the probing forward."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    """What the family's own code goes on with, in its graph."""
    joined: Tensor
    """Heads joined, `(batch, q_pos, head * d_value)`."""
    time: int
    """When it ran, counted in linears and uses of attention."""
    heads_first: bool = False
    """Whether `out` has heads in front of positions: `(batch, head, q_pos, d_value)`, the first two perhaps joined."""


@dataclass
class LinearUse:
    """One use of a linear."""

    module: nn.Module
    input: Tensor
    output: Tensor
    time: int
    use: int
    """How often the linear had run before."""


@dataclass
class ObservedForward:
    """What passed in one forward on a few tokens."""

    seen: list[AttentionUse] = field(default_factory=list)
    linears: list[LinearUse] = field(default_factory=list)
    unrecognised: dict[nn.Module, str] = field(default_factory=dict)
    """Modules with a softmax that is not attention as it is known here, and what is different."""
    n_tokens: int = 0
    starts: dict[nn.Module, list[int]] = field(default_factory=dict)
    """When each module began to run."""

    def start(self, module: nn.Module, time: int) -> int:
        """When the run of a module began that was in progress at a time; 0 for one that never was."""
        return max((start for start in self.starts.get(module, ()) if start <= time), default=0)

    @property
    def now(self) -> int:
        """Uses of attention and of linears so far: the clock by which `time` counts."""
        return len(self.seen) + len(self.linears)


class _ProbeBackend:
    builds_mask = True

    def __init__(self, observed: ObservedForward, nudge: Callable[[Tensor], Tensor] | None = None) -> None:
        self._observed = observed
        self._nudge = nudge

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        out = plain_attention(call)
        if self._nudge is not None:
            out = self._nudge(out)
        self._observed.seen.append(
            AttentionUse(module, call.query, call.key, call.value, out, out.flatten(2), self._observed.now)
        )
        return out


def use_registry(model: PreTrainedModel) -> bool:
    """Have dualform's function compute attention; False where the family does not take another function."""
    if not can_set_attention(model):
        return False
    model.set_attn_implementation(NAME)
    return True


def use_eager(model: PreTrainedModel) -> None:
    """Have the family's plain code compute attention, with a softmax to be seen."""
    if can_set_attention(model):
        model.set_attn_implementation("eager")
    else:
        # The setter refuses such families, the config does not.
        set_config_attention(model.config, "eager")


def observe_forward(
    model: PreTrainedModel, registry: bool, nudge: Callable[[Tensor], Tensor] | None = None
) -> ObservedForward:
    """One forward on a few tokens: every attention seen, and what passed through every linear.

    Args:
        model: The model.
        registry: Where to look for attention.
        nudge: Changes the heads' output, on its way to the model.
    """
    observed = ObservedForward()
    uses: dict[nn.Module, int] = {}

    def keep(module: nn.Module, x: Any, out: Any) -> None:
        use = uses.get(module, 0)
        uses[module] = use + 1
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            observed.linears.append(LinearUse(module, x, out, observed.now, use))

    def begin(module: nn.Module, x: Any) -> None:
        observed.starts.setdefault(module, []).append(observed.now)

    def begin_graph(x: Any, out: Tensor) -> Tensor:
        # Not the output itself: families that scale it in place may not do so to a leaf.
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
        with torch.enable_grad(), frozen(model), read_again_backward(model), _looking(model, registry, observed, nudge):
            model(input_ids=ids, use_cache=False)
    return observed


@contextmanager
def _looking(
    model: PreTrainedModel, registry: bool, observed: ObservedForward, nudge: Callable[[Tensor], Tensor] | None
) -> Iterator[None]:
    if registry:
        with attention_backend(_ProbeBackend(observed, nudge)):
            yield
        return

    def see(module: nn.Module, attention: AttentionTrace) -> None:
        joined = attention.head_output.transpose(1, 2).flatten(2)
        out = attention.head_output if attention.returned is None else attention.returned
        observed.seen.append(
            AttentionUse(
                module, attention.query, attention.key, attention.value, out, joined, observed.now, heads_first=True
            )
        )

    watch = AttentionTracer([m for m in model.modules() if m is not model], 1, see, nudge=nudge)
    with watch:
        yield
    observed.unrecognised = dict(watch.unrecognised)

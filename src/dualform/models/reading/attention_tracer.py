"""Tracing attention in families that do not use transformers' attention registry.

XGLM (the models of arXiv:2212.10559), Bloom, Falcon, MPT and GPT-Neo compute attention in their own forward. They
multiply queries with keys, apply softmax and multiply with values, or (Falcon) call PyTorch's function for all three. A
`TorchFunctionMode` intercepts these calls and passes their tensors to a callback. It changes no result, except that it
adds the momentum term of a module that has momentum (`models.editing.momentum`). Attention in another form (an einsum,
a softmax over more than the keys) is not traced, but listed in `AttentionTracer.unrecognised`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dualform.models.hooks import Hooks
from dualform.models.reading.attention import AttentionCall, momentum_in

# Position of (left, right) operand among the arguments.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    torch.matmul: (0, 1),
    torch.bmm: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.bmm: (0, 1),
    Tensor.__matmul__: (0, 1),
    torch.baddbmm: (1, 2),
    Tensor.baddbmm: (1, 2),
}
_OPERANDS = {0: ("batch1", "mat1", "input"), 1: ("batch2", "mat2", "other")}
_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_NORMALISERS = {torch.logsumexp, Tensor.logsumexp}
# Positional arguments of `F.scaled_dot_product_attention`.
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


@dataclass(frozen=True)
class AttentionTrace:
    """One layer's attention, as the family's own code computed it."""

    query: Tensor
    """`(batch, head, q_pos, d_head)`, as multiplied with the keys (in XGLM already scaled)."""
    key: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    value: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    scores: Tensor | None
    """Pre-softmax scores, with scale, mask and position bias, `(batch, head, q_pos, k_pos)`; None if PyTorch's fused
    function computed them: they are then query times key times `scale`, plus `mask`."""
    head_output: Tensor
    """`(batch, head, q_pos, d_head)`."""
    scale: float = 1.0
    """Factor of the scores, if `scores` is None."""
    mask: Tensor | None = None
    """`(batch or 1, head or 1, q_pos, k_pos)`, bool or additive, with position bias; None masks nothing."""
    returned: Tensor | None = None
    """The tensor that the family's code continues with, in its own layout."""


_active_tracers: "list[AttentionTracer]" = []
"""Active tracers; only one of those on a model may add momentum."""


class AttentionTracer(TorchFunctionMode):
    """While active, calls `callback(module, trace)` for every attention that it recognises.

    Args:
        modules: The modules to trace; a softmax elsewhere (in a router or a loss) is ignored.
        batch: Number of rows of the forward, to split a joint batch-and-head axis.
        callback: Receives the module and its tensors as soon as the heads' output is computed.
        nudge: Changes the heads' output before the family's code continues; None leaves it unchanged.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        batch: int,
        callback: Callable[[nn.Module, AttentionTrace], None],
        nudge: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        # A softmax in a module of its own is attributed to the module that calls it.
        self._modules = [module for module in modules if not isinstance(module, nn.Softmax)]
        self._batch = batch
        self._callback = callback
        self._nudge = nudge
        self.unrecognised: dict[nn.Module, str] = {}
        """Modules whose attention has a form that is not traced -> what is different there."""
        # One frame per entered module, because modules such as dropout run between softmax and values.
        self._frames: list[_Frame] = []
        self._hooks = Hooks()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The traced modules."""
        return tuple(self._modules)

    def __enter__(self) -> "AttentionTracer":
        for module in self._modules:
            self._hooks.before(module, partial(self._enter_module, module))
            self._hooks.after(module, partial(self._leave_module, module), whole=True, always=True)
        super().__enter__()  # type: ignore[no-untyped-call]
        _active_tracers.append(self)
        return self

    def __exit__(self, *details: Any) -> None:
        _active_tracers.remove(self)
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        self._hooks.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._frames:
            return out
        frame = self._frames[-1]
        if func is F.scaled_dot_product_attention:
            out = self._trace_fused(frame, {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}, out)
        elif func in _SOFTMAX:
            if frame.operands is not None:
                frame.scores = args[0] if args else kwargs["input"]
            elif frame.einsum:
                self.unrecognised[frame.module] = "multiplies queries with keys by einsum, which is not supported"
        elif func in _NORMALISERS and frame.operands is not None:
            self.unrecognised[frame.module] = "normalises its scores without softmax, which is not supported"
        elif func is torch.einsum:
            frame.einsum = True
        elif func in _PRODUCTS:
            left, right = (
                args[place] if len(args) > place else next(kwargs[name] for name in _OPERANDS[side] if name in kwargs)
                for side, place in enumerate(_PRODUCTS[func])
            )
            if frame.scores is None:
                frame.operands = (left, right)
            else:
                out = self._trace_product(frame, right, out)
        return out

    def _trace_product(self, frame: "_Frame", value: Tensor, out: Tensor) -> Tensor:
        assert frame.operands is not None
        assert frame.scores is not None
        query, key = frame.operands
        if frame.scores.shape[-1] != key.shape[-1]:
            # A softmax over more than the keys cannot be described by an `AttentionTrace`.
            frame.operands = frame.scores = None
            self.unrecognised[frame.module] = "its softmax runs over more than the keys, such as an attention sink"
            return out
        trace = AttentionTrace(
            query=self._by_head(query),
            key=self._by_head(key).transpose(-1, -2),
            value=self._by_head(value),
            scores=self._by_head(frame.scores),
            head_output=self._by_head(out),
        )
        frame.operands = frame.scores = None
        return self._finish(frame.module, trace, out)

    def _trace_fused(self, frame: "_Frame", arguments: dict[str, Any], out: Tensor) -> Tensor:
        query, key = arguments["query"], arguments["key"]
        mask, scale = arguments.get("attn_mask"), arguments.get("scale")
        if arguments.get("is_causal"):
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        trace = AttentionTrace(
            query=query,
            key=key,
            value=arguments["value"],
            scores=None,
            head_output=out,
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            mask=None if mask is None else mask.view((1,) * (4 - mask.dim()) + mask.shape),
        )
        return self._finish(frame.module, trace, out)

    def _finish(self, module: nn.Module, trace: AttentionTrace, out: Tensor) -> Tensor:
        """Add momentum, call the callback, and return the output that the family's code continues with."""
        momentum = momentum_in(module)
        if momentum is not None:
            mask = trace.mask if trace.scores is None else trace.scores
            call = AttentionCall(trace.query, trace.key, trace.value, mask, trace.scale, None)
            trace = replace(trace, head_output=trace.head_output + momentum(call).transpose(1, 2))
            out = trace.head_output.reshape(out.shape)
        if self._nudge is not None:
            out = self._nudge(out)
            trace = replace(trace, head_output=self._by_head(out))
        self.unrecognised.pop(module, None)
        self._callback(module, replace(trace, returned=out))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x if x.dim() == 4 else x.view(self._batch, -1, *x.shape[-2:])

    def _enter_module(self, module: nn.Module, x: Any) -> None:
        self._frames.append(_Frame(module))

    def _leave_module(self, module: nn.Module, x: Any, out: Any) -> None:
        if self._frames and self._frames[-1].module is module:
            self._frames.pop()


def is_traced(model: nn.Module) -> bool:
    """Whether an `AttentionTracer` is active on a module of a model."""
    modules = set(model.modules())
    return any(not modules.isdisjoint(tracer.modules) for tracer in _active_tracers)


@dataclass
class _Frame:
    module: nn.Module
    operands: tuple[Tensor, Tensor] | None = None
    scores: Tensor | None = None
    einsum: bool = False
    """Whether einsum was called, possibly to multiply queries with keys."""

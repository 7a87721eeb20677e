"""Attention of families outside transformers' registry, seen from underneath.

XGLM (the models of arXiv:2212.10559), Bloom, Falcon, MPT and GPT-Neo compute attention in their own forward. They
multiply queries with keys, apply softmax, and multiply with values, or (Falcon) have PyTorch's own function do all
three; a `TorchFunctionMode` sees those calls and passes their tensors on. It changes nothing, but for a module that has
momentum (`models.momentum`), whose heads' output gets the term added. Attention in another form (an einsum, a softmax
over more than the keys) is not reported, but named in `AttentionTracer.unrecognised`.
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
# In the order of `F.scaled_dot_product_attention`.
_WHOLE = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


@dataclass(frozen=True)
class AttentionTrace:
    """One layer's attention, as the family's own code computed it."""

    query: Tensor
    """`(batch, head, q_pos, d_head)`, as multiplied with the keys (XGLM has scaled it already)."""
    key: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    value: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    scores: Tensor | None
    """Pre-softmax, scaled, mask and position bias added, `(batch, head, q_pos, k_pos)`; None where PyTorch's own
    function keeps them to itself: they are query times key times `scale`, and `mask`."""
    head_output: Tensor
    """`(batch, head, q_pos, d_head)`."""
    scale: float = 1.0
    """Factor of the scores, where these are None."""
    mask: Tensor | None = None
    """`(batch or 1, head or 1, q_pos, k_pos)`, bool or additive, position bias included; None lets all see all."""
    passed_on: Tensor | None = None
    """The very tensor that the family's code goes on with, in its own layout."""


_watches: "list[AttentionTracer]" = []
"""Those in force: the innermost adds momentum, so that no other does."""


class AttentionTracer(TorchFunctionMode):
    """While active, calls `see(module, attention)` for every attention that it recognises.

    Args:
        modules: The modules to look into: softmax elsewhere (a router's, a loss's) is none of ours.
        batch: Rows of the forward, to split a joint batch-and-head axis.
        see: Receives the module and its tensors, the moment the values have been multiplied in.
        nudge: Changes attention's output, on its way to the family's code; None leaves it.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        batch: int,
        see: Callable[[nn.Module, AttentionTrace], None],
        nudge: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        # A softmax that is a module of its own belongs to the module that calls it.
        self._modules = [module for module in modules if not isinstance(module, nn.Softmax)]
        self._batch = batch
        self._see = see
        self._nudge = nudge
        self.unrecognised: dict[nn.Module, str] = {}
        """Modules that attend in a form that is not reported, and what is different there."""
        # A frame for each module entered: dropout, say, is a module called between softmax and values.
        self._frames: list[_Frame] = []
        self._hooks = Hooks()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Those that it looks into."""
        return tuple(self._modules)

    def __enter__(self) -> "AttentionTracer":
        for module in self._modules:
            self._hooks.before(module, partial(self._step_in, module))
            self._hooks.after(module, partial(self._step_out, module), whole=True, always=True)
        super().__enter__()  # type: ignore[no-untyped-call]
        _watches.append(self)
        return self

    def __exit__(self, *details: Any) -> None:
        _watches.remove(self)
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        self._hooks.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._frames:
            return out
        frame = self._frames[-1]
        if func is F.scaled_dot_product_attention:
            out = self._report_whole(frame, {**dict(zip(_WHOLE, args, strict=False)), **kwargs}, out)
        elif func in _SOFTMAX:
            if frame.operands is not None:
                frame.scores = args[0] if args else kwargs["input"]
            elif frame.einsum:
                self.unrecognised[frame.module] = "multiplies queries with keys by einsum, which is not recognised"
        elif func in _NORMALISERS and frame.operands is not None:
            self.unrecognised[frame.module] = "normalises its scores without softmax, which is not recognised"
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
                out = self._report(frame, right, out)
        return out

    def _report(self, frame: "_Frame", value: Tensor, out: Tensor) -> Tensor:
        assert frame.operands is not None
        assert frame.scores is not None
        query, key = frame.operands
        if frame.scores.shape[-1] != key.shape[-1]:
            # A softmax over more than the keys is not the attention that is described here.
            frame.operands = frame.scores = None
            self.unrecognised[frame.module] = "its softmax runs over more than the keys, such as an attention sink"
            return out
        seen = AttentionTrace(
            query=self._by_head(query),
            key=self._by_head(key).transpose(-1, -2),
            value=self._by_head(value),
            scores=self._by_head(frame.scores),
            head_output=self._by_head(out),
        )
        frame.operands = frame.scores = None
        return self._shown(frame.module, seen, out)

    def _report_whole(self, frame: "_Frame", given: dict[str, Any], out: Tensor) -> Tensor:
        query, key = given["query"], given["key"]
        mask, scale = given.get("attn_mask"), given.get("scale")
        if given.get("is_causal"):
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        seen = AttentionTrace(
            query=query,
            key=key,
            value=given["value"],
            scores=None,
            head_output=out,
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            mask=None if mask is None else mask.view((1,) * (4 - mask.dim()) + mask.shape),
        )
        return self._shown(frame.module, seen, out)

    def _shown(self, module: nn.Module, seen: AttentionTrace, out: Tensor) -> Tensor:
        """Show what was seen, momentum added, and return what the family's code goes on with."""
        momentum = momentum_in(module)
        if momentum is not None:
            call = AttentionCall(
                seen.query, seen.key, seen.value, seen.mask if seen.scores is None else seen.scores, seen.scale, None
            )
            seen = replace(seen, head_output=seen.head_output + momentum(call).transpose(1, 2))
            out = seen.head_output.reshape(out.shape)
        if self._nudge is not None:
            out = self._nudge(out)
            seen = replace(seen, head_output=self._by_head(out))
        self.unrecognised.pop(module, None)
        self._see(module, replace(seen, passed_on=out))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x if x.dim() == 4 else x.view(self._batch, -1, *x.shape[-2:])

    def _step_in(self, module: nn.Module, x: Any) -> None:
        self._frames.append(_Frame(module))

    def _step_out(self, module: nn.Module, x: Any, out: Any) -> None:
        if self._frames and self._frames[-1].module is module:
            self._frames.pop()


def being_watched(model: nn.Module) -> bool:
    """Whether a model's attention is being looked at already."""
    modules = set(model.modules())
    return any(not modules.isdisjoint(watch.modules) for watch in _watches)


@dataclass
class _Frame:
    module: nn.Module
    operands: tuple[Tensor, Tensor] | None = None
    scores: Tensor | None = None
    einsum: bool = False
    """Whether an einsum was called, which may have multiplied queries with keys."""

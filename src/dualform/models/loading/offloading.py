"""Weights that are brought in for the length of their module's forward and dropped again: disk and CPU offload.

accelerate does the bringing: outside a forward such a parameter lies on the meta device, with a shape and no numbers.
What the rest of dualform needs beside it stands here: a weight's numbers, changes lent to a weight that is not there,
and a backward that brings weights in a second time instead of holding on to all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor]
"""From a weight to the one to be used in its place."""


@dataclass
class _Present:
    """What of a model's streamed weights is there at this moment."""

    weights: dict[tuple[int, str], tuple[Tensor, Callable[[], Tensor]]] = field(default_factory=dict)
    """Hook and name -> the tensor that its module computes with, and how to get it again."""


class StreamedWeights(AlignDevicesHook):
    """accelerate's hook of one module, with changes lent to its weights.

    A changed weight is no parameter: it keeps its graph, so that a change can be trained.
    """

    _changes: dict[str, list[Change]]
    _there: dict[str, nn.Parameter | None]
    _present: _Present

    @classmethod
    def of(cls, hook: AlignDevicesHook, present: _Present) -> Self:
        """In place of accelerate's own."""
        found = cls.__new__(cls)
        found.__dict__.update(vars(hook), _changes={}, _there={}, _present=present)
        return found

    def value(self, module: nn.Module, name: str) -> Tensor:
        """The numbers of one of the module's parameters, in its dtype, where the module computes."""
        value: Tensor = self.weights_map[name]
        known = module._parameters[name]
        return value.to(device_in(self), value.dtype if known is None else known.dtype)

    @contextmanager
    def changed(self, module: nn.Module, name: str, change: Change) -> Iterator[None]:
        """A block in which the module computes with a changed weight; a bias that does not exist counts as zeros."""
        changes = self._changes.setdefault(name, [])
        changes.append(change)
        try:
            yield
        finally:
            changes.remove(change)
            if not changes:
                del self._changes[name]
            # A forward that raised has not put them back.
            self._put_back(module)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Bring the weights in, and change them."""
        moved = super().pre_forward(module, *args, **kwargs)
        for name, weight in module._parameters.items():
            # One that is to have a gradient is held by its graph in any case.
            if weight is not None and not weight.requires_grad:
                self._present.weights[id(self), name] = weight.data, partial(self.value, module, name)
        for name, changes in self._changes.items():
            loaded = module._parameters.get(name)
            self._there[name] = loaded
            original = _missing_bias(module) if loaded is None else partial(self.value, module, name)
            changed = _changed(original() if loaded is None else loaded, tuple(changes))
            # As torch's own functional_call does it: a plain tensor where a parameter stood.
            module._parameters[name] = changed  # type: ignore[assignment]
            self._present.weights[id(self), f"{name}, changed"] = (
                changed.detach(),
                partial(_changed_again, original, tuple(changes)),
            )
        return moved

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Drop them."""
        self._put_back(module)
        for key in [key for key in self._present.weights if key[0] == id(self)]:
            del self._present.weights[key]
        return super().post_forward(module, output)

    def _put_back(self, module: nn.Module) -> None:
        for name, loaded in self._there.items():
            module._parameters[name] = loaded
        self._there.clear()


def _changed(weight: Tensor, changes: tuple[Change, ...]) -> Tensor:
    for change in changes:
        weight = change(weight)
    return weight


def _changed_again(original: Callable[[], Tensor], changes: tuple[Change, ...]) -> Tensor:
    return _changed(original(), changes)


def _missing_bias(module: nn.Module) -> Callable[[], Tensor]:
    """Zeros for a linear that has none."""
    # The weight may be a changed one already, and so no parameter.
    weight: Tensor = module.weight  # type: ignore[assignment] # of a linear
    n_out = weight.shape[0 if isinstance(module, nn.Linear) else 1]
    return partial(torch.zeros, n_out, dtype=weight.dtype, device=weight.device)


def stream_(model: nn.Module) -> None:
    """Put hooks that know changes in the place of accelerate's, where there are any; done twice is done once."""
    present = _Present()
    for module in model.modules():
        hook = vars(module).get("_hf_hook")
        if isinstance(hook, SequentialHook):
            hook.hooks = tuple(_streaming(one, present) for one in hook.hooks)
        elif hook is not None:
            module._hf_hook = _streaming(hook, present)


def _streaming(hook: Any, present: _Present) -> Any:
    plain = isinstance(hook, AlignDevicesHook) and not isinstance(hook, StreamedWeights)
    return StreamedWeights.of(hook, present) if plain and hook.offload else hook


def hook_of(module: nn.Module) -> StreamedWeights | None:
    """The hook that brings in a module's own weights; None where these are simply there."""
    for hook in _hooks(module):
        if isinstance(hook, StreamedWeights):
            return hook
    return None


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = vars(module).get("_hf_hook")
    return tuple(hook.hooks) if isinstance(hook, SequentialHook) else () if hook is None else (hook,)


def is_streamed(model: nn.Module) -> bool:
    """Whether some weights of a model are not in memory between forwards."""
    return any(hook_of(module) is not None for module in model.modules())


def device_in(hook: Any) -> torch.device:
    """Where a hook has its module compute."""
    return torch.device(hook.execution_device)


def runs_on(module: nn.Module) -> torch.device:
    """Where a module computes: under a device map not always where its weights lie."""
    for hook in _hooks(module):
        if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None:
            return device_in(hook)
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def input_device(model: Any) -> torch.device:
    """Where a model wants its token ids: the embeddings' device."""
    return runs_on(model.get_input_embeddings())


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The numbers of a parameter, wherever they lie, detached; not to be written to.

    Args:
        model: The model.
        name: Full name, such as `model.layers.0.self_attn.k_proj.weight`.
    """
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    hook = hook_of(module)
    return module.get_parameter(last).detach() if hook is None else hook.value(module, last)


def named_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter once, tied ones under the name that comes first: offloading breaks their identity."""
    source_of: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    met: set[str] = set()
    for name, parameter in model.named_parameters():
        source = source_of.get(name, name)
        if source not in met:
            met.add(source)
            yield name, parameter


@contextmanager
def lent(model: nn.Module, name: str, change: Change) -> Iterator[None]:
    """A block in which one parameter is another; afterwards it is the same tensor as before, bit for bit."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    hook = hook_of(module)
    if hook is not None:
        with hook.changed(module, last, change):
            yield
        return
    parameter = module.get_parameter(last)
    original = parameter.data
    try:
        parameter.data = change(original)
        yield
    finally:
        parameter.data = original


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """A block in which no weight requires a gradient."""
    before = requiring(model)
    model.requires_grad_(False)
    try:
        yield
    finally:
        require_(model, before)


def requiring(model: nn.Module) -> dict[str, bool]:
    """Which weights require a gradient, by name: a streamed one is another tensor after every forward."""
    # Tied ones under each of their names, since a forward may part them.
    return {name: weight.requires_grad for name, weight in model.named_parameters(remove_duplicate=False)}


def require_(model: nn.Module, required: Mapping[str, bool]) -> None:
    """Have those weights require a gradient that did, and no others."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        weight.requires_grad_(required.get(name, weight.requires_grad))


@contextmanager
def stood_in(module: nn.Module) -> Iterator[None]:
    """A block in which a streamed weight has its shape, dtype and device, but no numbers, for code that only looks."""
    hook = hook_of(module)
    absent = {} if hook is None else {name: one for name, one in module._parameters.items() if one is not None}
    try:
        for name, weight in absent.items():
            blank = torch.zeros((), dtype=weight.dtype, device=runs_on(module)).expand(weight.shape)
            module._parameters[name] = nn.Parameter(blank, requires_grad=False)
        yield
    finally:
        module._parameters.update(absent)


@contextmanager
def dropped_between(model: nn.Module) -> Iterator[None]:
    """A block whose forwards leave no streamed weight in the graph: the backward brings each in again.

    Without it the graph would hold every weight that the forward has passed, and so the whole model at once. It still
    holds those that require a gradient themselves (`frozen`).
    """
    known = {id(hook._present): hook._present for hook in map(hook_of, model.modules()) if hook is not None}
    if not known:
        yield
        return

    def pack(tensor: Tensor) -> "Tensor | _Absent":
        # What is saved while a module runs, and lies in one of its weights, can be had again.
        for present in known.values():
            for weight, again in present.weights.values():
                if weight.device != tensor.device or weight.dtype != tensor.dtype or not weight.is_contiguous():
                    continue
                offset, odd = divmod(tensor.data_ptr() - weight.data_ptr(), weight.element_size())
                if not odd and 0 <= offset < weight.numel():
                    return _Absent(again, tensor.shape, tensor.stride(), offset)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


@dataclass(frozen=True)
class _Absent:
    """A view of a streamed weight that can be had again."""

    again: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """From the weight's first number."""


def _unpack(saved: "Tensor | _Absent") -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    with torch.no_grad():
        weight = saved.again().contiguous()
    return weight.as_strided(saved.size, saved.stride, weight.storage_offset() + saved.offset)

"""Offloaded weights: stored on disk or the CPU, and loaded only while their module runs.

accelerate loads them. Outside its module's forward, such a parameter is on the meta device and has no data. This file
adds access to a weight's values, temporary changes of a weight, and a backward pass that reloads weights instead of
keeping all of them in memory. Offloaded weights cannot be trained.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import Tensor, nn

from dualform.errors import ModelError
from dualform.models.compat import accelerate_hook, own_parameters, set_accelerate_hook

Change = Callable[[Tensor], Tensor]
"""Maps a weight to the one to use in its place."""


@dataclass
class _Loaded:
    """Offloaded weights of a model that are loaded at the moment."""

    weights: dict[tuple[int, str], tuple[Tensor, Callable[[], Tensor]]] = field(default_factory=dict)
    """(id of the hook, name of the parameter) -> the loaded tensor, and a function that reloads it."""


class OffloadedWeights(AlignDevicesHook):
    """accelerate's hook of one module, which can also patch its weights."""

    _changes: dict[str, list[Change]]
    _unpatched: dict[str, nn.Parameter | None]
    _loaded: _Loaded

    @classmethod
    def of(cls, hook: AlignDevicesHook, loaded: _Loaded) -> Self:
        """Copy accelerate's hook."""
        copy = cls.__new__(cls)
        copy.__dict__.update(vars(hook), _changes={}, _unpatched={}, _loaded=loaded)
        return copy

    def value(self, module: nn.Module, name: str) -> Tensor:
        """Load one of the module's parameters, in its dtype, on the device on which the module runs."""
        value: Tensor = self.weights_map[name]
        known = own_parameters(module)[name]
        return value.to(device_in(self), value.dtype if known is None else known.dtype)

    @contextmanager
    def changed(self, module: nn.Module, name: str, change: Change) -> Iterator[None]:
        """Run the module with a changed weight inside the block; a missing bias counts as zeros."""
        changes = self._changes.setdefault(name, [])
        changes.append(change)
        try:
            yield
        finally:
            changes.remove(change)
            if not changes:
                del self._changes[name]
            # Needed if the forward raised before it restored the weights.
            self._restore(module)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Load the weights and apply the changes."""
        moved = super().pre_forward(module, *args, **kwargs)
        parameters = own_parameters(module)
        for name, weight in parameters.items():
            if weight is not None:
                self._loaded.weights[id(self), name] = weight.data, partial(self.value, module, name)
        for name, changes in self._changes.items():
            loaded = self._unpatched[name] = parameters.get(name)
            weight_now = _zero_bias(module) if loaded is None else loaded.data
            for change in changes:
                weight_now = change(weight_now)
            parameters[name] = nn.Parameter(weight_now, requires_grad=False)
        return moved

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Restore the parameters and release the weights."""
        self._restore(module)
        for key in [key for key in self._loaded.weights if key[0] == id(self)]:
            del self._loaded.weights[key]
        return super().post_forward(module, output)

    def _restore(self, module: nn.Module) -> None:
        own_parameters(module).update(self._unpatched)
        self._unpatched.clear()


def _zero_bias(module: nn.Module) -> Tensor:
    """A zero bias for a linear without one."""
    weight = module.get_parameter("weight")
    n_out = weight.shape[0 if isinstance(module, nn.Linear) else 1]
    return torch.zeros(n_out, dtype=weight.dtype, device=weight.device)


def replace_hooks_(model: nn.Module) -> None:
    """Replace accelerate's hooks of offloaded weights by `OffloadedWeights`; repeating this has no effect."""
    loaded = _Loaded()

    def replaced(hook: Any) -> Any:
        plain = isinstance(hook, AlignDevicesHook) and not isinstance(hook, OffloadedWeights)
        return OffloadedWeights.of(hook, loaded) if plain and hook.offload else hook

    for module in model.modules():
        hook = accelerate_hook(module)
        if isinstance(hook, SequentialHook):
            hook.hooks = tuple(map(replaced, hook.hooks))
        elif hook is not None:
            set_accelerate_hook(module, replaced(hook))


def hook_of(module: nn.Module) -> OffloadedWeights | None:
    """The hook that loads a module's own weights; None if they are not offloaded."""
    return next((hook for hook in _hooks(module) if isinstance(hook, OffloadedWeights)), None)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = accelerate_hook(module)
    return tuple(hook.hooks) if isinstance(hook, SequentialHook) else () if hook is None else (hook,)


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights of a model are offloaded."""
    return any(hook_of(module) is not None for module in model.modules())


def require_in_memory(model: nn.Module) -> None:
    """Check that no weights are offloaded, so that they can be trained.

    Raises:
        ModelError: Some are offloaded.
    """
    if is_offloaded(model):
        raise ModelError(
            f"{type(model).__name__}: some of its weights are offloaded to disk or CPU and cannot be trained there. "
            "Make it fit: a smaller dtype (--dtype bfloat16), a larger --max-memory, a --device-map over more GPUs or "
            "a smaller model; or use only learners without gradients (--learners zsl,icl,fold)."
        )


def device_in(hook: Any) -> torch.device:
    """Device on which a hook's module runs."""
    return torch.device(hook.execution_device)


def runs_on(module: nn.Module) -> torch.device:
    """Device on which a module runs, which under a device map may differ from that of its weights."""
    for hook in _hooks(module):
        if isinstance(hook, AlignDevicesHook) and hook.execution_device is not None:
            return device_in(hook)
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def input_device(model: Any) -> torch.device:
    """Device on which a model expects token ids, which is that of its embeddings."""
    return runs_on(model.get_input_embeddings())


def weight_of(model: nn.Module, name: str) -> Tensor:
    """Values of a parameter, loaded if it is offloaded; detached, and not to be written to.

    Args:
        model: The model.
        name: Full name, such as `model.layers.0.self_attn.k_proj.weight`.
    """
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    hook = hook_of(module)
    return module.get_parameter(last).detach() if hook is None else hook.value(module, last)


def named_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter once; tied ones are found by name, because offloading turns them into separate tensors."""
    source_of: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    sources: set[str] = set()
    for name, parameter in model.named_parameters():
        source = source_of.get(name, name)
        if source not in sources:
            sources.add(source)
            yield name, parameter


@contextmanager
def patched(model: nn.Module, name: str, change: Change) -> Iterator[None]:
    """Replace a parameter's values inside the block; afterwards it is the same tensor as before, bit for bit."""
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
    """Let no weight require a gradient inside the block."""
    before = requires_grad_flags(model)
    model.requires_grad_(False)
    try:
        yield
    finally:
        set_requires_grad_(model, before)


def requires_grad_flags(model: nn.Module) -> dict[str, bool]:
    """Name of a weight -> whether it requires a gradient; by name, as every forward replaces offloaded tensors."""
    # With all names of tied weights, which a forward may turn into separate tensors.
    return {name: weight.requires_grad for name, weight in model.named_parameters(remove_duplicate=False)}


def set_requires_grad_(model: nn.Module, required: Mapping[str, bool]) -> None:
    """Restore the flags from `requires_grad_flags`."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        weight.requires_grad_(required.get(name, weight.requires_grad))


@contextmanager
def reload_in_backward(model: nn.Module) -> Iterator[None]:
    """Keep offloaded weights out of the graph of forwards inside the block; the backward pass reloads each of them.

    Otherwise the graph would hold every weight that the forward used, and so the whole model. The weights must be
    frozen (`frozen`) and not patched.
    """
    known = {id(hook._loaded): hook._loaded for hook in map(hook_of, model.modules()) if hook is not None}
    if not known:
        yield
        return

    def pack(tensor: Tensor) -> "Tensor | _View":
        # A saved tensor that shares memory with a loaded weight can be reloaded.
        for loaded in known.values():
            for weight, reload in loaded.weights.values():
                if weight.device != tensor.device or weight.dtype != tensor.dtype or not weight.is_contiguous():
                    continue
                offset, remainder = divmod(tensor.data_ptr() - weight.data_ptr(), weight.element_size())
                if not remainder and 0 <= offset < weight.numel():
                    return _View(reload, tensor.shape, tensor.stride(), offset)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


@dataclass(frozen=True)
class _View:
    """A view of an offloaded weight that can be reloaded."""

    reload: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """Offset from the weight's first entry."""


def _unpack(saved: "Tensor | _View") -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    with torch.no_grad():
        weight = saved.reload().contiguous()
    return weight.as_strided(saved.size, saved.stride, weight.storage_offset() + saved.offset)

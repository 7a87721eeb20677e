"""Offloaded weights: they lie on disk or on the CPU, and are in place only while their module runs.

accelerate brings them in. Outside its module's forward such a parameter lies on the meta device, with a shape and no
numbers. This file adds what dualform needs besides: a weight's numbers, a changed weight for the length of a block, and
a probing backward that reads weights again instead of holding all of them. Offloaded weights are read, not trained.
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
"""From a weight to the one to be used in its place."""


@dataclass
class _Loaded:
    """Which of a model's offloaded weights are in place at this moment."""

    weights: dict[tuple[int, str], tuple[Tensor, Callable[[], Tensor]]] = field(default_factory=dict)
    """Hook and name -> the tensor that its module computes with, and how to read it again."""


class OffloadedWeights(AlignDevicesHook):
    """accelerate's hook of one module, which can also patch its weights."""

    _changes: dict[str, list[Change]]
    _unpatched: dict[str, nn.Parameter | None]
    _loaded: _Loaded

    @classmethod
    def of(cls, hook: AlignDevicesHook, loaded: _Loaded) -> Self:
        """The same hook as accelerate's."""
        found = cls.__new__(cls)
        found.__dict__.update(vars(hook), _changes={}, _unpatched={}, _loaded=loaded)
        return found

    def value(self, module: nn.Module, name: str) -> Tensor:
        """The numbers of one of the module's parameters, in its dtype, where the module computes."""
        value: Tensor = self.weights_map[name]
        known = own_parameters(module)[name]
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
        """Bring the weights in, and patch them."""
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
        """Drop them."""
        self._put_back(module)
        for key in [key for key in self._loaded.weights if key[0] == id(self)]:
            del self._loaded.weights[key]
        return super().post_forward(module, output)

    def _put_back(self, module: nn.Module) -> None:
        own_parameters(module).update(self._unpatched)
        self._unpatched.clear()


def _zero_bias(module: nn.Module) -> Tensor:
    """Zeros for a linear that has no bias."""
    weight = module.get_parameter("weight")
    n_out = weight.shape[0 if isinstance(module, nn.Linear) else 1]
    return torch.zeros(n_out, dtype=weight.dtype, device=weight.device)


def replace_hooks_(model: nn.Module) -> None:
    """Replace accelerate's hooks of offloaded weights by ours, where there are any; twice is as good as once."""
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
    """The hook that brings in a module's own weights; None where these are simply there."""
    return next((hook for hook in _hooks(module) if isinstance(hook, OffloadedWeights)), None)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = accelerate_hook(module)
    return tuple(hook.hooks) if isinstance(hook, SequentialHook) else () if hook is None else (hook,)


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights of a model are not in place between forwards."""
    return any(hook_of(module) is not None for module in model.modules())


def require_in_memory(model: nn.Module) -> None:
    """Check that weights can be trained as far as their place goes.

    Raises:
        ModelError: Some are offloaded.
    """
    if is_offloaded(model):
        raise ModelError(
            f"{type(model).__name__}: some of its weights are offloaded to disk or CPU, where they can be read but not "
            "trained. Load it whole: a smaller dtype (--dtype bfloat16), a larger --max-memory, a --device-map over "
            "more GPUs or a smaller model; or compare what needs no gradients (--learners zsl,icl,fold)."
        )


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
    """Where a model expects its token ids: the embeddings' device."""
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
def patched(model: nn.Module, name: str, change: Change) -> Iterator[None]:
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
    """Which weights require a gradient, by name: an offloaded one is another tensor after every forward."""
    # Tied ones under each of their names, since a forward may part them.
    return {name: weight.requires_grad for name, weight in model.named_parameters(remove_duplicate=False)}


def require_(model: nn.Module, required: Mapping[str, bool]) -> None:
    """Have those weights require a gradient that did, and no others."""
    for name, weight in model.named_parameters(remove_duplicate=False):
        weight.requires_grad_(required.get(name, weight.requires_grad))


@contextmanager
def read_again_backward(model: nn.Module) -> Iterator[None]:
    """A block whose forwards leave no offloaded weight in the graph: the backward reads each again.

    Without it the graph would hold every weight that the forward has passed, and so the whole model at once. The
    weights must be frozen (`frozen`) and not patched.
    """
    known = {id(hook._loaded): hook._loaded for hook in map(hook_of, model.modules()) if hook is not None}
    if not known:
        yield
        return

    def pack(tensor: Tensor) -> "Tensor | _View":
        # What is saved while a module runs, and lies in one of its weights, can be read again.
        for loaded in known.values():
            for weight, again in loaded.weights.values():
                if weight.device != tensor.device or weight.dtype != tensor.dtype or not weight.is_contiguous():
                    continue
                offset, odd = divmod(tensor.data_ptr() - weight.data_ptr(), weight.element_size())
                if not odd and 0 <= offset < weight.numel():
                    return _View(again, tensor.shape, tensor.stride(), offset)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


@dataclass(frozen=True)
class _View:
    """A view of an offloaded weight that can be read again."""

    again: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    """From the weight's first number."""


def _unpack(saved: "Tensor | _View") -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    with torch.no_grad():
        weight = saved.again().contiguous()
    return weight.as_strided(saved.size, saved.stride, weight.storage_offset() + saved.offset)

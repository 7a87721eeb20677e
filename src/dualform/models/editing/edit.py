"""Weight changes: trained as explicit deltas and applied to the model inside a context manager.

A delta next to a frozen weight changes only the selected rows, whatever the optimiser does, and can be read off after
training. (Masking gradients is not enough: weight decay or momentum would change the other rows, too.)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import own_parameters
from dualform.models.loading.offloading import (
    hook_of,
    patched,
    require_in_memory,
    requires_grad_flags,
    set_requires_grad_,
)
from dualform.models.loading.quantized import require_unquantized
from dualform.models.structure.anatomy import Anatomy, LinearRows, is_linear, row_axis
from dualform.models.structure.blocks import block_names
from dualform.models.structure.tying import tied_linears
from dualform.ops.rounding import at_least_float32, last_place_move


@dataclass(frozen=True)
class WeightDelta:
    """A change to some output features of one parameter."""

    parameter: str
    """Full name, such as `model.layers.0.self_attn.k_proj.weight`."""
    axis: int
    """The parameter's axis of output features."""
    index: Tensor | None
    """Indices of the changed output features, `(row,)`; None for all."""
    delta: Tensor
    """The change, float32 (float64 for a float64 model), of the parameter's shape with `row` entries on `axis`. A
    missing bias of a linear counts as zeros."""

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight` with the change, in its own dtype; the sum is computed in at least float32."""
        delta = self.delta.to(weight.device)
        wide = at_least_float32(weight)
        if self.index is None:
            return (wide + delta).to(weight.dtype)
        return wide.index_add(self.axis, self.index.to(weight.device), delta.to(wide.dtype)).to(weight.dtype)


@contextmanager
def applied(model: PreTrainedModel, deltas: Sequence[WeightDelta]) -> Iterator[None]:
    """Context manager in which a model's weights are changed; afterwards the original tensors are back, bit for bit.

    Raises:
        ModelError: The model's weights are quantized.
    """
    if deltas:
        require_unquantized(model, "so they cannot be changed")
    with ExitStack() as stack:
        for change in deltas:
            owner = model.get_submodule(change.parameter.rpartition(".")[0])
            # For an offloaded linear, `patched` also adds a missing bias.
            if lacks_bias(owner, change.parameter) and hook_of(owner) is None:
                stack.enter_context(_bias_patched(owner, change))
            else:
                stack.enter_context(patched(model, change.parameter, change.added_to))
                for name in _other_names(model, change.parameter):
                    stack.enter_context(patched(model, name, change.added_to))
        yield


def _other_names(model: PreTrainedModel, parameter: str) -> list[str]:
    """The other names of a tied weight if it is offloaded, because each module then has its own copy."""
    path, _, last = parameter.rpartition(".")
    if hook_of(model.get_submodule(path)) is None:
        return []
    return [f"{name}.{last}" for name in tied_linears(model).get(path, ()) if name != path]


@contextmanager
def _bias_patched(owner: nn.Module, change: WeightDelta) -> Iterator[None]:
    like = owner.get_parameter("weight")
    zeros = torch.zeros(like.shape[row_axis(owner)], dtype=like.dtype, device=like.device)
    try:
        owner.bias = nn.Parameter(change.added_to(zeros), requires_grad=False)
        yield
    finally:
        # The same state as after `nn.Linear(bias=False)`.
        owner.register_parameter("bias", None)


def lacks_bias(module: nn.Module, parameter: str) -> bool:
    """True if `parameter` is the name of the bias of a linear without bias."""
    return parameter.endswith(".bias") and is_linear(module) and getattr(module, "bias", None) is None


def require_trainable(model: PreTrainedModel) -> None:
    """Check that a model's weights can be trained.

    Raises:
        ModelError: The weights are quantized or offloaded.
    """
    require_unquantized(model, "so they cannot be trained")
    require_in_memory(model)


class _Delta(nn.Module):
    """Parametrization of a weight: the frozen original plus a trainable delta of selected rows."""

    def __init__(self, original: Tensor, axis: int, index: Tensor | None) -> None:
        super().__init__()
        shape = list(original.shape)
        if index is not None:
            shape[axis] = len(index)
        self.axis = axis
        # At least float32, so that small steps are not lost in rounding.
        dtype = torch.float32 if original.dtype.itemsize < 4 else original.dtype
        self.delta = nn.Parameter(torch.zeros(shape, dtype=dtype, device=original.device))
        self.register_buffer("index", None if index is None else index.to(original.device))

    def forward(self, original: Tensor) -> Tensor:
        wide = at_least_float32(original)
        index = self.get_buffer("index") if self.index is not None else None
        delta = self.delta.to(wide.dtype)
        changed = wide + delta if index is None else wide.index_add(self.axis, index, delta)
        return changed.to(original.dtype)


class WeightTraining:
    """Makes selected output features of linears (weights and biases) trainable through deltas that start at zero.

    Use as a context manager; the model is restored when the block ends, also if it raises. Optimise `parameters`, then
    read the result with `deltas()`. All other weights are frozen.

    Args:
        model: The model.
        rows: Name of a linear -> indices of the output features to train, `(row,)`, None for all; see
            `key_value_rows`, `value_rows` and `mlp_rows`.
    """

    def __init__(self, model: PreTrainedModel, rows: Mapping[str, Tensor | None]) -> None:
        self._model = model
        self._targets = dict(rows)
        tied = tied_linears(model)
        # Modules that share a weight share one delta.
        self._sharing = {name: tied.get(name, (name,)) for name in self._targets}
        self._trained: list[tuple[str, _Delta]] = []
        self._required: dict[str, bool] = {}
        require_trainable(model)

    def __enter__(self) -> Self:
        self._required = requires_grad_flags(self._model)
        self._model.requires_grad_(False)
        try:
            for module_name, index in self._targets.items():
                module = self._model.get_submodule(module_name)
                for name in ("weight", "bias"):
                    parameter = getattr(module, name, None)
                    if parameter is None:
                        continue
                    axis = row_axis(module) if name == "weight" else 0
                    delta = _Delta(parameter, axis, index)
                    for sharer in self._sharing[module_name]:
                        # `unsafe` skips a check of shape and dtype, which do not change.
                        parametrize.register_parametrization(
                            self._model.get_submodule(sharer), name, delta, unsafe=True
                        )
                    self._trained.append((f"{module_name}.{name}", delta))
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._restore()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The deltas, as parameters."""
        return [delta.delta for _, delta in self._trained]

    @torch.no_grad()
    def move_by_rounding_(self, generator: torch.Generator) -> None:
        """Start the deltas at plus or minus one unit in the last place of each trained weight, with random signs.

        The generator must be on the CPU; it is used parameter by parameter in the order of `parameters`.
        """
        for name, delta in self._trained:
            path, _, last = name.rpartition(".")
            original = getattr(self._model.get_submodule(path).parametrizations, last).original
            rows = (
                original if delta.index is None else original.index_select(delta.axis, delta.index.to(original.device))
            )
            delta.delta.copy_(last_place_move(rows, generator))

    def deltas(self) -> tuple[WeightDelta, ...]:
        """A copy of the current deltas."""
        return tuple(
            WeightDelta(name, delta.axis, delta.index if delta.index is None else delta.get_buffer("index").clone(),
                        delta.delta.detach().clone())
            for name, delta in self._trained
        )  # fmt: skip

    def _restore(self) -> None:
        for module_name in dict.fromkeys(name for sharing in self._sharing.values() for name in sharing):
            module = self._model.get_submodule(module_name)
            for name in ("weight", "bias"):
                if parametrize.is_parametrized(module, name):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        set_requires_grad_(self._model, self._required)


class AllWeightsTraining:
    """Trains all weights of a model as copies in at least float32, which take the places of the originals.

    Use as a context manager; the original tensors are back when the block ends, also if it raises. A tied weight has
    one copy. A model in half precision computes in float32 meanwhile, because small steps would be lost in rounding.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._originals: list[tuple[nn.Module, str, nn.Parameter]] = []
        require_trainable(model)

    def __enter__(self) -> Self:
        copies: dict[int, nn.Parameter] = {}
        try:
            for module in self._model.modules():
                for name, weight in list(own_parameters(module).items()):
                    if weight is None:
                        continue
                    if id(weight) not in copies:
                        copies[id(weight)] = nn.Parameter(at_least_float32(weight.detach()).clone())
                    self._originals.append((module, name, weight))
                    own_parameters(module)[name] = copies[id(weight)]
        except BaseException:
            # Such as too little memory for the copies.
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        for module, name, weight in self._originals:
            own_parameters(module)[name] = weight
        self._originals.clear()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The copies."""
        return list(self._model.parameters())

    def deltas(self) -> tuple[WeightDelta, ...]:
        """The change of each weight; of a tied one under its first name."""
        originals = {id(own_parameters(module)[name]): weight for module, name, weight in self._originals}
        return tuple(
            WeightDelta(name, 0, None, weight.detach() - at_least_float32(originals[id(weight)].detach()))
            for name, weight in self._model.named_parameters()
        )


class BiasTraining:
    """Trains all biases of a model through deltas that start at zero; a model without biases gets new ones.

    Use as a context manager; the model is restored when the block ends, also if it raises. All other weights are
    frozen.

    Source:
        arXiv:2106.10199 (BitFit). A model without any bias gets zero biases on all linears except the output head, as
        in arXiv:2304.15010, section 3.1.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._trained: list[tuple[str, _Delta]] = []
        self._parametrized: list[nn.Module] = []
        self._added: list[nn.Module] = []
        self._required: dict[str, bool] = {}
        require_trainable(model)

    def __enter__(self) -> Self:
        self._required = requires_grad_flags(self._model)
        self._model.requires_grad_(False)
        try:
            biased = [
                (name, module)
                for name, module in self._model.named_modules()
                if own_parameters(module).get("bias") is not None
            ]
            if not biased:
                biased = self._add_biases()
            deltas: dict[int, _Delta] = {}
            for name, module in biased:
                bias = own_parameters(module)["bias"]
                if id(bias) not in deltas:
                    deltas[id(bias)] = _Delta(bias, 0, None)
                    self._trained.append((f"{name}.bias", deltas[id(bias)]))
                self._parametrized.append(module)
                parametrize.register_parametrization(module, "bias", deltas[id(bias)], unsafe=True)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._restore()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The deltas, as parameters."""
        return [delta.delta for _, delta in self._trained]

    def deltas(self) -> tuple[WeightDelta, ...]:
        """A copy of the current deltas; that of a new bias is the bias."""
        return tuple(WeightDelta(name, 0, None, delta.delta.detach().clone()) for name, delta in self._trained)

    def _add_biases(self) -> list[tuple[str, nn.Module]]:
        head = self._model.get_output_embeddings()
        added = []
        for name, module in self._model.named_modules():
            if not is_linear(module) or module is head:
                continue
            weight = module.get_parameter("weight")
            zeros = torch.zeros(weight.shape[row_axis(module)], dtype=weight.dtype, device=weight.device)
            self._added.append(module)
            module.bias = nn.Parameter(zeros, requires_grad=False)
            added.append((name, module))
        if not added:
            raise ModelError(
                f"{type(self._model).__name__} has no bias and no linear except its output head, so there is no bias "
                "to train: leave out bitfit"
            )
        return added

    def _restore(self) -> None:
        for module in self._parametrized:
            if parametrize.is_parametrized(module, "bias"):
                parametrize.remove_parametrizations(module, "bias", leave_parametrized=False)
        for module in self._added:
            # The same state as after `nn.Linear(bias=False)`.
            module.register_parameter("bias", None)
        self._parametrized.clear()
        self._added.clear()
        set_requires_grad_(self._model, self._required)


class KeyValueTraining(WeightTraining):
    """`WeightTraining` of W_K and W_V of every layer, which is finetuning as defined in arXiv:2212.10559.

    Raises:
        ModelError: W_K or W_V of some layer is unknown.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        super().__init__(model, key_value_rows(model, anatomy))


def key_value_rows(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Tensor | None]:
    """W_K and W_V of every layer, for `WeightTraining`.

    Returns:
        Name of a linear -> indices of its output features that belong to W_K or W_V, `(row,)`; None for all.

    Raises:
        ModelError: W_K or W_V of some layer is unknown, or is not in a linear.
    """
    anatomy.require_key_value()
    projections = [rows for layer in anatomy.layers for rows in (layer.W_K, layer.W_V) if rows is not None]
    return _merge_rows(model, projections, "W_K and W_V")


def value_rows(model: PreTrainedModel, anatomy: Anatomy, layer: int) -> dict[str, Tensor | None]:
    """W_V of one layer, for `WeightTraining`.

    Raises:
        ModelError: W_V is unknown, or is not in a linear.
    """
    attention = anatomy.layers[layer]
    if attention.W_V is None:
        raise ModelError(
            f"W_V was not found in {anatomy.title(layer)}, {attention.attention} ({'; '.join(attention.unclear)}), so "
            "it cannot be trained. Choose another model."
        )
    return _merge_rows(model, [attention.W_V], "W_V")


def mlp_rows(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Tensor | None]:
    """All linears of every block outside its attention module, for `WeightTraining`.

    Raises:
        ModelError: The blocks or their attention are unknown, or a block has no such linear or a matrix that is not in
            a linear (experts stacked in one tensor).
    """
    rows: dict[str, Tensor | None] = {}
    for number, (block, layer) in enumerate(zip(block_names(model, anatomy), anatomy.layers, strict=True)):
        if None in (layer.W_Q, layer.W_K, layer.W_V, layer.W_O):
            raise ModelError(
                f"{layer.attention}: not all of its linears were found ({'; '.join(layer.unclear)}), so those of the "
                f"MLP of layer {number} cannot be identified. Choose another model."
            )
        linears = []
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if f"{name}.".startswith(f"{layer.attention}."):
                continue
            if is_linear(module):
                linears.append(name)
                continue
            for matrix, weight in module.named_parameters(recurse=False):
                if weight.dim() > 1:
                    raise ModelError(
                        f"{name}.{matrix} of shape {tuple(weight.shape)} is not the weight of a linear, so the MLP of "
                        f"layer {number} cannot be trained as a whole. Choose a model without experts."
                    )
        if not linears:
            raise ModelError(
                f"{block} has no linear outside its attention, so layer {number} has no MLP to train. Choose another "
                "model."
            )
        rows.update(dict.fromkeys(linears))
    return rows


def _merge_rows(model: PreTrainedModel, projections: Sequence[LinearRows], what: str) -> dict[str, Tensor | None]:
    """Name of each linear -> sorted indices of the rows of all projections in it, None if these are all its rows."""
    rows: dict[str, list[Tensor]] = {}
    for projection in projections:
        rows.setdefault(projection.module, []).append(projection.index)
    merged: dict[str, Tensor | None] = {}
    for name, indices in rows.items():
        module = model.get_submodule(name)
        if not is_linear(module):
            raise ModelError(f"{name} is not a linear, so {what} in it cannot be trained. Choose another model.")
        index = torch.cat(indices).unique()
        merged[name] = None if len(index) == module.get_parameter("weight").shape[row_axis(module)] else index
    return merged

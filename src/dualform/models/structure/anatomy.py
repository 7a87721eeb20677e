"""A model's attention layers: which weights are W_Q, W_K, W_V and W_O, and how many heads each layer has.

A layer is one run of an attention module in a forward, in execution order. A hybrid model has fewer layers than blocks;
a module that several blocks share (Zamba) or that runs in a loop counts as one layer per run.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dualform.errors import ModelError
from dualform.models.compat import own_parameters


@dataclass(frozen=True)
class LinearRows:
    """Some output features of one linear."""

    module: str
    """Name of the linear in the model; of the first one if several share the weight."""
    index: Tensor
    """Indices of the output features, ascending, `(row,)`, on the CPU."""
    whole: bool
    """True if these are all output features of the linear."""


@dataclass(frozen=True)
class LayerAnatomy:
    """One attention layer. A projection that could not be found is None, and `unclear` has the reason."""

    attention: str
    """Name of the attention module."""
    W_Q: LinearRows | None
    W_K: LinearRows | None
    W_V: LinearRows | None
    W_O: str | None
    """Name of the linear whose input is the heads' output."""
    n_heads: int
    n_kv_heads: int
    d_head: int
    unclear: tuple[str, ...] = ()
    d_value: int | None = None
    """Width of a head's output; None if it is `d_head` (it differs for latent attention)."""
    block: int | None = None
    """Index of the residual block; None if the attention module is in no list of blocks."""
    between: str = ""
    """Description of the operation between the heads' output and W_O; empty if there is none."""
    output_use: int = 0
    """Index of the run of W_O's linear in a forward that belongs to this layer: 0 unless layers share the linear."""
    repeats: int = 1
    """How often the family's code repeats each key-value head before attention (1 with the attention registry)."""
    key_value_of: int | None = None
    """Index of the earlier layer whose keys and values this layer shares; None if it has its own."""

    @property
    def head_width(self) -> int:
        """Width of a head's output."""
        return self.d_head if self.d_value is None else self.d_value


@dataclass(frozen=True)
class Anatomy:
    """All attention layers, in execution order."""

    layers: tuple[LayerAnatomy, ...]
    registry: bool
    """True if attention uses transformers' attention registry, False if it must be traced (`AttentionTracer`)."""
    calls: tuple[tuple[str, int | None], ...] = ()
    """Every run of an attention module in a forward, in order: name of the module and index of the layer (None for a
    run that is not a layer, see `left_out`)."""
    left_out: tuple[str, ...] = ()
    """Attention modules and blocks that are not layers, each with the reason."""

    @property
    def n_heads(self) -> int:
        """Number of attention heads of a layer; the largest one if layers differ."""
        return max((layer.n_heads for layer in self.layers), default=0)

    @property
    def knows_outputs(self) -> bool:
        """Whether W_O of every layer is known, which recording attention outputs requires."""
        return bool(self.layers) and all(layer.W_O is not None for layer in self.layers)

    @property
    def unclear(self) -> tuple[str, ...]:
        """Reasons for projections that were not found, layer by layer, followed by `left_out`."""
        reasons = tuple(f"{self.title(i)}: {reason}" for i, layer in enumerate(self.layers) for reason in layer.unclear)
        return reasons + self.left_out

    def title(self, layer: int) -> str:
        """Name of a layer in messages, with its block if the two have different indices."""
        block = self.layers[layer].block
        return f"layer {layer}" if block is None or block == layer else f"layer {layer} (block {block})"

    def missing_projections(self, *letters: str) -> tuple[str, ...]:
        """Descriptions of the layers in which some projection was not found.

        Args:
            letters: Names of projections: `W_Q`, `W_K`, `W_V`, `W_O`.

        Returns:
            One entry per layer, such as `layer 3: W_O ...`; empty if all are known.
        """
        descriptions = []
        for i, layer in enumerate(self.layers):
            if missing := [letter for letter in letters if getattr(layer, letter) is None]:
                reasons = [reason for reason in layer.unclear if reason.split(" ")[0] in missing] or list(layer.unclear)
                reasons = reasons or [f"{letter} is unknown" for letter in missing]
                descriptions.append(f"{self.title(i)}: {'; '.join(reasons)}")
        return tuple(descriptions)

    def require_layers(self, purpose: str) -> None:
        """Check that the model has an attention layer that can be recorded.

        Args:
            purpose: What needs the layers, for the message.

        Raises:
            ModelError: There is no such layer.
        """
        if not self.layers:
            raise ModelError(
                f"{purpose} needs attention layers that can be recorded, but this model has none: "
                f"{'; '.join(self.left_out)}. Choose another model."
            )

    def require_key_value(self) -> None:
        """Check that W_K and W_V of every layer are known.

        Raises:
            ModelError: They were not found in some layer.
        """
        self.require_layers("finetuning W_K and W_V")
        if missing := self.missing_projections("W_K", "W_V"):
            raise ModelError(
                f"W_K and W_V were not found in every layer ({_first_few(missing)}). Without them this model cannot be "
                "finetuned: leave out ft with --learners zsl,icl,probe."
            )


def _first_few(reasons: tuple[str, ...], limit: int = 3) -> str:
    more = len(reasons) - limit
    return "; ".join(reasons[:limit]) + (f"; and {more} more layers" if more > 0 else "")


def is_linear(module: nn.Module) -> bool:
    """True for a module that multiplies by its own two-dimensional weight: Linear, its subclasses, or gpt2's Conv1D.

    False if the weight is computed from other parameters (weight norm and other parametrizations).
    """
    return isinstance(module, nn.Linear | Conv1D) and "weight" in own_parameters(module)


def row_axis(module: nn.Module) -> int:
    """The axis of output features in `module.weight`: 1 for gpt2's transposed Conv1D, else 0."""
    return 1 if isinstance(module, Conv1D) else 0

"""What is known of a model's attention layers: where each keeps W_Q, W_K, W_V and W_O, and how many heads it has.

A layer is one use of attention in a forward, in the order in which they run. A hybrid has fewer layers than blocks, and
a module that several blocks share (Zamba), or that runs in a loop, is as many layers as it has uses.
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
    """Name of the linear in the model; of the first one where several have the same weight."""
    index: Tensor
    """Which output features, ascending, `(row,)`, on the CPU."""
    whole: bool
    """True when these are all output features of the linear."""


@dataclass(frozen=True)
class LayerAnatomy:
    """One attention layer. A projection that could not be found is None, and `unclear` says why."""

    attention: str
    """Name of the attention module."""
    W_Q: LinearRows | None
    W_K: LinearRows | None
    W_V: LinearRows | None
    W_O: str | None
    """Name of the linear that reads the heads' output."""
    n_heads: int
    n_kv_heads: int
    d_head: int
    unclear: tuple[str, ...] = ()
    d_value: int | None = None
    """Width of a head's output, where it is not `d_head` (latent attention)."""
    block: int | None = None
    """Index of the residual block; None where the attention module lies in no list of blocks."""
    between: str = ""
    """What stands between the heads' output and W_O, in words; empty where nothing does."""
    output_use: int = 0
    """Which use of W_O's linear in a forward this layer is: 0 unless several layers share the linear."""
    repeats: int = 1
    """How often the family's code repeats each key-value head before attention, as seen by `AttentionTracer`."""
    key_value_of: int | None = None
    """The earlier layer whose keys and values this one reads, with no W_K and W_V of its own."""

    @property
    def head_width(self) -> int:
        """Width of a head's output."""
        return self.d_head if self.d_value is None else self.d_value


@dataclass(frozen=True)
class Anatomy:
    """All attention layers, in the order in which they run."""

    layers: tuple[LayerAnatomy, ...]
    registry: bool
    """True when attention is reached through transformers' registry, False when it is watched from underneath."""
    calls: tuple[tuple[str, int | None], ...] = ()
    """Every use of attention in a forward, in order: name of the module, and layer (None where it is no layer, see
    `left_out`)."""
    left_out: tuple[str, ...] = ()
    """Attention modules and blocks that are no layers here, and why, in words."""

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer; of the layer with most, where they differ."""
        return max((layer.n_heads for layer in self.layers), default=0)

    @property
    def knows_outputs(self) -> bool:
        """Whether W_O of every layer is known, so that attention outputs can be recorded."""
        return bool(self.layers) and all(layer.W_O is not None for layer in self.layers)

    @property
    def unclear(self) -> tuple[str, ...]:
        """What could not be found, in words, layer by layer; then what is no layer here."""
        found = tuple(f"{self.title(i)}: {word}" for i, layer in enumerate(self.layers) for word in layer.unclear)
        return found + self.left_out

    def title(self, layer: int) -> str:
        """How messages call a layer: with its block, where the two are counted differently."""
        block = self.layers[layer].block
        return f"layer {layer}" if block is None or block == layer else f"layer {layer} (block {block})"

    def missing_projections(self, *letters: str) -> tuple[str, ...]:
        """Layers where one of these projections was not found, with the reasons.

        Args:
            letters: Of `W_Q`, `W_K`, `W_V` and `W_O`.

        Returns:
            Such as `layer 3: W_O ...`; empty where all are known.
        """
        found = []
        for i, layer in enumerate(self.layers):
            if missing := [letter for letter in letters if getattr(layer, letter) is None]:
                words = [word for word in layer.unclear if word.split(" ")[0] in missing] or list(layer.unclear)
                found.append(f"{self.title(i)}: {'; '.join(words or [f'{letter} is unknown' for letter in missing])}")
        return tuple(found)

    def require_layers(self, purpose: str) -> None:
        """Check that there is any layer to look into.

        Args:
            purpose: What needs it, for the message.

        Raises:
            ModelError: There is none.
        """
        if not self.layers:
            raise ModelError(f"{purpose} needs attention that can be recorded: {'; '.join(self.left_out)}.")

    def require_key_value(self) -> None:
        """Check that W_K and W_V are known everywhere.

        Raises:
            ModelError: Some layer's could not be found.
        """
        self.require_layers("finetuning W_K and W_V")
        if missing := self.missing_projections("W_K", "W_V"):
            raise ModelError(
                f"W_K and W_V were not found everywhere ({_few(missing)}). This model can be read (zsl, icl, probe) "
                "but not finetuned: leave out ft with --learners zsl,icl,probe."
            )


def _few(words: tuple[str, ...], most: int = 3) -> str:
    """The first of several reasons."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more layers" if more > 0 else "")


def is_linear(module: nn.Module) -> bool:
    """True for a module that multiplies by a two-dimensional weight: Linear and its kin, or gpt2's Conv1D.

    Not where the weight is computed from others (weight norm and other parametrizations), and cannot be written to.
    """
    return isinstance(module, nn.Linear | Conv1D) and "weight" in own_parameters(module)


def row_axis(module: nn.Module) -> int:
    """The axis of `module.weight` that counts output features: 1 for gpt2's transposed Conv1D, else 0."""
    return 1 if isinstance(module, Conv1D) else 0

"""The residual blocks of a model, and the logits computed from any block's output (logit lens).

Works without a table of family names. The blocks are the members of the module list that contains the attention
modules. Final norm, projection, head and soft cap are applied by the model's own forward, with every block skipped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ModelError, type_and_first_line
from dualform.models.hooks import Hooks, first_input
from dualform.models.reading.self_check import largest_difference, tolerance
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.probing import probe_tokens


@dataclass(frozen=True)
class Blocks:
    """The residual blocks, in order. Build it with `find_blocks`."""

    model: PreTrainedModel = field(repr=False)
    names: tuple[str, ...]
    """Name of each block's module."""
    companions: tuple[tuple[Any, ...] | None, ...] = field(repr=False)
    """The other entries of the tuple that each block returns after its hidden states; None if it returns no tuple."""

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits computed from hidden states as if they were the last block's output.

        The model's own forward runs with every block skipped. Gradients flow from the logits to `hidden` if enabled.

        Args:
            hidden: Hidden states as returned by a block, `(..., d_model)`.

        Returns:
            Logits, `(..., vocab)`.

        Source:
            Logit lens: nostalgebraist, "interpreting GPT: the logit lens" (2020).
        """
        # One row for each position, so that the context length cannot be exceeded.
        rows = hidden.reshape(-1, 1, hidden.shape[-1])
        ids = probe_tokens(self.model, 1).expand(len(rows), 1)
        with self._all_skipped(rows):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    @contextmanager
    def detached(self) -> Iterator[list[Tensor]]:
        """Context manager in which no gradient flows from a residual block to earlier blocks or the embeddings.

        The model's outputs do not change, bit for bit.

        Yields:
            A list that the forward fills with the output of each block, `(batch, pos, d_model)`, with its graph.
        """
        outputs: list[Tensor] = []
        with Hooks(self.model) as hooks:
            for name in self.names:
                hooks.before_call(name, lambda args, kwargs: (_detached(args), _detached(kwargs)))
                hooks.after(name, lambda x, out: outputs.append(out))
            yield outputs

    @contextmanager
    def all_skipped_but(self, layer: int) -> Iterator[None]:
        """Context manager in which all residual blocks but one return their input unchanged."""
        with Hooks(self.model) as hooks:
            for other in set(range(len(self.names))) - {layer}:
                self._skip(hooks, other, None)
            yield

    @contextmanager
    def _all_skipped(self, hidden: Tensor) -> Iterator[None]:
        """Every residual block returns `hidden`, whatever its input."""
        with Hooks(self.model) as hooks:
            for layer in range(len(self.names)):
                self._skip(hooks, layer, hidden)
            yield

    def _skip(self, hooks: Hooks, layer: int, hidden: Tensor | None) -> None:
        companions = self.companions[layer]

        def forward(*args: Any, **kwargs: Any) -> Any:
            states = first_input(args, kwargs) if hidden is None else hidden
            return states if companions is None else (states, *companions)

        hooks.replace_forward(self.names[layer], forward)


def find_blocks(model: PreTrainedModel, anatomy: Anatomy) -> Blocks:
    """Find the residual blocks, one per layer, and check that `unembed` gives the logits for the last block's output.

    Raises:
        ModelError: The layers are not a plain stack of residual blocks, or the logits depend on more than the last
            block's hidden states.
    """
    names = block_names(model, anatomy)
    family = type(model).__name__
    outputs: list[tuple[str, Any]] = []

    def keep(name: str, x: Any, out: Any) -> None:
        outputs.append((name, out))

    ids = probe_tokens(model)
    with Hooks(model) as hooks, torch.no_grad():
        for name in names:
            hooks.after(name, partial(keep, name), whole=True)
        logits = model(input_ids=ids, use_cache=False).logits
    if (order := [name for name, _ in outputs]) != list(names):
        raise ModelError(
            f"{family}: its blocks ran in the order {order}; expected each block once, in order. Choose another model."
        )
    hidden = None
    companions: list[tuple[Any, ...] | None] = []
    for name, out in outputs:
        hidden = out[0] if isinstance(out, tuple) and out else out
        if not (isinstance(hidden, Tensor) and hidden.shape[:-1] == ids.shape):
            raise ModelError(
                f"{family}: {name} returns {type(out).__name__}; expected hidden states (batch, pos, d_model), alone "
                "or first in a tuple. Choose another model."
            )
        companions.append(out[1:] if isinstance(out, tuple) else None)
    assert hidden is not None
    blocks = Blocks(model, names, tuple(companions))
    try:
        with torch.no_grad():
            difference = largest_difference([logits], [blocks.unembed(hidden)])
    except Exception as error:
        # The rest of the model may need more than hidden states and may then raise anything.
        raise ModelError(
            f"{family}: computing logits from the hidden states of {names[-1]} alone raised "
            f"{type_and_first_line(error)}, so logits cannot be computed layer by layer. Choose another model."
        ) from error
    if not difference < tolerance(model):
        raise ModelError(
            f"{family}: logits computed from the hidden states of {names[-1]} alone differ from the model's logits by "
            f"{difference:.1e} of the largest one. They depend on more than these states, so logits cannot be computed "
            "layer by layer. Choose another model."
        )
    return blocks


def block_names(model: PreTrainedModel, anatomy: Anatomy) -> tuple[str, ...]:
    """Names of the residual blocks, one for each layer.

    Raises:
        ModelError: The members of the list of layers do not have exactly one attention module each.
    """
    family = type(model).__name__
    anatomy.require_layers("reading a model block by block")
    names = list(enclosing_blocks(model, anatomy))
    stack = names[0].rpartition(".")[0]
    members = [f"{stack}.{child}" for child, _ in model.get_submodule(stack).named_children()]
    if names != members:
        odd = next((name for name in [*members, *names] if names.count(name) != 1 or name not in members), names[0])
        raise ModelError(
            f"{family}: its layers are not a plain stack of blocks with one attention module each ({odd} does not "
            "fit), so it cannot be run block by block. Choose another model."
        )
    return tuple(names)


def enclosing_blocks(model: PreTrainedModel, anatomy: Anatomy) -> tuple[str, ...]:
    """Name of the residual block that contains each layer's attention.

    Raises:
        ModelError: A layer's attention module is in no list of blocks.
    """
    anatomy.require_layers("reading hidden states after each block")
    names = []
    for layer in anatomy.layers:
        name = block_of(model, layer.attention)
        if name is None:
            raise ModelError(
                f"{type(model).__name__}: {layer.attention} is in no list of layers, so the hidden states after its "
                "block are unknown. Choose another model."
            )
        names.append(name)
    return tuple(names)


def block_of(model: PreTrainedModel, name: str) -> str | None:
    """Name of the module list's member that contains a module; None if the module is in no list."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:depth])), nn.ModuleList | nn.Sequential):
            return ".".join(parts[: depth + 1])
    return None


def _detached(arguments: Any) -> Any:
    """The arguments with every tensor in plain containers detached from its graph."""
    if isinstance(arguments, Tensor):
        return arguments.detach()
    if type(arguments) in (tuple, list):
        return type(arguments)(_detached(entry) for entry in arguments)
    if type(arguments) is dict:
        return {key: _detached(entry) for key, entry in arguments.items()}
    return arguments

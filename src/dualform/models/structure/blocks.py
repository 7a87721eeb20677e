"""The residual blocks of a model, and what stands between the last one's output and the logits.

No table of names is kept. Blocks are the members of the list of layers that the attention modules lie in. Final norm,
projection, head and soft cap are whatever the model's own forward does once every block has returned the hidden
states that are to be read: the idea of the "logit lens", without knowing the family.
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
    """The residual blocks, first one first. Build it with `find_blocks`."""

    model: PreTrainedModel = field(repr=False)
    names: tuple[str, ...]
    """Name of each block's module."""
    companions: tuple[tuple[Any, ...] | None, ...] = field(repr=False)
    """What each block returns behind its hidden states; None where it returns them alone."""

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits, were the last block's output `hidden`.

        The model's own forward runs with every block skipped, so that final norm, projections, head and soft
        caps are its own. Gradients flow from logits to `hidden` where they are enabled.

        Args:
            hidden: Hidden states as blocks hand them on, `(..., d_model)`.

        Returns:
            Logits, `(..., vocab)`.

        Source:
            Logit lens: nostalgebraist, "interpreting GPT: the logit lens" (2020).
        """
        # A row for each, so that no position is beyond what the model was built for.
        rows = hidden.reshape(-1, 1, hidden.shape[-1])
        ids = probe_tokens(self.model, 1).expand(len(rows), 1)
        with self._all_skipped(rows):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    @contextmanager
    def apart(self) -> Iterator[list[Tensor]]:
        """A block in which no gradient flows from a residual block to anything before it, the embeddings included.

        Outputs are the same, bit for bit.

        Yields:
            The blocks' hidden states, `(batch, pos, d_model)` each, as they are computed, with their graphs.
        """
        outputs: list[Tensor] = []
        with Hooks(self.model) as hooks:
            for name in self.names:
                hooks.before_call(name, lambda args, kwargs: (_detached(args), _detached(kwargs)))
                hooks.after(name, lambda x, out: outputs.append(out))
            yield outputs

    @contextmanager
    def skipped_but(self, layer: int) -> Iterator[None]:
        """A block in which all residual blocks but one return the hidden states that they are given."""
        with Hooks(self.model) as hooks:
            for other in set(range(len(self.names))) - {layer}:
                self._skip(hooks, other, None)
            yield

    @contextmanager
    def _all_skipped(self, hidden: Tensor) -> Iterator[None]:
        """Every residual block returns `hidden`, whatever it is given."""
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
    """Find the residual blocks and check, on one small forward, that the last one's output unembeds to the logits.

    Args:
        model: In eval mode; not changed.
        anatomy: Its anatomy.

    Returns:
        The blocks, one for each layer of the anatomy.

    Raises:
        ModelError: The layers are not a plain stack of residual blocks, or the logits depend on more than the last
            block's output.
    """
    names = block_names(model, anatomy)
    family = type(model).__name__
    seen: list[tuple[str, Any]] = []

    def keep(name: str, x: Any, out: Any) -> None:
        seen.append((name, out))

    ids = probe_tokens(model)
    with Hooks(model) as hooks, torch.no_grad():
        for name in names:
            hooks.after(name, partial(keep, name), whole=True)
        logits = model(input_ids=ids, use_cache=False).logits
    if [name for name, _ in seen] != list(names):
        raise ModelError(
            f"{family}: its blocks ran as {[name for name, _ in seen]}, not once each in order, so there is no output "
            "of a layer to read logits from."
        )
    hidden = None
    companions: list[tuple[Any, ...] | None] = []
    for name, out in seen:
        hidden = out[0] if isinstance(out, tuple) and out else out
        if not (isinstance(hidden, Tensor) and hidden.shape[:-1] == ids.shape):
            raise ModelError(
                f"{family}: {name} returns {type(out).__name__} without hidden states (batch, pos, d_model)."
            )
        companions.append(out[1:] if isinstance(out, tuple) else None)
    assert hidden is not None
    blocks = Blocks(model, names, tuple(companions))
    try:
        with torch.no_grad():
            difference = largest_difference([logits], [blocks.unembed(hidden)])
    except Exception as error:
        # What follows the blocks may need more of them than hidden states, and fails in a way of its own.
        raise ModelError(
            f"{family}: the output of {names[-1]} cannot be read by itself through what follows it "
            f"({type_and_first_line(error)}), so layers cannot be read one by one."
        ) from error
    if not difference < tolerance(model):
        raise ModelError(
            f"{family}: the output of {names[-1]}, read through what follows it, gives logits that differ from the "
            f"model's by {difference:.1e} of the largest. They depend on more than that output, so layers cannot be "
            "read one by one."
        )
    return blocks


def block_names(model: PreTrainedModel, anatomy: Anatomy) -> tuple[str, ...]:
    """Names of the residual blocks, one for each layer.

    Raises:
        ModelError: The layers' attention modules do not lie one by one in the members of a single list of layers.
    """
    family = type(model).__name__
    anatomy.require_layers("reading a model block by block")
    names = []
    for layer in anatomy.layers:
        name = block_of(model, layer.attention)
        if name is None:
            raise ModelError(
                f"{family}: {layer.attention} lies in no list of layers, so its residual block is unknown."
            )
        names.append(name)
    stack = names[0].rpartition(".")[0]
    members = [f"{stack}.{child}" for child, _ in model.get_submodule(stack).named_children()]
    if names != members:
        odd = next((name for name in [*members, *names] if names.count(name) != 1 or name not in members), names[0])
        raise ModelError(
            f"{family}: its layers are not a plain stack of blocks with one attention each ({odd} is not), so it "
            "cannot be taken apart block by block."
        )
    return tuple(names)


def block_of(model: PreTrainedModel, name: str) -> str | None:
    """The member of a list of modules that a module lies in; None where it lies in no list."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:depth])), nn.ModuleList | nn.Sequential):
            return ".".join(parts[: depth + 1])
    return None


def _detached(given: Any) -> Any:
    """Every tensor in plain containers cut off from its graph."""
    if isinstance(given, Tensor):
        return given.detach()
    if type(given) in (tuple, list):
        return type(given)(_detached(one) for one in given)
    if type(given) is dict:
        return {key: _detached(one) for key, one in given.items()}
    return given

"""A forward taken one block at a time: all texts pass a block before any of them passes the next.

Between two blocks weights may change, so that what comes later already lives with what came earlier, and still every
text passes every block once. Nothing of the model is written anew: its own forward runs, along the route that reads
it, with all blocks but one skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ModelError, type_and_first_line
from dualform.models.hooks import Hooks
from dualform.models.loading.quantized import require_unquantized
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Layout, Query, lay_out
from dualform.models.reading.route import EncodedPrefix
from dualform.models.reading.self_check import largest_difference, tolerance
from dualform.models.structure.blocks import Blocks
from dualform.models.structure.probing import ordinary_ids
from dualform.models.structure.tying import tied_linears


@dataclass(frozen=True)
class BlockActivations:
    """One block at all tokens of some texts, the prefix's left out, `token` in the order of the texts."""

    before: Tensor
    """Hidden states that the block received, `(token, d_model)`."""
    head_output: Tensor
    """Input of W_O, heads joined, `(token, head * d_head)`."""
    output: Tensor
    """Output of W_O, `(token, d_model)`."""
    after: Tensor | None
    """Hidden states that the block returned, `(token, d_model)`; None where the forward stopped behind W_O."""


def require_separable(lm: LanguageModel, blocks: Blocks) -> None:
    """Check that a block needs no more of the blocks before it than their hidden states.

    Each block runs by itself, with the others skipped, and must return what it does in the model's own forward.
    One that reads a router's state (Zaya), or keys and values of an earlier block, does not.

    Args:
        lm: The model.
        blocks: Its residual blocks.

    Raises:
        ModelError: A block returns something else, or fails.
    """
    # Other tokens than `find_blocks` read, so that what it kept of the blocks' other outputs is not right for them.
    ids = torch.tensor([ordinary_ids(lm.model, 5, start=20)], device=lm.device)
    given, handed_on = _hidden_states(lm.model, blocks, ids)
    family = type(lm.model).__name__
    for layer, (before, after) in enumerate(zip(given, handed_on, strict=True)):
        reason = ""
        try:
            with blocks.skipped_but(layer):
                (found,) = _hidden_states(lm.model, blocks, ids, {layer: before})[1]
            difference = largest_difference([after], [found])
            if not difference < tolerance(lm.model):
                reason = f"without the others its output is off by {difference:.1e} of the largest entry"
        except Exception as error:
            reason = f"without the others it raises {type_and_first_line(error)}"
        if reason:
            raise ModelError(
                f"{family}: {blocks.names[layer]} needs more of the blocks before it than their hidden states "
                f"({reason}), so its forward cannot be taken one block at a time."
            )


def _hidden_states(
    model: PreTrainedModel, blocks: Blocks, ids: Tensor, instead: dict[int, Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """What each block receives and returns in one forward.

    Args:
        model: The model.
        blocks: Its blocks.
        ids: Tokens, `(1, pos)`.
        instead: What one block is given instead; that block alone is then looked at, and the forward ends with it.
    """
    given: list[Tensor] = []
    handed_on: list[Tensor] = []

    def enter(layer: int, x: Tensor | None) -> Tensor:
        if x is None:
            raise ModelError(f"{type(model).__name__}: {blocks.names[layer]} is not given hidden states by that name.")
        states = x if instead is None else instead[layer].to(x.device)
        given.append(states.clone())
        return states

    with Hooks(model) as hooks, torch.no_grad():

        def leave(x: Any, out: Tensor) -> None:
            handed_on.append(out.clone())
            if instead is not None:
                hooks.stop()

        for layer, name in enumerate(blocks.names):
            if instead is None or layer in instead:
                hooks.before(name, partial(enter, layer))
                hooks.after(name, leave)
        forward_rows(model, ids.new_tensor([ids.shape[1] - 1]), input_ids=ids, use_cache=False)
    return given, handed_on


class BlockwiseForward:
    """Some texts behind one prefix, taken through the blocks one at a time. Gradients are off throughout.

    Args:
        lm: The model; its weights may change between steps, its prefix does not follow them.
        blocks: Its residual blocks.
        prefix: What stands before each text.
        groups: Texts that share a row (`row_groups`), as queries. Tokens of answers are passed on as well, in the
            order of `lay_out`; the routes `repeated` and `naive` take queries without answers only.

    Raises:
        ContextError: A text goes beyond a switch length (`LanguageModel.require_usable_prefix`).
    """

    def __init__(
        self, lm: LanguageModel, blocks: Blocks, prefix: EncodedPrefix, groups: Sequence[Sequence[Query]]
    ) -> None:
        for queries in groups:
            lm.require_usable_prefix(prefix.length, queries)
        self._lm = lm
        self._blocks = blocks
        self._prefix = prefix
        self._groups = [_Group.of(lm, queries, prefix.length) for queries in groups]
        self._hidden: list[Tensor | None] = [None] * len(self._groups)

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def advance(self, group: int, layer: int) -> BlockActivations:
        """Take a group through the next block; its hidden states are then the block's output.

        Args:
            group: Index of the group.
            layer: The block: 0 first, then one more at every call for this group.
        """
        seen, handed_on = self._run(group, layer, to_the_end=True)
        self._hidden[group] = handed_on
        return seen

    def peek(self, group: int, layer: int) -> BlockActivations:
        """The next block's attention alone; the group does not advance."""
        seen, _ = self._run(group, layer, to_the_end=False)
        return seen

    def _run(self, number: int, layer: int, to_the_end: bool) -> tuple[BlockActivations, Tensor | None]:
        group, hidden = self._groups[number], self._hidden[number]
        W_O = self._lm.anatomy.layers[layer].W_O
        assert W_O is not None
        kept: dict[str, Tensor] = {}

        def enter(x: Tensor) -> Tensor:
            kept["before"] = x if hidden is None else hidden.view(x.shape).to(x.device)
            return kept["before"]

        def leave_attention(x: Tensor, out: Tensor) -> None:
            kept["head_output"], kept["output"] = x, out
            if not to_the_end:
                hooks.stop()

        def leave(x: Any, out: Tensor) -> None:
            kept["after"] = out
            hooks.stop()

        block = self._blocks.names[layer]
        with Hooks(self._lm.model) as hooks, torch.no_grad(), self._blocks.skipped_but(layer):
            hooks.before(block, enter)
            hooks.after(W_O, leave_attention)
            hooks.after(block, leave)
            self._lm.route.read(self._prefix, list(group.queries), group.layout, Recording())
        own = {
            name: value.reshape(-1, value.shape[-1])[group.rows.to(value.device)].to(group.rows.device)
            for name, value in kept.items()
        }
        return BlockActivations(own["before"], own["head_output"], own["output"], own.get("after")), kept.get("after")


@dataclass(frozen=True)
class _Group:
    queries: tuple[Query, ...]
    layout: Layout
    rows: Tensor
    """Where the texts' tokens are in the flattened `(batch * pos)` of the model's forward, `(token,)`."""

    @classmethod
    def of(cls, lm: LanguageModel, queries: Sequence[Query], n_prefix: int) -> "_Group":
        # The head is not needed: one scored row is the fewest that a forward can have.
        layout = lay_out(queries, device=lm.device)
        layout = replace(layout, scored_rows=layout.scored_rows[:1])
        lengths = [len(query.prompt) for query in queries]
        if lm.route.name == "naive":
            # The prefix is read along with the one text.
            rows = torch.arange(n_prefix, n_prefix + lengths[0])
        elif lm.route.name == "repeated":
            rows = torch.cat([torch.arange(n) + i * max(lengths) for i, n in enumerate(lengths)])
        else:
            rows = torch.arange(sum(query.width() for query in queries))
        return cls(tuple(queries), layout, rows.to(lm.device))


def row_groups(lm: LanguageModel, texts: Sequence[Query]) -> list[list[int]]:
    """Texts that can share a row of a `BlockwiseForward`, as indices, each once."""
    if lm.route.name == "naive":
        return [[i] for i in range(len(texts))]
    return lm.groups(texts)


def require_editable_outputs(lm: LanguageModel) -> None:
    """Check that W_O of every layer is known and can be changed.

    Raises:
        ModelError: It is not.
    """
    require_unquantized(lm.model, "so nothing can be folded into them")
    lm.anatomy.require_layers("folding")
    if missing := lm.anatomy.missing_projections("W_O"):
        raise ModelError(f"{lm.name}: nothing can be folded into W_O where it was not found ({'; '.join(missing)})")
    tied = tied_linears(lm.model)
    held = [tied.get(layer.W_O, (layer.W_O,))[0] for layer in lm.anatomy.layers if layer.W_O is not None]
    if shared := [name for name in dict.fromkeys(held) if held.count(name) > 1]:
        raise ModelError(
            f"{lm.name}: {shared[0]} is W_O of {held.count(shared[0])} layers at once, so that what is folded into one "
            "of them changes the others too"
        )
    for layer in lm.anatomy.layers:
        assert layer.W_O is not None
        weight = lm.model.get_submodule(layer.W_O).get_parameter("weight")
        if not weight.is_floating_point() or weight.dim() != 2:
            raise ModelError(
                f"{lm.name}: {layer.W_O}.weight is stored as {weight.dtype} of shape {tuple(weight.shape)}, so it is "
                "quantized and cannot be edited. Load the model in float32 or bfloat16."
            )

"""Block-wise forward: all texts pass through one block before any of them passes through the next.

Weights may be changed between two blocks. Later blocks then receive hidden states that include earlier changes,
although every text passes through every block only once. The model's own forward is used, with all blocks but one
skipped.
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
from dualform.models.reading.forward import run_layers
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Layout, Query, lay_out
from dualform.models.reading.route import EncodedPrefix
from dualform.models.reading.self_check import largest_difference, tolerance
from dualform.models.structure.blocks import Blocks
from dualform.models.structure.probing import ordinary_ids
from dualform.models.structure.tying import tied_linears


@dataclass(frozen=True)
class BlockActivations:
    """Activations of one block at all tokens of several texts, in order and without the prefix."""

    before: Tensor
    """The block's input, `(token, d_model)`."""
    head_output: Tensor
    """Input of W_O, heads joined, `(token, head * d_head)`."""
    output: Tensor
    """Output of W_O, `(token, d_model)`."""
    after: Tensor | None
    """The block's output, `(token, d_model)`; None if the forward stopped after W_O (`BlockwiseForward.peek`)."""


def require_separable(lm: LanguageModel, blocks: Blocks) -> None:
    """Check that each block depends on earlier blocks only through their hidden states.

    Each block runs with all others skipped and must return the same as in the model's own forward. A block that uses a
    router's state (Zaya), or keys and values of an earlier block, fails this check.

    Raises:
        ModelError: A block returns something else, or raises.
    """
    # Different tokens from those of `find_blocks`, whose `companions` are therefore wrong for them.
    ids = torch.tensor([ordinary_ids(lm.model, 5, start=20)], device=lm.device)
    inputs, outputs = _hidden_states(lm.model, blocks, ids)
    family = type(lm.model).__name__
    for layer, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
        reason = ""
        try:
            with blocks.all_skipped_but(layer):
                (actual,) = _hidden_states(lm.model, blocks, ids, {layer: before})[1]
            difference = largest_difference([after], [actual])
            if not difference < tolerance(lm.model):
                reason = f"run alone, its output is off by {difference:.1e} of the largest entry"
        except Exception as error:
            reason = f"run alone, it raises {type_and_first_line(error)}"
        if reason:
            raise ModelError(
                f"{family}: {blocks.names[layer]} needs more of the blocks before it than their hidden states "
                f"({reason}), so the model cannot be run block by block. Choose another model."
            )


def _hidden_states(
    model: PreTrainedModel, blocks: Blocks, ids: Tensor, replacement: dict[int, Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of the blocks in one forward.

    `replacement` maps the index of one block to hidden states to use as its input. Only this block is then recorded,
    and the forward stops after it.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def before_block(layer: int, x: Tensor | None) -> Tensor:
        if x is None:
            raise ModelError(
                f"{type(model).__name__}: {blocks.names[layer]} has no input named hidden_states. Choose another model."
            )
        states = x if replacement is None else replacement[layer].to(x.device)
        inputs.append(states.clone())
        return states

    with Hooks(model) as hooks, torch.no_grad():

        def after_block(x: Any, out: Tensor) -> None:
            outputs.append(out.clone())
            if replacement is not None:
                hooks.stop()

        for layer, name in enumerate(blocks.names):
            if replacement is None or layer in replacement:
                hooks.before(name, partial(before_block, layer))
                hooks.after(name, after_block)
        run_layers(model, input_ids=ids, use_cache=False)
    return inputs, outputs


class BlockwiseForward:
    """Runs texts after a shared prefix through the blocks one at a time, without gradients.

    Args:
        lm: The model. Its weights may change between steps; the prefix keeps the keys and values it was encoded with.
        blocks: Its residual blocks.
        prefix: The encoded prefix of all texts.
        groups: Groups of texts that share a row (`row_groups`), as queries. Tokens of answers are processed, too, in
            the order of `lay_out`; the routes `repeated` and `naive` accept only queries without answers.

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
        """Run a group through the next block, and keep the block's output as the group's hidden states.

        Args:
            group: Index of the group.
            layer: Index of the block: 0 at the first call for a group, one more at each later call.
        """
        activations, output = self._run(group, layer, to_the_end=True)
        self._hidden[group] = output
        return activations

    def peek(self, group: int, layer: int) -> BlockActivations:
        """Run only the attention of the group's next block; the group does not advance."""
        activations, _ = self._run(group, layer, to_the_end=False)
        return activations

    def _run(self, number: int, layer: int, to_the_end: bool) -> tuple[BlockActivations, Tensor | None]:
        group, hidden = self._groups[number], self._hidden[number]
        W_O = self._lm.anatomy.layers[layer].W_O
        assert W_O is not None
        kept: dict[str, Tensor] = {}

        def before_block(x: Tensor) -> Tensor:
            kept["before"] = x if hidden is None else hidden.view(x.shape).to(x.device)
            return kept["before"]

        def after_attention(x: Tensor, out: Tensor) -> None:
            kept["head_output"], kept["output"] = x, out
            if not to_the_end:
                hooks.stop()

        def after_block(x: Any, out: Tensor) -> None:
            kept["after"] = out
            hooks.stop()

        block = self._blocks.names[layer]
        with Hooks(self._lm.model) as hooks, torch.no_grad(), self._blocks.all_skipped_but(layer):
            hooks.before(block, before_block)
            hooks.after(W_O, after_attention)
            hooks.after(block, after_block)
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
    """Indices of the texts' tokens in the flattened `(batch * pos)` of the model's forward, `(token,)`."""

    @classmethod
    def of(cls, lm: LanguageModel, queries: Sequence[Query], n_prefix: int) -> "_Group":
        # Logits are not needed, but a forward must have at least one scored row.
        layout = lay_out(queries, device=lm.device)
        layout = replace(layout, scored_rows=layout.scored_rows[:1])
        lengths = [len(query.prompt) for query in queries]
        if lm.route.name == "naive":
            # The naive route runs the prefix together with the single text.
            rows = torch.arange(n_prefix, n_prefix + lengths[0])
        elif lm.route.name == "repeated":
            rows = torch.cat([torch.arange(n) + i * max(lengths) for i, n in enumerate(lengths)])
        else:
            rows = torch.arange(sum(query.width() for query in queries))
        return cls(tuple(queries), layout, rows.to(lm.device))


def row_groups(lm: LanguageModel, texts: Sequence[Query]) -> list[list[int]]:
    """Indices of the texts grouped into rows for a `BlockwiseForward`, each index once."""
    if lm.route.name == "naive":
        return [[i] for i in range(len(texts))]
    return lm.groups(texts)


def require_editable_outputs(lm: LanguageModel) -> None:
    """Check that W_O of every layer is known and can be changed.

    Raises:
        ModelError: W_O of some layer is unknown, quantized, or shared by several layers.
    """
    require_unquantized(lm.model, "so nothing can be folded into them")
    lm.anatomy.require_layers("folding")
    if missing := lm.anatomy.missing_projections("W_O"):
        raise ModelError(
            f"{lm.name}: W_O was not found in every layer ({'; '.join(missing)}), so nothing can be folded into it. "
            "Choose another model."
        )
    tied = tied_linears(lm.model)
    names = [tied.get(layer.W_O, (layer.W_O,))[0] for layer in lm.anatomy.layers if layer.W_O is not None]
    if shared := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ModelError(
            f"{lm.name}: {shared[0]} is W_O of {names.count(shared[0])} layers at once, but folding must change each "
            "layer separately. Choose another model."
        )
    for layer in lm.anatomy.layers:
        assert layer.W_O is not None
        weight = lm.model.get_submodule(layer.W_O).get_parameter("weight")
        if not weight.is_floating_point() or weight.dim() != 2:
            raise ModelError(
                f"{lm.name}: {layer.W_O}.weight is stored as {weight.dtype} of shape {tuple(weight.shape)}, so it is "
                "quantized and cannot be edited. Load the model in float32 or bfloat16."
            )

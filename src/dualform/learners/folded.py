"""Folding: writes the effect of a prompt into W_O and its bias, layer by layer, using forward passes only.

Unlabelled texts are read twice in parallel, with and without the demonstrations before them. At each layer, the change
that the demonstrations make to the attention output is regressed on the concatenated heads, and the resulting linear
map is added to W_O before the texts without demonstrations continue to the next layer. Later layers are thus fitted to
the output of folded earlier ones, and can correct their errors. Plain texts are read as well, on which the map should
change nothing, so that the model keeps its other abilities.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.options import FEWEST_TEXTS as FEWEST_TEXTS
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import (
    SEPARATING_BLOCKS,
    RidgeRegression,
    WeightChange,
    Work,
    encode,
    read,
    short_forwards,
)
from dualform.models.editing.blockwise import (
    BlockActivations,
    BlockwiseForward,
    require_editable_outputs,
    require_separable,
    row_groups,
)
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.blocks import find_blocks
from dualform.models.structure.output_norm import find_output_norms
from dualform.ops.ridge import NormalEquations, RidgeFit


@dataclass(frozen=True)
class Folded:
    """Ridge regression of the attention output's change on the concatenated heads.

    At layer l and token t of an unlabelled text, let z be the concatenated heads of the folded model and h the residual
    stream at the block's input. The target is

        y = o(prompted) - W_O z - b + h(prompted) - h(folded)

    and the map (dW, c) minimises sum ||y - dW z - c||^2 over all tokens plus the penalty; then W_O <- W_O + dW and
    b <- b + c. The last two terms of y are the error of earlier layers, which a layer thereby corrects; without them
    (`carry=False`) errors accumulate.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...] = field(repr=False)
    """Unlabelled calibration texts, in the format of queries."""
    plain: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    """Token ids of plain texts without the opening, on which the fold should change nothing."""
    plain_weight: float = 10.0
    """Weight of a plain-text token, relative to a calibration token."""
    answer_weight: float = 100.0
    """Weight of a token that predicts an answer's token, relative to other calibration tokens."""
    strength: float | Literal["gcv"] = "gcv"
    """Ridge penalty in units of an input's mean square, or `gcv`: generalised cross-validation in every layer."""
    layers: tuple[int, ...] | None = None
    """Indices of the layers to fold, 0 for the first; None for all."""
    carry: bool = True
    """Add the error of earlier layers to a layer's target."""
    bias: bool = True
    """Fit a bias too, even if W_O has none."""
    name: str = "fold"

    def __post_init__(self) -> None:
        if self.strength != "gcv" and not self.strength >= 0:
            raise ConfigError(f"ridge strength {self.strength} must be 0 or more, or 'gcv'")
        if not self.plain_weight >= 0:
            raise ConfigError(f"the weight of plain text is {self.plain_weight}; it must be 0 or more")
        if not self.answer_weight >= 1:
            raise ConfigError(
                f"the weight of tokens that predict an answer is {self.answer_weight}; it must be 1 or more"
            )
        require_texts(self.texts)

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Fold; the base model is not changed.

        Raises:
            ModelError: W_O was not found or cannot be edited, or the layers are not a simple stack of blocks.
            ConfigError: A requested layer does not exist.
        """
        return self.fold(lm, demonstrations).adapted

    def fold(
        self, lm: LanguageModel, demonstrations: EncodedDemonstrations, after_layer: Callable[[], None] = lambda: None
    ) -> "Fold":
        """Fold, and return the regression of each layer too. `after_layer` is called after each layer."""
        start = time.perf_counter()
        require_editable_outputs(lm)
        require_layers(lm, self.layers)
        n_layers = len(lm.anatomy.layers)
        chosen = range(n_layers) if self.layers is None else self.layers
        blocks = find_blocks(lm.model, lm.anatomy)
        require_separable(lm, blocks)
        norms = find_output_norms(lm, blocks)
        with torch.no_grad():
            nothing = lm.encode(())
            groups = _text_groups(lm, self.opening, self.texts)
            prompted = BlockwiseForward(
                lm, blocks, lm.encode(demonstrations.prefix), [group.with_context for group in groups]
            )
            folded = BlockwiseForward(lm, blocks, nothing, [group.alone for group in groups])
            plain = BlockwiseForward(lm, blocks, nothing, _plain_groups(lm, self.opening, self.plain))
            deltas: list[WeightDelta] = []
            fits: list[RidgeFit | None] = []
            for layer in range(n_layers):
                fit = None
                equations = self._equations(lm, layer)
                for number, group in enumerate(groups):
                    target = prompted.advance(number, layer)
                    if layer not in chosen:
                        continue
                    current = folded.peek(number, layer)
                    error = None
                    if self.carry:
                        error = norms[layer].before(target.before - current.before[group.text_rows], target.output)
                    _add_equations(equations, target, current, group, error, self.answer_weight)
                layer_deltas: tuple[WeightDelta, ...] = ()
                if layer in chosen:
                    for number in range(len(plain)):
                        equations.add(plain.peek(number, layer).head_output, None, self.plain_weight)
                    gcv = self.strength == "gcv"
                    fit = equations.cross_validated() if gcv else equations.solve(float(self.strength))
                    layer_deltas = _as_deltas(lm, layer, fit, self.bias)
                with applied(lm.model, layer_deltas):
                    for forward in (folded, plain):
                        for number in range(len(forward)):
                            forward.advance(number, layer)
                deltas += layer_deltas
                fits.append(fit)
                after_layer()
            with applied(lm.model, deltas):
                prefix = lm.encode(self.opening)
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return Fold(AdaptedModel(self.name, lm, prefix, cost, tuple(deltas)), tuple(fits))

    def _equations(self, lm: LanguageModel, layer: int) -> NormalEquations:
        W_O = lm.anatomy.layers[layer].W_O
        assert W_O is not None
        module = lm.model.get_submodule(W_O)
        weight = module.get_parameter("weight")
        axis = row_axis(module)
        return NormalEquations(weight.shape[1 - axis], weight.shape[axis], intercept=self.bias, device=lm.device)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Texts with and without demonstrations, plain texts, and a regression for each folded layer.

        Reading the opening with the folded weights is overhead.
        """
        prefix, opening = len(demonstrations.prefix), len(self.opening)
        alone = [Query((*self.opening, *text.prompt), text.answers) for text in self.texts]
        alone += [Query((*self.opening, *tokens), ()) for tokens in self.plain]
        work = encode(prefix) + read(self.texts, prefix, head=False) + read(alone, 0, head=False)
        lengths = tuple(query.width() for query in alone)
        layers = range(shape.n_layers) if self.layers is None else self.layers
        work += Work.of(*(RidgeRegression(lengths, layer) for layer in layers))
        return work + (encode(opening) + Work.of(WeightChange())).uncharged + short_forwards(SEPARATING_BLOCKS)


@dataclass(frozen=True)
class Fold:
    """The outcome of folding."""

    adapted: AdaptedModel
    fits: tuple[RidgeFit | None, ...] = field(repr=False)
    """Regression of each layer; None for layers that were not folded."""

    @property
    def strengths(self) -> tuple[float | None, ...]:
        """Ridge penalty of each layer; None for layers that were not folded."""
        return tuple(None if fit is None else fit.strength for fit in self.fits)

    @property
    def explained(self) -> tuple[float | None, ...]:
        """Share of the target's sum of squares that each layer's map explains on the calibration texts, at most 1."""
        return tuple(None if fit is None else fit.explained for fit in self.fits)


def require_texts(texts: Sequence[Query]) -> None:
    """Check that there are enough calibration texts.

    Raises:
        ConfigError: There are too few.
    """
    if len(texts) < FEWEST_TEXTS:
        raise ConfigError(
            f"{len(texts)} calibration texts are too few to fold from: give at least {FEWEST_TEXTS}, preferably 256 "
            "(unlabelled texts of the task, one per line, with --calibration)."
        )


def require_layers(lm: LanguageModel, layers: Sequence[int] | None) -> None:
    """Check that the layers to fold exist; None means all.

    Raises:
        ConfigError: One does not.
    """
    n_layers = len(lm.anatomy.layers)
    if missing := [layer for layer in layers or () if not 0 <= layer < n_layers]:
        raise ConfigError(f"layers {missing} do not exist: {lm.name} has layers 0 to {n_layers - 1}")


@dataclass(frozen=True)
class _TextGroup:
    """Calibration texts that share a row, as read with and without demonstrations."""

    with_context: tuple[Query, ...]
    """The texts after the demonstrations."""
    alone: tuple[Query, ...]
    """The texts with the opening as part of them, because its activations change as layers are folded."""
    text_rows: Tensor
    """Rows of `alone` that belong to the texts, `(token,)`; the same tokens as in `with_context`."""
    opening_rows: Tensor
    """Rows of `alone` that belong to openings."""
    answer_rows: Tensor
    """Indices into `text_rows` of tokens that predict an answer's token, `(predictor,)`."""


def _text_groups(lm: LanguageModel, opening: tuple[int, ...], texts: Sequence[Query]) -> list[_TextGroup]:
    branched = lm.route.name in ("packed", "packed-mask")
    # Where the route supports branches, answers are read too, because queries are scored on their tokens.
    with_context = [Query(text.prompt, text.answers if branched else ()) for text in texts]
    alone = [Query((*opening, *text.prompt), text.answers) for text in with_context]
    groups = []
    for indices in row_groups(lm, alone):
        text_rows: list[int] = []
        opening_rows: list[int] = []
        answer_rows: list[int] = []
        start = 0
        for i in indices:
            n_rows = len(text_rows)
            answer_rows += range(n_rows + len(with_context[i].prompt) - 1, n_rows + with_context[i].width())
            opening_rows += range(start, start + len(opening))
            text_rows += range(start + len(opening), start + alone[i].width())
            start += alone[i].width()
        rows = (
            torch.tensor(numbers, dtype=torch.long, device=lm.device)
            for numbers in (text_rows, opening_rows, answer_rows)
        )
        groups.append(_TextGroup(tuple(with_context[i] for i in indices), tuple(alone[i] for i in indices), *rows))
    return groups


def _plain_groups(lm: LanguageModel, opening: tuple[int, ...], plain: Sequence[tuple[int, ...]]) -> list[list[Query]]:
    queries = [Query((*opening, *tokens), ()) for tokens in plain]
    return [[queries[i] for i in indices] for indices in row_groups(lm, queries)]


def _add_equations(
    equations: NormalEquations,
    prompted: BlockActivations,
    folded: BlockActivations,
    group: _TextGroup,
    error: Tensor | None,
    answer_weight: float,
) -> None:
    heads = folded.head_output[group.text_rows]
    target = prompted.output - folded.output[group.text_rows]
    target = target if error is None else target + error
    equations.add(heads, target)
    # Already included above with weight 1.
    equations.add(heads[group.answer_rows], target[group.answer_rows], answer_weight - 1, known=True)
    if len(group.opening_rows):
        # Demonstrations come after the opening token and cannot change it, so its target is 0.
        equations.add(folded.head_output[group.opening_rows], None, known=True)


def _as_deltas(lm: LanguageModel, layer: int, fit: RidgeFit, bias: bool) -> tuple[WeightDelta, ...]:
    W_O = lm.anatomy.layers[layer].W_O
    assert W_O is not None
    module = lm.model.get_submodule(W_O)
    weight = module.get_parameter("weight")
    dtype = weight.dtype if weight.dtype.itemsize >= 4 else torch.float32
    axis = row_axis(module)
    W = (fit.W if axis == 0 else fit.W.T).to(dtype).contiguous()
    deltas = [WeightDelta(f"{W_O}.weight", axis, None, W)]
    if bias:
        deltas.append(WeightDelta(f"{W_O}.bias", 0, None, fit.c.to(dtype)))
    return tuple(deltas)

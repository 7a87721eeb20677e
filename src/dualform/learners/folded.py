"""The prompt's update written into the weights: W_O and its bias, layer by layer, by forward passes alone.

Unlabelled texts are read twice side by side, once behind the demonstrations and once without. At each layer the change
that the demonstrations make to the attention output is fitted, as a linear map of the joined heads, and added to W_O
before the texts without demonstrations go on. So a later layer is fitted to what the folded earlier ones really hand
on, and makes up for what they missed. Beside them plain texts are read, on which the map is asked to change nothing:
they hold the model to what it could do before.
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
    """Ridge regression of the attention output's change on the joined heads.

    At layer l, token t of an unlabelled text, with z the joined heads of the folded model and h the residual stream
    that the block gets, the target is

        y = o(prompted) - W_O z - b + h(prompted) - h(folded)

    and the map (dW, c) minimises sum ||y - dW z - c||^2 over all tokens plus the penalty; then W_O <- W_O + dW and
    b <- b + c. The last two terms of y are what earlier layers missed; with them a layer makes good for its
    predecessors, without them errors add up (`carry=False`).
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...] = field(repr=False)
    """Unlabelled calibration texts, as queries are put to the model."""
    plain: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    """Token ids of plain texts, opening left out: on them the fold is asked to change nothing."""
    plain_weight: float = 10.0
    """How much a token of plain text counts, a calibration token counting 1."""
    answer_weight: float = 100.0
    """How much a token that predicts an answer counts: the last of a text, and those of answers."""
    strength: float | Literal["gcv"] = "gcv"
    """Ridge penalty in units of an input's mean square, or `gcv`: generalised cross-validation in every layer."""
    layers: tuple[int, ...] | None = None
    """Which layers are folded; None for all."""
    carry: bool = True
    """Add to a layer's target what the earlier ones missed."""
    bias: bool = True
    """Fit a bias too, in a model without one at W_O as well."""
    name: str = "fold"

    def __post_init__(self) -> None:
        if self.strength != "gcv" and not self.strength >= 0:
            raise ConfigError(f"ridge strength {self.strength} must be 0 or more, or 'gcv'")
        if not self.plain_weight >= 0:
            raise ConfigError(f"the weight of plain text {self.plain_weight} must be 0 or more")
        if not self.answer_weight >= 1:
            raise ConfigError(f"the weight of tokens that predict an answer {self.answer_weight} must be 1 or more")
        require_texts(self.texts)

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Fold; the base model is left as it is, bit for bit.

        Raises:
            ModelError: W_O is not known or cannot be edited, or the layers are no plain stack of blocks.
            ConfigError: A layer asked for does not exist.
        """
        return self.fold(lm, demonstrations).adapted

    def fold(
        self, lm: LanguageModel, demonstrations: EncodedDemonstrations, after_layer: Callable[[], None] = lambda: None
    ) -> "Fold":
        """Fold, and say how well each layer could be fitted. `after_layer` is called after each layer."""
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
            groups = _groups(lm, self.opening, self.texts)
            prompted = BlockwiseForward(
                lm, blocks, lm.encode(demonstrations.prefix), [group.behind_context for group in groups]
            )
            folded = BlockwiseForward(lm, blocks, nothing, [group.alone for group in groups])
            plain = BlockwiseForward(lm, blocks, nothing, _plain_groups(lm, self.opening, self.plain))
            deltas: list[WeightDelta] = []
            fits: list[RidgeFit | None] = []
            for layer in range(n_layers):
                fit = None
                equations = self._equations(lm, layer)
                for number, group in enumerate(groups):
                    aim = prompted.advance(number, layer)
                    if layer not in chosen:
                        continue
                    seen = folded.peek(number, layer)
                    missed = None
                    if self.carry:
                        missed = norms[layer].before(aim.before - seen.before[group.text_rows], aim.output)
                    _add(equations, aim, seen, group, missed, self.answer_weight)
                here: tuple[WeightDelta, ...] = ()
                if layer in chosen:
                    for number in range(len(plain)):
                        equations.add(plain.peek(number, layer).head_output, None, self.plain_weight)
                    gcv = self.strength == "gcv"
                    fit = equations.cross_validated() if gcv else equations.solve(float(self.strength))
                    here = _as_deltas(lm, layer, fit, self.bias)
                with applied(lm.model, here):
                    for walk in (folded, plain):
                        for number in range(len(walk)):
                            walk.advance(number, layer)
                deltas += here
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
        """Every text behind the demonstrations and alone, plain texts alone, and a regression for each folded layer.

        The opening is read once more with the folded weights.
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
    """A finished fold."""

    adapted: AdaptedModel
    fits: tuple[RidgeFit | None, ...] = field(repr=False)
    """Of each layer; None where it was not folded."""

    @property
    def strengths(self) -> tuple[float | None, ...]:
        """Ridge strength of each layer."""
        return tuple(None if fit is None else fit.strength for fit in self.fits)

    @property
    def explained(self) -> tuple[float | None, ...]:
        """Share of the target's squares that each layer's map explains on its own rows, at most 1."""
        return tuple(None if fit is None else fit.explained for fit in self.fits)


def require_texts(texts: Sequence[Query]) -> None:
    """Check that there are enough calibration texts.

    Raises:
        ConfigError: There are not.
    """
    if len(texts) < FEWEST_TEXTS:
        raise ConfigError(
            f"{len(texts)} calibration texts are too few to fold from: give at least {FEWEST_TEXTS}, better 256 "
            "(unlabelled texts of the task, one a line, with --calibration)."
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
    """Calibration texts of one row, as both sides read them."""

    behind_context: tuple[Query, ...]
    alone: tuple[Query, ...]
    """With the opening as part of the text, because what it turns into changes as layers are folded."""
    text_rows: Tensor
    """Rows of `alone` that the other side has too, `(token,)`."""
    opening_rows: Tensor
    """The others."""
    answer_rows: Tensor
    """Of the rows that both sides have, those that predict an answer's token, `(predictor,)`."""


def _groups(lm: LanguageModel, opening: tuple[int, ...], texts: Sequence[Query]) -> list[_TextGroup]:
    branched = lm.route.name in ("packed", "packed-mask")
    # Answers of several tokens are read too, all of them: queries will be scored on their tokens.
    behind = [Query(text.prompt, text.answers if branched else ()) for text in texts]
    alone = [Query((*opening, *text.prompt), text.answers) for text in behind]
    found = []
    for indices in row_groups(lm, alone):
        own: list[int] = []
        opened: list[int] = []
        predicting: list[int] = []
        place = 0
        for i in indices:
            predicting += range(len(own) + len(behind[i].prompt) - 1, len(own) + behind[i].width())
            opened += range(place, place + len(opening))
            own += range(place + len(opening), place + alone[i].width())
            place += alone[i].width()
        rows = [torch.tensor(some, dtype=torch.long, device=lm.device) for some in (own, opened, predicting)]
        found.append(_TextGroup(tuple(behind[i] for i in indices), tuple(alone[i] for i in indices), *rows))
    return found


def _plain_groups(lm: LanguageModel, opening: tuple[int, ...], plain: Sequence[tuple[int, ...]]) -> list[list[Query]]:
    queries = [Query((*opening, *tokens), ()) for tokens in plain]
    return [[queries[i] for i in indices] for indices in row_groups(lm, queries)]


def _add(
    equations: NormalEquations,
    aim: BlockActivations,
    seen: BlockActivations,
    group: _TextGroup,
    missed: Tensor | None,
    answer_weight: float,
) -> None:
    heads = seen.head_output[group.text_rows]
    target = aim.output - seen.output[group.text_rows]
    target = target if missed is None else target + missed
    equations.add(heads, target)
    # These rows are among the former already.
    equations.add(heads[group.answer_rows], target[group.answer_rows], answer_weight - 1, known=True)
    if len(group.opening_rows):
        # Behind the demonstrations the opening token stands far in front and is what it always was. It looks the same
        # in front of every text.
        equations.add(seen.head_output[group.opening_rows], None, known=True)


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

"""Settings of a fold, which several studies and commands share."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.configuration import MOST_TEXTS
from dualform.errors import ConfigError
from dualform.learners.options import FEWEST_TEXTS
from dualform.option import FOLDING, Option
from dualform.seeds import parse_whole_numbers

FoldMethod = Literal["ridge", "thought-vector", "thought-matrix", "rank-one", "task-vector", "kv-momentum", "mezo"]
IN_WEIGHTS: tuple[FoldMethod, ...] = ("ridge", "thought-vector", "thought-matrix", "mezo")
"""Methods that change weights, so that the result can be written as a checkpoint."""

READS_PROMPT: dict[FoldMethod, str] = {
    "rank-one": "a check of the theory; it reads the prompt with every query",
    "kv-momentum": "a query still reads the prompt's keys and values",
}
"""Methods whose folded model still needs the prompt, and a remark on each."""

CALIBRATED: tuple[FoldMethod, ...] = ("ridge", "thought-vector", "thought-matrix", "task-vector")
"""Methods that read calibration texts."""

_METHODS_BY_SETTING: dict[str, tuple[FoldMethod, ...]] = {
    "calibration": CALIBRATED,
    "texts": CALIBRATED,
    **dict.fromkeys(
        ("plain", "plain_texts", "plain_length", "plain_weight", "answer_weight", "strength", "layers"), ("ridge",)
    ),
}
"""Setting -> the methods that use it."""


def _read_layers(text: str) -> tuple[int, ...]:
    try:
        return parse_whole_numbers(text, "layers")
    except ConfigError:
        raise ConfigError(f"layers {text!r} should look like 3, 0..11 or 1,4,9") from None


class FoldSettings(BaseModel):
    """How a prompt is folded, and from which texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    method: Annotated[FoldMethod, Option(FOLDING, ("--fold-method",))] = "ridge"
    """ridge, thought-vector, thought-matrix, rank-one, task-vector, kv-momentum or mezo. ridge is dualform's own; the
    others are published methods."""
    calibration: Annotated[str, Option(FOLDING)] = "train"
    """Unlabelled texts: train, generated, or a file. train takes rows of the train split that are not demonstrations,
    without their labels. generated lets the model write texts after the demonstrations. A file has one text per line,
    or is a table."""
    texts: Annotated[int, Option(FOLDING, ("--fold-texts",))] = Field(default=256, ge=FEWEST_TEXTS, le=MOST_TEXTS)
    """Most calibration texts."""
    plain: Annotated[str, Option(FOLDING)] = "generated"
    """Plain text on which ridge leaves the model unchanged: generated, none, or a file. generated lets the model write
    text without a prompt; a file has one passage per line."""
    plain_texts: Annotated[int, Option(FOLDING)] = Field(default=64, ge=1, le=MOST_TEXTS)
    """Most passages of plain text."""
    plain_length: Annotated[int, Option(FOLDING)] = Field(default=128, ge=8, le=1 << 20)
    """Longest passage of plain text, tokens."""
    plain_weight: Annotated[float, Option(FOLDING)] = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Weight of a token of plain text, relative to a calibration token; a larger one preserves more of the model."""
    answer_weight: Annotated[float, Option(FOLDING)] = Field(default=100.0, ge=1, allow_inf_nan=False)
    """Weight of a token that predicts an answer, relative to other tokens."""
    strength: Annotated[float | Literal["gcv"], Option(FOLDING)] = "gcv"
    """Ridge penalty in units of an input's mean square, such as 0.01, or gcv. gcv is generalised cross-validation,
    layer by layer."""
    layers: Annotated[tuple[int, ...] | None, Option(FOLDING, ("--fold-layers",), null="all", read=_read_layers)] = None
    """Layers to fold, such as 0..11 or 1,4,9."""

    def used(self) -> dict[str, object]:
        """The settings that the method uses, as JSON values."""
        given = self.model_dump(mode="json", exclude={"method"})
        return {name: value for name, value in given.items() if self.method in _METHODS_BY_SETTING[name]}

    def files(self) -> tuple[str, ...]:
        """The files that the settings name."""
        words = ("train", "generated", "none")
        return tuple(name for name in (self.calibration, self.plain) if name not in words)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strength != "gcv" and not 0 <= self.strength < math.inf:
            raise ValueError(f"strength {self.strength} must be 0 or more and finite, or gcv")
        if self.layers is not None and (not self.layers or len(set(self.layers)) != len(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must be different, at least one")
        return self


def require_weights(method: FoldMethod) -> None:
    """Check that a method changes weights.

    Raises:
        ConfigError: It changes none, so there is nothing to write.
    """
    if method not in IN_WEIGHTS:
        raise ConfigError(
            f"method {method} changes no weights, so there is nothing to write into a checkpoint: choose one of "
            f"{', '.join(IN_WEIGHTS)}"
        )


def require_used(given: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Check that the fold method uses every setting that was given.

    Args:
        given: The given fields of `FoldSettings`.
        names: Field -> its name for the user, such as its option.

    Raises:
        ConfigError: The method does not use some of them.
    """
    method = given.get("method")
    # An unknown method is reported elsewhere.
    if method not in get_args(FoldMethod):
        return
    methods = _METHODS_BY_SETTING
    if unused := [names[name] for name in given if name in methods and method not in methods[name]]:
        raise ConfigError(f"method {method} does not use {', '.join(unused)}: leave that out, or choose another method")

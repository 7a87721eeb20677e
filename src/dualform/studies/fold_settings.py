"""Settings of a fold, whichever study or command makes it."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.configuration import MOST_TEXTS
from dualform.learners.options import FEWEST_TEXTS

FoldMethod = Literal["ridge", "thought-vector", "thought-matrix", "rank-one", "task-vector", "kv-momentum", "mezo"]
IN_WEIGHTS: tuple[FoldMethod, ...] = ("ridge", "thought-vector", "thought-matrix", "mezo")
"""Methods whose outcome is a change of weights, so that it can be written as a checkpoint."""


CALIBRATED: tuple[FoldMethod, ...] = ("ridge", "thought-vector", "thought-matrix", "task-vector")
"""Methods that read calibration texts."""

READ: dict[str, tuple[FoldMethod, ...]] = {
    "calibration": CALIBRATED,
    "texts": CALIBRATED,
    **dict.fromkeys(
        ("plain", "plain_texts", "plain_length", "plain_weight", "answer_weight", "strength", "layers"), ("ridge",)
    ),
}
"""Which methods look at a setting."""


class FoldSettings(BaseModel):
    """How a prompt is folded, and from which texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FoldMethod = "ridge"
    """`ridge` is dualform's own; the others are what was published before it."""
    calibration: str = "train"
    """Unlabelled texts: `train` (rows of the train split that are no demonstrations; their labels are not read),
    `generated` (by the model behind the demonstrations), or a file, one text a line or a table."""
    texts: int = Field(default=256, ge=FEWEST_TEXTS, le=MOST_TEXTS)
    """Most calibration texts."""
    plain: str = "generated"
    """Plain text on which ridge is asked to change nothing: `generated` (by the model from nothing), `none`, or a file
    with a passage a line."""
    plain_texts: int = Field(default=64, ge=1, le=MOST_TEXTS)
    """Most passages of plain text."""
    plain_length: int = Field(default=128, ge=8, le=1 << 20)
    """Longest passage, tokens."""
    plain_weight: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """How much a token of plain text counts beside a calibration token."""
    answer_weight: float = Field(default=100.0, ge=1, allow_inf_nan=False)
    """How much a token that predicts an answer counts beside others."""
    strength: float | Literal["gcv"] = "gcv"
    """Ridge penalty in units of an input's mean square, or `gcv`: generalised cross-validation, layer by layer."""
    layers: tuple[int, ...] | None = None
    """Which layers are folded; null for all."""

    def used(self) -> dict[str, object]:
        """The settings that the method looks at, as JSON has them."""
        given = self.model_dump(mode="json", exclude={"method"})
        return {name: value for name, value in given.items() if self.method in READ[name]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.strength != "gcv" and not 0 <= self.strength < math.inf:
            raise ValueError(f"strength {self.strength} must be 0 or more and finite, or gcv")
        if self.layers is not None and (not self.layers or len(set(self.layers)) != len(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must be different, at least one")
        return self

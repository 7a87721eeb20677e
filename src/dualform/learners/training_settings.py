"""Settings of finetuning as it is practised: AdamW in epochs of shuffled batches, and LoRA's adapters."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.learners.options import LossOn
from dualform.option import TRAINING, Option

ENOUGH_STEPS = 60
"""Number of steps that `epochs=auto` aims at. In batches of 8, 128 examples reach it in 4 epochs (64 steps); 8 examples
do not reach it in the most epochs allowed (20 steps)."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20
"""Bounds of the number of epochs with `epochs=auto`. arXiv:2006.04884, section 6, advises 20 passes over small data."""

Recipe = Literal["practised", "one-pass"]
Targets = Literal["all-linear", "attention", "query-value"]
"""Modules with adapters: every linear layer except the output head (arXiv:2305.14314, section 4, finds that this
matters more than the rank); W_Q, W_K, W_V and W_O; or W_Q and W_V (arXiv:2106.09685)."""


class TrainingSettings(BaseModel):
    """How lora, full and bitfit are trained: AdamW in epochs of shuffled batches, with linear warm-up and decay.

    There is no early stopping, because it would need labels that are not trained on. Dropout of the model itself is
    off, as everywhere in dualform.

    Source:
        The protocol of arXiv:2006.04884 (section 6: bias correction, warm-up over the first 10 % of steps, linear
        decay, 20 epochs) and arXiv:2305.16938 (few-shot finetuning of causal models); the loss on the answer alone is
        that of arXiv:2205.05638.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    epochs: Annotated[int | Literal["auto"], Option(TRAINING, ("--train-epochs",))] = "auto"
    """Passes over the labels by lora, full and bitfit, or auto. auto makes about 60 steps, in at least 3 and at most 20
    epochs. 0 leaves the model as it is."""
    batch_size: Annotated[int, Option(TRAINING, ("--train-batch-size",))] = Field(default=8, ge=1, le=1 << 16)
    """Examples in a step."""
    warmup: Annotated[float, Option(TRAINING, ("--train-warmup",))] = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0; it then falls to 0 linearly."""
    weight_decay: Annotated[float, Option(TRAINING, ("--train-weight-decay",))] = Field(
        default=0.0, ge=0, allow_inf_nan=False
    )
    """Decoupled weight decay of matrices; biases and norms have none."""
    clip: Annotated[float, Option(TRAINING, ("--train-clip",))] = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Largest norm of a step's gradient; 0 for no clipping."""
    loss_on: Annotated[LossOn, Option(TRAINING, ("--train-loss-on",))] = "label"
    """Train lora, full and bitfit on the label word alone, or on all tokens of a sequence."""

    def epochs_for(self, n: int) -> int:
        """Number of passes over `n` examples."""
        if self.epochs != "auto" or n == 0:
            return 0 if self.epochs == "auto" else self.epochs
        return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(ENOUGH_STEPS / math.ceil(n / self.batch_size))))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs != "auto" and self.epochs < 0:
            raise ValueError(f"epochs {self.epochs} must be 0 or more, or auto")
        return self


class LoraSettings(BaseModel):
    """LoRA's adapters.

    Source:
        arXiv:2106.09685; alpha of twice the rank and adapters on all linears as in arXiv:2305.14314, without dropout,
        which few steps on few labels do not need.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    recipe: Annotated[Recipe, Option(TRAINING, ("--lora-recipe",))] = "practised"
    """practised, or one-pass: comparable with ft. one-pass trains adapters on W_Q and W_V with one step for each
    demonstration, in order, on the tokens of `loss_on`, at a constant rate."""
    rank: Annotated[int, Option(TRAINING, ("--lora-rank",))] = Field(default=8, ge=1, le=1 << 16)
    """Rank of the adapters."""
    alpha: Annotated[float | None, Option(TRAINING, ("--lora-alpha",), null="twice the rank")] = Field(
        default=None, gt=0, allow_inf_nan=False
    )
    """Adapters are scaled by alpha / rank."""
    targets: Annotated[Targets, Option(TRAINING, ("--lora-targets",))] = "all-linear"
    """Modules with adapters: all-linear, attention or query-value. all-linear leaves out the output head."""
    dropout: Annotated[float, Option(TRAINING, ("--lora-dropout",))] = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""

    @property
    def scale(self) -> float:
        """The value of alpha: the setting, or twice the rank if it is not set."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @model_validator(mode="after")
    def _check(self) -> Self:
        fixed = {"alpha": None, "targets": "all-linear", "dropout": 0.0}
        changed = [name for name, default in fixed.items() if getattr(self, name) != default]
        if self.recipe == "one-pass" and changed:
            raise ValueError(
                f"recipe one-pass does not use {', '.join(changed)}: leave that out, or choose the recipe practised"
            )
        return self

"""Changes a newly initialised model to the attention of an arm of the comparison, see `config.Arm`."""

from collections.abc import Callable

from transformers import PreTrainedModel

from dualform.models.editing.convolution import apply_convolution
from dualform.models.editing.linear_attention import apply_linear_attention
from dualform.models.editing.momentum import apply_momentum
from dualform.studies.momentum.config import LINEAR, Arm


def prepare_for(arm: Arm) -> Callable[[PreTrainedModel], None] | None:
    """A function that gives a new model the attention of an arm; None for `vanilla`, which changes nothing."""

    def prepare(model: PreTrainedModel) -> None:
        eta = arm.eta or 0.0
        if arm.kind in LINEAR:
            kind = arm.kind if arm.kind in ("heavy-ball", "nesterov") else "none"
            apply_linear_attention(model, kind, eta if kind != "none" else 0.0)
        if arm.kind == "convolution":
            apply_convolution(model)
        elif arm.kind in ("momentum", "normalised", "linear-momentum", "learned"):
            learned = arm.kind == "learned"
            apply_momentum(model, eta, learned=learned, per_head=learned, normalised=arm.kind == "normalised")
        # Checkpoints store it, so that a run is not resumed as another arm.
        model.config.dualform_arm = arm.name

    return None if arm.kind == "vanilla" else prepare

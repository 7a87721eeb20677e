"""What a training run costs, from its recipe alone."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from dualform.lab.recipe import Recipe
from dualform.models.cost.flops import forward_flops
from dualform.models.structure.anatomy import Anatomy, LayerAnatomy

_BYTES_A_PARAMETER = 4
"""The weight itself, its gradient and AdamW's two averages, each as large as the other."""


@dataclass(frozen=True)
class TrainingCost:
    """Of one run."""

    parameters: int
    """Tied ones counted once."""
    tokens: int
    """That the run reads."""
    steps: int
    flops: float
    """Multiplications and additions of all steps, forward and backward."""
    state_bytes: int
    """Weights, gradients and optimiser on each device; activations come on top."""

    @property
    def flops_per_token(self) -> float:
        """About six for each weight that multiplies, and attention's own."""
        return self.flops / self.tokens


def training_cost(recipe: Recipe) -> TrainingCost:
    """Cost of a recipe; the model is laid out, but no weight is stored.

    A step is counted as three forwards: one, and two as large for the gradients of activations and of weights.
    Validation is left out, and so is what `forward_flops` leaves out; layers that look back only so far are counted
    as if they saw all.

    Source:
        6 N D, arXiv:2001.08361v1, section 2.1, with N the weights that multiply (the output head among them, the
        lookup of embeddings not) and attention counted apart.
    """
    config = recipe.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    text = config.get_text_config()
    d_head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    layer = LayerAnatomy("", None, None, None, None, text.num_attention_heads, kv_heads, d_head)
    anatomy = Anatomy((layer,) * text.num_hidden_layers, registry=True)
    sequence = forward_flops(model, anatomy, own=recipe.length, scored=recipe.length)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    itemsize = 8 if recipe.precision == "float64" else 4
    return TrainingCost(
        parameters=parameters,
        tokens=recipe.steps * recipe.batch_tokens,
        steps=recipe.steps,
        flops=3.0 * sequence * recipe.sequences * recipe.steps,
        state_bytes=_BYTES_A_PARAMETER * itemsize * parameters,
    )

"""What a training run costs, from its recipe alone."""

from dataclasses import dataclass

from dualform.lab.recipe import Recipe
from dualform.models.cost.shape import shape_of_config

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
    """Cost of a recipe; no weight is stored for it.

    Validation is left out, and so is what `ModelShape` leaves out; layers with a sliding window are counted as if they
    saw all.

    Source:
        6 N D, arXiv:2001.08361v1, section 2.1, with N the weights that multiply (the output head among them, the
        lookup of embeddings not) and attention counted apart.
    """
    shape = shape_of_config(recipe.config())
    itemsize = 8 if recipe.precision == "float64" else 4
    return TrainingCost(
        parameters=shape.parameters,
        tokens=recipe.steps * recipe.batch_tokens,
        steps=recipe.steps,
        flops=shape.full_training(recipe.length, recipe.length) * recipe.sequences * recipe.steps,
        state_bytes=_BYTES_A_PARAMETER * itemsize * shape.parameters,
    )

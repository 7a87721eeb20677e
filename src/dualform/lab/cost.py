"""Cost of a training run, computed from its recipe."""

from dataclasses import dataclass

from dualform.lab.recipe import Recipe
from dualform.models.cost.shape import shape_of_config

_BYTES_A_PARAMETER = 4
"""Numbers for each parameter: the weight, its gradient and AdamW's two averages."""


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one training run."""

    parameters: int
    """Number of parameters; tied ones are counted once."""
    tokens: int
    """Number of tokens that the run reads."""
    steps: int
    flops: float
    """Multiplications and additions of all steps, forward and backward."""
    state_bytes: int
    """Bytes of weights, gradients and optimiser on each device, without activations."""

    @property
    def flops_per_token(self) -> float:
        """Operations for each token: about six for each weight, plus attention."""
        return self.flops / self.tokens


def training_cost(recipe: Recipe) -> TrainingCost:
    """Cost of a recipe, computed without allocating any weight.

    Validation and the operations that `ModelShape` leaves out are not counted; attention with a sliding window is
    counted as full attention.

    Source:
        6 N D, arXiv:2001.08361v1, section 2.1, where N counts the weights of matrix products (with the output head,
        without the embedding lookup), plus attention.
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

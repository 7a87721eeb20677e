"""Work and its price: what a plan adds up."""

from dataclasses import dataclass
from typing import Literal

TrainedWeights = Literal["key_value", "value_one_layer", "mlp", "adapters"]
"""What a step trains: W_K and W_V of every layer, W_V of the middle layer alone, every MLP, or adapters beside the
weights, whose own products are left out."""


@dataclass(frozen=True)
class Cost:
    """Some work."""

    forwards: float = 0.0
    """Tokens read."""
    backwards: float = 0.0
    """Of these, tokens through which gradients were taken back."""
    flops: float = 0.0
    """Multiplications and additions of products and attention."""
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both."""
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> "Cost":
        """So many times over."""
        return Cost(self.forwards * times, self.backwards * times, self.flops * times, self.seconds * times)


@dataclass(frozen=True)
class Part:
    """One part of a run."""

    name: str
    cost: Cost
    least: Cost | None = None
    """Where the data decide how much is done: what is done in any case. `cost` is then what is expected."""
    most: Cost | None = None
    """And what is done at most."""
    why: tuple[str, ...] = ()
    """What decides how much is done."""

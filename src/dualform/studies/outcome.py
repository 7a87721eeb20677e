"""What one demonstration seed brought: the smallest piece of a comparison that is kept and never done twice."""

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from dualform.result import Trial


@dataclass(frozen=True)
class SeedOutcome:
    """Everything that the final numbers of one seed are made of, query by query."""

    seed: int
    rows: tuple[int, ...]
    """Demonstrations' row numbers in the train split, in order."""
    n_tokens: int
    """Tokens of the encoded demonstrations."""
    log_probabilities: dict[str, Tensor]
    """Learner -> `(example, answer)`, nats, float64."""
    measures: dict[str, Tensor]
    """Measure -> `(example, ...)`, see `inside.measure`."""
    costs: dict[str, dict[str, float]]
    """Learner -> name of a `Cost` field -> number."""
    rates: dict[str, float] = field(default_factory=dict)
    """Learner -> learning rate used."""
    trials: tuple[Trial, ...] = ()
    inputs: str = ""
    """Digest of the weights, texts and labels that it was made from, see `bench.digest`."""

    def to_bytes(self) -> bytes:
        """The outcome as one safetensors file: tensors, and the rest as JSON in its header."""
        tensors = {f"log_probabilities/{name}": value.contiguous() for name, value in self.log_probabilities.items()}
        tensors |= {f"measures/{name}": value.contiguous() for name, value in self.measures.items()}
        about = {
            "seed": self.seed,
            "inputs": self.inputs,
            "rows": self.rows,
            "n_tokens": self.n_tokens,
            "costs": self.costs,
            "rates": self.rates,
            "trials": [trial.model_dump() for trial in self.trials],
            # The file sorts its tensors by name, and a run that goes on must give the tables of one that never stopped.
            "order": {"log_probabilities": list(self.log_probabilities), "measures": list(self.measures)},
        }
        return safetensors.torch.save(tensors, metadata={"outcome": json.dumps(about)})

    @classmethod
    def from_file(cls, path: str) -> "SeedOutcome":
        """Read what `to_bytes` wrote.

        Raises:
            safetensors.SafetensorError: The file is damaged.
        """
        with safetensors.safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["outcome"])
            groups: dict[str, dict[str, Tensor]] = {
                group: {name: file.get_tensor(f"{group}/{name}") for name in names}
                for group, names in about["order"].items()
            }
        return cls(
            seed=about["seed"],
            inputs=about["inputs"],
            rows=tuple(about["rows"]),
            n_tokens=about["n_tokens"],
            log_probabilities=groups["log_probabilities"],
            measures=groups["measures"],
            costs=about["costs"],
            rates=about["rates"],
            trials=tuple(Trial(**trial) for trial in about["trials"]),
        )


class Cells(Protocol):
    """Where finished seeds are kept, so that a killed run goes on where it stopped."""

    def get(self, seed: int, inputs: str) -> SeedOutcome | None:
        """The outcome of a seed finished earlier under the same settings, from the same inputs."""
        ...

    def put(self, outcome: SeedOutcome) -> None:
        """Keep it."""
        ...


class NoCells:
    """Keeps nothing."""

    def get(self, seed: int, inputs: str) -> SeedOutcome | None:
        """Nothing was kept."""
        return None

    def put(self, outcome: SeedOutcome) -> None:
        """Let it go."""

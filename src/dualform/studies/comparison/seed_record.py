"""What one demonstration seed brought to a comparison, query by query."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dualform.result import Trial
from dualform.studies.pieces import Piece


@dataclass(frozen=True)
class SeedRecord:
    """Everything that the final numbers of one seed are made of."""

    seed: int
    rows: tuple[int, ...]
    """Demonstrations' row numbers in the train split, in order."""
    n_tokens: int
    """Tokens of the encoded demonstrations."""
    log_probabilities: dict[str, Tensor]
    """Learner -> `(example, answer)`, nats, float64."""
    measures: dict[str, Tensor]
    """Measure -> `(example, ...)`, see `inside.measure`; NaN where a control was not read."""
    costs: dict[str, dict[str, float]]
    """Learner -> name of a `Cost` field -> number."""
    control_answers: dict[str, Tensor] = field(default_factory=dict)
    """Control's learner -> `(example, answer)`, NaN where it was not read."""
    rates: dict[str, float] = field(default_factory=dict)
    """Learner -> learning rate used."""
    trials: tuple[Trial, ...] = ()
    control_seconds: float = 0.0
    """Adapting and reading for controls took so long."""
    notes: tuple[str, ...] = ()
    """What a reader must know about the controls."""
    inputs: str = ""
    """See `Piece.inputs`."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Learner -> what it recorded about how it adapted the model (`Context.record`); without those that did not."""
    attention: dict[str, Tensor] = field(default_factory=dict)
    """Where learners looked while reading a few queries (`AttentionView.tensors`); empty where nobody asked."""
    attention_about: dict[str, Any] = field(default_factory=dict)
    """Which queries, and the texts of all tokens (`AttentionView.about`)."""
    repeats: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Learner -> what is known of its training repeated from weights moved by rounding (`Repeated.about`)."""
    repeat_answers: dict[str, Tensor] = field(default_factory=dict)
    """Learner -> the repeat's `(example, answer)`, NaN where it was not read."""

    def to_piece(self) -> Piece:
        """The outcome as something to keep."""
        groups = {
            "log_probabilities": self.log_probabilities,
            "measures": self.measures,
            "control_answers": self.control_answers,
            "repeat_answers": self.repeat_answers,
            "attention": self.attention,
        }
        return Piece(
            name=piece_name(self.seed),
            inputs=self.inputs,
            tensors={f"{group}/{name}": value for group, tensors in groups.items() for name, value in tensors.items()},
            about={
                "seed": self.seed,
                "rows": self.rows,
                "n_tokens": self.n_tokens,
                "costs": self.costs,
                "repeats": self.repeats,
                "rates": self.rates,
                "facts": self.facts,
                "trials": [trial.model_dump() for trial in self.trials],
                "control_seconds": self.control_seconds,
                "notes": self.notes,
                "attention": self.attention_about,
            },
        )

    @classmethod
    def from_piece(cls, piece: Piece) -> "SeedRecord":
        """Read what `to_piece` made."""
        names = ("log_probabilities", "measures", "control_answers", "repeat_answers", "attention")
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, value in piece.tensors.items():
            # Names of measures may hold a slash themselves.
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        about = piece.about
        return cls(
            seed=about["seed"],
            rows=tuple(about["rows"]),
            n_tokens=about["n_tokens"],
            costs=about["costs"],
            repeats=about.get("repeats", {}),
            rates=about["rates"],
            facts=about.get("facts", {}),
            trials=tuple(Trial(**trial) for trial in about["trials"]),
            control_seconds=about["control_seconds"],
            notes=tuple(about["notes"]),
            inputs=piece.inputs,
            attention_about=about.get("attention", {}),
            **groups,
        )


def piece_name(seed: int) -> str:
    """What a seed's piece is called."""
    return f"seed {seed}"

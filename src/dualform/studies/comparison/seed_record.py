"""The numbers of one demonstration seed of a comparison, query by query."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dualform.result import Trial
from dualform.studies.pieces import Piece


@dataclass(frozen=True)
class SeedRecord:
    """All numbers of one seed from which the result is computed."""

    seed: int
    rows: tuple[int, ...]
    """Demonstrations' row numbers in the train split, in order."""
    n_tokens: int
    """Tokens of the encoded demonstrations."""
    log_probabilities: dict[str, Tensor]
    """Learner -> `(example, answer)`, nats, float64."""
    measures: dict[str, Tensor]
    """Measure -> `(example, ...)`; for controls `control/NAME/MEASURE`, NaN for queries that they did not read."""
    costs: dict[str, dict[str, float]]
    """Learner -> name of a `Cost` field -> number."""
    control_answers: dict[str, Tensor] = field(default_factory=dict)
    """Control's learner -> log-probabilities `(example, answer)`, NaN for queries that it did not read."""
    rates: dict[str, float] = field(default_factory=dict)
    """Learner -> learning rate used."""
    trials: tuple[Trial, ...] = ()
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """Learner -> name of a `LabelCount` field -> number."""
    control_seconds: float = 0.0
    """Seconds of adapting and reading for controls."""
    notes: tuple[str, ...] = ()
    """Warnings about the controls."""
    inputs: str = ""
    """See `Piece.inputs`."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Learner -> what it recorded while adapting (`AdaptationContext.record`), for learners that record something."""
    attention: dict[str, Tensor] = field(default_factory=dict)
    """Attention of the learners on a few queries (`AttentionView.tensors`); empty with `explore` 0."""
    attention_about: dict[str, Any] = field(default_factory=dict)
    """Which queries these are, and the texts of all tokens (`AttentionView.about`)."""
    repeats: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Learner -> learning rate and losses of its repeated training (`FinetuningRepeat.about`)."""
    repeat_answers: dict[str, Tensor] = field(default_factory=dict)
    """Learner -> the repeat's log-probabilities `(example, answer)`, NaN for queries that it did not read."""

    def to_piece(self) -> Piece:
        """The record as a piece for the store."""
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
                "labels": self.labels,
                "facts": self.facts,
                "trials": [trial.model_dump() for trial in self.trials],
                "control_seconds": self.control_seconds,
                "notes": self.notes,
                "attention": self.attention_about,
            },
        )

    @classmethod
    def from_piece(cls, piece: Piece) -> "SeedRecord":
        """The record from its piece."""
        names = ("log_probabilities", "measures", "control_answers", "repeat_answers", "attention")
        groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, value in piece.tensors.items():
            # Split at the first slash only: names of measures may contain slashes.
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
            labels=about.get("labels", {}),
            facts=about.get("facts", {}),
            trials=tuple(Trial(**trial) for trial in about["trials"]),
            control_seconds=about["control_seconds"],
            notes=tuple(about["notes"]),
            inputs=piece.inputs,
            attention_about=about.get("attention", {}),
            **groups,
        )


def piece_name(seed: int) -> str:
    """Name of a seed's piece in the store."""
    return f"seed {seed}"

"""Finetuning repeated from weights moved by rounding: what its numbers would be on a machine that rounds otherwise.

One repeat a seed shows the order of magnitude, as one difference of two draws does. Nothing that it says is in any
interval of the result: those are over demonstrations and queries, and rounding is neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptedModel
from dualform.learners.rate import STABLE_WITHIN
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import Readings
from dualform.result import Calibrated, Rounding, SeedEstimate, Similarity
from dualform.studies.comparison.calibrate import TotalsRatio
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.experiment import Experiment
from dualform.studies.measures import MEASURES
from dualform.studies.sides import Side, compute_measures
from dualform.studies.statistics import Statistics


@dataclass(frozen=True)
class FinetuningRepeat:
    """One seed's repeat of its finetuning."""

    model: AdaptedModel | None
    """None where the repeat diverged."""
    learning_rate: float
    losses: tuple[float, ...]
    """Of the training that was repeated."""

    @property
    def about(self) -> dict[str, Any]:
        """What is kept of it beside its answers and measures."""
        losses = None if self.model is None else list(self.model.losses)
        return {"learning_rate": self.learning_rate, "losses": list(self.losses), "repeat_losses": losses}

    def read(self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], want: Recording) -> Readings:
        """Read one group of queries; only where the repeat gave a model."""
        assert self.model is not None
        return self.model.read_group(experiment.queries, indices, want, experiment.config.probe)


def repeat_measures(zsl: Readings, sides: dict[str, Side], repeat: Side) -> dict[str, Tensor]:
    """Measures of one group with the repeat in FT's place, and of FT against its repeat.

    Args:
        zsl: Zero-shot readings of the group.
        sides: `icl` and `ft`.
        repeat: The repeat's side.

    Returns:
        `repeat/icl/MEASURE` and `repeat/ft/MEASURE`, each `(example, ...)` without heads; companions are left out.
    """
    found: dict[str, Tensor] = {}
    for name in ("icl", "ft"):
        measured = compute_measures(zsl, sides[name], repeat, moved_by=sides["icl"].trace)
        for key, value in measured.items():
            if "." not in key and MEASURES[key].in_controls:
                found[f"repeat/{name}/{key}"] = value.nanmean(dim=2) if value.dim() > 2 else value
    return found


@dataclass(frozen=True)
class FinetuningRepeats:
    """All seeds' repeats of one learner's training, stacked; NaN where a repeat did not read, or diverged."""

    learner: str
    about: tuple[dict[str, Any], ...]
    """`FinetuningRepeat.about` of each seed."""
    table: Tensor
    """The training's log-probabilities of answers, `(seed, example, answer)`."""
    repeated: Tensor
    """The repeat's."""
    against_icl: dict[str, Tensor]
    """Measure -> ICL against the repeat, `(seed, example)`, layers averaged."""
    against_itself: dict[str, Tensor]
    """Measure -> the training against its repeat."""

    @classmethod
    def of(cls, outcomes: Sequence[SeedRecord], learner: str) -> "FinetuningRepeats | None":
        """Collect them; None where a seed's training was not repeated."""
        about = tuple(outcome.repeats[learner] for outcome in outcomes if learner in outcome.repeats)
        if not outcomes or len(about) < len(outcomes):
            return None
        table = torch.stack([outcome.log_probabilities[learner] for outcome in outcomes])
        repeated = torch.full_like(table, torch.nan)
        for row, outcome in zip(repeated, outcomes, strict=True):
            if learner in outcome.repeat_answers:
                row.copy_(outcome.repeat_answers[learner])
        sides: dict[str, dict[str, Tensor]] = {"icl": {}, "ft": {}}
        unread = table.new_full((table.shape[1],), torch.nan)
        for key in dict.fromkeys(key for outcome in outcomes for key in outcome.measures if key.startswith("repeat/")):
            _, other, measure = key.split("/")
            rows = [
                TotalsRatio.of_mean(outcome.measures[key][None]).numerator[0] if key in outcome.measures else unread
                for outcome in outcomes
            ]
            sides[other][measure] = torch.stack(rows)
        return cls(learner, about, table, repeated, sides["icl"], sides["ft"])

    @property
    def read(self) -> Tensor:
        """Pairs that the repeat read, `(seed, example)`."""
        return ~self.repeated.isnan().any(dim=2)

    def summary(self, labels: Tensor, controls: Mapping[str, Mapping[str, Similarity]], stats: Statistics) -> Rounding:
        """The numbers of a `Rounding`.

        Args:
            labels: Right answers, `(example,)`.
            controls: Of the result.
            stats: Over the same seeds.
        """
        seeds, read = stats.seeds, self.read
        # Answers that a query does not have are -inf on both sides.
        known = self.table.isfinite() & self.repeated.isfinite()
        apart = (self.table - self.repeated).abs().masked_fill(~known, torch.nan)
        answer, answer_repeated = self.table.argmax(dim=2), self.repeated.nan_to_num(-torch.inf).argmax(dim=2)
        flips = (answer != answer_repeated).double().masked_fill(~read, torch.nan)
        largest = [float(row.nan_to_num(-1.0).max()) for row in apart]
        diverged = [int(seed) for seed, one in zip(seeds, self.about, strict=True) if one["repeat_losses"] is None]
        similarity = {name: _estimate(values, stats) for name, values in self.against_itself.items()}
        return Rounding(
            learning_rate={seed: one["learning_rate"] for seed, one in zip(seeds, self.about, strict=True)},
            log_probability=_estimate(apart.nanmean(dim=2), stats),
            largest={seed: None if one < 0 else one for seed, one in zip(seeds, largest, strict=True)},
            flips=_estimate(flips, stats),
            accuracy=_share(answer == labels, read),
            accuracy_repeated=_share(answer_repeated == labels, read),
            similarity=similarity,
            loss=self._losses(),
            diverged=diverged,
            stable=not diverged
            and max(largest) <= STABLE_WITHIN
            and not bool(flips.nansum() > 0)
            and not _below_ceiling(similarity, controls),
        )

    def _losses(self) -> list[float | None]:
        pairs = [
            [abs(first - second) for first, second in zip(one["losses"], one["repeat_losses"], strict=True)]
            for one in self.about
            if one["repeat_losses"] is not None
        ]
        steps = [[value for value in step if value is not None] for step in zip_longest(*pairs)]
        return [sum(step) / len(step) for step in steps]

    def moved(self, measure: str, values: Tensor) -> float | None:
        """How far a measure of ICL and this learner moves with the repeat in the learner's place.

        Args:
            measure: Its name.
            values: By query, `(seed, example, ...)`.

        Returns:
            Difference of the means over the pairs that have both numbers, without its sign; None without such pairs.
        """
        if measure not in self.against_icl:
            return None
        difference = TotalsRatio.of_mean(values).numerator - self.against_icl[measure]
        return float(difference.nanmean().abs()) if bool(difference.isfinite().any()) else None


def with_rounding(place: Calibrated, moved: float | None) -> Calibrated:
    """A calibrated value with how far it moves when its score moves so far, floor and ceiling held."""
    if moved is None or place.mean is None or place.ceiling is None or place.floor is None:
        return place
    return place.model_copy(update={"rounding": moved / (place.ceiling - place.floor)})


def _estimate(values: Tensor, stats: Statistics) -> SeedEstimate:
    return SeedEstimate(**stats.estimate(values).model_dump(), per_seed=stats.per_seed(values))


def _share(right: Tensor, read: Tensor) -> float | None:
    return float(right[read].double().mean()) if bool(read.any()) else None


def _below_ceiling(similarity: Mapping[str, SeedEstimate], controls: Mapping[str, Mapping[str, Similarity]]) -> bool:
    """Whether rounding alone parts a training from itself further than another order of its demonstrations does."""
    again, ceiling = similarity.get("sim_aou_raw"), controls.get("ft_order", {}).get("sim_aou_raw")
    if again is None or ceiling is None or again.mean is None or ceiling.mean is None:
        return False
    return again.mean < ceiling.mean

"""Finetuning repeated from weights changed by one unit in the last place, to show how much it depends on rounding.

One repeat a seed shows the order of magnitude only. No interval of the result includes this effect, because intervals
are over demonstrations and queries.
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
    """None if the repeat diverged."""
    learning_rate: float
    losses: tuple[float, ...]
    """Training losses of the original training."""

    @property
    def about(self) -> dict[str, Any]:
        """Learning rate and losses, for the seed's record."""
        losses = None if self.model is None else list(self.model.losses)
        return {"learning_rate": self.learning_rate, "losses": list(self.losses), "repeat_losses": losses}

    def read(self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], recording: Recording) -> Readings:
        """Readings of one group of queries; the repeat must not have diverged."""
        assert self.model is not None
        return self.model.read_group(experiment.queries, indices, recording, experiment.config.probe)


def repeat_measures(zsl: Readings, sides: dict[str, Side], repeat: Side) -> dict[str, Tensor]:
    """Measures of one group of queries, between ICL and the repeat and between FT and the repeat.

    Args:
        zsl: Zero-shot readings of the group.
        sides: The sides `icl` and `ft`.
        repeat: The side of the repeat.

    Returns:
        `repeat/icl/MEASURE` and `repeat/ft/MEASURE`, each `(example, ...)` without heads and companion numbers.
    """
    measures: dict[str, Tensor] = {}
    for name in ("icl", "ft"):
        values = compute_measures(zsl, sides[name], repeat, moved_by=sides["icl"].trace)
        for key, value in values.items():
            if "." not in key and MEASURES[key].in_controls:
                measures[f"repeat/{name}/{key}"] = value.nanmean(dim=2) if value.dim() > 2 else value
    return measures


@dataclass(frozen=True)
class FinetuningRepeats:
    """All seeds' repeats of one learner's training, stacked; NaN where a repeat diverged or read no query."""

    learner: str
    about: tuple[dict[str, Any], ...]
    """`FinetuningRepeat.about` of each seed."""
    table: Tensor
    """The learner's log-probabilities of answers, `(seed, example, answer)`."""
    repeated: Tensor
    """The repeat's log-probabilities, of the same shape."""
    against_icl: dict[str, Tensor]
    """Measure -> ICL compared with the repeat, `(seed, example)`, mean over layers."""
    against_itself: dict[str, Tensor]
    """Measure -> the learner compared with its repeat, `(seed, example)`, mean over layers."""

    @classmethod
    def of(cls, records: Sequence[SeedRecord], learner: str) -> "FinetuningRepeats | None":
        """Collect the repeats of all seeds; None if a seed's training was not repeated."""
        about = tuple(record.repeats[learner] for record in records if learner in record.repeats)
        if not records or len(about) < len(records):
            return None
        table = torch.stack([record.log_probabilities[learner] for record in records])
        repeated = torch.full_like(table, torch.nan)
        for row, record in zip(repeated, records, strict=True):
            if learner in record.repeat_answers:
                row.copy_(record.repeat_answers[learner])
        sides: dict[str, dict[str, Tensor]] = {"icl": {}, "ft": {}}
        unread = table.new_full((table.shape[1],), torch.nan)
        for key in dict.fromkeys(key for record in records for key in record.measures if key.startswith("repeat/")):
            _, other, measure = key.split("/")
            rows = [
                TotalsRatio.of_mean(record.measures[key][None]).numerator[0] if key in record.measures else unread
                for record in records
            ]
            sides[other][measure] = torch.stack(rows)
        return cls(learner, about, table, repeated, sides["icl"], sides["ft"])

    @property
    def read(self) -> Tensor:
        """Which (seed, query) pairs the repeat read, `(seed, example)`."""
        return ~self.repeated.isnan().any(dim=2)

    def summary(self, labels: Tensor, controls: Mapping[str, Mapping[str, Similarity]], stats: Statistics) -> Rounding:
        """The `Rounding` of the result.

        Args:
            labels: Right answers, `(example,)`.
            controls: Controls of the result.
            stats: Statistics over the same seeds.
        """
        seeds, read = stats.seeds, self.read
        # Queries with fewer answers than others are padded with -inf.
        known = self.table.isfinite() & self.repeated.isfinite()
        differences = (self.table - self.repeated).abs().masked_fill(~known, torch.nan)
        answer, answer_repeated = self.table.argmax(dim=2), self.repeated.nan_to_num(-torch.inf).argmax(dim=2)
        flips = (answer != answer_repeated).double().masked_fill(~read, torch.nan)
        largest = [float(row.nan_to_num(-1.0).max()) for row in differences]
        by_seed = dict(zip(seeds, self.about, strict=True))
        diverged = [int(seed) for seed, about in by_seed.items() if about["repeat_losses"] is None]
        similarity = {name: _estimate(values, stats) for name, values in self.against_itself.items()}
        return Rounding(
            learning_rate={seed: about["learning_rate"] for seed, about in by_seed.items()},
            log_probability=_estimate(differences.nanmean(dim=2), stats),
            largest={seed: None if value < 0 else value for seed, value in zip(seeds, largest, strict=True)},
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
            [abs(first - second) for first, second in zip(about["losses"], about["repeat_losses"], strict=True)]
            for about in self.about
            if about["repeat_losses"] is not None
        ]
        steps = [[value for value in step if value is not None] for step in zip_longest(*pairs)]
        return [sum(step) / len(step) for step in steps]

    def moved(self, measure: str, values: Tensor) -> float | None:
        """How much a measure of ICL and this learner changes with the repeat in the learner's place.

        Args:
            measure: Name of the measure.
            values: The measure with the original training, `(seed, example, ...)`.

        Returns:
            Absolute difference of the means over the pairs that have both numbers; None without such pairs.
        """
        if measure not in self.against_icl:
            return None
        difference = TotalsRatio.of_mean(values).numerator - self.against_icl[measure]
        return float(difference.nanmean().abs()) if bool(difference.isfinite().any()) else None


def with_rounding(place: Calibrated, moved: float | None) -> Calibrated:
    """A calibrated value with its `rounding`, if rounding changes the score by `moved`."""
    if moved is None or place.mean is None or place.ceiling is None or place.floor is None:
        return place
    return place.model_copy(update={"rounding": moved / (place.ceiling - place.floor)})


def _estimate(values: Tensor, stats: Statistics) -> SeedEstimate:
    return SeedEstimate(**stats.estimate(values).model_dump(), per_seed=stats.per_seed(values))


def _share(right: Tensor, read: Tensor) -> float | None:
    return float(right[read].double().mean()) if bool(read.any()) else None


def _below_ceiling(similarity: Mapping[str, SeedEstimate], controls: Mapping[str, Mapping[str, Similarity]]) -> bool:
    """Whether raw SimAOU with the repeat is lower than between two orders of the demonstrations."""
    repeat, ceiling = similarity.get("sim_aou_raw"), controls.get("ft_order", {}).get("sim_aou_raw")
    if repeat is None or ceiling is None or repeat.mean is None or ceiling.mean is None:
        return False
    return repeat.mean < ceiling.mean

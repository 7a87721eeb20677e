"""Reading one seed's queries with all adapted models, group by group, and the measures of each group."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualform.learners.adapted import Adapted, AdaptedModel
from dualform.learners.base import LEARNERS
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.progress import Progress
from dualform.studies.comparison.attention_view import AttentionView, with_prefix
from dualform.studies.comparison.config import FINETUNED, IN_CONTEXT, ZERO_SHOT, ComparisonConfig
from dualform.studies.comparison.controls import PreparedControls
from dualform.studies.comparison.repeated import FinetuningRepeat, repeat_measures
from dualform.studies.comparison.work import SeedWork, controlled_queries, query_groups
from dualform.studies.experiment import Experiment
from dualform.studies.reading_together import read_together
from dualform.studies.sides import (
    DemonstrationTokens,
    PromptedSide,
    Side,
    compute_measures,
    recordings_for,
    trained_side,
)


@dataclass
class SeedReadings:
    """Answers and measures of all queries."""

    answers: dict[str, Tensor]
    """Learner -> log-probabilities, `(example, answer)`."""
    measures: dict[str, Tensor] = field(default_factory=dict)
    control_answers: dict[str, Tensor] = field(default_factory=dict)
    repeat_answers: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Learner -> seconds of reading."""
    control_seconds: float = 0.0
    view: AttentionView | None = None


def read_queries(
    experiment: Experiment[ComparisonConfig],
    seed: int,
    work: SeedWork,
    adapted: dict[str, Adapted],
    prepared: PreparedControls,
    repeated: FinetuningRepeat | None,
    progress: Progress,
) -> SeedReadings:
    """Read all queries with all learners, and some of them also with the controls and the repeated training."""
    encoded = work.drawn.encoded
    recording: dict[str, Recording] = {}
    icl, ft = adapted.get(IN_CONTEXT), adapted.get(FINETUNED)
    prompted, tokens = None, None
    if isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel) and ZERO_SHOT in adapted:
        recordings = with_prefix(recordings_for(experiment.lm.anatomy, len(encoded.sequences)))
        # Record all models with changed weights, so that their times can be compared.
        recording = {name: recordings.weights for name, model in adapted.items() if _changes_weights(model)}
        recording |= {ZERO_SHOT: recordings.zsl, IN_CONTEXT: recordings.context, FINETUNED: recordings.weights}
        if encoded.sequences:
            tokens = DemonstrationTokens.of(encoded, experiment.lm.device)
        prompted = PromptedSide.of(icl, None if tokens is None else tokens.content, tokens)
    n = len(experiment.queries)
    width = max(len(query.answers) for query in experiment.queries)
    read = SeedReadings(
        answers={name: torch.full((n, width), -torch.inf, dtype=torch.float64) for name in adapted},
        seconds=dict.fromkeys(adapted, 0.0),
    )
    if prompted is not None and experiment.config.explore:
        read.view = AttentionView(
            experiment.config.explore, experiment.labels, None if tokens is None else tokens.content
        )
    control_passes = sum(plan.reading.passes for plan in work.controls.values())
    n_controlled = len(controlled_queries(experiment))
    for indices, controlled in query_groups(experiment):
        readings: dict[str, Readings] = {}

        def read_group(name: str, model: Adapted, group: Sequence[int] = indices) -> Readings:
            want = recording.get(name, NO_RECORDING)
            return model.read_group(experiment.queries, group, want, experiment.config.probe)

        for name, reading, seconds in read_together(adapted, read_group):
            readings[name] = reading
            read.seconds[name] += seconds
            table = reading.log_probabilities.double().cpu()
            read.answers[name][list(indices), : table.shape[1]] = table
            progress.advance(work.reading(name, indices).passes, f"seed {seed}: reading queries")
        repeat: Readings | None = None
        if controlled and repeated is not None:
            if repeated.model is not None:
                repeat = repeated.read(experiment, indices, recording.get(FINETUNED, NO_RECORDING))
                answers = {FINETUNED: repeat.log_probabilities.double().cpu()}
                _scatter(read.repeat_answers, _padded(answers, width), indices, n)
            progress.advance(work.reading_repeat(indices).passes, f"seed {seed}: reading ft repeated")
        if prompted is None or not isinstance(ft, AdaptedModel):
            continue
        zsl = readings[ZERO_SHOT]
        scale = experiment.config.kendall_scale
        sides = {
            "icl": prompted.side(readings[IN_CONTEXT]),
            "ft": trained_side(ft, readings[FINETUNED], zsl, tokens, scale),
        }
        measures = compute_measures(zsl, sides["icl"], sides["ft"])
        _scatter(read.measures, measures | prompted.relaxation(readings[IN_CONTEXT]), indices, n)
        if read.view is not None:
            read.view.offer(readings, sides["ft"].ranks, measures.get("kendall"))
        if repeat is not None and repeated is not None and repeated.model is not None:
            side = trained_side(repeated.model, repeat, zsl, tokens, scale)
            _scatter(read.measures, repeat_measures(zsl, sides, side), indices, n)
        for name, model in adapted.items():
            if LEARNERS[name].compared_inside and isinstance(model, AdaptedModel) and name in recording:
                side = trained_side(model, readings[name], zsl, None)
                _scatter(read.measures, _learner_measures(name, side, zsl, sides), indices, n)
        if controlled:
            start = time.perf_counter()
            for control in prepared.controls:
                measures, answers = control.read(experiment, indices, zsl, sides)
                _scatter(read.measures, measures, indices, n)
                _scatter(read.control_answers, _padded(answers, width), indices, n)
            progress.advance(control_passes * len(indices) / n_controlled, f"seed {seed}: reading controls")
            read.control_seconds += time.perf_counter() - start
    return read


def _scatter(into: dict[str, Tensor], group: dict[str, Tensor], indices: Sequence[int], n: int) -> None:
    """Write a group's numbers into tensors over all queries, which are NaN for queries that were not read."""
    for key, value in group.items():
        if key not in into:
            into[key] = value.new_full((n, *value.shape[1:]), torch.nan)
        into[key][list(indices)] = value


def _learner_measures(learner: str, side: Side, zsl: Readings, sides: dict[str, Side]) -> dict[str, Tensor]:
    """Measures of another learner's update compared with ICL's and with FT's, for one group."""
    measures: dict[str, Tensor] = {}
    for name, pair in (("icl", (sides["icl"], side)), ("ft", (side, sides["ft"]))):
        values = compute_measures(zsl, *pair, moved_by=sides["icl"].trace)
        measures |= {f"learner/{learner}/{name}/{key}": value for key, value in values.items()}
    return measures


def _changes_weights(adapted: Adapted) -> bool:
    """Whether an adapted model has changed weights."""
    return isinstance(adapted, AdaptedModel) and bool(adapted.deltas)


def _padded(answers: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """A group's log-probabilities of answers, padded with -inf to `width` columns."""
    return {
        name: torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf)
        for name, table in answers.items()
    }

"""One seed's queries read by all adapted models, a group at a time, and the measures of each group."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from dualform.learners.adapted import Adapted, AdaptedModel
from dualform.learners.base import LEARNERS, AnswersFromReadings
from dualform.learners.reading_cache import CachedModel
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.progress import Progress
from dualform.studies.comparison.attention_view import AttentionView, with_prefix
from dualform.studies.comparison.config import FINETUNED, IN_CONTEXT, ZERO_SHOT, ComparisonConfig
from dualform.studies.comparison.controls import PreparedControls
from dualform.studies.comparison.repeated import FinetuningRepeat, repeat_measures
from dualform.studies.comparison.work import SeedWork, controlled_queries, query_groups
from dualform.studies.experiment import Experiment
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
    """All queries' answers and measures."""

    answers: dict[str, Tensor]
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
    """Read the queries with all learners, and some of them with the controls and the repeated training too."""
    encoded = work.drawn.encoded
    want: dict[str, Recording] = {}
    icl, ft = adapted.get(IN_CONTEXT), adapted.get(FINETUNED)
    prompted, shown = None, None
    if isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel) and ZERO_SHOT in adapted:
        recordings = with_prefix(recordings_for(experiment.lm.anatomy, len(encoded.sequences)))
        # Recorded for all models with changed weights, so that their times can be compared.
        want = {name: recordings.weights for name, one in adapted.items() if _in_weights(one)}
        want |= {ZERO_SHOT: recordings.zsl, IN_CONTEXT: recordings.context, FINETUNED: recordings.weights}
        if encoded.sequences:
            shown = DemonstrationTokens.of(encoded, experiment.lm.device)
        prompted = PromptedSide.of(icl, None if shown is None else shown.content, shown)
    n = len(experiment.queries)
    width = max(len(query.answers) for query in experiment.queries)
    read = SeedReadings(
        answers={name: torch.full((n, width), -torch.inf, dtype=torch.float64) for name in adapted},
        seconds=dict.fromkeys(adapted, 0.0),
    )
    if prompted is not None and experiment.config.explore:
        read.view = AttentionView(
            experiment.config.explore, experiment.labels, None if shown is None else shown.content
        )
    of_controls = sum(plan.reading.passes for plan in work.controls.values())
    n_controlled = len(controlled_queries(experiment))
    for indices, controlled in query_groups(experiment):
        readings: dict[str, Readings] = {}
        spent: dict[str, float] = {}
        for name, one in adapted.items():
            start = time.perf_counter()
            source = LEARNERS[name].answers_from
            if source in readings:
                # Another learner has read the same queries; only this one's answer is missing.
                readings[name] = cast(AnswersFromReadings, one).answer(readings[source])
                start -= spent[source]
            else:
                wanted = want.get(name, NO_RECORDING)
                readings[name] = one.read_group(experiment.queries, indices, wanted, experiment.config.probe)
            spent[name] = time.perf_counter() - start
            if isinstance(one, CachedModel):
                spent[name] += one.spared
            read.seconds[name] += spent[name]
            found = readings[name].log_probabilities.double().cpu()
            read.answers[name][list(indices), : found.shape[1]] = found
            progress.advance(work.reading(name, indices).passes, f"seed {seed}: reading queries")
        again: Readings | None = None
        if controlled and repeated is not None:
            if repeated.model is not None:
                again = repeated.read(experiment, indices, want.get(FINETUNED, NO_RECORDING))
                answers = {FINETUNED: again.log_probabilities.double().cpu()}
                _scatter(read.repeat_answers, _widened(answers, width), indices, n)
            progress.advance(work.reading_repeat(indices).passes, f"seed {seed}: reading ft repeated")
        if prompted is None or not isinstance(ft, AdaptedModel):
            continue
        zsl = readings[ZERO_SHOT]
        scaled = experiment.config.kendall_scale
        sides = {
            "icl": prompted.side(readings[IN_CONTEXT]),
            "ft": trained_side(ft, readings[FINETUNED], zsl, shown, scaled),
        }
        measured = compute_measures(zsl, sides["icl"], sides["ft"])
        _scatter(read.measures, measured | prompted.relaxation(readings[IN_CONTEXT]), indices, n)
        if read.view is not None:
            read.view.offer(readings, sides["ft"].ranks, measured.get("kendall"))
        if again is not None and repeated is not None and repeated.model is not None:
            side = trained_side(repeated.model, again, zsl, shown, scaled)
            _scatter(read.measures, repeat_measures(zsl, sides, side), indices, n)
        for name, one in adapted.items():
            if LEARNERS[name].compared_inside and isinstance(one, AdaptedModel) and name in want:
                measured = _compared(name, trained_side(one, readings[name], zsl, None), zsl, sides)
                _scatter(read.measures, measured, indices, n)
        if controlled:
            start = time.perf_counter()
            for control in prepared.controls:
                measured, answered = control.read(experiment, indices, zsl, sides)
                _scatter(read.measures, measured, indices, n)
                _scatter(read.control_answers, _widened(answered, width), indices, n)
            progress.advance(of_controls * len(indices) / n_controlled, f"seed {seed}: reading controls")
            read.control_seconds += time.perf_counter() - start
    return read


def _scatter(into: dict[str, Tensor], group: dict[str, Tensor], indices: Sequence[int], n: int) -> None:
    """Put a group's numbers into tensors over all queries, NaN where nothing was read."""
    for key, value in group.items():
        if key not in into:
            into[key] = value.new_full((n, *value.shape[1:]), torch.nan)
        into[key][list(indices)] = value


def _compared(learner: str, side: Side, zsl: Readings, sides: dict[str, Side]) -> dict[str, Tensor]:
    """A further learner's inside compared with ICL's and with FT's, for one group."""
    found: dict[str, Tensor] = {}
    for name, pair in (("icl", (sides["icl"], side)), ("ft", (side, sides["ft"]))):
        measured = compute_measures(zsl, *pair, moved_by=sides["icl"].trace)
        found |= {f"learner/{learner}/{name}/{key}": value for key, value in measured.items()}
    return found


def _in_weights(adapted: Adapted) -> bool:
    """Whether an adapted model is a change of weights behind the zero-shot prompt."""
    return isinstance(adapted, AdaptedModel) and bool(adapted.deltas)


def _widened(answers: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Tables of a group's answers with as many columns as the query with most answers needs."""
    return {
        name: torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf)
        for name, table in answers.items()
    }

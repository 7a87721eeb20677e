"""The `Result` of a comparison from its seeds' records: means, intervals, tests and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform.learners.base import LEARNERS
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.agreement import Rec2FTP, prediction_entropy, rec2ftp
from dualform.ops.permutation import sign_flip_p
from dualform.ops.power import minimum_detectable
from dualform.result import (
    Calibrated,
    Cost,
    LabelCount,
    PairedTest,
    Predictions,
    Result,
    Similarity,
    SweepPoint,
)
from dualform.studies.against import against_icl, expected_agreement
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.classification import classification
from dualform.studies.common_warnings import few_demonstrations, few_seeds, low_precision, rare_labels, slow_route
from dualform.studies.comparison.calibrate import FEWEST_FIXED, TotalsRatio, calibrate, floors_of, layers_above
from dualform.studies.comparison.config import COMPARED, ComparisonConfig
from dualform.studies.comparison.controls import RATE, control_of_draw
from dualform.studies.comparison.repeated import FinetuningRepeats, with_rounding
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.controls import facts_of
from dualform.studies.facts import TaskDescription, demonstration_report, environment, model_facts, task_result
from dualform.studies.measures import MEASURES
from dualform.studies.statistics import NO_INTERVAL, Interval, Statistics, counted_once


def summarise(
    config: ComparisonConfig,
    lm: LanguageModel,
    description: TaskDescription,
    records: Sequence[SeedRecord],
    seconds: float,
) -> Result:
    """The result of a comparison.

    Args:
        config: The settings.
        lm: The model.
        description: The task and its reported queries.
        records: The seeds' records, at least one.
        seconds: Wall-clock time of the run.

    Returns:
        The result; equal records give equal numbers, intervals included.
    """
    stats = Statistics(config.resamples, tuple(str(record.seed) for record in records))
    labels = description.labels
    learners = list(records[0].log_probabilities)
    tables = {name: torch.stack([record.log_probabilities[name] for record in records]) for name in learners}
    right = {name: (table.argmax(dim=2) == labels).double() for name, table in tables.items()}
    stacked = _StackedSeeds.of(records, labels)
    similarity = _similarities(stacked.measures, stats)
    if set(COMPARED) <= right.keys():
        similarity["rec2ftp"] = _recovered(right["zsl"].bool(), right["icl"].bool(), right["ft"].bool(), stats)
        agreement = similarity["agreement"]
        chance = expected_agreement(tables["icl"].argmax(dim=2), tables["ft"].argmax(dim=2))
        similarity["agreement"] = agreement.model_copy(update={"details": {"chance": chance, **agreement.details}})
    calibrated = _calibrated(stacked, right, stats)
    for name, place in calibrated.items():
        values, floor = stacked.measures.get(name), stacked.controls.get(place.control, {}).get(name)
        if values is not None and floor is not None and values.dim() > 2:
            similarity[name] = similarity[name].model_copy(update={"per_layer_q": layers_above(values, floor)})
    costs = {name: _cost(name, records) for name in learners}
    controls = _controls(stacked, right, stats)
    repeats = FinetuningRepeats.of(records, "ft")
    if repeats is not None:
        moved = _moved(repeats, stacked, right, labels)
        similarity = {name: each.model_copy(update={"rounding": moved.get(name)}) for name, each in similarity.items()}
        calibrated = {name: with_rounding(place, moved.get(name)) for name, place in calibrated.items()}
    return task_result(
        Result,
        "comparison",
        config,
        description,
        model={**model_facts(lm), "inputs": records[0].inputs},
        environment={
            **environment(lm.device, seconds),
            "control_seconds": round(sum(record.control_seconds for record in records), 1),
        },
        warnings=_warnings(config, lm, description, records),
        demonstrations=demonstration_report(config.k, {each.seed: (each.rows, each.n_tokens) for each in records}),
        accuracy={
            name: stats.accuracy(name, table.argmax(dim=2), labels, description.task.label_words)
            for name, table in tables.items()
        },
        predictions={name: _predictions(description, name, table) for name, table in tables.items()},
        classification={
            name: classification(counted_once(name, table), labels, description.task.label_words, stats)
            for name, table in tables.items()
        },
        similarity=similarity,
        controls=controls,
        precision={} if repeats is None else {"ft": repeats.summary(labels, controls, stats)},
        calibrated=calibrated,
        tests=_tests(right, stats),
        rate_sweep=_sweep(stacked, stats),
        cost=costs,
        labels=_labels(records),
        against_icl=against_icl(tables, labels, costs, stats),
        trials=[trial for record in records for trial in record.trials],
        **_reports(config, records, stacked, stats),
    )


def _labels(records: Sequence[SeedRecord]) -> dict[str, LabelCount]:
    """The labels that each learner used, the largest number over seeds."""
    return {
        name: LabelCount(**{field: max(record.labels[name][field] for record in records) for field in counts})
        for name, counts in records[0].labels.items()
    }


def examples_table(description: TaskDescription, records: Sequence[SeedRecord]) -> pa.Table:
    """The answers, one row for each seed, learner and query.

    Returns:
        A table with the columns `seed`, `learner`, and those of `answers_table`.
    """
    return answers_table(
        description,
        (
            AnswerRows({"seed": record.seed, "learner": learner}, description.examples, table)
            for record in records
            for learner, table in record.log_probabilities.items()
        ),
    )


@dataclass(frozen=True)
class _StackedSeeds:
    """All seeds' measures and answers, stacked."""

    measures: dict[str, Tensor]
    """Measure -> `(seed, example, ...)`; names with a dot are companion numbers."""
    controls: dict[str, dict[str, Tensor]]
    """Control -> measure -> `(seed, example, ...)`, NaN for queries that the control did not read."""
    learners: dict[str, dict[str, dict[str, Tensor]]]
    """Learner -> `icl` or `ft` -> measure of the similarity of the two updates -> `(seed, example, ...)`."""
    right: dict[str, Tensor]
    """Control's learner -> 1 where its answer is right, else 0, mean over draws, `(seed, example)`; NaN for queries
    that it did not read."""

    @classmethod
    def of(cls, records: Sequence[SeedRecord], labels: Tensor) -> "_StackedSeeds":
        names = [name for name in records[0].measures if all(name in record.measures for record in records)]
        measures: dict[str, Tensor] = {}
        controls: dict[str, dict[str, Tensor]] = {}
        learners: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name in names:
            values = torch.stack([record.measures[name] for record in records])
            if name.startswith("repeat/"):
                # `FinetuningRepeats` collects these.
                continue
            if name.startswith("control/"):
                _, control, measure = name.split("/")
                controls.setdefault(control, {})[measure] = values
            elif name.startswith("learner/"):
                _, learner, other, measure = name.split("/")
                learners.setdefault(learner, {}).setdefault(other, {})[measure] = values
            else:
                measures[name] = values
        draws: dict[str, list[Tensor]] = {}
        for name in records[0].control_answers:
            tables = torch.stack([record.control_answers[name] for record in records if name in record.control_answers])
            if len(tables) == len(records):
                unread = tables.isnan().any(dim=2)
                draw = (tables.argmax(dim=2) == labels).double().masked_fill(unread, torch.nan)
                draws.setdefault(control_of_draw(name), []).append(draw)
        right = {control: torch.stack(each).mean(dim=0) for control, each in draws.items()}
        return cls(measures, controls, learners, right)

    def answers(self, control: str, right: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Which answers are right before, on the first and on the second side of a control; None without answers."""
        facts = facts_of(control)
        names = ("zsl", "icl", control) if facts is None else facts.compared_answers
        known = {**right, **self.right}
        if not all(name in known for name in names):
            return None
        before, first, second = (known[name] for name in names)
        return before, first, second


def _similarities(measures: Mapping[str, Tensor], stats: Statistics) -> dict[str, Similarity]:
    similarity = {name: stats.similarity(values) for name, values in measures.items() if "." not in name}
    for name, each in similarity.items():
        if (measure := MEASURES.get(name)) is not None and measure.counts_answers:
            # A share of queries needs the interval of a share.
            similarity[name] = each.model_copy(update={"ci95": stats.share(measures[name]).ci95})
    for name, values in measures.items():
        first, _, rest = name.partition(".")
        if rest:
            overall = values.flatten(2).nanmean(dim=2) if values.dim() > 2 else values
            companion = {rest: stats.estimate(overall).model_dump(mode="json")}
            details = {**similarity[first].details, **companion}
            similarity[first] = similarity[first].model_copy(update={"details": details})
    return similarity


def _controls(
    stacked: _StackedSeeds, right: Mapping[str, Tensor], stats: Statistics
) -> dict[str, dict[str, Similarity]]:
    controls: dict[str, dict[str, Similarity]] = {}
    for control, measures in stacked.controls.items():
        if control.startswith(RATE):
            continue
        # The heads of all controls would make up most of the file.
        controls[control] = {
            name: stats.similarity(values).model_copy(update={"per_head": None}) for name, values in measures.items()
        }
        answers = stacked.answers(control, right)
        if answers is not None:
            ratio = _recovery(*answers)
            ends = stats.share_interval(ratio.numerator, ratio.denominator)
            total = float(ratio.denominator.nansum())
            mean = float(ratio.numerator.nansum()) / total if total else None
            controls[control]["rec2ftp"] = Similarity(mean=mean, ci95=ends, n=int(total))
        learner = control if control in stacked.right else f"{control}.icl"
        if learner in stacked.right:
            learner_right = stacked.right[learner]
            share = stats.share(learner_right)
            controls[control]["accuracy"] = Similarity(**share.model_dump(), per_seed=stats.per_seed(learner_right))
    return controls


def _recovery(before: Tensor, first: Tensor, second: Tensor) -> TotalsRatio:
    """Rec2FTP as a ratio of totals: answers corrected by both sides / answers corrected by the second side."""
    corrected = second * (1 - before)
    return TotalsRatio(corrected * first, corrected)


def _calibrated(stacked: _StackedSeeds, right: Mapping[str, Tensor], stats: Statistics) -> dict[str, Calibrated]:
    calibrated = {}
    for name, values in stacked.measures.items():
        if "." in name:
            continue
        controls = {
            control: TotalsRatio.of_mean(measures[name])
            for control, measures in stacked.controls.items()
            if name in measures and not control.startswith(RATE) and _on_scale(control)
        }
        place = calibrate(TotalsRatio.of_mean(values), controls, stats.resamples, floors_of(name))
        if place is not None:
            calibrated[name] = place
    if stacked.right and set(COMPARED) <= right.keys():
        recovered = {}
        for control in stacked.controls:
            answers = None if control.startswith(RATE) else stacked.answers(control, right)
            ratio = None if answers is None else _recovery(*answers)
            if ratio is not None and float(ratio.denominator.nansum()) >= FEWEST_FIXED:
                recovered[control] = ratio
        wrong = 1 - right["zsl"]
        recovered["chance"] = TotalsRatio(right["icl"] * wrong, wrong)
        score = _recovery(right["zsl"], right["icl"], right["ft"])
        if float(score.denominator.sum()) >= FEWEST_FIXED:
            place = calibrate(score, recovered, stats.resamples)
            if place is not None:
                calibrated["rec2ftp"] = place
    return calibrated


def _on_scale(control: str) -> bool:
    facts = facts_of(control)
    return facts is None or facts.same_quantity


def _moved(
    repeats: FinetuningRepeats, stacked: _StackedSeeds, right: Mapping[str, Tensor], labels: Tensor
) -> dict[str, float | None]:
    """Measure -> how much it changes with the repeated finetuning in FT's place."""
    moved = {name: repeats.moved(name, values) for name, values in stacked.measures.items() if "." not in name}
    if {"zsl", "icl"} <= right.keys() and bool(repeats.read.any()):
        repeat = (repeats.repeated.nan_to_num(-torch.inf).argmax(dim=2) == labels)[repeats.read]
        zsl, icl, ft = (right[name].bool()[repeats.read] for name in ("zsl", "icl", "ft"))
        values = [rec2ftp(zsl, icl, side).value for side in (ft, repeat)]
        difference = abs(values[0] - values[1])
        moved["rec2ftp"] = None if difference != difference else difference
    return moved


def _tests(right: Mapping[str, Tensor], stats: Statistics) -> list[PairedTest]:
    """Paired sign-flip tests of all pairs of learners, over queries and over seeds."""
    tests = []
    for first, second in combinations(right, 2):
        difference = right[first] - right[second]
        estimate = stats.difference(difference)
        tests.append(
            PairedTest(
                first=first,
                second=second,
                difference=estimate.mean,
                ci95=estimate.ci95,
                n=estimate.n,
                p_queries=float(sign_flip_p(difference.mean(dim=0))),
                p_seeds=float(sign_flip_p(difference.mean(dim=1))),
                minimum_detectable=minimum_detectable(
                    # Without an interval the smallest detectable difference is NaN.
                    tuple(torch.nan if end is None else end for end in estimate.ci95)  # type: ignore[arg-type]
                ),
            )
        )
    return tests


def _sweep(stacked: _StackedSeeds, stats: Statistics) -> list[SweepPoint]:
    points = []
    for control, measures in stacked.controls.items():
        if control.startswith(RATE) and control in stacked.right:
            estimates = {
                name: stats.estimate(TotalsRatio.of_mean(values).numerator) for name, values in measures.items()
            }
            points.append(
                SweepPoint(
                    learning_rate=float(control.removeprefix(RATE)),
                    accuracy=stats.share(stacked.right[control]),
                    update_norm=estimates.pop("update_norm"),
                    similarity=estimates,
                )
            )
    return points


def _recovered(zsl: Tensor, icl: Tensor, ft: Tensor, stats: Statistics) -> Similarity:
    """Rec2FTP over the queries of all seeds, from right answers as `(seed, example)` bools."""
    overall = rec2ftp(zsl.flatten(), icl.flatten(), ft.flatten())
    corrected = ft & ~zsl
    counts = (corrected & icl, corrected, icl & ~zsl, ~zsl)
    columns = torch.stack([each.double() for each in counts], dim=-1)
    details: dict[str, Any] = {
        name: getattr(overall, name)
        for name in (
            "numerator",
            "denominator",
            "chance",
            "chance_numerator",
            "chance_denominator",
            "lift",
            "reverse",
            "reverse_numerator",
            "reverse_denominator",
            "jaccard",
            "jaccard_numerator",
            "jaccard_denominator",
        )
    }
    details = {name: None if value != value else value for name, value in details.items()}
    share = stats.share_interval(columns[..., 0], columns[..., 1])
    details["lift_ci95"] = list(_lift_interval(columns, share, overall, stats))
    return Similarity(
        mean=overall.value,
        ci95=share,
        n=overall.denominator,
        per_seed={seed: rec2ftp(z, i, f).value for seed, z, i, f in zip(stats.seeds, zsl, icl, ft, strict=True)},
        details=details,
    )


def _lift_interval(columns: Tensor, share: Interval, overall: Rec2FTP, stats: Statistics) -> Interval:
    """95 % interval of Rec2FTP minus its chance level.

    If ICL shares all or none of the corrections, resampling shows no spread of the share, so the interval is widened to
    include that of the share's exact interval. Without this, in simulations with independent corrections, it missed 0
    in a third of the runs with ten corrections and an ICL that is right on nine of ten queries.
    """
    if share == NO_INTERVAL:
        return NO_INTERVAL
    ends = stats.interval_of(lambda totals: totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3], columns)
    if overall.value in (0.0, 1.0):
        exact = [float(end) - overall.chance for end in share if end is not None]
        ends = min(ends[0], exact[0]), max(ends[1], exact[1])
    return ends


def _predictions(description: TaskDescription, learner: str, table: Tensor) -> Predictions:
    answers = counted_once(learner, table)
    predicted = answers.argmax(dim=2).flatten()
    counts = torch.bincount(predicted, minlength=description.task.n_labels).tolist()
    majority = max(range(len(counts)), key=counts.__getitem__)
    return Predictions(
        majority_share=counts[majority] / len(predicted),
        majority_label=None if description.task.is_multiple_choice else description.answer_name(majority),
        entropy=float(prediction_entropy(answers.flatten(0, 1)).nanmean()),
        counts={description.answer_name(label): count for label, count in enumerate(counts)},
    )


def _cost(learner: str, records: Sequence[SeedRecord]) -> Cost:
    costs = [record.costs[learner] for record in records]
    mean = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
    # Searches are summed, because one search may serve all seeds.
    mean["search_seconds"] = sum(cost["search_seconds"] for cost in costs)
    return Cost(**mean)


def _reports(
    config: ComparisonConfig, records: Sequence[SeedRecord], stacked: _StackedSeeds, stats: Statistics
) -> dict[str, Any]:
    """Fields of the result that learners report about how they adapted the model."""
    fields: dict[str, Any] = {}
    for learner in records[0].log_probabilities:
        facts = [record.facts[learner] for record in records if learner in record.facts]
        similarity = {
            other: {
                name: each.model_copy(update={"per_head": None})
                for name, each in _similarities(measures, stats).items()
            }
            for other, measures in stacked.learners.get(learner, {}).items()
        }
        if facts or similarity:
            for name, value in LEARNERS[learner].report(config, facts, similarity).items():
                # Learners without a field of their own share the field `own`.
                fields[name] = {**fields[name], **value} if name in fields else value
    return fields


def _grid(config: ComparisonConfig, name: str) -> tuple[float, ...]:
    """The learning rates searched for a learner; those of finetuning for a control."""
    learner = LEARNERS.get(name)
    return config.rates if learner is None or learner.grid is None else config.grid_of(learner)


def _warnings(
    config: ComparisonConfig, lm: LanguageModel, description: TaskDescription, records: Sequence[SeedRecord]
) -> list[str]:
    used = {record.seed: len(record.rows) for record in records}
    warnings = few_demonstrations(config.k, used, description.context)
    if len(records) == 1:
        warnings.append("One demonstration seed: the intervals do not include the variation between demonstrations.")
    else:
        warnings += few_seeds(len(records))
    trials = [trial for record in records for trial in record.trials]
    diverged = sorted({f"{t.learner} at {t.learning_rate:g}" for t in trials if t.status == "diverged"})
    if diverged:
        warnings.append(
            f"Training diverged (the loss became NaN or infinite) at these learning rates: {', '.join(diverged)}."
        )
    at_edge = {
        f"{trial.learner} ({trial.learning_rate:g})": None
        for trial in trials
        for grid in [sorted(_grid(config, trial.learner))]
        if trial.chosen and len(grid) > 1 and trial.learning_rate in (grid[0], grid[-1])
    }
    if at_edge:
        warnings.append(f"The chosen learning rate is at the edge of its grid: {', '.join(at_edge)}. Widen the grid.")
    if not description.task.is_multiple_choice:
        warnings += rare_labels(description.baselines.label_counts)
    return [*warnings, *low_precision(config.dtype), *slow_route(lm.route.name, lm.refused)]

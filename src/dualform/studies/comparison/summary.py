"""From query-by-query outcomes to the numbers of a `Result`: means, intervals, counts, and what to beware of."""

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
    PairedTest,
    Predictions,
    Result,
    Similarity,
    SweepPoint,
)
from dualform.studies.against import against_icl, expected_agreement
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.common_warnings import few_demonstrations, few_seeds, low_precision, slow_route
from dualform.studies.comparison.calibrate import FEWEST_FIXED, TotalsRatio, calibrate, floors_of, layers_above
from dualform.studies.comparison.config import COMPARED, ComparisonConfig
from dualform.studies.comparison.controls import RATE, drawn_for
from dualform.studies.comparison.repeated import FinetuningRepeats, with_rounding
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.controls import facts_of
from dualform.studies.facts import TaskDescription, demonstration_report, environment, model_facts, task_result
from dualform.studies.measures import MEASURES
from dualform.studies.statistics import NO_INTERVAL, Interval, Statistics, depends_on_seed


def summarise(
    config: ComparisonConfig, lm: LanguageModel, asked: TaskDescription, outcomes: Sequence[SeedRecord], seconds: float
) -> Result:
    """All seeds' outcomes as one result.

    Args:
        config: The settings.
        lm: The model that was compared.
        asked: The queries.
        outcomes: At least one seed's.
        seconds: Wall-clock time of the run.

    Returns:
        The result; equal outcomes give equal numbers, intervals included.
    """
    stats = Statistics(config.resamples, tuple(str(outcome.seed) for outcome in outcomes))
    labels = asked.labels
    learners = list(outcomes[0].log_probabilities)
    tables = {name: torch.stack([outcome.log_probabilities[name] for outcome in outcomes]) for name in learners}
    right = {name: (table.argmax(dim=2) == labels).double() for name, table in tables.items()}
    found = _StackedSeeds.of(outcomes, labels)
    similarity = _similarities(found.measures, stats)
    if set(COMPARED) <= right.keys():
        similarity["rec2ftp"] = _recovered(right["zsl"].bool(), right["icl"].bool(), right["ft"].bool(), stats)
        agreement = similarity["agreement"]
        chance = expected_agreement(tables["icl"].argmax(dim=2), tables["ft"].argmax(dim=2))
        similarity["agreement"] = agreement.model_copy(update={"details": {"chance": chance, **agreement.details}})
    calibrated = _calibrated(found, right, stats)
    for name, one in calibrated.items():
        values, floor = found.measures.get(name), found.controls.get(one.control, {}).get(name)
        if values is not None and floor is not None and values.dim() > 2:
            similarity[name] = similarity[name].model_copy(update={"per_layer_q": layers_above(values, floor)})
    costs = {name: _cost(name, outcomes) for name in learners}
    controls = _controls(found, right, stats)
    repeats = FinetuningRepeats.of(outcomes, "ft")
    if repeats is not None:
        moved = _moved(repeats, found, right, labels)
        similarity = {name: one.model_copy(update={"rounding": moved.get(name)}) for name, one in similarity.items()}
        calibrated = {name: with_rounding(one, moved.get(name)) for name, one in calibrated.items()}
    return task_result(
        Result,
        "comparison",
        config,
        asked,
        model={**model_facts(lm), "inputs": outcomes[0].inputs},
        environment={
            **environment(lm.device, seconds),
            "control_seconds": round(sum(outcome.control_seconds for outcome in outcomes), 1),
        },
        warnings=_warnings(config, lm, asked, outcomes),
        demonstrations=demonstration_report(config.k, {one.seed: (one.rows, one.n_tokens) for one in outcomes}),
        accuracy={
            name: stats.accuracy(name, table.argmax(dim=2), labels, asked.task.label_words)
            for name, table in tables.items()
        },
        predictions={name: _predictions(asked, name, table) for name, table in tables.items()},
        similarity=similarity,
        controls=controls,
        precision={} if repeats is None else {"ft": repeats.summary(labels, controls, stats)},
        calibrated=calibrated,
        tests=_tests(right, stats),
        rate_sweep=_sweep(found, stats),
        cost=costs,
        against_icl=against_icl(tables, labels, costs, stats),
        trials=[trial for outcome in outcomes for trial in outcome.trials],
        **_reports(config, outcomes, found, stats),
    )


def examples_table(asked: TaskDescription, outcomes: Sequence[SeedRecord]) -> pa.Table:
    """One row for each seed, learner and query.

    Returns:
        Columns `seed`, `learner`, and those of `answers_table`.
    """
    return answers_table(
        asked,
        (
            AnswerRows({"seed": outcome.seed, "learner": learner}, asked.examples, table)
            for outcome in outcomes
            for learner, table in outcome.log_probabilities.items()
        ),
    )


@dataclass(frozen=True)
class _StackedSeeds:
    """All seeds' measures and answers, stacked."""

    measures: dict[str, Tensor]
    """Measure -> `(seed, example, ...)`; names with a dot are companions."""
    controls: dict[str, dict[str, Tensor]]
    """Control -> measure -> the same, NaN where it was not read."""
    learners: dict[str, dict[str, dict[str, Tensor]]]
    """Further learner -> `icl` or `ft` -> measure -> the same, between the updates of the two."""
    right: dict[str, Tensor]
    """Control's learner -> 1 where right, `(seed, example)`, NaN where it was not read; a share of several draws."""

    @classmethod
    def of(cls, outcomes: Sequence[SeedRecord], labels: Tensor) -> "_StackedSeeds":
        names = [name for name in outcomes[0].measures if all(name in outcome.measures for outcome in outcomes)]
        measures: dict[str, Tensor] = {}
        controls: dict[str, dict[str, Tensor]] = {}
        learners: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name in names:
            values = torch.stack([outcome.measures[name] for outcome in outcomes])
            if name.startswith("repeat/"):
                # Those have a place of their own, see `repeated`.
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
        for name in outcomes[0].control_answers:
            tables = torch.stack(
                [outcome.control_answers[name] for outcome in outcomes if name in outcome.control_answers]
            )
            if len(tables) == len(outcomes):
                unread = tables.isnan().any(dim=2)
                here = (tables.argmax(dim=2) == labels).double().masked_fill(unread, torch.nan)
                draws.setdefault(drawn_for(name), []).append(here)
        # Of a control that is drawn several times, the share of draws that are right.
        right = {name: torch.stack(found).mean(dim=0) for name, found in draws.items()}
        return cls(measures, controls, learners, right)

    def answers(self, control: str, right: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Who was right before, on the first and on the second side of a control; None where it has no answers."""
        facts = facts_of(control)
        names = ("zsl", "icl", control) if facts is None else facts.compared_answers
        everyone = {**right, **self.right}
        if not all(name in everyone for name in names):
            return None
        before, first, second = (everyone[name] for name in names)
        return before, first, second


def _similarities(measures: Mapping[str, Tensor], stats: Statistics) -> dict[str, Similarity]:
    similarity = {name: stats.similarity(values) for name, values in measures.items() if "." not in name}
    for name, one in similarity.items():
        if (measure := MEASURES.get(name)) is not None and measure.counts_answers:
            # A share of queries, and no mean of numbers that each have a size.
            similarity[name] = one.model_copy(update={"ci95": stats.share(measures[name]).ci95})
    for name, values in measures.items():
        first, _, rest = name.partition(".")
        if rest:
            overall = values.flatten(2).nanmean(dim=2) if values.dim() > 2 else values
            companion = {rest: stats.estimate(overall).model_dump(mode="json")}
            details = {**similarity[first].details, **companion}
            similarity[first] = similarity[first].model_copy(update={"details": details})
    return similarity


def _controls(found: _StackedSeeds, right: Mapping[str, Tensor], stats: Statistics) -> dict[str, dict[str, Similarity]]:
    controls: dict[str, dict[str, Similarity]] = {}
    for control, measures in found.controls.items():
        if control.startswith(RATE):
            continue
        # Heads of every control would fill the file, and nobody looks at them.
        controls[control] = {
            name: stats.similarity(values).model_copy(update={"per_head": None}) for name, values in measures.items()
        }
        answers = found.answers(control, right)
        if answers is not None:
            shares = _recovery(*answers)
            ends = stats.share_interval(shares.numerator, shares.denominator)
            total = float(shares.denominator.nansum())
            mean = float(shares.numerator.nansum()) / total if total else None
            controls[control]["rec2ftp"] = Similarity(mean=mean, ci95=ends, n=int(total))
        own = control if control in found.right else f"{control}.icl"
        if own in found.right:
            right_there = found.right[own]
            share = stats.share(right_there)
            controls[control]["accuracy"] = Similarity(**share.model_dump(), per_seed=stats.per_seed(right_there))
    return controls


def _recovery(before: Tensor, first: Tensor, second: Tensor) -> TotalsRatio:
    """Rec2FTP as a ratio of totals: fixed by both, over fixed by the second."""
    fixed = second * (1 - before)
    return TotalsRatio(fixed * first, fixed)


def _calibrated(found: _StackedSeeds, right: Mapping[str, Tensor], stats: Statistics) -> dict[str, Calibrated]:
    calibrated = {}
    for name, values in found.measures.items():
        if "." in name:
            continue
        controls = {
            control: TotalsRatio.of_mean(measures[name])
            for control, measures in found.controls.items()
            if name in measures and not control.startswith(RATE) and _on_scale(control)
        }
        one = calibrate(TotalsRatio.of_mean(values), controls, stats.resamples, floors_of(name))
        if one is not None:
            calibrated[name] = one
    if found.right and set(COMPARED) <= right.keys():
        recovered = {}
        for control in found.controls:
            answers = None if control.startswith(RATE) else found.answers(control, right)
            shares = None if answers is None else _recovery(*answers)
            if shares is not None and float(shares.denominator.nansum()) >= FEWEST_FIXED:
                recovered[control] = shares
        wrong = 1 - right["zsl"]
        recovered["chance"] = TotalsRatio(right["icl"] * wrong, wrong)
        score = _recovery(right["zsl"], right["icl"], right["ft"])
        if float(score.denominator.sum()) >= FEWEST_FIXED:
            one = calibrate(score, recovered, stats.resamples)
            if one is not None:
                calibrated["rec2ftp"] = one
    return calibrated


def _on_scale(control: str) -> bool:
    facts = facts_of(control)
    return facts is None or facts.same_quantity


def _moved(
    repeats: FinetuningRepeats, found: _StackedSeeds, right: Mapping[str, Tensor], labels: Tensor
) -> dict[str, float | None]:
    """Measure -> how far it moves when finetuning is repeated from weights moved by rounding."""
    moved = {name: repeats.moved(name, values) for name, values in found.measures.items() if "." not in name}
    if {"zsl", "icl"} <= right.keys() and bool(repeats.read.any()):
        again = (repeats.repeated.nan_to_num(-torch.inf).argmax(dim=2) == labels)[repeats.read]
        zsl, icl, ft = (right[name].bool()[repeats.read] for name in ("zsl", "icl", "ft"))
        values = [rec2ftp(zsl, icl, side).value for side in (ft, again)]
        difference = abs(values[0] - values[1])
        moved["rec2ftp"] = None if difference != difference else difference
    return moved


def _tests(right: Mapping[str, Tensor], stats: Statistics) -> list[PairedTest]:
    """Every pair of learners, by sign flips over queries and over seeds."""
    found = []
    for first, second in combinations(right, 2):
        difference = right[first] - right[second]
        estimate = stats.difference(difference)
        found.append(
            PairedTest(
                first=first,
                second=second,
                difference=estimate.mean,
                ci95=estimate.ci95,
                n=estimate.n,
                p_queries=float(sign_flip_p(difference.mean(dim=0))),
                p_seeds=float(sign_flip_p(difference.mean(dim=1))),
                minimum_detectable=minimum_detectable(
                    # An end is NaN, and so is the effect, where no query tells the two apart.
                    tuple(torch.nan if end is None else end for end in estimate.ci95)  # type: ignore[arg-type]
                ),
            )
        )
    return found


def _sweep(found: _StackedSeeds, stats: Statistics) -> list[SweepPoint]:
    points = []
    for control, measures in found.controls.items():
        if control.startswith(RATE) and control in found.right:
            estimates = {
                name: stats.estimate(TotalsRatio.of_mean(values).numerator) for name, values in measures.items()
            }
            points.append(
                SweepPoint(
                    learning_rate=float(control.removeprefix(RATE)),
                    accuracy=stats.share(found.right[control]),
                    update_norm=estimates.pop("update_norm"),
                    similarity=estimates,
                )
            )
    return points


def _recovered(zsl: Tensor, icl: Tensor, ft: Tensor, stats: Statistics) -> Similarity:
    """Rec2FTP over all seeds' queries together, `(seed, example)` bools."""
    whole = rec2ftp(zsl.flatten(), icl.flatten(), ft.flatten())
    fixed = (ft & ~zsl).double()
    columns = torch.stack([(fixed.bool() & icl).double(), fixed, (icl & ~zsl).double(), (~zsl).double()], dim=-1)
    details: dict[str, Any] = {
        name: getattr(whole, name)
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
    details["lift_ci95"] = list(_lift_interval(columns, share, whole, stats))
    return Similarity(
        mean=whole.value,
        ci95=share,
        n=whole.denominator,
        per_seed={seed: rec2ftp(z, i, f).value for seed, z, i, f in zip(stats.seeds, zsl, icl, ft, strict=True)},
        details=details,
    )


def _lift_interval(columns: Tensor, share: Interval, whole: Rec2FTP, stats: Statistics) -> Interval:
    """95 % interval of Rec2FTP less its chance level.

    Where all corrections were shared, or none, resampling them shows no spread of the share, so that of its exact
    interval is added: without it, the interval of independent corrections left out 0 in a third of the runs with ten
    corrections and an ICL that is right on nine queries in ten.
    """
    if share == NO_INTERVAL:
        return NO_INTERVAL
    ends = stats.interval_of(lambda totals: totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3], columns)
    if whole.value in (0.0, 1.0):
        exact = [float(end) - whole.chance for end in share if end is not None]
        ends = min(ends[0], exact[0]), max(ends[1], exact[1])
    return ends


def _predictions(asked: TaskDescription, learner: str, table: Tensor) -> Predictions:
    answers = table if depends_on_seed(learner) else table[:1]
    predicted = answers.argmax(dim=2).flatten()
    counts = torch.bincount(predicted, minlength=asked.task.n_labels).tolist()
    majority = max(range(len(counts)), key=counts.__getitem__)
    return Predictions(
        majority_share=counts[majority] / len(predicted),
        majority_label=None if asked.task.is_multiple_choice else asked.answer_name(majority),
        entropy=float(prediction_entropy(answers.flatten(0, 1)).nanmean()),
        counts={asked.answer_name(label): count for label, count in enumerate(counts)},
    )


def _cost(learner: str, outcomes: Sequence[SeedRecord]) -> Cost:
    costs = [outcome.costs[learner] for outcome in outcomes]
    mean = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
    # A search that was done once for all seeds is charged once, not averaged away.
    mean["search_seconds"] = sum(cost["search_seconds"] for cost in costs)
    return Cost(**mean)


def _reports(
    config: ComparisonConfig, outcomes: Sequence[SeedRecord], found: _StackedSeeds, stats: Statistics
) -> dict[str, Any]:
    """Fields of the result in which learners report how they adapted the model and what that did inside."""
    fields: dict[str, Any] = {}
    for learner in outcomes[0].log_probabilities:
        facts = [outcome.facts[learner] for outcome in outcomes if learner in outcome.facts]
        similarity = {
            other: {
                name: one.model_copy(update={"per_head": None}) for name, one in _similarities(measures, stats).items()
            }
            for other, measures in found.learners.get(learner, {}).items()
        }
        if facts or similarity:
            for name, value in LEARNERS[learner].report(config, facts, similarity).items():
                # Learners without a field of their own share one.
                fields[name] = {**fields[name], **value} if name in fields else value
    return fields


def _grid(config: ComparisonConfig, name: str) -> tuple[float, ...]:
    """Learning rates that were searched for a learner; a control's are those of finetuning."""
    learner = LEARNERS.get(name)
    return config.rates if learner is None or learner.grid is None else config.grid_of(learner)


def _warnings(
    config: ComparisonConfig, lm: LanguageModel, asked: TaskDescription, outcomes: Sequence[SeedRecord]
) -> list[str]:
    found = few_demonstrations(config.k, {outcome.seed: len(outcome.rows) for outcome in outcomes}, asked.context)
    if len(outcomes) == 1:
        found.append("One demonstration seed: the intervals say nothing about other demonstrations.")
    else:
        found += few_seeds(len(outcomes))
    diverged = sorted(
        {f"{t.learner} at {t.learning_rate:g}" for o in outcomes for t in o.trials if t.status == "diverged"}
    )
    if diverged:
        found.append(f"The loss became NaN or infinite, and these rates were dropped: {', '.join(diverged)}.")
    trials = [trial for outcome in outcomes for trial in outcome.trials]
    at_edge = {
        f"{trial.learner} ({trial.learning_rate:g})": None
        for trial in trials
        for grid in [sorted(_grid(config, trial.learner))]
        if trial.chosen and len(grid) > 1 and trial.learning_rate in (grid[0], grid[-1])
    }
    if at_edge:
        found.append(f"The learning rate chosen is at the edge of its grid: {', '.join(at_edge)}. Widen the grid.")
    return [*found, *low_precision(config.dtype), *slow_route(lm.route.name, lm.refused)]

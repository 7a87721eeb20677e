"""Do the measures score 1 where they must? The positive control, with a trained toy model for comparison.

A constructed layer does one step of gradient descent when it attends to demonstrations, so every measure between "in
context" and "gradient step" must be 1. The measures are then applied to pairs that differ: a step of another length,
softmax instead of linear attention, permuted labels, a random direction. All of this uses the same code that compares
language models.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualform.lab.constructed_model import ConstructedModel, ConstructedWeights, construct
from dualform.lab.token_world import TokenWorld
from dualform.lab.toy_model import save_toy, train_toy
from dualform.learners.adapted import AdaptedModel
from dualform.learners.finetuned import Finetuned
from dualform.learners.gradient_step import GradientStep
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rate import search_rate
from dualform.models.loading.load import load_model
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.agreement import rec2ftp
from dualform.result import Estimate
from dualform.studies.laboratory.claims import claim_in_seeds
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.construction_depth import depth_claims, depth_errors
from dualform.studies.laboratory.result import Claim, LabChart, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.pieces import PieceStore, load_or_make
from dualform.studies.seed_statistics import over_seeds
from dualform.studies.sides import (
    DemonstrationTokens,
    PromptedSide,
    compute_measures,
    random_side,
    recordings_for,
    trained_side,
)
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.task import Task

RATE = 1.0
"""eta of the constructed step: the best rate of one step for many inputs with identity covariance."""
TARGETS = 4
"""Dimension of y: larger than the number of labels, so that a step can have the wrong direction."""
OTHER_RATE = 3.0
"""Length of the wrong step, relative to the right one."""
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Lengths of the steps in the chart, relative to the right one."""
EXACT = 1e-12
"""Tolerance for equality in float64, after the sums over a context."""

TOY_DIMENSION, TOY_WORDS, TOY_STEPS = 2, 96, 800
TOY_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates tried for finetuning the toy (SGD on W_K and W_V, loss on label words)."""

MEASURES = {
    "sim_aou_raw": "SimAOU, raw",
    "sim_aou": "SimAOU, as published",
    "sim_aou_raw.norm_ratio": "length of the update, step over context",
    "distance": "distance of outputs, over length of the update",
    "direct_update": "direct update",
    "sim_am": "SimAM",
    "sim_am_centred": "SimAM, centred",
    "sim_am_softmax": "SimAM, after softmax",
    "sim_am_delta": "SimAM, changes",
    "kendall": "Kendall, tokens",
    "kendall_demo": "Kendall, demonstrations",
    "rec2ftp": "Rec2FTP",
    "agreement": "same label",
    "agreement.total_variation": "total variation of labels",
    "agreement.kl_icl_ft": "KL of labels, nats",
    "top_k_overlap": "top-10 tokens in common",
    "overlap_cosine": "overlap cosine",
    "vocabulary_shared": "probability in common",
    "relaxation": "linear form and head: cosine",
    "relaxation.relative_error": "linear form and head: relative error",
    "accuracy_zsl": "accuracy without demonstrations",
    "accuracy_icl": "accuracy in context",
    "accuracy_ft": "accuracy after the step",
}
"""Measure -> name of its row in the table."""

PERFECT = (
    "sim_aou_raw",
    "sim_aou",
    "direct_update",
    "sim_am",
    "sim_am_centred",
    "sim_am_softmax",
    "kendall",
    "kendall_demo",
    "rec2ftp",
    "agreement",
    "top_k_overlap",
    "overlap_cosine",
    "vocabulary_shared",
    "relaxation",
)
"""Measures that are 1 if both sides are the same."""

CASES = {
    "constructed": "the gradient step",
    "rate": f"a step {OTHER_RATE:g} times as long",
    "softmax": "softmax in linear attention's place",
    "labels": "a step on permuted labels",
    "random": "a random direction as long as the step",
}

_PAIRS = {
    "constructed": "context and gradient step",
    "rate": f"context and a step {OTHER_RATE:g} times as long",
    "softmax": "softmax over the context and gradient step",
    "labels": "context and a step on permuted labels",
    "random": "context and a random direction as long as the step",
}

SENSITIVE: dict[str, tuple[str, ...]] = {
    "rate": ("sim_aou", "vocabulary_shared"),
    "softmax": ("sim_aou_raw", "sim_aou", "relaxation"),
    "labels": ("sim_aou_raw", "sim_aou", "direct_update", "vocabulary_shared"),
    "random": ("sim_aou_raw", "sim_aou", "direct_update", "kendall", "kendall_demo"),
}
"""Case -> measures that detect it: they must not be 1."""

INSENSITIVE: dict[str, tuple[str, ...]] = {
    "rate": ("sim_aou_raw", "direct_update", "sim_am", "kendall"),
    "softmax": ("direct_update", "sim_am", "kendall"),
    "labels": ("sim_am", "kendall"),
}
"""Case -> measures that do not detect it: they are 1 all the same."""

_Advance = Callable[[float, str], None]


def pieces(config: RegressionConfig) -> int:
    """Number of pieces: two for each seed."""
    return 2 * len(config.seeds)


def constructed(
    config: RegressionConfig, store: PieceStore, advance: _Advance = lambda amount, doing: None
) -> LabStudy:
    """Apply every measure to the constructed layer, to the cases that must fail and to a trained toy.

    Args:
        config: Settings of the laboratory; `points` is the number of demonstrations.
        store: Stores the numbers of each seed.
        advance: Called with 1 after each piece.
    """
    inputs = f"{config.dimension} {config.points} {RATE} {TARGETS} {OTHER_RATE} {RATIOS}"
    toy_inputs = f"{config.points} {TOY_DIMENSION} {TOY_WORDS} {config.scaled(TOY_STEPS)} {TOY_RATES}"
    exact, toys = [], []
    for seed in config.seeds:
        exact.append(_numbers(f"constructed, seed {seed}", inputs, store, advance, partial(_exact, config, seed)))
        toys.append(_numbers(f"trained toy, seed {seed}", toy_inputs, store, advance, partial(_toy, config, seed)))
    return LabStudy(
        name="constructed",
        question="Do the measures score 1 where attention to demonstrations is a gradient step?",
        answer=_answer(exact),
        claims=[*_claims(exact), *depth_claims([seed["depth"] for seed in exact])],
        charts=[_chart(exact)],
        tables=[_table(exact, toys)],
        notes=[*_notes(exact), *_toy_notes(toys)],
    )


def _numbers(
    name: str, inputs: str, store: PieceStore, advance: _Advance, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The numbers of one seed, from the store or computed now."""
    piece = load_or_make(store, name, inputs, lambda: ({}, make()))
    advance(1.0, name)
    return piece.about


@dataclass(frozen=True)
class PromptedModel:
    """A model with a task and demonstrations."""

    lm: LanguageModel
    task: Task
    demonstrations: Demonstrations
    encoder: Encoder
    encoded: EncodedDemonstrations
    seed: int

    @classmethod
    def of(cls, lm: LanguageModel, task: Task, k: int, seed: int) -> "PromptedModel":
        """The model with `k` demonstrations drawn for a seed."""
        encoder = Encoder(lm, task)
        demonstrations = draw_demonstrations(task, k, seed)
        return cls(lm, task, demonstrations, encoder, encoder.demonstrations(demonstrations), seed)

    @property
    def zsl(self) -> AdaptedModel:
        """The model without demonstrations."""
        return ZeroShot(self.encoder.opening).adapt(self.lm, self.encoded)

    @property
    def icl(self) -> AdaptedModel:
        """The model with the demonstrations in its context."""
        return InContext().adapt(self.lm, self.encoded)

    def measures(self, weights: AdaptedModel, *, noise: bool = False) -> dict[str, float]:
        """Every measure between the model in context and a model with changed weights.

        Args:
            weights: Model with changed weights, read without demonstrations.
            noise: Replace its update by a random direction of the same length; it then has no answers.

        Returns:
            Measure -> mean over heads, layers and queries of the report split; NaN where it has no value.
        """
        examples = self.task.split(self.task.report_split)
        queries = [self.encoder.query(example) for example in examples]
        labels = torch.tensor([example.label for example in examples])
        want = recordings_for(self.lm.anatomy, len(self.encoded.sequences))
        tokens = DemonstrationTokens.of(self.encoded, self.lm.device)
        zsl, icl = self.zsl, self.icl
        prompted = PromptedSide.of(icl, tokens.content, tokens)
        by_query: dict[str, list[Tensor]] = {}
        correct: dict[str, list[Tensor]] = {"zsl": [], "icl": [], "ft": []}
        for indices in self.lm.groups(queries):
            readings = (
                zsl.read_group(queries, indices, want.zsl),
                icl.read_group(queries, indices, want.context),
                weights.read_group(queries, indices, want.weights),
            )
            a, b = prompted.side(readings[1]), trained_side(weights, readings[2], readings[0], tokens)
            if noise:
                b = random_side(readings[0], b, self.seed)
            group = compute_measures(readings[0], a, b, answers=not noise) | prompted.relaxation(readings[1])
            outputs = [trace.output for trace in (readings[0].trace, a.trace, b.trace) if trace is not None]
            if all(output is not None for output in outputs):
                before, context, step = (output.double() for output in outputs if output is not None)
                length = (context - before).norm(dim=-1)
                group["distance"] = torch.where(length > 0, (step - context).norm(dim=-1) / length, torch.nan).cpu()
            for name, value in group.items():
                by_query.setdefault(name, []).append(value)
            for name, reading in zip(correct, readings, strict=True):
                correct[name].append(reading.predictions.cpu() == labels[list(indices)])
        hits = {name: torch.cat(parts) for name, parts in correct.items()}
        values = {name: _mean(torch.cat(parts)) for name, parts in by_query.items()}
        values |= {f"accuracy_{name}": float(each.double().mean()) for name, each in hits.items()}
        values["rec2ftp"] = rec2ftp(hits["zsl"], hits["icl"], hits["ft"]).value
        if noise:
            for name in ("rec2ftp", "accuracy_ft"):
                values[name] = math.nan
        return {name: values.get(name, math.nan) for name in MEASURES}


def _mean(values: Tensor) -> float:
    """Mean over heads, then layers, then queries, ignoring NaN, as in all studies."""
    while values.dim() > 1:
        values = values.nanmean(dim=-1)
    return float(values.nanmean())


def _exact(config: RegressionConfig, seed: int) -> dict[str, Any]:
    """All cases of the constructed layer for one seed, which determines words, W_0, task and demonstrations."""
    k = config.points
    world = TokenWorld.draw(config.dimension, max(120, 4 * k), seed)
    layer = ConstructedWeights.draw(world, TARGETS, seed)
    task = world.task(seed, remembering=True)

    def setup(softmax: bool) -> PromptedModel:
        positions = 3 * k + config.dimension + 64
        model = construct(world, layer, rate=RATE, n_demonstrations=k, softmax=softmax, positions=positions)
        return PromptedModel.of(LanguageModel.wrap(model, world.tokenizer(), "constructed"), task, k, seed)

    linear, softmax = setup(False), setup(True)
    # If all demonstrations have the same label, permuting changes nothing, and the labels are flipped instead.
    drawn = linear.demonstrations
    permuted = drawn.labelled_otherwise(task, "shuffled") or drawn.relabelled(task, "flipped")
    wrong = linear.encoder.demonstrations(permuted)

    def step(model: PromptedModel, rate: float = RATE, encoded: EncodedDemonstrations | None = None) -> AdaptedModel:
        return gradient_step(world, layer, model, rate).adapt(model.lm, encoded or model.encoded)

    right = step(linear)
    cases = {
        "constructed": linear.measures(right),
        "rate": linear.measures(step(linear, OTHER_RATE * RATE)),
        "softmax": softmax.measures(step(softmax)),
        "labels": linear.measures(step(linear, encoded=wrong)),
        "random": linear.measures(right, noise=True),
    }
    gaps = {
        "constructed": output_gap(world, layer, linear, linear.encoded, RATE),
        "rate": output_gap(world, layer, linear, linear.encoded, OTHER_RATE * RATE),
        "softmax": output_gap(world, layer, softmax, softmax.encoded, RATE),
        "labels": output_gap(world, layer, linear, wrong, RATE),
    }
    known = {1.0: cases["constructed"], OTHER_RATE: cases["rate"]}
    ratios = [known.get(ratio) or linear.measures(step(linear, ratio * RATE)) for ratio in RATIOS]
    depth = depth_errors(config.dimension, config.points, seed)
    return {"depth": depth, "cases": cases, "gaps": gaps, "ratios": ratios, "route": linear.lm.route.name}


def gradient_step(world: TokenWorld, layer: ConstructedWeights, setup: PromptedModel, rate: float) -> GradientStep:
    """The learner that takes one gradient step on the demonstrations' vectors and targets."""
    model = setup.lm.model
    assert isinstance(model, ConstructedModel)
    W_0 = model.embedded_linear
    inputs = world.vectors(torch.arange(len(world.vocabulary)))
    return GradientStep(setup.encoder.opening, rate, W_0.parameter, W_0.rows, W_0.columns, inputs, layer.readout)


def output_gap(
    world: TokenWorld, layer: ConstructedWeights, setup: PromptedModel, encoded: EncodedDemonstrations, rate: float
) -> float:
    """Largest deviation of the layer's output in context from (W_0 + dW) x, relative to the largest output.

    dW is one gradient step, computed by autograd without the model. The maximum is over queries and features.

    Args:
        world: Words and their vectors.
        layer: W_0 and targets.
        setup: Model whose output is compared.
        encoded: Demonstrations on which the step is taken.
        rate: Rate of the step.
    """
    pairs = torch.tensor([ids[-2:] for ids in encoded.sequences])
    x, y = world.vectors(pairs[:, 0]), layer.readout[pairs[:, 1]]
    W = layer.W_0.clone().requires_grad_()
    (x @ W.mT - y).square().sum().div(2 * len(pairs)).backward()
    assert W.grad is not None
    W_1 = layer.W_0 - rate * W.grad
    queries = [setup.encoder.query(example) for example in setup.task.split(setup.task.report_split)]
    model, icl = setup.lm.model, setup.icl
    assert isinstance(model, ConstructedModel)
    want = recordings_for(setup.lm.anatomy, len(encoded.sequences)).context
    largest, gap = 0.0, 0.0
    for indices in setup.lm.groups(queries):
        trace = icl.read_group(queries, indices, want).trace
        assert trace is not None
        assert trace.output is not None
        expected = world.vectors(torch.tensor([queries[i].prompt[-1] for i in indices])) @ W_1.mT
        largest = max(largest, float(expected.abs().max()))
        gap = max(gap, float((trace.output[:, 1, model.parts.out] - expected).abs().max()))
    return gap / largest


def _toy(config: RegressionConfig, seed: int) -> dict[str, Any]:
    """Measures between ICL and finetuning for a toy model that is trained, saved and loaded like any checkpoint."""
    world = TokenWorld.draw(TOY_DIMENSION, max(TOY_WORDS, 4 * config.points), seed)
    model = train_toy(world, steps=config.scaled(TOY_STEPS), seed=seed, examples=config.points + 2)
    with tempfile.TemporaryDirectory() as folder:
        lm = load_model(str(save_toy(model, world, Path(folder) / "toy")), device="cpu")
    setup = PromptedModel.of(lm, world.task(seed, asking=True), config.points, seed)
    selection = setup.task.split(setup.task.selection_split)

    def adapt(rate: float) -> AdaptedModel:
        return Finetuned(setup.encoder.opening, rate, "label").adapt(lm, setup.encoded)

    search = search_rate(
        adapt,
        TOY_RATES,
        lm,
        [setup.encoder.query(example) for example in selection],
        [example.label for example in selection],
        seed=seed,
        patience=len(TOY_RATES),
    )
    return {"measures": setup.measures(search.best), "rate": search.learning_rate, "route": lm.route.name}


def _estimate(values: Sequence[float]) -> Estimate | None:
    """Estimate over the seeds with a finite value; None if there is none."""
    values = [value for value in values if math.isfinite(value)]
    return over_seeds(values) if values else None


def _of_case(exact: Sequence[dict[str, Any]], case: str, measure: str) -> list[float]:
    return [seed["cases"][case][measure] for seed in exact]


def _claims(exact: Sequence[dict[str, Any]]) -> list[Claim]:
    claims = [_gap_claim(exact, case) for case in ("constructed", "rate", "softmax", "labels")]
    claims += [_measure_claim(exact, "constructed", measure) for measure in PERFECT]
    claims += [_measure_claim(exact, case, measure) for case, measures in INSENSITIVE.items() for measure in measures]
    for case, measures in SENSITIVE.items():
        claims += [_measure_claim(exact, case, measure, must_fail=True) for measure in measures]
    return claims


def _gap_claim(exact: Sequence[dict[str, Any]], case: str) -> Claim:
    values = [seed["gaps"][case] for seed in exact]
    says = {
        "constructed": "In context, the layer's output is that of W_0 after one gradient step.",
        "rate": f"In context, the layer's output is that of W_0 after a step {OTHER_RATE:g} times as long.",
        "softmax": "With softmax, the layer's output in context is that of W_0 after one gradient step.",
        "labels": "In context, the layer's output is that of W_0 after a step on permuted labels.",
    }
    return claim_in_seeds(
        says[case],
        f"largest relative deviation below {EXACT:g}",
        values,
        [value < EXACT for value in values],
        must_fail=case != "constructed",
        source="arXiv:2212.07677v2, proposition 1",
    )


def _measure_claim(exact: Sequence[dict[str, Any]], case: str, measure: str, must_fail: bool = False) -> Claim:
    values = _of_case(exact, case, measure)
    insensitive = case != "constructed" and not must_fail
    more = " too: the measure does not detect the difference" if insensitive else ""
    return claim_in_seeds(
        f"{MEASURES[measure]}: {_PAIRS[case]} score 1{more}.",
        f"1 within {EXACT:g}",
        # If one seed has no value, the mean is missing, and the claim neither holds nor fails.
        values,
        [abs(value - 1) < EXACT for value in values],
        must_fail=must_fail,
    )


def _table(exact: Sequence[dict[str, Any]], toys: Sequence[dict[str, Any]]) -> LabTable:
    rows = []
    for measure, name in MEASURES.items():
        cells = [_estimate(_of_case(exact, case, measure)) for case in CASES]
        rows.append(LabRow(name=name, cells=[*cells, _estimate([toy["measures"][measure] for toy in toys])]))
    return LabTable(
        title="Values of the measures: attention to demonstrations compared with ...",
        columns=[*CASES.values(), "a trained toy: finetuning"],
        rows=rows,
        note="Means over heads, layers and queries, then over seeds. SimAM of changes has no value on the constructed "
        "layer: the scores among a query's own tokens do not change, so that the change has no direction; for the same "
        "reason SimAM is 1 there for any step. Queries of the toy have two words, so that centred SimAM shows only "
        "which word gets more attention. A random direction has no answers.",
    )


def _chart(exact: Sequence[dict[str, Any]]) -> LabChart:
    measures = ("sim_aou_raw", "sim_aou", "direct_update", "vocabulary_shared", "agreement")
    return LabChart(
        title="Which measures detect the length of a step",
        x="rate of the step / eta of the layer",
        y="similarity to attention",
        log_x=True,
        curves=[
            LabCurve(
                name=MEASURES[measure],
                x=list(RATIOS),
                y=[over_seeds([seed["ratios"][number][measure] for seed in exact]) for number in range(len(RATIOS))],
            )
            for measure in measures
        ],
        note="At 1 the step equals that of the layer.",
    )


def _answer(exact: Sequence[dict[str, Any]]) -> str:
    values = [value for measure in PERFECT for value in _of_case(exact, "constructed", measure)]
    gaps = [seed["gaps"]["constructed"] for seed in exact]
    if not all(map(math.isfinite, values + gaps)):
        return "Undecided: some measure, or the gap between outputs, has no value in some seed."
    worst, gap = max(abs(value - 1) for value in values), max(gaps)
    if worst < EXACT and gap < EXACT:
        return (
            f"Yes: the output differs from the explicit step by at most {gap:.0e}, and every measure is 1 to within "
            f"{worst:.0e}. Raw SimAOU, the direct update, SimAM and Kendall's tau are also 1 for a step of any other "
            "length."
        )
    return f"No: the measures deviate from 1 by up to {worst:.1e}, and the outputs by up to {gap:.1e}."


def _notes(exact: Sequence[dict[str, Any]]) -> list[str]:
    raw, published = (_estimate(_of_case(exact, "random", name)) for name in ("sim_aou_raw", "sim_aou"))
    if raw is None or published is None:
        return []
    return [
        f"A random direction as long as the step has a SimAOU of {published.mean:.2f} as published and {raw.mean:.2f} "
        "raw. The published form normalises outputs before subtracting them, so that any two changes look similar."
    ]


def _toy_notes(toys: Sequence[dict[str, Any]]) -> list[str]:
    gain = [toy["measures"]["accuracy_icl"] - toy["measures"]["accuracy_zsl"] for toy in toys]
    rates = sorted({toy["rate"] for toy in toys})
    notes = [
        "The trained toy is a Llama with two layers, trained on this task alone and loaded from its checkpoint. It is "
        "finetuned by SGD on W_K and W_V; the rates were chosen on words outside the report split "
        f"({', '.join(f'{rate:g}' for rate in rates)})."
    ]
    slow = [value for value in gain if value < 0.2]
    if slow:
        notes.append(
            f"{len(slow)} of {len(gain)} toys have not learned to use their context: demonstrations raise their "
            "accuracy by less than 0.2. Train longer (--steps)."
        )
    return notes

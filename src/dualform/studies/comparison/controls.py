"""What stands in for ICL or FT, so that one sees what a measure says when nothing, or the same, was learned.

A stand-in is an adapted model like any other, read on the same queries. It takes one side's place in every measure,
beside the other side as it is. For the untrained models both sides, and zero-shot, are their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dualform.errors import DualformError, NumericalError, TaskError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.layer_causal import LayerCausal
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.random_update import random_update
from dualform.learners.rate import RateSearch
from dualform.models.capture import Recording
from dualform.models.encoding import EncodedDemonstrations, Encoder
from dualform.models.language_model import Readings
from dualform.models.untrained import untrained
from dualform.ops.streams import stream_seed
from dualform.result import Trial
from dualform.studies.bench import Bench, Drawn
from dualform.studies.comparison.config import ComparisonConfig, ControlName
from dualform.studies.inside import (
    Prompted,
    Recordings,
    Shown,
    Side,
    likeness,
    random_side,
    recordings_for,
    released_random_side,
    trained_side,
)
from dualform.studies.tuning import trained
from dualform.tasks.demonstrations import Demonstrations, LabelRule, draw_demonstrations
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task, Template

Position = Literal["first", "second"]

# Draws for other demonstrations must not be another reported seed's.
_ELSEWHERE = 2**31


@dataclass(frozen=True)
class Pair:
    """One control: a stand-in beside one of the two sides."""

    control: str
    beside: Literal["icl", "ft"]
    place: Position
    """Where the stand-in is put: `first` is ICL's place."""


@dataclass(frozen=True)
class StandIn:
    """An adapted model that takes a side's place."""

    name: str
    adapted: AdaptedModel
    prompted: Prompted | None
    """None for changed weights."""
    shown: Shown | None
    pairs: tuple[Pair, ...]

    def read(
        self, bench: Bench[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures of its controls, and its answers, for one group."""
        want = recordings_for(bench.lm.anatomy, 1)
        recording = _wanted(want, prompted=self.prompted is not None, ranked=self.shown is not None)
        readings = self.adapted.read_group(bench.queries, indices, recording, bench.config.probe)
        if self.prompted is not None:
            side = self.prompted.side(readings)
        else:
            side = trained_side(self.adapted, readings, zsl, self.shown, bench.config.kendall_scale)
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            other = sides[pair.beside]
            first, second = (side, other) if pair.place == "first" else (other, side)
            measured = likeness(zsl, first, second, moved_by=sides["icl"].trace)
            found |= _named(pair.control, measured)
        return found, {self.name: readings.log_probabilities.double().cpu()}


@dataclass(frozen=True)
class RandomDirection:
    """FT's side with all that it changed turned into noise of the same size; costs no forward."""

    seed: int

    def read(
        self, bench: Bench[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures for one group; a made-up side has no answers."""
        made = random_side(zsl, sides["ft"], self.seed)
        found = _named("random", likeness(zsl, sides["icl"], made, answers=False))
        if bench.config.preset == "dai2023":
            # What the paper's own "random" is; next to it and nowhere else the two are compared.
            found |= _named(RELEASED, released_random_side(zsl, sides["icl"], self.seed))
        return found, {}


@dataclass(frozen=True)
class RandomUpdates:
    """FT's side with its changes of weight turned into noise of the same size, several times, and averaged.

    What one draw of noise happens to do to a small model differs from draw to draw by more than most measures differ
    between learners.
    """

    draws: tuple[StandIn, ...]

    def read(
        self, bench: Bench[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures averaged over draws, and each draw's answers, for one group."""
        measured: dict[str, list[Tensor]] = {}
        answers: dict[str, Tensor] = {}
        for draw in self.draws:
            found, answered = draw.read(bench, indices, zsl, sides)
            answers |= answered
            for name, value in found.items():
                measured.setdefault(name, []).append(value)
        return {name: torch.stack(values).nanmean(dim=0) for name, values in measured.items()}, answers


@dataclass(frozen=True)
class OtherModel:
    """ICL and FT of a model that has learned nothing, beside each other."""

    name: str
    bench: Bench[ComparisonConfig]
    """With that model in it."""
    zsl: AdaptedModel
    icl: Prompted
    ft: AdaptedModel
    shown: Shown

    def read(
        self, bench: Bench[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures and answers for one group; the trained model's are not looked at."""
        want = recordings_for(self.bench.lm.anatomy, self.shown.n)
        queries, probe = self.bench.queries, self.bench.config.probe
        before = self.zsl.read_group(queries, indices, want.zsl, probe)
        prompted = self.icl.adapted.read_group(queries, indices, want.context, probe)
        tuned = self.ft.read_group(queries, indices, want.weights, probe)
        side = trained_side(self.ft, tuned, before, self.shown, self.bench.config.kendall_scale)
        measured = likeness(before, self.icl.side(prompted), side)
        answers = {"zsl": before, "icl": prompted, "ft": tuned}
        return _named(self.name, measured), {
            f"{self.name}.{side}": readings.log_probabilities.double().cpu() for side, readings in answers.items()
        }


Control = StandIn | RandomDirection | RandomUpdates | OtherModel


@dataclass(frozen=True)
class Prepared:
    """All controls of one seed, ready to read."""

    controls: tuple[Control, ...]
    rates: dict[str, float]
    """Learning rates chosen for learners that have their own."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


RELEASED = "random_released"
"""SimAOU with the released code's random update, read along with the control `random`."""

RANDOM_UPDATES = 5
"""Draws of noise that the control `random_update` averages over."""

_DRAW = "#"


def draw_name(control: str, number: int) -> str:
    """Name of one draw's answers; the first has the control's own."""
    return control if number == 0 else f"{control}{_DRAW}{number + 1}"


def drawn_for(name: str) -> str:
    """The control that a draw's answers belong to; the name itself where there is one draw only."""
    return name.partition(_DRAW)[0]


PAIRS: dict[str, tuple[str, str, str]] = {
    "position_shift": ("zsl", "position_shift", "ft"),
    "shuffled_labels": ("zsl", "shuffled_labels", "ft"),
    "random_labels": ("zsl", "random_labels", "ft"),
    "other_task": ("zsl", "other_task", "ft"),
    "other_demonstrations": ("zsl", "icl", "other_demonstrations"),
    "random_update": ("zsl", "icl", "random_update"),
    "icl_order": ("zsl", "icl", "icl_order"),
    "ft_order": ("zsl", "ft", "ft_order"),
    "batch": ("zsl", "icl", "batch"),
    "batch_sequential": ("zsl", "ft", "batch"),
    "lcgd": ("zsl", "icl", "lcgd"),
    "value_one_layer": ("zsl", "icl", "value_one_layer"),
    "mlp": ("zsl", "icl", "mlp"),
    "untrained": ("untrained.zsl", "untrained.icl", "untrained.ft"),
    "embeddings": ("embeddings.zsl", "embeddings.icl", "embeddings.ft"),
}
"""Control -> whose answers are before, first and second, for measures of answers such as Rec2FTP."""


def prepare(
    bench: Bench[ComparisonConfig],
    drawn: Drawn,
    icl: AdaptedModel,
    ft: AdaptedModel,
    rate: float,
    known: dict[str, float],
    report: Callable[[str], None],
) -> Prepared:
    """Adapt every stand-in that the settings ask for.

    Args:
        bench: Model, task, settings.
        drawn: The seed's demonstrations.
        icl: The prompted model.
        ft: The finetuned model.
        rate: FT's learning rate, which its stand-ins share.
        known: Rates that an earlier seed chose for stand-ins that have their own; others are searched for.
        report: Told which control comes next.
    """
    made = Workshop(bench, drawn, icl, ft, rate, known)
    controls: list[Control] = []
    for name in bench.config.controls:
        report(name)
        try:
            controls += made.make(name)
        except DualformError as error:
            # What the run is about stands without it.
            made.notes.append(f"Control {name} was left out for seed {drawn.demonstrations.seed}: {error}")
    return Prepared(tuple(controls), made.rates, tuple(made.trials), tuple(made.notes))


class Workshop:
    """Makes the stand-ins of one seed."""

    def __init__(
        self,
        bench: Bench[ComparisonConfig],
        drawn: Drawn,
        icl: AdaptedModel,
        ft: AdaptedModel,
        rate: float,
        known: dict[str, float],
    ) -> None:
        self.bench = bench
        self.demonstrations = drawn.demonstrations
        self.encoded = drawn.encoded
        self.ft = ft
        self.icl = icl
        self.rate = rate
        self.known = known
        self.rates: dict[str, float] = {}
        self.trials: list[Trial] = []
        self.notes: list[str] = []

    def make(self, name: ControlName) -> Iterator[Control]:
        """The stand-ins of a control, one for most."""
        seed = self.demonstrations.seed
        if name == "random":
            yield RandomDirection(seed)
        elif name == "random_update":
            yield RandomUpdates(tuple(self._random_updates(name, seed)))
        elif name == "position_shift":
            yield self._filler()
        elif name in ("shuffled_labels", "random_labels"):
            rule: LabelRule = "shuffled" if name == "shuffled_labels" else "random"
            otherwise = self.demonstrations.labelled_otherwise(self.bench.task, rule)
            if otherwise is None:
                raise TaskError("the demonstrations all show the same label, so there are no other ones to deal")
            encoded = self.bench.shown(otherwise).encoded
            yield self._prompted(name, encoded, self._shown(encoded), Pair(name, "ft", "first"))
        elif name == "other_task":
            yield self._prompted(name, self._other_task(), None, Pair(name, "ft", "first"))
        elif name == "other_demonstrations":
            yield self._trained(name, self._finetuned(name, self._others().encoded), None)
        elif name in ("icl_order", "ft_order"):
            *_, again = self.demonstrations.in_orders(2)
            if again.rows == self.demonstrations.rows:
                raise TaskError("one demonstration has no other order")
            encoded = self.bench.shown(again).encoded
            places = [again.rows.index(row) for row in self.demonstrations.rows]
            shown = self._shown(encoded, places)
            if name == "icl_order":
                yield self._prompted(name, encoded, shown, Pair(name, "icl", "second"))
            else:
                yield self._trained(name, self._finetuned(name, encoded), shown, Pair(name, "ft", "second"))
        elif name == "rates":
            yield from self._sweep()
        elif name in ("untrained", "embeddings"):
            yield self._other_model(name)
        else:
            pairs = [Pair(name, "icl", "second")]
            pairs += [Pair("batch_sequential", "ft", "second")] if name == "batch" else []
            yield self._trained(name, self._variant(name), self._shown(self.encoded), *pairs)

    def _shown(self, encoded: EncodedDemonstrations, places: Sequence[int] | None = None) -> Shown:
        return Shown.of(encoded, self.bench.lm.device, places)

    def _prompted(self, name: str, encoded: EncodedDemonstrations, shown: Shown | None, pair: Pair) -> StandIn:
        adapted = InContext(name).adapt(self.bench.lm, encoded)
        content = torch.tensor(encoded.content, device=self.bench.lm.device)
        return StandIn(name, adapted, Prompted.of(adapted, content, shown), shown, (pair,))

    def _trained(self, name: str, adapted: AdaptedModel, shown: Shown | None, *pairs: Pair) -> StandIn:
        return StandIn(name, adapted, None, shown, pairs or (Pair(name, "icl", "second"),))

    def _random_updates(self, name: str, seed: int) -> Iterator[StandIn]:
        for number in range(RANDOM_UPDATES):
            noise = random_update(self.ft, self.bench.lm, self.bench.encoder.opening, stream_seed(name, seed, number))
            pair = Pair(name, "icl", "second")
            yield StandIn(draw_name(name, number), noise, None, self._shown(self.encoded), (pair,))

    def _filler(self) -> StandIn:
        """The query at ICL's positions, behind nothing but separators."""
        name = "position_shift"
        prefix = self.bench.encoder.filler(len(self.encoded.prefix))
        adapted = ZeroShot(prefix, name).adapt(self.bench.lm, self.encoded)
        content = torch.arange(len(self.bench.encoder.opening), len(prefix), device=self.bench.lm.device)
        return StandIn(name, adapted, Prompted.of(adapted, content, None), None, (Pair(name, "ft", "first"),))

    def _other_task(self) -> EncodedDemonstrations:
        """Demonstrations of the task that the settings name; else of the same texts with another question."""
        config, lm = self.bench.config, self.bench.lm
        if config.other_task is None:
            task, demonstrations = length_task(self.demonstrations, self.bench.task)
        else:
            task = load_task(config.other_task, data_dir=config.data_dir)
            k = min(self.demonstrations.k_effective, len(task.demonstration_pool))
            demonstrations = draw_demonstrations(task, k, self.demonstrations.seed)
        encoder = Encoder(lm, task, self.bench.config.opening)
        demonstrations = encoder.fit(demonstrations, self.bench.queries, self.bench.context)
        return encoder.demonstrations(demonstrations)

    def _others(self) -> Drawn:
        """Demonstrations of the same task, none of them among the seed's if train has enough."""
        bench, seed = self.bench, (self.demonstrations.seed + _ELSEWHERE) % 2**32
        mine = set(self.demonstrations.rows)
        rest = tuple(example for example in bench.task.demonstration_pool if example.row not in mine)
        try:
            task = replace(bench.task, splits={**bench.task.splits, "train": rest})
            others = replace(bench, task=task).draw(seed)
        except TaskError:
            self.notes.append(
                "Train is too small for other demonstrations that share none with the first: some are the same."
            )
            others = bench.draw(seed)
        # As many as FT had, where these are shorter and more of them fit.
        return bench.shown(others.demonstrations.truncated(self.demonstrations.k_effective))

    def _finetuned(self, name: str, encoded: EncodedDemonstrations) -> AdaptedModel:
        """As FT, at FT's rate; where that diverges, at the next lower one, which is said."""
        found = self._search(name, lambda rate: self._learner("ft", rate).adapt(self.bench.lm, encoded), self.rate)
        self._say_if_lower(name, found)
        return found.best

    def _say_if_lower(self, name: str, found: RateSearch) -> None:
        if found.learning_rate != self.rate:
            self.notes.append(
                f"Seed {self.demonstrations.seed}: at FT's rate ({self.rate:g}) the control {name} diverged; it was "
                f"trained at {found.learning_rate:g}."
            )

    def _variant(self, name: str) -> AdaptedModel:
        """Another way of finetuning, at a rate of its own."""

        def adapt(rate: float) -> AdaptedModel:
            return self._learner(name, rate).adapt(self.bench.lm, self.encoded)

        known = None if self.bench.config.tune == "each" else self.known.get(name)
        found = self._search(name, adapt, known)
        self.rates[name] = found.learning_rate
        self.trials += [trial.model_copy(update={"learner": name}) for trial in found.trials]
        return found.best

    def _search(self, name: str, adapt: Callable[[float], AdaptedModel], known: float | None) -> RateSearch:
        return trained(
            adapt, self.bench.config.rates, self.bench, name=name, seed=self.demonstrations.seed, known=known
        )

    def _learner(self, name: str, rate: float) -> Finetuned | LayerCausal:
        opening, loss_on = self.bench.encoder.opening, self.bench.config.loss_on
        if name == "lcgd":
            return LayerCausal(opening, rate, loss_on)
        if name == "batch":
            return Finetuned(opening, rate, loss_on, steps="batch", name=name)
        if name == "mlp":
            return Finetuned(opening, rate, loss_on, part="mlp", name=name)
        if name == "value_one_layer":
            return Finetuned(opening, rate, loss_on, part="value_one_layer", name=name)
        return Finetuned(opening, rate, loss_on)

    def _sweep(self) -> Iterator[StandIn]:
        for rate in sorted(self.bench.config.rates):
            name = f"{RATE}{rate:g}"
            try:
                adapted = self.ft if rate == self.rate else self._learner("ft", rate).adapt(self.bench.lm, self.encoded)
                # Weights may be finite and what they answer not.
                answer_log_probabilities(adapted, self.bench.lm, self.bench.queries[:4])
            except NumericalError:
                self.notes.append(
                    f"Seed {self.demonstrations.seed}: FT diverged at rate {rate:g}; the sweep stops there."
                )
                return
            yield self._trained(name, adapted, self._shown(self.encoded))

    def _other_model(self, name: Literal["untrained", "embeddings"]) -> OtherModel:
        seed, encoded = self.demonstrations.seed, self.encoded
        lm = untrained(self.bench.lm, seed=seed, keep_embeddings=name == "embeddings")
        bench = replace(self.bench, lm=lm)
        zsl = ZeroShot(self.bench.encoder.opening).adapt(lm, encoded)
        icl = InContext().adapt(lm, encoded)
        found = trained(
            lambda rate: self._learner("ft", rate).adapt(lm, encoded),
            self.bench.config.rates,
            bench,
            name=f"ft of the {name} model",
            seed=seed,
            known=self.rate,
        )
        self._say_if_lower(name, found)
        content = torch.tensor(encoded.content, device=lm.device)
        shown = Shown.of(encoded, lm.device)
        return OtherModel(name, bench, zsl, Prompted.of(icl, content, shown), found.best, shown)


RATE = "rate:"
"""Begins the names of the sweep's controls, the rate behind it."""


def length_task(demonstrations: Demonstrations, task: Task) -> tuple[Task, Demonstrations]:
    """The same texts in the same order, asked whether they are long or short: another task that every task has.

    Returns:
        The task, and its demonstrations.
    """
    fields = task.template.fields
    lengths = [sum(len(example.fields[name].split()) for name in fields) for example in demonstrations.examples]
    middle = sorted(lengths)[len(lengths) // 2]
    examples = tuple(
        replace(example, label=int(length >= middle), choices=None)
        for example, length in zip(demonstrations.examples, lengths, strict=True)
    )
    shown = "\n".join(f"{{{name}}}" for name in fields)
    other = Task(
        name="length",
        source=f"the texts of {task.name}",
        splits={"train": examples, "selection": examples, "report": examples},
        template=Template(f"Text: {shown}\nLength:", task.template.separator),
        label_words=("short", "long"),
        label_names=None,
        selection_split="selection",
        report_split="report",
    )
    labels = tuple(example.label for example in examples)
    return other, replace(demonstrations, task=other.name, examples=examples, labels=labels, label_rule="true")


def _wanted(want: Recordings, *, prompted: bool, ranked: bool) -> Recording:
    if not prompted:
        return want.weights
    return replace(want.context, demo_scores=ranked, mixed=False)


def _named(control: str, measured: dict[str, Tensor]) -> dict[str, Tensor]:
    """Measures under the control's name; companions are left out, but for how far a swept rate moved the model."""
    kept = {name: value for name, value in measured.items() if "." not in name and name != "sim_am_before"}
    # Heads of every control, over all queries and seeds, would be most of a run's memory, and nobody looks at them.
    kept = {name: value.nanmean(dim=2) if value.dim() > 2 else value for name, value in kept.items()}
    if control.startswith(RATE) and "sim_aou_raw.norm_ratio" in measured:
        kept["update_norm"] = measured["sim_aou_raw.norm_ratio"]
    return {f"control/{control}/{name}": value for name, value in kept.items()}

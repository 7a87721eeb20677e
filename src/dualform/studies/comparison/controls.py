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
from dualform.learners.adapted import AdaptedModel, Method, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.random_update import random_update
from dualform.learners.rate import RateSearch
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel, Readings
from dualform.models.structure.untrained import untrained
from dualform.ops.streams import stream_seed
from dualform.result import Trial
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.controls import CONTROLS, ControlFacts, ReadyControl
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.measures import MEASURES
from dualform.studies.sides import (
    DemonstrationTokens,
    PromptedSide,
    Recordings,
    Side,
    compute_measures,
    random_side,
    recordings_for,
    released_random_side,
    trained_side,
)
from dualform.studies.tuning import train_at_best_rate
from dualform.studies.work import TRIAL_QUERIES
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task, Template

Position = Literal["first", "second"]

# Draws for other demonstrations must not be another reported seed's.
_ELSEWHERE = 2**31


@dataclass(frozen=True)
class ControlPair:
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
    prompted: PromptedSide | None
    """None for changed weights."""
    shown: DemonstrationTokens | None
    pairs: tuple[ControlPair, ...]

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures of its controls, and its answers, for one group."""
        want = recordings_for(experiment.lm.anatomy, 1)
        recording = _wanted(want, prompted=self.prompted is not None, ranked=self.shown is not None)
        readings = self.adapted.read_group(experiment.queries, indices, recording, experiment.config.probe)
        if self.prompted is not None:
            side = self.prompted.side(readings)
        else:
            side = trained_side(self.adapted, readings, zsl, self.shown, experiment.config.kendall_scale)
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            other = sides[pair.beside]
            first, second = (side, other) if pair.place == "first" else (other, side)
            measured = compute_measures(zsl, first, second, moved_by=sides["icl"].trace)
            found |= _named(pair.control, measured)
        return found, {self.name: readings.log_probabilities.double().cpu()}


@dataclass(frozen=True)
class RandomDirection:
    """FT's side with all that it changed turned into noise of the same size; costs no forward."""

    seed: int

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures for one group; a made-up side has no answers."""
        made = random_side(zsl, sides["ft"], self.seed)
        found = _named("random", compute_measures(zsl, sides["icl"], made, answers=False))
        if experiment.config.preset == "dai2023":
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
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures averaged over draws, and each draw's answers, for one group."""
        measured: dict[str, list[Tensor]] = {}
        answers: dict[str, Tensor] = {}
        for draw in self.draws:
            found, answered = draw.read(experiment, indices, zsl, sides)
            answers |= answered
            for name, value in found.items():
                measured.setdefault(name, []).append(value)
        return {name: torch.stack(values).nanmean(dim=0) for name, values in measured.items()}, answers


@dataclass(frozen=True)
class UntrainedComparison:
    """ICL and FT of a model that has learned nothing, beside each other."""

    name: str
    experiment: Experiment[ComparisonConfig]
    """With that model in it."""
    zsl: AdaptedModel
    icl: PromptedSide
    ft: AdaptedModel
    shown: DemonstrationTokens

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures and answers for one group; the trained model's are not looked at."""
        want = recordings_for(self.experiment.lm.anatomy, self.shown.n)
        queries, probe = self.experiment.queries, self.experiment.config.probe
        before = self.zsl.read_group(queries, indices, want.zsl, probe)
        prompted = self.icl.adapted.read_group(queries, indices, want.context, probe)
        tuned = self.ft.read_group(queries, indices, want.weights, probe)
        side = trained_side(self.ft, tuned, before, self.shown, self.experiment.config.kendall_scale)
        measured = compute_measures(before, self.icl.side(prompted), side)
        answers = {"zsl": before, "icl": prompted, "ft": tuned}
        return _named(self.name, measured), {
            f"{self.name}.{side}": readings.log_probabilities.double().cpu() for side, readings in answers.items()
        }


@dataclass(frozen=True)
class PreparedControls:
    """All controls of one seed, ready to read."""

    controls: tuple[ReadyControl, ...]
    rates: dict[str, float]
    """Learning rates chosen for learners that have their own."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


RELEASED = "random_released"
"""SimAOU with the released code's random update, read along with the control `random`."""

_DRAW = "#"


def draw_name(control: str, number: int) -> str:
    """Name of one draw's answers; the first has the control's own."""
    return control if number == 0 else f"{control}{_DRAW}{number + 1}"


def drawn_for(name: str) -> str:
    """The control that a draw's answers belong to; the name itself where there is one draw only."""
    return name.partition(_DRAW)[0]


def prepare(
    experiment: Experiment[ComparisonConfig],
    drawn: DemonstrationSet,
    icl: AdaptedModel,
    ft: AdaptedModel,
    rate: float,
    known: dict[str, float],
    report: Callable[[str, bool], None],
) -> PreparedControls:
    """Adapt every stand-in that the settings ask for.

    Args:
        experiment: Model, task, settings.
        drawn: The seed's demonstrations.
        icl: The prompted model.
        ft: The finetuned model.
        rate: FT's learning rate, which its stand-ins share.
        known: Rates that an earlier seed chose for stand-ins that have their own; others are searched for.
        report: Is given the name of a control and whether it has been made, before and after making it.
    """
    made = ControlBuilder(experiment, drawn, icl, ft, rate, known)
    controls: list[ReadyControl] = []
    for name in experiment.config.controls:
        report(name, False)
        try:
            controls += CONTROLS[name].make(made)
        except DualformError as error:
            # What the run is about stands without it.
            made.notes.append(f"Control {name} was left out for seed {drawn.demonstrations.seed}: {error}")
        report(name, True)
    return PreparedControls(tuple(controls), made.rates, tuple(made.trials), tuple(made.notes))


class ControlBuilder:
    """Tools to make the stand-ins of one seed.

    Args:
        experiment: Model, task, settings.
        drawn: The seed's demonstrations.
        icl: The prompted model.
        ft: The finetuned model.
        rate: FT's learning rate.
        known: Rates that an earlier seed chose for stand-ins that have their own.
    """

    def __init__(
        self,
        experiment: Experiment[ComparisonConfig],
        drawn: DemonstrationSet,
        icl: AdaptedModel,
        ft: AdaptedModel,
        rate: float,
        known: dict[str, float],
    ) -> None:
        self.experiment = experiment
        self.demonstrations = drawn.demonstrations
        self.encoded = drawn.encoded
        self.ft = ft
        self.icl = icl
        self.rate = rate
        self.known = known
        self.rates: dict[str, float] = {}
        """Learning rates chosen for stand-ins that have their own."""
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        """What a reader must know about the controls."""

    def prompted(
        self,
        control: ControlFacts,
        encoded: EncodedDemonstrations,
        *,
        places: Sequence[int] | None = None,
        ranked: bool = True,
    ) -> StandIn:
        """The model behind other demonstrations than ICL's.

        Args:
            control: Whose stand-in it is.
            encoded: What it is shown.
            places: For the same demonstrations in another order, see `DemonstrationTokens.of`.
            ranked: Its tokens are those of the other side, in this order, so that both can be ranked.
        """
        adapted = InContext(control.name).adapt(self.experiment.lm, encoded)
        content = torch.tensor(encoded.content, device=self.experiment.lm.device)
        shown = self._shown(encoded, places) if ranked else None
        return StandIn(control.name, adapted, PromptedSide.of(adapted, content, shown), shown, _pairs(control))

    def trained(
        self,
        control: ControlFacts,
        adapted: AdaptedModel,
        encoded: EncodedDemonstrations | None = None,
        *,
        places: Sequence[int] | None = None,
        ranked: bool = True,
    ) -> StandIn:
        """A model with changed weights.

        Args:
            control: Whose stand-in it is.
            adapted: The model.
            encoded: What it was trained on; the seed's demonstrations where not given.
            places: See `prompted`.
            ranked: See `prompted`.
        """
        shown = self._shown(encoded or self.encoded, places) if ranked else None
        return StandIn(control.name, adapted, None, shown, _pairs(control))

    def filler(self, control: ControlFacts) -> StandIn:
        """The query at ICL's positions, behind nothing but separators."""
        prefix = self.experiment.encoder.filler(len(self.encoded.prefix))
        adapted = ZeroShot(prefix, control.name).adapt(self.experiment.lm, self.encoded)
        content = torch.arange(len(self.experiment.encoder.opening), len(prefix), device=self.experiment.lm.device)
        return StandIn(control.name, adapted, PromptedSide.of(adapted, content, None), None, _pairs(control))

    def random_direction(self) -> RandomDirection:
        """FT's readings with all that it changed turned into noise."""
        return RandomDirection(self.demonstrations.seed)

    def random_updates(self, name: str, draws: int) -> RandomUpdates:
        """FT's changes of weight turned into noise, several times."""
        control, seed = CONTROLS[name], self.demonstrations.seed
        opening, shown = self.experiment.encoder.opening, self._shown(self.encoded)
        made = []
        for number in range(draws):
            noise = random_update(self.ft, self.experiment.lm, opening, stream_seed(name, seed, number))
            made.append(StandIn(draw_name(name, number), noise, None, shown, _pairs(control)))
        return RandomUpdates(tuple(made))

    def other_task(self) -> EncodedDemonstrations:
        """Demonstrations of the task that the settings name; else of the same texts with another question."""
        config, lm = self.experiment.config, self.experiment.lm
        if config.other_task is None:
            task, demonstrations = length_task(self.demonstrations, self.experiment.task)
        else:
            task = load_task(config.other_task, data_dir=config.data_dir)
            k = min(self.demonstrations.k_effective, len(task.demonstration_pool))
            demonstrations = draw_demonstrations(task, k, self.demonstrations.seed)
        encoder = Encoder(lm, task, self.experiment.config.opening)
        demonstrations = encoder.fit(demonstrations, self.experiment.queries, self.experiment.context)
        return encoder.demonstrations(demonstrations)

    def others(self) -> DemonstrationSet:
        """Demonstrations of the same task, none of them among the seed's if train has enough."""
        experiment, seed = self.experiment, (self.demonstrations.seed + _ELSEWHERE) % 2**32
        mine = set(self.demonstrations.rows)
        rest = tuple(example for example in experiment.task.demonstration_pool if example.row not in mine)
        try:
            task = replace(experiment.task, splits={**experiment.task.splits, "train": rest})
            others = replace(experiment, task=task).draw(seed)
        except TaskError:
            self.notes.append(
                "Train is too small for other demonstrations that share none with the first: some are the same."
            )
            others = experiment.draw(seed)
        # As many as FT had, where these are shorter and more of them fit.
        return experiment.encode(others.demonstrations.truncated(self.demonstrations.k_effective))

    def finetuned(self, name: str, encoded: EncodedDemonstrations) -> AdaptedModel:
        """As FT, at FT's rate; where that diverges, at the next lower one, which is said."""
        found = self._search(name, lambda rate: self._finetune(rate, self.experiment.lm, encoded), self.rate)
        self._say_if_lower(name, found)
        return found.best

    def searched(self, name: str, method: Callable[[float], Method]) -> AdaptedModel:
        """Another way of training on the seed's demonstrations, at a rate of its own.

        Args:
            name: The control's.
            method: The way of training, from a rate.
        """

        def adapt(rate: float) -> AdaptedModel:
            adapted = method(rate).adapt(self.experiment.lm, self.encoded)
            assert isinstance(adapted, AdaptedModel)
            return adapted

        known = None if self.experiment.config.tune == "each" else self.known.get(name)
        found = self._search(name, adapt, known)
        self.rates[name] = found.learning_rate
        self.trials += [trial.model_copy(update={"learner": name}) for trial in found.trials]
        return found.best

    def sweep(self) -> Iterator[StandIn]:
        """FT at every rate of the grid, up to the one where training diverges."""
        for rate in sorted(self.experiment.config.rates):
            name = f"{RATE}{rate:g}"
            try:
                adapted = self.ft if rate == self.rate else self._finetune(rate, self.experiment.lm, self.encoded)
                # Weights may be finite and what they answer not.
                answer_log_probabilities(adapted, self.experiment.lm, self.experiment.queries[:TRIAL_QUERIES])
            except NumericalError:
                self.notes.append(
                    f"Seed {self.demonstrations.seed}: FT diverged at rate {rate:g}; the sweep stops there."
                )
                return
            yield StandIn(name, adapted, None, self._shown(self.encoded), (ControlPair(name, "icl", "second"),))

    def other_model(self, name: str, *, keep_embeddings: bool) -> UntrainedComparison:
        """All three learners of a model that is not trained."""
        seed, encoded = self.demonstrations.seed, self.encoded
        lm = untrained(self.experiment.lm, seed=seed, keep_embeddings=keep_embeddings)
        experiment = replace(self.experiment, lm=lm)
        zsl = ZeroShot(self.experiment.encoder.opening).adapt(lm, encoded)
        icl = InContext().adapt(lm, encoded)
        found = train_at_best_rate(
            lambda rate: self._finetune(rate, lm, encoded),
            self.experiment.config.rates,
            experiment,
            name=f"ft of the {name} model",
            seed=seed,
            known=self.rate,
        )
        self._say_if_lower(name, found)
        content = torch.tensor(encoded.content, device=lm.device)
        shown = DemonstrationTokens.of(encoded, lm.device)
        return UntrainedComparison(name, experiment, zsl, PromptedSide.of(icl, content, shown), found.best, shown)

    def _shown(self, encoded: EncodedDemonstrations, places: Sequence[int] | None = None) -> DemonstrationTokens:
        return DemonstrationTokens.of(encoded, self.experiment.lm.device, places)

    def _finetune(self, rate: float, lm: LanguageModel, encoded: EncodedDemonstrations) -> AdaptedModel:
        return Finetuned(self.experiment.encoder.opening, rate, self.experiment.config.loss_on).adapt(lm, encoded)

    def _say_if_lower(self, name: str, found: RateSearch) -> None:
        if found.learning_rate != self.rate:
            self.notes.append(
                f"Seed {self.demonstrations.seed}: at FT's rate ({self.rate:g}) the control {name} diverged; it was "
                f"trained at {found.learning_rate:g}."
            )

    def _search(self, name: str, adapt: Callable[[float], AdaptedModel], known: float | None) -> RateSearch:
        return train_at_best_rate(
            adapt, self.experiment.config.rates, self.experiment, name=name, seed=self.demonstrations.seed, known=known
        )


def _pairs(control: ControlFacts) -> tuple[ControlPair, ...]:
    """A control's own comparison, then those of its companions."""
    facts = (control, *getattr(control, "companions", ()))
    return tuple(ControlPair(one.name, one.beside, one.place) for one in facts)


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
    kept = {name: value for name, value in measured.items() if "." not in name and MEASURES[name].in_controls}
    # Heads of every control, over all queries and seeds, would be most of a run's memory, and nobody looks at them.
    kept = {name: value.nanmean(dim=2) if value.dim() > 2 else value for name, value in kept.items()}
    if control.startswith(RATE) and "sim_aou_raw.norm_ratio" in measured:
        kept["update_norm"] = measured["sim_aou_raw.norm_ratio"]
    return {f"control/{control}/{name}": value for name, value in kept.items()}

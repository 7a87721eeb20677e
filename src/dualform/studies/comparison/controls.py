"""Controls: stand-ins for ICL or FT that show what a measure scores if nothing, or the same thing, was learned.

A stand-in is an adapted model, read on the same queries as the learners. In every measure it replaces one side and is
compared with the other, unchanged side. The untrained models replace both sides and zero-shot.
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
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel, Readings
from dualform.models.structure.untrained import untrained
from dualform.ops.streams import stream_seed
from dualform.result import Trial
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.controls import CONTROLS, ControlFacts, ReadyControl
from dualform.studies.experiment import DemonstrationSet, Experiment, encoder_for
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

# Added to the seed when other demonstrations are drawn, so that they differ from those of all reported seeds.
_OTHER_DRAW = 2**31


@dataclass(frozen=True)
class ControlPair:
    """A control's name, the side that the stand-in is compared with, and the side that it replaces."""

    control: str
    beside: Literal["icl", "ft"]
    place: Position
    """The side of a measure that the stand-in takes: `first` is ICL's."""


@dataclass(frozen=True)
class StandIn:
    """An adapted model that replaces ICL or FT."""

    name: str
    adapted: AdaptedModel
    prompted: PromptedSide | None
    """None for changed weights."""
    tokens: DemonstrationTokens | None
    """Demonstration tokens that can be ranked; None without a ranking."""
    pairs: tuple[ControlPair, ...]

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures of its controls and its answers, for one group of queries."""
        recording = _recording(
            recordings_for(experiment.lm.anatomy, 1),
            prompted=self.prompted is not None,
            ranked=self.tokens is not None,
        )
        readings = self.adapted.read_group(experiment.queries, indices, recording, experiment.config.probe)
        if self.prompted is not None:
            side = self.prompted.side(readings)
        else:
            side = trained_side(self.adapted, readings, zsl, self.tokens, experiment.config.kendall_scale)
        measures: dict[str, Tensor] = {}
        for pair in self.pairs:
            other = sides[pair.beside]
            first, second = (side, other) if pair.place == "first" else (other, side)
            values = compute_measures(zsl, first, second, moved_by=sides["icl"].trace)
            measures |= _control_measures(pair.control, values)
        return measures, {self.name: readings.log_probabilities.double().cpu()}


@dataclass(frozen=True)
class RandomDirection:
    """FT's side with all its changes replaced by noise of the same size; needs no forward pass."""

    seed: int

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures for one group of queries, and no answers."""
        noise = random_side(zsl, sides["ft"], self.seed)
        measures = _control_measures("random", compute_measures(zsl, sides["icl"], noise, answers=False))
        if experiment.config.preset == "dai2023":
            # The random control of the paper's released code, for a comparison with its numbers.
            measures |= _control_measures(RELEASED, released_random_side(zsl, sides["icl"], self.seed))
        return measures, {}


@dataclass(frozen=True)
class RandomUpdates:
    """FT's weight changes replaced by noise of the same size, averaged over several draws.

    A single draw is too noisy: in a small model, draws differ by more than most measures differ between learners.
    """

    draws: tuple[StandIn, ...]

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures averaged over draws, and each draw's answers, for one group of queries."""
        by_draw: dict[str, list[Tensor]] = {}
        answers: dict[str, Tensor] = {}
        for draw in self.draws:
            measures, draw_answers = draw.read(experiment, indices, zsl, sides)
            answers |= draw_answers
            for name, value in measures.items():
                by_draw.setdefault(name, []).append(value)
        return {name: torch.stack(values).nanmean(dim=0) for name, values in by_draw.items()}, answers


@dataclass(frozen=True)
class UntrainedComparison:
    """ICL compared with FT in an untrained model."""

    name: str
    experiment: Experiment[ComparisonConfig]
    """The experiment with the untrained model."""
    zsl: AdaptedModel
    icl: PromptedSide
    ft: AdaptedModel
    tokens: DemonstrationTokens

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures and answers of the untrained model for one group of queries; ignores the trained model's."""
        recordings = recordings_for(self.experiment.lm.anatomy, self.tokens.n)
        queries, probe = self.experiment.queries, self.experiment.config.probe
        before = self.zsl.read_group(queries, indices, recordings.zsl, probe)
        prompted = self.icl.adapted.read_group(queries, indices, recordings.context, probe)
        tuned = self.ft.read_group(queries, indices, recordings.weights, probe)
        side = trained_side(self.ft, tuned, before, self.tokens, self.experiment.config.kendall_scale)
        measures = compute_measures(before, self.icl.side(prompted), side)
        answers = {"zsl": before, "icl": prompted, "ft": tuned}
        return _control_measures(self.name, measures), {
            f"{self.name}.{learner}": readings.log_probabilities.double().cpu() for learner, readings in answers.items()
        }


@dataclass(frozen=True)
class PreparedControls:
    """All controls of one seed, ready to read."""

    controls: tuple[ReadyControl, ...]
    rates: dict[str, float]
    """Learning rates chosen for stand-ins that have their own."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


RELEASED = "random_released"
"""SimAOU with the random update of the paper's released code, read along with the control `random`."""

_DRAW = "#"


def draw_name(control: str, number: int) -> str:
    """Name of one draw's answers; that of the first draw is the control's."""
    return control if number == 0 else f"{control}{_DRAW}{number + 1}"


def control_of_draw(name: str) -> str:
    """The control that a draw belongs to, see `draw_name`."""
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
    """Make all controls that the settings name, for one seed.

    A control that cannot be made is left out, with a note that gives the reason.

    Args:
        experiment: Model, task and settings.
        drawn: The seed's demonstrations.
        icl: The prompted model.
        ft: The finetuned model.
        rate: Learning rate of `ft`, used to train all stand-ins for FT that do not search for a rate of their own.
        known: Control -> learning rate that an earlier seed chose for it. A control that trains at a rate of its own
            and is not listed searches for one.
        report: Called twice for each control, with its name and a flag: False before it is made, True afterwards, also
            if it could not be made.

    Returns:
        The controls, the learning rates that were chosen for them, the trials of these searches, and the notes.
    """
    builder = ControlBuilder(experiment, drawn, icl, ft, rate, known)
    controls: list[ReadyControl] = []
    for name in experiment.config.controls:
        report(name, False)
        try:
            controls += CONTROLS[name].make(builder)
        except DualformError as error:
            # The comparison is still valid without this control.
            builder.notes.append(f"Control {name} was left out for seed {drawn.demonstrations.seed}: {error}")
        report(name, True)
    return PreparedControls(tuple(controls), builder.rates, tuple(builder.trials), tuple(builder.notes))


class ControlBuilder:
    """Makes the stand-ins of one seed.

    Args:
        experiment: Model, task and settings.
        drawn: The seed's demonstrations.
        icl: The prompted model.
        ft: The finetuned model.
        rate: FT's learning rate.
        known: Learning rates that an earlier seed chose for stand-ins with a rate of their own.
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
        """Warnings about the controls, for the result."""

    def prompted(
        self,
        control: ControlFacts,
        encoded: EncodedDemonstrations,
        *,
        places: Sequence[int] | None = None,
        ranked: bool = True,
    ) -> StandIn:
        """The model prompted with other demonstrations than ICL.

        Args:
            control: The control that the stand-in is made for.
            encoded: The demonstrations of the prompt.
            places: For the same demonstrations in another order, see `DemonstrationTokens.of`.
            ranked: Whether its tokens are those of the other side, so that both sides can rank them.
        """
        adapted = InContext(control.name).adapt(self.experiment.lm, encoded)
        content = torch.tensor(encoded.content, device=self.experiment.lm.device)
        tokens = self._tokens(encoded, places) if ranked else None
        return StandIn(control.name, adapted, PromptedSide.of(adapted, content, tokens), tokens, _pairs(control))

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
            control: The control that the stand-in is made for.
            adapted: The model.
            encoded: The demonstrations that it was trained on; None for the seed's.
            places: See `prompted`.
            ranked: See `prompted`.
        """
        tokens = self._tokens(encoded or self.encoded, places) if ranked else None
        return StandIn(control.name, adapted, None, tokens, _pairs(control))

    def filler(self, control: ControlFacts) -> StandIn:
        """The query at the same positions as under ICL, after a prefix of separators only."""
        prefix = self.experiment.encoder.filler(len(self.encoded.prefix))
        adapted = ZeroShot(prefix, control.name).adapt(self.experiment.lm, self.encoded)
        content = torch.arange(len(self.experiment.encoder.opening), len(prefix), device=self.experiment.lm.device)
        return StandIn(control.name, adapted, PromptedSide.of(adapted, content, None), None, _pairs(control))

    def random_direction(self) -> RandomDirection:
        """FT's readings with all their changes replaced by noise."""
        return RandomDirection(self.demonstrations.seed)

    def random_updates(self, name: str, draws: int) -> RandomUpdates:
        """FT's weight changes replaced by noise, once for each draw."""
        control, seed = CONTROLS[name], self.demonstrations.seed
        opening, tokens = self.experiment.encoder.opening, self._tokens(self.encoded)
        stand_ins = []
        for number in range(draws):
            noise = random_update(self.ft, self.experiment.lm, opening, stream_seed(name, seed, number))
            stand_ins.append(StandIn(draw_name(name, number), noise, None, tokens, _pairs(control)))
        return RandomUpdates(tuple(stand_ins))

    def other_task(self) -> EncodedDemonstrations:
        """Demonstrations of the task that the settings name, else of `length_task`."""
        config, lm = self.experiment.config, self.experiment.lm
        if config.other_task is None:
            task, demonstrations = length_task(self.demonstrations, self.experiment.task)
        else:
            task = load_task(config.other_task, data_dir=config.data_dir)
            k = min(self.demonstrations.k_effective, len(task.demonstration_pool))
            demonstrations = draw_demonstrations(task, k, self.demonstrations.seed)
        encoder = encoder_for(config, lm, task)
        demonstrations = encoder.truncate_to_context(demonstrations, self.experiment.queries, self.experiment.context)
        return encoder.demonstrations(demonstrations)

    def other_demonstrations(self) -> DemonstrationSet:
        """Other demonstrations of the same task; they overlap with the seed's only if the train split is too small."""
        experiment, seed = self.experiment, (self.demonstrations.seed + _OTHER_DRAW) % 2**32
        used_rows = set(self.demonstrations.rows)
        unused = tuple(example for example in experiment.task.demonstration_pool if example.row not in used_rows)
        try:
            task = replace(experiment.task, splits={**experiment.task.splits, "train": unused})
            others = replace(experiment, task=task).draw(seed)
        except TaskError:
            self.notes.append(
                "The train split is too small for a second, disjoint set of demonstrations, so the control "
                "other_demonstrations shares some with FT."
            )
            others = experiment.draw(seed)
        # If these are shorter, more of them fit than FT had.
        return experiment.encode(others.demonstrations.truncated(self.demonstrations.k_effective))

    def finetuned(self, name: str, encoded: EncodedDemonstrations) -> AdaptedModel:
        """The model finetuned on the given demonstrations at FT's learning rate.

        If training diverges at that rate, lower rates of the grid are tried, highest first, and a note gives the rate
        used.

        Args:
            name: Name of the control, for notes and messages.
            encoded: The demonstrations to train on.

        Raises:
            TrainingError: Training diverged at every rate.
        """
        search = self._search(name, lambda rate: self._finetune(rate, self.experiment.lm, encoded), self.rate)
        self._note_lower_rate(name, search)
        return search.best

    def searched(self, name: str, method: Callable[[float], Method]) -> AdaptedModel:
        """A model trained on the seed's demonstrations by another method, at a learning rate of its own.

        Args:
            name: Name of the control.
            method: Makes the training method for a learning rate.
        """

        def adapt(rate: float) -> AdaptedModel:
            adapted = method(rate).adapt(self.experiment.lm, self.encoded)
            assert isinstance(adapted, AdaptedModel)
            return adapted

        known = None if self.experiment.config.tune == "each" else self.known.get(name)
        search = self._search(name, adapt, known)
        self.rates[name] = search.learning_rate
        self.trials += [trial.model_copy(update={"learner": name}) for trial in search.trials]
        return search.best

    def at_every_rate(self) -> Iterator[StandIn]:
        """FT at each rate of the grid, lowest first, until training diverges."""
        for rate in sorted(self.experiment.config.rates):
            name = f"{RATE}{rate:g}"
            try:
                adapted = self.ft if rate == self.rate else self._finetune(rate, self.experiment.lm, self.encoded)
                # Finite weights may still give non-finite answers.
                answer_log_probabilities(adapted, self.experiment.lm, self.experiment.queries[:TRIAL_QUERIES])
            except NumericalError:
                self.notes.append(
                    f"Seed {self.demonstrations.seed}: FT diverged at rate {rate:g}; the sweep stops there."
                )
                return
            yield StandIn(name, adapted, None, self._tokens(self.encoded), (ControlPair(name, "icl", "second"),))

    def other_model(self, name: str, *, keep_embeddings: bool) -> UntrainedComparison:
        """Zero-shot, ICL and FT of an untrained model."""
        seed, encoded = self.demonstrations.seed, self.encoded
        lm = untrained(self.experiment.lm, seed=seed, keep_embeddings=keep_embeddings)
        experiment = replace(self.experiment, lm=lm)
        zsl = ZeroShot(self.experiment.encoder.opening).adapt(lm, encoded)
        icl = InContext().adapt(lm, encoded)
        search = train_at_best_rate(
            lambda rate: self._finetune(rate, lm, encoded),
            self.experiment.config.rates,
            experiment,
            name=f"ft of the {name} model",
            seed=seed,
            known=self.rate,
        )
        self._note_lower_rate(name, search)
        content = torch.tensor(encoded.content, device=lm.device)
        tokens = DemonstrationTokens.of(encoded, lm.device)
        return UntrainedComparison(name, experiment, zsl, PromptedSide.of(icl, content, tokens), search.best, tokens)

    def _tokens(self, encoded: EncodedDemonstrations, places: Sequence[int] | None = None) -> DemonstrationTokens:
        return DemonstrationTokens.of(encoded, self.experiment.lm.device, places)

    def _finetune(self, rate: float, lm: LanguageModel, encoded: EncodedDemonstrations) -> AdaptedModel:
        return Finetuned(self.experiment.encoder.opening, rate, self.experiment.config.loss_on).adapt(lm, encoded)

    def _note_lower_rate(self, name: str, search: RateSearch) -> None:
        if search.learning_rate != self.rate:
            self.notes.append(
                f"Seed {self.demonstrations.seed}: the control {name} diverged at FT's rate ({self.rate:g}); it was "
                f"trained at {search.learning_rate:g}."
            )

    def _search(self, name: str, adapt: Callable[[float], AdaptedModel], known: float | None) -> RateSearch:
        return train_at_best_rate(
            adapt, self.experiment.config.rates, self.experiment, name=name, seed=self.demonstrations.seed, known=known
        )


def _pairs(control: ControlFacts) -> tuple[ControlPair, ...]:
    """The comparisons of a control and of its companions."""
    facts = (control, *getattr(control, "companions", ()))
    return tuple(ControlPair(each.name, each.beside, each.place) for each in facts)


RATE = "rate:"
"""Prefix of the names of the controls of `ControlBuilder.at_every_rate`; the learning rate follows."""


def length_task(demonstrations: Demonstrations, task: Task) -> tuple[Task, Demonstrations]:
    """Another task with the same texts in the same order: whether a text is long or short.

    Returns:
        The task and its demonstrations.
    """
    fields = task.template.fields
    lengths = [sum(len(example.fields[name].split()) for name in fields) for example in demonstrations.examples]
    middle = sorted(lengths)[len(lengths) // 2]
    examples = tuple(
        replace(example, label=int(length >= middle), choices=None)
        for example, length in zip(demonstrations.examples, lengths, strict=True)
    )
    text = "\n".join(f"{{{name}}}" for name in fields)
    other = Task(
        name="length",
        source=f"the texts of {task.name}",
        splits={"train": examples, "selection": examples, "report": examples},
        template=Template(f"Text: {text}\nLength:", task.template.separator),
        label_words=("short", "long"),
        label_names=None,
        selection_split="selection",
        report_split="report",
    )
    labels = tuple(example.label for example in examples)
    return other, replace(demonstrations, task=other.name, examples=examples, labels=labels, label_rule="true")


def _recording(recordings: Recordings, *, prompted: bool, ranked: bool) -> Recording:
    if not prompted:
        return recordings.weights
    return replace(recordings.context, demo_scores=ranked, mixed=False)


def _control_measures(control: str, measures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Measures under the control's name, without companion numbers except the length of the update in a rate sweep."""
    kept = {name: value for name, value in measures.items() if "." not in name and MEASURES[name].in_controls}
    # Average over heads: the heads of all controls would take most of a run's memory and are not reported.
    kept = {name: value.nanmean(dim=2) if value.dim() > 2 else value for name, value in kept.items()}
    if control.startswith(RATE) and "sim_aou_raw.norm_ratio" in measures:
        kept["update_norm"] = measures["sim_aou_raw.norm_ratio"]
    return {f"control/{control}/{name}": value for name, value in kept.items()}

"""dualform's own controls: what each stands in for, how it is made, what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from dualform.errors import TaskError
from dualform.models.cost.work import FINDING_BLOCKS, Work, encode
from dualform.studies.controls import Control, ControlFacts, ControlPlan, ReadyControl

if TYPE_CHECKING:
    from dualform.learners.adapted import Method
    from dualform.learners.finetuned import Steps, TrainedPart
    from dualform.models.reading.language_model import LanguageModel
    from dualform.studies.comparison.config import ComparisonConfig
    from dualform.studies.comparison.controls import ControlBuilder
    from dualform.studies.comparison.work import ControlWork
    from dualform.studies.experiment import Experiment

RANDOM_UPDATES = 5
"""Draws of noise that the control `random_update` averages over."""
_DIVERGES = "the control of rates stops where training diverges"


@dataclass(frozen=True, kw_only=True)
class RandomDirectionControl(Control):
    """A random change of FT's size, made from FT's readings."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """No model at all."""
        yield builder.random_direction()

    def work(self, about: ControlWork) -> ControlPlan:
        """No forward."""
        return ControlPlan(reading=about.measuring())


@dataclass(frozen=True, kw_only=True)
class RandomUpdateControl(Control):
    """Random changes of FT's weights."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """As many models as there are draws."""
        yield builder.random_updates(self.name, RANDOM_UPDATES)

    def work(self, about: ControlWork) -> ControlPlan:
        """Each draw is read."""
        return ControlPlan(encode(about.opening) * RANDOM_UPDATES, about.reading(about.opening) * RANDOM_UPDATES)

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One a draw."""
        return RANDOM_UPDATES


@dataclass(frozen=True, kw_only=True)
class FillerControl(Control):
    """The query at ICL's positions, behind nothing but separators."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """Zero-shot behind a prefix that says nothing."""
        yield builder.filler(self)

    def work(self, about: ControlWork) -> ControlPlan:
        """As ICL."""
        return about.prompted(len(about.drawn.encoded.prefix))


@dataclass(frozen=True, kw_only=True)
class RelabelledControl(Control):
    """ICL on the same demonstrations with other labels."""

    rule: Literal["shuffled", "random"]

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """Raises where all demonstrations show the same label."""
        otherwise = builder.demonstrations.labelled_otherwise(builder.experiment.task, self.rule)
        if otherwise is None:
            raise TaskError("the demonstrations all show the same label, so there are no other ones to deal")
        yield builder.prompted(self, builder.experiment.encode(otherwise).encoded)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """As ICL."""
        otherwise = about.drawn.demonstrations.labelled_otherwise(about.experiment.task, self.rule)
        return None if otherwise is None else about.prompted(len(about.experiment.encode(otherwise).encoded.prefix))


@dataclass(frozen=True, kw_only=True)
class OtherTaskControl(Control):
    """ICL behind the demonstrations of another task."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """Their tokens are not FT's, so none is ranked beside FT's."""
        yield builder.prompted(self, builder.other_task(), ranked=False)

    def prepare(self, config: ComparisonConfig) -> None:
        """A misspelt name is reported before any work is done."""
        from dualform.tasks.sources import load_task

        if config.other_task is not None:
            load_task(config.other_task, data_dir=config.data_dir)

    def work(self, about: ControlWork) -> ControlPlan:
        """As ICL."""
        return about.prompted(len(about.builder.other_task().prefix))


@dataclass(frozen=True, kw_only=True)
class OtherDemonstrationsControl(Control):
    """FT on other demonstrations of the same task."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """At FT's rate."""
        yield builder.trained(self, builder.finetuned(self.name, builder.others().encoded), ranked=False)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """As FT at a known rate."""
        try:
            return about.trained(about.builder.others().encoded)
        except TaskError:
            return None

    def kept_changes(self, config: ComparisonConfig) -> int:
        """FT's."""
        return 1


@dataclass(frozen=True, kw_only=True)
class OtherOrderControl(Control):
    """One side beside itself, with the demonstrations in another order."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """Raises where there is no other order."""
        *_, again = builder.demonstrations.in_orders(2)
        if again.rows == builder.demonstrations.rows:
            raise TaskError("one demonstration has no other order")
        encoded = builder.experiment.encode(again).encoded
        places = [again.rows.index(row) for row in builder.demonstrations.rows]
        if self.beside == "icl":
            yield builder.prompted(self, encoded, places=places)
        else:
            yield builder.trained(self, builder.finetuned(self.name, encoded), encoded, places=places)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """As the side."""
        *_, again = about.drawn.demonstrations.in_orders(2)
        if again.rows == about.drawn.demonstrations.rows:
            return None
        encoded = about.experiment.encode(again).encoded
        return about.prompted(len(encoded.prefix)) if self.beside == "icl" else about.trained(encoded)

    def kept_changes(self, config: ComparisonConfig) -> int:
        """FT's."""
        return int(self.beside == "ft")


@dataclass(frozen=True, kw_only=True)
class UntrainedControl(Control):
    """ICL and FT of a model that has learned nothing."""

    keep_embeddings: bool
    moves_states: bool = False

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """A whole model."""
        yield builder.other_model(self.name, keep_embeddings=self.keep_embeddings)

    def work(self, about: ControlWork) -> ControlPlan:
        """All three learners, adapted and read."""
        return about.three_learners()

    def kept_models(self) -> int:
        """Kept until it has read."""
        return 1


@dataclass(frozen=True, kw_only=True)
class VariantControl(Control):
    """Another way of finetuning on the same demonstrations, at a rate of its own."""

    part: TrainedPart = "key_value"
    """What is trained."""
    steps: Steps = "sequential"
    """One step a demonstration, or one for all."""
    kept: bool = True
    """Its changes are as large as FT's, and are counted in memory."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """At the rate that a search of the grid finds."""
        yield builder.trained(
            self, builder.searched(self.name, partial(self.method, builder.experiment)), builder.encoded
        )

    def method(self, experiment: Experiment[ComparisonConfig], rate: float) -> Method:
        """The way of training, at a rate."""
        from dualform.learners.finetuned import Finetuned

        loss_on = experiment.config.loss_on
        return Finetuned(experiment.encoder.opening, rate, loss_on, part=self.part, steps=self.steps, name=self.name)

    def check(self, lm: LanguageModel) -> None:
        """The weights that it trains must be known."""
        from dualform.models.editing.edit import mlp_rows, value_rows

        if self.part == "value_one_layer":
            value_rows(lm.model, lm.anatomy, len(lm.anatomy.layers) // 2)
        elif self.part == "mlp":
            mlp_rows(lm.model, lm.anatomy)

    def work(self, about: ControlWork) -> ControlPlan:
        """A search, or a known rate."""
        training = self.method(about.experiment, 0.0).work(about.experiment.lm.shape, about.drawn.encoded)
        return about.searched(training, pairs=1 + len(self.companions))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """FT's."""
        return int(self.kept)


@dataclass(frozen=True, kw_only=True)
class LayerCausalControl(VariantControl):
    """Each layer trained on its own output alone."""

    def method(self, experiment: Experiment[ComparisonConfig], rate: float) -> Method:
        """Layer-causal descent."""
        from dualform.learners.layer_causal import LayerCausal

        return LayerCausal(experiment.encoder.opening, rate, experiment.config.loss_on)

    def check(self, lm: LanguageModel) -> None:
        """Blocks must be found."""
        from dualform.models.structure.blocks import find_blocks

        find_blocks(lm.model, lm.anatomy)

    def check_forwards(self) -> int:
        """The blocks are found."""
        return FINDING_BLOCKS


@dataclass(frozen=True, kw_only=True)
class RatesControl(Control):
    """FT at every rate of the grid, reported as a sweep."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """As many models as there are rates, up to the one where training diverges."""
        yield from builder.sweep()

    def work(self, about: ControlWork) -> ControlPlan:
        """All rates but FT's own are trained."""
        rates = len(about.experiment.config.rates)
        one = about.few() + about.reading(about.opening)
        making = about.training(about.drawn.encoded) * (rates - 1) + one * rates
        return ControlPlan(making, Work(), one, (_DIVERGES,))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One a rate."""
        return len(config.rates)


RANDOM = RandomDirectionControl(
    name="random",
    title="random direction",
    meaning="A random change of FT's size, with mean zero, in FT's place.",
    kind="floor",
    companions=(
        ControlFacts(
            name="random_released",
            title="random update, as released",
            meaning="Uniform random numbers in place of FT's difference of normalised outputs, as in the paper's "
            "released code.",
            kind="comparison",
            same_quantity=False,
        ),
    ),
)
RANDOM_UPDATE = RandomUpdateControl(
    name="random_update",
    title="random weight change",
    meaning="Random changes of the key and value weights, of the size of FT's, averaged over five draws.",
    kind="floor",
)
POSITION_SHIFT = FillerControl(
    name="position_shift",
    title="position shift",
    meaning="Zero-shot behind a prefix that says nothing and is as long as the prompt, in ICL's place.",
    kind="floor",
    beside="ft",
    place="first",
)
SHUFFLED_LABELS = RelabelledControl(
    name="shuffled_labels",
    title="shuffled labels",
    meaning="ICL on demonstrations whose labels were shuffled.",
    kind="floor",
    beside="ft",
    place="first",
    rule="shuffled",
)
RANDOM_LABELS = RelabelledControl(
    name="random_labels",
    title="random labels",
    meaning="ICL on demonstrations with labels drawn at random.",
    kind="floor",
    beside="ft",
    place="first",
    rule="random",
)
OTHER_DEMONSTRATIONS = OtherDemonstrationsControl(
    name="other_demonstrations",
    title="other demonstrations",
    meaning="FT on other demonstrations of the same task.",
    kind="comparison",
)
OTHER_TASK = OtherTaskControl(
    name="other_task",
    title="another task",
    meaning="ICL behind the demonstrations of another task.",
    kind="floor",
    beside="ft",
    place="first",
)
UNTRAINED = UntrainedControl(
    name="untrained",
    title="untrained model",
    meaning="ICL and FT of the same architecture with all weights as at initialisation.",
    kind="floor",
    answers=("untrained.zsl", "untrained.icl", "untrained.ft"),
    keep_embeddings=False,
)
EMBEDDINGS = UntrainedControl(
    name="embeddings",
    title="only embeddings trained",
    meaning="The untrained model with the trained model's embeddings.",
    kind="floor",
    answers=("embeddings.zsl", "embeddings.icl", "embeddings.ft"),
    keep_embeddings=True,
)
ICL_ORDER = OtherOrderControl(
    name="icl_order",
    title="ICL, other order",
    meaning="ICL beside itself with the demonstrations in another order.",
    kind="ceiling",
    beside="icl",
)
FT_ORDER = OtherOrderControl(
    name="ft_order",
    title="FT, other order",
    meaning="FT beside itself with the demonstrations in another order.",
    kind="ceiling",
    beside="ft",
)
BATCH = VariantControl(
    name="batch",
    title="FT in one step",
    meaning="FT as a single step on all demonstrations at once.",
    kind="comparison",
    steps="batch",
    companions=(
        ControlFacts(
            name="batch_sequential",
            title="FT: one by one, one step",
            meaning="FT one demonstration at a time beside FT in a single step.",
            kind="comparison",
            beside="ft",
            answers=("zsl", "ft", "batch"),
            against_itself=True,
        ),
    ),
)
LCGD = LayerCausalControl(
    name="lcgd",
    title="layer-causal descent",
    meaning="Each layer trained on its own output alone, in FT's place.",
    kind="comparison",
)
VALUE_ONE_LAYER = VariantControl(
    name="value_one_layer",
    title="FT of one layer's values",
    meaning="FT of the value weights of the middle layer alone, in FT's place.",
    kind="comparison",
    part="value_one_layer",
)
MLP = VariantControl(
    name="mlp",
    title="FT of the MLPs",
    meaning="FT of the MLPs' weights alone, in FT's place.",
    kind="comparison",
    part="mlp",
    kept=False,
)
RATES = RatesControl(
    name="rates",
    title="FT at other rates",
    meaning="FT at every learning rate of the grid, reported as a sweep.",
    kind=None,
)

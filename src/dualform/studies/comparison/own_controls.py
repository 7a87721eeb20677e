"""dualform's own controls: what each replaces, how it is made, and what it costs."""

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
"""Number of draws of noise that the control `random_update` averages over."""
_DIVERGES = "the control rates stops when training diverges"


@dataclass(frozen=True, kw_only=True)
class RandomDirectionControl(Control):
    """A random change of FT's size, made from FT's readings."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One control without a model of its own."""
        yield builder.random_direction()

    def work(self, about: ControlWork) -> ControlPlan:
        """The measures only; no forward pass."""
        return ControlPlan(reading=about.measuring())


@dataclass(frozen=True, kw_only=True)
class RandomUpdateControl(Control):
    """Random changes of FT's weights."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One control with a model for each draw."""
        yield builder.random_updates(self.name, RANDOM_UPDATES)

    def work(self, about: ControlWork) -> ControlPlan:
        """Encoding the opening and reading the queries, for each draw."""
        return ControlPlan(encode(about.opening) * RANDOM_UPDATES, about.reading(about.opening) * RANDOM_UPDATES)

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One for each draw."""
        return RANDOM_UPDATES


@dataclass(frozen=True, kw_only=True)
class FillerControl(Control):
    """The query at the same positions as under ICL, after a prefix of separators only."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in."""
        yield builder.filler(self)

    def work(self, about: ControlWork) -> ControlPlan:
        """The work of ICL."""
        return about.prompted(len(about.drawn.encoded.prefix))


@dataclass(frozen=True, kw_only=True)
class RelabelledControl(Control):
    """ICL on the same demonstrations with other labels."""

    rule: Literal["shuffled", "random"]

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in; raises `TaskError` if all demonstrations have the same label."""
        relabelled = builder.demonstrations.labelled_otherwise(builder.experiment.task, self.rule)
        if relabelled is None:
            raise TaskError("all demonstrations have the same label, so shuffling changes nothing")
        yield builder.prompted(self, builder.experiment.encode(relabelled).encoded)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """The work of ICL; None if the control cannot be made."""
        relabelled = about.drawn.demonstrations.labelled_otherwise(about.experiment.task, self.rule)
        return None if relabelled is None else about.prompted(len(about.experiment.encode(relabelled).encoded.prefix))


@dataclass(frozen=True, kw_only=True)
class OtherTaskControl(Control):
    """ICL with the demonstrations of another task."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in, without ranks, because its demonstration tokens are not FT's."""
        yield builder.prompted(self, builder.other_task(), ranked=False)

    def prepare(self, config: ComparisonConfig) -> None:
        """Load the other task, so that a misspelt name is reported before any work is done."""
        from dualform.tasks.sources import load_task

        if config.other_task is not None:
            load_task(config.other_task, data_dir=config.data_dir)

    def work(self, about: ControlWork) -> ControlPlan:
        """The work of ICL."""
        return about.prompted(len(about.builder.other_task().prefix))


@dataclass(frozen=True, kw_only=True)
class OtherDemonstrationsControl(Control):
    """FT on other demonstrations of the same task."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in, trained at FT's rate."""
        encoded = builder.other_demonstrations().encoded
        yield builder.trained(self, builder.finetuned(self.name, encoded), ranked=False)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """The work of FT at a known rate; None if there are no other demonstrations."""
        try:
            return about.trained(about.builder.other_demonstrations().encoded)
        except TaskError:
            return None

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One, as large as FT's."""
        return 1


@dataclass(frozen=True, kw_only=True)
class OtherOrderControl(Control):
    """One side compared with itself under another order of the demonstrations."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in; raises `TaskError` if there is no other order."""
        *_, reordered = builder.demonstrations.in_orders(2)
        if reordered.rows == builder.demonstrations.rows:
            raise TaskError("one demonstration has no other order")
        encoded = builder.experiment.encode(reordered).encoded
        places = [reordered.rows.index(row) for row in builder.demonstrations.rows]
        if self.beside == "icl":
            yield builder.prompted(self, encoded, places=places)
        else:
            yield builder.trained(self, builder.finetuned(self.name, encoded), encoded, places=places)

    def work(self, about: ControlWork) -> ControlPlan | None:
        """The work of the side that is repeated; None if there is no other order."""
        *_, reordered = about.drawn.demonstrations.in_orders(2)
        if reordered.rows == about.drawn.demonstrations.rows:
            return None
        encoded = about.experiment.encode(reordered).encoded
        return about.prompted(len(encoded.prefix)) if self.beside == "icl" else about.trained(encoded)

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One for FT, as large as FT's."""
        return int(self.beside == "ft")


@dataclass(frozen=True, kw_only=True)
class UntrainedControl(Control):
    """ICL and FT of an untrained model."""

    keep_embeddings: bool
    moves_states: bool = False

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One control with a model of its own."""
        yield builder.other_model(self.name, keep_embeddings=self.keep_embeddings)

    def work(self, about: ControlWork) -> ControlPlan:
        """The work of zero-shot, ICL and FT."""
        return about.three_learners()

    def kept_models(self) -> int:
        """The untrained model."""
        return 1


@dataclass(frozen=True, kw_only=True)
class VariantControl(Control):
    """Another way of finetuning on the same demonstrations, at a learning rate of its own."""

    part: TrainedPart = "key_value"
    """The weights that are trained."""
    steps: Steps = "sequential"
    """One step for each demonstration, or one for all."""
    kept: bool = True
    """Whether its weight changes are as large as FT's and count in the estimate of memory."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in, trained at the best rate of the grid."""
        yield builder.trained(
            self, builder.searched(self.name, partial(self.method, builder.experiment)), builder.encoded
        )

    def method(self, experiment: Experiment[ComparisonConfig], rate: float) -> Method:
        """The training method at a learning rate."""
        from dualform.learners.finetuned import Finetuned

        loss_on = experiment.config.loss_on
        return Finetuned(experiment.encoder.opening, rate, loss_on, part=self.part, steps=self.steps, name=self.name)

    def check(self, lm: LanguageModel) -> None:
        """Check that the weights to be trained can be located."""
        from dualform.models.editing.edit import mlp_rows, value_rows

        if self.part == "value_one_layer":
            value_rows(lm.model, lm.anatomy, len(lm.anatomy.layers) // 2)
        elif self.part == "mlp":
            mlp_rows(lm.model, lm.anatomy)

    def work(self, about: ControlWork) -> ControlPlan:
        """The work of training, with the learning rate search if there is one."""
        training = self.method(about.experiment, 0.0).work(about.experiment.lm.shape, about.drawn.encoded)
        return about.searched(training, pairs=1 + len(self.companions))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One, unless its changes are small."""
        return int(self.kept)


@dataclass(frozen=True, kw_only=True)
class LayerCausalControl(VariantControl):
    """Each layer trained on its own output only."""

    def method(self, experiment: Experiment[ComparisonConfig], rate: float) -> Method:
        """Layer-causal descent."""
        from dualform.learners.layer_causal import LayerCausal

        return LayerCausal(experiment.encoder.opening, rate, experiment.config.loss_on)

    def check(self, lm: LanguageModel) -> None:
        """Check that the model's blocks can be located."""
        from dualform.models.structure.blocks import find_blocks

        find_blocks(lm.model, lm.anatomy)

    def check_forwards(self) -> int:
        """The forward passes that locate the blocks."""
        return FINDING_BLOCKS


@dataclass(frozen=True, kw_only=True)
class RatesControl(Control):
    """FT at every learning rate of the grid, each rate reported as a control of its own."""

    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """One stand-in for each learning rate, until training diverges."""
        yield from builder.at_every_rate()

    def work(self, about: ControlWork) -> ControlPlan:
        """Training at each rate except FT's own, and reading at each rate."""
        rates = len(about.experiment.config.rates)
        each = about.few() + about.reading(about.opening)
        making = about.training(about.drawn.encoded) * (rates - 1) + each * rates
        return ControlPlan(making, Work(), each, (_DIVERGES,))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """One for each learning rate."""
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
    meaning="Zero-shot after a prefix of separators that is as long as the prompt, in ICL's place.",
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
    meaning="ICL with the demonstrations of another task.",
    kind="floor",
    beside="ft",
    place="first",
)
UNTRAINED = UntrainedControl(
    name="untrained",
    title="untrained model",
    meaning="ICL and FT of the same architecture with randomly initialised weights.",
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
    meaning="ICL compared with ICL under another order of the demonstrations.",
    kind="ceiling",
    beside="icl",
)
FT_ORDER = OtherOrderControl(
    name="ft_order",
    title="FT, other order",
    meaning="FT compared with FT under another order of the demonstrations.",
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
            meaning="FT one demonstration at a time compared with FT in a single step.",
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
    meaning="Each layer trained on its own output only, in FT's place.",
    kind="comparison",
)
VALUE_ONE_LAYER = VariantControl(
    name="value_one_layer",
    title="FT of one layer's values",
    meaning="Finetuning only the value weights of the middle layer, in FT's place.",
    kind="comparison",
    part="value_one_layer",
)
MLP = VariantControl(
    name="mlp",
    title="FT of the MLPs",
    meaning="Finetuning only the MLPs' weights, in FT's place.",
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

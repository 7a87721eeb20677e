"""Settings of a folding study, validated before a model is loaded."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from dualform.configuration import MOST_TEXTS
from dualform.learners.options import FEWEST_TEXTS
from dualform.option import FOLDING, Option
from dualform.studies.fold_settings import IN_WEIGHTS, FoldMethod, FoldSettings
from dualform.studies.settings import OneModelConfig
from dualform.studies.study import StudyInputs

Axis = Literal["method", "k", "texts", "strength", "layers", "source"]
AXES: tuple[Axis, ...] = get_args(Axis)
LayerSet = Literal["all", "first half", "last half", "first quarter", "last quarter", "middle half"]
Source = Literal["train", "generated"]


@dataclass(frozen=True)
class FoldVariant:
    """A fold: its number of demonstrations and its settings."""

    k: int
    """Number of demonstrations."""
    settings: FoldSettings


@dataclass(frozen=True)
class PlannedPoint:
    """A fold as a point on an axis."""

    axis: Axis
    value: str
    fold: FoldVariant


class FoldingConfig(OneModelConfig):
    """The folds that are tried. Each axis varies one setting of the default fold."""

    without_options: ClassVar[frozenset[str]] = frozenset(
        {"fold.method", "fold.layers", "label_rule", "loss_on", "probe", "quantize"}
    )

    axes: Annotated[tuple[Axis, ...], Option(FOLDING)] = AXES
    """What is varied, out of method,k,texts,strength,layers,source."""
    methods: Annotated[tuple[FoldMethod, ...], Option(FOLDING)] = get_args(FoldMethod)
    """Methods on the axis `method`. Each gets the default fold's texts and uses them as published."""
    ks: Annotated[tuple[int, ...], Option(FOLDING)] = (4, 8, 16, 32, 64, 128)
    """Numbers of demonstrations on the axis `k`. Demonstrations that do not fit the context are left out of the prompt,
    and numbers larger than the train split are left out of the axis, with a warning."""
    text_counts: Annotated[tuple[int, ...], Option(FOLDING)] = (16, 64, 256, 1024)
    """Numbers of calibration texts on the axis `texts`."""
    strengths: Annotated[tuple[float | Literal["gcv"], ...], Option(FOLDING)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, "gcv")
    """Ridge strengths on the axis `strength`."""
    layer_sets: Annotated[tuple[LayerSet, ...], Option(FOLDING)] = get_args(LayerSet)
    """Sets of layers on the axis `layers`: all, first half, last half, first quarter, last quarter or middle half."""
    sources: Annotated[tuple[Source, ...], Option(FOLDING)] = get_args(Source)
    """Sources of calibration texts on the axis `source`, out of train,generated."""
    transfer: Annotated[tuple[str, ...], Option(FOLDING)] = ()
    """Other tasks whose queries the default fold answers."""
    compose: Annotated[tuple[str, ...], Option(FOLDING)] = ()
    """Other tasks whose default folds are added to that of the study's task."""
    perplexity: Annotated[str | None, Option(FOLDING)] = None
    """File with one passage of plain text per line, on which perplexity is measured before and after folding."""
    perplexity_texts: Annotated[int, Option(FOLDING)] = Field(default=64, ge=1, le=MOST_TEXTS)
    """Largest number of passages used for perplexity."""
    ft: Annotated[bool, Option(FOLDING)] = True
    """Whether to finetune on the same demonstrations too, at the learning rate chosen on the selection split."""
    fold: FoldSettings = FoldSettings()
    """The default fold."""

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.k == 0 or 0 in self.ks:
            problems.append("k 0 leaves nothing to fold: give at least one demonstration")
        if few := [count for count in self.text_counts if count < FEWEST_TEXTS]:
            problems.append(f"text_counts {few} are too few to fold from: give at least {FEWEST_TEXTS}")
        if wrong := [strength for strength in self.strengths if strength != "gcv" and not 0 <= strength < math.inf]:
            problems.append(f"strengths {wrong} must be 0 or more and finite, or gcv")
        lists = ("axes", "methods", "ks", "text_counts", "strengths", "layer_sets", "sources", "transfer", "compose")
        for name in lists:
            given = getattr(self, name)
            if len(set(given)) != len(given):
                problems.append(f"{name} {list(given)} must be different")
        if self.task in (*self.transfer, *self.compose):
            problems.append(f"task {self.task} is the study's own: give other tasks to transfer and compose")
        if self.compose and self.fold.calibration not in get_args(Source):
            problems.append(
                f"calibration {self.fold.calibration} contains texts of this task only, and compose folds other tasks "
                "too: use train or generated"
            )
        if (self.transfer or self.compose) and self.fold.method not in IN_WEIGHTS:
            problems.append(
                f"transfer and compose need a method that changes weights ({', '.join(IN_WEIGHTS)}), and "
                f"{self.fold.method} does not"
            )
        return problems

    def reads(self) -> StudyInputs:
        """The model, the task, the other tasks, the texts of the fold and those for perplexity."""
        perplexity = () if self.perplexity is None else (self.perplexity,)
        return StudyInputs(self.model_names, True, (*self.transfer, *self.compose), (*self.fold.files(), *perplexity))

    @property
    def default(self) -> FoldVariant:
        """The default fold."""
        return FoldVariant(self.k, self.fold)

    def points(self, n_layers: int) -> tuple[PlannedPoint, ...]:
        """All points for a model with `n_layers` layers; the axes `k` and `texts` include the default fold's value."""

        def varied(**change: Any) -> FoldVariant:
            return FoldVariant(self.k, self.fold.model_copy(update=change))

        points: list[PlannedPoint] = []
        for axis in self.axes:
            folds: dict[str, FoldVariant] = {}
            if axis == "method":
                folds = {method: varied(method=method) for method in self.methods}
            elif axis == "k":
                folds = {str(k): FoldVariant(k, self.fold) for k in sorted({*self.ks, self.k})}
            elif axis == "texts":
                folds = {str(n): varied(texts=n) for n in sorted({*self.text_counts, self.fold.texts})}
            elif axis == "strength":
                folds = {str(strength): varied(strength=strength) for strength in self.strengths}
            elif axis == "layers":
                folds = {name: varied(layers=layers_of_set(name, n_layers)) for name in self.layer_sets}
            else:
                folds = {source: varied(calibration=source) for source in self.sources}
            points += [PlannedPoint(axis, value, fold) for value, fold in folds.items()]
        return tuple(points)


def layers_of_set(name: LayerSet, n_layers: int) -> tuple[int, ...] | None:
    """Indices of the layers in a set, at least one; None for all layers."""
    ends = {
        "first half": (0.0, 0.5),
        "last half": (0.5, 1.0),
        "first quarter": (0.0, 0.25),
        "last quarter": (0.75, 1.0),
        "middle half": (0.25, 0.75),
    }
    if name == "all":
        return None
    low, high = ends[name]
    first = min(round(low * n_layers), n_layers - 1)
    return tuple(range(first, max(round(high * n_layers), first + 1)))


def folding_config(model: str, task: str, **settings: Any) -> FoldingConfig:
    """A validated configuration of a folding study; see `StudyConfig.from_settings`."""
    return FoldingConfig.from_settings(model=model, task=task, **settings)

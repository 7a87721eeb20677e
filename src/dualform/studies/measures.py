"""The base class of similarity measures, and their registry.

A measure compares two sides, such as ICL and FT, by their internal activations and their answers. To add one, subclass
`Measure`, write `compute`, and register an instance as an entry point of the group `dualform.measures`: every
comparison then computes it, for ICL and FT and for every control. This module does not load torch, because pages read
the titles of measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dualform.registry import Registry
from dualform.report.measures import MeasureTitle

if TYPE_CHECKING:
    from torch import Tensor

    from dualform.studies.sides import SidePair

Need = Literal["answers", "output", "scores", "ranks", "update"]
"""What both sides must have: answers of their own (random sides have none); attention outputs; attention scores to the
query's own tokens before softmax; weights of the demonstrations' tokens; the weight change in the linear form."""


@dataclass(frozen=True, kw_only=True)
class Measure(MeasureTitle):
    """A measure of two sides."""

    source: str = ""
    """Paper, section and equation, and how this measure departs from it."""
    range: tuple[float, float]
    """Lowest and highest value."""
    chance: str
    """The value for two unrelated sides."""
    needs: tuple[Need, ...] = ()
    """What both sides must have; without it the measure is left out."""
    compares: Literal["changes", "states"] = "changes"
    """`changes`: the two updates. `states`: the two models themselves, so that models which have hardly changed score
    high and an untrained model is no floor."""
    in_controls: bool = True
    """False for a measure that means nothing for controls."""
    heads: Literal["query", "key_value"] = "query"
    """Which heads the third axis runs over, where there is one."""

    def compute(self, pair: SidePair) -> Mapping[str, Tensor]:
        """The measure for one group of queries.

        Args:
            pair: Two sides that meet `needs`, and zero-shot.

        Returns:
            `{name: tensor}` with the axes `example` (of length 1 for a number that all queries share), then `layer` and
            `head` where the measure has them; NaN where it is undefined. A key `name.DETAIL` is reported in the
            measure's details. Empty where there is nothing to compare, and for measures that the study computes itself.
        """
        return {}


MEASURES = Registry("dualform.measures", "measure", Measure)
"""All measures: dualform's own and those of other packages."""

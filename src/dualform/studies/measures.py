"""What a measure of similarity is, and all measures by name.

A measure compares two sides, such as ICL and FT, by what both showed inside and answered. To add one, subclass
`Measure`, write `compute`, and name an instance in an entry point of the group `dualform.measures`: every comparison
then has it, for ICL and FT and for every control. Nothing here loads torch, since pages name measures.
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
"""What both sides must have: answers of their own (made-up sides have none); attention outputs; attention scores to the
query's own tokens before softmax; weights of the demonstrations' tokens; the change of weight in the linear form."""


@dataclass(frozen=True, kw_only=True)
class Measure(MeasureTitle):
    """A measure of two sides."""

    source: str = ""
    """Paper, section and equation, with departures."""
    range: tuple[float, float]
    """Lowest and highest value."""
    chance: str
    """What the number is for two sides that have nothing to do with each other."""
    needs: tuple[Need, ...] = ()
    """What both sides must have; the measure is left out where one of them does not."""
    compares: Literal["changes", "states"] = "changes"
    """`states`: two models that have hardly moved score high, so that untrained models are no floor of it."""
    in_controls: bool = True
    """False where it says nothing of a control."""
    heads: Literal["query", "key_value"] = "query"
    """Whose heads the third axis counts, where there is one."""

    def compute(self, pair: SidePair) -> Mapping[str, Tensor]:
        """The measure for one group of queries.

        Args:
            pair: Two sides, which have all that it needs, and zero-shot.

        Returns:
            `{name: tensor}`, its axes `example` (1 for a number that all queries share), then `layer`, then `head`
            where it has them; NaN where there is no number. `name.SOMETHING` is a companion, reported in its details.
            Empty where there is nothing to compare, and for measures that are not of two sides.
        """
        return {}


MEASURES = Registry("dualform.measures", "measure", Measure)
"""All measures: dualform's own and those of other packages."""

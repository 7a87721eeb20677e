"""The interface of a route: one way to run a model on a shared prefix and many queries."""

from typing import Any, Protocol

from torch import Tensor

from dualform.models.reading.capture import Recording, Trace
from dualform.models.reading.layout import Layout, Query
from dualform.models.structure.anatomy import Anatomy


class EncodedPrefix(Protocol):
    """The prefix that all queries share, encoded once."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        ...

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of each layer, `(kv_head, prefix_pos, d_head)`; empty for an empty prefix."""
        ...


class Route(Protocol):
    """One way to run a model; all routes give the same numbers."""

    name: str
    anatomy: Anatomy

    def encode(self, prefix: tuple[int, ...]) -> Any:
        """Run the prefix once."""
        ...

    def read(
        self, prefix: Any, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits `(scored, vocab)` and hidden states `(scored, d_model)` at `layout.scored_rows`, and the trace."""
        ...

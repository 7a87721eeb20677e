"""What a way of reading a model provides."""

from typing import Any, Protocol

from torch import Tensor

from dualform.models.reading.capture import Recording, Trace
from dualform.models.reading.layout import Layout, Query
from dualform.models.structure.anatomy import Anatomy


class EncodedPrefix(Protocol):
    """What every query of a group reads before its own tokens."""

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        ...

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of each layer, `(kv_head, prefix_pos, d_head)`; empty for an empty prefix."""
        ...


class Route(Protocol):
    """A way through transformers; all ways give the same numbers."""

    name: str
    anatomy: Anatomy

    def encode(self, prefix: tuple[int, ...]) -> Any:
        """Run the prefix once."""
        ...

    def read(
        self, prefix: Any, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits `(scored, vocab)`, hidden states `(scored, d_model)`, trace."""
        ...

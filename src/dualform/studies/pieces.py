"""The smallest parts of a run that are kept when they are finished, and never done twice."""

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Piece:
    """A finished part: tensors, and whatever JSON can say about them."""

    name: str
    """Which part, such as `seed 3`."""
    inputs: str
    """Digest of the weights, texts and labels that it was made from, see `experiment.digest`."""
    tensors: "dict[str, Tensor]"
    about: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The piece as one safetensors file: the tensors, and the rest as JSON in its header."""
        import safetensors.torch

        header = {
            "name": self.name,
            "inputs": self.inputs,
            "about": self.about,
            # The file sorts its tensors by name, and a run that goes on must give the tables of one that never stopped.
            "order": list(self.tensors),
        }
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, metadata={"piece": json.dumps(header)})

    @classmethod
    def from_file(cls, path: str) -> "Piece":
        """Read what `to_bytes` wrote.

        Raises:
            safetensors.SafetensorError: The file is damaged.
            KeyError, TypeError, ValueError: It is no piece.
        """
        import safetensors

        with safetensors.safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["piece"])
            tensors = {name: file.get_tensor(name) for name in header["order"]}
        return cls(header["name"], header["inputs"], tensors, header["about"])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Piece":
        """Read what `to_bytes` wrote, where it is no file.

        Raises:
            safetensors.SafetensorError: The bytes are damaged.
            KeyError, TypeError, ValueError: They are no piece.
        """
        import safetensors.torch

        found = safetensors.torch.load(data)
        # The library gives no metadata of bytes: the header follows its length, which stands in the first eight.
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["piece"])
        return cls(header["name"], header["inputs"], {name: found[name] for name in header["order"]}, header["about"])


class PieceStore(Protocol):
    """Where finished pieces are kept, so that a killed run goes on where it stopped."""

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece of this name finished earlier under the same settings, from the same inputs."""
        ...

    def put(self, piece: Piece) -> None:
        """Keep it."""
        ...


class NoPieceStore:
    """Keeps nothing."""

    def get(self, name: str, inputs: str) -> Piece | None:
        """Nothing was kept."""
        return None

    def put(self, piece: Piece) -> None:
        """Let it go."""


PieceContent = tuple["dict[str, Tensor]", dict[str, Any]]
"""The tensors and the JSON facts of a piece."""


def load_or_make(store: PieceStore, name: str, inputs: str, make: Callable[[], PieceContent]) -> Piece:
    """The stored piece of this name, or a new one, which is then stored.

    Args:
        store: Where pieces are kept.
        name: Name of the piece.
        inputs: Digest of everything that its content depends on.
        make: Computes its content.
    """
    piece = store.get(name, inputs)
    if piece is None:
        piece = Piece(name, inputs, *make())
        store.put(piece)
    return piece


def accepts_cells(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to accept its argument `pieces` under the deprecated name `cells` too."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "cells" in kwargs:
            warn_of_cells(f"the argument cells of {function.__name__}")
            kwargs["pieces"] = kwargs.pop("cells")
        return function(*args, **kwargs)

    return call


def warn_of_cells(old: str) -> None:
    """Warn that something called `cells` in earlier versions is now called `pieces`."""
    warnings.warn(f"{old} is now called pieces; the old name will not work in the next version.", DeprecationWarning, 3)

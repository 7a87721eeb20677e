"""Pieces: the finished parts of a run, stored so that a killed run can continue."""

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
    """A finished part of a run: tensors, and facts that JSON can hold."""

    name: str
    """Name of the part, such as `seed 3`."""
    inputs: str
    """Digest of the weights, texts and labels that it was computed from, see `experiment.digest`."""
    tensors: "dict[str, Tensor]"
    about: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The piece as one safetensors file: the tensors, and the rest as JSON in its header."""
        import safetensors.torch

        header = {
            "name": self.name,
            "inputs": self.inputs,
            "about": self.about,
            # safetensors sorts tensors by name; a resumed run must give the same tables as an uninterrupted one.
            "order": list(self.tensors),
        }
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, metadata={"piece": json.dumps(header)})

    @classmethod
    def from_file(cls, path: str) -> "Piece":
        """Read a file that holds the output of `to_bytes`.

        Raises:
            safetensors.SafetensorError: The file is damaged.
            KeyError, TypeError, ValueError: It is not a piece.
        """
        import safetensors

        with safetensors.safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["piece"])
            tensors = {name: file.get_tensor(name) for name in header["order"]}
        return cls(header["name"], header["inputs"], tensors, header["about"])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Piece":
        """Read the output of `to_bytes`.

        Raises:
            safetensors.SafetensorError: The bytes are damaged.
            KeyError, TypeError, ValueError: They are not a piece.
        """
        import safetensors.torch

        tensors = safetensors.torch.load(data)
        # The library does not return the metadata of bytes. The header follows its length, which is the first 8 bytes.
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["piece"])
        ordered = {name: tensors[name] for name in header["order"]}
        return cls(header["name"], header["inputs"], ordered, header["about"])


class PieceStore(Protocol):
    """Where finished pieces are stored, so that a killed run continues where it stopped."""

    def get(self, name: str, inputs: str) -> Piece | None:
        """The stored piece of this name with the same settings and inputs; None where there is none."""
        ...

    def put(self, piece: Piece) -> None:
        """Store a piece."""
        ...


class NoPieceStore:
    """A store that keeps nothing."""

    def get(self, name: str, inputs: str) -> Piece | None:
        """None, always."""
        return None

    def put(self, piece: Piece) -> None:
        """Discard the piece."""


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

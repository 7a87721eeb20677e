"""A run's losses, a line of JSON a step, written as the run goes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dualform.errors import StorageError
from dualform.files import atomic_write, explain_storage_errors

_REMEDY = "Free some space; the run continues from its last checkpoint."


@dataclass(frozen=True)
class LossRecord:
    """One step of training."""

    step: int
    """Steps done, this one included."""
    tokens: int
    """Tokens read up to here."""
    loss: float
    """Of this step's batch before the step, nats a token."""
    learning_rate: float
    gradient_norm: float
    """L2 over all weights, before clipping."""
    seconds: float
    """The step took, without evaluation and checkpoint."""
    validation: float | None = None
    """Validation loss after the step, nats a token, where it was taken."""


class LossLog:
    """Appends records to a file; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explain_storage_errors(path, _REMEDY):
            self._file = path.open("a", encoding="utf-8")

    def append(self, record: LossRecord) -> None:
        """Write one line, whole, so that a killed process leaves what it had done.

        Raises:
            StorageError: The disk is full.
        """
        with explain_storage_errors(self._path, _REMEDY):
            self._file.write(_line(record))
            self._file.flush()

    def sync(self) -> None:
        """See to it that all lines outlast a power cut; before a checkpoint that relies on them."""
        with explain_storage_errors(self._path, _REMEDY):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_losses(path: Path) -> tuple[LossRecord, ...]:
    """All records of a run, in order; a last line that a killed process left unfinished is passed over.

    Raises:
        StorageError: The file is there and cannot be read.
    """
    if not path.exists():
        return ()
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return tuple(LossRecord(**json.loads(line)) for line in lines)
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{path} holds a line that is no loss record: {error}. Remove the folder to begin anew."
        ) from error


def cut_losses(path: Path, step: int) -> tuple[LossRecord, ...]:
    """Drop what lies beyond a step, and return the rest.

    Raises:
        StorageError: Steps before it are missing, or the file cannot be read or written.
    """
    kept = tuple(record for record in read_losses(path) if record.step <= step)
    if [record.step for record in kept] != list(range(1, step + 1)):
        raise StorageError(
            f"{path} should hold steps 1 to {step}, as the checkpoint of step {step} does. Put it back, or remove the "
            "folder to begin anew."
        )
    with atomic_write(path, _REMEDY) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
    return kept


def _line(record: LossRecord) -> str:
    return json.dumps({name: value for name, value in asdict(record).items() if value is not None}) + "\n"

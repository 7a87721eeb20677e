"""A run's losses as JSON lines, one for each step, written during the run."""

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
    """Number of steps done, including this one."""
    tokens: int
    """Number of tokens read so far."""
    loss: float
    """Loss of this step's batch before the step, nats a token."""
    learning_rate: float
    gradient_norm: float
    """L2 norm over all weights, before clipping."""
    seconds: float
    """Duration of the step, without evaluation and checkpoint."""
    validation: float | None = None
    """Validation loss after the step, nats a token; None if it was not computed."""


class LossLog:
    """A log to which records are appended; a context manager that closes its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explain_storage_errors(path, _REMEDY):
            self._file = path.open("a", encoding="utf-8")

    def append(self, record: LossRecord) -> None:
        """Write one line and flush it, so that it survives if the process is killed.

        Raises:
            StorageError: If the disk is full.
        """
        with explain_storage_errors(self._path, _REMEDY):
            self._file.write(_line(record))
            self._file.flush()

    def sync(self) -> None:
        """Write all lines to disk, so that they survive a power failure; called before each checkpoint."""
        with explain_storage_errors(self._path, _REMEDY):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_losses(path: Path) -> tuple[LossRecord, ...]:
    """All records of a run, in order; an unfinished last line is ignored.

    Raises:
        StorageError: If the file exists and cannot be read.
    """
    if not path.exists():
        return ()
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return tuple(LossRecord(**json.loads(line)) for line in lines)
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{path} contains a line that is not a loss record: {error}. Remove the folder to start again."
        ) from error


def cut_losses(path: Path, step: int) -> tuple[LossRecord, ...]:
    """Remove the records after a step from the file and return the remaining ones.

    Raises:
        StorageError: If earlier steps are missing, or the file cannot be read or written.
    """
    kept = tuple(record for record in read_losses(path) if record.step <= step)
    if [record.step for record in kept] != list(range(1, step + 1)):
        raise StorageError(
            f"{path} should contain steps 1 to {step}, because there is a checkpoint of step {step}. Restore the file, "
            "or remove the folder to start again."
        )
    with atomic_write(path, _REMEDY) as temporary:
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
    return kept


def _line(record: LossRecord) -> str:
    return json.dumps({name: value for name, value in asdict(record).items() if value is not None}) + "\n"

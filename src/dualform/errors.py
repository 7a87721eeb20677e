"""The exceptions that dualform raises for a user's mistakes.

    DualformError
    ├── ConfigError         a setting has an invalid value
    ├── TaskError           a task, column or split does not exist, or a row is invalid
    │   └── LabelWordError  a label word is invalid
    ├── ContextError        a prompt is longer than the model's context
    ├── ModelError          a model does not exist, or dualform does not support it
    ├── HubError            a download failed
    ├── StorageError        the cache or a run's folder cannot be written
    ├── NumericalError      a forward pass gave NaN
    │   └── TrainingError   finetuning produced no usable weights
    └── ShapeError          the shapes of tensors do not match

Each message says what was given, what was expected and what to do. The command line prints it and exits with 2. Any
other exception is a bug in dualform; the command line then exits with 1.
"""


class DualformError(Exception):
    """Base class of all exceptions that dualform raises for a user's mistakes."""


class ConfigError(DualformError):
    """A setting has an invalid value."""


class TaskError(DualformError):
    """A task, column or split does not exist, or a row is invalid."""


class LabelWordError(TaskError):
    """A label word is invalid."""


class ContextError(DualformError):
    """A prompt is longer than the model's context."""


class ModelError(DualformError):
    """A model does not exist, or dualform does not support it."""


class HubError(DualformError):
    """A download from the hub or the package index failed."""


class StorageError(DualformError):
    """The cache or a run's folder cannot be written."""


class NumericalError(DualformError):
    """A forward pass gave NaN."""


class TrainingError(NumericalError):
    """Finetuning produced no usable weights."""


class ShapeError(DualformError):
    """The shapes of tensors do not match."""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, cut to 300 characters; the type's name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def type_and_first_line(error: BaseException) -> str:
    """Type of an exception and first line of its message."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else f"{name} without a message"

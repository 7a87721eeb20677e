"""Everything that dualform raises on a user's mistake.

    DualformError
    ├── ConfigError         a setting has a value that cannot be used
    ├── TaskError           no such task, column or split; a row that does not fit the task
    │   └── LabelWordError  a label word that cannot stand for its label
    ├── ContextError        a prompt that does not fit the model's context
    ├── ModelError          no such model, or one that dualform cannot look into
    ├── HubError            a name that only the network could resolve, and no network
    ├── StorageError        cache or run folder cannot be written
    ├── NumericalError      a forward gave NaN instead of numbers
    │   └── TrainingError   finetuning produced no usable weights
    └── ShapeError          tensors whose shapes do not belong together

Each message names what was given, what was expected and what to do next. The command line prints it and exits
with 2; any other exception is a fault of ours and exits with 1.
"""


class DualformError(Exception):
    """Base class: catch this to catch every mistake that dualform names."""


class ConfigError(DualformError):
    """A setting has a value that cannot be used."""


class TaskError(DualformError):
    """No such task, column or split, or a row that does not fit the task."""


class LabelWordError(TaskError):
    """A label word that cannot stand for its label."""


class ContextError(DualformError):
    """A prompt that does not fit the model's context."""


class ModelError(DualformError):
    """No such model, or one that dualform cannot look into."""


class HubError(DualformError):
    """A name that only the network could resolve, and the network did not answer."""


class StorageError(DualformError):
    """The cache or a run's folder cannot be written."""


class NumericalError(DualformError):
    """A forward gave NaN instead of numbers."""


class TrainingError(NumericalError):
    """Finetuning produced no usable weights."""


class ShapeError(DualformError):
    """Tensors whose shapes do not belong together."""


def first_line(error: BaseException) -> str:
    """First 300 characters of the first line of an exception's message; its type's name where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def type_and_first_line(error: BaseException) -> str:
    """Type of an exception and first line of its message, which may be empty."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else f"{name} without a message"

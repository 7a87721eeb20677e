"""Validate settings from YAML or Python, reporting all mistakes in one message."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from dualform.errors import ConfigError
from dualform.files import show_path
from dualform.plain_text import plain
from dualform.yaml_text import read_yaml

MOST_RESAMPLES = 100_000
"""Bootstrap resamples that a setting may ask for: more change no digit that is shown and need gigabytes."""
MOST_ORDERS = 1_000
"""Orders of one selection of demonstrations; each is a run of its own."""
MOST_TEXTS = 1_000_000
"""Unlabelled texts."""

QUOTES = "YAML reads an unquoted yes, no, number or date as what it looks like: put a name in quotes"
QUOTES_NUMBER = "YAML reads yes, no, on and off as true and false"

_LONGEST_SHOWN = 200
"""Characters of a value in a message."""

_LONGEST_PROBLEM = 1000
"""Characters of one problem."""
_MOST = 20
"""Problems in one message."""


class InvalidSettingsError(ConfigError):
    """At least one setting has an invalid value.

    Args:
        about: Beginning of the message.
        problems: For each problem, the path of its field (`fold.texts`, or `rates.0` for the first rate; empty if it
            concerns several fields) and a description.
    """

    def __init__(self, about: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(about + _listed([f"{path}: {text}" if path else text for path, text in problems]))
        self._about, self._problems = about, problems

    def renamed(self, names: Mapping[str, str]) -> "InvalidSettingsError":
        """The same error with other names for some fields, such as those of a command's options.

        Args:
            names: Path of a field -> its name.
        """
        return InvalidSettingsError(self._about, [(_renamed(path, names), text) for path, text in self._problems])


def _renamed(path: str, names: Mapping[str, str]) -> str:
    if path in names:
        return names[path]
    field, _, index = path.rpartition(".")
    return f"{names[field]}, value {int(index) + 1}" if field in names and index.isdigit() else path


_Config = TypeVar("_Config", bound=BaseModel)


def checked(kind: type[_Config], settings: dict[str, Any], about: str = "") -> _Config:
    """A configuration with these settings.

    Args:
        kind: Class of the configuration.
        settings: Values of its fields.
        about: Beginning of the error message.

    Raises:
        InvalidSettingsError: At least one setting is invalid; the message lists all of them.
    """
    # Pydantic takes truth values for 1 and 0, and YAML takes `yes` and `on` for truth values.
    problems = _truth_values(kind, settings)
    try:
        config = kind(**settings)
        if not problems:
            return config
        raise InvalidSettingsError(about, problems)
    except ValidationError as error:
        refused = {".".join(map(str, problem["loc"])).partition(".")[0] for problem in error.errors()}
        problems = [(path, text) for path, text in problems if path.partition(".")[0] not in refused]
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            given = f" (given {_abbreviate(problem['input'])})" if where and problem["type"] != "missing" else ""
            quotes = f"; {QUOTES}" if problem["type"] == "string_type" and _was_unquoted(problem["input"]) else ""
            what = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
            problems.append((where, f"{what}{given}{quotes}"))
        raise InvalidSettingsError(about, problems) from error


def _truth_values(kind: type[BaseModel], settings: dict[str, Any], group: str = "") -> list[tuple[str, str]]:
    """Problems of settings that are numbers but were given a truth value: the field's path and a description."""
    problems: list[tuple[str, str]] = []
    for name, value in settings.items():
        field = kind.model_fields.get(name)
        if field is None:
            continue
        types = _types_in(field.annotation)
        given = list(value) if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in given) and {int, float} & types and bool not in types:
            problems.append((f"{group}{name}", f"should be a number (given {_abbreviate(value)}); {QUOTES_NUMBER}"))
        elif isinstance(value, dict):
            for inner in types:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    problems += _truth_values(inner, value, f"{group}{name}.")
    return problems


def _types_in(annotation: Any) -> set[Any]:
    """All types that stand in an annotation, such as int and None in `int | None`."""
    inner = [argument for argument in get_args(annotation) if argument is not ...]
    if not inner:
        return {annotation} if isinstance(annotation, type) else set()
    return set[Any]().union(*map(_types_in, inner))


def _was_unquoted(value: Any) -> bool:
    return isinstance(value, bool | int | float | date)


def _listed(problems: list[str]) -> str:
    """Problems in one sentence: the first so many, none of them a page long."""
    texts = [text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]} ..." for text in problems[:_MOST]]
    more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
    return "; ".join(texts) + more


def _abbreviate(value: Any) -> str:
    """A value for a message, its middle left out where it is long."""
    try:
        text = repr(value)
    # An integer of too many digits cannot be written out; a deep list recurses.
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
    return plain(text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 20]} ... {text[-15:]}")


def read_settings(path: Path, what: str = "configuration") -> dict[str, Any]:
    """Settings from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
    """
    given = read_yaml(path, ConfigError, what)
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{show_path(path)} should hold settings as `name: value` lines")
    return given

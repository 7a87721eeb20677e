"""Settings from YAML or Python to a checked configuration, with all mistakes in one message."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dualform.errors import ConfigError

_Config = TypeVar("_Config", bound=BaseModel)


def checked(kind: type[_Config], settings: dict[str, Any], about: str = "") -> _Config:
    """Settings as a configuration.

    Args:
        kind: Of configuration.
        settings: Its fields.
        about: Stands in front of the message.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    try:
        return kind(**settings)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            given = f" (given {problem['input']!r})" if where and problem["type"] != "missing" else ""
            problems.append(f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{given}")
        raise ConfigError(about + "; ".join(problems)) from error


def read_settings(path: Path, what: str = "configuration") -> dict[str, Any]:
    """Settings from YAML, such as a run's `config.yaml`.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a {what}: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} should hold settings as `name: value` lines")
    return given

"""Versions of the files that hold results: older ones are brought to today's shape when they are read.

A change of the shape raises `RESULT_SCHEMA` by one and adds a step from the version before to `MIGRATIONS`: a function
from one version's JSON object to the next one's, which is never changed again.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from dualform._version import __version__
from dualform.errors import ConfigError

RESULT_SCHEMA: Literal[3] = 3
"""Version of `result.json` that this version of dualform writes."""

Json = Mapping[str, Any]


def require_known(version: object, newest: int) -> None:
    """Refuse a file of a version that only a newer dualform can read.

    Args:
        version: `schema` of the file; anything but a whole number is left to the check of the fields.
        newest: The newest version known.

    Raises:
        ConfigError: It is newer.
    """
    if isinstance(version, int) and version > newest:
        raise ConfigError(
            f"schema {version} was written by a newer version of dualform, and version {__version__} reads schemas up "
            f"to {newest}: upgrade dualform to read it"
        )


def migrate_result(fields: Json) -> Json:
    """The content of a `result.json` of any known version, as today's version would have written it.

    Raises:
        ConfigError: A newer version of dualform wrote it.
    """
    version = fields.get("schema", RESULT_SCHEMA)
    require_known(version, RESULT_SCHEMA)
    while type(version) is int and version in MIGRATIONS:
        fields = {**MIGRATIONS[version](fields), "schema": (version := version + 1)}
    return fields


def _keep_own_fields(fields: Json) -> Json:
    """1 to 2: a result has the fields of its own study alone; before, it had an empty one for each other study."""
    of_studies = ("stability", "selection", "folding", "momentum", "laboratory")
    return {name: value for name, value in fields.items() if not (name in of_studies and value is None)}


def _unchanged(fields: Json) -> Json:
    """2 to 3: fields were added, which older files lack."""
    return fields


MIGRATIONS: dict[int, Callable[[Json], Json]] = {1: _keep_own_fields, 2: _unchanged}
"""Version -> what brings a file of it to the next version."""

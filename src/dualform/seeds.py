"""Parse seeds and other whole numbers, such as `3`, `1..7` or `1,4,9`, in commands, files and Python.

The size of a range is checked before it is expanded, so a typo such as `1..99999999` is harmless.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from dualform.errors import ConfigError

MOST_SEEDS = 10_000
"""Most numbers in one list. A study of more seeds is divided into several."""

_PART = re.compile(r"\s*([0-9]+)(?:\s*\.\.\s*([0-9]+))?\s*")
_LONGEST = 20
"""Digits of the longest number that is read."""


def parse_whole_numbers(text: str, name: str = "seeds") -> tuple[int, ...]:
    """Whole numbers: `3` is that number alone, `1..7` a range with both its ends, `1,4,9` a list; or a mixture.

    Args:
        text: What was written.
        name: What the numbers are, for the message.

    Raises:
        ConfigError: Anything else, or more than `MOST_SEEDS` numbers.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or max(len(match[1]), len(match[2] or "")) > _LONGEST:
            raise ConfigError(f"{name} {_abbreviate(text)} should look like 3, 1..7 or 1,4,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{name} {_abbreviate(text)}: {first}..{last} runs backwards; write {last}..{first}")
        if last - first >= MOST_SEEDS:
            raise ConfigError(f"{name} {_abbreviate(text)}: {first}..{last} are more than {MOST_SEEDS} {name}")
        ranges.append((first, last))
    if sum(last - first + 1 for first, last in ranges) > MOST_SEEDS:
        raise ConfigError(f"{name} {_abbreviate(text)} are more than {MOST_SEEDS} {name}")
    return tuple(number for first, last in ranges for number in range(first, last + 1))


def read_seeds(given: Any) -> Any:
    """Seeds of a settings file or of Python as a tuple: a bare number is that seed alone, never a count.

    Args:
        given: A number, text as `parse_whole_numbers` takes it, or a list.

    Raises:
        ValueError: Anything else, text that cannot be read, too many, or a truth value.
    """
    if isinstance(given, bool) or (isinstance(given, list | tuple) and any(isinstance(seed, bool) for seed in given)):
        raise ValueError("should be a number, a range such as 1..7, or a list of numbers")
    if isinstance(given, int):
        return (given,)
    if isinstance(given, str):
        try:
            return parse_whole_numbers(given)
        except ConfigError as error:
            # Reported together with whatever else is wrong with the settings.
            raise ValueError(str(error)) from error
    if not isinstance(given, list | tuple):
        raise ValueError("should be a number, a range such as 1..7, or a list of numbers")
    if len(given) > MOST_SEEDS:
        raise ValueError(f"{len(given)} seeds are more than {MOST_SEEDS}")
    return given


Seeds = Annotated[tuple[int, ...], BeforeValidator(read_seeds)]
"""Type of a configuration's seeds."""


def _abbreviate(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")

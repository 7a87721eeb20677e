"""How values are written on the command line."""

import re

from dualform.errors import ConfigError

_MOST_SEEDS = 10_000


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """`3`, `1..7`, `1,4,9`, or a mixture.

    Raises:
        ConfigError: Anything else.
    """
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*\.\.\s*(\d+))?\s*", part)
        if match is None:
            raise ConfigError(f"seeds {text!r} should look like 3, 1..7 or 1,4,9")
        first = int(match[1])
        last = int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"seeds {text!r}: {first}..{last} runs backwards; write {last}..{first}")
        if last - first >= _MOST_SEEDS:
            raise ConfigError(f"seeds {text!r}: {first}..{last} are more than {_MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    return tuple(seeds)


def parse_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """`1e-4,3e-4,1e-3`.

    Raises:
        ConfigError: Some part is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} should be numbers with commas between, such as 1e-4,1e-3") from error


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """`zsl,icl,ft`."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def unescape(text: str | None) -> str | None:
    r"""A line break, which a shell's quotes cannot hold plainly, may be written `\n`, a tab `\t`."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")

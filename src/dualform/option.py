"""How a setting is written on the command line: what is declared next to its field, and how lists are read.

A field of a configuration is an option by itself: its name, type, default and description say all that is needed.
`Option` is for what they do not say: the panel of `--help`, another name, a positional argument, what null means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dualform.errors import ConfigError

DATA = "Data"
PROTOCOL = "Protocol"
TRAINING = "Training"
CONTROLS = "Controls"
PROMPTING = "Prompting"
FOLDING = "Folding"
MACHINE = "Model and machine"
OUTPUT = "Output"
PANELS = (DATA, PROTOCOL, TRAINING, CONTROLS, PROMPTING, FOLDING, MACHINE, OUTPUT)
"""Panels of `--help`, in the order shown."""


@dataclass(frozen=True)
class Option:
    """Marks a field, inside `Annotated`, with how it is given on the command line."""

    panel: str = PROTOCOL
    """Heading under which `--help` lists it."""
    names: tuple[str, ...] = ()
    """Names in place of `--field-name`; `--on/--off` for a switch."""
    argument: int = 0
    """Place among the positional arguments, from 1; 0 for an option."""
    repeated: bool = False
    """May be given several times; each time adds to the list."""
    single: str = ""
    """A second option that takes one value of the list, such as `--seed` for seeds."""
    several: bool = True
    """Whether the list itself has an option too."""
    read: Callable[[Any], Any] | None = None
    """Reads the text that was given, of a repeated option the list of texts; by default the field's type decides."""
    default: str = ""
    """The default as `--help` shows it, where the value itself says too little."""
    null: str = ""
    """What null means, in a word or two, such as `all`."""


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """`1e-4,3e-4,1e-3`.

    Raises:
        ConfigError: Some part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} should be numbers with commas between, such as 1e-4,1e-3") from error


def parse_names(text: str | Sequence[str]) -> tuple[str, ...]:
    """`zsl,icl,ft`, in one text or several."""
    texts = [text] if isinstance(text, str) else text
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def parse_number_or_word(name: str, text: str, words: tuple[str, ...]) -> float | str:
    """A number, or one of a few words that a setting takes in place of one.

    Raises:
        ConfigError: It is neither.
    """
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} should be a number such as 0.01, or {' or '.join(words)}") from None

"""Escape control characters in text from data sets, models and stores, for terminals, logs and tables.

Such text may hold escape sequences that recolour or rewrite a terminal, marks that turn the direction of writing, and
characters that no one sees. They are shown for what they are, as Python would write them.
"""

import unicodedata
from collections.abc import Sequence

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Joiners that Persian, Indic scripts and emoji cannot be written without; they move nothing.
_WANTED = {"\u200c", "\u200d"}

_MARKS = 8
"""Marks that may stand upon one letter; no script needs as many, and hundreds are drawn across the lines around it."""


def plain(text: str, *, lines: bool = False) -> str:
    r"""`text` with control and invisible characters escaped, such as `\x1b` or `\u202e`.

    Args:
        text: From anywhere.
        lines: Keep line breaks and tabs, for text of several lines such as a traceback; else they are written out too.

    Returns:
        Text of one line, or of several where `lines`, which is `text` itself where nothing needed a change.
    """
    if text.isascii() and text.isprintable():
        return text
    characters, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        fits = _is_plain(character, lines) and marks <= _MARKS
        characters.append(character if fits else _written_out(character))
    return "".join(characters)


def _is_plain(character: str, lines: bool) -> bool:
    if character.isprintable() or character in _WANTED or (lines and character in "\n\t"):
        return True
    return unicodedata.category(character) not in _UNSEEN


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def first_few(words: Sequence[str], most: int = 4) -> str:
    """`a; b`, and of a longer list the first ones with how many more there are."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more" if more > 0 else "")

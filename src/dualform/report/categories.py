"""Foreign words as categories of a chart: label words, names of tasks and models, points of an axis."""

from collections.abc import Iterable

_PROTOTYPE_NAMES = frozenset(
    {
        "__defineGetter__",
        "__defineSetter__",
        "__lookupGetter__",
        "__lookupSetter__",
        "__proto__",
        "constructor",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
        "toLocaleString",
        "toString",
        "valueOf",
    }
)
"""What every JavaScript object has of its own: the own properties of `Object.prototype` (ECMA-262, section 20.1.3 and
annex B.2.2). Vega-Lite looks categories up in plain objects, finds these there, and draws no chart."""

_INVISIBLE = "\N{ZERO WIDTH SPACE}"


def category(text: str) -> str:
    """`text` as a chart can hold it as a category; it looks the same."""
    return text + _INVISIBLE if text in _PROTOTYPE_NAMES else text


def categories(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Each text as a category of its own, in order, also where two of them, or one and one of `taken`, look alike."""
    used = set(taken)
    found = []
    for text in texts:
        name = category(text)
        while name in used:
            name += _INVISIBLE
        used.add(name)
        found.append(name)
    return found

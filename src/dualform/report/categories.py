"""Make texts such as label words and names of tasks usable as categories of a chart."""

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
"""Properties of `Object.prototype` (ECMA-262, section 20.1.3 and annex B.2.2), which every JavaScript object has.
Vega-Lite uses plain objects as dictionaries of categories, so it fails to draw a chart with one of these names."""

_INVISIBLE = "\N{ZERO WIDTH SPACE}"


def category(text: str) -> str:
    """`text` in a form that a chart accepts as a category and displays in the same way."""
    return text + _INVISIBLE if text in _PROTOTYPE_NAMES else text


def categories(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """A distinct category for each text, in order, that is not in `taken`; equal texts differ in invisible marks."""
    used = set(taken)
    names = []
    for text in texts:
        name = category(text)
        while name in used:
            name += _INVISIBLE
        used.add(name)
        names.append(name)
    return names

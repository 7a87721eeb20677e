"""Names, order and colours of learners: the same in every chart, table and sentence.

dualform's own learners are in the table below; one that another package defines brings its own names and colour.

The colours are those of Okabe and Ito (2008), which stay apart under the common colour-vision deficiencies;
black and yellow are left out because each vanishes on one of the two backgrounds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dualform.errors import ConfigError
from dualform.registry import Registry
from dualform.report.categories import category
from dualform.report.phrases import listed


@dataclass(frozen=True)
class LearnerStyle:
    """How one learner is named, explained and drawn."""

    key: str
    """Its key in `Result.accuracy`."""
    title: str
    """In a table or a chart."""
    noun: str
    """In a sentence."""
    meaning: str
    colour: str
    """CSS colour."""


LEARNERS: tuple[LearnerStyle, ...] = (
    LearnerStyle("zsl", "zero-shot", "zero-shot", "The unchanged model, no demonstrations.", "#8A8F98"),
    LearnerStyle(
        "icl",
        "in-context (ICL)",
        "in-context learning",
        "The unchanged model with the demonstrations in its prompt.",
        "#0072B2",
    ),
    LearnerStyle(
        "ft", "finetuned (FT)", "finetuning", "Key and value weights trained on the demonstrations.", "#D55E00"
    ),
    LearnerStyle("lora", "LoRA", "LoRA", "Low-rank adapters trained on the demonstrations.", "#E69F00"),
    LearnerStyle(
        "probe", "linear probe", "the linear probe", "Logistic regression on the last hidden state.", "#CC79A7"
    ),
    LearnerStyle(
        "fold", "folded", "folding", "The prompt's effect written into the weights by forward passes.", "#009E73"
    ),
)

SPARE_COLOURS: tuple[str, ...] = ("#56B4E9", "#9C7C1C", "#7F6BB3", "#6B8E6B")
"""For learners without a colour of their own."""

MEASURE_COLOUR = "#6B7F95"
"""For everything that is no learner: measures, controls, reference lines; legible on white and on black."""


RATE_COLOURS: tuple[str, ...] = ("#B8501A", "#E58A4F", "#9A6B4F", "#C9A182")
"""For a learner at a further learning rate: kin to finetuning's own, apart in lightness."""


def learners_in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the table's order, each followed by its further learning rates; unknown ones last, as they came."""
    order = {known.key: position for position, known in enumerate(LEARNERS)}

    def place(key: str) -> tuple[int, float]:
        name, rate = _parts(key)
        return (order.get(name, len(order)), -1.0 if rate is None else rate)

    return sorted(keys, key=place)


def learner_style(key: str) -> LearnerStyle:
    """The table's entry for `key`; where there is none, one named by the key, in a colour that depends on it alone.

    `ft@0.001` is finetuning at that learning rate.
    """
    name, rate = _parts(key)
    for known in (*LEARNERS, *_from_package(name)):
        if known.key == name:
            if rate is None:
                return known
            return LearnerStyle(
                key,
                f"{known.key.upper()}, rate {rate:g}",
                f"{known.noun} at rate {rate:g}",
                f"{known.meaning.rstrip('.')}, at the learning rate {rate:g}.",
                _by_key(key, RATE_COLOURS),
            )
    return LearnerStyle(key, category(key), key, "", _by_key(key, SPARE_COLOURS))


def learner_noun(key: str) -> str:
    """What a sentence calls a learner, such as `finetuning`."""
    return learner_style(key).noun


def learner_nouns(keys: Iterable[str]) -> str:
    """`finetuning, LoRA and folding`."""
    return listed([learner_noun(key) for key in keys])


def style_of(key: str, title: str = "", noun: str = "", meaning: str = "", colour: str | None = None) -> LearnerStyle:
    """The style of a learner that another package defines; what is not given follows from the rest."""
    title = title or category(key)
    return LearnerStyle(key, title, noun or title, meaning, colour or _by_key(key, SPARE_COLOURS))


def _from_package(key: str) -> tuple[LearnerStyle, ...]:
    """The style that another package's learner brings along; none where it is not installed, or cannot be loaded."""
    registry = Registry("dualform.learners", "learner", object)
    try:
        style = getattr(registry[key], "style", None) if key in registry else None
    except ConfigError:
        # A page about a finished run does not need the package.
        return ()
    return (style,) if isinstance(style, LearnerStyle) else ()


def _parts(key: str) -> tuple[str, float | None]:
    """`ft@0.001` -> `ft`, 0.001; any other key with None, also one whose end is no positive number."""
    name, _, text = key.partition("@")
    try:
        rate = float(text)
    except ValueError:
        return key, None
    known = any(style.key == name for style in (*LEARNERS, *_from_package(name)))
    return (name, rate) if known and 0 < rate < math.inf else (key, None)


def _by_key(key: str, colours: tuple[str, ...]) -> str:
    # Not hash(): it differs from one Python process to the next, and a page must not.
    return colours[sum(key.encode()) % len(colours)]

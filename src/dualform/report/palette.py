"""Names, order and colours of learners, the same in every chart, table and sentence.

`LEARNERS` lists dualform's own learners; a learner of another package defines its own names and colour.

The colours are those of Okabe and Ito (2008), which remain distinguishable with common colour-vision deficiencies.
Black and yellow are not used, because each is invisible on one of the two backgrounds.
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
    """Names, explanation and colour of a learner."""

    key: str
    """Key in `Result.accuracy`."""
    title: str
    """Name in tables and charts."""
    noun: str
    """Name in sentences."""
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
    LearnerStyle("full", "full finetuning", "full finetuning", "All weights trained on the demonstrations.", "#A6761D"),
    LearnerStyle("bitfit", "BitFit", "BitFit", "Biases alone trained on the demonstrations.", "#66A0C8"),
    LearnerStyle(
        "lora_icl",
        "LoRA with prompt",
        "LoRA with a prompt",
        "Low-rank adapters, with the demonstrations in the prompt as well.",
        "#B24C63",
    ),
    LearnerStyle(
        "ttt",
        "test-time training",
        "test-time training",
        "Low-rank adapters trained to answer each demonstration after the others, which stay in the prompt.",
        "#8C564B",
    ),
    LearnerStyle(
        "probe", "linear probe", "the linear probe", "Logistic regression on the last hidden state.", "#CC79A7"
    ),
    LearnerStyle(
        "fold", "folded", "folding", "The prompt's effect written into the weights by forward passes.", "#009E73"
    ),
    LearnerStyle(
        "distill",
        "distilled",
        "context distillation",
        "Low-rank adapters trained to answer without the prompt as the unchanged model does with it.",
        "#8069C9",
    ),
)

SPARE_COLOURS: tuple[str, ...] = ("#56B4E9", "#9C7C1C", "#7F6BB3", "#6B8E6B")
"""Colours of learners that do not define one."""

MEASURE_COLOUR = "#6B7F95"
"""Colour of measures, controls and reference lines; legible on white and on black."""


RATE_COLOURS: tuple[str, ...] = ("#B8501A", "#E58A4F", "#9A6B4F", "#C9A182")
"""Colours of a learner at a further learning rate: similar to that of finetuning, but lighter or darker."""


def learners_in_order(keys: Iterable[str]) -> list[str]:
    """`keys` in the order of `LEARNERS`, each followed by its further learning rates; unknown ones come last."""
    order = {known.key: position for position, known in enumerate(LEARNERS)}

    def place(key: str) -> tuple[int, float]:
        name, rate = _parts(key)
        return (order.get(name, len(order)), -1.0 if rate is None else rate)

    return sorted(keys, key=place)


def learner_style(key: str) -> LearnerStyle:
    """The style of a learner; an unknown one is named by its key, in a colour that depends only on the key.

    `ft@0.001` means finetuning at the learning rate 0.001.
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
    """Name of a learner in a sentence, such as `finetuning`."""
    return learner_style(key).noun


def learner_nouns(keys: Iterable[str]) -> str:
    """Names of learners in a sentence, such as `finetuning, LoRA and folding`."""
    return listed([learner_noun(key) for key in keys])


def style_of(key: str, title: str = "", noun: str = "", meaning: str = "", colour: str | None = None) -> LearnerStyle:
    """The style of a learner of another package, with defaults for everything but its key."""
    title = title or category(key)
    return LearnerStyle(key, title, noun or title, meaning, colour or _by_key(key, SPARE_COLOURS))


def _from_package(key: str) -> tuple[LearnerStyle, ...]:
    """The style defined by another package's learner; empty if it is not installed or cannot be loaded."""
    registry = Registry("dualform.learners", "learner", object)
    try:
        style = getattr(registry[key], "style", None) if key in registry else None
    except ConfigError:
        # A package that cannot be loaded must not prevent the page of a finished run.
        return ()
    return (style,) if isinstance(style, LearnerStyle) else ()


def _parts(key: str) -> tuple[str, float | None]:
    """(`ft`, 0.001) for `ft@0.001`; (key, None) for a key that does not end in a positive number."""
    name, _, text = key.partition("@")
    try:
        rate = float(text)
    except ValueError:
        return key, None
    known = any(style.key == name for style in (*LEARNERS, *_from_package(name)))
    return (name, rate) if known and 0 < rate < math.inf else (key, None)


def _by_key(key: str, colours: tuple[str, ...]) -> str:
    # hash() differs between Python processes, but the page must not.
    return colours[sum(key.encode()) % len(colours)]

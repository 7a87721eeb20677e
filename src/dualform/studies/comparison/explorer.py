"""The attention explorer of a comparison's page: what zero-shot, ICL and FT attend to, one query at a time.

The page's script draws it from the data prepared here. Texts of data sets are passed as text without control
characters, and cut to what a screen can show.
"""

import math
from collections.abc import Iterable
from typing import Any

from dualform.attention_record import AttentionRecord, PromptDemonstration, QueryAttention
from dualform.plain_text import plain
from dualform.report.html import json_for_script
from dualform.report.numerals import count
from dualform.report.palette import learner_style, learners_in_order

LONGEST_PIECE = 120
"""Most characters displayed of one token or answer."""
MOST_TOKENS = 3000
"""Most tokens displayed of one text."""

_LEARNERS = ("zsl", "icl", "ft")
_TITLE, _LINE = 60, 160

_KINDS = {
    (False, True, True): "ICL and FT correct it",
    (False, True, False): "only ICL is right",
    (False, False, True): "only FT is right",
    (True, False, False): "only zero-shot is right",
    (True, False, True): "only ICL is wrong",
    (True, True, False): "only FT is wrong",
    (True, True, True): "all are right",
    (False, False, False): "all are wrong",
}


def explorer_section(attention: AttentionRecord | None) -> dict[str, Any] | None:
    """The data of the template; None without queries to explore."""
    if attention is None or not attention.examples:
        return None
    keys = learners_in_order(dict.fromkeys(key for each in attention.examples for key in each.probabilities))
    return {
        "options": [_option(number, each) for number, each in enumerate(attention.examples, 1)],
        "looks": [learner_style(key) for key in _LEARNERS],
        "answering": [learner_style(key) for key in keys],
        "n_layers": attention.n_layers,
        "n_demonstrations": len(attention.demonstrations),
        "n_tokens": count(attention.n_demonstration_tokens),
        "has_ranks": any(each.ft_ranks is not None for each in attention.examples),
        "seed": attention.seed,
        "probe": attention.probe,
        "data": json_for_script(
            {
                "layers": attention.n_layers,
                "answering": keys,
                "demonstrations": [_demonstration(each) for each in attention.demonstrations],
                "examples": [_example(each) for each in attention.examples],
            }
        ),
    }


def displayed(text: str, longest: int = LONGEST_PIECE) -> str:
    """A text as the page displays it: control characters are escaped, line breaks and tabs are marked with a symbol.

    Args:
        text: Text of a token or an answer.
        longest: Characters after which the text is cut.
    """
    # Cut first, so that a very long text is not processed as a whole.
    cut = f"\N{HORIZONTAL ELLIPSIS} [{count(len(text) - longest)} more characters]" if len(text) > longest else ""
    lines = [
        "\N{RIGHTWARDS ARROW TO BAR}".join(plain(part) for part in line.split("\t"))
        for line in text[:longest].replace("\r\n", "\n").split("\n")
    ]
    return "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n".join(lines) + cut


def _option(number: int, example: QueryAttention) -> str:
    """One line of the list of queries, such as `3. only FT is right: "Review: a warm film..."`."""
    zsl, icl, ft = (_chosen(example.probabilities.get(key, ())) == example.label for key in _LEARNERS)
    # The text comes last, so that right-to-left text does not reorder what follows it.
    return f"{number}. {_KINDS[zsl, icl, ft]}: {_excerpt(example.pieces, _TITLE)}"


def _chosen(probabilities: Iterable[float | None]) -> int | None:
    known = [-math.inf if each is None else each for each in probabilities]
    return known.index(max(known)) if known else None


def _excerpt(pieces: Iterable[str], longest: int) -> str:
    text = ""
    for piece in pieces:
        text += piece[: 2 * longest]
        if len(text) > 2 * longest:
            break
    text = plain(" ".join(text.split()))
    return text if len(text) <= longest else text[:longest].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _demonstration(demonstration: PromptDemonstration) -> dict[str, Any]:
    pieces = demonstration.pieces
    question = pieces[: len(pieces) - demonstration.answer_tokens]
    return {
        "pieces": [displayed(each) for each in pieces[:MOST_TOKENS]],
        "tokens": len(pieces),
        "answer_tokens": demonstration.answer_tokens,
        "excerpt": _excerpt(question, _LINE),
        "answer": displayed("".join(pieces[len(question) :]).strip(), _TITLE),
    }


def _example(example: QueryAttention) -> dict[str, Any]:
    return {
        "query": example.query,
        "pieces": [displayed(each) for each in example.pieces[:MOST_TOKENS]],
        "tokens": len(example.pieces),
        "answers": [displayed(each.strip()) or "(empty)" for each in example.answers],
        "label": example.label,
        "probabilities": example.probabilities,
        **{key: getattr(example, key).model_dump() for key in _LEARNERS},
        "shown": example.on_demonstrations,
        "elsewhere": example.elsewhere,
        "ranks": None if example.ft_ranks is None else example.ft_ranks.codes,
        "kendall": example.kendall,
    }

"""A made-up record of where learners looked: two demonstrations, three queries, four layers."""

import random
from array import array
from collections.abc import Sequence

from dualform.attention_record import AttentionRecord, PromptDemonstration, QueryAttention, Ranks, Weights

LAYERS = 4
DEMONSTRATIONS = (
    ("Review", ":", " a", " warm", " film", "\n", "Sentiment", ":", " positive"),
    ("Review", ":", " a", " dull", " story", "\n", "Sentiment", ":", " negative"),
)
QUERIES = (
    ("Review", ":", " charming", " and", " lively", "\n", "Sentiment", ":"),
    ("Review", ":", " nothing", " works", " here", "\n", "Sentiment", ":"),
    ("Review", ":", " na", "", "ïve", " but", " fine", "\n", "Sentiment", ":"),
)
# Zero-shot, ICL, FT: probability of the first answer; the first is right in the first query, and so on.
_FIRST = ((0.4, 0.7, 0.6), (0.9, 0.8, 0.7), (0.7, 0.6, 0.3))
_LABELS = (0, 0, 1)


def example_attention(
    demonstrations: Sequence[Sequence[str]] = DEMONSTRATIONS,
    queries: Sequence[Sequence[str]] = QUERIES,
    answers: Sequence[str] = (" positive", " negative"),
    *,
    layers: int = LAYERS,
    ranked: bool = True,
) -> AttentionRecord:
    """Equal arguments give equal records; in query 0 ICL looks most at token 3 of the first demonstration."""
    generator = random.Random(0)
    n_shown = sum(map(len, demonstrations))
    examples = []
    for number, pieces in enumerate(queries):
        first = _FIRST[number % len(_FIRST)]
        icl = [
            _shares(generator, n_shown + len(pieces), 0.8, 3 if number == 0 and n_shown else None)
            for _ in range(layers)
        ]
        rest = (1 - 0.5,) * layers
        examples.append(
            QueryAttention(
                query=10 * number,
                pieces=tuple(pieces),
                answers=tuple(answers),
                label=_LABELS[number % len(_LABELS)],
                probabilities={
                    name: (share, 1 - share, *(0.0 for _ in answers[2:]))
                    for name, share in zip(("zsl", "icl", "ft"), first, strict=True)
                },
                zsl=packed([_shares(generator, len(pieces), 0.5) for _ in range(layers)]),
                icl=packed(icl),
                ft=packed([_shares(generator, len(pieces), 0.5) for _ in range(layers)]),
                on_demonstrations=tuple(sum(row[:n_shown]) for row in icl),
                elsewhere={"zsl": rest, "icl": (1 - 0.8,) * layers, "ft": rest},
                ft_ranks=_ranks(generator, n_shown, layers) if ranked and n_shown else None,
                kendall=tuple(0.1 * (layer + number) for layer in range(layers)) if ranked and n_shown else None,
            )
        )
    return AttentionRecord(
        dualform="0",
        model="tiny",
        task="toy",
        seed=1,
        probe="prompt",
        n_layers=layers,
        demonstrations=tuple(PromptDemonstration(pieces=tuple(each), answer_tokens=1) for each in demonstrations),
        examples=tuple(examples),
    )


def packed(rows: Sequence[Sequence[float]]) -> Weights:
    """Weights `rows[layer][token]`, coded plainly."""
    scale = [max(row) for row in rows]
    codes = [round(255 * (weight / most) ** 0.5) for row, most in zip(rows, scale, strict=True) for weight in row]
    return Weights.packed(scale, bytes(codes))


def _shares(generator: random.Random, n: int, total: float, most: int | None = None) -> list[float]:
    raw = [generator.random() for _ in range(n)]
    if most is not None:
        raw[most] = 8.0
    whole = sum(raw)
    return [total * each / whole for each in raw]


def _ranks(generator: random.Random, n: int, layers: int) -> Ranks:
    codes = array("H")
    for _ in range(layers):
        codes.extend(generator.sample(range(n), n))
    return Ranks.packed(codes.tobytes())

"""The schema of `attention.json`: what the learners of a comparison attend to while reading a few queries.

`studies` write it, `report` draws it. Weights are stored in one byte and ranks in two, so that a thousand tokens in
thirty layers for eight queries take about a megabyte. All weights are means over heads.
"""

import base64
import binascii
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dualform.result import Learner, Number

ATTENTION_SCHEMA_VERSION: Literal[1] = 1

LEVELS = 255
"""The largest code of a weight."""
MOST_RANKS = 65_536
"""Number of distinct ranks that can be stored."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Weights(_Record):
    """Attention weights on tokens in every layer, `(layer, token)`.

    A weight is stored as `scale[layer] * (code / 255) ** 2`, so that small weights are stored more finely: the error is
    at most about 0.4 % of the geometric mean of the weight and its layer's largest weight.
    """

    scale: tuple[float, ...]
    """The largest weight of each layer."""
    codes: str
    """Base64 of one byte for each layer and token, layer by layer."""

    @classmethod
    def packed(cls, scale: Sequence[float], codes: bytes) -> Self:
        """Weights from each layer's scale and the codes, layer by layer."""
        return cls(scale=tuple(float(f"{each:.6g}") for each in scale), codes=_text(codes))

    def rows(self) -> list[list[float]]:
        """The weights, `rows()[layer][token]`, in [0, 1]."""
        shares = [(code / LEVELS) ** 2 for code in range(LEVELS + 1)]
        return [
            [scale * shares[code] for code in row]
            for scale, row in zip(self.scale, _split(_bytes(self.codes), len(self.scale)), strict=True)
        ]


class Ranks(_Record):
    """Ranks of tokens in every layer, `(layer, token)`: 0 for the lowest, equal for ties."""

    codes: str
    """Base64 of two bytes for each layer and token, low byte first, layer by layer: 0 for the lowest rank, equal for
    ties."""

    @classmethod
    def packed(cls, codes: bytes) -> Self:
        """Ranks from the codes, layer by layer."""
        return cls(codes=_text(codes))

    def rows(self, n_layers: int) -> list[list[int]]:
        """The ranks, `rows(n)[layer][token]`."""
        numbers = array("H", _bytes(self.codes))
        if sys.byteorder == "big":
            numbers.byteswap()
        return [list(row) for row in _split(numbers, n_layers)]


class PromptDemonstration(_Record):
    """One demonstration of the prompt."""

    pieces: tuple[str, ...]
    """Texts of its tokens, which joined give its text; empty for a token whose character a later token completes."""
    answer_tokens: int = Field(ge=0)
    """Number of tokens at its end that are the answer."""


class QueryAttention(_Record):
    """One query, each learner's answer, and the attention of the probe token."""

    query: int
    """Row number in the report split's file, from 0."""
    pieces: tuple[str, ...]
    """Texts of its tokens up to the probe, as for a demonstration."""
    answers: tuple[str, ...]
    """Candidate answers."""
    label: int
    """Index of the right answer, from 0."""
    probabilities: dict[Learner, tuple[Number, ...]]
    """Probability of each answer, summing to 1 over the answers."""
    zsl: Weights
    """Attention weights of zero-shot on the query's tokens."""
    icl: Weights
    """Attention weights of ICL on the tokens of all demonstrations, followed by those of the query."""
    ft: Weights
    """Attention weights of FT on the query's tokens."""
    on_demonstrations: tuple[float, ...]
    """Total weight of ICL on the demonstrations' tokens, for each layer."""
    elsewhere: dict[Literal["zsl", "icl", "ft"], tuple[float, ...]]
    """Total weight on other tokens (the opening token, separators), for each layer; all weights of a layer sum to 1."""
    ft_ranks: Ranks | None = None
    """Ranks of the demonstrations' tokens under FT; None without demonstrations, or if training recorded no attention
    queries."""
    kendall: tuple[Number, ...] | None = None
    """Kendall's tau-b of m_ICL and m_FT over these tokens, for each layer, as in `similarity.kendall`."""


class AttentionRecord(_Record):
    """The attention of one seed's learners on a few queries."""

    schema_version: Literal[1] = Field(default=ATTENTION_SCHEMA_VERSION, alias="schema")
    """Version of this schema, 1."""
    dualform: str
    """Version of dualform that wrote the file."""
    model: str
    """Name of the model."""
    task: str
    """Name of the task."""
    seed: int
    """Demonstration seed."""
    probe: Literal["prompt", "label0"]
    """The token whose attention is recorded: `prompt` (the token that predicts the label) or `label0` (the last token
    of the first label word)."""
    n_layers: int = Field(ge=1)
    """Number of attention layers."""
    demonstrations: tuple[PromptDemonstration, ...]
    """The demonstrations, in the order of the prompt."""
    examples: tuple[QueryAttention, ...]
    """The chosen queries, most informative first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        n_demonstrations = self.n_demonstration_tokens
        for example in self.examples:
            n_own = len(example.pieces)
            for name, weights, n_tokens in (
                ("zsl", example.zsl, n_own),
                ("icl", example.icl, n_demonstrations + n_own),
                ("ft", example.ft, n_own),
            ):
                if len(weights.scale) != self.n_layers or len(_bytes(weights.codes)) != self.n_layers * n_tokens:
                    raise ValueError(f"query {example.query}: weights of {name} are not (layer, token)")
            ranks = example.ft_ranks
            if ranks is not None and len(_bytes(ranks.codes)) != 2 * self.n_layers * n_demonstrations:
                raise ValueError(f"query {example.query}: ft_ranks are not (layer, token)")
            by_layer = (example.on_demonstrations, *example.elsewhere.values(), example.kendall)
            if any(values is not None and len(values) != self.n_layers for values in by_layer):
                raise ValueError(f"query {example.query}: not one number a layer")
            if not 0 <= example.label < len(example.answers):
                raise ValueError(f"query {example.query}: label {example.label} is not among its answers")
            if set(example.elsewhere) != {"zsl", "icl", "ft"}:
                raise ValueError(f"query {example.query}: elsewhere is of {sorted(example.elsewhere)}")
            if any(len(each) != len(example.answers) for each in example.probabilities.values()):
                raise ValueError(f"query {example.query}: not one probability an answer")
        return self

    @property
    def n_demonstration_tokens(self) -> int:
        """Number of tokens of all demonstrations."""
        return sum(len(each.pieces) for each in self.demonstrations)

    @classmethod
    def from_json(cls, text: str) -> "AttentionRecord":
        """Read `attention.json`.

        Raises:
            ValueError: The text is damaged, or does not follow the schema.
        """
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """The text of `attention.json`."""
        return self.model_dump_json(by_alias=True)


def _text(codes: bytes) -> str:
    return base64.b64encode(codes).decode("ascii")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"weights are not base64 ({error})") from error


def _split(numbers: "bytes | array[int]", n_rows: int) -> "Iterator[bytes | array[int]]":
    """`n_rows` rows of equal length."""
    width = len(numbers) // n_rows
    for row in range(n_rows):
        yield numbers[row * width : (row + 1) * width]

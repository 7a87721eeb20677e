"""A world of words: each is a vector x, and what is asked of it is whether w x > 0 for a hidden w.

So in-context regression can be put to a language model: examples are texts, their labels words, and the ordinary
encoder, learners and measures work on them unchanged. The vectors are known, so that the same learning can be done by
hand beside it.
"""

import math
from dataclasses import dataclass, field

import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dualform.errors import ConfigError
from dualform.ops.streams import stream
from dualform.tasks.task import Example, Task, Template

BOS, EOS, UNKNOWN, IS = "<s>", "</s>", "<unk>", "is"
LABEL_WORDS = ("negative", "positive")
_FIRST = (BOS, EOS, UNKNOWN, IS, *LABEL_WORDS)


@dataclass(frozen=True)
class TokenWorld:
    """Words and their vectors."""

    x: Tensor = field(repr=False)
    """Vector of each word, `(word, d)`, float64."""

    def __post_init__(self) -> None:
        if self.x.dim() != 2 or len(self.x) < 4:
            raise ConfigError(f"a world needs vectors (word, d) of 4 words at least; given {tuple(self.x.shape)}")

    @classmethod
    def draw(cls, dimension: int, words: int, seed: int) -> "TokenWorld":
        """Words with normal vectors, the identity for their covariance; equal seeds give equal worlds."""
        generator = stream("words", seed)
        return cls(torch.randn(words, dimension, generator=generator, dtype=torch.float64))

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self.x.shape[1]

    @property
    def words(self) -> tuple[str, ...]:
        """All words that have a vector, in the order of `x`."""
        width = len(str(len(self.x) - 1))
        return tuple(f"w{number:0{width}d}" for number in range(len(self.x)))

    @property
    def memories(self) -> tuple[str, ...]:
        """Words that stand for the axes of the vectors: a constructed layer keeps a column of its W_0 in each."""
        return tuple(f"m{axis}" for axis in range(self.dimension))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token; its place is its id."""
        return (*_FIRST, *self.memories, *self.words)

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Ids of `LABEL_WORDS`."""
        return tuple(range(len(_FIRST) - len(LABEL_WORDS), len(_FIRST)))

    @property
    def memory_ids(self) -> tuple[int, ...]:
        """Ids of `memories`."""
        return tuple(range(len(_FIRST), len(_FIRST) + self.dimension))

    @property
    def first_word(self) -> int:
        """Id of the first word that has a vector; the others follow."""
        return len(_FIRST) + self.dimension

    def vectors(self, ids: Tensor) -> Tensor:
        """Vectors of tokens, `(..., d)`: zero for those that have none.

        Args:
            ids: Token ids, `(...)`.
        """
        table = self.x.new_zeros(len(self.vocabulary), self.dimension)
        table[self.first_word :] = self.x
        return table[ids]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word, words parted by white space; it adds no token of its own accord."""
        ids = {word: number for number, word in enumerate(self.vocabulary)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=UNKNOWN))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=UNKNOWN
        )

    def task(self, seed: int, *, remembering: bool = False, asking: bool = False) -> Task:
        """Whether w x is positive, for a w of this seed's own.

        Args:
            seed: Of w and of how words are shared out.
            remembering: Put the memories in front of every word that is asked for, but of no demonstration: they are
                the query-side tokens of arXiv:2212.10559, whose values hold what the model knows without context.
                Linear attention has no normaliser, so that in the demonstrations each would count once more.
            asking: Put the word `is` behind every word, so that what answers is not the word itself, and a query has
                more than one token to attend to.

        Returns:
            Half of the words for demonstrations, a sixth to choose on, a third to report; no word in two of them.
        """
        generator = stream("task", seed)
        w = torch.randn(self.dimension, generator=generator, dtype=torch.float64) / math.sqrt(self.dimension)
        order = torch.randperm(len(self.x), generator=generator).tolist()
        labels = (self.x @ w > 0).long().tolist()
        memory = " ".join(self.memories) + " " if remembering else ""
        ends = (len(order) // 2, len(order) * 2 // 3)
        parts = {"train": order[: ends[0]], "validation": order[ends[0] : ends[1]], "test": order[ends[1] :]}
        return Task(
            name="token world",
            source="drawn in the laboratory",
            splits={
                split: tuple(
                    Example({"memory": "" if split == "train" else memory, "word": self.words[row]}, labels[row], row)
                    for row in rows
                )
                for split, rows in parts.items()
            },
            template=Template("{memory}{word}" + (f" {IS}" if asking else "")),
            label_words=LABEL_WORDS,
            label_names=None,
            selection_split="validation",
            report_split="test",
        )

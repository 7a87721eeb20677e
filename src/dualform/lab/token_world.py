"""A world of words, each with a vector x; the task is to tell whether w x > 0 for a hidden w.

This turns in-context regression into a task for language models: examples are texts and labels are words, so that the
ordinary encoder, learners and measures apply unchanged. The vectors are known, so that the same learning can also be
computed exactly.
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
            raise ConfigError(f"a world needs vectors (word, d) of at least 4 words; given {tuple(self.x.shape)}")

    @classmethod
    def draw(cls, dimension: int, words: int, seed: int) -> "TokenWorld":
        """Words with standard normal vectors; equal seeds give equal worlds."""
        generator = stream("words", seed)
        return cls(torch.randn(words, dimension, generator=generator, dtype=torch.float64))

    @property
    def dimension(self) -> int:
        """Dimension of the vectors."""
        return self.x.shape[1]

    @property
    def words(self) -> tuple[str, ...]:
        """All words with a vector, in the order of `x`."""
        width = len(str(len(self.x) - 1))
        return tuple(f"w{number:0{width}d}" for number in range(len(self.x)))

    @property
    def memories(self) -> tuple[str, ...]:
        """Memory words, one for each axis of the vectors: a constructed layer stores a column of W_0 in each."""
        return tuple(f"m{axis}" for axis in range(self.dimension))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens, in the order of their ids."""
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
        """Id of the first word with a vector; the others follow."""
        return len(_FIRST) + self.dimension

    def vectors(self, ids: Tensor) -> Tensor:
        """Vectors of tokens, `(..., d)`; zero for tokens without a vector.

        Args:
            ids: Token ids, `(...)`.
        """
        table = self.x.new_zeros(len(self.vocabulary), self.dimension)
        table[self.first_word :] = self.x
        return table[ids]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer with one token for each word, separated by white space; it adds no special tokens."""
        ids = {word: number for number, word in enumerate(self.vocabulary)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=UNKNOWN))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=UNKNOWN
        )

    def task(self, seed: int, *, remembering: bool = False, asking: bool = False) -> Task:
        """A task: is w x positive, for a random w?

        Args:
            seed: Seed of w and of the split of the words.
            remembering: Put the memory words in front of every query word, but not of demonstrations. They are the
                query-side tokens of arXiv:2212.10559, whose values store what the model knows without context. In
                demonstrations each would count again, because linear attention has no normaliser.
            asking: Put the word `is` after every word, so that a query has more than one token to attend to.

        Returns:
            Task with half of the words for demonstrations, a sixth for selection and a third for the report.
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

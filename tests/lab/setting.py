"""A small text with something in it to learn, a recipe to learn it by, and a way to break off."""

import math
import random
from collections.abc import Callable
from pathlib import Path

from dualform.lab.corpus import Corpus, build_corpus
from dualform.lab.recipe import Recipe
from dualform.lab.sources import TextFiles

_WHO = ("the miller", "a sailor", "the old queen", "my neighbour", "a tall stranger")
_DID = {"carried": "across the bridge", "painted": "in blue and green", "forgot": "on the kitchen table"}
_WHAT = ("a lantern", "the heavy basket", "seven letters", "a wooden horse")

VOCABULARY = 320


def sentences(n: int, seed: int = 0) -> list[str]:
    """What was done decides where or how: more than the frequencies of words."""
    draw = random.Random(seed)
    lines = []
    for _ in range(n):
        did = draw.choice(sorted(_DID))
        lines.append(f"{draw.choice(_WHO)} {did} {draw.choice(_WHAT)} {_DID[did]}.")
    return lines


def write_text(path: Path, n: int = 400, seed: int = 0) -> Path:
    """A paragraph a line, an empty line after every fifth to ninth."""
    draw = random.Random(seed)
    lines = sentences(n, seed)
    while len(lines) > 9:
        part, lines = lines[: (cut := draw.randint(5, 9))], lines[cut:]
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(part) + "\n\n")
    return path


def small_corpus(
    folder: Path, name: str = "train", n: int = 400, seed: int = 0, corpus: Corpus | None = None
) -> Corpus:
    """Such a text as tokens, by the tokenizer of `corpus` where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = write_text(folder / f"{name}.txt", n, seed)
    return build_corpus(TextFiles((text,)), folder, corpus.tokenizer if corpus else VOCABULARY, name=name)


def small_recipe(**settings: object) -> Recipe:
    """Milliseconds a step."""
    model = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    given = {
        "model": model,
        "vocab_size": VOCABULARY,
        "length": 16,
        "tokens": 128 * 12,
        "batch_tokens": 128,
        "micro_batch": 8,
        "learning_rate": 1e-2,
        "warmup": 0.1,
        "checkpoint_every": 5,
        "evaluate_every": 4,
        "evaluate_tokens": 256,
    }
    return Recipe.model_validate(given | settings)


class PulledPlugError(Exception):
    """Someone pulled the plug."""


class StopAt:
    """A bar that breaks off once so many steps of a small recipe are done, and keeps the messages it received.

    Args:
        step: How many.
        how: Called first.
    """

    def __init__(self, step: float = math.inf, how: Callable[[], None] | None = None) -> None:
        self.step, self.how, self.seen, self.total = step, how, 0.0, 0.0
        self.messages: list[str] = []

    def start(self, total: float) -> None:
        self.total = total

    def advance(self, amount: float, doing: str) -> None:
        self.seen += amount
        self.messages.append(doing)
        if self.seen >= self.step * 128:
            if self.how:
                self.how()
            raise PulledPlugError

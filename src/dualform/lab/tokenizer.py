"""A tokenizer of a corpus's own: byte-level BPE, so that any text can be written in it."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from dualform.errors import ConfigError, TaskError

END_OF_TEXT = "<|endoftext|>"
"""Stands between documents; the only special token."""

SMALLEST_VOCABULARY = 257
"""256 bytes and the end-of-text token."""


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from documents; equal documents give an equal tokenizer.

    Args:
        documents: Read once, a few at a time.
        vocab_size: Tokens asked for. A text with little in it to merge gives fewer.

    Returns:
        The tokenizer. It adds no token of its own accord; `<|endoftext|>` (id 0) is its beginning, end and padding.

    Raises:
        ConfigError: `vocab_size` does not hold the bytes and the end-of-text token.
        TaskError: There is no document.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens is too small: {SMALLEST_VOCABULARY} or more are needed, 256 for the "
            "bytes and one for the end of a text."
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for document in documents:
            seen += 1
            yield document

    backend.train_from_iterator(counted(), trainer)
    if not seen:
        raise TaskError("there is no text to learn a tokenizer from. Name a file or data set with documents in it.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of all that decides which tokens a text becomes; saving and loading leave it as it is."""
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by the last call that cut or padded; no part of what the tokenizer is.
    for passing in ("truncation", "padding"):
        described.pop(passing, None)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

"""Byte-level BPE tokenizers trained on a corpus; they can encode any text."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from dualform.errors import ConfigError, TaskError

END_OF_TEXT = "<|endoftext|>"
"""Token between documents; the only special token."""

SMALLEST_VOCABULARY = 257
"""256 bytes and the end-of-text token."""


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on documents; equal documents give equal tokenizers.

    Args:
        documents: Documents, read once as a stream.
        vocab_size: Largest number of tokens; a short or repetitive text gives fewer.

    Returns:
        The tokenizer. It adds no special tokens; `<|endoftext|>` (id 0) is its bos, eos and padding token.

    Raises:
        ConfigError: If `vocab_size` is too small for the bytes and the end-of-text token.
        TaskError: If there is no document.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens is too small: at least {SMALLEST_VOCABULARY} are needed, 256 for the "
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
    n_documents = 0

    def counted() -> Iterator[str]:
        nonlocal n_documents
        for document in documents:
            n_documents += 1
            yield document

    backend.train_from_iterator(counted(), trainer)
    if not n_documents:
        raise TaskError("there is no text to train a tokenizer on. Name a file or data set with documents in it.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that determines the tokens of a text; saving and loading do not change it."""
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # These depend on the last call that truncated or padded.
    for transient in ("truncation", "padding"):
        description.pop(transient, None)
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

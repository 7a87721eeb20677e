"""The text of each token of a sequence, so that they joined are the sequence's text."""

import codecs
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Bytes of one character; where a vocabulary does not say its tokens' bytes, a longer run that makes no text is none.
_LONGEST_CHARACTER = 4
_PLAIN_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_OF = {
    **{chr(byte): byte for byte in _PLAIN_BYTES},
    **{chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(_PLAIN_BYTES)))},
}
"""The letter that stands for each byte in a byte-level vocabulary (GPT-2's)."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text.

    A token of a byte-level vocabulary may be a piece of one character, and means nothing alone. Its part is then '',
    and the token that completes the character gets it. Bytes that never become a character are shown as U+FFFD; one
    that stands in the text is a character like others.

    Args:
        tokenizer: Whose tokens they are.
        ids: Token ids.

    Returns:
        One text a token; joined, they are what the tokenizer decodes the whole to.
    """

    def decode(some: Sequence[int]) -> str:
        text = tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    texts: list[str] = []
    # What is before `start` no longer matters; what is before `told` is in the texts already. Decoding from a little
    # before tells whether a space belongs to a token, and costs the same for every token of a long text.
    start = told = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[start:told]), decode(ids[start:end])
        if end < len(ids) and now.endswith(_BROKEN) and _is_unfinished(tokenizer, ids[told:end]):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, told = told, end
    return tuple(texts)


def _is_unfinished(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether tokens whose text ends in U+FFFD end within a character, so that a later one may complete it."""
    parts = [_bytes_of(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return len(ids) < _LONGEST_CHARACTER
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(b"".join(known))
    return bool(decoder.getstate()[0])


def _bytes_of(token: str) -> bytes | None:
    """What a token stands for; None where its name does not say."""
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
        return bytes.fromhex(token[3:5])
    if token.endswith(_BROKEN):
        return token.encode()
    if all(letter in _BYTE_OF for letter in token):
        return bytes(_BYTE_OF[letter] for letter in token)
    return None

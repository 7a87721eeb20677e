"""The text of each token of a sequence; joined, these texts are the text of the whole sequence."""

import codecs
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Most bytes of a UTF-8 character. If token names do not show bytes, this many tokens without a character are invalid.
_LONGEST_CHARACTER = 4
_PLAIN_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE_OF = {
    **{chr(byte): byte for byte in _PLAIN_BYTES},
    **{chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(_PLAIN_BYTES)))},
}
"""The letter that stands for each byte in a byte-level vocabulary (GPT-2's)."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The part of the text that each token stands for.

    A token of a byte-level vocabulary may be only a part of a character. Its text is then '', and the token that
    completes the character gets the whole character. Bytes that never form a character become U+FFFD. Joined, the
    texts equal the decoded sequence.
    """

    def decode(part: Sequence[int]) -> str:
        text = tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    texts: list[str] = []
    # Tokens before `done` have their texts already. Decoding starts at `start`, one step earlier: this shows whether a
    # space belongs to the token, at the same cost for every token of a long text.
    start = done = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[start:done]), decode(ids[start:end])
        if end < len(ids) and now.endswith(_BROKEN) and _is_unfinished(tokenizer, ids[done:end]):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, done = done, end
    return tuple(texts)


def _is_unfinished(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether tokens whose text ends in U+FFFD end inside a character that later tokens may complete."""
    parts = [_bytes_of(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return len(ids) < _LONGEST_CHARACTER
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(b"".join(known))
    return bool(decoder.getstate()[0])


def _bytes_of(token: str) -> bytes | None:
    """The bytes of a token; None if its name does not show them."""
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
        return bytes.fromhex(token[3:5])
    if token.endswith(_BROKEN):
        return token.encode()
    if all(letter in _BYTE_OF for letter in token):
        return bytes(_BYTE_OF[letter] for letter in token)
    return None

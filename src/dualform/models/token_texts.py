"""The text of each token of a sequence, so that they joined are the sequence's text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Bytes of one character; a longer run that makes no text is none.
_LONGEST_CHARACTER = 4


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text.

    A token of a byte-level vocabulary may be a piece of one character, and means nothing alone. Its part is then '',
    and the token that completes the character gets it. Bytes that never become a character are shown as U+FFFD.

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
        waiting = now.endswith(_BROKEN) and end - told < _LONGEST_CHARACTER and end < len(ids)
        if waiting:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, told = told, end
    return tuple(texts)

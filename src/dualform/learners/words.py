"""Words of texts, and their TF-IDF weights: what learners see that read words instead of tokens.

A word is a run of letters, digits, underscores and combining marks. In scripts that are written without spaces every
character is a word of its own, so that pairs of neighbouring words are pairs of characters: the usual index terms for
such languages, where words would need a segmenter for each language.
"""

import re
from collections.abc import Sequence
from typing import Any

from dualform.errors import ConfigError
from dualform.models.reading.layout import Query

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u109f"  # Tibetan, Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
# Python's \w leaves out combining marks, without which words of many scripts fall apart.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
WORD = rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w{_MARKS}])+"
"""Pattern of a word."""

_PIECE = re.compile(rf"\s*(?:[{_UNSPACED}]|(?:(?![{_UNSPACED}])\S)+)")


def tfidf_vectorizer() -> Any:
    """An unfitted scikit-learn vectorizer: TF-IDF of words and of pairs of neighbouring words, in lower case.

    The frequency of a term in a text counts by its logarithm (`sublinear_tf`), and each text's vector has length 1.
    Every term counts, however rare: with few labelled texts most terms occur once.
    """
    # Imported here because it is slow.
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD)


def text_of(query: Query) -> str:
    """The texts of an example without the words of the template, one field a line.

    Raises:
        ConfigError: The query was made from tokens alone.
    """
    if not query.texts:
        raise ConfigError(
            "a query without texts was given to a learner that reads words: make queries with Encoder.query"
        )
    return "\n".join(query.texts)


def texts_of(queries: Sequence[Query]) -> list[str]:
    """`text_of` each query."""
    return [text_of(query) for query in queries]


def pieces(text: str) -> list[str]:
    """The text cut into words, each with the white space before it; together they are the text without its end.

    In scripts without spaces every character is a piece.
    """
    return _PIECE.findall(text)

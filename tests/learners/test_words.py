import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from dualform.errors import ConfigError
from dualform.learners.words import pieces, text_of, tfidf_vectorizer
from dualform.models.reading.layout import Query


def words(text: str) -> list[str]:
    return [term for term in tfidf_vectorizer().build_analyzer()(text) if " " not in term]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I gave it 5 stars!", ["i", "gave", "it", "5", "stars"]),
        ("Größe, nicht Länge", ["größe", "nicht", "länge"]),
        # Written without spaces: each character is a word.
        ("映画は良い", ["映", "画", "は", "良", "い"]),
        ("新しいiPhone15です", ["新", "し", "い", "iphone15", "で", "す"]),
        # Vowel signs belong to their word.
        ("यह फिल्म अच्छी है", ["यह", "फिल्म", "अच्छी", "है"]),
        ("... !?", []),
    ],
)
def test_words(text: str, expected: list[str]):
    assert words(text) == expected


def test_the_usual_words_of_scikit_learn_would_be_whole_sentences_of_japanese():
    assert TfidfVectorizer().build_analyzer()("映画は良い") == ["映画は良い"]


def test_pairs_of_words_are_terms():
    assert "not good" in tfidf_vectorizer().build_analyzer()("not good")
    assert "良 い" in tfidf_vectorizer().build_analyzer()("良い")


def test_weights_are_those_of_the_formula():
    # tf = 1 + log n, idf = 1 + log((1 + N) / (1 + df)), and each row has length 1.
    texts = ["a a b", "b c"]
    vectorizer = tfidf_vectorizer()
    row = vectorizer.fit_transform(texts).toarray()[0]
    rare, common = 1 + np.log(3 / 2), 1 + np.log(3 / 3)
    raw = {"a": (1 + np.log(2)) * rare, "b": common, "a a": rare, "a b": rare}
    length = np.sqrt(sum(weight**2 for weight in raw.values()))
    names = vectorizer.get_feature_names_out()
    expected = [raw.get(name, 0.0) / length for name in names]
    np.testing.assert_allclose(row, expected, rtol=1e-12)


@pytest.mark.parametrize("text", ["a warm  film, with wit.", "映画は良い。また見たい", " 新しい iPhone 15", ""])
def test_pieces_together_are_the_text(text: str):
    assert "".join(pieces(text)) == text
    assert all(piece.strip() and " " not in piece.strip() for piece in pieces(text))


def test_pieces_are_words_or_characters():
    assert pieces("a warm film") == ["a", " warm", " film"]
    assert pieces("良い film") == ["良", "い", " film"]


def test_the_text_of_a_query_is_all_its_fields():
    assert text_of(Query((1,), (), ("one", "two"))) == "one\ntwo"
    with pytest.raises(ConfigError, match="make queries with Encoder"):
        text_of(Query((1,), ()))

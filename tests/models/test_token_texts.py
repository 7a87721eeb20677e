import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualform.models.token_texts import token_texts
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def texts_of(text: str) -> tuple[str, ...]:
    return token_texts(TOKENIZER, TOKENIZER(text, add_special_tokens=False)["input_ids"])


@given(st.text(max_size=40))
def test_joined_they_are_the_text(text: str) -> None:
    assert "".join(texts_of(text)) == text


def test_each_token_has_its_own_text() -> None:
    assert texts_of(" positive film") == (" positive", " film")


@pytest.mark.parametrize("character", ["ï", "語", "😀"])
def test_a_character_of_several_tokens_stands_at_the_last_of_them(character: str) -> None:
    parts = texts_of(f"{character} film")
    pieces = len(character.encode())
    assert parts == (*[""] * (pieces - 1), character, " film")


def test_one_at_a_time_such_tokens_would_be_no_text() -> None:
    """The case in which the claim fails: tokens decoded alone."""
    ids = TOKENIZER("語", add_special_tokens=False)["input_ids"]
    assert "".join(TOKENIZER.decode([each]) for each in ids) == "\ufffd" * 3


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    start = TOKENIZER("語", add_special_tokens=False)["input_ids"][0]
    film = TOKENIZER(" film", add_special_tokens=False)["input_ids"]
    parts = token_texts(TOKENIZER, [start, *film])
    assert len(parts) == 2
    assert "".join(parts) == "\ufffd film"


def test_no_tokens_have_no_texts() -> None:
    assert token_texts(TOKENIZER, []) == ()

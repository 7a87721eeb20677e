import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dualform.models.loading.packaged import is_local, packaged_model
from dualform.models.reading.token_texts import token_texts
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PACKAGED = "smollm2-135m"


def texts_of(text: str, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> tuple[str, ...]:
    return token_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's and Gemma's: a token a word, bytes for all else, and U+FFFD a token of its own."""
    words = ("<unk>", "\u2581film", "\ufffd", *(f"<0x{byte:02X}>" for byte in range(256)))
    vocabulary = {word: place for place, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(st.text(max_size=40) | st.text(alphabet="a \ufffd語\xe9", max_size=12))
def test_joined_they_are_the_text(text: str) -> None:
    assert "".join(texts_of(text)) == text


def test_each_token_has_its_own_text() -> None:
    assert texts_of(" positive film") == (" positive", " film")


@pytest.mark.parametrize("character", ["ï", "語", "😀"])
def test_a_character_of_several_tokens_belongs_to_the_last_of_them(character: str) -> None:
    parts = texts_of(f"{character} film")
    pieces = len(character.encode())
    assert parts == (*[""] * (pieces - 1), character, " film")


def test_decoding_such_tokens_one_at_a_time_gives_no_text() -> None:
    """The case in which the claim fails: tokens decoded alone."""
    ids = TOKENIZER("語", add_special_tokens=False)["input_ids"]
    assert "".join(TOKENIZER.decode([each]) for each in ids) == "\ufffd" * 3


def test_invalid_bytes_become_replacement_characters() -> None:
    start = TOKENIZER("語", add_special_tokens=False)["input_ids"][0]
    film = TOKENIZER(" film", add_special_tokens=False)["input_ids"]
    parts = token_texts(TOKENIZER, [start, *film])
    assert len(parts) == 2
    assert "".join(parts) == "\ufffd film"


@pytest.mark.parametrize("text", ["\ufffd", "\ufffd\ufffd", "語\ufffd", "\ufffd語"])
def test_a_replacement_character_in_the_text_is_kept(text: str) -> None:
    expected = [part for character in text for part in (*[""] * (len(character.encode()) - 1), character)]
    assert texts_of(f"{text} film") == (*expected, " film")


def test_tokens_after_a_replacement_character_keep_their_own_texts() -> None:
    assert texts_of(" film\ufffd film positive film") == (" film", "", "", "\ufffd", " film", " positive", " film")


def test_byte_fallback_tokens_are_decoded_as_well() -> None:
    tokenizer = byte_fallback()
    names = ["<0xE8>", "<0xAA>", "<0x9E>", "\u2581film", "\ufffd", "\u2581film", "\u2581film"]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert token_texts(tokenizer, ids) == ("", "", "語", " film", "\ufffd", " film", " film")


@pytest.mark.real
def test_a_packaged_vocabulary_merges_nothing_after_a_replacement_character() -> None:
    if not is_local(PACKAGED):
        pytest.skip("not in the cache")
    tokenizer = AutoTokenizer.from_pretrained(packaged_model(PACKAGED))
    parts = texts_of("bad \ufffd here we go on", tokenizer)
    assert "".join(parts) == "bad \ufffd here we go on"
    assert parts[-4:] == (" here", " we", " go", " on")


def test_no_tokens_have_no_texts() -> None:
    assert token_texts(TOKENIZER, []) == ()

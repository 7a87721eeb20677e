import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualform.errors import ConfigError, HubError, StorageError, TaskError
from dualform.lab import sources
from dualform.lab.corpus import Corpus, build_corpus
from dualform.lab.sources import HubText, TextFiles, find_source
from dualform.lab.tokenizer import END_OF_TEXT, tokenizer_digest, train_tokenizer
from tests.lab.setting import VOCABULARY, sentences, small_corpus, write_text
from tests.tiny import tiny_tokenizer


def written(path: Path, text: str) -> TextFiles:
    path.write_text(text, encoding="utf-8", newline="")
    return TextFiles((path,))


def decoded(corpus: Corpus) -> list[str]:
    """The slow way back: all tokens as text, cut where a document ends."""
    assert corpus.ids[0] == corpus.ids[-1] == corpus.tokenizer.eos_token_id
    cuts = np.flatnonzero(corpus.ids == corpus.tokenizer.eos_token_id)
    return [corpus.tokenizer.decode(corpus.ids[start + 1 : end].tolist()) for start, end in pairwise(cuts)]


# --- sources ---


def test_an_empty_line_ends_a_document_and_the_end_of_a_file_does_too(tmp_path: Path) -> None:
    first = written(tmp_path / "a.txt", "\n\none\ntwo  \r\n \nthree\n\n\n").paths
    second = written(tmp_path / "b.txt", "four\nfive").paths
    assert list(TextFiles(first + second).documents()) == ["one\ntwo  ", "three", "four\nfive"]


def test_a_mark_at_the_beginning_of_a_file_is_no_text(tmp_path: Path) -> None:
    assert list(written(tmp_path / "a.txt", "\ufeffone\n\n\ufefftwo").documents()) == ["one", "\ufefftwo"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_line_of_json_is_a_document(name: str, tmp_path: Path) -> None:
    lines = b'{"text": "one\\n\\ntwo", "n": 1}\n\n{"text": " "}\n{"text": "three"}\n'
    (tmp_path / name).write_bytes(gzip.compress(lines, mtime=0) if name.endswith("gz") else lines)
    assert list(find_source([str(tmp_path / name)]).documents()) == ["one\n\ntwo", "three"]


def test_a_gzipped_text_is_the_text(tmp_path: Path) -> None:
    plain = write_text(tmp_path / "a.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert list(TextFiles((tmp_path / "b.txt.gz",)).documents()) == list(TextFiles((plain,)).documents())


def test_a_document_without_end_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 20)
    lines = sentences(50)
    documents = list(written(tmp_path / "a.txt", "\n".join(lines)).documents())
    assert documents == lines  # each is longer than 20


def test_files_are_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 1 << 12)
    source = written(tmp_path / "a.txt", "\n".join(sentences(40_000)))
    size = source.paths[0].stat().st_size
    tracemalloc.start()
    try:
        n = sum(1 for _ in source.documents())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n > 400
    assert most < size / 10


# Without the time, which gzip writes into a file: it would become part of the test's name.
_CUT_SHORT = gzip.compress(b"good\n" * 99, mtime=0)[:-12]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xe4d", r"line 2 of .*a\.txt is not UTF-8 \(byte 2 of the line\)\. Convert"),
        ("a.jsonl", b'{"text": "good"}\n{"text"', r"line 2 of .* is not JSON"),
        ("a.jsonl", b'{"body": "good"}', r"line 1 of .* has the columns body, but no text in 'text'\. Name"),
        ("a.jsonl", b'{"text": 3}', r"line 1 of .* has the columns text, but no text in 'text'"),
        ("a.jsonl", b'["text"]', r"line 1 of .* is not an object"),
        (
            "a.txt.gz",
            gzip.compress(b"good\n" * 99, mtime=0)[:-12],
            r"a\.txt\.gz is damaged after line \d+: ",
        ),
        ("a.txt.gz", b"good", r"a\.txt\.gz is damaged after line 0"),
    ],
)
def test_unreadable_text_is_an_error_that_names_the_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    source = TextFiles((tmp_path / name,))
    with pytest.raises(TaskError, match=message):
        list(source.documents())
    # The same where a library asks for the documents.
    with pytest.raises(TaskError, match=message):
        build_corpus(source, tmp_path, VOCABULARY)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["missing.txt"], r"file missing\.txt does not exist"),
        (["text.pdf"], r"'text\.pdf' is neither an existing file \(\.txt, .* or \.jsonl\.gz\) nor a data set"),
        (["a/b", "c.txt"], r"'a/b' is not a file .* must be named alone"),
        ([], r"no text file was named"),
    ],
)
def test_a_name_without_a_source_is_an_error(where: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_source(where)


def test_an_unsupported_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    with pytest.raises(ConfigError, match=r"a\.md is not a supported text file"):
        find_source([str(tmp_path / "a.md")])


def test_a_name_of_the_hub_has_its_config() -> None:
    assert find_source(["owner/name:part"], split="validation", column="body") == HubText(
        "owner/name", "part", split="validation", column="body"
    )


def test_a_data_set_is_streamed_through_datasets(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": text} for text in ["one", " ", "two", "three"]]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(HubText(str(data)).documents()) == ["one", "two", "three"]
    assert list(HubText(str(data), limit=2).documents()) == ["one", "two"]
    with pytest.raises(TaskError, match=r"no text in column 'body'; its columns are text\."):
        list(HubText(str(data), column="body").documents())
    with pytest.raises(HubError, match=r"cannot read .*, split test from the hub \("):
        list(HubText(str(data), split="test").documents())


def test_without_a_network_the_hub_is_told_at_once() -> None:
    with pytest.raises(HubError, match=r"cannot read owner/name:part, split train from the hub \(.*local files"):
        next(HubText("owner/name", "part").documents())


def test_a_limit_of_no_documents_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"limit is 0 documents"):
        HubText("owner/name", limit=0)


# --- tokenizer ---


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer(sentences(50), VOCABULARY)
    assert len(tokenizer) == VOCABULARY
    for text in ("the miller carried a lantern.", "  Größe\t\n\n 漢字 🦆\x00", "\u0301"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_same_text_gives_the_same_tokenizer() -> None:
    # In another process, too: test_pretraining goes on there with a corpus that was made here.
    first, second = (train_tokenizer(sentences(50), VOCABULARY) for _ in range(2))
    assert tokenizer_digest(first) == tokenizer_digest(second)
    assert tokenizer_digest(first) != tokenizer_digest(train_tokenizer(sentences(51), VOCABULARY))


def test_a_saved_tokenizer_is_the_same_after_loading(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(sentences(50), VOCABULARY)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)
    assert loaded.bos_token == loaded.eos_token == loaded.pad_token == END_OF_TEXT
    assert loaded.eos_token_id == 0
    loaded(["one", "two and three"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(loaded) == tokenizer_digest(tokenizer)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a vocabulary of 256 tokens is too small: at least 257"):
        train_tokenizer(sentences(5), 256)
    assert len(train_tokenizer(sentences(5), 257)) == 257


def test_nothing_can_be_learned_from_no_text() -> None:
    with pytest.raises(TaskError, match="no text to train a tokenizer on"):
        train_tokenizer([], VOCABULARY)


# --- tokens on disk ---


def test_documents_stand_between_end_of_text_tokens_and_come_back_whole(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    documents = list(TextFiles((tmp_path / "train.txt",)).documents())
    assert decoded(corpus) == documents
    assert corpus.n_documents == len(documents) > 10
    assert corpus.n_bytes == sum(len(document.encode()) for document in documents)
    slow = [0, *(token for text in documents for token in [*corpus.tokenizer(text).input_ids, 0])]
    assert corpus.ids.tolist() == slow
    assert (corpus.count, corpus.dtype) == (len(slow), "<u2")


def test_a_document_that_speaks_of_the_end_of_text_does_not_end_there(tmp_path: Path) -> None:
    text = f"it writes {END_OF_TEXT} and goes on"
    corpus = build_corpus(written(tmp_path / "a.txt", f"{text}\n\nmore"), tmp_path, VOCABULARY)
    assert decoded(corpus) == [text, "more"]
    # What must not happen: the tokenizer as it comes takes those characters for the token.
    assert 0 in corpus.tokenizer(text).input_ids


def test_a_tokenizer_is_learned_from_the_beginning_of_a_long_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualform.lab.corpus._LEARNED_FROM", 2000)
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    corpus = build_corpus(source, tmp_path, VOCABULARY)
    documents = list(source.documents())
    n = next(n for n in range(len(documents)) if sum(map(len, documents[:n])) >= 2000)
    assert tokenizer_digest(corpus.tokenizer) == tokenizer_digest(train_tokenizer(documents[:n], VOCABULARY))
    assert corpus.n_documents == len(documents) > n


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    tokenizer = train_tokenizer(sentences(50), VOCABULARY)
    expected = build_corpus(source, tmp_path, tokenizer).ids.tolist()
    tokenizer.add_tokens([f"<{i}>" for i in range(1 << 16)])
    corpus = build_corpus(source, tmp_path, tokenizer)
    assert corpus.dtype == "<u4"
    assert corpus.ids.tolist() == expected


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(ConfigError, match="no end-of-text token"):
        build_corpus(TextFiles((write_text(tmp_path / "a.txt"),)), tmp_path, tokenizer)


def test_an_empty_text_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "a.txt", "\n \n\n")
    with pytest.raises(TaskError, match=r"a\.txt contains no text"):
        build_corpus(source, tmp_path / "out", train_tokenizer(sentences(5), VOCABULARY))
    assert list((tmp_path / "out").iterdir()) == []


class _Unreadable(TextFiles):
    """The same files, which must not be read again."""

    def documents(self) -> Iterator[str]:
        raise AssertionError


def test_what_was_written_is_used_again_and_not_when_anything_differs(tmp_path: Path) -> None:
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    corpus = build_corpus(source, tmp_path, VOCABULARY)
    again = build_corpus(_Unreadable(source.paths), tmp_path, VOCABULARY)
    assert (again.digest, again.count, again.n_bytes) == (corpus.digest, corpus.count, corpus.n_bytes)
    assert tokenizer_digest(again.tokenizer) == tokenizer_digest(corpus.tokenizer)
    with pytest.raises(AssertionError):
        build_corpus(_Unreadable(source.paths), tmp_path, VOCABULARY + 1)
    other = train_tokenizer(sentences(9), VOCABULARY)
    with pytest.raises(AssertionError):
        build_corpus(_Unreadable(source.paths), tmp_path, other)
    source.paths[0].write_text("Another text.")
    with pytest.raises(AssertionError):
        build_corpus(_Unreadable(source.paths), tmp_path, corpus.tokenizer)
    assert build_corpus(source, tmp_path, corpus.tokenizer).digest != corpus.digest


@pytest.mark.parametrize("harm", ["tokens cut", "tokens gone", "description gone", "description half written"])
def test_what_is_not_whole_is_written_again(harm: str, tmp_path: Path) -> None:
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    corpus = build_corpus(source, tmp_path, VOCABULARY)
    description = corpus.path.with_suffix(".json")
    if harm == "tokens cut":
        os.truncate(corpus.path, corpus.path.stat().st_size - 2)
    elif harm == "tokens gone":
        corpus.path.unlink()
    elif harm == "description gone":
        description.unlink()
    else:
        os.truncate(description, 20)
    again = build_corpus(source, tmp_path, VOCABULARY)
    assert again.digest == corpus.digest
    assert again.ids.tolist() == corpus.ids.tolist()


def test_breaking_off_leaves_the_old_tokens(tmp_path: Path) -> None:
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    corpus = build_corpus(source, tmp_path, VOCABULARY)
    before = corpus.path.read_bytes()
    (tmp_path / "b.txt").write_bytes(b"good\n\n\xff\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        build_corpus(TextFiles((tmp_path / "b.txt",)), tmp_path, corpus.tokenizer)
    assert corpus.path.read_bytes() == before
    assert build_corpus(_Unreadable(source.paths), tmp_path, VOCABULARY).digest == corpus.digest


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    source = TextFiles((write_text(tmp_path / "a.txt"),))
    with pytest.raises(StorageError, match="a file of that name exists"):
        build_corpus(source, tmp_path / "a.txt", VOCABULARY)

"""Damaged and hostile files: each ends in rows or in one TaskError of one line, quickly and within little memory."""

import gzip
import json
import os
import random
import re
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualform.errors import TaskError
from dualform.tasks.decoding import LIMIT_VARIABLE
from dualform.tasks.sources import load_task

MIB = 1 << 20
TEXTS = [f"a text number {i}" for i in range(40)]


def outcome(path: Path | str, **options: Any) -> str:
    """`rows`, or the message; anything else is raised."""
    try:
        load_task(path, **options)
    except TaskError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 2000, message
        return message
    return "rows"


def table() -> Any:
    return pyarrow.table({"text": TEXTS, "label": [i % 2 for i in range(40)], "weight": [float(i) for i in range(40)]})


def parquet_bytes(**how: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table(), sink, **how)
    return bytes(sink.getvalue())


def arrow_bytes() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.feather.write_feather(table(), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_any_flipped_byte_of_a_columnar_file_ends_in_rows_or_one_message(tmp_path: Path, suffix: str) -> None:
    whole = parquet_bytes() if suffix == ".parquet" else arrow_bytes()
    path = tmp_path / f"t{suffix}"
    generator = random.Random(0)
    ends = set()
    for _ in range(250):
        damaged = bytearray(whole)
        for place in generator.sample(range(len(whole)), generator.choice([1, 1, 1, 3])):
            damaged[place] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        ends.add(outcome(path) == "rows")
    # Bytes of a text may change unseen; others may not.
    assert False in ends


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_columnar_file_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    whole = parquet_bytes() if suffix == ".parquet" else arrow_bytes()
    path = tmp_path / f"t{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    assert "t." in outcome(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(st.sampled_from([*'",;|\t\n\r\\0 ', "a", "text", "label", "\ufeff"])).map(
            lambda parts: "".join(["text,label\n", *parts]).encode()
        ),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "label", "b"]), inner),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".parquet", ".arrow", ".yaml"]),
    skip=st.booleans(),
)
def test_whatever_a_file_holds(tmp_path: Path, content: bytes, suffix: str, skip: bool) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    outcome(path, skip_bad_rows=skip)


def deep(n: int) -> str:
    return "[" * n + "]" * n


def bombs(n: int) -> str:
    """A few lines of YAML whose aliases stand for 2 ** n values."""
    lines = ["x0: &x0 [1, 1]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, n))]
    return "\n".join([*lines, "data: mr"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"\x89PNG\r\n\x1a\n\x00\x00", "is a PNG image, not CSV"),
        ("a.csv", b"PK\x03\x04abc", "is an Excel workbook or another zip archive"),
        ("a.csv", b"PAR1", "is Parquet, not CSV"),
        ("a.jsonl", b"\x1f\x8b\x08", "packed with gzip"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "contains no rows"),
        ("a.csv", b",,,\n", "is empty"),
        ("a.csv", b"text,label\na\x00b,c\n", "line 2 contains a NUL byte"),
        ("a.csv", b"text,text\na,b\n", "has 2 columns named 'text'"),
        ("a.csv", b"a\nb\n", "no column 'label'"),
        ("a.csv", b'text,label\n"never closed,b\nc,d\ne,f,g\n', "3 cells where the first line names 2 columns"),
        ("a.json", deep(100_000).encode(), "nested too deeply"),
        ("a.json", ('{"a":' * 100_000).encode(), "nested too deeply"),
        ("a.jsonl", (deep(100_000) + "\n").encode(), "nested too deeply"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "Exceeds the limit|cannot be read as JSON"),
        ("a.jsonl", b'{"text": "\\ud800", "label": "\\udfff"}\n', "surrogate"),
        ("a.csv.gz", b"no gzip", "is damaged|compressed"),
        ("a.csv.gz", gzip.compress(b"text,label\n" * 1000, mtime=0)[:-20], "is damaged"),
        ("a.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "cannot be read as Parquet"),
        ("a.arrow", b"ARROW1" + b"\xff" * 100, "cannot be read as Arrow"),
        ("a.yaml", b"data: 2024-13-45\n", "cannot be read as a task file: month must be in 1..12"),
        ("a.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\ndata: *b\n", "unknown key 'a'"),
        ("a.yaml", bombs(30).encode(), "more than 2,000,000 values once its aliases"),
        ("a.yaml", deep(5000).encode(), "nests too deeply|maximum nesting depth at line 1"),
        ("a.yaml", b"data: " + b"9" * 5000, "a number of 5,000 digits"),
        ("a.yaml", b"data: a.csv\nprompt: [1]\n", r"prompt must be a text, not \[1\]"),
        ("a.yaml", b"\xff\xfe\x00", "UTF-16"),
    ],
)
def test_what_a_file_may_not_hold_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = outcome(path)
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file but a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file but a device"),
        (lambda path: path.symlink_to(path), "symbolic links are circular"),
        (lambda path: path.symlink_to(path.with_name("gone")), "does not exist"),
        (lambda path: None, "does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.yaml"])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], message: str, name: str
) -> None:
    make(tmp_path / name)
    assert message in outcome(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["~nosuchuser/t.csv", "x" * 5000 + ".csv", "x" * 5000, "a\x00b.csv", "half\ud83d.csv", "two\nlines.csv", ""]
)
def test_names_that_no_file_can_have(name: str) -> None:
    assert outcome(name) != "rows"


def peak_of(run: Callable[[], object]) -> float:
    """MiB that Python and Arrow hold at most while `run` runs."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    # One text of a megabyte, three thousand times: a dictionary of one entry on disk.
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array(["x" * MIB]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["a"] * 3000}), path)
    assert path.stat().st_size < MIB
    start = time.perf_counter()
    assert peak_of(lambda: outcome(path)) < 100
    assert "decompresses to" in outcome(path)
    assert LIMIT_VARIABLE in outcome(path)
    assert time.perf_counter() - start < 20


def test_a_parquet_file_of_very_many_rows_is_refused_by_its_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    n = 6_000_000
    pyarrow.parquet.write_table(pyarrow.table({"label": pyarrow.array([1], pyarrow.int8()).take([0] * n)}), path)
    assert f"({n:,} rows)" in outcome(path)


def test_gzip_that_unpacks_to_gigabytes_is_unpacked_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "4MiB")
    packer = zlib.compressobj(9, wbits=31)
    block = b"\x00" * MIB
    content = b"".join([*(packer.compress(block) for _ in range(60)), packer.flush()])
    (tmp_path / "t.csv.gz").write_bytes(content)
    assert peak_of(lambda: outcome(tmp_path / "t.csv.gz")) < 40
    assert "decompresses to more than 4,194,304 bytes" in outcome(tmp_path / "t.csv.gz")


def test_the_limit_is_stated_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(TEXTS)))
    monkeypatch.setenv(LIMIT_VARIABLE, "100")
    assert "the maximum is 100" in outcome(path)
    for size in ("1K", "1 MiB", "2GB", "100000"):
        monkeypatch.setenv(LIMIT_VARIABLE, size)
        assert outcome(path) == "rows"
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    assert f"${LIMIT_VARIABLE} is 'much', which is not a size" in outcome(path)


def test_a_thousand_classes_do_not_fill_a_message(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"t{i},l{i // 2}\n" for i in range(2_000)))
    assert "and 980 more" in outcome(path, label_words="a,b")


def test_columns_called_like_parts_of_an_example(tmp_path: Path) -> None:
    names = ["text", "label", "choices", "row", "line", "fields", "__class__", "self", "{text}", "a.b", "0"]
    path = tmp_path / "t.csv"
    path.write_text(",".join(names) + "\n" + "".join(f"{t},{i % 2}" + f",x{i}" * 9 + "\n" for i, t in enumerate(TEXTS)))
    assert outcome(path) == "rows"
    assert outcome(path, text="a.b", prompt="{text} {row} {self} {__class__} {0}:") == "rows"

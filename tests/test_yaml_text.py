"""YAML from anyone: read as PyYAML reads it, or one message in one line, in bounded time and memory."""

import errno
import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dualform.errors import ConfigError
from dualform.yaml_text import LARGEST, parse_yaml, read_yaml

BILLION_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
BAD = {
    "aliases that expand without end": BILLION_LAUGHS,
    "a list that contains itself": "&a [*a]",
    "a mapping that contains itself": "a: &a {b: *a}",
    "nested lists": "[" * 5_000 + "]" * 5_000,
    "nested mappings": "{a: " * 5_000 + "}" * 5_000,
    "unclosed lists": "[" * 100_000,
    "nested blocks": "\n".join(" " * depth + "a:" for depth in range(200)),
    "a number of 5,000 digits": "seeds: " + "9" * 5_000,
    "a sexagesimal number without end": "seeds: " + "1:" * 3_000 + "1",
    "a hexadecimal number without end": "seeds: 0x" + "f" * 5_000,
    "an impossible date": "when: 2023-02-30",
    "an impossible time": "when: 2023-01-01 25:00:00",
    "one key twice": "seeds: 1\nk: 2\nseeds: 3\n",
    "one key twice within": "grid:\n  k: 1\n  k: 2\n",
    "a key that cannot be one": "? [1, 2]\n: 3",
    "an object of Python's": "!!python/object/apply:os.system ['true']",
    "a name of Python's": "!!python/name:os.system",
    "an unknown tag": "!secret x",
    "a NUL": "a: \x00",
    "a tab for indentation": "a:\n\tb: 1",
    "an unclosed quotation": "a: 'b",
    "two documents": "a: 1\n---\nb: 2",
    "half a surrogate pair": "a: \ud800",
    "an escaped half of a surrogate pair": '"\\ud800"',
    "an alias of nothing": "a: *b",
    "binary that is none": "a: !!binary 'x'",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_yaml_is_one_message_in_one_line(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            parse_yaml(text, ConfigError, "the file")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    message = str(caught.value)
    assert message.startswith("the file: ")
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 400
    assert peak < 200e6


def test_what_is_wrong_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"the key 'seeds' stands twice, on lines 1 and 3: give it once\."):
        parse_yaml(BAD["one key twice"], ConfigError, "x")
    with pytest.raises(ConfigError, match=r"line 2 holds a number of 5,000 digits\."):
        parse_yaml("a: 1\nb: " + "9" * 5_000, ConfigError, "x")
    with pytest.raises(ConfigError, match="more than 2,000,000 values once its aliases are written out"):
        parse_yaml(BILLION_LAUGHS, ConfigError, "x")


SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8)


@settings(max_examples=40)
@given(st.recursive(SCALARS, lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=5), some)))
def test_what_pyyaml_writes_is_read_back(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text, ConfigError, "x") == yaml.safe_load(text)


@given(st.text(alphabet="ab01:-[]{}&*!?'\"#|>\n \t.<", max_size=60))
def test_any_text_is_a_value_or_one_message(text: str) -> None:
    try:
        value = parse_yaml(text, ConfigError, "x")
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        # libyaml where there is one: the parser in Python refuses some tabs that YAML allows.
        assert value == yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def test_an_anchor_that_is_used_a_few_times_and_a_merged_mapping_are_fine() -> None:
    text = "base: &base {k: 8, limit: 24}\nfirst: {<<: *base, k: 4}\nsecond: *base\n"
    assert parse_yaml(text, ConfigError, "x") == {
        "base": {"k": 8, "limit": 24},
        "first": {"k": 4, "limit": 24},
        "second": {"k": 8, "limit": 24},
    }


# Files.


def test_a_file_that_is_no_file_is_named_with_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "circle.yaml").symlink_to(tmp_path / "circle.yaml")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(LARGEST + 1)
    (tmp_path / "latin.yaml").write_bytes("prompt: é".encode("latin-1"))
    (tmp_path / "utf16.yaml").write_bytes("prompt: a".encode("utf-16"))
    cases = {
        tmp_path / "missing.yaml": "does not exist",
        tmp_path / "pipe.yaml": "named pipe",
        Path("/dev/zero"): "not a regular file",
        tmp_path / "folder.yaml": "is a folder",
        tmp_path / "circle.yaml": "circular",
        tmp_path / "huge.yaml": "bytes; the maximum is",
        tmp_path / "latin.yaml": "Latin-1",
        tmp_path / "utf16.yaml": "UTF-16",
        tmp_path / ("x" * 300): os.strerror(errno.ENAMETOOLONG).lower()[:8] + "|too long",
        tmp_path / "a\0b": "cannot be a path",
    }
    for path, reason in cases.items():
        with pytest.raises(ConfigError, match=reason) as caught:
            read_yaml(path, ConfigError)
        assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfk: 8\n")
    assert read_yaml(tmp_path / "marked.yaml", ConfigError) == {"k": 8}

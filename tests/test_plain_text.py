import unicodedata

import pytest

from dualform.plain_text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\x00b", r"a\x00b"),
        ("one\r\ntwo\ttabbed", r"one\r\ntwo\ttabbed"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066isolated\u2069", r"\u2066isolated\u2069"),
        ("\x9b31m", r"\x9b31m"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("half \ud800", r"half \ud800"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("line\u2028line", r"line\u2028line"),
    ],
)
def test_what_steers_is_written_out(text, shown):
    assert plain(text) == shown
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    "text", ["", "plain", "größer ü", "日本語", "\u05e9\u05dc\u05d5\u05dd", "👩\u200d🔬", r"C:\x1b", "a | b & c"]
)
def test_what_can_be_seen_stays(text):
    assert plain(text) == text


def test_lines_stay_lines_where_asked_for():
    assert plain("a\n\tb\x1b\r", lines=True) == "a\n\tb\\x1b\\r"


def test_no_character_at_all_comes_through_that_a_terminal_would_obey():
    everything = "".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE1000)]))
    left = {c for c in plain(everything) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert left == {"\u200c", "\u200d"}


def test_a_flood_of_marks_upon_one_letter_is_written_out_and_what_scripts_need_stays():
    assert plain("Z" + "\u0301" * 300) == "Z" + "\u0301" * 8 + r"\u0301" * 292
    for needed in ("क्षि", "שָׁלוֹם", "ม้า", "ế", "བསྒྲུབས"):
        assert plain(needed) == needed

"""A malicious data set gives a harmless page and terminal output, or one clear message."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.text import Text

from dualform.cli.guard import say
from dualform.cli.printing import PlainConsole, print_json, print_study
from dualform.cli.progress import progress_bar
from dualform.report.charts.saving import save_chart
from dualform.result import Result
from dualform.studies.comparison.charts import prediction_chart
from tests.cli.conftest import QUICK, Done
from tests.report.browser import PHONE, OpenPage, browser, draw_all, open_page, overflows, undrawn, widest

__all__ = ["browser", "open_page"]

SCRIPTS = [
    "<script>window.harmed = 1</script>",
    "</script><script>window.harmed = 2</script>",
    "<img src=x onerror='window.harmed = 3'>",
    "<svg onload='window.harmed = 4'>",
    "<!-- <script>",
    "]]><script>window.harmed = 5</script>",
    "{{ 7 * 7 }}{% include 'page.js' %}${window.harmed = 6}",
    "'\";window.harmed=7;//",
    "javascript:window.harmed=8",
    "<base href='http://example.invalid/'><meta http-equiv='refresh' content='0;url=http://example.invalid'>",
]
STEERING = [
    "\x1b[38;5;46;7mcoloured\x1b[0m",
    "\x1b]0;a new title\x07",
    "\x1b]8;;http://example.invalid\x1b\\a hidden link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[1;1Hcleared",
    "\x1bP+q544e\x1b\\asked",
    "\x9b38;5;46;7mC1",
    "rung \x07 and struck back \x08\x08",
    "a\x01heading",
    "\u202egnp.exe\u202c \u2066isolated",
    "zero\u200bwidth\ufeff \U000e0041tag",
    "first\u2028second\u2029third\x85fourth",
]
ODD = [
    "Z" + "\u0301\u0316\u0334" * 100,
    '=HYPERLINK("http://example.invalid";"prize")',
    "@SUM(1+1)|cmd",
    "[bold red]markup[/bold red] [link=http://example.invalid]link[/link] [/]",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\N{WOMAN}\u200d\N{MICROSCOPE} \N{REGIONAL INDICATOR SYMBOL LETTER N}",
    "%s %n %x {0} $(reboot) `reboot` ; rm -rf",
    "../../../../etc/passwd",
]
TEXTS = [*SCRIPTS, *STEERING, *ODD]
LABELS = ("<b onclick='window.harmed=9'>bad</b>\x1b[38;5;46;7m", "\u202edoog\x07</script>{{ 1 }}")

OF_RICH = re.compile(r"\x1b\[\??[0-9;]*[A-Za-z]")
"""Escape sequences of rich itself: colours, and movements of the bar."""


def steers(text: str) -> set[str]:
    """Control characters in the output that rich did not write; the bar returns to the start of its line."""
    ours = OF_RICH.sub("", text)
    return {
        each for each in ours if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") and each not in "\n\r\u200d"
    }


def rows(n: int = 66) -> list[tuple[str, str]]:
    return [(f"{TEXTS[number % len(TEXTS)]} {number}", LABELS[number % 2]) for number in range(n)]


def write(path: Path, lines: list[tuple[str, str]], names: tuple[str, str] = ("body", "topic")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *lines])
    return path


as_notes = pytest.mark.filterwarnings("default::UserWarning:dualform")
"""Shown as notes to users, but errors in this suite; they can quote words of the data."""


@pytest.fixture
def ran(dualform: Callable[..., Done], tmp_path: Path) -> tuple[Done, Path]:
    """A comparison on hostile rows on a terminal, and its folder."""
    table = write(tmp_path / "hostile.csv", rows())
    out = tmp_path / "run"
    # Hundreds of marks upon one letter are hundreds of tokens. Colours are forced, so that rich writes them and the bar
    # moves as on a terminal.
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = dualform("compare", "gpt2", table, *QUICK, "--truncate", "--out", out, **terminal)
    return done, out


@as_notes
def test_a_hostile_data_set_yields_a_harmless_terminal_page_and_folder(
    ran: tuple[Done, Path], open_page: OpenPage, tmp_path: Path
) -> None:
    done, out = ran
    assert done.code == 0, done.err
    for text in (done.out, done.err, (out / "log.txt").read_text(encoding="utf-8")):
        assert steers(text) == set()
        assert "\x1b[38;5;46" not in text
    assert "\x1b[" in done.out

    page = open_page(out / "report.html")
    assert page.evaluate("window.harmed") is None
    assert page.title() == "dualform: gpt2 on hostile"
    assert page.locator("main img, main b, main base, main meta").count() == 0
    page_text = page.inner_text("main")
    assert r"bad</b>\x1b[38;5;46;7m" in page_text
    assert r"\u202edoog\x07</script>{{ 1 }}" in page_text
    # The browser's own tabs stand between the cells of a table.
    assert steers(page_text.replace("\t", " ")) == set()
    draw_all(page)
    assert undrawn(page) == []
    phone = open_page(out / "report.html", width=PHONE)
    assert widest(phone) == []
    assert not overflows(phone)

    table = pq.read_table(out / "examples.parquet")
    assert table.num_rows > 0
    text = (out / "result.json").read_text(encoding="utf-8")
    result = Result.from_json(text)
    # In the file the words are as they were: it is data.
    assert [word.strip() for word in result.task["label_words"]] == [label.strip() for label in LABELS]
    chart = prediction_chart(result)
    assert chart is not None
    save_chart(chart, tmp_path / "answers.svg")
    assert steers((tmp_path / "answers.svg").read_text(encoding="utf-8")) == set()


def test_the_check_of_a_terminal_sees_what_steers_it() -> None:
    assert all(steers(text) for text in STEERING[1:3] + STEERING[4:])
    assert steers("\x1b[1;31mred\x1b[0m\r\n") == set()


@as_notes
def test_a_megabyte_in_one_row_is_read_and_refused_in_a_line_where_it_must_be_read_whole(
    dualform: Callable[..., Done], tmp_path: Path
) -> None:
    lines = rows()
    lines[5::13] = [(f"\x1b]0;{number} {'long ' * 200_000}", label) for number, (_, label) in enumerate(lines[5::13])]
    table = write(tmp_path / "long.csv", lines)
    done = dualform("compare", "gpt2", table, *QUICK, "--limit", "0", "--out", tmp_path / "run")
    assert done.code == 2
    assert steers(done.err) == set()
    # Where such a text stands is known before a model is.
    assert "5 of 66 rows cannot be used" in done.message
    assert "line 7" in done.message
    assert "cut it with --truncate" in done.message
    assert len(done.err) < 2_000


@as_notes
@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        (("body\x1b[38;5;46;7m", "topic\u202e"), ["--text", "body", "--label", "topic"]),
        (("body", "topic"), ["--text", "\x1b]0;title\x07", "--label", "topic"]),
        (("body", "topic"), ["--text", "body", "--label", "topic", "--label-words", "\x1b[2J,\u202eb"]),
        (("body", "topic"), ["--text", "body", "--label", "topic", "--label-words", "\x1b[2J"]),
    ],
)
def test_a_message_that_quotes_hostile_text_is_plain(
    dualform: Callable[..., Done], tmp_path: Path, names: tuple[str, str], arguments: list[str]
) -> None:
    table = write(tmp_path / "hostile\x1b[38;5;46;7m\u202e.csv", rows(), names)
    more = ["-k", "2", "--limit", "4", "--selection-limit", "4", "--seeds", "1", "--learners", "zsl"]
    out = tmp_path / "run\x1b[2J"
    done = dualform("compare", "gpt2", table, *arguments, *more, "--out", out)
    assert done.code in (0, 2), done.err
    log = out / "log.txt"
    assert not log.exists() or steers(log.read_text(encoding="utf-8")) == set()
    assert steers(done.out + done.err) == set()
    assert "\x1b" not in done.err


def test_whatever_is_printed_on_a_terminal_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from dualform.runs.sweep_table import sweep_tables
    from tests.report.example_sweep import example_sweep

    sweep = example_sweep()
    groups = [
        group.model_copy(update={"model": TEXTS[number], "task": TEXTS[-number], "name": TEXTS[number + 9]})
        for number, group in enumerate(sweep.groups)
    ]
    hostile = sweep.model_copy(update={"groups": groups})
    for text in TEXTS:
        say(text)
    print_study(TEXTS, sweep_tables(hostile), TEXTS)
    captured = capsys.readouterr()
    assert steers(captured.out + captured.err) == set()
    assert r"\x1b]0;a new title\x07" in captured.err


def test_a_terminal_keeps_the_tables_shape_and_rich_its_own_colours() -> None:
    console = PlainConsole(force_terminal=True, width=60, color_system="standard")
    with console.capture() as captured:
        console.print(Text("\x1b]0;t\x07 warned", style="yellow"))
    assert captured.get() == "\x1b[33m\\x1b]0;t warned\x1b[0m\n"
    bare = Console(force_terminal=True, width=60, color_system="standard")
    with bare.capture() as captured:
        bare.print(Text("\x1b]0;t\x07 warned", style="yellow"))
    assert "\x1b]0;t" in captured.get()


def test_json_on_a_terminal_is_harmless_and_has_the_same_content(capsys: pytest.CaptureFixture[str]) -> None:
    content = {text: [text, "größer 日本"] for text in TEXTS}
    print_json(json.dumps(content, ensure_ascii=False, indent=1))
    out = capsys.readouterr().out
    assert steers(out) == set()
    assert json.loads(out) == content
    assert "größer 日本" in out


def test_the_bar_shows_what_is_being_done_as_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as bar:
        bar.start(len(TEXTS))
        for text in TEXTS:
            bar.advance(1, text)
    captured = capsys.readouterr()
    assert steers(captured.out + captured.err) == set()

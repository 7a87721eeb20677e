"""Malicious settings, options and result files give exit code 2 and one message, before a model is loaded."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dualform.cli.refusals import refusal, unreadable_argument
from tests.cli.conftest import Done
from tests.test_yaml_text import BAD

Run = Callable[..., Done]


def refused(done: Done, *words: str) -> None:
    """Check for a single short message without control characters."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert len(done.err) < 4_000
    assert len(done.err.strip().splitlines()) <= 12
    for word in words:
        assert word in done.message, done.message


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_sweeps_file_that_is_bad_yaml(dualform: Run, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    refused(dualform("sweep", write(tmp_path / "bad.yaml", text), "--out", out, "--dry-run"), "bad.yaml")
    assert not out.exists()


@pytest.mark.parametrize("text", list(BAD.values())[::4], ids=list(BAD)[::4])
def test_a_recipe_that_is_bad_yaml(dualform: Run, tmp_path: Path, text: str) -> None:
    corpus = write(tmp_path / "corpus.txt", "some words\n")
    recipe = write(tmp_path / "bad.yaml", text)
    refused(dualform("momentum", "train", corpus, "--to", tmp_path / "to", "--recipe", recipe), "bad.yaml")
    assert not (tmp_path / "to").exists()


FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a circle of links": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": Path.touch,
    "bytes that are not text": lambda path: path.write_bytes(bytes(range(256))),
    "an image": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
def test_a_file_of_settings_that_is_something_else(
    dualform: Run, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "odd.yaml"
    make(path)

    refused(dualform("sweep", path, "--dry-run"), "odd.yaml")


RESULTS: dict[str, str] = {
    "deeply nested": "[" * 200_000,
    "a number of 5,000 digits": '{"schema": ' + "9" * 5_000 + "}",
    "not JSON": "{",
    "another schema": '{"schema": 99}',
    "a list": "[]",
    "half a surrogate pair": '{"schema": "\\ud800"}',
    "not a number": '{"schema": NaN}',
}


@pytest.mark.parametrize("text", RESULTS.values(), ids=RESULTS.keys())
def test_a_damaged_file_of_results(dualform: Run, tmp_path: Path, text: str) -> None:
    for name in ("result.json", "sweep.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        write(folder / name, text)
        refused(dualform("report", folder), name)


@pytest.mark.parametrize("name", ["result.json", "sweep.json"])
@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
def test_a_file_of_results_that_is_something_else(
    dualform: Run, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path / name)

    refused(dualform("report", tmp_path))


OPTIONS: dict[str, list[str]] = {
    "resamples without end": ["--resamples", "99999999999"],
    "a number of 5,000 digits": ["--resamples", "9" * 5_000],
    "seeds without end": ["--seeds", "1..99999999"],
    "a rate that is none": ["--rates", "nan"],
    "a rate without end": ["--rates", "1e400"],
    "a device without numbers": ["--device", "meta"],
    "an unknown device": ["--device", "x" * 3_000],
    "a folder whose name is too long": ["--out", "x" * 300],
    "a path that is too long": ["--out", "/".join(["x" * 200] * 30)],
    "a folder below a file": ["--out", "tickets.csv/run"],
    "a device map that nests without end": ["--device-map", "[" * 5_000],
    "a device map with a huge number": ["--device-map", '{"": ' + "9" * 5_000 + "}"],
    "memory that is none": ["--max-memory", "cpu=" + "9" * 400 + "GiB"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_an_option_that_cannot_be(dualform: Run, options: list[str]) -> None:
    refused(dualform("compare", "gpt2", "tickets.csv", "--text", "body", "--label", "topic", *options))


MODELS = [
    "x" * 300,
    "~nosuch/model",
    "/".join(["x" * 200] * 30),
    "tickets.csv",
    "gpt2/config.json/x",
    "\x1b[2J",
    " ",
    "",
]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_cannot_be(dualform: Run, model: str) -> None:
    done = dualform("compare", model, "tickets.csv", "--text", "body", "--label", "topic")

    refused(done)
    assert "\x1b" not in done.err


# What reaches a command all the same.


def test_a_command_line_that_is_not_text_is_named(dualform: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dualform", "models", "caf\udce9"])

    refused(dualform("models"), "is not UTF-8 text")
    assert unreadable_argument(["--prompt", "café {text}"]) is None


def test_refusals_of_the_operating_system_have_a_message_and_faults_of_ours_have_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"[Tt]oo long") as caught:
        (tmp_path / ("x" * 300)).stat()
    message = refusal(caught.value)
    assert message is not None
    assert "too long" in message
    assert "\n" not in message
    assert "too little memory" in str(refusal(MemoryError()))
    # A missing file that nobody named is a fault of the program, and is shown as one.
    assert refusal(FileNotFoundError(2, "No such file or directory", "a")) is None
    assert refusal(ValueError("x")) is None

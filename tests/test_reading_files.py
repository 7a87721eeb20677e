"""A user's file is read whole, or one message says why not."""

import os
from pathlib import Path

import pytest

from dualform.errors import ConfigError, TaskError
from dualform.files import expand_home, read_bytes, show_path


def test_the_bytes_of_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\r\n\x00\xff")
    assert read_bytes(path, 100, TaskError) == b"text,label\r\n\x00\xff"
    (tmp_path / "b").symlink_to(path)
    assert read_bytes(tmp_path / "b", 100, TaskError) == path.read_bytes()


def test_a_file_whose_size_is_not_known_is_read_up_to_the_limit() -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("the system has no /proc")
    assert read_bytes(path, 1 << 20, TaskError).startswith(b"Name:")
    with pytest.raises(TaskError, match="more than 10 bytes"):
        read_bytes(path, 10, TaskError)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"does not exist\. Check the path"),
        (lambda path: path.mkdir(), r"is a folder, not a file\. Name a file in it"),
        (lambda path: path.symlink_to(path), "cannot be read: its symbolic links are circular"),
        (lambda path: os.mkfifo(path), "is not a regular file but a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file but a device"),
        (lambda path: path.write_bytes(b"x" * 21), r"has 21 bytes; the maximum is 20\. Make it smaller\."),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=rf"a\.csv {message}"):
        read_bytes(tmp_path / "a.csv", 20, ConfigError, "Make it smaller.")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(TaskError, match="permission denied"):
        read_bytes(tmp_path / "a", 20, TaskError)


@pytest.mark.parametrize("name", ["a" * 5000, "a\x00b", "two\nlines", "tab\t\x1b[31m", "~nosuchuser/x", "half \ud83d"])
def test_names_that_no_file_can_have_end_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError) as caught:
        read_bytes(tmp_path / expand_home(name), 20, TaskError)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


def test_a_very_long_path_is_shown_by_its_ends() -> None:
    shown = show_path("begin" + "x" * 1000 + "end")
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "..." in shown

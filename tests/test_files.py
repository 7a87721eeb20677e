"""What is written appears whole or not at all, and every refusal of the operating system has a name."""

import errno
import os
import threading
from pathlib import Path

import pytest

from dualform.errors import StorageError
from dualform.files import atomic_write, explain_storage_errors


def test_two_writers_of_one_process_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    with atomic_write(target) as first, atomic_write(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_many_threads_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "result.json"

    def write(letter: str) -> None:
        for _ in range(20):
            with atomic_write(target) as temporary:
                temporary.write_text(letter * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in {letter * 1000 for letter in "abcd"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250)
    with atomic_write(target) as temporary:
        temporary.write_text("x")
    assert target.read_text() == "x"


def test_a_temporary_file_is_known_by_its_process(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "result.json") as temporary:
        assert temporary.name.startswith(f".result.json.{os.getpid()}-")
        temporary.write_text("")


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path / "x"


def below_a_file(path: Path) -> Path:
    path.write_text("")
    return path / "x"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_folder, "a folder of that name exists"),
        (a_loop, "the path contains a circular symbolic link"),
        (below_a_file, "a part of the path is a file"),
        (lambda path: path.with_name("n" * 300), "the name is too long"),
        (lambda path: path.with_name("a\0b"), "a character that no file system accepts"),
        (lambda path: path.with_name("a\ud800b"), "a character that no file system accepts"),
    ],
)
def test_what_stands_in_the_way_is_named(make, reason: str, tmp_path: Path) -> None:
    path = make(tmp_path / "target")
    with pytest.raises(StorageError, match=reason) as caught, explain_storage_errors(path, "Choose another."):
        path.write_text("x")
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("Choose another.")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_a_refusal_of_the_system_is_an_error_with_its_reason(code: int, tmp_path: Path) -> None:
    expected = pytest.raises(StorageError, match=r"cannot write .*: .+\. Try later\.")
    with expected, explain_storage_errors(tmp_path, "Try later."):
        raise OSError(code, os.strerror(code))


def test_other_errors_pass_through(tmp_path: Path) -> None:
    for error in (ValueError("null and void"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no")):
        with pytest.raises(ValueError, match=r"null|utf-8"), explain_storage_errors(tmp_path, ""):
            raise error

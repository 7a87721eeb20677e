import contextlib
import errno
import hashlib
import json
import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from dualform._version import __version__
from dualform.errors import ConfigError, DualformError, StorageError
from dualform.runs import cell_store, storage
from dualform.runs.cell_store import CellKey, CellStore, DamagedCell
from tests.runs.cells import facts, files, in_another_process, key


@pytest.fixture(params=["path", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store, on each kind of storage."""
    memory = f"memory://{tmp_path.name}-{os.getpid()}/store"
    return {"path": str(tmp_path / "store"), "file": f"file://{tmp_path}/store", "memory": memory}[request.param]


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "store")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def folder_of(store: CellStore, number: int = 1) -> Path:
    return Path(store.url) / "cells" / key(number).digest[:2] / key(number).digest


def put(store: CellStore, number: int = 1, size: int = 100) -> cell_store.FinishedCell:
    return store.write(key(number), files(number, size), facts(number))


def log_of(store: CellStore) -> str:
    path = Path(store.url) / "log.txt"
    return path.read_text() if path.exists() else ""


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- keys


def test_a_key_is_its_identity_however_that_is_spelt() -> None:
    first, same = CellKey({"b": (1, 2.0), "a": {"x": None}}), CellKey({"a": {"x": None}, "b": [1, 2.0]})

    assert first == same
    assert len({first, same}) == 1
    assert first.digest == same.digest
    assert first.identity == {"a": {"x": None}, "b": [1, 2.0]}
    assert first.short == first.digest[:12]
    assert CellKey(json.loads(json.dumps(first.identity))).digest == first.digest


@pytest.mark.parametrize(
    "other",
    [
        {"a": {"x": 0}, "b": [1, 2.0]},
        {"a": {"x": None}, "b": [2.0, 1]},
        {"a": {"x": None}, "b": [1, 2.0], "c": 0},
        {"a": {"x": None}, "b": "[1, 2.0]"},
        {"a": {"x": None}, "b": [1, 2.0000000000000004]},
    ],
)
def test_any_change_of_the_identity_is_another_cell(other: dict[str, Any]) -> None:
    assert CellKey(other) != CellKey({"a": {"x": None}, "b": [1, 2.0]})


def test_a_digest_does_not_change_between_versions_of_this_library() -> None:
    # Written down once: a store of last year must be found again.
    assert CellKey({"a": 1, "b": ["ü", 0.1, None, True]}).digest == (
        "050eaf4b9a066592bb7df9b2b60e7ede9aaf1b45292e303301ddade868fd9daa"
    )


@pytest.mark.parametrize(("identity", "error"), [({"a": float("nan")}, ValueError), ({"a": object()}, TypeError)])
def test_an_identity_is_plain_json(identity: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        CellKey(identity)


# ---- round trip


def test_a_written_cell_is_found_by_an_equal_key(url: str) -> None:
    written = CellStore(url).write(key(), files(), facts())

    for stored in (CellStore(url).find(key()), CellStore(url, writable=False).find(key().digest, verify=True)):
        assert stored == written
        assert stored is not None
        assert (stored.digest, stored.identity, stored.facts) == (key().digest, key().identity, facts())
        assert {name: stored.read(name) for name in stored.files} == files()
        assert stored.version == __version__
        assert stored.finished.endswith("+00:00")


def test_a_cell_of_another_identity_is_not_found(url: str) -> None:
    CellStore(url).write(key(1), files(), facts())

    assert CellStore(url).find(key(2)) is None


def test_cells_are_listed_by_digest(url: str) -> None:
    store = CellStore(url)
    for number in range(5):
        store.write(key(number), files(number), facts(number))

    listed = list(CellStore(url).cells())

    assert [cell.digest for cell in listed] == sorted(key(number).digest for number in range(5))
    assert sorted(cell.facts["seed"] for cell in listed) == list(range(5))
    assert list(store.damage()) == []


def test_a_store_opens_from_elsewhere_by_its_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = CellStore("store") if "://" not in url else CellStore(url)
    store.write(key(), files(), facts())
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")

    assert CellStore(store.url).find(key(), verify=True) is not None


def test_empty_binary_and_equal_files_are_stored_separately(url: str) -> None:
    odd = {"empty": b"", "a.bin": bytes(range(256)), "b.bin": bytes(range(256)), "no_ending": b"x", "a.b.c": b"\r\n"}

    cell = CellStore(url).write(key(), odd, {})

    assert {name: cell.read(name) for name in cell.files} == odd
    assert CellStore(url).find(key(), verify=True) == cell


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".x", "-x", "x" * 101, "ü", "a\n"])
def test_a_file_cannot_be_called_by_what_might_be_a_path(store: CellStore, name: str) -> None:
    with pytest.raises(ValueError, match="invalid names"):
        store.write(key(), {name: b""}, {})
    assert list(store.digests()) == []


def test_numbers_that_do_not_exist_are_none_among_the_facts(store: CellStore) -> None:
    nan, inf = float("nan"), float("inf")

    cell = store.write(key(), {}, {"a": nan, "b": {"c": [inf, 1.0]}, "d": (2, -inf)})

    assert cell.facts == {"a": None, "b": {"c": [None, 1.0]}, "d": [2, None]}
    assert store.find(key()) == cell


def test_any_text_is_read_back_unchanged(store: CellStore) -> None:
    hostile = {"a": "\x1b[31m\x00\u202e</script>", "\ud800": "\ud800", "b": "|&_%$#{}~^\\\"'"}

    store.write(CellKey({"task": hostile}), {}, hostile)

    stored = store.find(CellKey({"task": hostile}), verify=True)
    assert stored is not None
    assert stored.facts == hostile


def test_a_finished_cell_is_never_written_over(url: str) -> None:
    first = CellStore(url).write(key(), files(), facts())

    second = CellStore(url).write(key(), {"outcome.json": b"other"}, {"seed": 9})

    assert second == first
    assert {name: first.read(name) for name in first.files} == files()


def test_a_dropped_cell_is_gone_and_can_be_written_again(url: str) -> None:
    store = CellStore(url)
    store.write(key(1), files(1), facts(1))
    store.write(key(2), files(2), facts(2))

    store.drop(key(1))
    store.drop(key(3))

    assert list(store.digests()) == [key(2).digest]
    assert store.find(key(1)) is None
    assert store.write(key(1), {}, {"new": 1}).facts == {"new": 1}


@pytest.mark.parametrize("digest", ["", "abc", "../../x", "A" * 64, "0" * 65])
def test_a_digest_is_64_hexadecimal_digits(store: CellStore, digest: str) -> None:
    with pytest.raises(ValueError, match="is not a cell's digest"):
        store.find(digest)


# ---- failures


def test_a_failure_is_stored_until_the_cell_succeeds(url: str) -> None:
    store = CellStore(url)
    store.fail(key(), {"message": "first"})
    store.fail(key(), {"message": "CUDA", "traceback": "line\nline", "attempts": 2, "lost": False}, {"model": "tiny"})

    assert store.find(key()) is None
    assert store.failure(key()) == {"message": "CUDA", "traceback": "line\nline", "attempts": 2, "lost": False}
    (listed,) = CellStore(url, writable=False).failures()
    assert (listed.digest, listed.identity, listed.facts) == (key().digest, key().identity, {"model": "tiny"})

    store.write(key(), files(), facts())

    assert store.failure(key()) is None
    assert list(store.failures()) == []
    assert store.failure(key(2)) is None


def test_a_failure_does_not_affect_a_finished_cell(store: CellStore) -> None:
    put(store)
    # Another sweep's, which was slower; or the writer died between its last two steps.
    store.fail(key(), {"message": "late"})

    assert store.find(key(), verify=True) is not None
    assert store.failure(key()) is None
    assert list(store.failures()) == []


def test_a_failure_that_cannot_be_read_is_none(store: CellStore) -> None:
    store.fail(key(), {"message": "x"})
    path = folder_of(store) / "failure.json"
    path.write_bytes(path.read_bytes()[:-3])

    assert store.failure(key()) is None
    assert "failure.json is truncated or has changed" in log_of(store)


# ---- damage


def test_a_bit_flipped_anywhere_in_any_file_is_found(store: CellStore) -> None:
    put(store, size=30)
    flips = 0
    for path in sorted(folder_of(store).iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(DamagedCell, match=key().short):
                store.load(key(), verify=True)
            flips += 1
        path.write_bytes(whole)
    assert flips > 600
    assert store.load(key(), verify=True) is not None


def test_a_file_cut_short_or_lost_is_found_without_reading_it(store: CellStore) -> None:
    put(store)
    for path in sorted(folder_of(store).iterdir()):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            assert store.find(key()) is None, (path.name, length)
        path.unlink()
        assert store.find(key()) is None, path.name
        path.write_bytes(whole)
    assert store.find(key(), verify=True) is not None


def test_damage_is_logged_once_with_its_reason(store: CellStore) -> None:
    put(store)
    answers = next(folder_of(store).glob("answers-*"))
    answers.write_bytes(b"x" * 100)

    assert store.find(key()) is not None
    for _ in range(3):
        assert store.find(key(), verify=True) is None

    assert log_of(store).count("\n") == 1
    assert f"cell {key().short} is damaged: answers.bin has changed since it was written." in log_of(store)
    assert [str(error) for error in store.damage()] == [log_of(store).split(" ", 1)[1].rstrip("\n")]


def test_reading_a_file_checks_it_again(store: CellStore) -> None:
    cell = put(store)
    path = next(folder_of(store).glob("answers-*"))
    path.write_bytes(b"x" * 100)
    with pytest.raises(DamagedCell, match=r"answers\.bin has changed since it was written\. .* computes it again"):
        cell.read("answers.bin")
    path.unlink()
    with pytest.raises(DamagedCell, match=r"answers\.bin is missing"):
        cell.read("answers.bin")
    assert cell.read("outcome.json") == files()["outcome.json"]


@pytest.mark.parametrize("name", ["cell.json", "answers", "outcome"])
def test_a_damaged_cell_is_redone_and_then_whole(store: CellStore, name: str) -> None:
    put(store)
    path = next(folder_of(store).glob(f"{name}*"))
    path.write_bytes(b"?" * path.stat().st_size)
    assert store.find(key(), verify=True) is None

    store.write(key(), {"outcome.json": b"new"}, {"seed": 7})

    stored = store.find(key(), verify=True)
    assert stored is not None
    assert stored.facts == {"seed": 7}
    assert len(everything(folder_of(store))) == 2


def test_another_cells_folder_under_this_address_is_no_cell(store: CellStore) -> None:
    put(store, 1)
    shutil.copytree(folder_of(store, 1), folder_of(store, 2))

    assert store.find(key(2)) is None
    assert "belongs to another cell" in log_of(store)
    assert store.find(key(1), verify=True) is not None


def _reseal(path: Path, **changes: Any) -> None:
    """Change a cell.json and its checksum."""
    record = {**json.loads(path.read_bytes()), **changes}
    del record["checksum"]
    body = json.dumps(record, indent=1)[2:]
    path.write_text(f'{{\n "checksum": "{hashlib.sha256(body.encode()).hexdigest()}",\n{body}')


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": {"settings": "mine"}},
        {"digest": "0" * 64},
        {"schema": 2},
        {"files": {"../../../etc/passwd": {"sha256": "0" * 64, "size": 1}}},
        {"files": {"a.bin": {"sha256": "../" * 21 + "x", "size": 1}}},
        {"files": {"a.bin": {"sha256": "0" * 64, "size": -1}}},
        {"files": {"a.bin": {"sha256": "0" * 64, "size": 10**400}}},
        {"files": []},
        {"facts": [1]},
        {"facts": {"x": float("inf")}},
        {"finished": 3},
        {"more": 1},
    ],
)
def test_a_cell_that_was_tampered_with_is_no_cell(store: CellStore, changes: dict[str, Any]) -> None:
    put(store)
    path = folder_of(store) / "cell.json"
    _reseal(path)
    assert store.find(key(), verify=True) is not None

    _reseal(path, **changes)

    assert store.find(key()) is None
    assert list(store.cells()) == []


def test_json_of_any_depth_is_no_cell(store: CellStore) -> None:
    put(store)
    path = folder_of(store) / "cell.json"
    _reseal(path, facts={"x": "HERE"})
    body = path.read_bytes().split(b"\n", 2)[2].replace(b'"HERE"', b"[" * 100_000 + b"]" * 100_000)
    path.write_bytes(b'{\n "checksum": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body)

    assert store.find(key()) is None


def test_files_of_a_killed_writer_are_no_cell_and_are_removed_at_the_next_write(store: CellStore) -> None:
    folder_of(store).mkdir(parents=True)
    for name in ("answers-0123456789abcdef.bin", ".cell.json.123.tmp", ".answers-00.bin.9.tmp"):
        (folder_of(store) / name).write_bytes(b"half")

    assert store.find(key()) is None
    assert list(store.cells()) == []
    assert "is incomplete" in log_of(store)

    put(store)

    assert len(everything(folder_of(store))) == 3
    assert store.find(key(), verify=True) is not None


def test_foreign_files_in_a_store_are_left_alone_and_no_cells(store: CellStore) -> None:
    put(store)
    cells = Path(store.url) / "cells"
    (cells / "notes.txt").write_text("mine")
    (cells / "zz" / "folder").mkdir(parents=True)
    (cells / "ff" / ("0" * 64)).mkdir(parents=True)
    before = everything(cells)

    assert [cell.digest for cell in store.cells()] == [key().digest]
    assert everything(cells) == before


def test_a_damaged_cell_in_a_bucket_is_found_and_redone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CellStore(f"memory://{tmp_path.name}-bucket")
    put(store)
    system, root = fsspec.core.url_to_fs(store.url)
    (path,) = [path for path in system.find(root) if "answers" in path]
    system.pipe_file(path, b"x" * 100)

    with caplog.at_level(logging.WARNING):
        assert store.find(key(), verify=True) is None
    put(store)

    assert store.find(key(), verify=True) is not None
    assert "answers.bin has changed since it was written" in caplog.text


# ---- processes that die, and several at once

_KILLED = """
    import os, random, signal, sys, time
    from dualform.runs.cell_store import CellStore
    from tests.runs.cells import facts, files, key

    def write(number):
        began = time.perf_counter()
        store.write(key(number), files(number, 100_000), facts(number))
        return time.perf_counter() - began

    store = CellStore(sys.argv[1])
    random.seed(int(sys.argv[2]))
    usual = min(write(number) for number in range(3))
    for number in range(3, 40):
        child = os.fork()
        if child == 0:
            write(number)
            signal.pause()
        time.sleep(random.random() * usual * 3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_cell_or_none(store: CellStore) -> None:
    in_another_process(_KILLED, store.url, 1)

    finished = [number for number in range(40) if store.find(key(number)) is not None]
    for number in finished:
        cell = store.find(key(number), verify=True)
        assert cell is not None
        assert {name: cell.read(name) for name in cell.files} == files(number, 100_000)
    assert 3 <= len(finished) < 40
    # Some died between two files.
    assert "is incomplete" in log_of(store)

    for number in range(40):
        put(store, number, 100_000)
        assert len(everything(folder_of(store, number))) == 3
    assert len(list(store.cells(verify=True))) == 40


_TOGETHER = """
    import os, sys
    from dualform.runs import storage
    from dualform.runs.cell_store import CellStore
    from tests.runs.cells import key

    if sys.argv[2] == "without":
        from contextlib import nullcontext
        storage._Local.lock = lambda self, name: nullcontext(False)
    store = CellStore(sys.argv[1])
    children = []
    for child in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            for number in range(15):
                # As two runs would: same cell, seconds that differ.
                content = {"a.bin": b"%d" % child * 5000, "b.bin": b"%d" % child}
                cell = store.write(key(number), content, {"by": child})
                alike = {cell.read("a.bin")[:1], cell.read("b.bin"), b"%d" % cell.facts["by"]}
                assert len(alike) == 1, alike
                store.fail(key(number), {"message": "late"})
            os._exit(0)
    print(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.mark.parametrize("locks", ["with", "without"])
def test_several_writers_of_the_same_cells_do_no_harm(store: CellStore, locks: str) -> None:
    assert in_another_process(_TOGETHER, store.url, locks) == ["0"]

    cells = list(store.cells(verify=True))
    assert len(cells) == 15
    assert list(store.damage()) == []
    assert list(store.failures()) == []
    if locks == "with":
        assert all(len(everything(folder_of(store, number))) == 4 for number in range(15))


def test_a_writer_that_stopped_for_good_does_not_block_others(
    store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.1)
    with store._storage.lock(key().digest[:2]) as first, store._storage.lock(key().digest[:2]) as second:
        assert (first, second) == (True, False)

        cell = put(store)

    assert store.find(key(), verify=True) == cell


# ---- places that refuse


def test_a_full_disk_gives_one_message_and_leaves_the_store_unchanged(tmpfs: Path) -> None:
    store = CellStore(tmpfs / "store")
    put(store, 1, 20_000)
    before = everything(tmpfs / "store" / "cells")

    with pytest.raises(StorageError, match=r"cannot write .*answers-\w+\.bin: the disk is full\. Free some space"):
        put(store, 2, 200_000)

    assert store.find(key(2)) is None
    assert list(store.damage()) == []
    assert [cell.digest for cell in store.cells(verify=True)] == [key(1).digest]
    after = everything(tmpfs / "store" / "cells")
    assert {name: after[name] for name in before} == before
    # Small things still fit, and what was left over goes.
    put(store, 2, 10_000)
    assert len(everything(folder_of(store, 2))) == 3


def test_a_read_only_disk_gives_one_message_and_can_still_be_listed(tmpfs: Path) -> None:
    store = CellStore(tmpfs / "store")
    put(store)
    store.fail(key(2), {"message": "x"})
    claim = store.claim(key(3))
    assert claim is not None
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)

    for refused in (
        lambda: CellStore(tmpfs / "store"),
        lambda: CellStore(tmpfs / "other"),
        lambda: put(store, 2),
        lambda: store.fail(key(2), {}),
        lambda: store.claim(key(4)),
        lambda: store.drop(key()),
    ):
        with pytest.raises(StorageError, match=r"cannot \w+ .*: .*read-only.*\. .* --store"):
            refused()
    claim.release()
    readable = CellStore(tmpfs / "store", writable=False)
    assert len(list(readable.cells(verify=True))) == 1
    assert readable.failure(key(2)) == {"message": "x"}


@contextlib.contextmanager
def _no_file_beyond(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_any_error_of_the_storage_gives_one_message(store: CellStore) -> None:
    with (
        _no_file_beyond(50_000),
        pytest.raises(StorageError, match=r"cannot write .*: the file would be larger than .*--store"),
    ):
        put(store, 1, 200_000)

    assert store.find(key()) is None
    put(store)
    assert store.find(key(), verify=True) is not None


@pytest.mark.parametrize("step", ["answers", "outcome", "cell.json"])
def test_a_disk_that_fills_at_any_step_leaves_no_cell(
    store: CellStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full_at(source: Path, target: Path) -> None:
        if Path(target).name.startswith(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_at)
        with pytest.raises(StorageError, match="the disk is full"):
            put(store)

    assert store.find(key()) is None
    assert not list(folder_of(store).glob(".*"))
    put(store)
    assert store.find(key(), verify=True) is not None


def test_a_store_where_a_file_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StorageError, match=r"cannot write .*file.*: .*\. .* --store"):
            CellStore(path)
    assert list(CellStore(tmp_path / "file", writable=False).cells()) == []


def test_a_file_in_the_way_inside_is_named(store: CellStore) -> None:
    (Path(store.url) / "cells").write_text("mine")

    with pytest.raises(StorageError, match=r"cells.*: .*\. .* --store"):
        put(store)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "none", writable=False)

    assert store.find(key()) is None
    assert list(store.cells()) == list(store.failures()) == list(store.damage()) == []
    assert list(tmp_path.iterdir()) == []


class _Refusing(MemoryFileSystem):
    """A bucket that rejects all writes."""

    protocol = "refusing"
    store: dict[str, Any] = {}  # noqa: RUF012 (as its base class has it)
    pseudo_dirs = [""]  # noqa: RUF012
    error: OSError | None = None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if _Refusing.error is not None:
            raise _Refusing.error
        super().pipe_file(path, value, mode=mode, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(_Refusing.error, ConnectionError):
            raise _Refusing.error
        return super().cat_file(path, *args, **kwargs)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (PermissionError("Forbidden"), "Forbidden"),
        (FileNotFoundError("The bucket does not exist"), "The bucket does not exist"),
        (ConnectionError("reset \x1b[31m"), r"reset \\x1b"),
    ],
)
def test_an_error_of_a_bucket_gives_one_message(
    error: OSError, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("refusing", _Refusing, clobber=True)
    store = CellStore(f"refusing://{tmp_path.name}")
    put(store)
    monkeypatch.setattr(_Refusing, "error", error)

    for refused in (lambda: CellStore("refusing://other"), lambda: put(store, 2), lambda: store.claim(key(3))):
        with pytest.raises(StorageError, match=rf"cannot \w+ .*: .*{message}.*\. .* --store"):
            refused()

    if isinstance(error, ConnectionError):
        # A network that is down must not pass for an empty store: everything would be computed again.
        with pytest.raises(StorageError, match="cannot read"):
            store.find(key())
    monkeypatch.setattr(_Refusing, "error", None)
    assert store.find(key(), verify=True) is not None
    assert store.find(key(2)) is None


@pytest.mark.parametrize(("url", "message"), [("nosuch://x", "nosuch"), ("dvc://x", "Install that package")])
def test_a_place_that_cannot_be_reached_is_named(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot open the store {url}: .*{message}"):
        CellStore(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:se/cr+et@bucket/store",
        "nosuch://me:secret@host/store",
        "ftp://me:secret@127.0.0.1:1/store",
        "webhdfs://me:secret@127.0.0.1:1/store?token=secret",
        "http://127.0.0.1:1/store?token=secret&sig=secret",
        "simplecache::ftp://me:secret@127.0.0.1:1/store",
    ],
)
def test_a_store_that_cannot_be_opened_gives_one_line_without_its_password(url: str) -> None:
    with pytest.raises(DualformError) as caught:
        list(CellStore(url, writable=False).digests())
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in ("se/cr", "secret", "AKIA", "me:") if word in message]


def test_a_password_in_the_url_reaches_neither_the_log_nor_what_is_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CellStore("memory://me:secret@place/store")
    store.log("cannot reach memory://me:secret@place/store?key=secret now")

    assert store.url == "memory://me:secret@place/store"
    assert store.redacted_url == "memory://***@place/store"
    assert "secret" not in caplog.text
    assert "memory://***@place/store?***" in caplog.text


def test_pieces_are_stored_until_the_cell_is_dropped_and_damaged_ones_are_ignored(store: CellStore) -> None:
    for name, data in (("seed 1", b"one"), ("seed 2", b"two"), ("../../x", b"odd")):
        store.keep_piece(key(), name, data)
    assert [store.piece(key(), name) for name in ("seed 1", "seed 2", "../../x", "seed 3")] == [
        b"one",
        b"two",
        b"odd",
        None,
    ]
    assert store.piece(key(2), "seed 1") is None
    assert list(store.digests()) == []

    folder = f"pieces/{key().digest[:2]}/{key().digest}"
    for name in store._storage.sizes(folder):
        path = f"{folder}/{name}"
        store._storage.write(path, store._storage.read(path, 1000)[:-1] + b"!")
    assert store.piece(key(), "seed 1") is None
    store.drop(key())
    assert store._storage.sizes(folder) == {}


def test_a_record_of_tens_of_megabytes_a_pipe_and_a_device_are_damage_and_are_not_read(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.write(key(), files(), facts())
    folder = tmp_path / "cells" / key().digest[:2] / key().digest
    record = folder / "cell.json"
    whole = record.read_bytes()
    with record.open("wb") as file:
        file.truncate(50 << 20)
    assert store.find(key()) is None
    record.unlink()
    os.mkfifo(record)
    assert store.find(key()) is None
    record.unlink()
    record.symlink_to("/dev/zero")
    assert store.find(key()) is None
    assert store.failure(key()) is None
    record.unlink()
    record.write_bytes(whole)
    assert store.find(key(), verify=True) is not None
    (tmp_path / "claims").mkdir()
    os.mkfifo(tmp_path / "claims" / f"{key().digest}.json")
    with store.claim(key()) or pytest.fail("taken"):
        pass


def test_a_cell_that_no_store_takes_is_refused_by_its_writer(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is too large for a store"):
        CellStore(tmp_path).write(key(), files(), {"text": "x" * (9 << 20)})

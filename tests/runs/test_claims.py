import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualform.runs import claims
from dualform.runs.cell_store import CellStore
from tests.runs.cells import ROOT, in_another_process, key


@pytest.fixture(params=["path", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "store" if request.param == "path" else f"memory://{tmp_path.name}-claims")


@pytest.fixture
def local(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "store")


def path_of(store: CellStore) -> Path:
    return Path(store.url) / "claims" / f"{key().digest}.json"


def rewrite(store: CellStore, **changes: Any) -> dict[str, Any]:
    """Change the owner in a claim."""
    path = path_of(store)
    owner = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps(owner))
    return owner


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Advance the clock of this process by some seconds."""
    now = time.monotonic()
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: now + seconds))


@pytest.fixture
def owner(local: CellStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a claim on the cell."""
    code = """
import sys, time
from dualform.runs.cell_store import CellStore
from tests.runs.cells import key
claim = CellStore(sys.argv[1]).claim(key())
print(claim is not None, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, local.url], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_cell_can_be_claimed_once_until_it_is_released(store: CellStore) -> None:
    with store.claim(key()) or pytest.fail("taken") as claim:
        assert store.claim(key()) is None
        assert CellStore(store.url).claim(key().digest) is None
        other = store.claim(key(2))
        assert other is not None
        other.release()
        assert not claim.lost

    again = store.claim(key())
    assert again is not None
    again.release()
    again.release()
    assert store._storage.sizes("claims") == {}


def test_a_claim_is_given_back_when_the_work_raises(store: CellStore) -> None:
    with pytest.raises(RuntimeError), store.claim(key()) or pytest.fail("taken"):
        raise RuntimeError

    assert store._storage.sizes("claims") == {}


def test_a_claim_is_no_cell(store: CellStore) -> None:
    with store.claim(key()) or pytest.fail("taken"):
        assert store.find(key()) is None
        assert list(store.digests()) == []


def test_a_live_owners_cell_is_not_taken_and_a_killed_owners_is_at_once(
    local: CellStore, owner: subprocess.Popen[str]
) -> None:
    assert local.claim(key()) is None
    # Not yet buried: nobody has waited for it.
    owner.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    claim = None
    while claim is None and time.monotonic() < until:
        claim = local.claim(key())
    assert claim is not None
    assert owner.returncode is None
    assert json.loads(path_of(local).read_bytes())["pid"] == os.getpid()
    claim.release()


def test_a_stopped_owner_on_this_machine_keeps_its_cell_until_the_time_is_up(
    local: CellStore, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.send_signal(signal.SIGSTOP)
    assert local.claim(key()) is None

    later(monkeypatch, claims.STALE_SECONDS - 1)
    assert local.claim(key()) is None
    later(monkeypatch, claims.STALE_SECONDS + 1)

    claim = local.claim(key())
    assert claim is not None
    claim.release()


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, False),
        # A later process of the same id, and one that never was.
        ({"started": "1"}, True),
        ({"pid": 2**31 - 1}, True),
        ({"pid": -1}, True),
        # Elsewhere, process ids say nothing, only signs of life do.
        ({"host": "elsewhere", "pid": 2**31 - 1}, False),
        ({"space": "another boot", "pid": 2**31 - 1}, False),
        # Whatever its clock or its counter says.
        ({"host": "elsewhere", "beat": 0}, False),
        ({"host": "elsewhere", "beat": 1e12}, False),
        ({"host": "elsewhere", "beat": float("nan")}, False),
        ({"beat": "now"}, True),
        ({"pid": "1"}, True),
        ({"host": ["x"]}, True),
        ({"more": 1}, True),
    ],
)
def test_whose_claim_may_be_taken(local: CellStore, changes: dict[str, Any], taken: bool) -> None:
    first = local.claim(key())
    assert first is not None
    rewrite(local, **changes)

    second = local.claim(key())

    assert (second is not None) == taken
    for claim in (second, first):
        if claim is not None:
            claim.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_claim_that_cannot_be_read_has_no_owner(local: CellStore, content: bytes) -> None:
    path_of(local).parent.mkdir()
    path_of(local).write_bytes(content)

    with local.claim(key()) or pytest.fail("not taken"):
        pass


def test_an_owner_gives_signs_of_life(store: CellStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    read = lambda: claims._read(store._storage, key().digest)  # noqa: E731
    with store.claim(key()) or pytest.fail("taken") as claim:
        first = read()
        until = time.monotonic() + 5
        while read() == first and time.monotonic() < until:
            time.sleep(0.01)
        later = read()
        assert first is not None
        assert later is not None
        assert later.beat > first.beat
        assert later.token == first.token
        assert not claim.lost


def test_an_owner_notices_that_its_claim_was_lost_and_leaves_the_new_claim(
    store: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    claim = store.claim(key())
    assert claim is not None
    other = claims._Owner("elsewhere", "", 1, "", "theirs", time.time())
    with store._storage.lock(key().digest[:2]):
        store._storage.write(f"claims/{key().digest}.json", other.to_bytes())

    until = time.monotonic() + 5
    while not claim.lost and time.monotonic() < until:
        time.sleep(0.01)
    assert claim.lost
    claim.release()

    assert claims._read(store._storage, key().digest) == other


_RACE = """
    import os, sys, time
    from contextlib import nullcontext
    from dualform.runs import claims, storage
    from dualform.runs.cell_store import CellStore
    from tests.runs.cells import key

    if sys.argv[2] == "without locks":
        storage._Local.lock = lambda self, name: nullcontext(False)
    is_alive = claims._is_alive

    def slowly(*given):
        # So that others look while this one still thinks.
        alive = is_alive(*given)
        time.sleep(0.02)
        return alive

    claims._is_alive = slowly
    store = CellStore(sys.argv[1])
    for number in range(6):
        if number % 2:
            # A dead owner's claim is there already.
            child = os.fork()
            if child == 0:
                store.claim(key(number))
                os._exit(0)
            os.waitpid(child, 0)
        begin, all_here = os.pipe()
        tried, say_tried = os.pipe()
        leave, all_tried = os.pipe()
        children = []
        for _ in range(6):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(all_here)
                os.close(all_tried)
                os.read(begin, 1)  # ends when the parent closes it
                claim = store.claim(key(number))
                os.write(say_tried, b".")
                os.read(leave, 1)  # a dead winner's cell would be taken again
                os._exit(claim is not None)
        os.close(all_here)
        for _ in children:
            os.read(tried, 1)
        os.close(all_tried)
        print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_of_several_processes_exactly_one_gets_a_cell_new_or_of_a_dead_owner(local: CellStore) -> None:
    assert in_another_process(_RACE, local.url, "with locks") == ["1"] * 6


def test_without_locks_a_dead_owners_cell_may_go_to_several_but_a_new_one_never(local: CellStore) -> None:
    # This is why there are locks; and that a store stays whole without them is the store's own test.
    taken = in_another_process(_RACE, local.url, "without locks")

    assert taken[::2] == ["1"] * 3
    assert taken[1::2] != ["1"] * 3


def test_a_claim_without_hard_links_is_exclusive_too(local: CellStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with local.claim(key()) or pytest.fail("taken"):
        assert local.claim(key()) is None
        assert len(list(path_of(local).parent.iterdir())) == 1
    assert list(path_of(local).parent.iterdir()) == []


def test_without_process_information_claims_depend_on_heartbeats(
    local: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_space", lambda: "")
    monkeypatch.setattr(claims, "_started", lambda pid: None)
    with local.claim(key()) or pytest.fail("taken"):
        assert local.claim(key()) is None
        later(monkeypatch, 100)
        with local.claim(key()) or pytest.fail("not taken"):
            pass


def test_clocks_that_do_not_agree_make_no_difference(local: CellStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with local.claim(key()) or pytest.fail("taken"):
        rewrite(local, host="elsewhere")
        for skew in (-86_400.0, 91.0, 86_400.0):
            monkeypatch.setattr(time, "time", lambda skew=skew, now=time.time(): now + skew)
            assert local.claim(key()) is None
            assert local.is_claimed(key())


def test_an_owner_elsewhere_is_dead_after_a_long_time_without_heartbeat(
    local: CellStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local.claim(key())
    assert first is not None
    rewrite(local, host="elsewhere", beat=7)
    assert local.stale_heartbeat(key()) == ""
    later(monkeypatch, 60)
    rewrite(local, host="elsewhere", beat=8)
    assert local.is_claimed(key())
    later(monkeypatch, 120)
    assert local.claim(key()) is None
    later(monkeypatch, 160)
    assert not local.is_claimed(key())

    # A worker that has only just begun has seen nothing for long, and takes the sweep's word for this sign of life.
    stale_heartbeat = local.stale_heartbeat(key())
    monkeypatch.setattr(claims, "_seen", {})
    assert local.claim(key()) is None
    rewrite(local, beat=9)
    assert local.claim(key(), stale_heartbeat) is None
    rewrite(local, beat=8)
    second = local.claim(key(), stale_heartbeat)
    assert second is not None
    second.release()
    first.release()

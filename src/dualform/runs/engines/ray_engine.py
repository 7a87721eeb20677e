"""Work in the actors of a Ray cluster: an existing one, or one that is started on this machine for the occasion.

Actors stay, with what they have loaded. Which of them gets a work is decided here, as in the local engine; Ray decides
on which node an actor lives, and says when it has died, alone or with its node.
"""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dualform.errors import ConfigError
from dualform.files import writable_dir
from dualform.runs.engines import ray_watch
from dualform.runs.engines.base import (
    CellJob,
    EngineOptions,
    JobOutcome,
    best_match,
    cores,
    require,
    share_cores,
    warn_if_crowded,
)
from dualform.runs.engines.performing import ended_from, one_line, perform_text, quiet_environment, work_text

PASSED_ON = ("DUALFORM_CACHE", "DUALFORM_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
"""Environment variables of the driver that the actors get too; none of them is a secret, for Ray shows them."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster started here: only lines of text pass through it."""

OLDEST = (2, 52)
"""Version of Ray that first had tokens."""

START_ATTEMPTS = 3
"""After so many actors in a row that could not start, the next would not either."""

PING_SECONDS = 10.0


class RayEngine:
    """Actors of a Ray cluster."""

    name = "ray"

    def __init__(self, workers: int | None, threads: int | None, options: EngineOptions, perform: str):
        require("ray", "ray")
        _require_tokens()
        if options.log_dir is not None:
            writable_dir(options.log_dir, "Choose another folder for the workers' logs.")
        self._perform = perform
        self._log_dir = options.log_dir
        self._waiting: list[CellJob] = []
        self._failed_starts = 0
        self._seats: list[_ActorSlot] = []
        before = set(ray_watch.children(os.getpid()))
        self._started_here, is_local = _connect(workers, threads, options)
        # Of a cluster that was started here before, whoever started it takes care.
        self._watcher = _watcher(before) if self._started_here and is_local else None
        self._closed = False
        try:
            self.workers, self.threads = _fit(workers, threads, options, warn=not is_local)
            self._actor_class = _actor_class(self.threads, options, is_local)
            self._seats = [self._start(place) for place in range(self.workers)]
        except BaseException:
            self.close(kill=True)
            raise

    def submit(self, work: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(work)
        self._hand_out()

    def ended(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`; raises ConfigError where no actor can be started."""
        import ray

        until = time.monotonic() + timeout
        while True:
            seats = {seat.awaited: seat for seat in self._seats if seat.awaited is not None}
            left = max(0.0, until - time.monotonic())
            if not seats:
                time.sleep(left)
                return []
            ready, _ = ray.wait(list(seats), num_returns=len(seats), timeout=0)
            if not ready:
                ready, _ = ray.wait(list(seats), num_returns=1, timeout=left)
            found = [ended for ref in ready if (ended := self._take(seats[ref])) is not None]
            self._hand_out()
            if found or time.monotonic() >= until:
                return found

    def idle_for(self) -> list[str]:
        """See `Engine`."""
        loaded = [seat.warm for seat in self._seats if seat.awaited is None]
        # One that is still starting is for what already waits.
        starting = sum(seat.awaited is not None and seat.work is None for seat in self._seats) - len(self._waiting)
        return loaded + [""] * max(0, starting)

    def close(self, kill: bool = False) -> None:
        """See `Engine`. A cluster that was started here ends; one that was joined goes on without our actors."""
        import ray

        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        busy = [seat.awaited for seat in self._seats if seat.work is not None]
        if busy and not kill:
            ray.wait(busy, num_returns=len(busy))
        for seat in self._seats:
            self._remove(seat)
        self._seats = []
        if self._started_here:
            ray.shutdown()
            _let_print(True)
        if self._watcher is not None:
            assert self._watcher.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(ray_watch.DONE)
                self._watcher.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watcher.wait(timeout=PING_SECONDS)

    def _hand_out(self) -> None:
        while self._waiting:
            idle = [seat for seat in self._seats if seat.awaited is None]
            if not idle:
                return
            which, work = best_match([seat.warm for seat in idle], self._waiting)
            seat = idle[which]
            if not _answers(seat.actor):
                # Gone while idle: that costs no work, only a new start.
                self._replace(seat)
                continue
            seat.work = self._waiting.pop(work)
            seat.warm, seat.given = seat.work.warm, time.monotonic()
            seat.awaited = seat.actor.perform.remote(work_text(seat.work, self._perform, self.threads))

    def _take(self, seat: "_ActorSlot") -> JobOutcome | None:
        """What a seat has come to: nothing where its actor has only just started."""
        import ray

        work, awaited = seat.work, seat.awaited
        seat.work = seat.awaited = None
        try:
            text = ray.get(awaited)
        except ray.exceptions.RayError as error:
            if work is None:
                self._failed_starts += 1
                if self._failed_starts >= START_ATTEMPTS:
                    raise ConfigError(f"Ray cannot start a worker: {one_line(error)}") from error
            self._replace(seat)
            if work is None:
                return None
            seconds = time.monotonic() - seat.given
            return JobOutcome(work.digest, "lost", seconds, f"the Ray worker is gone: {one_line(error)}")
        self._failed_starts = 0
        return None if work is None else ended_from(text)

    def _start(self, place: int) -> "_ActorSlot":
        log = None if self._log_dir is None else str(self._log_dir.absolute() / f"worker-{place + 1}.log")
        actor = self._actor_class.remote(log)
        return _ActorSlot(place, actor, actor.ping.remote())

    def _replace(self, seat: "_ActorSlot") -> None:
        self._remove(seat)
        self._seats[seat.place] = self._start(seat.place)

    def _remove(self, seat: "_ActorSlot") -> None:
        import ray

        # It may still be at work, cut off from here; or there is no cluster any more.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(seat.actor)


@dataclass
class _ActorSlot:
    """An actor and what it is doing."""

    place: int
    actor: Any
    awaited: Any
    """Reference to what it will answer: its first ping, or the outcome of its work; None while it is idle."""
    warm: str = ""
    work: CellJob | None = None
    given: float = 0.0


class JobActor:
    """What lives in an actor."""

    def __init__(self, log: str | None):
        # On another node the folder may not exist; then Ray's own log of the actor has what it prints.
        with contextlib.suppress(OSError):
            if log is not None:
                with open(log, "ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)

    def ping(self) -> None:
        """Answer."""

    def perform(self, text: str) -> str:
        """See `perform_text`."""
        return perform_text(text)


def _connect(workers: int | None, threads: int | None, options: EngineOptions) -> tuple[bool, bool]:
    """Connect this process to a cluster.

    Returns:
        Whether it was connected here and not before, and whether the cluster was started here too.

    Raises:
        ConfigError: No cluster answers.
    """
    # No statistics to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        # Before Ray is imported, which looks at them then.
        _require_a_token()
    import ray

    if ray.is_initialized():
        return False, False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        workers, threads = share_cores(cores(), workers, threads)
        warn_if_crowded(cores(), workers, threads)
        # Workers that were asked for are all started, if they have to share cores.
        settings |= {"num_cpus": max(cores(), workers * threads), "object_store_memory": OBJECT_STORE_BYTES}
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    elif address != "auto":
        _probe(address)
    try:
        with _on_loopback() if address == "local" or _is_on_loopback(address) else contextlib.nullcontext():
            ray.init(address=address, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster(address, one_line(error)) from error
    _let_print(False)
    return True, address == "local"


def _require_tokens() -> None:
    """Check that the installed Ray knows tokens.

    Raises:
        ConfigError: It is too old.
    """
    installed = version("ray")
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"Ray {installed} is installed, which lets any process that reaches a cluster run code in it; engine 'ray' "
            f"needs {oldest} or newer: pip install --upgrade 'dualform[ray]'"
        )


def _require_a_token() -> None:
    """Let a cluster that is started here talk to nobody but this process and those that it starts.

    Without a token, any process that reaches one of the ports may have code run; the token is drawn for this process
    and stands in its environment, which only its own user can read. A mode that the user has set stays.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined] # of the compiled part

        # It has read its settings when it was imported.
        Config.initialize("")


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A block in which a cluster is started whose processes listen on the loopback interface alone.

    Ray turns 127.0.0.1 into the machine's address in the network, unless it is told that there will be one node only.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    vars(ray_constants)["ENABLE_RAY_CLUSTER"] = False
    try:
        yield
    finally:
        vars(ray_constants)["ENABLE_RAY_CLUSTER"] = before


def _is_on_loopback(address: str) -> bool:
    """Whether a cluster listens on the loopback interface alone, as one does that another sweep has started here."""
    import ray

    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=PING_SECONDS).close()
    except OSError:
        return True
    return False


def _watcher(before: set[int]) -> "subprocess.Popen[bytes] | None":
    """A process that ends Ray's when this one is gone; None where the system does not tell which they are."""
    pids = [pid for pid in ray_watch.children(os.getpid()) if pid not in before]
    if not pids:
        return None
    return subprocess.Popen(
        [sys.executable, "-I", ray_watch.__file__, *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _let_print(whether: bool) -> None:
    """Whether Ray prints a paragraph for each actor that dies, which we tell as lost work.

    There is no setting for it, only the switch of Ray's own debugger; where a version has it no more, Ray prints.
    """
    from ray._private import worker

    vars(worker)["_worker_logs_enabled"] = whether


def _probe(address: str) -> None:
    """Look whether somebody listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PING_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, one_line(error)) from error


def _no_cluster(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster at {address} ({reason}). Give the HOST:PORT at which its head was started, "
        "or no address to start one on this machine."
    )


def _fit(workers: int | None, threads: int | None, options: EngineOptions, warn: bool) -> tuple[int, int]:
    """Workers and threads for the cluster as it is; a warning where not all find room at once.

    Raises:
        ConfigError: A cluster without the GPUs that a worker asks for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if options.gpus and workers is None:
        workers = max(1, int(gpus / options.gpus))
    largest = max([1, *(int(node.get("CPU", 0)) for node in nodes)])
    asked = threads
    workers, threads = share_cores(cpus, workers, threads)
    if asked is None:
        threads = min(threads, largest)
    needs = {"CPU": threads, "GPU": options.gpus, "memory": options.memory or 0}
    room = sum(
        min([int(node.get(what, 0) / amount + 1e-9) for what, amount in needs.items() if amount] or [workers])
        for node in nodes
    )
    if room < workers:
        what = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)
        if room == 0 and not warn:
            raise ConfigError(f"a worker asks for {what}, and this machine has {_told(nodes)}")
        warnings.warn(
            f"{workers} Ray workers of {what} each: {room} of them find room now, the others wait until more does",
            stacklevel=4,
        )
    return workers, threads


def _told(nodes: list[dict[str, float]]) -> str:
    names = ("CPU", "GPU", "memory")
    return "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in names) for node in nodes)


def _actor_class(threads: int, options: EngineOptions, is_local: bool) -> Any:
    import ray

    variables = quiet_environment(threads) | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if is_local:
        # The same modules as here; another machine has its own folders.
        variables["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    else:
        # GPUs of a shared cluster belong to those who ask for them.
        variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    asked: dict[str, Any] = {"num_cpus": threads, "num_gpus": options.gpus, "max_restarts": 0, "max_task_retries": 0}
    if options.memory is not None:
        asked["memory"] = options.memory
    return ray.remote(**asked, runtime_env={"env_vars": variables})(JobActor)


def _answers(actor: Any) -> bool:
    import ray

    try:
        ray.get(actor.ping.remote(), timeout=PING_SECONDS)
    except ray.exceptions.RayError:
        return False
    return True

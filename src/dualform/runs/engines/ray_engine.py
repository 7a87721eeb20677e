"""Runs jobs in the actors of a Ray cluster, either an existing one or one that is started on this machine.

Actors live as long as the engine and keep their models loaded. The engine chooses the actor for each job, as the local
engine does; Ray chooses the node of each actor and reports when an actor or its node has died.
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
from dualform.runs.engines.performing import job_to_text, one_line, outcome_from_text, perform_text, quiet_environment

PASSED_VARIABLES = ("DUALFORM_CACHE", "DUALFORM_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
"""Environment variables that are passed on to the actors. None may be a secret, because Ray displays them."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Object store of a cluster started here; small, because only lines of text pass through it."""

OLDEST_VERSION = (2, 52)
"""The first version of Ray with authentication tokens."""

START_ATTEMPTS = 3
"""Number of successive actors that may fail to start before the engine gives up."""

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
        self._slots: list[_ActorSlot] = []
        before = set(ray_watch.children(os.getpid()))
        self._started_here, is_local = _connect(workers, threads, options)
        # A cluster that this process had started before is not ours to end.
        self._watcher = _start_watcher(before) if self._started_here and is_local else None
        self._closed = False
        try:
            self.workers, self.threads = _choose_workers(workers, threads, options, warn=not is_local)
            self._actor_class = _actor_class(self.threads, options, is_local)
            self._slots = [self._start(place) for place in range(self.workers)]
        except BaseException:
            self.close(kill=True)
            raise

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(job)
        self._hand_out()

    def collect(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`; raises ConfigError where no actor can be started."""
        import ray

        until = time.monotonic() + timeout
        while True:
            slots = {slot.reference: slot for slot in self._slots if slot.reference is not None}
            left = max(0.0, until - time.monotonic())
            if not slots:
                time.sleep(left)
                return []
            ready, _ = ray.wait(list(slots), num_returns=len(slots), timeout=0)
            if not ready:
                ready, _ = ray.wait(list(slots), num_returns=1, timeout=left)
            outcomes = [ended for ref in ready if (ended := self._take(slots[ref])) is not None]
            self._hand_out()
            if outcomes or time.monotonic() >= until:
                return outcomes

    def idle_affinities(self) -> list[str]:
        """See `Engine`."""
        loaded = [slot.affinity for slot in self._slots if slot.reference is None]
        # Actors that are still starting will take the jobs that already wait.
        starting = sum(slot.reference is not None and slot.job is None for slot in self._slots) - len(self._waiting)
        return loaded + [""] * max(0, starting)

    def close(self, kill: bool = False) -> None:
        """See `Engine`. A cluster that was started here is shut down; one that was joined only loses the actors."""
        import ray

        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        busy = [slot.reference for slot in self._slots if slot.job is not None]
        if busy and not kill:
            ray.wait(busy, num_returns=len(busy))
        for slot in self._slots:
            self._remove(slot)
        self._slots = []
        if self._started_here:
            ray.shutdown()
            _set_ray_messages(True)
        if self._watcher is not None:
            assert self._watcher.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(ray_watch.DONE)
                self._watcher.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watcher.wait(timeout=PING_SECONDS)

    def _hand_out(self) -> None:
        while self._waiting:
            idle = [slot for slot in self._slots if slot.reference is None]
            if not idle:
                return
            which, job = best_match([slot.affinity for slot in idle], self._waiting)
            slot = idle[which]
            if not _responds(slot.actor):
                # It died while idle; no job is lost.
                self._replace(slot)
                continue
            slot.job = self._waiting.pop(job)
            slot.affinity, slot.started_at = slot.job.affinity, time.monotonic()
            slot.reference = slot.actor.perform.remote(job_to_text(slot.job, self._perform, self.threads))

    def _take(self, slot: "_ActorSlot") -> JobOutcome | None:
        """The outcome of a slot's job; None if its actor has just started, or failed to start."""
        import ray

        job, reference = slot.job, slot.reference
        slot.job = slot.reference = None
        try:
            text = ray.get(reference)
        except ray.exceptions.RayError as error:
            if job is None:
                self._failed_starts += 1
                if self._failed_starts >= START_ATTEMPTS:
                    raise ConfigError(f"Ray cannot start a worker: {one_line(error)}") from error
            self._replace(slot)
            if job is None:
                return None
            seconds = time.monotonic() - slot.started_at
            return JobOutcome(job.digest, "lost", seconds, f"the Ray worker is gone: {one_line(error)}")
        self._failed_starts = 0
        return None if job is None else outcome_from_text(text)

    def _start(self, place: int) -> "_ActorSlot":
        log = None if self._log_dir is None else str(self._log_dir.absolute() / f"worker-{place + 1}.log")
        actor = self._actor_class.remote(log)
        return _ActorSlot(place, actor, actor.ping.remote())

    def _replace(self, slot: "_ActorSlot") -> None:
        self._remove(slot)
        self._slots[slot.place] = self._start(slot.place)

    def _remove(self, slot: "_ActorSlot") -> None:
        import ray

        # The actor may still be running without a connection, or the cluster may be gone.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(slot.actor)


@dataclass
class _ActorSlot:
    """An actor and the job that it runs."""

    place: int
    actor: Any
    reference: Any
    """Ray's reference to the actor's pending reply, to its first ping or its job; None while the actor is idle."""
    affinity: str = ""
    job: CellJob | None = None
    started_at: float = 0.0


class JobActor:
    """The class of the actors: runs jobs."""

    def __init__(self, log: str | None):
        # On another node the folder may not exist; the output is then in Ray's own log of the actor.
        with contextlib.suppress(OSError):
            if log is not None:
                with open(log, "ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)

    def ping(self) -> None:
        """Return as soon as the actor has started."""

    def perform(self, text: str) -> str:
        """See `perform_text`."""
        return perform_text(text)


def _connect(workers: int | None, threads: int | None, options: EngineOptions) -> tuple[bool, bool]:
    """Connect this process to a cluster.

    Returns:
        Whether this call connected the process, and whether it also started the cluster.

    Raises:
        ConfigError: No cluster answers.
    """
    # Send no usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        # Before Ray is imported, because it reads these settings then.
        _set_token()
    import ray

    if ray.is_initialized():
        return False, False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        workers, threads = share_cores(cores(), workers, threads)
        warn_if_crowded(cores(), workers, threads)
        # All requested workers are started, even if they must share cores.
        settings |= {"num_cpus": max(cores(), workers * threads), "object_store_memory": OBJECT_STORE_BYTES}
        settings |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    elif address != "auto":
        _check_reachable(address)
    try:
        with _on_loopback() if address == "local" or _is_on_loopback(address) else contextlib.nullcontext():
            ray.init(address=address, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_cluster_error(address, one_line(error)) from error
    _set_ray_messages(False)
    return True, address == "local"


def _require_tokens() -> None:
    """Check that the installed version of Ray has authentication tokens.

    Raises:
        ConfigError: It has not.
    """
    installed = version("ray")
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigError(
            f"Ray {installed} lets any process that can reach a cluster run code in it; engine 'ray' needs Ray "
            f"{oldest} or newer: pip install --upgrade 'dualform[ray]'"
        )


def _set_token() -> None:
    """Set a token, so that a cluster started here accepts connections only from this process and those it starts.

    Without a token, any process that can reach one of the ports could run code. The token is random and is kept in the
    environment, which only this user can read. An authentication mode that the user has set is not changed.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined] # of the compiled part

        # Ray read its settings when it was imported.
        Config.initialize("")


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a cluster that is started in the block listen on the loopback interface only.

    Ray replaces 127.0.0.1 by the machine's network address unless this flag says that there is only one node.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    vars(ray_constants)["ENABLE_RAY_CLUSTER"] = False
    try:
        yield
    finally:
        vars(ray_constants)["ENABLE_RAY_CLUSTER"] = before


def _is_on_loopback(address: str) -> bool:
    """Whether a cluster listens on the loopback interface only, such as one that another sweep started here."""
    import ray

    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=PING_SECONDS).close()
    except OSError:
        return True
    return False


def _start_watcher(before: set[int]) -> "subprocess.Popen[bytes] | None":
    """A process that ends Ray's processes after this one has ended; None if the system does not list them."""
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


def _set_ray_messages(enabled: bool) -> None:
    """Switch Ray's messages about dead actors on or off; the engine reports them as lost jobs.

    Ray has no setting for this, so the private switch of its debugger is used.
    """
    from ray._private import worker

    vars(worker)["_worker_logs_enabled"] = enabled


def _check_reachable(address: str) -> None:
    """Check that the address accepts connections; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PING_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster_error(address, one_line(error)) from error


def _no_cluster_error(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster at {address} ({reason}). Give the HOST:PORT of its head node, or leave the address out to "
        "start a cluster on this machine."
    )


def _choose_workers(workers: int | None, threads: int | None, options: EngineOptions, warn: bool) -> tuple[int, int]:
    """Number of workers and threads for the cluster. Warns if not all workers fit at the same time.

    Args:
        workers: Requested number of workers; None for the default.
        threads: Requested threads per worker; None for the default.
        options: Resources of the workers.
        warn: Warn, instead of raising an error, if no worker fits; more nodes may join the cluster later.

    Raises:
        ConfigError: No worker fits on this machine.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    gpus = sum(node.get("GPU", 0) for node in nodes)
    if options.gpus and workers is None:
        workers = max(1, int(gpus / options.gpus))
    largest = max([1, *(int(node.get("CPU", 0)) for node in nodes)])
    requested_threads = threads
    workers, threads = share_cores(cpus, workers, threads)
    if requested_threads is None:
        threads = min(threads, largest)
    needs = {"CPU": threads, "GPU": options.gpus, "memory": options.memory or 0}
    capacity = sum(
        min([int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items() if amount] or [workers])
        for node in nodes
    )
    if capacity < workers:
        needed = ", ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)
        if capacity == 0 and not warn:
            raise ConfigError(f"a worker needs {needed}, but this machine has {_describe_nodes(nodes)}")
        warnings.warn(
            f"{workers} Ray workers need {needed} each: {capacity} of them fit now, the others wait for resources",
            stacklevel=4,
        )
    return workers, threads


def _describe_nodes(nodes: list[dict[str, float]]) -> str:
    names = ("CPU", "GPU", "memory")
    return "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in names) for node in nodes)


def _actor_class(threads: int, options: EngineOptions, is_local: bool) -> Any:
    import ray

    variables = quiet_environment(threads) | {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    if is_local:
        # Import the same modules as this process; on another machine the folders differ.
        variables["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    else:
        # On a shared cluster, workers without requested GPUs must not see any.
        variables["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    resources: dict[str, Any] = {
        "num_cpus": threads,
        "num_gpus": options.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    if options.memory is not None:
        resources["memory"] = options.memory
    return ray.remote(**resources, runtime_env={"env_vars": variables})(JobActor)


def _responds(actor: Any) -> bool:
    import ray

    try:
        ray.get(actor.ping.remote(), timeout=PING_SECONDS)
    except ray.exceptions.RayError:
        return False
    return True

"""Sends a run's numbers to the experiment trackers trackio, wandb and mlflow, to one or several at once.

By default all numbers stay on this machine: wandb writes an offline run and mlflow a store into the run's folder, and
trackio uses its own local database. A server in an environment variable is used only with `:online`. Telemetry of these
packages is turned off. If a tracker fails, a warning is shown and the run continues without it.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from dualform.errors import ConfigError
from dualform.runs.flat_numbers import clean

KNOWN = ("trackio", "wandb", "mlflow")
"""Trackers, by the names of their packages."""

_FORMS = "trackio, wandb, mlflow or none, or several with commas; :online, as in wandb:online, sends them to a server"


class _Backend(Protocol):
    """A run of one tracker."""

    where: str
    """How to view its numbers, one line."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        ...

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Log the final numbers and files."""
        ...

    def close(self, failed: bool) -> None:
        """End the run."""
        ...


class RunTracker:
    """Passes a run's numbers to all requested trackers; created by `open_tracker`.

    As a context manager, it closes the run, and marks it as failed if the block raises an error. No method raises an
    error when a tracker fails.
    """

    def __init__(self, backends: Mapping[str, _Backend]) -> None:
        self._backends = dict(backends)
        self._where = {name: backend.where for name, backend in backends.items()}

    @property
    def where(self) -> list[str]:
        """How to view the numbers, one line for each tracker that has not failed; also after the run has ended."""
        return list(self._where.values())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step, such as the training loss.

        Args:
            step: Counted from 1.
            values: Name -> number.
        """
        self._each(lambda backend: backend.log(step, values))

    def finish(self, summary: Mapping[str, float], files: Sequence[Path] = ()) -> None:
        """Log the final numbers and files, and end the run.

        Args:
            summary: Flat name -> number, such as from `numbers_of`.
            files: Files to keep, such as `report.html` and `result.json`; those that do not exist are left out.
        """
        present = [path for path in files if path.is_file()]
        self._each(lambda backend: backend.finish(summary, present))
        self.close()

    def close(self, failed: bool = False) -> None:
        """End the run if it has not ended yet.

        Args:
            failed: Mark the run as failed.
        """
        self._each(lambda backend: backend.close(failed))
        self._backends.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _each(self, call: Callable[[_Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                call(backend)
            except Exception as error:
                # Any error is caught, because a tracker must not end a run that may have taken hours.
                del self._backends[name], self._where[name]
                # Closed, so that the tracker does not list the run as active, and its threads and processes end.
                with contextlib.suppress(Exception):
                    backend.close(True)
                _give_up(name, error)


def check_tracker(spec: str) -> tuple[tuple[str, bool], ...]:
    """Check the requested trackers, before any work.

    Args:
        spec: See `open_tracker`.

    Returns:
        Name of each tracker, and whether it may send numbers to a server.

    Raises:
        ConfigError: A tracker is unknown, its package is not installed, or `mlflow:online` has no server.
    """
    trackers: dict[str, bool] = {}
    for part in (part.strip() for part in spec.split(",")):
        name, colon, mode = part.partition(":")
        if part in ("", "none"):
            continue
        if name not in KNOWN or (colon and mode != "online"):
            nearest = get_close_matches(part, [*KNOWN, "none", *(f"{known}:online" for known in KNOWN)], n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"unknown tracker {part!r}.{hint} Choose from {_FORMS}.")
        if importlib.util.find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            raise ConfigError(
                f"tracker {name!r} needs a package that is not installed: pip install 'dualform[trackers]', or only "
                f"pip install {package}."
            )
        if name == "mlflow" and colon and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ConfigError(
                "mlflow:online needs the address of a server. Set MLFLOW_TRACKING_URI, or use mlflow without :online, "
                "which writes a store into the run's folder."
            )
        trackers[name] = bool(colon)
    return tuple(trackers.items())


def open_tracker(spec: str, *, project: str, run_name: str, config: Mapping[str, Any], folder: Path) -> RunTracker:
    """Start a run with all requested trackers.

    Args:
        spec: `trackio` (its database on this machine, `$TRACKIO_DIR`), `wandb` (an offline run in the folder),
            `wandb:online`, `trackio:online` (to `$TRACKIO_SPACE_ID` or `$TRACKIO_SERVER_URL`), `mlflow` (a store in
            the folder, or the files or SQLite database in `$MLFLOW_TRACKING_URI`; a server there is not used, with a
            warning), `mlflow:online` (to any `$MLFLOW_TRACKING_URI`), several with commas, or `none`.
        project: Project to which the tracker adds the run.
        run_name: Name of the run.
        config: Settings of the run, plain JSON.
        folder: Folder of the run, created if it does not exist; wandb and mlflow write into it.

    Returns:
        The tracker, without those that could not be started, for which a warning is shown.

    Raises:
        ConfigError: As for `check_tracker`.
    """
    makers: dict[str, Callable[..., _Backend]] = {"trackio": _Trackio, "wandb": _Wandb, "mlflow": _Mlflow}
    backends: dict[str, _Backend] = {}
    for name, online in check_tracker(spec):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            backends[name] = makers[name](clean(project), clean(run_name), config, folder, online)
        except Exception as error:
            _give_up(name, error)
    return RunTracker(backends)


def _give_up(name: str, error: Exception) -> None:
    reason = _unsecret(" ".join(str(error).split()))[:300] or type(error).__name__
    # Attributed to this module for every caller, because the command line shows only warnings of this package.
    warnings.warn(f"the tracker {name} failed ({reason}); the run continues without it.", stacklevel=2)


def _unsecret(text: str) -> str:
    """Remove passwords and tokens from the addresses in a text."""
    return re.sub(r"(token=)[^&\s'\"]+", r"\1...", re.sub(r"//[^/@\s]+@", "//...@", text))


def _stays_here(uri: str) -> bool:
    """Whether a store of mlflow consists of files on this machine; False for unknown schemes."""
    if uri in ("databricks", "databricks-uc", "uc"):
        return False
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return parts.netloc in ("", "localhost")
    # A path has no scheme, or on Windows the letter of a drive.
    return len(parts.scheme) < 2 or parts.scheme.partition("+")[0] == "sqlite"


class _Trackio:
    """A run in trackio's database."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        with _quiet(), contextlib.nullcontext() if online else _at_home():
            import trackio

            # In a separate context, because otherwise trackio would end an active run, such as that of a sweep.
            self._run = Context().run(
                trackio.init,
                project=project,
                name=name,
                config=_plain(config),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.where = f"trackio: trackio show --project {shlex.quote(project)}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        # Without a step, trackio logs it after the last one.
        self._run.log(dict(summary))
        with _quiet():
            for path in files:
                self._run.log_artifact(str(path), name=f"{self._run.name}-{clean(path.name)}", type="dualform")

    def close(self, failed: bool) -> None:
        with _quiet():
            self._run.finish()


class _Wandb:
    """A run of wandb, offline by default."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        # Turns off crash reports, which wandb sends even offline; read when wandb is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(config),
            dir=str(folder),
            mode="online" if online else "offline",
            reinit="create_new",
            settings=settings,
        )
        place = Path(self._run.dir).parent
        self.where = f"wandb: {self._run.url}" if online else f"wandb, offline: wandb sync {shlex.quote(str(place))}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        self._run.summary.update(dict(summary))
        inside = Path(self._run.dir)
        for path in files:
            # Copied, because wandb would create a link that breaks when the folder is moved.
            shutil.copyfile(path, inside / path.name)
            self._run.save(str(inside / path.name), base_path=str(inside), policy="end")

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class _Mlflow:
    """A run of mlflow, in the run's folder unless the environment names another store; on a server only if online."""

    _EVERY = 5.0
    """Seconds between two writes, because writing every step would slow training down."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not online and not _stays_here(uri):
            warnings.warn(
                f"mlflow writes to {folder} and sends nothing to {_unsecret(uri)}; use --track mlflow:online to send "
                "numbers there.",
                stacklevel=1,
            )
            uri = ""
        if uri.startswith("http"):
            # Otherwise every write would retry for minutes if the server is down.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        if not uri:
            # mlflow-skinny has no support for databases, and every version of mlflow reads a folder of files.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder / "mlflow").absolute().as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._Metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        self._run = self._client.create_run(self._experiment(project), run_name=name).info.run_id
        params = [Param(key[:250], value[:500]) for key, value in _flat(config)]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[first : first + 100])
        self._waiting: list[Any] = []
        self._written = time.monotonic()
        self.where = f"mlflow: mlflow ui --backend-store-uri {shlex.quote(_unsecret(uri))}"

    def _experiment(self, project: str) -> str:
        known = self._client.get_experiment_by_name(project)
        if known is None:
            try:
                return str(self._client.create_experiment(project))
            except Exception:
                # Another process of the sweep may have created it meanwhile.
                known = self._client.get_experiment_by_name(project)
                if known is None:
                    raise
        return str(known.experiment_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._Metric(clean_path(name), value, now, step) for name, value in values.items()]
        if time.monotonic() - self._written > self._EVERY:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), 1000):
            self._client.log_batch(self._run, metrics=waiting[first : first + 1000])
        self._written = time.monotonic()

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        last = max((metric.step for metric in self._waiting), default=0)
        self.log(last, summary)
        self._write()
        for path in files:
            self._client.log_artifact(self._run, str(path))

    def close(self, failed: bool) -> None:
        self._write()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def clean_path(name: str) -> str:
    """A name in a form that every tracker accepts."""
    return "/".join(clean(part) for part in name.split("/"))


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings under dotted names, as text, such as `fold.method` and `ridge`; mlflow has no nested parameters."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for inner, text in _flat(value):
                yield f"{clean(str(key))}.{inner}", text
        else:
            yield clean(str(key)), "" if value is None else str(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under names that trackio accepts, without a leading `_`."""
    return {re.sub("^_+", "", str(key)) or "setting": value for key, value in config.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress trackio's output in the block, and raise its warnings as errors.

    Raises:
        RuntimeError: trackio gave a warning, which is how it reports that it cannot track the run.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    messages = [str(warning.message) for warning in caught if "rackio" in str(warning.message)]
    if messages:
        raise RuntimeError(messages[0])


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Keep trackio on this machine in the block, whatever the environment variables are.

    Otherwise it would query the hub for the user of a saved token, and log to a server named in the environment.
    """
    from huggingface_hub import constants

    hidden = {name: os.environ.pop(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if name in os.environ}
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        os.environ.update(hidden)

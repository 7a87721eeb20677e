"""A run's numbers on the dashboards that people have: trackio, wandb and mlflow, one or several at once.

Nothing is sent anywhere unless it is asked for: wandb keeps an offline run in the run's folder, mlflow a store there,
and trackio its own database on this machine; a server that the environment names is not asked for by that. What these
packages would send home of their own accord is turned off. A tracker that fails costs its own numbers and a warning,
never the run.
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
"""Trackers by the name of their package."""

_FORMS = "trackio, wandb, mlflow, none, several with commas; each with :online, such as wandb:online, sends them away"


class _Backend(Protocol):
    """One tracker with one run begun."""

    where: str
    """How its numbers are looked at, one sentence."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after so many steps."""
        ...

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """The run's last numbers and its files."""
        ...

    def close(self, failed: bool) -> None:
        """End the run; nothing comes after it."""
        ...


class RunTracker:
    """Takes a run's numbers to every tracker that was asked for; made by `open_tracker`.

    As a context it closes itself, and marks the run as failed when the block raises. Every method may be called from
    code that knows nothing of trackers: none of them raises because a tracker fails.
    """

    def __init__(self, backends: Mapping[str, _Backend]) -> None:
        self._backends = dict(backends)
        self._where = {name: backend.where for name, backend in backends.items()}

    @property
    def where(self) -> list[str]:
        """How to look at the numbers, a line for each tracker that has not failed, after the end too."""
        return list(self._where.values())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after so many steps, such as a training step's loss.

        Args:
            step: Counted from 1.
            values: Name -> number.
        """
        self._each(lambda backend: backend.log(step, values))

    def finish(self, summary: Mapping[str, float], files: Sequence[Path] = ()) -> None:
        """The run's last numbers and files; the run is closed then.

        Args:
            summary: Flat name -> number, such as `numbers_of` gives.
            files: Such as `report.html` and `result.json`; those that do not exist are left out.
        """
        present = [path for path in files if path.is_file()]
        self._each(lambda backend: backend.finish(summary, present))
        self.close()

    def close(self, failed: bool = False) -> None:
        """End the run, if it has not ended yet.

        Args:
            failed: Whether it ended before it was done.
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
                # Whatever it is: hours of work must not end because a dashboard did.
                del self._backends[name], self._where[name]
                # It would seem under way for ever, and its threads and processes would stay.
                with contextlib.suppress(Exception):
                    backend.close(True)
                _give_up(name, error)


def check_tracker(spec: str) -> tuple[tuple[str, bool], ...]:
    """Read what was asked for, before any work.

    Args:
        spec: See `open_tracker`.

    Returns:
        Name of each tracker, and whether it may send the numbers away.

    Raises:
        ConfigError: Unknown tracker, or its package is not installed, or no server is named for `mlflow:online`.
    """
    found: dict[str, bool] = {}
    for part in (part.strip() for part in spec.split(",")):
        name, colon, how = part.partition(":")
        if part in ("", "none"):
            continue
        if name not in KNOWN or (colon and how != "online"):
            nearest = get_close_matches(part, [*KNOWN, "none", *(f"{one}:online" for one in KNOWN)], n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"unknown tracker {part!r}.{hint} Choose of: {_FORMS}.")
        if importlib.util.find_spec(name) is None:
            package = "mlflow-skinny" if name == "mlflow" else name
            raise ConfigError(
                f"tracker {name!r} needs a package that is not installed. Try pip install 'dualform[trackers]', or "
                f"pip install {package} alone."
            )
        if name == "mlflow" and colon and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ConfigError(
                "mlflow:online needs the address of a server. Set MLFLOW_TRACKING_URI, or ask for mlflow alone, which "
                "keeps a store in the run's folder."
            )
        found[name] = bool(colon)
    return tuple(found.items())


def open_tracker(spec: str, *, project: str, run_name: str, config: Mapping[str, Any], folder: Path) -> RunTracker:
    """Begin a run with every tracker that was asked for.

    Args:
        spec: `trackio` (its database on this machine, `$TRACKIO_DIR`), `wandb` (an offline run in the folder),
            `wandb:online`, `trackio:online` (to `$TRACKIO_SPACE_ID` or `$TRACKIO_SERVER_URL`), `mlflow` (a store in
            the folder, or the files or SQLite database that `$MLFLOW_TRACKING_URI` names; a server that it names gets
            nothing, and a warning says so), `mlflow:online` (to `$MLFLOW_TRACKING_URI`, whatever it is), several with
            commas, or `none`.
        project: Under which the tracker gathers runs.
        run_name: The run's own name.
        config: Its settings, plain JSON.
        folder: The run's, made if need be; wandb and mlflow keep theirs in it.

    Returns:
        The tracker. One that could not begin is left out with a warning.

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
    # On this line, wherever the call came from: the command line shows the warnings of this package alone.
    warnings.warn(
        f"the tracker {name} failed and gets no more numbers ({reason}); the run goes on without it.", stacklevel=2
    )


def _unsecret(text: str) -> str:
    """Addresses without the passwords and tokens that they may carry, for a screen and a log."""
    return re.sub(r"(token=)[^&\s'\"]+", r"\1...", re.sub(r"//[^/@\s]+@", "//...@", text))


def _stays_here(uri: str) -> bool:
    """Whether a store of mlflow is files of this machine; what we do not know is not."""
    if uri in ("databricks", "databricks-uc", "uc"):
        return False
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return parts.netloc in ("", "localhost")
    # A path has no scheme, or on Windows a drive's letter.
    return len(parts.scheme) < 2 or parts.scheme.partition("+")[0] == "sqlite"


class _Trackio:
    """A run in trackio's database."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        with _quiet(), contextlib.nullcontext() if online else _at_home():
            import trackio

            # In a context of its own, for trackio ends the run that it finds under way: a sweep and its cells are at
            # once.
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
        # Without a step: it goes after the last one.
        self._run.log(dict(summary))
        with _quiet():
            for path in files:
                self._run.log_artifact(str(path), name=f"{self._run.name}-{clean(path.name)}", type="dualform")

    def close(self, failed: bool) -> None:
        with _quiet():
            self._run.finish()


class _Wandb:
    """A run of wandb, offline unless asked otherwise."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        # Reports of its own crashes, which it would send offline, too; read when it is imported.
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
            # A copy: wandb would leave a link that breaks when the folder is moved.
            shutil.copyfile(path, inside / path.name)
            self._run.save(str(inside / path.name), base_path=str(inside), policy="end")

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class _Mlflow:
    """A run of mlflow, in the run's folder unless the environment names another store; a server when asked for."""

    _EVERY = 5.0
    """Seconds between two writes: a request, or a file a name, for every step would slow training down."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path, online: bool) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not online and not _stays_here(uri):
            warnings.warn(
                f"mlflow keeps its numbers in {folder}, and nothing goes to {_unsecret(uri)}: that takes "
                "--track mlflow:online.",
                stacklevel=1,
            )
            uri = ""
        if uri.startswith("http"):
            # It would ask a server that is down for minutes, at every write.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        if not uri:
            # A database needs more than mlflow-skinny has; a folder of files is read by every mlflow.
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
                # Another process of the sweep may have been first.
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
    """A name of any caller's as every tracker takes it."""
    return "/".join(clean(part) for part in name.split("/"))


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`fold.method` and `ridge`: mlflow's parameters are words without a nest."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for inner, text in _flat(value):
                yield f"{clean(str(key))}.{inner}", text
        else:
            yield clean(str(key)), "" if value is None else str(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by names that trackio takes: a `_` in front is its own."""
    return {re.sub("^_+", "", str(key)) or "setting": value for key, value in config.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which trackio prints nothing, for standard output is the user's, and its warnings are errors.

    Raises:
        RuntimeError: trackio warned. It swallows its own failures, and a run would seem tracked that is not.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    told = [str(warning.message) for warning in caught if "rackio" in str(warning.message)]
    if told:
        raise RuntimeError(told[0])


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """A block in which trackio keeps to this machine, whatever the environment says.

    It would ask the hub who the user is where a token is saved, and log to a server that the environment names.
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

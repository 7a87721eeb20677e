import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer.main
from typer.testing import CliRunner

from dualform.cli.main import app
from dualform.result import Result
from dualform.runs import store
from tests.studies.small import write_csv
from tests.tiny import save_tiny

SMALL = [
    *("--text", "body", "--label", "topic"),
    *("-k", "4", "--limit", "8", "--selection-limit", "6", "--resamples", "50"),
]
"""Settings of a comparison that takes a second."""
QUICK = [*SMALL, "--seeds", "1", "--learners", "zsl,icl,ft", "--rates", "1e-2", "--controls", "random"]
"""Settings of a comparison that takes half a second."""


@dataclass(frozen=True)
class Done:
    """The outcome of a command that ran in this process."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error as one line, because messages are wrapped to the terminal's width."""
        return " ".join(self.err.split())


@pytest.fixture(autouse=True, scope="session")
def _options_read_once() -> Iterator[None]:
    """Build the command line once, because building it takes longer than most commands here."""
    build = typer.main.get_command
    ours = build(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda given: ours if given is app else build(given))
        yield


@contextlib.contextmanager
def as_at_a_shell(workplace: Path) -> Iterator[None]:
    """Run commands in the user's folder, and restore what they change in the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS"):
            patch.setenv(name, "error")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.delenv("DUALFORM_DATA", raising=False)
        logging = transformers.utils.logging
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def _as_at_a_shell(workplace: Path) -> Iterator[None]:
    with as_at_a_shell(workplace):
        yield


@pytest.fixture
def real_page() -> None:
    """Requested by tests of the page: it is rendered, which takes a second."""


@pytest.fixture
def quick_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the page by a short text, except in commands that run in another process."""
    if "real_page" not in request.fixturenames:
        monkeypatch.setattr(store, "render_page", lambda result, attention=None: f"<html>{result.study}</html>")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: `gpt2`, `llama` and `xglm` are checkpoints, `tickets.csv` is data. Tests only add to it."""
    folder = tmp_path_factory.mktemp("workplace")
    for family in ("gpt2", "llama", "xglm"):
        save_tiny(family, folder / family)
    write_csv(folder / "tickets.csv")
    return folder


def run_command(*arguments: str | Path, **environment: str) -> Done:
    """Run a command in this process; unexpected errors are raised."""
    result = CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def dualform() -> Callable[..., Done]:
    """See `run_command`."""
    return run_command


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Folder of a run."""
    return tmp_path / "run"


def result_of(folder: Path) -> dict[str, Any]:
    """`result.json`, which must follow the schema."""
    text = (folder / "result.json").read_text(encoding="utf-8")
    Result.from_json(text)
    result: dict[str, Any] = json.loads(text)
    return result


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the parts that differ between equal runs."""
    cost = {
        learner: {name: value for name, value in cost.items() if not name.endswith("_seconds")}
        for learner, cost in result["cost"].items()
    }
    return {**{name: value for name, value in result.items() if name != "environment"}, "cost": cost}

"""Runs a job inside a worker of any engine. Jobs and outcomes are passed as text, so that nothing is pickled."""

import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any

from dualform.errors import DualformError, StorageError
from dualform.redaction import redacted
from dualform.runs.engines.base import CellJob, JobOutcome

LONGEST_MESSAGE = 1000


def quiet_environment(threads: int) -> dict[str, str]:
    """Environment variables of a worker, to be set before the libraries that read them are imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        # The log must hold everything that was printed before a worker is killed.
        "PYTHONUNBUFFERED": "1",
    }


def job_to_text(job: CellJob, perform: str, threads: int) -> str:
    """A job as one line of text."""
    return json.dumps({"digest": job.digest, "payload": job.payload, "perform": perform, "threads": threads})


def perform_text(text: str) -> str:
    """Run a job.

    Args:
        text: A job, from `job_to_text`.

    Returns:
        The `JobOutcome` as one line of JSON; it reports any error that the job's function raises.
    """
    job = json.loads(text)
    started = time.perf_counter()
    try:
        if "torch" in sys.modules:
            # OMP_NUM_THREADS is read only at import, and the worker's earlier job may have had another number.
            sys.modules["torch"].set_num_threads(job["threads"])
        module, _, function = job["perform"].partition(":")
        facts = getattr(importlib.import_module(module), function)(job["payload"])
        line = json.dumps(facts)
    except DualformError as error:
        outcome: dict[str, Any] = {"status": "failed", "message": one_line(error), "mistake": True}
        outcome["storage"] = isinstance(error, StorageError)
    except Exception as error:
        outcome = {"status": "failed", "message": one_line(error), "traceback": redacted(traceback.format_exc())}
    else:
        outcome = {"status": "finished", "facts": json.loads(line)}
    return json.dumps(asdict(JobOutcome(job["digest"], seconds=time.perf_counter() - started, **outcome)))


def outcome_from_text(text: str) -> JobOutcome:
    """The `JobOutcome` in a line from `perform_text`."""
    return JobOutcome(**json.loads(text))


def one_line(error: BaseException) -> str:
    """Class and message of an error on one line, without credentials and control characters."""
    text = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
    if len(text) > LONGEST_MESSAGE:
        text = text[: LONGEST_MESSAGE - 2] + " …"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

"""What happens inside a worker, the same for every engine; text goes in and out, so that nothing is pickled."""

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
    """Environment variables of a worker; they count only if they are set before the libraries are imported."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        # What a worker prints before it is killed should be in its log.
        "PYTHONUNBUFFERED": "1",
    }


def work_text(work: CellJob, perform: str, threads: int) -> str:
    """A work as one line of text."""
    return json.dumps({"digest": work.digest, "payload": work.payload, "perform": perform, "threads": threads})


def perform_text(text: str) -> str:
    """Do the work that `work_text` wrote.

    Returns:
        The `JobOutcome`, as one line of JSON. Whatever the work function raises is told there.
    """
    given = json.loads(text)
    started = time.perf_counter()
    try:
        if "torch" in sys.modules:
            # Elsewhere OMP_NUM_THREADS has said it; a warm worker may have had another number.
            sys.modules["torch"].set_num_threads(given["threads"])
        module, _, function = given["perform"].partition(":")
        facts = getattr(importlib.import_module(module), function)(given["payload"])
        line = json.dumps(facts)
    except DualformError as error:
        outcome: dict[str, Any] = {"status": "failed", "message": one_line(error), "mistake": True}
        outcome["storage"] = isinstance(error, StorageError)
    except Exception as error:
        outcome = {"status": "failed", "message": one_line(error), "traceback": redacted(traceback.format_exc())}
    else:
        outcome = {"status": "finished", "facts": json.loads(line)}
    return json.dumps(asdict(JobOutcome(given["digest"], seconds=time.perf_counter() - started, **outcome)))


def ended_from(text: str) -> JobOutcome:
    """The `JobOutcome` that `perform_text` wrote."""
    return JobOutcome(**json.loads(text))


def one_line(error: BaseException) -> str:
    """Class and text of an error, on one line without credentials that is safe on a terminal whatever it quotes."""
    text = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
    if len(text) > LONGEST_MESSAGE:
        text = text[: LONGEST_MESSAGE - 2] + " …"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

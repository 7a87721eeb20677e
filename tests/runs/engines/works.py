"""Functions that run jobs in the tests of engines; workers import them by name."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from dualform.errors import TaskError

_STATE: dict[str, int] = {"works": 0}


def perform(payload: dict[str, Any]) -> dict[str, Any]:
    """Do what `payload["do"]` says, and return the id of the process."""
    _STATE["works"] += 1
    if "begun" in payload:
        Path(payload["begun"]).write_text(str(os.getpid()))
    match payload.get("do"):
        case "mistake":
            raise TaskError("no such task:\n  choose another")
        case "fault":
            raise RuntimeError("a \x1b[31mfault\x1b[0m " + "x" * 5000)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(payload["seconds"])
        case "wait":
            while not Path(payload["until"]).exists():
                time.sleep(0.05)
        case "print":
            print("chatter")
            os.write(2, b"more chatter\n")
        case "unwritable":
            return {"what": object()}
        case "environment":
            return {name: os.environ.get(name) for name in payload["names"]}
    return {"pid": os.getpid(), "works": _STATE["works"], "value": payload.get("value")}


def begin_and_end(payload: dict[str, Any]) -> dict[str, Any]:
    """Write a file at the beginning and one at the end."""
    Path(payload["begun"]).write_text(str(os.getpid()))
    time.sleep(payload["seconds"])
    Path(payload["done"]).touch()
    return {}


class Broken:
    """An actor that cannot start."""

    def __init__(self, log: str | None):
        raise ModuleNotFoundError("no module named dualform on this node")

    def ping(self) -> None:
        """Not reached."""

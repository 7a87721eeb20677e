"""A comparison of momentum with vanilla that takes a second: texts, settings, a tiny task."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from dualform.lab.windows import spread_windows
from dualform.result import Result
from dualform.studies.momentum.config import MomentumConfig, momentum_config
from dualform.studies.momentum.result import MomentumArm, MomentumReport
from dualform.studies.momentum.run import MomentumStudy
from tests.lab.setting import write_text

LENGTH = 16
STEPS = 6
RECIPE: dict[str, Any] = {
    "vocab_size": 300,
    "length": LENGTH,
    "batch_tokens": 128,
    "tokens": 128 * STEPS,
    "evaluate_tokens": 256,
    "evaluate_every": 3,
    "checkpoint_every": 2,
}


def write_texts(folder: Path) -> dict[str, tuple[str, ...]]:
    """A corpus, and two other texts of its kind."""
    sizes = {"corpus": 300, "validation": 60, "test": 60}
    return {name: (str(write_text(folder / f"{name}.txt", n, seed)),) for seed, (name, n) in enumerate(sizes.items())}


def small_momentum(texts: dict[str, Any], **changes: Any) -> MomentumConfig:
    """One eta, no control, two seeds, six steps."""
    given: dict[str, Any] = {"etas": (0.3,), "controls": (), "seeds": (1, 2), "resamples": 50, "device": "cpu"}
    settings = RECIPE | changes.pop("settings", {})
    return momentum_config(**(texts | given | {"settings": settings} | changes))


def write_task(folder: Path, words: tuple[str, str] = ("a", "b"), name: str = "letters") -> str:
    """A task with queries of a few tokens."""
    texts = [f"{first}{second}" for first in "cdefgh" for second in "klmnop"]
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(text, words[number % 2]) for number, text in enumerate(texts)]
        csv.writer(file).writerows([("text", "label"), *rows])
    path = folder / f"{name}.yaml"
    path.write_text(f"data: {name}.csv\nprompt: '{{text}}:'\nseparator: ' '\n", encoding="utf-8")
    return str(path)


def report_of(study: MomentumStudy) -> MomentumReport:
    assert study.result.momentum is not None
    return study.result.momentum


def arm(study: MomentumStudy, name: str) -> MomentumArm:
    (result,) = [arm_ for arm_ in report_of(study).arms if arm_.name == name]
    return result


def numbers(result: Result) -> dict[str, Any]:
    """A result without times."""
    values = result.model_dump(mode="json", by_alias=True, exclude={"environment"})
    for arm_ in values["momentum"]["arms"]:
        del arm_["step_ratio"]
    return values


@torch.no_grad()
def loss_by_hand(model: PreTrainedModel, tokens: Path, length: int, most: int) -> float:
    """The mean loss, one window at a time, from the tokens on disk."""
    ids = np.fromfile(tokens, "<u2")
    nats = []
    for start in spread_windows(len(ids), length, most // length):
        window = torch.from_numpy(ids[start : start + length + 1].astype(np.int64))
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        nats += F.cross_entropy(logits.double(), window[1:], reduction="none").tolist()
    return sum(nats) / len(nats)

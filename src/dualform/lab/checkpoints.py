"""Checkpoints of a training run: folders that can be loaded as a model and from which the run is resumed.

`checkpoint-<step>` contains the model and tokenizer as transformers writes them, AdamW's averages (safetensors) and
`training.json` with the step and the identity of the run, so that no run resumes from another's weights. No random
state is stored, because every step has its own seed.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from dualform.errors import ConfigError, StorageError
from dualform.models.export.checkpoint import atomic_folder

SCHEMA = 1
KEPT = 2
"""Number of newest checkpoints to keep."""

_WEIGHTS = "model.safetensors"
_OPTIMISER = "optimiser.safetensors"
_TRAINING = "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in memory."""

    step: int
    weights: Mapping[str, Tensor]
    """Weights by name; tied ones once."""
    averages: Mapping[str, Tensor]
    """AdamW's state by `<name of the average>:<parameter>`."""


def write_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    optimiser: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Path:
    """Write `checkpoint-<step>` atomically, then remove all but the newest `KEPT` checkpoints.

    Raises:
        StorageError: If the disk is full or not writable; earlier checkpoints are then unchanged.
    """
    averages = {
        f"{which}:{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for which, value in optimiser.state.get(parameter, {}).items()
    }
    checkpoint = folder / f"checkpoint-{step}"
    with atomic_folder(checkpoint, overwrite=True) as unfinished, _without_bars():
        # With the names that weights have in memory, because `restore_` expects them.
        model.save_pretrained(unfinished, save_original_format=False, max_shard_size="1TB")
        tokenizer.save_pretrained(unfinished)
        save_file(averages, unfinished / _OPTIMISER)
        description = {"schema": SCHEMA, "step": step, "run": identity}
        (unfinished / _TRAINING).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for old in steps_in(folder)[KEPT:]:
        shutil.rmtree(folder / f"checkpoint-{old}")
    return checkpoint


@contextmanager
def _without_bars() -> Iterator[None]:
    """Disable the progress bars of transformers, which would interfere with the run's."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def steps_in(folder: Path) -> list[int]:
    """Steps with a checkpoint in the folder, newest first."""
    matches = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished checkpoints of a process that was killed."""
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest readable checkpoint of a run; None if there are no checkpoints.

    Raises:
        ConfigError: If it belongs to another run; the message names the first difference.
        StorageError: If there are checkpoints and none can be read.
    """
    steps = steps_in(folder)
    for step in steps:
        try:
            return read_checkpoint(folder, step, identity)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(
                f"{folder / f'checkpoint-{step}'} cannot be read ({' '.join(str(error).split())}); trying the previous "
                "one",
                stacklevel=2,
            )
    if steps:
        raise StorageError(f"no checkpoint in {folder} can be read. Remove the folder to start again.")
    return None


def read_checkpoint(folder: Path, step: int, identity: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a step.

    Raises:
        ConfigError: If it belongs to another run; the message names the first difference.
        OSError, ValueError, KeyError, TypeError, SafetensorError: If it cannot be read.
    """
    path = folder / f"checkpoint-{step}"
    description = json.loads((path / _TRAINING).read_text(encoding="utf-8"))
    difference = _first_difference(description["run"], json.loads(json.dumps(identity)))
    if difference:
        raise ConfigError(
            f"{path} belongs to another run: {difference}. Choose another folder, or remove this one to start again."
        )
    return Checkpoint(description["step"], load_file(path / _WEIGHTS), load_file(path / _OPTIMISER))


def restore_(model: PreTrainedModel, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into the model and its averages into the optimiser.

    Raises:
        ConfigError: If the checkpoint belongs to a model that was prepared differently.
    """
    state = model.state_dict()
    different = sorted(set(checkpoint.weights) - set(state))
    stored = {state[name].data_ptr() for name in checkpoint.weights if name in state}
    different += [name for name in state if name not in checkpoint.weights and state[name].data_ptr() not in stored]
    different += [
        name for name, weight in checkpoint.weights.items() if name in state and state[name].shape != weight.shape
    ]
    if different:
        raise ConfigError(
            f"the checkpoint of step {checkpoint.step} belongs to a model that was prepared differently: "
            f"{different[0]} "
            "differs. Prepare the model in the same way, or choose another folder."
        )
    model.load_state_dict(checkpoint.weights, strict=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    state_of: dict[str, dict[str, Tensor]] = {}
    for key, value in checkpoint.averages.items():
        which, _, name = key.partition(":")
        state_of.setdefault(name, {})[which] = value
    optimiser_state = optimiser.state_dict()
    optimiser_state["state"] = {i: state_of[name] for i, name in enumerate(ordered) if name in state_of}
    optimiser.load_state_dict(optimiser_state)


def _first_difference(actual: Any, expected: Any, field: str = "") -> str | None:
    """The first field in which two descriptions differ, in words; None if they are equal."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in actual if name not in expected)]:
            difference = _first_difference(
                actual.get(name), expected.get(name), f"{field}.{name}" if field else str(name)
            )
            if difference:
                return difference
        return None
    return None if actual == expected else f"its {field} is {actual!r}, not {expected!r}"

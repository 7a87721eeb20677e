"""Checkpoints of a training run: folders that any program can load as a model, and that a run continues from.

`checkpoint-<step>` holds the model as transformers writes it, the tokenizer, AdamW's averages (safetensors) and
`training.json`: the step, and what the run is, so that no run goes on from another's weights. No random state is kept,
because every step draws from its own seed.
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
"""Newest checkpoints that stay."""

_WEIGHTS = "model.safetensors"
_OPTIMISER = "optimiser.safetensors"
_TRAINING = "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """One that was read whole."""

    step: int
    weights: Mapping[str, Tensor]
    """Tied ones once."""
    averages: Mapping[str, Tensor]
    """AdamW's state, by `<which>:<parameter>`."""


def write_checkpoint(
    folder: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    optimiser: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> Path:
    """Write `checkpoint-<step>`, which appears whole or not at all; then remove all but the newest `KEPT`.

    Raises:
        StorageError: The disk is full or not writable; the checkpoints that were there stay.
    """
    averages = {
        f"{which}:{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        for which, value in optimiser.state.get(parameter, {}).items()
    }
    checkpoint = folder / f"checkpoint-{step}"
    with atomic_folder(checkpoint, overwrite=True) as unfinished, _without_bars():
        # Names as they are in memory, for these are what is loaded again.
        model.save_pretrained(unfinished, save_original_format=False, max_shard_size="1TB")
        tokenizer.save_pretrained(unfinished)
        save_file(averages, unfinished / _OPTIMISER)
        told = {"schema": SCHEMA, "step": step, "run": identity}
        (unfinished / _TRAINING).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    for old in steps_in(folder)[KEPT:]:
        shutil.rmtree(folder / f"checkpoint-{old}")
    return checkpoint


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would cross the run's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def steps_in(folder: Path) -> list[int]:
    """Steps of which there is a checkpoint, newest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left of a checkpoint that it was writing."""
    for path in folder.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a run that can be read; None where there is none at all.

    Raises:
        ConfigError: It is another run's; the message names the first difference.
        StorageError: There are checkpoints, and none can be read.
    """
    steps = steps_in(folder)
    for step in steps:
        try:
            return read_checkpoint(folder, step, identity)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(
                f"{folder / f'checkpoint-{step}'} cannot be read ({' '.join(str(error).split())}); trying the one "
                "before it",
                stacklevel=2,
            )
    if steps:
        raise StorageError(f"no checkpoint in {folder} can be read. Remove the folder to begin anew.")
    return None


def read_checkpoint(folder: Path, step: int, identity: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a step.

    Raises:
        ConfigError: It is another run's; the message names the first difference.
        OSError, ValueError, KeyError, TypeError, SafetensorError: It cannot be read.
    """
    path = folder / f"checkpoint-{step}"
    told = json.loads((path / _TRAINING).read_text(encoding="utf-8"))
    difference = _first_difference(told["run"], json.loads(json.dumps(identity)))
    if difference:
        raise ConfigError(
            f"{path} is of another run: {difference}. Choose another folder, or remove this one to begin anew."
        )
    return Checkpoint(told["step"], load_file(path / _WEIGHTS), load_file(path / _OPTIMISER))


def restore_(model: PreTrainedModel, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the model and its averages into the optimiser.

    Raises:
        ConfigError: They are of a model that was prepared otherwise.
    """
    state = model.state_dict()
    odd = sorted(set(checkpoint.weights) - set(state))
    held = {state[name].data_ptr() for name in checkpoint.weights if name in state}
    odd += [name for name in state if name not in checkpoint.weights and state[name].data_ptr() not in held]
    odd += [name for name, weight in checkpoint.weights.items() if name in state and state[name].shape != weight.shape]
    if odd:
        raise ConfigError(
            f"the checkpoint of step {checkpoint.step} is of a model that was prepared otherwise: {odd[0]} differs. "
            "Prepare it as it was, or choose another folder."
        )
    model.load_state_dict(checkpoint.weights, strict=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
    state_of: dict[str, dict[str, Tensor]] = {}
    for key, value in checkpoint.averages.items():
        which, _, name = key.partition(":")
        state_of.setdefault(name, {})[which] = value
    told = optimiser.state_dict()
    told["state"] = {i: state_of[name] for i, name in enumerate(ordered) if name in state_of}
    optimiser.load_state_dict(told)


def _first_difference(found: Any, expected: Any, where: str = "") -> str | None:
    """The first field in which two descriptions differ, in words."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *(name for name in found if name not in expected)]:
            difference = _first_difference(
                found.get(name), expected.get(name), f"{where}.{name}" if where else str(name)
            )
            if difference:
                return difference
        return None
    return None if found == expected else f"its {where} is {found!r}, not {expected!r}"

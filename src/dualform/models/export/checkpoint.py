"""Writes changed weights as an ordinary checkpoint or as a peft adapter.

Either is a folder that is written completely or not at all, and that transformers and peft load without dualform.
"""

import copy
import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError, ModelError, StorageError
from dualform.files import explain_storage_errors
from dualform.models.editing.edit import WeightDelta, applied, lacks_bias
from dualform.models.export.files import CARD, MODEL_FILE, STUDY_FILES, WEIGHTS
from dualform.models.hooks import Hooks
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.anatomy import Anatomy, is_linear, row_axis
from dualform.models.structure.bias import output_bias, skeleton, switched
from dualform.ops.low_rank import LowRank, low_rank

_REMEDY = "Free some space or choose another folder."


def write_checkpoint(
    lm: LanguageModel,
    deltas: Sequence[WeightDelta],
    folder: Path,
    card: str,
    overwrite: bool = False,
    check: Callable[[Path], None] = lambda written: None,
    *,
    chat_template: bool = False,
) -> Path:
    """Write the changed model as a checkpoint for `AutoModelForCausalLM.from_pretrained(folder)`.

    The model in memory is not changed or copied. If a change is a bias that the model does not have, the family's
    config option for that bias is set; other biases that it adds are zero.

    Args:
        lm: The base model.
        deltas: The changes. They are added in float32 and written in the base model's dtype.
        folder: Destination; parent folders are created.
        card: Text of `README.md`.
        overwrite: Replace an existing checkpoint or adapter once the new one is complete.
        check: Called with the temporary folder before it is renamed to `folder`; if it raises, nothing changes.
        chat_template: Keep the tokenizer's chat template. Without it, the change was made for plain prompts.

    Returns:
        The folder: config, weights (safetensors), generation config, tokenizer and card.

    Raises:
        ConfigError: The folder exists and `overwrite` is False, or it must not be replaced.
        ModelError: The model is quantized, or a change names an unknown parameter or a bias that checkpoints of this
            family cannot store.
        StorageError: The disk is full or not writable.
    """
    check_target(lm, folder, overwrite)
    require_plain_weights(lm)
    switch, new_biases = _bias_switch(lm.model, lm.anatomy, deltas)
    shell = _shell(lm.model, switch, new_biases)
    with atomic_folder(folder, overwrite) as unfinished, torch.no_grad():
        with applied(shell, deltas):
            shell.save_pretrained(unfinished)
        lm.tokenizer.save_pretrained(unfinished)
        if not chat_template:
            _drop_chat_template(unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        check(unfinished)
    return folder


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter on disk, and how much of each change its rank preserves."""

    folder: Path
    kept: Mapping[str, float]
    """Name of a changed linear -> share of the squared norm of its change that the adapter preserves, in [0, 1]; NaN
    if the weight did not change."""


def write_adapter(
    lm: LanguageModel,
    deltas: Sequence[WeightDelta],
    folder: Path,
    rank: int,
    card: str,
    base: str,
    overwrite: bool = False,
    check: Callable[[Path], None] = lambda written: None,
) -> WrittenAdapter:
    """Write the changes as a LoRA adapter for `peft.PeftModel.from_pretrained(base_model, folder)`.

    Each weight's change is replaced by its best approximation of rank `rank`. Biases are stored as peft's `lora_bias`,
    which also works for linears without a bias (peft cannot merge such an adapter).

    Args:
        lm: The base model.
        deltas: Changes of weights and biases of linears; the adapter is float32.
        folder: Destination; parent folders are created.
        rank: Rank of the adapter.
        card: Text of `README.md`.
        base: Hub id or folder of the base model, written as `base_model_name_or_path`.
        overwrite: Replace an existing checkpoint or adapter once the new one is complete.
        check: As in `write_checkpoint`.

    Returns:
        The folder, and the share of each change that the rank preserves.

    Raises:
        ConfigError: As in `write_checkpoint`; or `rank` is below 1, or there is no change.
        ModelError: A change is not of a linear's weight or bias, or the linears differ in orientation.
        StorageError: The disk is full or not writable.

    Source:
        LoRA, arXiv:2106.09685, section 4.1, with alpha = r, so that the product is not scaled.
    """
    # Imported here because it is slow.
    from peft import LoraConfig

    check_target(lm, folder, overwrite)
    parts = _adapter_parts(lm.model, deltas, rank)
    names = list(parts)
    if not names:
        raise ConfigError("there is no change to write. Give at least one weight change.")
    axes = {row_axis(lm.model.get_submodule(name)) for name in names}
    if len(axes) > 1:
        raise ModelError(
            f"some of {', '.join(names)} are stored transposed and others are not, which one adapter cannot represent. "
            "Write a checkpoint."
        )
    tensors: dict[str, Tensor] = {}
    biased = any(part.bias is not None for part in parts.values())
    for name, part in parts.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = part.factors.A.float().contiguous()
        tensors[f"{key}.lora_B.weight"] = part.factors.B.float().contiguous()
        if biased:
            tensors[f"{key}.lora_B.bias"] = torch.zeros(len(part.factors.B)) if part.bias is None else part.bias
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=names,
        fan_in_fan_out=axes == {1},
        lora_bias=biased,
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    with atomic_folder(folder, overwrite) as unfinished:
        config.save_pretrained(str(unfinished))
        _sort_modules(unfinished / "adapter_config.json")
        save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
        (unfinished / CARD).write_text(card, encoding="utf-8")
        check(unfinished)
    return WrittenAdapter(folder, {name: part.factors.kept for name, part in parts.items()})


@dataclass(frozen=True)
class _AdapterPart:
    """An adapter's tensors for one linear."""

    factors: LowRank
    bias: Tensor | None
    """`(d_out,)`."""


def _adapter_parts(model: PreTrainedModel, deltas: Sequence[WeightDelta], rank: int) -> dict[str, _AdapterPart]:
    """Name of a linear -> its part of the adapter, first layer first."""
    weights, biases = _by_linear(model, deltas)
    parts = {}
    for name in sorted({*weights, *biases}, key=_natural):
        module = model.get_submodule(name)
        shape = module.get_parameter("weight").shape
        d_in, d_out = shape if row_axis(module) == 1 else shape[::-1]
        parts[name] = _AdapterPart(low_rank(weights.get(name, torch.zeros(d_out, d_in)), rank), biases.get(name))
    return parts


@contextmanager
def adapter_applied(model: PreTrainedModel, deltas: Sequence[WeightDelta], rank: int) -> Iterator[None]:
    """Apply an adapter inside the block in the way peft does: next to the weights, which are not changed.

    Adding the product to the weights instead would give different rounding errors, which accumulate in a deep model.

    Args:
        model: The base model.
        deltas: As in `write_adapter`.
        rank: As in `write_adapter`.
    """

    def add(part: _AdapterPart, x: Tensor, out: Tensor) -> Tensor:
        A, B = (factor.float().to(out) for factor in (part.factors.A, part.factors.B))
        bias = None if part.bias is None else part.bias.to(out)
        return out + F.linear(F.linear(x.to(A), A), B, bias)

    with Hooks(model) as hooks:
        for name, part in _adapter_parts(model, deltas, rank).items():
            hooks.after(name, partial(add, part))
        yield


def check_target(lm: LanguageModel, folder: Path, overwrite: bool) -> None:
    """Check that a folder may be written or replaced; call it before long work as well.

    Raises:
        ConfigError: It exists and `overwrite` is False, contains anything other than a checkpoint or adapter, or is the
            base model's or the current folder.
        StorageError: It is not writable.
    """
    if not folder.exists() and not folder.is_symlink():
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError(f"{parent} is not writable. Choose another folder.")
        return
    here = Path.cwd()
    if folder.resolve() in (here, *here.parents):
        # Replacing it would leave this process and its shell in a deleted folder.
        raise ConfigError(f"{folder} is, or contains, the current folder. Choose another folder.")
    for own in (lm.name, lm.model.config.name_or_path):
        if own and Path(own).is_dir() and Path(own).samefile(folder):
            raise ConfigError(f"{folder} is the base model's own folder. Choose another folder.")
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{folder} already exists. Choose another folder, or allow it to be overwritten.")
    known = ("config.json", "adapter_config.json")
    # Many programs write a config.json; weights show that this one belongs to a checkpoint.
    weights = folder.is_dir() and any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    if folder.is_symlink() or not weights or not any((folder / name).is_file() for name in known):
        raise ConfigError(
            f"{folder} is not a folder with a {' or '.join(known)} and weights, so it will not be overwritten. Choose "
            "another folder, or remove it yourself."
        )
    if others := sorted(path.name for path in folder.iterdir() if not _is_checkpoint_file(path)):
        raise ConfigError(
            f"{folder} contains {others[0]}, which is not part of a checkpoint, so it will not be overwritten. Choose "
            "another folder, or remove it yourself."
        )


def _is_checkpoint_file(path: Path) -> bool:
    """Whether a path is a file of a checkpoint or adapter; folders, such as other checkpoints, are not."""
    known = path.name in STUDY_FILES or MODEL_FILE.fullmatch(path.name) is not None
    return known and path.is_file() and not path.is_symlink()


def source_of(lm: LanguageModel, name: str) -> tuple[str, dict[str, str]]:
    """The path or hub id by which transformers finds a model, and arguments to load it with.

    Args:
        lm: The model.
        name: The name under which it was loaded.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return str(lm.model.config.name_or_path or name), {}


def require_plain_weights(lm: LanguageModel) -> None:
    """Check that all weights are ordinary floating-point tensors in memory, so that they can be changed and written.

    Raises:
        ModelError: They are quantized, or not in memory.
    """
    remedy = "Load the model dequantized, or its unquantized original."
    if lm.quantized is not None:
        raise ModelError(f"{lm.name} is quantized ({lm.quantized}). {remedy}")
    for name, weight in lm.model.named_parameters():
        if weight.is_meta:
            raise ModelError(
                f"{name} of {lm.name} is offloaded, but a checkpoint is written from memory. Load the model without "
                "--device-map, or allow enough memory for all of it."
            )
        # float8 counts as floating point, but its scales are stored elsewhere.
        if not weight.is_floating_point() or weight.dtype.itemsize < 2 or type(weight.data) is not Tensor:
            kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
            raise ModelError(f"{lm.name} is quantized: {name} is {kind}. {remedy}")


def _bias_switch(
    model: PreTrainedModel, anatomy: Anatomy, deltas: Sequence[WeightDelta]
) -> tuple[str | None, tuple[str, ...]]:
    """The config option that adds the biases the model lacks, and all biases that it adds."""
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lacking: list[str] = []
    for change in deltas:
        if change.parameter in known:
            continue
        owner = change.parameter.rpartition(".")[0]
        if owner not in dict(model.named_modules()) or not lacks_bias(model.get_submodule(owner), change.parameter):
            raise ModelError(f"{type(model).__name__} has no parameter {change.parameter!r}, so it cannot be changed.")
        lacking.append(change.parameter)
    if not lacking:
        return None, ()
    form = output_bias(model, anatomy)
    added = (*form.new, *form.others)
    unknown = [name for name in lacking if name not in added]
    if unknown:
        raise ModelError(
            f"checkpoints of {type(model).__name__} cannot store {unknown[0]}: its linear has no bias, and no option "
            "of its config adds one. Leave biases out of the change, or write an adapter (--as lora)."
        )
    return form.switch, added


def _shell(model: PreTrainedModel, switch: str | None, new_biases: Sequence[str]) -> PreTrainedModel:
    """A second model that shares the tensors, with its own config and biases."""
    shell = skeleton(model, switched(model.config, switch))
    state = model.state_dict()
    for name in new_biases:
        owner = model.get_submodule(name.rpartition(".")[0])
        weight = owner.get_parameter("weight")
        state[name] = torch.zeros(weight.shape[row_axis(owner)], dtype=weight.dtype, device=weight.device)
    try:
        shell.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"the weights in memory are not those of an ordinary {type(model).__name__}: "
            f"{' '.join(str(error).split())[:300]}. Load the model again, without adapters or quantization."
        ) from error
    shell.requires_grad_(False)
    shell.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        shell.generation_config = copy.deepcopy(model.generation_config)
    return shell


def _by_linear(model: PreTrainedModel, deltas: Sequence[WeightDelta]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Changes of weights `(d_out, d_in)` and of biases `(d_out,)` by linear, float32 on the CPU."""
    modules = dict(model.named_modules())
    weights: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for change in deltas:
        name, _, kind = change.parameter.rpartition(".")
        module = modules.get(name, nn.Identity())
        if not is_linear(module) or kind not in ("weight", "bias"):
            raise ModelError(
                f"{change.parameter} is not a weight or bias of a linear of {type(model).__name__}, so an adapter "
                "cannot represent its change. Write a checkpoint."
            )
        weight = module.get_parameter("weight")
        shape = weight.shape if kind == "weight" else weight.shape[row_axis(module)]
        whole = change.added_to(torch.zeros(shape, device=change.delta.device)).cpu()
        if kind == "weight" and row_axis(module) == 1:
            whole = whole.T
        into = weights if kind == "weight" else biases
        into[name] = into[name] + whole if name in into else whole
    return weights, biases


def _sort_modules(path: Path) -> None:
    """Sort the module names, which peft stores as a set, so that the file is reproducible."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"], key=_natural)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


@contextmanager
def atomic_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end of the block.

    If the block raises, the temporary folder is removed and `folder` is not changed.
    """
    with explain_storage_errors(folder, _REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f"{_leftover_prefix(folder)}{os.getpid()}-"
        ) as temporary:
            # A subfolder, because the temporary folder itself is accessible to its owner only.
            unfinished = Path(temporary) / "new"
            unfinished.mkdir()
            try:
                yield unfinished
            except SafetensorError as error:
                raise _system_error(error) from error
            for path in (*unfinished.rglob("*"), unfinished):
                if path.is_file():
                    # safetensors makes its files readable by their owner only.
                    path.chmod(unfinished.stat().st_mode & 0o666)
                _sync(path)
            _exchange(unfinished, folder, Path(temporary) / "old", overwrite)
            _sync(folder.parent)


def _leftover_prefix(folder: Path) -> str:
    """Prefix of this machine's temporary folders for `folder`; the process id follows."""
    return f".{folder.name}-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())[:32]}-"


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary folders for `folder` of killed processes on this machine."""
    if os.name == "nt":
        return  # on Windows, os.kill cannot test whether a process exists
    prefix = _leftover_prefix(folder)
    for path in folder.parent.iterdir():
        match = re.fullmatch(re.escape(prefix) + r"(\d+)-\w+", path.name)
        if match is None or not path.is_dir() or path.is_symlink():
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, OverflowError):
            continue  # a running process of another user


def _drop_chat_template(folder: Path) -> None:
    """Remove the chat template from a tokenizer's files, because the model was measured with plain prompts."""
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _exchange(new: Path, folder: Path, old: Path, overwrite: bool) -> None:
    if overwrite and folder.exists():
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        return
    try:
        new.rename(folder)  # an empty folder may be there
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(
                f"{folder} was created by another process while this run was in progress. Choose another folder."
            ) from error
        raise


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: SafetensorError) -> Exception:
    """The operating system's error, which safetensors reports as text only."""
    code = re.search(r"(?:os error|code:) (\d+)", str(error))
    return OSError(int(code[1]), str(error)) if code else error

"""Changes to weights, written so that others can use them: an ordinary checkpoint, or an adapter for peft.

Either is a folder that appears whole or not at all, and that transformers and peft load without any code of ours.
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
from dualform.models.export.files import CARD, OF_A_STUDY, PART_OF_A_MODEL, WEIGHTS
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
) -> Path:
    """Write the changed model as a checkpoint that `AutoModelForCausalLM.from_pretrained(folder)` loads.

    The model in memory stays as it is, and unchanged weights are written from it without a copy. Where a change is a
    bias that the model lacks, the family's own switch for it is set in the config, and the other biases that the
    switch brings are zeros.

    Args:
        lm: The base model.
        deltas: What to add. Sums are taken in float32 and written in the base's dtype.
        folder: Where to; its parents are made.
        card: Text of `README.md`.
        overwrite: Replace a checkpoint or adapter that is there. The old one stays until the new one is whole.
        check: Called with what was written before it takes the folder's name; what it raises leaves all as it was.

    Returns:
        The folder: config, weights (safetensors), generation config, tokenizer and card. The tokenizer's chat template
        is left out, since the change was made for plain prompts.

    Raises:
        ConfigError: The folder exists and `overwrite` is off, or is none that may be replaced.
        ModelError: The model is quantized, a change names no parameter of it, or a bias that the family's
            checkpoints cannot hold.
        StorageError: The disk is full or not writable.
    """
    check_target(lm, folder, overwrite)
    require_plain_weights(lm)
    switch, new_biases = _bias_switch(lm.model, lm.anatomy, deltas)
    shell = _shell(lm.model, switch, new_biases)
    with whole_folder(folder, overwrite) as unfinished, torch.no_grad():
        with applied(shell, deltas):
            shell.save_pretrained(unfinished)
        lm.tokenizer.save_pretrained(unfinished)
        _drop_chat_template(unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")
        check(unfinished)
    return folder


@dataclass(frozen=True)
class WrittenAdapter:
    """An adapter on disk, and what its rank left out."""

    folder: Path
    kept: Mapping[str, float]
    """Changed linear -> share of its change's squared norm that the adapter has, in [0, 1]; NaN where the weight
    did not change."""


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
    """Write the changes as a LoRA adapter that `peft.PeftModel.from_pretrained(base_model, folder)` loads.

    Each weight's change becomes its nearest matrix of rank `rank`. Biases go into peft's `lora_bias`, which also
    serves linears that have none (peft says then that such an adapter cannot be merged).

    Args:
        lm: The base model.
        deltas: What to add, to weights and biases of linears; the adapter is float32.
        folder: Where to; its parents are made.
        rank: Of every weight's change.
        card: Text of `README.md`.
        base: What the adapter belongs to: a hub id or a folder, kept as `base_model_name_or_path`.
        overwrite: Replace a checkpoint or adapter that is there. The old one stays until the new one is whole.
        check: As in `write_checkpoint`.

    Returns:
        The folder, and what share of each change the rank keeps.

    Raises:
        ConfigError: As `write_checkpoint`; `rank` is below 1; there is no change.
        ModelError: A change is of no linear's weight or bias, or of linears of two orientations.
        StorageError: The disk is full or not writable.

    Source:
        LoRA, arXiv:2106.09685, section 4.1, with alpha = r, so that the product is added as it is.
    """
    # peft takes seconds to import, and not everyone writes adapters.
    from peft import LoraConfig

    check_target(lm, folder, overwrite)
    parts = _adapter_parts(lm.model, deltas, rank)
    names = list(parts)
    if not names:
        raise ConfigError("there is no change to write. Give at least one.")
    axes = {row_axis(lm.model.get_submodule(name)) for name in names}
    if len(axes) > 1:
        raise ModelError(f"{', '.join(names)} are not all stored one way round, as one adapter needs it.")
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
    with whole_folder(folder, overwrite) as unfinished:
        config.save_pretrained(str(unfinished))
        _sort_modules(unfinished / "adapter_config.json")
        save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
        (unfinished / CARD).write_text(card, encoding="utf-8")
        check(unfinished)
    return WrittenAdapter(folder, {name: part.factors.kept for name, part in parts.items()})


@dataclass(frozen=True)
class _AdapterPart:
    """What an adapter has for one linear."""

    factors: LowRank
    bias: Tensor | None
    """`(d_out,)`."""


def _adapter_parts(model: PreTrainedModel, deltas: Sequence[WeightDelta], rank: int) -> dict[str, _AdapterPart]:
    """By linear, first layer first."""
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
    """A block in which a model has the adapter of some changes next to its weights, as peft computes it.

    Adding the product to the weights is the same but for rounding, which a deep model adds up to more than one would
    allow two copies of one model. The weights are not touched.

    Args:
        model: The base.
        deltas: As `write_adapter` takes them.
        rank: Likewise.
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
    """Check that a folder may be written or replaced; to be asked before long work, too.

    Raises:
        ConfigError: It exists and `overwrite` is off, holds something else than a checkpoint or an adapter, or is
            where the base model lies or the program runs.
        StorageError: Nothing can be written there.
    """
    if not folder.exists() and not folder.is_symlink():
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError(f"nothing can be written below {parent}. Choose another folder.")
        return
    here = Path.cwd()
    if folder.resolve() in (here, *here.parents):
        # Replacing it would leave this process, and the shell it was started from, in a folder that is gone.
        raise ConfigError(f"{folder} is, or holds, the current folder. Choose another folder.")
    for own in (lm.name, lm.model.config.name_or_path):
        if own and Path(own).is_dir() and Path(own).samefile(folder):
            raise ConfigError(f"{folder} is where the base model itself lies. Choose another folder.")
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{folder} exists already. Choose another folder, or ask for it to be overwritten.")
    known = ("config.json", "adapter_config.json")
    # Many programs have a config.json; only with weights is it a checkpoint's.
    weights = folder.is_dir() and any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir())
    if folder.is_symlink() or not weights or not any((folder / name).is_file() for name in known):
        raise ConfigError(
            f"{folder} is no folder with a {' or '.join(known)} and weights, so it will not be overwritten. Choose "
            "another folder, or remove it yourself."
        )
    if strange := sorted(path.name for path in folder.iterdir() if not _belongs(path)):
        raise ConfigError(
            f"{folder} holds {strange[0]} beside a checkpoint's own files, so it will not be overwritten. Choose "
            "another folder, or remove it yourself."
        )


def _belongs(path: Path) -> bool:
    """Whether something is a file of a checkpoint or adapter; folders, such as other checkpoints, are not."""
    ours = path.name in OF_A_STUDY or PART_OF_A_MODEL.fullmatch(path.name) is not None
    return ours and path.is_file() and not path.is_symlink()


def require_plain_weights(lm: LanguageModel) -> None:
    """Check that weights are plain floating-point ones, which alone can be added to and written.

    Raises:
        ModelError: They are quantized, or not in memory.
    """
    remedy = "Load the model dequantized, or its unquantized original."
    if lm.quantized is not None:
        raise ModelError(f"{lm.name} is quantized ({lm.quantized}). {remedy}")
    for name, weight in lm.model.named_parameters():
        if weight.is_meta:
            raise ModelError(
                f"{name} of {lm.name} is not in memory (offloaded), and a checkpoint is written from memory. Load the "
                "model whole: without --device-map, or with room for all of it."
            )
        # float8 counts as floating point, but is a quantization with scales kept elsewhere.
        if not weight.is_floating_point() or weight.dtype.itemsize < 2 or type(weight.data) is not Tensor:
            kind = weight.dtype if type(weight.data) is Tensor else type(weight.data).__name__
            raise ModelError(f"{lm.name} is quantized: {name} is {kind}. {remedy}")


def _bias_switch(
    model: PreTrainedModel, anatomy: Anatomy, deltas: Sequence[WeightDelta]
) -> tuple[str | None, tuple[str, ...]]:
    """The config's switch for the biases that the model lacks, and all the biases that it brings."""
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
    brought = (*form.new, *form.others)
    unknown = [name for name in lacking if name not in brought]
    if unknown:
        raise ModelError(
            f"checkpoints of {type(model).__name__} cannot hold {unknown[0]}: its linear has no bias, and no boolean "
            "of its config gives it one. Leave biases out of the change."
        )
    return form.switch, brought


def _shell(model: PreTrainedModel, switch: str | None, new_biases: Sequence[str]) -> PreTrainedModel:
    """A second model around the same tensors, with a config and biases of its own."""
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
            f"{' '.join(str(error).split())[:300]}. Load the model afresh, without adapters or quantization."
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
                f"{change.parameter} is no weight or bias of a linear of {type(model).__name__}, so an adapter cannot "
                "hold its change. Write a checkpoint."
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
    """Name the modules in order: peft keeps them in a set, and the file shall be the same each time."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"], key=_natural)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


@contextmanager
def whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name when the block ends well.

    When the block raises, nothing is left of it, and what lay at `folder` is as before.
    """
    with explain_storage_errors(folder, _REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f"{_leftover_prefix(folder)}{os.getpid()}-"
        ) as temporary:
            # One floor down, since the temporary folder itself is closed to all but its owner.
            unfinished = Path(temporary) / "new"
            unfinished.mkdir()
            try:
                yield unfinished
            except SafetensorError as error:
                raise _system_error(error) from error
            for path in (*unfinished.rglob("*"), unfinished):
                if path.is_file():
                    # safetensors lets nobody but the owner read its files.
                    path.chmod(unfinished.stat().st_mode & 0o666)
                _sync(path)
            _exchange(unfinished, folder, Path(temporary) / "old", overwrite)
            _sync(folder.parent)


def _leftover_prefix(folder: Path) -> str:
    """How temporary folders of this machine beside `folder` begin; the process's number follows."""
    return f".{folder.name}-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())[:32]}-"


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed while they wrote `folder` left beside it."""
    if os.name == "nt":
        return  # Windows has no signal that only asks whether a process lives
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
            continue  # another user's process, which lives


def _drop_chat_template(folder: Path) -> None:
    """Remove the chat template from a tokenizer's files: it would put a question in another form than was measured."""
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
            raise ConfigError(f"{folder} has come to be meanwhile. Choose another folder.") from error
        raise


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: SafetensorError) -> Exception:
    """The operating system's refusal, which safetensors reports in words only."""
    code = re.search(r"(?:os error|code:) (\d+)", str(error))
    return OSError(int(code[1]), str(error)) if code else error

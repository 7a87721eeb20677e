"""peft's LoRA adapters: trained inside a context manager and returned as weight changes, or merged from a folder."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import forget_adapters
from dualform.models.editing.edit import WeightDelta
from dualform.models.loading.checkpoint_files import UnusableFileError, read_json, tensor_shapes
from dualform.models.loading.offloading import require_in_memory, requires_grad_flags, set_requires_grad_
from dualform.models.loading.quantized import require_unquantized, without_library_warnings
from dualform.models.structure.anatomy import Anatomy, is_linear, row_axis
from dualform.models.structure.tying import tied_linears
from dualform.ops.rounding import at_least_float32
from dualform.plain_text import plain


def adapted_modules(model: PreTrainedModel, anatomy: Anatomy, targets: str) -> list[str]:
    """Names of the modules that LoRA adapts; a fused module is adapted as a whole.

    Args:
        model: The model.
        anatomy: Its projections.
        targets: `all-linear` (every linear but the output head), `attention` (W_Q, W_K, W_V and W_O) or `query-value`
            (W_Q and W_V).

    Raises:
        ModelError: They were not found in every layer.
    """
    if targets == "all-linear":
        head = model.get_output_embeddings()
        names = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
        # Layers may share a module, and modules a weight.
        tied = tied_linears(model)
        names = [name for name in names if tied.get(name, (name,))[0] == name]
        if not names:
            raise ModelError("LoRA needs linears, but this model has none except its output head. Leave out lora.")
        return names
    anatomy.require_layers("LoRA")
    letters = ("W_Q", "W_K", "W_V", "W_O") if targets == "attention" else ("W_Q", "W_V")
    if missing := anatomy.missing_projections(*letters):
        what = "W_Q, W_K, W_V and W_O" if targets == "attention" else "W_Q and W_V"
        raise ModelError(
            f"{what}, which LoRA needs, were not found in every layer ({'; '.join(missing)}). Leave out lora."
        )
    parts = [getattr(layer, letter) for layer in anatomy.layers for letter in letters]
    # Distinct, because a fused module contains several and layers may share a module.
    return list(dict.fromkeys(part if isinstance(part, str) else part.module for part in parts))


class LoraTraining:
    """LoRA adapters on some modules.

    Use as a context manager; the model is restored when the block ends, also if it raises.

    Args:
        model: The model.
        anatomy: Its projections.
        rank: Rank of the adapters.
        seed: Seed of their initialisation.
        alpha: Adapters are scaled by alpha / rank; None for twice the rank.
        dropout: Dropout on their input.
        targets: The modules, see `adapted_modules`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        anatomy: Anatomy,
        rank: int,
        seed: int,
        *,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str = "query-value",
    ) -> None:
        self._model = model
        self._rank = rank
        self._seed = seed
        self._alpha = 2 * rank if alpha is None else alpha
        self._dropout = dropout
        self._names = adapted_modules(model, anatomy, targets)
        tied = tied_linears(model)
        self._sharing = {name: tied.get(name, (name,)) for name in self._names}
        self._required: dict[str, bool] = {}
        require_unquantized(model, "so adapters trained on them could not be compared with other learners")
        require_in_memory(model)
        self._peft: Any = None

    def __enter__(self) -> "LoraTraining":
        # peft takes seconds to import.
        with without_library_warnings():
            from peft import LoraConfig, get_peft_model

        self._required = requires_grad_flags(self._model)
        transposed = row_axis(self._model.get_submodule(self._names[0])) == 1
        config = LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,
            lora_dropout=self._dropout,
            target_modules=[f"model.{name}" for name in self._all_names],
            fan_in_fan_out=transposed,
        )
        # Of a model with a configuration, peft replaces or refuses some of the modules named, by their names and the
        # model's family. Here they are the very linears that were found.
        holder = nn.Module()
        holder.add_module("model", self._model)
        try:
            with torch.random.fork_rng(), warnings.catch_warnings(), without_library_warnings():
                torch.manual_seed(self._seed)
                # peft warns about saving adapters, but none are saved here.
                warnings.simplefilter("ignore")
                self._peft = get_peft_model(cast(PreTrainedModel, holder), config)
            self._share_adapters()
        except BaseException:
            self.__exit__()
            raise
        self._model.eval()
        if self._dropout:
            for name in self._all_names:
                # The model's own dropout stays off.
                adapter: Any = self._model.get_submodule(name)
                adapter.lora_dropout.train()
        return self

    def __exit__(self, *details: object) -> None:
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
        for name in self._all_names:
            # If peft raised, some modules may still be wrapped.
            module: Any = self._model.get_submodule(name)
            if hasattr(module, "base_layer"):
                self._model.set_submodule(name, module.base_layer)
        forget_adapters(self._model)
        set_requires_grad_(self._model, self._required)

    @property
    def _all_names(self) -> list[str]:
        return list(dict.fromkeys(name for sharing in self._sharing.values() for name in sharing))

    def _share_adapters(self) -> None:
        """Give modules that share a weight the same adapter, so that the weight has one change."""
        for name, sharing in self._sharing.items():
            first: Any = self._model.get_submodule(name)
            for other in sharing:
                module: Any = self._model.get_submodule(other)
                module.lora_A, module.lora_B = first.lora_A, first.lora_B

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable matrices of the adapters."""
        return [weight for weight in self._model.parameters() if weight.requires_grad]

    def deltas(self) -> tuple[WeightDelta, ...]:
        """The change of each adapted weight, as a full matrix."""
        deltas = []
        for name in self._names:
            adapter: Any = self._model.get_submodule(name)
            delta = at_least_float32(adapter.get_delta_weight("default").detach()).clone()
            deltas.append(WeightDelta(f"{name}.weight", row_axis(adapter.base_layer), None, delta))
        return tuple(deltas)


ADAPTER_WEIGHTS = "adapter_model.safetensors"


def merge_adapter_(model: PreTrainedModel, folder: Path, base: str) -> str:
    """Merge a LoRA adapter into its base model.

    Args:
        model: The adapter's base model, changed in place.
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`, as written by peft.
        base: The base model's name, for messages.

    Returns:
        A note about what was merged.

    Raises:
        UnusableFileError: The adapter's files are missing, pickled or damaged.
        ModelError: The adapter is not a LoRA adapter or does not match its base, or the base's weights are quantized or
            not in memory.
    """
    settings = read_json(folder / "adapter_config.json")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{folder} contains an adapter of type {plain(str(kind))}, but dualform supports only LoRA. Merge it into "
            "its base model with peft, and give the merged checkpoint."
        )
    if (folder / "adapter_model.bin").exists() and not (folder / ADAPTER_WEIGHTS).exists():
        raise UnusableFileError(
            f"the adapter's weights are pickled (adapter_model.bin), and loading a pickle can run code. Convert them "
            f"to {ADAPTER_WEIGHTS}."
        )
    stored = set(tensor_shapes(folder / ADAPTER_WEIGHTS))
    require_unquantized(model, "so an adapter cannot be merged into them")
    if any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"{folder} is an adapter, and its base model is not entirely in memory. Load it without --device-map, or "
            "merge the adapter first."
        )
    with without_library_warnings():
        # peft takes seconds to import.
        from peft import PeftModel, get_peft_model_state_dict

    _add_zero_biases_(model, stored)
    with torch.random.fork_rng(), warnings.catch_warnings(), without_library_warnings():
        # peft warns about missing and unexpected weights, which are checked below.
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(model, str(folder))
        used = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        odd = sorted(used - stored) + sorted(stored - used - set(wrapped.state_dict()))
        if odd:
            raise ModelError(
                f"{folder} does not match its base model {base}: {plain(odd[0])} is "
                f"{'missing from' if odd[0] in used else 'unexpected in'} the adapter"
                f"{f', and {len(odd) - 1} more' if len(odd) > 1 else ''}. Give the base model that it was trained on."
            )
        n_modules = sum(name.endswith("lora_A") for name, _ in wrapped.named_modules())
        # With `safe_merge` NaN in an adapter is an error here.
        merged = wrapped.merge_and_unload(safe_merge=True)
    forget_adapters(merged)
    assert merged is model
    model.requires_grad_(True)
    model.eval()
    rank = settings.get("r")
    return (
        f"{folder} is a LoRA adapter (rank {plain(str(rank))}, on {n_modules} linear layers); it was merged into its "
        f"base model {plain(base)}."
    )


def _add_zero_biases_(model: PreTrainedModel, stored: set[str]) -> None:
    """Add zero biases to linears without bias for which the adapter has one, because peft would not merge it."""
    modules = dict(model.named_modules())
    for key in stored:
        name = key.removeprefix("base_model.model.").removesuffix(".lora_B.bias")
        module = modules.get(name)
        if key.endswith(".lora_B.bias") and isinstance(module, nn.Linear) and module.bias is None:
            weight = module.weight
            module.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype, device=weight.device))

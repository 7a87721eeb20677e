"""Every private name of torch, transformers and accelerate that dualform uses, each behind a small function.

If a release moves one of them, only this file must change. tests/models/test_compat.py shows which name is missing and
checks that no other file uses a private name.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

NAME_OR_PATH = "_name_or_path"
"""The entry of a saved config with the path or name that the model was loaded from."""


# transformers: attention implementations


def can_set_attention(model: PreTrainedModel) -> bool:
    """Whether a family uses transformers' attention registry, so that its attention function can be replaced."""
    return bool(type(model)._can_set_attn_implementation())


def attention_implementation(model: nn.Module) -> str | None:
    """Name of a model's attention implementation; None if its config has none."""
    name: str | None = getattr(model.config, "_attn_implementation", None)
    return name


def set_config_attention(config: Any, name: str | None) -> None:
    """Set the attention implementation in a config and its sub-configs without the model's checks; None unsets it."""
    config._attn_implementation = name


# transformers: building and resetting models


def build_from_config(kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the given class with newly initialised weights."""
    model: PreTrainedModel = kind._from_config(config, dtype=dtype)
    return model


def forget_adapters(model: nn.Module) -> None:
    """Remove the attributes that peft and transformers leave on a model after its adapters were removed."""
    for name in ("peft_config", "active_adapters_", "_hf_peft_config_loaded"):
        if name in vars(model):
            delattr(model, name)


def reset_rotary_frequencies(model: nn.Module) -> None:
    """Reset the frequencies of rotary embeddings with dynamic scaling, which depend on the longest row so far.

    A module has one set of buffers, or one per layer type with a prefix in its names.
    """
    for module in model.modules():
        original_length = getattr(module, "original_max_seq_len", None)
        if original_length is None:
            continue
        for name, now in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if not name.endswith("inv_freq") or name.endswith("original_inv_freq"):
                continue
            prefix = name.removesuffix("inv_freq")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            length = f"{prefix}max_seq_len_cached"
            grown = getattr(module, length, getattr(module, "max_seq_len_cached", original_length)) != original_length
            if original is not None and grown:
                module.register_buffer(name, original.to(now.device), persistent=False)
                setattr(module, length, original_length)


# accelerate


def accelerate_hook(module: nn.Module) -> Any:
    """Accelerate's hook of a module (`ModelHook`), which loads offloaded weights; None if there is none."""
    return vars(module).get("_hf_hook")


def set_accelerate_hook(module: nn.Module, hook: Any) -> None:
    """Replace accelerate's hook of a module."""
    module._hf_hook = hook


def accelerate_knows_processes() -> bool:
    """Whether accelerate is already initialised in this process."""
    return bool(PartialState._shared_state)


def forget_accelerator(processes: bool) -> None:
    """Reset accelerate, so that the next `Accelerator` chooses its device again.

    Args:
        processes: Whether to reset the process group as well.
    """
    AcceleratorState._reset_state(reset_partial_state=processes)


# torch: modules


def own_parameters(module: nn.Module) -> dict[str, Any]:
    """A module's own parameters by name, as a writable dictionary that also accepts plain tensors."""
    return module._parameters


def forward_hooks(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], dict[int, Callable[..., Any]]]:
    """A module's hooks before and after its forward, by number, as writable dictionaries."""
    return module._forward_pre_hooks, module._forward_hooks


# torch: kernels


def has_packed_products() -> bool:
    """Whether oneDNN's packed products are available."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_weight(weight: Tensor) -> Tensor:
    """A weight `(d_out, d_in)` in oneDNN's packed layout, for `packed_product`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`x` times the transpose of a packed weight, plus a bias: `(..., d_in)` to `(..., d_out)`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


def attention_with_lse_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused attention on a CPU with the log-sum-exp of the scores, which the public function does not return.

    Args:
        query: `(batch, head, q_pos, d_head)`.
        key: `(batch, head, k_pos, d_head)`.
        value: `(batch, head, k_pos, d_head)`.
        mask: Additive, broadcastable to `(batch, head, q_pos, k_pos)`.
        scale: Factor of the scores.

    Returns:
        Output `(batch, head, q_pos, d_head)` and log-sum-exp `(batch, head, q_pos)`.
    """
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=mask, scale=scale
    )
    return out, lse

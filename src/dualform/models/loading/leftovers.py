"""Weights of a file that have no place in the model that was built from its config.

transformers leaves them out and goes on. Some change nothing (buffers of older versions, heads for other purposes);
without others, such as layers or biases, the model computes something else than the one that was trained.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.loading.checkpoint_files import StoredWeights
from dualform.models.loading.quantized import precision_of
from dualform.plain_text import plain

_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|version)$"
    r"|\.(attn|attention|self_attn|self_attention)\.(bias|mask|causal_mask|masked_bias)$"
)
"""Computed anew by the model, whatever the file holds."""
_OTHER_PURPOSES = re.compile(
    r"(^|[._])(mtp\w*|nextn|eagle\w*|medusa\w*|vision\w*|visual|image\w*|audio\w*|speech\w*|mm_projector"
    r"|multi_modal\w*|v_head|value_head|score|classifier|reward_head|talker|token2wav|code2wav)(\.|$)"
    r"|\.(k|v|q|kv)_scale$"
)
"""Heads that draft tokens, other senses, values for reinforcement learning, and scales of a quantized cache."""


def judge_leftovers(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> tuple[str, ...]:
    """Decide what it means that some weights of the file were left out.

    Args:
        model: As it was built.
        unexpected: Names of the weights that have no place in it, as transformers reports them.
        name: Of the checkpoint, for messages.

    Returns:
        Notes on weights whose absence may matter to a reader of results.

    Raises:
        ModelError: Layers, or weights of modules that are computed with, were left out.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    buffers = {key for key, _ in model.named_buffers()}
    left = sorted(key for key in unexpected if key not in buffers and not _BUFFERS.search(key))
    surplus: dict[str, list[str]] = {}
    inside: list[str] = []
    others: list[str] = []
    for key in left:
        kind, where = _place(modules, key)
        drafts = kind == "surplus" and _index(key, where) in _drafting(left, where)
        if drafts or _OTHER_PURPOSES.search(key) or (kind != "outside" and precision_of(model) is not None):
            # Quantized layers keep their numbers under names of their own.
            others.append(key)
        elif kind == "surplus":
            surplus.setdefault(where, []).append(key)
        elif kind == "inside" or key.startswith("rope_freqs"):
            inside.append(key)
        else:
            others.append(key)
    for series, keys in surplus.items():
        _refuse_layers(model, modules[series], series, keys, name)
    if inside:
        raise ModelError(_of_modules(model, inside, name))
    if not others:
        return ()
    return (
        f"{len(others)} {'weights' if len(others) > 1 else 'weight'} in the file of {name} "
        f"{'have' if len(others) > 1 else 'has'} no place in {type(model).__name__} and {_were(others)} left out "
        f"({_some(others)}).",
    )


def _place(modules: Mapping[str, nn.Module], key: str) -> tuple[str, str]:
    """Where a weight would belong: `surplus` to a series of modules, `inside` a module that is there, or `outside`."""
    parts = key.split(".")
    depth = len(parts) - 1
    while depth > 0 and ".".join(parts[:depth]) not in modules:
        depth -= 1
    where = ".".join(parts[:depth])
    module = modules[where] if where else None
    if isinstance(module, nn.ModuleList) and parts[depth].isdigit() and int(parts[depth]) >= len(module):
        return "surplus", where
    in_series = any(part.isdigit() for part in parts[:depth])
    of_a_leaf = depth == len(parts) - 1 and module is not None and not list(module.children())
    return ("inside" if in_series or of_a_leaf else "outside"), where


def _index(key: str, series: str) -> int:
    return int(key.removeprefix(f"{series}.").partition(".")[0])


def _drafting(keys: Sequence[str], series: str) -> set[int]:
    """Which modules of a series predict further tokens (DeepSeek's multi-token prediction), by the parts they have."""
    of_series = (key for key in keys if key.startswith(f"{series}."))
    return {_index(key, series) for key in of_series if re.search(r"\.(eh_proj|enorm|hnorm|shared_head)\.", key)}


def _refuse_layers(model: PreTrainedModel, module: nn.Module, series: str, keys: Sequence[str], name: str) -> None:
    assert isinstance(module, nn.ModuleList)
    n_built = len(module)
    n_stored = 1 + max(_index(key, series) for key in keys)
    config = model.config.get_text_config()
    field = str(getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers"))
    if getattr(config, field, None) == n_built:
        cause = f"its config says {field}: {n_built}"
        remedy = f"Set {field} to {n_stored}, or give the checkpoint that belongs to this config."
    else:
        cause = f"{type(model).__name__} was built from its config with {n_built}"
        remedy = "Give the config that belongs to these weights."
    raise ModelError(
        f"{name}: the weights hold {n_stored} layers in {series}, but {cause}, so {len(keys)} weights would be "
        f"left out ({_some(keys)}). {remedy}"
    )


def _of_modules(model: PreTrainedModel, keys: Sequence[str], name: str) -> str:
    if all(key.startswith("rope_freqs") for key in keys):
        return _rope_lost(name)
    biases = all(key.endswith("bias") for key in keys)
    values: dict[str, Any] = vars(model.config.get_text_config())
    switches = [field for field, value in values.items() if "bias" in field and value is False]
    remedy = "Give the config that belongs to these weights."
    if biases and switches:
        remedy = f"Of its config, one of these may have to be true: {', '.join(switches)}."
    return (
        f"{name}: {len(keys)} {'biases' if biases else 'weights'} in the file have no place in the "
        f"{type(model).__name__} that its config describes ({_some(keys)}); without them it would compute something "
        f"else. {remedy}"
    )


def _some(keys: Sequence[str]) -> str:
    return plain(", ".join(keys[:3])) + (", ..." if len(keys) > 3 else "")


def _were(keys: Sequence[str]) -> str:
    return "were" if len(keys) > 1 else "was"


def note_on_head(model: PreTrainedModel) -> tuple[str, ...]:
    """Note an output head of its own where the config says that it is the embedding, and correct the config.

    transformers compares the two when both are in the file, and keeps them apart where they differ. With the config as
    it was, whatever is written from the model or built from its config would have the embedding in the head's place.

    Args:
        model: As it was loaded; its config is changed.

    Returns:
        A note where that was so.
    """
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights: list[Any] = [getattr(module, "weight", None) for module in (head, embedding)]
    if not any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return ()
    if any(weight is None or weight.is_meta for weight in weights) or weights[0] is weights[1]:
        return ()
    if weights[0].shape != weights[1].shape or _tied_under_another_name(model, head):
        return ()
    for config in configs:
        config.tie_word_embeddings = False
    return (
        "The config says that the output head is the embedding (tie_word_embeddings), but the file has a head of its "
        "own that differs. The head in the file is used, as transformers does.",
    )


def _tied_under_another_name(model: PreTrainedModel, head: nn.Module) -> bool:
    # Some families embed by another matrix than the one that the head shares.
    return sum(weight is head.weight for _, weight in model.named_parameters(remove_duplicate=False)) > 1


@contextmanager
def names_converted() -> Iterator[set[str]]:
    """A block in which transformers' names of the GGUF tensors that it converts are noted down.

    The set stays empty where it loads a file in another way, in which it reports itself what it left out.
    """
    converter: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    original = converter.get_gguf_hf_weights_map
    names: set[str] = set()

    def noted(*args: Any, **settings: Any) -> dict[str, str]:
        found: dict[str, str] = original(*args, **settings)
        names.update(found)
        return found

    converter.get_gguf_hf_weights_map = noted
    try:
        yield names
    finally:
        converter.get_gguf_hf_weights_map = original


def judge_gguf(
    model: PreTrainedModel, stored: StoredWeights, converted: set[str], path: Path, name: str
) -> tuple[str, ...]:
    """Decide what it means that tensors or settings of a GGUF file were left out in its conversion.

    Args:
        model: As it was loaded.
        stored: The file's header.
        converted: Names from `names_converted`.
        path: The file.
        name: Of the checkpoint, for messages.

    Returns:
        Notes, as `judge_leftovers`.

    Raises:
        ModelError: What was left out changes what the model computes.
    """
    _require_rope_scaling(model, stored.metadata, name)
    notes = _settings_lost(model, stored.metadata, name)
    if not converted:
        return notes
    left = [
        key
        for key in stored.shapes
        # Experts are known without their ending, and an output matrix decides what the config says of tying.
        if key not in converted and key.removesuffix(".weight") not in converted and key != "output.weight"
    ]
    if any(_ROPE.search(key) for key in left) and not _all_ones(path, [key for key in left if _ROPE.search(key)]):
        raise ModelError(_rope_lost(name))
    left = [key for key in left if not _ROPE.search(key)]
    needed = [key for key in left if _NEEDED_IN_GGUF.match(key) and ".nextn." not in key]
    if needed:
        raise ModelError(_of_modules(model, needed, name))
    if left:
        notes += (
            f"{len(left)} tensors in the file of {name} have no place in {type(model).__name__} and {_were(left)} left "
            f"out ({_some(left)}).",
        )
    return notes


_ROPE = re.compile(r"rope_freqs|rope_factors")
_NEEDED_IN_GGUF = re.compile(r"blk\.\d+\.|output|position_embd|token_embd|token_types")


def _rope_lost(name: str) -> str:
    return (
        f"{name}: the file scales its rotary positions by factors of their own (rope_freqs), as Llama 3.1 does, and "
        "transformers' conversion of GGUF leaves them out: every answer would be wrong. Give the checkpoint in "
        "safetensors."
    )


def _all_ones(path: Path, names: Sequence[str]) -> bool:
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    return all(bool((tensors[name] == 1).all()) for name in names)


def _require_rope_scaling(model: PreTrainedModel, metadata: Mapping[str, Any], name: str) -> None:
    kind = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type")
    factor = metadata.get(f"{metadata['general.architecture']}.rope.scaling.factor")
    if kind in (None, "none") or factor in (None, 1.0):
        return
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if all(part.get("rope_type", "default") == "default" for part in parts):
        raise ModelError(
            f"{name}: the file scales its rotary positions ({plain(str(kind))}, factor {factor:g}), and transformers' "
            "conversion of GGUF leaves that out. Give the checkpoint in safetensors."
        )


_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "attention.sliding_window": ("sliding_window", "window_size"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier", "scale_emb"),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier", "scaling"),
}
"""Settings of a GGUF file that change what is computed, and their names in configs."""


def _settings_lost(model: PreTrainedModel, metadata: Mapping[str, Any], name: str) -> tuple[str, ...]:
    config = model.config.get_text_config()
    lost = []
    for field, names in _SETTINGS.items():
        value = metadata.get(f"{metadata['general.architecture']}.{field}")
        if not isinstance(value, int | float) or value in (0, 1):
            continue
        if field == "attention.sliding_window" and value >= (getattr(config, "max_position_embeddings", 0) or 0):
            continue
        known = [getattr(config, one, None) for one in names]
        if not any(isinstance(one, int | float) and abs(value - one) <= 1e-4 * abs(value) for one in known):
            lost.append(f"{field} = {value:g}")
    if not lost:
        return ()
    return (
        f"The file of {name} sets {', '.join(lost)}, which transformers' conversion of GGUF leaves out, so the model "
        "may compute something else than the one that was trained. Prefer its checkpoint in safetensors.",
    )

"""Switch lengths: the sequence lengths beyond which a model computes a different function, read from its config.

A sliding window masks nothing in a row that is shorter than the window; LongRoPE keeps its short factors until a row is
longer than the pretraining context. A check on a short row therefore does not cover rows beyond such a length. The
lengths are collected here; those that are short enough are checked at load, and beyond the others the naive route is
used.

There are two kinds. A window, a chunk or a position-dependent temperature affects only the tokens beyond the length, so
the keys and values of a prefix stay valid. LongRoPE and dynamic scaling choose the rotary frequencies of all tokens
from the longest position of the forward, so keys and values of a shorter forward cannot be used in a longer one. The
same holds for sparse attention that keeps the best keys, where many keys have the same score.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dualform.models.compat import reset_rotary_frequencies
from dualform.models.hooks import attach_permanently

Reach = Literal["token", "row", "every length"]
"""Which states change beyond a switch length: those of the tokens beyond it (`token`); those of all tokens of the
forward, once (`row`); or those of all tokens with every further token (`every length`)."""


@dataclass(frozen=True)
class SwitchLength:
    """A length beyond which a model computes a different function."""

    length: int
    """The longest row that is not affected, in tokens."""
    setting: str
    """The config's setting, such as `sliding_window = 4096`."""
    reach: Reach

    def __str__(self) -> str:
        return f"{self.setting}, beyond {self.length} tokens"


_WINDOW = re.compile(r"(^|_)windows?(_|$)")
_CHUNK = re.compile(r"^(attention_chunk_size|(lsh|local)_attn_chunk_length)$")
_KEPT_KEYS = re.compile(r"^(index(er)?_(topk|budget)|keep_window_size)$")
_COMPRESSED = re.compile(r"^(indexer_)?compress_(rate|ratio)s?$")
_TEMPERATURE = re.compile(r"(^floor_scale|_n_floor)$")
# Other parts of the model; their settings for images or sound do not affect the text.
_OTHER_PARTS = re.compile(r"(vision|image|audio|speech|video|quantization|generation|encoder|projector|decision)")
_BOUNDED_LAYERS = ("sliding", "window", "local", "chunk", "hybrid", "compress", "sparse", "index")


def switch_lengths(config: PreTrainedConfig) -> tuple[SwitchLength, ...]:
    """All switch lengths of a model, from its whole config and for any family.

    - LongRoPE: `original_max_position_embeddings`, in `rope_parameters` (one, or one per layer type) or at the top
      level;
    - dynamic scaling of rotary embeddings: `max_position_embeddings`, and every length after it;
    - windows: `sliding_window`, `window_size` and similar names, also if they are not passed to attention;
    - `attention_chunk_size`, and the chunks of Reformer;
    - position-dependent temperature: `floor_scale` with `attn_temperature_tuning`, `log_scaling_n_floor`,
      `llama_4_scaling_beta`;
    - attention to keys chosen by an index or a score: `index_topk`, `indexer_budget`, `keep_window_size`, blocks of
      keys; and to compressed keys.

    Args:
        config: The model's config; its text part is searched.

    Returns:
        Distinct switch lengths, shortest first. Some may come from settings that the model does not use.
    """
    text = text_config(config)
    switches = {switch for settings in _settings(text.to_dict()) for switch in _switches_in(settings, text)}
    return tuple(sorted(switches, key=lambda switch: (switch.length, switch.setting)))


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that describes the language model; the whole config if that part is ambiguous."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        return config


def row_wide(switches: Iterable[SwitchLength]) -> tuple[SwitchLength, ...]:
    """Switch lengths beyond which the states of all tokens change."""
    return tuple(switch for switch in switches if switch.reach != "token")


def same_prefix_states(switches: Iterable[SwitchLength], shorter: int, longer: int) -> bool:
    """Whether the first tokens of a row have the same states in forwards of `shorter` and of `longer` tokens."""
    for switch in row_wide(switches):
        if longer <= switch.length or shorter == longer:
            continue
        if switch.reach == "every length" or shorter <= switch.length:
            return False
    return True


def first_crossed(
    switches: Iterable[SwitchLength], checked: Sequence[SwitchLength], n_prefix: int, longest: int
) -> SwitchLength | None:
    """The first switch length that prevents using a separately encoded prefix for a row.

    Args:
        switches: The model's switch lengths.
        checked: Those beyond which the route was found to be correct.
        n_prefix: Number of tokens of the prefix.
        longest: Number of tokens of the row, prefix included.

    Returns:
        None if the prefix's keys and values equal those of the row's own forward and the route is correct at this
        length.
    """
    for switch in switches:
        if longest <= switch.length:
            continue
        if switch not in checked or not same_prefix_states((switch,), n_prefix, longest):
            return switch
    return None


def reset_rotary_before_forwards_(model: PreTrainedModel) -> None:
    """Make every forward choose its rotary frequencies from its own length.

    Dynamic scaling keeps the frequencies of the longest row so far and uses them for later rows that are longer than
    the original context but shorter than that row, so results would depend on earlier forwards.
    """
    # One name, or one for each layer type.
    dynamic = any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules())
    if dynamic:
        attach_permanently(model, _reset_frequencies)


def _reset_frequencies(model: nn.Module, args: Any, kwargs: Any) -> None:
    reset_rotary_frequencies(model)


def _settings(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config's settings and its nested settings, without those of other parts of the model."""
    yield settings
    for name, value in settings.items():
        if isinstance(value, dict) and not _OTHER_PARTS.search(str(name)):
            yield from _settings(value)


def _switches_in(settings: dict[str, Any], config: PreTrainedConfig) -> Iterator[SwitchLength]:
    yield from _rotary_switches(settings, config)
    types = settings.get("layer_types") or settings.get("layers_block_type")
    bounded = not types or any(word in str(layer_type) for layer_type in types for word in _BOUNDED_LAYERS)
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                continue
            setting = f"{name} = {number}"
            if _KEPT_KEYS.search(name):
                # Many keys have a score of zero, and which of them are kept depends on their number.
                yield SwitchLength(number, setting, "every length")
            elif name == "index_topk_blocks":
                size = int(settings.get("index_block_size") or 1)
                yield SwitchLength(number * size, f"{setting} of {size} tokens", "every length")
            elif (bounded and _hides_keys(name)) or _COMPRESSED.search(name):
                yield SwitchLength(number, setting, "token")
            elif _TEMPERATURE.search(name) and settings.get("attn_temperature_tuning", True):
                # The factor depends on (position + 1) // number, so it first changes at position number - 1.
                yield SwitchLength(number - 1, setting, "token")


def _rotary_switches(settings: dict[str, Any], config: PreTrainedConfig) -> Iterator[SwitchLength]:
    kind = settings.get("rope_type", settings.get("type"))
    original = settings.get("original_max_position_embeddings")
    if settings.get("llama_4_scaling_beta") and original:
        yield SwitchLength(int(original), f"llama_4_scaling_beta = {settings['llama_4_scaling_beta']}", "token")
    if not isinstance(kind, str):
        return
    longest = getattr(config, "max_position_embeddings", None)
    if kind in ("longrope", "su"):
        original = original or getattr(config, "original_max_position_embeddings", None) or longest
        if original:
            yield SwitchLength(int(original), f"{kind} with original_max_position_embeddings = {original}", "row")
    elif "dynamic" in kind and longest:
        yield SwitchLength(int(longest), f"rope_type {kind} with max_position_embeddings = {longest}", "every length")


def _hides_keys(name: str) -> bool:
    """True for window and chunk sizes; `max_window_layers`, `sliding_window_pattern` and similar ones count layers."""
    counts = re.search(r"layers?(_|$)|pattern|num_|index", name)
    return bool(_WINDOW.search(name) or _CHUNK.search(name)) and not counts

"""Lengths at which a model begins to compute something else, read from its config.

A sliding window hides nothing from a row that fits into it; LongRoPE keeps its short factors until a row is longer than
the context of pretraining. A check on a short row says nothing about rows beyond such a length, so they are collected
here, checked where they are small, and respected where they are not.

Two kinds differ in what they do to the tokens before them. A window, a chunk or a temperature by position changes the
tokens that stand beyond it, whatever follows: a row can be read once. LongRoPE and dynamic scaling choose one set of
rotary frequencies from the longest position of the forward, for all of its tokens, the first included: a forward of
another length is another function, so keys and values of a shorter forward cannot be used in a longer one. Sparse
attention that keeps the best of all keys does the same, where many of them have the same score.
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
"""What changes beyond a switch length: the tokens that stand beyond it; all tokens of the forward, once; or all of
them again with every further token."""


@dataclass(frozen=True)
class SwitchLength:
    """One length at which a model begins to compute something else."""

    length: int
    """Rows of at most so many tokens are not affected."""
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
# Other towers and heads; what they do to images or sound does not depend on the text.
_OTHER_PARTS = re.compile(r"(vision|image|audio|speech|video|quantization|generation|encoder|projector|decision)")
_BOUNDED_LAYERS = ("sliding", "window", "local", "chunk", "hybrid", "compress", "sparse", "index")


def switch_lengths(config: PreTrainedConfig) -> tuple[SwitchLength, ...]:
    """Every length beyond which the forward of a text depends on something that no shorter one shows.

    Collected from the whole config, whatever the family:

    - LongRoPE: `original_max_position_embeddings`, in `rope_parameters` (one, or one a layer type) or beside it;
    - dynamic scaling of rotary embeddings: `max_position_embeddings`, and every length after it;
    - windows: `sliding_window`, `window_size` and the like, whether or not attention is given them as an argument;
    - `attention_chunk_size`, and the chunks of Reformer;
    - temperature by position: `floor_scale` with `attn_temperature_tuning`, `log_scaling_n_floor`,
      `llama_4_scaling_beta`;
    - attention to the keys that an index or a score chooses: `index_topk`, `indexer_budget`, `keep_window_size`, blocks
      of keys; and to compressed keys.

    Args:
        config: Of the model; the text part is searched.

    Returns:
        Switch lengths, shortest first, each once. A setting that the model does not use may be among them.
    """
    text = text_config(config)
    found = {one for settings in _settings(text.to_dict()) for one in _of(settings, text)}
    return tuple(sorted(found, key=lambda one: (one.length, one.setting)))


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a config that describes the language model; all of it where several parts could be meant."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        return config


def whole_row(switches: Iterable[SwitchLength]) -> tuple[SwitchLength, ...]:
    """Those beyond which all tokens of a forward change."""
    return tuple(switch for switch in switches if switch.reach != "token")


def alike(switches: Iterable[SwitchLength], shorter: int, longer: int) -> bool:
    """Whether a row's first tokens have the same numbers in forwards of both lengths.

    Args:
        switches: Of the model.
        shorter: Tokens of the shorter forward.
        longer: Tokens of the longer one.
    """
    for switch in whole_row(switches):
        if longer <= switch.length or shorter == longer:
            continue
        if switch.reach == "every length" or shorter <= switch.length:
            return False
    return True


def crossed(
    switches: Iterable[SwitchLength], checked: Sequence[SwitchLength], n_prefix: int, longest: int
) -> SwitchLength | None:
    """The first switch length that keeps a prefix, encoded on its own, from being used for a row.

    Args:
        switches: Of the model.
        checked: Those beyond which the route is known to be right.
        n_prefix: Tokens of the prefix.
        longest: Tokens of the row, prefix included.

    Returns:
        None where the prefix's keys and values are those that the row's own forward would compute, and the route
        handles everything that the model does at this length.
    """
    for switch in switches:
        if longest <= switch.length:
            continue
        if switch not in checked or not alike((switch,), n_prefix, longest):
            return switch
    return None


def forget_lengths_(model: PreTrainedModel) -> None:
    """Have every forward choose its rotary frequencies from its own length.

    Dynamic scaling keeps the frequencies of the longest row so far, and uses them for every later row that is longer
    than the original context but shorter than that one: answers would depend on what was read before.
    """
    # A name, or one for each layer type.
    dynamic = any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules())
    if dynamic:
        attach_permanently(model, _reset_frequencies)


def _reset_frequencies(model: nn.Module, args: Any, kwargs: Any) -> None:
    reset_rotary_frequencies(model)


def _settings(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config's settings and those inside it, but not those of other parts of the model."""
    yield settings
    for name, value in settings.items():
        if isinstance(value, dict) and not _OTHER_PARTS.search(str(name)):
            yield from _settings(value)


def _of(settings: dict[str, Any], config: PreTrainedConfig) -> Iterator[SwitchLength]:
    yield from _rotary(settings, config)
    types = settings.get("layer_types") or settings.get("layers_block_type")
    bounded = not types or any(word in str(one) for one in types for word in _BOUNDED_LAYERS)
    for name, value in settings.items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                continue
            setting = f"{name} = {number}"
            if _KEPT_KEYS.search(name):
                # Many keys tie at a score of zero, and which of them is kept depends on how many there are.
                yield SwitchLength(number, setting, "every length")
            elif name == "index_topk_blocks":
                size = int(settings.get("index_block_size") or 1)
                yield SwitchLength(number * size, f"{setting} of {size} tokens", "every length")
            elif (bounded and _hides_keys(name)) or _COMPRESSED.search(name):
                yield SwitchLength(number, setting, "token")
            elif _TEMPERATURE.search(name) and settings.get("attn_temperature_tuning", True):
                # The factor is a logarithm of how often this number is contained in the position, counted from 1.
                yield SwitchLength(number - 1, setting, "token")


def _rotary(settings: dict[str, Any], config: PreTrainedConfig) -> Iterator[SwitchLength]:
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
    """Windows and chunks; `max_window_layers`, `sliding_window_pattern` and the like count layers instead."""
    counts = re.search(r"layers?(_|$)|pattern|num_|index", name)
    return bool(_WINDOW.search(name) or _CHUNK.search(name)) and not counts

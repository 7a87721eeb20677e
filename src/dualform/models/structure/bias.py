"""Can a checkpoint of this family hold a bias for W_O? Found by building the family's own class without weights.

A bias that the class does not know would be left out in silence when the checkpoint is loaded. Many families have a
switch in their config (llama's `attention_bias`); which one it is, and what else it brings, is tried out on the meta
device, so that no table of families is kept.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import build_from_config, set_config_attention
from dualform.models.editing.momentum import restore_momentum
from dualform.models.structure.anatomy import Anatomy, is_linear


@dataclass(frozen=True)
class BiasForm:
    """Whether W_O of every layer can have a bias in an ordinary checkpoint, and what that takes."""

    kind: Literal["present", "switch", "none"]
    """`present`: each has one. `switch`: a boolean of the model's own config gives each of them one. `none`: there
    is no way to write one."""
    switch: str | None
    """Name of that boolean."""
    new: tuple[str, ...]
    """Full names of the biases of W_O that the switch brings."""
    others: tuple[str, ...]
    """Full names of the biases that come with them (of W_Q, W_K, W_V, ...); zeros leave the model as it is."""


def output_bias(model: PreTrainedModel, anatomy: Anatomy) -> BiasForm:
    """Find out how a bias of W_O can be written for this model. No weights are read or copied.

    Args:
        model: Any causal language model.
        anatomy: Its anatomy.

    Returns:
        The way; of several switches, the one that brings the fewest other biases.

    Raises:
        ModelError: W_O of some layer is not known.
    """
    wanted = {f"{name}.bias" for name in output_linears(anatomy)}
    before = _shapes(model)
    missing = wanted - before.keys()
    if not missing:
        return BiasForm("present", None, (), ())
    without = {f"{name}.bias" for name, module in model.named_modules() if is_linear(module)} - before.keys()
    found: list[BiasForm] = []
    for switch in _switches(model.config):
        try:
            after = _shapes(skeleton(model, switched(model.config, switch)))
        except Exception:
            # Whatever a family's code raises, the switch is not to be had.
            continue
        added = after.keys() - before.keys()
        unchanged = all(after.get(name) == shape for name, shape in before.items())
        if unchanged and missing <= added <= without:
            found.append(BiasForm("switch", switch, tuple(sorted(missing)), tuple(sorted(added - missing))))
    return min(found, key=lambda form: len(form.others), default=BiasForm("none", None, (), ()))


def output_linears(anatomy: Anatomy) -> tuple[str, ...]:
    """Names of W_O, first layer first.

    Raises:
        ModelError: W_O of some layer is not known.
    """
    if missing := anatomy.missing_projections("W_O"):
        raise ModelError(f"nothing can be written into W_O where it was not found ({'; '.join(missing)})")
    return tuple(layer.W_O for layer in anatomy.layers if layer.W_O is not None)


def switched(config: PretrainedConfig, switch: str | None) -> PretrainedConfig:
    """A copy of a config with one boolean of its text part turned over (none for None), to build or save a model with.

    The copy forgets which attention the model runs with and that its weights once were quantized.
    """
    changed = copy.deepcopy(config)
    set_config_attention(changed, None)
    for part in (changed, changed.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    if switch is not None:
        text = changed.get_text_config()
        setattr(text, switch, not getattr(text, switch))
    return changed


def skeleton(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model of the same class without weights, on the meta device; `config` becomes its own."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = build_from_config(type(model), config, model.dtype)
        restore_momentum(built)
    return built.eval()


def _switches(config: PretrainedConfig) -> Iterator[str]:
    values: dict[str, Any] = vars(config.get_text_config())
    for name, value in values.items():
        if "bias" in name and isinstance(value, bool):
            yield name


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    # Tied weights have two names, and a switch must lose neither.
    return {name: weight.shape for name, weight in model.named_parameters(remove_duplicate=False)}

"""Finding out whether a checkpoint of a family can hold a bias for W_O.

A bias that the family's class does not have would be ignored when the checkpoint is loaded. Many families have a
switch in their config (llama's `attention_bias`). To find it, the family's class is built without weights, on the
meta device, so that no list of families is needed.
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
    """Whether W_O of every layer can have a bias in an ordinary checkpoint, and how."""

    kind: Literal["present", "switch", "none"]
    """`present`: every W_O has a bias. `switch`: a boolean in the model's config adds one to each. `none`: the family
    does not support it."""
    switch: str | None
    """Name of that boolean."""
    new: tuple[str, ...]
    """Full names of the biases of W_O that the switch adds."""
    others: tuple[str, ...]
    """Full names of further biases that the switch adds (of W_Q, W_K, W_V, ...), to be set to zero."""


def output_bias(model: PreTrainedModel, anatomy: Anatomy) -> BiasForm:
    """Find out how a bias of W_O can be stored for a model. No weights are read or copied.

    Returns:
        The form; of several possible switches, the one that adds the fewest other biases.

    Raises:
        ModelError: W_O of some layer is unknown.
    """
    wanted = {f"{name}.bias" for name in output_linears(anatomy)}
    before = _shapes(model)
    missing = wanted - before.keys()
    if not missing:
        return BiasForm("present", None, (), ())
    without = {f"{name}.bias" for name, module in model.named_modules() if is_linear(module)} - before.keys()
    forms: list[BiasForm] = []
    for switch in _switches(model.config):
        try:
            after = _shapes(skeleton(model, switched(model.config, switch)))
        except Exception:
            # Whatever the family's code raises, this switch cannot be used.
            continue
        added = after.keys() - before.keys()
        unchanged = all(after.get(name) == shape for name, shape in before.items())
        if unchanged and missing <= added <= without:
            forms.append(BiasForm("switch", switch, tuple(sorted(missing)), tuple(sorted(added - missing))))
    return min(forms, key=lambda form: len(form.others), default=BiasForm("none", None, (), ()))


def output_linears(anatomy: Anatomy) -> tuple[str, ...]:
    """Names of W_O of each layer.

    Raises:
        ModelError: W_O of some layer is unknown.
    """
    if missing := anatomy.missing_projections("W_O"):
        raise ModelError(
            f"W_O was not found in every layer ({'; '.join(missing)}), so it cannot be changed. Choose another model."
        )
    return tuple(layer.W_O for layer in anatomy.layers if layer.W_O is not None)


def switched(config: PretrainedConfig, switch: str | None) -> PretrainedConfig:
    """A copy of a config with one boolean of its text part inverted (`switch`; None for no change).

    The attention implementation and the quantization settings are removed from the copy.
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
    """A model of the same class on the meta device, so without weights; it uses `config` itself, not a copy."""
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
    # Tied weights have two names, and a switch must keep both.
    return {name: weight.shape for name, weight in model.named_parameters(remove_duplicate=False)}

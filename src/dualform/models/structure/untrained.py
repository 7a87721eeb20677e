"""The same model before it learned anything: what a measure says of the architecture alone."""

import copy
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import build_from_config
from dualform.models.reading.language_model import LanguageModel


def untrained(lm: LanguageModel, *, seed: int, keep_embeddings: bool = False) -> LanguageModel:
    """A second model of the same architecture, with weights as at initialisation.

    Args:
        lm: The trained model. Left as it is.
        seed: Of the weights; equal seeds give equal weights, on every device.
        keep_embeddings: Copy the trained embeddings (tokens, learned positions, output head) and draw the rest.
            Norms and projections next to the embeddings belong to the rest.

    Returns:
        The model, probed and checked like any other, with the tokenizer, dtype and device of `lm`. It is read along
        the same route where that passes the self-check: with weights this small a wrong route could pass as well.

    Raises:
        ModelError: The model cannot be built anew from its config, or is one that does not fit on one device.

    Source:
        The untrained baselines of arXiv:2311.07772v4 (all weights drawn; embeddings trained only). Weights are drawn
        by the family's own initialisation in transformers, at the scale that the config names.
    """
    if len(set(getattr(lm.model, "hf_device_map", None) or {"": ""}.values())) > 1 or lm.offloaded:
        raise ModelError(
            f"{lm.name} is divided by a device map, and an untrained model of its size would be built whole. Leave out "
            "the controls untrained and embeddings."
        )
    model = _drawn(lm.model, seed)
    if keep_embeddings:
        _copy_embeddings(lm, model)
    model = model.to(lm.device)
    name = f"{lm.name}-untrained-{seed}" + ("-embeddings-kept" if keep_embeddings else "")
    try:
        wrapped = replace(LanguageModel.wrap(model, lm.tokenizer, name, lm.route.name), refused=lm.refused)
    except ModelError:
        wrapped = LanguageModel.wrap(model, lm.tokenizer, name)
    return replace(wrapped, max_row=lm.max_row, max_examples=lm.max_examples)


def _drawn(trained: PreTrainedModel, seed: int) -> PreTrainedModel:
    """On the CPU, with the trained model's shapes and dtypes."""
    config = copy.deepcopy(trained.config)
    # Left by checkpoints whose weights were unpacked on loading; ours are plain numbers from the start.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed other devices as well, which are not forked.
        torch.default_generator.manual_seed(seed)
        model = build_from_config(type(trained), config, trained.dtype)
    expected, found = (
        {name: tuple(weight.shape) for name, weight in one.named_parameters()} for one in (trained, model)
    )
    if found != expected:
        odd = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
        raise ModelError(
            f"{type(trained).__name__}: built anew from its config, {odd} has shape {found.get(odd, 'none')} instead "
            f"of {expected.get(odd, 'none')}, so there is no untrained model to compare with. Leave out that control."
        )
    for name, weight in trained.named_parameters():
        drawn = model.get_parameter(name)
        drawn.data = drawn.data.to(weight.dtype)
    return model


def _copy_embeddings(lm: LanguageModel, model: PreTrainedModel) -> None:
    attention = tuple(f"{layer.attention}." for layer in lm.anatomy.layers)
    head = lm.model.get_output_embeddings()
    with torch.no_grad():
        for name, module in lm.model.named_modules():
            # An embedding inside attention would be a position bias, which is no embedding of anything read.
            if (isinstance(module, nn.Embedding) and not name.startswith(attention)) or module is head:
                for kind, weight in module.named_parameters(recurse=False):
                    model.get_submodule(name).get_parameter(kind).copy_(weight)

"""Untrained copies of a model: a measure that is as high in them depends on the architecture, not on training."""

import copy
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import build_from_config
from dualform.models.reading.language_model import LanguageModel


def untrained(lm: LanguageModel, *, seed: int, keep_embeddings: bool = False) -> LanguageModel:
    """A model of the same architecture with newly initialised weights.

    Args:
        lm: The trained model; it is not changed.
        seed: Seed of the weights; equal seeds give equal weights on every device.
        keep_embeddings: Copy the trained embeddings (tokens, learned positions, output head) and initialise all other
            weights, including norms and projections next to the embeddings.

    Returns:
        The model with the tokenizer, dtype and device of `lm`, after the same probes and self-check as any other model,
        see `LanguageModel.wrap`. If possible it uses the route of `lm` (the way in which several queries are
        computed in one forward) and not a faster one that `lm` refused: with weights as small as these, the error of an
        incorrect route might be too small for the self-check to find.

    Raises:
        ModelError: The config does not describe the model's weights, or the model is divided over several devices or
            offloaded.

    Source:
        The untrained baselines of arXiv:2311.07772v4 (all weights random; only embeddings trained). Weights are
        initialised by the family's code in transformers, at the scale given in the config.
    """
    if len(set(getattr(lm.model, "hf_device_map", None) or {"": ""}.values())) > 1 or lm.offloaded:
        raise ModelError(
            f"{lm.name} is divided over devices by a device map, but an untrained model is built on one device. Leave "
            "out the controls untrained and embeddings."
        )
    model = _initialise(lm.model, seed)
    if keep_embeddings:
        _copy_embeddings(lm, model)
    model = model.to(lm.device)
    name = f"{lm.name}-untrained-{seed}" + ("-embeddings-kept" if keep_embeddings else "")
    try:
        wrapped = replace(LanguageModel.wrap(model, lm.tokenizer, name, lm.route.name), refused=lm.refused)
    except ModelError:
        wrapped = LanguageModel.wrap(model, lm.tokenizer, name)
    return replace(wrapped, max_row=lm.max_row, max_examples=lm.max_examples)


def _initialise(trained: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A newly initialised model on the CPU, with the trained model's shapes and dtypes."""
    config = copy.deepcopy(trained.config)
    # A checkpoint whose weights were dequantized on loading still has this entry.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed other devices, whose generators are not saved here.
        torch.default_generator.manual_seed(seed)
        model = build_from_config(type(trained), config, trained.dtype)
    expected, actual = (
        {name: tuple(weight.shape) for name, weight in each.named_parameters()} for each in (trained, model)
    )
    if actual != expected:
        odd = next(name for name in [*expected, *actual] if actual.get(name) != expected.get(name))
        raise ModelError(
            f"{type(trained).__name__}: in a model built from its config, {odd} has shape {actual.get(odd, 'none')} "
            f"instead of {expected.get(odd, 'none')}, so no untrained model can be built. Leave out that control."
        )
    for name, weight in trained.named_parameters():
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(weight.dtype)
    return model


def _copy_embeddings(lm: LanguageModel, model: PreTrainedModel) -> None:
    """Copy the embeddings of tokens and positions and the output head of `lm` into `model`."""
    attention = tuple(f"{layer.attention}." for layer in lm.anatomy.layers)
    head = lm.model.get_output_embeddings()
    with torch.no_grad():
        for name, module in lm.model.named_modules():
            # An embedding inside attention is a position bias, not an embedding of tokens.
            if (isinstance(module, nn.Embedding) and not name.startswith(attention)) or module is head:
                for kind, weight in module.named_parameters(recurse=False):
                    model.get_submodule(name).get_parameter(kind).copy_(weight)

"""peft's LoRA adapters, put into a model for the length of a block and read off as ordinary weight changes."""

import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.anatomy import Anatomy, row_axis
from dualform.models.edit import WeightDelta
from dualform.models.quantized import quietly, require_unquantized
from dualform.models.streaming import require_, requiring, stood_in


class LoraTraining:
    """Adapters on the modules that hold W_Q and W_V; a fused module is adapted whole.

    Use as a context manager; the model is as before when the block ends, also when it raises.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, rank: int, seed: int) -> None:
        self._model = model
        self._rank = rank
        self._seed = seed
        self._names: list[str] = []
        for i, layer in enumerate(anatomy.layers):
            if layer.W_Q is None or layer.W_V is None:
                raise ModelError(
                    f"W_Q and W_V of layer {i} were not found ({'; '.join(layer.unclear)}): leave out lora "
                    "with --learners."
                )
            # Once each: a fused module holds both, and its change must not be read off twice.
            self._names += dict.fromkeys((layer.W_Q.module, layer.W_V.module))
        self._required: dict[str, bool] = {}
        require_unquantized(model, "so adapters trained on them would be compared with nothing")
        self._peft: Any = None

    def __enter__(self) -> "LoraTraining":
        # peft takes seconds to import, and not everyone trains adapters.
        with quietly():
            from peft import LoraConfig, get_peft_model

        self._required = requiring(self._model)
        transposed = row_axis(self._model.get_submodule(self._names[0])) == 1
        config = LoraConfig(
            r=self._rank,
            lora_alpha=2 * self._rank,
            lora_dropout=0.0,
            target_modules=self._names,
            fan_in_fan_out=transposed,
        )
        try:
            with torch.random.fork_rng(), warnings.catch_warnings(), self._weights_at_hand(), quietly():
                torch.manual_seed(self._seed)
                # Advice for people who save adapters; nothing is saved here.
                warnings.simplefilter("ignore")
                self._peft = get_peft_model(self._model, config)
        except BaseException:
            self.__exit__()
            raise
        self._model.eval()
        return self

    def __exit__(self, *details: object) -> None:
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
        for name in self._names:
            # Left behind when peft itself failed half-way.
            module: Any = self._model.get_submodule(name)
            if hasattr(module, "base_layer"):
                self._model.set_submodule(name, module.base_layer)
        for name in ("peft_config", "active_adapters_"):
            if name in vars(self._model):
                delattr(self._model, name)
        require_(self._model, self._required)

    def _weights_at_hand(self) -> ExitStack:
        # peft puts adapters where the weight lies, which for a streamed one would be nowhere.
        stack = ExitStack()
        for name in self._names:
            stack.enter_context(stood_in(self._model.get_submodule(name)))
        return stack

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapters' matrices."""
        return [weight for weight in self._model.parameters() if weight.requires_grad]

    def deltas(self) -> tuple[WeightDelta, ...]:
        """What the adapters add to each weight, as a full matrix."""
        found = []
        for name in self._names:
            adapter: Any = self._model.get_submodule(name)
            delta = adapter.get_delta_weight("default").detach().float().clone()
            found.append(WeightDelta(f"{name}.weight", row_axis(adapter.base_layer), None, delta))
        return tuple(found)

"""One forward of a transformers model, with the output head applied only to the rows that are needed."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from dualform.errors import ModelError
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import input_device
from dualform.models.reading.attention import AttentionCall, attention_backend, plain_attention
from dualform.models.reading.attention_tracer import AttentionTrace, AttentionTracer
from dualform.models.reading.capture import Recorder
from dualform.models.structure.anatomy import Anatomy


def forward_rows(
    model: PreTrainedModel, rows: Tensor, *, gradients: bool = False, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Next-token logits at chosen rows only: for a large vocabulary the head costs as much as many layers.

    Rows are selected before the head, so the family's later operations (scaling, soft caps) still apply.

    Args:
        model: In eval mode.
        rows: Indices into the flattened `(batch * q_pos)`, `(row,)`.
        gradients: Keep the graph, for training.
        inputs: Arguments of the model's forward.

    Returns:
        Logits `(row, vocab)` and the head's input `(row, d_model)`.

    Raises:
        ModelError: The head does not take one row per token.
    """
    kept: list[Tensor] = []

    def cut(states: Tensor) -> Tensor:
        if states.dim() > 3:
            # ProphetNet predicts several tokens at once, each from its own hidden states.
            raise ModelError(
                f"{type(model).__name__}: the input of its output head has shape {tuple(states.shape)}; expected one "
                "row per token (batch, pos, d_model). Such a model predicts more than the next token. Choose another "
                "model."
            )
        hidden = states.reshape(1, -1, states.shape[-1])[:, rows.to(states.device)]
        kept.append(hidden[0])
        return hidden

    with Hooks(model) as hooks:
        hooks.before(model.get_output_embeddings(), cut)
        with torch.set_grad_enabled(gradients):
            logits = model(**inputs).logits
    # A model on several devices moves its logits to the input's device.
    return logits[0], kept[0].to(logits.device)


def run_layers(model: PreTrainedModel, **inputs: Any) -> None:
    """Run a model's layers without its output head, for what hooks or a cache keep of them.

    For a short prefix and a large vocabulary the head takes a fifth of a forward or more.

    Args:
        model: In eval mode.
        inputs: Arguments of the model's forward.
    """
    with Hooks(model) as hooks, torch.no_grad():
        hooks.before(model.get_output_embeddings(), lambda states: hooks.stop())
        model(**inputs)


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """The cache as a keyword argument, under the name that the installed transformers uses."""
    parameters = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


class LayerOrder:
    """Maps each run of an attention module to a layer, also for modules that several layers share or that loop.

    Runs are counted for each module and start over with every forward.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        calls = anatomy.calls or tuple((layer.attention, i) for i, layer in enumerate(anatomy.layers))
        self._layers: dict[nn.Module, list[int | None]] = {}
        for name, number in calls:
            self._layers.setdefault(model.get_submodule(name), []).append(number)
        self._uses: dict[nn.Module, int] = {}

    @property
    def modules(self) -> list[nn.Module]:
        """The attention modules."""
        return list(self._layers)

    def next(self, module: nn.Module) -> int | None:
        """The layer of a module's next run; None if that run is not a layer (`Anatomy.left_out`)."""
        layers = self._layers.get(module)
        if layers is None:
            return None
        use = self._uses.get(module, 0)
        self._uses[module] = use + 1
        return layers[use % len(layers)]


class ObservingBackend:
    """Ordinary attention that passes each layer's call and output to a callback."""

    builds_mask = True

    def __init__(self, order: LayerOrder, callback: Callable[[int, AttentionCall, Tensor], None]) -> None:
        self._order = order
        self._callback = callback

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """The heads' output, after the callback was called."""
        out = plain_attention(call)
        layer = self._order.next(module)
        if layer is not None:
            self._callback(layer, call, out)
        return out


@dataclass(frozen=True)
class KeysValues:
    """A prefix as each layer's keys and values."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values, each `(kv_head, prefix_pos, d_head)`; empty for an empty prefix."""
    tokens: tuple[int, ...]
    edited: bool = False
    """Whether keys and values were changed, so that they no longer follow from the tokens."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def keys_values(model: PreTrainedModel, anatomy: Anatomy, tokens: tuple[int, ...]) -> KeysValues:
    """Run a prefix once, without a cache, and keep each layer's keys and values."""
    if not tokens or not anatomy.layers:
        return KeysValues((), tokens)
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        kept[layer] = (key.contiguous(), value.contiguous())

    ids = torch.tensor([tokens], device=input_device(model))
    with observing_attention(model, anatomy, keep):
        run_layers(model, input_ids=ids, use_cache=False)
    return KeysValues(tuple(kept[i] for i in range(len(anatomy.layers))), tokens)


@contextmanager
def observing_attention(
    model: PreTrainedModel, anatomy: Anatomy, callback: Callable[[int, Tensor, Tensor, Tensor], None]
) -> Iterator[None]:
    """Pass each layer's attention to a callback, in every ordinary forward of one row in the block.

    The callback receives the layer's index, query `(head, pos, d_head)`, and key and value `(kv_head, pos, d_head)`.
    """
    order = LayerOrder(model, anatomy)
    if anatomy.registry:
        backend = ObservingBackend(
            order, lambda layer, call, out: callback(layer, call.query[0], call.key[0], call.value[0])
        )
        with attention_backend(backend):
            yield
        return

    def traced(module: nn.Module, trace: AttentionTrace) -> None:
        layer = order.next(module)
        if layer is not None:
            repeats = anatomy.layers[layer].repeats
            callback(layer, trace.query[0], trace.key[0, ::repeats], trace.value[0, ::repeats])

    with AttentionTracer(order.modules, 1, traced):
        yield


def recorded_rows(
    model: PreTrainedModel, anatomy: Anatomy, recorder: Recorder | None, rows: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """`forward_rows` of an ordinary forward, recorded through the registry or, where that is not possible, a tracer."""
    if recorder is None:
        return forward_rows(model, rows, **inputs)
    order = LayerOrder(model, anatomy)

    def record_call(layer: int, call: AttentionCall, out: Tensor) -> None:
        recorder.record_dense(
            layer,
            call.query,
            call.key,
            call.value,
            out.transpose(1, 2),
            scores=None,
            scale=call.scale,
            mask=call.mask,
            sink=call.sink,
        )

    def record_trace(module: nn.Module, trace: AttentionTrace) -> None:
        layer = order.next(module)
        if layer is None:
            return
        repeats = anatomy.layers[layer].repeats
        recorder.record_dense(
            layer,
            trace.query,
            trace.key[:, ::repeats],
            trace.value[:, ::repeats],
            trace.head_output,
            scores=trace.scores,
            scale=trace.scale,
            mask=trace.mask,
        )

    with recorder.attached(model):
        if anatomy.registry:
            with attention_backend(ObservingBackend(order, record_call)):
                return forward_rows(model, rows, **inputs)
        with AttentionTracer(order.modules, inputs["input_ids"].shape[0], record_trace):
            return forward_rows(model, rows, **inputs)

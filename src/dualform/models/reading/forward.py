"""One forward of a transformers model, with the head applied only where a distribution is wanted."""

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
from dualform.models.reading.capture import Recorder
from dualform.models.reading.watch import AttentionTrace, AttentionTracer
from dualform.models.structure.anatomy import Anatomy


def forward_rows(
    model: PreTrainedModel, rows: Tensor, *, gradients: bool = False, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Next-token logits at chosen rows only: over a large vocabulary the head costs as much as many layers.

    Rows are cut out in front of the head, so whatever the family does behind it (scaling, soft caps) still happens.

    Args:
        model: In eval mode.
        rows: Which rows of the flattened `(batch * q_pos)`, of shape `(row,)`.
        gradients: Keep the graph, for training.
        inputs: As the model's forward takes them.

    Returns:
        Logits `(row, vocab)` and the head's input `(row, d_model)`.

    Raises:
        ModelError: The head does not read one row a token.
    """
    kept: list[Tensor] = []

    def cut(states: Tensor) -> Tensor:
        if states.dim() > 3:
            # ProphetNet predicts the next few tokens at once, from hidden states of their own.
            raise ModelError(
                f"{type(model).__name__}: its output head reads hidden states of shape {tuple(states.shape)}, where "
                "one row a token (batch, pos, d_model) was expected: it predicts more than the next token. Choose "
                "another model."
            )
        hidden = states.reshape(1, -1, states.shape[-1])[:, rows.to(states.device)]
        kept.append(hidden[0])
        return hidden

    with Hooks(model) as hooks:
        hooks.before(model.get_output_embeddings(), cut)
        with torch.set_grad_enabled(gradients):
            logits = model(**inputs).logits
    # A model divided over several devices hands its logits back to where its input was.
    return logits[0], kept[0].to(logits.device)


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """The cache under the name that this release of transformers gives it."""
    named = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in named else "past_key_values": cache}


class LayerOrder:
    """Which layer a use of attention belongs to: modules may be shared by layers, or run in a loop.

    Uses are counted module by module, and begin anew with every forward.
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
        """The layer of a module's next use; None where that use is no layer (`Anatomy.left_out`)."""
        layers = self._layers.get(module)
        if layers is None:
            return None
        use = self._uses.get(module, 0)
        self._uses[module] = use + 1
        return layers[use % len(layers)]


class ObservingBackend:
    """Ordinary attention that passes each layer's call and output to a function."""

    builds_mask = True

    def __init__(self, order: LayerOrder, show: Callable[[int, AttentionCall, Tensor], None]) -> None:
        self._order = order
        self._show = show

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """Compute, show, return."""
        out = plain_attention(call)
        layer = self._order.next(module)
        if layer is not None:
            self._show(layer, call, out)
        return out


@dataclass(frozen=True)
class KeysValues:
    """A prefix as each layer's attention sees it."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values, each `(kv_head, prefix_pos, d_head)`; empty for an empty prefix."""
    tokens: tuple[int, ...]
    edited: bool = False
    """Whether keys and values are others than the tokens have by themselves."""

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return len(self.tokens)


def keys_values(model: PreTrainedModel, anatomy: Anatomy, tokens: tuple[int, ...]) -> KeysValues:
    """Run a prefix once, without a cache, and keep each layer's keys and values."""
    if not tokens or not anatomy.layers:
        return KeysValues((), tokens)
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        kept[layer] = (key.contiguous(), value.contiguous())

    ids = torch.tensor([tokens], device=input_device(model))
    with watching(model, anatomy, keep):
        forward_rows(model, ids.new_tensor([len(tokens) - 1]), input_ids=ids, use_cache=False)
    return KeysValues(tuple(kept[i] for i in range(len(anatomy.layers))), tokens)


@contextmanager
def watching(
    model: PreTrainedModel, anatomy: Anatomy, see: Callable[[int, Tensor, Tensor, Tensor], None]
) -> Iterator[None]:
    """Show each layer's query, key and value of every ordinary forward of one row in the block.

    Args:
        model: The model.
        anatomy: Its anatomy.
        see: Receives layer, query `(head, pos, d_head)`, key `(kv_head, pos, d_head)` and value likewise.
    """
    order = LayerOrder(model, anatomy)
    if anatomy.registry:
        tap = ObservingBackend(order, lambda layer, call, out: see(layer, call.query[0], call.key[0], call.value[0]))
        with attention_backend(tap):
            yield
        return

    def watched(module: nn.Module, seen: AttentionTrace) -> None:
        layer = order.next(module)
        if layer is not None:
            repeats = anatomy.layers[layer].repeats
            see(layer, seen.query[0], seen.key[0, ::repeats], seen.value[0, ::repeats])

    with AttentionTracer(order.modules, 1, watched):
        yield


def recorded_rows(
    model: PreTrainedModel, anatomy: Anatomy, recorder: Recorder | None, rows: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """`forward_rows` of an ordinary forward, seen by a recorder through whichever way the family allows."""
    if recorder is None:
        return forward_rows(model, rows, **inputs)
    order = LayerOrder(model, anatomy)

    def show(layer: int, call: AttentionCall, out: Tensor) -> None:
        recorder.see_dense(
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

    def see(module: nn.Module, seen: AttentionTrace) -> None:
        layer = order.next(module)
        if layer is None:
            return
        repeats = anatomy.layers[layer].repeats
        recorder.see_dense(
            layer,
            seen.query,
            seen.key[:, ::repeats],
            seen.value[:, ::repeats],
            seen.head_output,
            scores=seen.scores,
            scale=seen.scale,
            mask=seen.mask,
        )

    with recorder.attached(model):
        if anatomy.registry:
            with attention_backend(ObservingBackend(order, show)):
                return forward_rows(model, rows, **inputs)
        with AttentionTracer(order.modules, inputs["input_ids"].shape[0], see):
            return forward_rows(model, rows, **inputs)

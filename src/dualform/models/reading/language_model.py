"""`LanguageModel`: a transformers model with its tokenizer, its anatomy, and the route used to run it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import ContextError, ModelError, NumericalError
from dualform.models.loading.offloading import input_device, is_offloaded, named_weights, replace_hooks_
from dualform.models.loading.quantized import precision_of, token_by_token
from dualform.models.loading.untouched import (
    compare_with_untouched,
    read_untouched,
)
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording, Trace, join_traces
from dualform.models.reading.layout import Probe, Query, group, lay_out
from dualform.models.reading.ordinary import ordinary_torch, without_autocast
from dualform.models.reading.products import PackedProducts, packable
from dualform.models.reading.route import EncodedPrefix, Route
from dualform.models.reading.self_check import (
    Verification,
    check_switches,
    checked_lengths,
    choose_route,
    require_known_route,
)
from dualform.models.reading.switch_lengths import (
    SwitchLength,
    first_crossed,
    reset_rotary_before_forwards_,
    text_config,
)
from dualform.models.reading.tokens import opening_tokens
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.models.structure.probing import n_ids
from dualform.ops.rounding import at_least_float32

if TYPE_CHECKING:
    from dualform.models.cost.shape import ModelShape

NO_RECORDING = Recording()
WITHOUT_WEIGHTS = "none"
"""Name of the route of a model on the meta device, which cannot be run."""


@dataclass(frozen=True)
class Readings:
    """A model's outputs for some queries, and the activations that were recorded."""

    queries: tuple[int, ...]
    """Indices of the queries."""
    log_probabilities: Tensor
    """Mean log-probability of each answer's tokens, nats, `(example, answer)`; -inf where there is no such answer."""
    next_token: Tensor
    """Log-probabilities over the vocabulary at the token that predicts the label, `(example, vocab)`."""
    hidden: Tensor
    """Input of the output head at the same token, `(example, d_model)`."""
    trace: Trace | None

    @classmethod
    def without_model(cls, queries: Sequence[int], log_probabilities: Tensor) -> "Readings":
        """Answers of a learner that does not read the model: `next_token` and `hidden` have no columns.

        Args:
            queries: Indices of the queries.
            log_probabilities: `(example, answer)`, nats.
        """
        nothing = log_probabilities.new_zeros(len(queries), 0)
        return cls(tuple(queries), log_probabilities, nothing, nothing, None)

    @property
    def predictions(self) -> Tensor:
        """The most probable answer, `(example,)`."""
        return self.log_probabilities.argmax(dim=1)


@dataclass(frozen=True)
class LanguageModel:
    """A model that dualform can run. Build it with `load_model` or `LanguageModel.wrap`."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    route: Route
    refused: tuple[str, ...]
    """Faster routes that the self-check refused, and why."""
    notes: tuple[str, ...] = ()
    """Notes for the report on how the model was loaded, one or two sentences each."""
    max_row: int = 1024
    """Largest number of tokens in a packed row; bounds the memory of a forward."""
    max_examples: int = 32
    """Largest number of queries in a packed row; bounds the memory of a trace."""
    verification: "Verification | None" = None
    """Result of the self-check; None for a model without weights."""

    @classmethod
    def wrap(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, route: str | None = None
    ) -> "LanguageModel":
        """Probe a transformers model and choose the fastest route that passes the self-check.

        The self-check compares the naive route with the model's own forward, and each faster route with the naive one.

        Args:
            model: Any causal language model with softmax attention; it is put into eval mode.
            tokenizer: Its tokenizer.
            name: The model's name in results.
            route: Accept only this route: `packed`, `packed-mask`, `repeated` or `naive`. None for the fastest.

        Raises:
            ModelError: The model is not causal or has no attention that dualform recognises, the naive route does not
                agree with the model's own forward, or the requested route failed.
            NumericalError: Weights or logits are NaN or infinite.
        """
        require_known_route(route)
        model.eval()
        # Probing needs gradients, even if the caller has disabled them.
        with ordinary_torch():
            _require_ordinary_weights(model)
            replace_hooks_(model)
            reset_rotary_before_forwards_(model)
            with token_by_token(model):
                untouched = read_untouched(model, tokenizer, checked_lengths(model))
            anatomy = find_anatomy(model)
            with token_by_token(model):
                deviation = compare_with_untouched(model, anatomy, untouched)
                chosen, refused = choose_route(model, anatomy, route)
                checked = tuple(check_switches(model, anatomy, chosen))
        verification = Verification(
            untouched.implementation, untouched.causality, deviation, untouched.skipped, checked
        )
        lm = cls(name, model, tokenizer, anatomy, chosen, refused, verification=verification)
        if anatomy.layers:
            # Measure now, before anything is attached to the model or changed in it.
            from dualform.models.structure.query_scale import query_scale

            with token_by_token(model):
                query_scale(lm)
        return lm

    @property
    def device(self) -> torch.device:
        """The device of the model's input; the first one if the model is on several devices."""
        return input_device(self.model)

    @property
    def n_parameters(self) -> int:
        """Number of parameters; tied weights count once."""
        total = 0
        for _, weight in named_weights(self.model):
            # bitsandbytes stores two 4-bit weights per byte and keeps the original shape.
            shape = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
            total += math.prod(shape)
        return total

    @cached_property
    def shape(self) -> "ModelShape":
        """The sizes from which operations are counted; for a model without weights they come from its config."""
        # Imported here to avoid a circular import.
        from dualform.models.cost.shape import shape_of

        return shape_of(self.model, None if self.route.name == WITHOUT_WEIGHTS else self.anatomy)

    @property
    def quantized(self) -> str | None:
        """Precision of quantized weights, such as `8 bit`; None if the weights are not quantized."""
        return precision_of(self.model)

    @property
    def offloaded(self) -> bool:
        """Whether some weights are loaded only while their module runs (`models.loading.offloading`)."""
        return is_offloaded(self.model)

    @property
    def bos(self) -> int | None:
        """The opening token if the tokenizer itself adds none, see `opening_tokens`; None if there is no such token."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return None

    @property
    def opening(self) -> tuple[int, ...]:
        """The tokens at the start of every sequence, unless another opening is set."""
        return opening_tokens(self.tokenizer).ids

    @property
    def max_positions(self) -> int | None:
        """Length of the longest sequence that the model supports, in tokens; None if its config sets no limit."""
        config = text_config(self.model.config)
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            length = getattr(config, name, None)
            # XLNet's config has -1 for no limit.
            if length is not None and int(length) > 0:
                return int(length)
        return None

    def packed_products(self) -> AbstractContextManager[object]:
        """Context manager in which products with frozen weights are faster, if machine and model allow it.

        Weights must not be written to inside the block. Results differ from those outside by rounding. W_K and W_V are
        never packed, so that finetuning with learning rate 0 equals zero-shot bit for bit; quantized or offloaded
        weights are not packed either.
        """
        trained = {rows.module for layer in self.anatomy.layers for rows in (layer.W_K, layer.W_V) if rows is not None}
        weights = [
            module.weight
            for name, module in self.model.named_modules()
            if type(module) is nn.Linear and name not in trained
        ]
        plain = not self.offloaded and self.quantized is None
        return PackedProducts(weights) if plain and weights and packable(weights) else nullcontext()

    def groups(self, queries: Sequence[Query], probe: Probe = "prompt") -> list[list[int]]:
        """Indices of the queries grouped into rows, each index once, so that the rows bound the memory needed."""
        return group(queries, self.max_row, self.max_examples, probe)

    @without_autocast()
    def encode(self, prefix: Sequence[int]) -> EncodedPrefix:
        """Encode the prefix that all queries share.

        Raises:
            ModelError: An id has no row in the embedding.
        """
        self._require_rows(prefix)
        encoded: EncodedPrefix = self.route.encode(tuple(prefix))
        return encoded

    def read_group(
        self,
        prefix: EncodedPrefix,
        queries: Sequence[Query],
        indices: Sequence[int],
        want: Recording = NO_RECORDING,
        probe: Probe = "prompt",
    ) -> Readings:
        """Run one group of queries.

        A query beyond a switch length (`switch_lengths`) is run on the naive route, unless the model's route was found
        to be correct there.

        Args:
            prefix: From `encode`.
            queries: All queries.
            indices: Indices of the queries to run, such as one of the lists of `groups`.
            want: The activations to record.
            probe: The token at which to record them.

        Returns:
            Readings on the model's device, in the order of `indices`.

        Raises:
            NumericalError: A log-probability is NaN.
            ContextError: A query needs the naive route, but the prefix's keys and values were edited.
            ModelError: An id has no row in the embedding.
        """
        for i in indices:
            self._require_rows((*queries[i].prompt, *chain.from_iterable(queries[i].answers)))
        beyond = [i for i in indices if self.crossed_switch(prefix.length, queries[i], probe) is not None]
        if not beyond:
            return self._read_row(self.route, prefix, queries, indices, want, probe)
        if getattr(prefix, "edited", False):
            self.require_usable_prefix(prefix.length, [queries[i] for i in beyond], probe)
        naive = NaiveRoute(self.model, self.anatomy)
        if len(beyond) == len(indices):
            return self._read_row(naive, prefix, queries, indices, want, probe)
        rest = [i for i in indices if i not in beyond]
        parts = (
            self._read_row(self.route, prefix, queries, rest, want, probe),
            self._read_row(naive, prefix, queries, beyond, want, probe),
        )
        return joined_readings(parts, indices)

    @without_autocast()
    def _read_row(
        self,
        route: Route,
        prefix: EncodedPrefix,
        queries: Sequence[Query],
        indices: Sequence[int],
        want: Recording,
        probe: Probe,
    ) -> Readings:
        chosen = [queries[i] for i in indices]
        layout = lay_out(chosen, probe, self.device)
        logits, hidden, trace = route.read(prefix, chosen, layout, want)
        log_probabilities = torch.log_softmax(at_least_float32(logits), dim=-1)
        scores = layout.score(log_probabilities)
        if torch.isnan(scores).any():
            # argmax of NaN would be the first label.
            raise NumericalError(
                f"{self.name} in {self.model.dtype}: log-probabilities of answers are NaN. Use --dtype float32, a "
                "lower learning rate, or check the checkpoint's weights."
            )
        return Readings(
            queries=tuple(indices),
            log_probabilities=scores,
            next_token=log_probabilities[layout.first_scored],
            hidden=hidden[layout.first_scored],
            trace=trace,
        )

    def _require_rows(self, ids: Sequence[int]) -> None:
        # On a GPU, such an id would make the device unusable for the rest of the process.
        rows = n_ids(self.model)
        unknown = sorted({token for token in ids if not 0 <= token < rows})
        if unknown:
            raise ModelError(
                f"{self.name}: id {unknown[0]} has no row in the embedding, which has {rows} rows (ids 0 to "
                f"{rows - 1}). Encode texts with the tokenizer that belongs to this checkpoint."
            )

    def crossed_switch(self, n_prefix: int, query: Query, probe: Probe = "prompt") -> SwitchLength | None:
        """The switch length that prevents using the route for a query after `n_prefix` tokens; None without one."""
        if self.verification is None or isinstance(self.route, NaiveRoute) or not self.verification.switches:
            return None
        switches = [check.switch for check in self.verification.switches]
        checked = [check.switch for check in self.verification.switches if check.agrees]
        return first_crossed(switches, checked, n_prefix, n_prefix + query.longest(probe))

    def require_usable_prefix(self, n_prefix: int, queries: Sequence[Query], probe: Probe = "prompt") -> None:
        """Check that no query after a prefix of `n_prefix` tokens would have to be run on the naive route.

        Raises:
            ContextError: A query goes beyond a switch length.
        """
        for query in queries:
            switch = self.crossed_switch(n_prefix, query, probe)
            if switch is not None:
                raise ContextError(
                    f"{self.name} computes a different function beyond {switch.length} tokens ({switch.setting}), and "
                    f"a query after {n_prefix} tokens makes a row of {n_prefix + query.longest(probe)}. Beyond that "
                    "length this learner cannot be used, but zsl, icl and ft can. Use fewer demonstrations, shorter "
                    "texts or a smaller --context."
                )

    def read(
        self,
        prefix: EncodedPrefix,
        queries: Sequence[Query],
        want: Recording = NO_RECORDING,
        probe: Probe = "prompt",
    ) -> Iterator[Readings]:
        """Run all queries group by group, so that only one group's readings are in memory at a time."""
        for indices in self.groups(queries, probe):
            yield self.read_group(prefix, queries, indices, want, probe)

    def log_probabilities(self, prefix: EncodedPrefix, queries: Sequence[Query]) -> Tensor:
        """Mean log-probability of every answer of every query, `(example, answer)`, on the CPU, in order."""
        width = max((len(query.answers) for query in queries), default=0)
        table = torch.full((len(queries), width), -torch.inf, dtype=torch.float64)
        for readings in self.read(prefix, queries):
            scores = readings.log_probabilities
            table[list(readings.queries), : scores.shape[1]] = scores.double().cpu()
        return table


def joined_readings(parts: Sequence[Readings], indices: Sequence[int]) -> Readings:
    """Readings of several rows joined into one, in the order of `indices`."""
    read = [index for part in parts for index in part.queries]
    order = torch.tensor([read.index(index) for index in indices], device=parts[0].hidden.device)
    width = max(part.log_probabilities.shape[1] for part in parts)
    scores = [
        nn.functional.pad(part.log_probabilities, (0, width - part.log_probabilities.shape[1]), value=-math.inf)
        for part in parts
    ]
    traces = [part.trace for part in parts if part.trace is not None]
    trace = None
    if traces:
        together = join_traces(traces)
        ordered: dict[str, Any] = {name: x[order.to(x.device)] for name, x in together.by_example().items()}
        trace = replace(together, **ordered)
    return Readings(
        queries=tuple(indices),
        log_probabilities=torch.cat(scores)[order],
        next_token=torch.cat([part.next_token for part in parts])[order],
        hidden=torch.cat([part.hidden for part in parts])[order],
        trace=trace,
    )


def _require_ordinary_weights(model: PreTrainedModel) -> None:
    if any(weight.is_inference() for weight in model.parameters()):
        raise ModelError(
            f"{type(model).__name__}: its weights were created inside torch.inference_mode(), so they have no "
            "gradients. Load the model outside that block, or with dualform.load_model, which works inside it."
        )

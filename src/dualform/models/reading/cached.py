"""The slower routes, for families that the packed route does not support.

`packed-mask`: all queries in one row over an ordinary cache, separated by a four-dimensional mask. For families that
accept position ids and such a mask but compute attention in their own code (XGLM, GPT-Neo).
`repeated`: one row per answer, each with a copy of the prefix's cache. For position biases computed from the mask
(ALiBi).
`naive`: one forward per answer, with nothing shared. Slow and simple: the reference for all other routes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dualform.models.loading.offloading import input_device
from dualform.models.reading.capture import ProbeIndex, Recorder, Recording, Trace, join_traces
from dualform.models.reading.forward import (
    KeysValues,
    cache_argument,
    keys_values,
    observing_attention,
    recorded_rows,
    run_layers,
)
from dualform.models.reading.layout import Layout, Query
from dualform.models.reading.switch_lengths import same_prefix_states, switch_lengths
from dualform.models.structure.anatomy import Anatomy


@dataclass(frozen=True)
class CachedPrefix:
    """The prefix in transformers' own cache."""

    cache: DynamicCache | None
    """None for an empty prefix."""
    tokens: tuple[int, ...]
    edited: bool = False
    """Whether keys and values were changed, so that they no longer follow from the tokens."""
    attended: tuple[tuple[Tensor, Tensor], ...] | None = None
    """Keys and values as used by attention; None if they equal the cache's entries."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of each layer as used by attention, `(kv_head, prefix_pos, d_head)`."""
        return self.cached if self.attended is None else self.attended

    @property
    def cached(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The cache's two tensors of each layer; with latent attention these are not keys and values."""
        if self.cache is None:
            return ()
        return tuple((layer.keys[0], layer.values[0]) for layer in self.cache.layers)

    def repeated(self, batch: int) -> DynamicCache:
        """A cache of `batch` rows that all start with this prefix; extending it leaves this prefix unchanged."""
        cache = DynamicCache()
        for i, (key, value) in enumerate(self.cached):
            cache.update(key.expand(batch, *key.shape), value.expand(batch, *value.shape), i)
        return cache


class _CachedRoute:
    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._model = model
        self.anatomy = anatomy

    def encode(self, prefix: tuple[int, ...]) -> CachedPrefix:
        """Run the prefix once into a cache."""
        if not prefix:
            return CachedPrefix(None, prefix)
        # Without a config the cache keeps all tokens in every layer; the mask implements sliding windows.
        cache = DynamicCache()
        tokens = torch.tensor([prefix], device=input_device(self._model))
        by_layer: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
            by_layer[layer] = (key, value)

        with observing_attention(self._model, self.anatomy, keep):
            run_layers(self._model, input_ids=tokens, use_cache=True, **cache_argument(self._model, cache))
        encoded = CachedPrefix(cache, prefix)
        layers = tuple(pair for _, pair in sorted(by_layer.items()))
        if len(layers) != len(encoded.cached):
            # Some cache entries belong to no layer of the anatomy, or several layers share one entry.
            return replace(encoded, attended=layers)
        equal = all(
            a.shape == b.shape and torch.equal(a, b)
            for pairs in zip(layers, encoded.cached, strict=True)
            for a, b in zip(*pairs, strict=True)
        )
        # Keep a second copy only if it differs.
        return encoded if equal else replace(encoded, attended=layers)

    def _recorder(self, want: Recording, layout: Layout, index: ProbeIndex) -> Recorder | None:
        return Recorder(self.anatomy, want, layout.seen_mask, index) if want else None


class MaskedRoute(_CachedRoute):
    """All queries in one row, separated by an additive mask (eager attention would misread a boolean one)."""

    name = "packed-mask"

    def read(
        self, prefix: CachedPrefix, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits and hidden states at `layout.scored_rows`, and the trace if anything is to be recorded."""
        n_row = len(layout.tokens)
        dtype = self._model.dtype
        row_visible = torch.zeros(n_row, n_row, dtype=torch.bool, device=layout.tokens.device)
        pairs = layout.visible & layout.own[:, :, None] & layout.own[:, None, :]
        example, q_pos, k_pos = pairs.nonzero(as_tuple=True)
        row_visible[layout.gather[example, q_pos], layout.gather[example, k_pos]] = True
        sees_prefix = torch.ones(n_row, prefix.length, dtype=torch.bool, device=row_visible.device)
        visible = torch.cat([sees_prefix, row_visible], dim=1)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask = mask.masked_fill(~visible, torch.finfo(dtype).min)[None, None]
        width = layout.seen_mask.shape[1]
        index = ProbeIndex(
            batch=torch.zeros_like(layout.probe),
            position=layout.probe_rows,
            columns=layout.gather[:, :width] + prefix.length,
            n_prefix=prefix.length,
            own=layout.gather[:, :width],
        )
        recorder = self._recorder(want, layout, index)
        logits, hidden = recorded_rows(
            self._model,
            self.anatomy,
            recorder,
            layout.scored_rows,
            input_ids=layout.tokens[None],
            position_ids=(layout.offsets + prefix.length)[None],
            attention_mask=mask,
            use_cache=True,
            **cache_argument(self._model, prefix.repeated(1)),
        )
        return logits, hidden, None if recorder is None else recorder.trace()


class RepeatedRoute(_CachedRoute):
    """One row per answer, over copies of the prefix's cache."""

    name = "repeated"

    def read(
        self, prefix: CachedPrefix, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits and hidden states at `layout.scored_rows`, and the trace if anything is to be recorded."""
        split = _split_branches(queries, layout)
        device = layout.tokens.device
        width = max(len(row) for row in split.rows)
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in split.rows], device=device)
        lengths = torch.tensor([len(row) for row in split.rows], device=device)
        real = torch.arange(width, device=device) < lengths[:, None]
        seen_before = torch.ones(len(tokens), prefix.length, dtype=torch.long, device=device)
        index = ProbeIndex(
            batch=torch.tensor(split.first_row, device=device),
            position=layout.probe,
            columns=_own_columns(layout, prefix.length),
            n_prefix=prefix.length,
            own=_own_columns(layout, 0),
        )
        recorder = self._recorder(want, layout, index)
        logits, hidden = recorded_rows(
            self._model,
            self.anatomy,
            recorder,
            torch.tensor([row * width + position for row, position in split.scored], device=device),
            input_ids=tokens,
            attention_mask=torch.cat([seen_before, real.long()], dim=1),
            use_cache=True,
            **cache_argument(self._model, prefix.repeated(len(tokens))),
        )
        return logits, hidden, None if recorder is None else recorder.trace()


class NaiveRoute:
    """One forward per answer: no cache, no batch, no packing.

    If the length of a row affects the states of all its tokens (`switch_lengths`), each position of interest gets a
    forward that ends with it, as in generation without a cache.
    """

    name = "naive"

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._model = model
        self.anatomy = anatomy
        self._switches = switch_lengths(model.config)

    def encode(self, prefix: tuple[int, ...]) -> KeysValues:
        """Keys and values of the prefix, for inspection only: `read` runs the prefix again with every answer."""
        return keys_values(self._model, self.anatomy, prefix)

    def read(
        self, prefix: KeysValues | CachedPrefix, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits and hidden states at `layout.scored_rows`, and the trace if anything is to be recorded."""
        split = _split_branches(queries, layout)
        device = layout.tokens.device
        logits: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        traces = []
        for number, row in enumerate(split.rows):
            wanted = [(i, position) for i, (r, position) in enumerate(split.scored) if r == number]
            tokens = [*prefix.tokens, *row]
            probe = None
            if want and number in split.first_row:
                probe = int(layout.seen[split.first_row.index(number)]) - 1
            for last, together in self._forwards(prefix.length, len(row), [p for _, p in wanted], probe):
                recorder = None
                if probe is not None and probe in together:
                    index = ProbeIndex(
                        batch=torch.zeros(1, dtype=torch.long, device=device),
                        position=torch.tensor([probe + prefix.length], device=device),
                        columns=torch.arange(probe + 1, device=device)[None] + prefix.length,
                        n_prefix=prefix.length,
                    )
                    mask = torch.ones(1, probe + 1, dtype=torch.bool, device=device)
                    recorder = Recorder(self.anatomy, want, mask, index)
                here = [(i, position) for i, position in wanted if position in together]
                row_logits, row_hidden = recorded_rows(
                    self._model,
                    self.anatomy,
                    recorder,
                    torch.tensor([position + prefix.length for _, position in here], dtype=torch.long, device=device),
                    input_ids=torch.tensor([tokens[: prefix.length + last + 1]], device=device),
                    use_cache=False,
                )
                for (i, _), a, b in zip(here, row_logits, row_hidden, strict=True):
                    logits[i], hidden[i] = a, b
                if recorder is not None:
                    traces.append(recorder.trace())
        order = range(len(split.scored))
        trace = join_traces(traces) if want else None
        return torch.stack([logits[i] for i in order]), torch.stack([hidden[i] for i in order]), trace

    def _forwards(
        self, n_prefix: int, n_row: int, scored: list[int], probe: int | None
    ) -> list[tuple[int, tuple[int, ...]]]:
        """The forwards that a row needs: for each its last position, and the positions that are read from it."""
        positions = sorted({*scored, *(() if probe is None else (probe,))})
        if not positions or same_prefix_states(self._switches, n_prefix + positions[0] + 1, n_prefix + n_row):
            return [(n_row - 1, tuple(positions))]
        return [(position, (position,)) for position in positions]


@dataclass(frozen=True)
class _SplitBranches:
    """Queries with one row per answer branch."""

    rows: list[list[int]]
    """Token ids without the prefix."""
    first_row: list[int]
    """For each example, the row that holds its probe."""
    scored: list[tuple[int, int]]
    """(row, position) of each of the layout's scored rows."""


def _split_branches(queries: list[Query], layout: Layout) -> _SplitBranches:
    rows: list[list[int]] = []
    first_row: list[int] = []
    place: list[tuple[int, int]] = []
    for example, query in enumerate(queries):
        prompt = list(query.prompt)
        n_own = int(layout.own[example].sum())
        # In the layout the branches follow one another, and each starts again at the position after the prompt.
        offsets = layout.offsets[layout.gather[example, :n_own]].tolist()
        tokens = layout.tokens[layout.gather[example, :n_own]].tolist()
        first_row.append(len(rows))
        branches: list[list[int]] = []
        for offset, token in zip(offsets[len(prompt) :], tokens[len(prompt) :], strict=True):
            if offset == len(prompt):
                branches.append([])
            branches[-1].append(token)
        rows += [prompt + branch for branch in branches] or [prompt]
        place += [(first_row[-1], position) for position in range(len(prompt))]
        for number, branch in enumerate(branches):
            place += [(first_row[-1] + number, len(prompt) + j) for j in range(len(branch))]
    return _SplitBranches(rows, first_row, [place[row] for row in layout.scored_rows.tolist()])


def _own_columns(layout: Layout, n_prefix: int) -> Tensor:
    width = layout.seen_mask.shape[1]
    columns = torch.arange(width, device=layout.probe.device) + n_prefix
    # Padding may point past the last key, so it points to the first own token instead.
    return torch.where(layout.seen_mask, columns, n_prefix)

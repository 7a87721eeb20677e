"""The learners' attention on a few queries of a comparison, for the page's attention explorer.

Queries are chosen while groups are read, so that only the attention of the chosen ones is kept. Each query belongs to
one of eight patterns of which learners are right (`PATTERNS`). The patterns take turns, most informative first, and
each contributes its earliest query that is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from dualform._version import __version__
from dualform.attention_record import (
    LEVELS,
    MOST_RANKS,
    AttentionRecord,
    PromptDemonstration,
    QueryAttention,
    Ranks,
    Weights,
)
from dualform.models.reading.capture import Trace
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import Readings
from dualform.models.reading.token_texts import token_texts
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.experiment import Experiment
from dualform.studies.facts import TaskDescription
from dualform.studies.sides import Recordings

LEARNERS: tuple[Literal["zsl", "icl", "ft"], ...] = ("zsl", "icl", "ft")

MOST_BYTES = 3_000_000
"""Most bytes of weights to keep, which limits the number of queries; one query is always kept."""

PATTERNS = (
    (False, True, True),
    (False, True, False),
    (False, False, True),
    (True, False, False),
    (True, False, True),
    (True, True, False),
    (True, True, True),
    (False, False, False),
)
"""Whether zero-shot, ICL and FT are right: first the patterns in which adapting changes the answer."""


def with_prefix(recordings: Recordings) -> Recordings:
    """The same recordings, with the attention scores to the tokens before the query."""
    parts = {field.name: getattr(recordings, field.name) for field in fields(recordings)}
    return Recordings(**{name: replace(part, demo_scores=True) for name, part in parts.items()})


@dataclass(frozen=True)
class ProbeAttention:
    """Attention weights of one query's probe token, after the softmax, mean over heads."""

    demonstrations: Tensor
    """Weights on the demonstrations' tokens, `(layer, demo_pos)`; empty for a learner without demonstrations."""
    query: Tensor
    """Weights on the query's own tokens, including the probe, `(layer, seen_pos)`."""
    elsewhere: Tensor
    """Total weight on the opening token, separators and an attention sink, `(layer,)`."""


def probe_attention(trace: Trace, row: int, content: Tensor | None = None) -> ProbeAttention:
    """The attention of one query's probe token.

    Args:
        trace: A trace with `scores`, and with `demo_scores` if there are tokens before the query.
        row: Index of the query in the trace.
        content: Positions of the demonstrations' tokens in the prefix, `(demo_pos,)`; None without demonstrations.

    Returns:
        Weights that sum to 1 in every layer.
    """
    assert trace.scores is not None
    own = trace.scores[row][..., trace.mask[row]]
    before = own[..., :0] if trace.demo_scores is None else trace.demo_scores[row]
    scores = torch.cat([before, own], dim=-1)
    if trace.sinks is not None:
        # A sink takes part in the softmax but has no value.
        scores = torch.cat([scores, trace.sinks.to(scores)[..., None]], dim=-1)
        weights, sink = scores.softmax(-1).split([scores.shape[-1] - 1, 1], dim=-1)
    else:
        weights, sink = scores.softmax(-1), scores.new_zeros(*scores.shape[:-1], 1)
    weights, sink = (_mean_over_heads(each, trace) for each in (weights, sink))
    prefix, query = weights[:, : before.shape[-1]], weights[:, before.shape[-1] :]
    demonstrations = prefix[:, :0] if content is None else prefix[:, content]
    elsewhere = prefix.sum(-1) - demonstrations.sum(-1) + sink[..., 0]
    return ProbeAttention(demonstrations, query, elsewhere.clamp(min=0))


def _mean_over_heads(weights: Tensor, trace: Trace) -> Tensor:
    """`(layer, head, pos)` -> `(layer, pos)`, without the padding of layers that have fewer heads."""
    real = trace.real_heads(weights.shape[1])
    if real is None:
        return weights.mean(1)
    real = real.to(weights)[..., None]
    return (weights * real).sum(1) / real.sum(1)


@dataclass(frozen=True)
class _Candidate:
    index: int
    pattern: int


class AttentionView:
    """Chooses queries of one seed while they are read, and keeps the learners' attention on them.

    Args:
        n: Most queries to keep; `MOST_BYTES` may reduce it.
        labels: Right answers of all queries, `(example,)`.
        content: As in `probe_attention`.
    """

    def __init__(self, n: int, labels: Tensor, content: Tensor | None) -> None:
        self._most = n
        self._labels = labels
        self._content = content
        self._kept: dict[_Candidate, dict[str, Tensor]] = {}

    def offer(
        self,
        readings: Mapping[str, Readings],
        ft_ranks: Tensor | None = None,
        kendall: Tensor | None = None,
    ) -> None:
        """Consider the queries of a group that was read.

        Args:
            readings: Readings of zero-shot, ICL and FT, with their traces.
            ft_ranks: Scores that rank the demonstrations' tokens under FT, `(example, layer, demo_pos)`.
            kendall: Kendall's tau of this ranking and ICL's, `(example, layer)`.
        """
        indices = readings["zsl"].queries
        trace = readings["icl"].trace
        assert trace is not None
        assert trace.demo_scores is not None
        # One byte for each weight and two for each rank; the query's own tokens are negligible.
        size = 3 * trace.demo_scores.shape[1] * trace.demo_scores.shape[-1]
        n = min(self._most, max(1, MOST_BYTES // max(1, size)))
        right = [readings[name].predictions.cpu() == self._labels[list(indices)] for name in LEARNERS]
        patterns = [PATTERNS.index(each) for each in zip(*(side.tolist() for side in right), strict=True)]
        rows = {_Candidate(*each): row for row, each in enumerate(zip(indices, patterns, strict=True))}
        # A query that is dropped now cannot be chosen later, because further queries only lower its rank.
        self._kept = {
            each: self._kept[each] if each in self._kept else self._tensors_of(readings, rows[each], ft_ranks, kendall)
            for each in _in_turns([*self._kept, *rows])[:n]
        }

    def _tensors_of(
        self, readings: Mapping[str, Readings], row: int, ft_ranks: Tensor | None, kendall: Tensor | None
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        elsewhere = []
        for name in LEARNERS:
            trace = readings[name].trace
            assert trace is not None
            attention = probe_attention(trace, row, self._content if name == "icl" else None)
            weights = torch.cat([attention.demonstrations, attention.query], dim=-1)
            tensors[f"{name}_scale"], tensors[name] = _coded(weights)
            elsewhere.append(attention.elsewhere)
            if name == "icl":
                tensors["on_demonstrations"] = attention.demonstrations.sum(-1)
        tensors["elsewhere"] = torch.stack(elsewhere)
        if ft_ranks is not None:
            tensors["ft_ranks"] = dense_ranks(ft_ranks[row])
        if kendall is not None:
            tensors["kendall"] = kendall[row]
        kept_as_is = {torch.uint8, torch.uint16, torch.float64}
        tensors = {name: each.detach().cpu() for name, each in tensors.items()}
        return {name: each if each.dtype in kept_as_is else each.to(torch.float64) for name, each in tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The attention on the chosen queries by `POSITION/NAME`, for a `SeedRecord`."""
        return {
            f"{place}/{name}": value
            for place, tensors in enumerate(self._kept.values())
            for name, value in tensors.items()
        }

    def about(self, experiment: Experiment[ComparisonConfig], encoded: EncodedDemonstrations) -> dict[str, Any]:
        """The chosen queries and the texts of all tokens, for a `SeedRecord`; empty without queries.

        Args:
            experiment: The experiment whose queries were read.
            encoded: The demonstrations.
        """
        if not self._kept:
            return {}
        tokenizer, probe, opening = experiment.lm.tokenizer, experiment.config.probe, len(experiment.encoder.opening)
        examples = []
        for each in self._kept:
            query = experiment.queries[each.index]
            ids = query.prompt + (query.answers[0] if probe == "label0" else ())
            examples.append({"index": each.index, "pieces": token_texts(tokenizer, ids)})
        demonstrations = [
            {"pieces": token_texts(tokenizer, ids[opening:]), "answer_tokens": n}
            for ids, n in zip(encoded.sequences, encoded.n_answer_tokens, strict=True)
        ]
        return {"model": experiment.lm.name, "probe": probe, "demonstrations": demonstrations, "examples": examples}


def attention_record(record: SeedRecord, description: TaskDescription) -> AttentionRecord | None:
    """The content of `attention.json` for one seed; None if no attention was kept.

    Args:
        record: The seed's record.
        description: The task and its reported queries.
    """
    about = record.attention_about
    if not about:
        return None
    examples = []
    for place, chosen in enumerate(about["examples"]):
        tensors = {
            name.partition("/")[2]: value for name, value in record.attention.items() if name.startswith(f"{place}/")
        }
        example = description.examples[chosen["index"]]
        answers = description.task.answers(example)
        ranks, kendall = tensors.get("ft_ranks"), tensors.get("kendall")
        examples.append(
            QueryAttention(
                query=example.row,
                pieces=chosen["pieces"],
                answers=tuple(answers),
                label=example.label,
                probabilities={
                    name: _rounded(table[chosen["index"], : len(answers)].softmax(0))
                    for name, table in record.log_probabilities.items()
                },
                **{name: Weights.packed(tensors[f"{name}_scale"].tolist(), _raw(tensors[name])) for name in LEARNERS},
                on_demonstrations=_rounded(tensors["on_demonstrations"]),
                elsewhere={name: _rounded(row) for name, row in zip(LEARNERS, tensors["elsewhere"], strict=True)},
                ft_ranks=None if ranks is None else Ranks.packed(_raw(ranks)),
                kendall=None if kendall is None else _rounded(kendall),
            )
        )
    return AttentionRecord(
        dualform=__version__,
        model=about["model"],
        task=description.task.name,
        seed=record.seed,
        probe=about["probe"],
        n_layers=len(next(iter(record.attention.values()))),
        demonstrations=tuple(PromptDemonstration(**each) for each in about["demonstrations"]),
        examples=tuple(examples),
    )


def dense_ranks(logits: Tensor) -> Tensor:
    """Ranks along the last axis, 0 for the smallest, with equal ranks for ties; they preserve Kendall's tau.

    Args:
        logits: Numbers to rank, `(layer, demo_pos)`.

    Returns:
        Ranks as uint16, of the same shape. If there are more distinct numbers than uint16 has values, neighbours share
        a rank.
    """
    rows = [torch.unique(row, return_inverse=True)[1] for row in logits.detach().cpu()]
    ranks = torch.stack(rows) if rows else torch.zeros(logits.shape, dtype=torch.long)
    largest = int(ranks.max()) if ranks.numel() else 0
    if largest >= MOST_RANKS:
        ranks = ranks * (MOST_RANKS - 1) // largest
    return ranks.to(torch.uint16)


def _in_turns(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The candidates in order of choice: the first of each pattern, then the second of each pattern, and so on."""
    places = {pattern: count() for pattern in range(len(PATTERNS))}
    turns = {each: next(places[each.pattern]) for each in sorted(candidates, key=lambda each: each.index)}
    return sorted(candidates, key=lambda each: (turns[each], each.pattern))


def _coded(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Each layer's largest weight, and codes as described in `Weights`, uint8 `(layer, token)`."""
    scale = weights.amax(-1)
    # All weights of a layer are 0 if it attends only to other tokens.
    codes = ((weights / scale.where(scale > 0, 1.0)[:, None]).sqrt() * LEVELS).round()
    return scale, codes.to(torch.uint8)


def _raw(codes: Tensor) -> bytes:
    numbers = codes.contiguous().numpy()
    # The file is little-endian on every machine.
    return bytes(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())


def _rounded(numbers: Tensor) -> tuple[float, ...]:
    """The numbers with six significant digits, to keep the file small."""
    return tuple(float(f"{each:.6g}") for each in numbers.tolist())

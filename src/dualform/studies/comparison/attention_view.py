"""Where learners looked while they read a few queries of a comparison, kept for the page's attention explorer.

Which queries is decided while groups are read, so that only theirs are kept: each query belongs to one of eight
patterns of who answered it rightly (`PATTERNS`), and the patterns take turns, the most telling first, each with its
earliest query; a pattern that has no more is passed over.
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
"""Fewer queries are kept where their weights would take more; one is kept in any case."""

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
"""Who is right, of zero-shot, ICL and FT: first where they change the answer, last where nothing changes."""


def with_prefix(recordings: Recordings) -> Recordings:
    """The same recordings, with the scores to what stands before the query: attention to it is not lost from sight."""
    parts = {field.name: getattr(recordings, field.name) for field in fields(recordings)}
    return Recordings(**{name: replace(part, demo_scores=True) for name, part in parts.items()})


@dataclass(frozen=True)
class ProbeAttention:
    """Post-softmax weights of one query's probe, mean over heads, as the model itself normalises them."""

    demonstrations: Tensor
    """On the demonstrations' tokens, `(layer, demo_pos)`; none of them for a learner without."""
    query: Tensor
    """On the query's own tokens, the probe included, `(layer, seen_pos)`."""
    elsewhere: Tensor
    """On the opening token, separators and an attention sink together, `(layer,)`."""


def attended(trace: Trace, row: int, content: Tensor | None = None) -> ProbeAttention:
    """Where one query's probe looked.

    Args:
        trace: With `scores`, and `demo_scores` if anything stands before the query.
        row: Which query of the trace.
        content: Positions in the prefix of the demonstrations' tokens, `(demo_pos,)`; None for no demonstrations.

    Returns:
        Weights that sum to 1 in every layer.
    """
    assert trace.scores is not None
    own = trace.scores[row][..., trace.mask[row]]
    before = own[..., :0] if trace.demo_scores is None else trace.demo_scores[row]
    scores = torch.cat([before, own], dim=-1)
    if trace.sinks is not None:
        # A sink takes its share of the softmax and gives no value.
        scores = torch.cat([scores, trace.sinks.to(scores)[..., None]], dim=-1)
        weights, sink = scores.softmax(-1).split([scores.shape[-1] - 1, 1], dim=-1)
    else:
        weights, sink = scores.softmax(-1), scores.new_zeros(*scores.shape[:-1], 1)
    weights, sink = (_mean_over_heads(each, trace) for each in (weights, sink))
    prefix, query = weights[:, : before.shape[-1]], weights[:, before.shape[-1] :]
    shown = prefix[:, :0] if content is None else prefix[:, content]
    return ProbeAttention(shown, query, (prefix.sum(-1) - shown.sum(-1) + sink[..., 0]).clamp(min=0))


def _mean_over_heads(weights: Tensor, trace: Trace) -> Tensor:
    """`(layer, head, pos)` -> `(layer, pos)`; heads that only fill up a layer do not count."""
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
    """Chooses queries of one seed while they are read, and keeps where the learners looked.

    Args:
        n: Most queries to keep (see `MOST_BYTES`).
        labels: Right answers of all queries, `(example,)`.
        content: As for `attended`.
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
        """Look at a group that was read.

        Args:
            readings: Of zero-shot, ICL and FT, with their traces.
            ft_ranks: What ranks the demonstrations' tokens under FT, `(example, layer, demo_pos)`.
            kendall: Tau of it and ICL's, `(example, layer)`.
        """
        indices = readings["zsl"].queries
        trace = readings["icl"].trace
        assert trace is not None
        assert trace.demo_scores is not None
        # A byte a weight and two a rank; a query's own tokens are few.
        size = 3 * trace.demo_scores.shape[1] * trace.demo_scores.shape[-1]
        n = min(self._most, max(1, MOST_BYTES // max(1, size)))
        right = [readings[name].predictions.cpu() == self._labels[list(indices)] for name in LEARNERS]
        patterns = [PATTERNS.index(each) for each in zip(*(side.tolist() for side in right), strict=True)]
        rows = {_Candidate(*each): row for row, each in enumerate(zip(indices, patterns, strict=True))}
        # Whoever is not among the first now never will be: more queries only push others back.
        self._kept = {
            each: self._kept[each] if each in self._kept else self._seen(readings, rows[each], ft_ranks, kendall)
            for each in _in_turns([*self._kept, *rows])[:n]
        }

    def _seen(
        self, readings: Mapping[str, Readings], row: int, ft_ranks: Tensor | None, kendall: Tensor | None
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        elsewhere = []
        for name in LEARNERS:
            trace = readings[name].trace
            assert trace is not None
            looked = attended(trace, row, self._content if name == "icl" else None)
            found[f"{name}_scale"], found[name] = _coded(torch.cat([looked.demonstrations, looked.query], dim=-1))
            elsewhere.append(looked.elsewhere)
            if name == "icl":
                found["on_demonstrations"] = looked.demonstrations.sum(-1)
        found["elsewhere"] = torch.stack(elsewhere)
        if ft_ranks is not None:
            found["ft_ranks"] = dense_ranks(ft_ranks[row])
        if kendall is not None:
            found["kendall"] = kendall[row]
        kinds = {torch.uint8, torch.uint16, torch.float64}
        found = {name: each.detach().cpu() for name, each in found.items()}
        return {name: each if each.dtype in kinds else each.to(torch.float64) for name, each in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What was kept, by `POSITION/NAME`, to travel in a `SeedRecord`."""
        return {
            f"{place}/{name}": value for place, found in enumerate(self._kept.values()) for name, value in found.items()
        }

    def about(self, experiment: Experiment[ComparisonConfig], encoded: EncodedDemonstrations) -> dict[str, Any]:
        """Which queries were kept, and the texts of all tokens, likewise; empty where nothing was.

        Args:
            experiment: Where the queries were read.
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
        shown = [
            {"pieces": token_texts(tokenizer, ids[opening:]), "answer_tokens": n}
            for ids, n in zip(encoded.sequences, encoded.n_answer_tokens, strict=True)
        ]
        return {"model": experiment.lm.name, "probe": probe, "demonstrations": shown, "examples": examples}


def attention_record(outcome: SeedRecord, asked: TaskDescription) -> AttentionRecord | None:
    """Where one seed's learners looked, as a file holds it; None where nothing was kept.

    Args:
        outcome: The seed.
        asked: The queries.
    """
    about = outcome.attention_about
    if not about:
        return None
    examples = []
    for place, one in enumerate(about["examples"]):
        found = {
            name.partition("/")[2]: value for name, value in outcome.attention.items() if name.startswith(f"{place}/")
        }
        example = asked.examples[one["index"]]
        answers = asked.task.answers(example)
        ranks, kendall = found.get("ft_ranks"), found.get("kendall")
        examples.append(
            QueryAttention(
                query=example.row,
                pieces=one["pieces"],
                answers=tuple(answers),
                label=example.label,
                probabilities={
                    name: _short(table[one["index"], : len(answers)].softmax(0))
                    for name, table in outcome.log_probabilities.items()
                },
                **{name: Weights.packed(found[f"{name}_scale"].tolist(), _raw(found[name])) for name in LEARNERS},
                on_demonstrations=_short(found["on_demonstrations"]),
                elsewhere={name: _short(row) for name, row in zip(LEARNERS, found["elsewhere"], strict=True)},
                ft_ranks=None if ranks is None else Ranks.packed(_raw(ranks)),
                kendall=None if kendall is None else _short(kendall),
            )
        )
    return AttentionRecord(
        dualform=__version__,
        model=about["model"],
        task=asked.task.name,
        seed=outcome.seed,
        probe=about["probe"],
        n_layers=len(next(iter(outcome.attention.values()))),
        demonstrations=tuple(PromptDemonstration(**each) for each in about["demonstrations"]),
        examples=tuple(examples),
    )


def dense_ranks(logits: Tensor) -> Tensor:
    """Ranks of the last axis, 0 for the least, equal ones for ties: Kendall's tau of them is that of the logits.

    Args:
        logits: Numbers to rank, `(layer, demo_pos)`.

    Returns:
        uint16 of the same shape. More different numbers than it can hold share its levels, order kept.
    """
    rows = [torch.unique(row, return_inverse=True)[1] for row in logits.detach().cpu()]
    ranks = torch.stack(rows) if rows else torch.zeros(logits.shape, dtype=torch.long)
    largest = int(ranks.max()) if ranks.numel() else 0
    if largest >= MOST_RANKS:
        ranks = ranks * (MOST_RANKS - 1) // largest
    return ranks.to(torch.uint16)


def _in_turns(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Each pattern's candidates by index; then the first of every pattern, the second of every one, and so on."""
    places = {pattern: count() for pattern in range(len(PATTERNS))}
    turns = {each: next(places[each.pattern]) for each in sorted(candidates, key=lambda each: each.index)}
    return sorted(candidates, key=lambda each: (turns[each], each.pattern))


def _coded(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Each layer's largest weight, and codes as `Weights` describes them, uint8 `(layer, token)`."""
    scale = weights.amax(-1)
    # Where all attention lies elsewhere, weights may be 0 to the last.
    codes = ((weights / scale.where(scale > 0, 1.0)[:, None]).sqrt() * LEVELS).round()
    return scale, codes.to(torch.uint8)


def _raw(codes: Tensor) -> bytes:
    numbers = codes.contiguous().numpy()
    # The file's order of bytes, whatever the machine's.
    return bytes(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes())


def _short(numbers: Tensor) -> tuple[float, ...]:
    """At six digits: the file's size, and more than anyone reads."""
    return tuple(float(f"{each:.6g}") for each in numbers.tolist())

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch import Tensor

from dualform.attention_record import AttentionRecord, QueryAttention, Weights
from dualform.errors import ConfigError
from dualform.ops.rank import kendall_tau_b
from dualform.studies.comparison import attention_view
from dualform.studies.comparison.attention_view import (
    PATTERNS,
    _Candidate,
    _coded,
    _in_turns,
    attention_record,
    dense_ranks,
)
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.experiment import DemonstrationSet
from dualform.studies.pieces import Piece
from tests.studies.reference import finetune, plain_model, read_sequence
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task
from tests.tiny import HEADS, LAYERS

FAMILIES = ("gpt2", "llama")
SETTINGS: dict[str, Any] = {"seeds": (1,), "limit": None, "controls": ("none",)}


@cache
def run(family: str = "gpt2", **changes: Any) -> Comparison:
    """A small comparison; tests only read it."""
    return compare(small_config(**(SETTINGS | changes)), lm=small_lm(family), task=small_task())


def record_of(family: str = "gpt2", **changes: Any) -> AttentionRecord:
    record = run(family, **changes).attention
    assert record is not None
    return record


def position(comparison: Comparison, example: QueryAttention) -> int:
    """Which of the queries an example is."""
    return [each.row for each in comparison.description.examples].index(example.query)


@cache
def drawn(family: str) -> DemonstrationSet:
    return small_experiment(family, **SETTINGS).draw(1)


@cache
def tuned(family: str) -> Any:
    return finetune(plain_model(family), drawn(family).encoded.sequences, 1e-2)[0]


@cache
def eager(family: str, ids: tuple[int, ...], after_training: bool = False) -> Tensor:
    """Attention of the last token in an ordinary forward, mean over heads, `(layer, pos)`."""
    model = tuned(family) if after_training else plain_model(family)
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    return torch.stack([layer[0, :, -1].mean(0) for layer in seen.attentions])


def expected_icl(family: str, index: int) -> Tensor:
    """Over the demonstrations' tokens and then the query's."""
    experiment, encoded = small_experiment(family, **SETTINGS), drawn(family).encoded
    prompt = experiment.queries[index].prompt
    columns = [*encoded.content, *range(len(encoded.prefix), len(encoded.prefix) + len(prompt))]
    return eager(family, (*encoded.prefix, *prompt))[:, columns]


def is_kept(weights: Sequence[Sequence[float]], expected: Tensor) -> bool:
    """Equal but for the coding of weights in one byte: see `Weights`."""
    rows = torch.tensor(weights, dtype=torch.float64)
    if rows.shape != expected.shape:
        return False
    largest = expected.amax(-1, keepdim=True)
    return bool(((rows - expected).abs() <= (expected * largest).sqrt() / 255 + 4e-6 * largest).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_icl_weights_are_those_of_an_eager_forward_averaged_over_heads(family: str) -> None:
    comparison = run(family)
    for example in record_of(family).examples:
        assert is_kept(example.icl.rows(), expected_icl(family, position(comparison, example)))


def test_another_querys_weights_are_not() -> None:
    """The case in which the claim fails, except for two queries of one length that hardly differ in this model."""
    comparison, examples = run(), record_of().examples
    pairs = [(first, second) for first in examples for second in examples if len(first.pieces) == len(second.pieces)]
    others = [is_kept(a.icl.rows(), expected_icl("gpt2", position(comparison, b))) for a, b in pairs if a is not b]
    assert others.count(False) > 2 * others.count(True)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_and_finetuned_weights_are_those_of_an_eager_forward(family: str) -> None:
    comparison, experiment = run(family), small_experiment(family, **SETTINGS)
    opening = experiment.encoder.opening
    for example in record_of(family).examples:
        prompt = experiment.queries[position(comparison, example)].prompt
        zsl, ft = (eager(family, (*opening, *prompt), after)[:, len(opening) :] for after in (False, True))
        assert is_kept(example.zsl.rows(), zsl)
        # Deltas are kept in float32: far below what a byte can tell.
        assert is_kept(example.ft.rows(), ft)
        assert not is_kept(example.ft.rows(), zsl)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights_of_a_layer_sum_to_one(family: str) -> None:
    record = record_of(family)
    n_shown = record.n_demonstration_tokens
    for example in record.examples:
        for name in ("zsl", "icl", "ft"):
            rows = getattr(example, name).rows()
            for row, elsewhere in zip(rows, example.elsewhere[name], strict=True):
                # A byte a weight; their errors largely cancel.
                assert sum(row) + elsewhere == pytest.approx(1, abs=0.01)
        for row, total in zip(example.icl.rows(), example.on_demonstrations, strict=True):
            assert sum(row[:n_shown]) == pytest.approx(total, abs=0.01)
        assert all(0 < share < 1 for share in example.elsewhere["icl"])


def taus(record: AttentionRecord, family: str, ranks_of: QueryAttention, scores_of: int) -> list[float]:
    """Tau of one example's m_FT, as recorded, and the scores of a query in context, one forward at a time."""
    experiment, encoded = small_experiment(family, **SETTINGS), drawn(family).encoded
    assert ranks_of.ft_ranks is not None
    with torch.no_grad():
        seen = read_sequence(plain_model(family), [*encoded.prefix, *experiment.queries[scores_of].prompt])
    taus = []
    for layer, ranks in enumerate(ranks_of.ft_ranks.rows(record.n_layers)):
        keys = [seen.key(layer, head)[list(encoded.content)] for head in range(HEADS)]
        scores = sum((key @ seen.q[layer][head, -1] for head, key in enumerate(keys)), torch.zeros(len(ranks)))
        taus.append(float(kendalltau(scores.numpy(), ranks).statistic))
    return taus


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ranks_of_m_ft_give_the_results_tau(family: str) -> None:
    comparison, record = run(family), record_of(family)
    measured = comparison.records[0].measures["kendall"]
    for example in record.examples:
        index = position(comparison, example)
        assert example.kendall == pytest.approx(measured[index].tolist(), abs=1e-5)
        # Rounding may break ties of the words that open every prompt.
        assert taus(record, family, example, index) == pytest.approx(measured[index].tolist(), abs=5e-3)


def test_another_querys_order_does_not_give_this_tau() -> None:
    """The case in which the claim fails."""
    comparison, record = run(), record_of()
    measured = comparison.records[0].measures["kendall"]
    first, other = record.examples[:2]
    index = position(comparison, first)
    assert taus(record, "gpt2", other, index) != pytest.approx(measured[index].tolist(), abs=5e-3)


def test_the_texts_are_those_of_prompts_and_answers() -> None:
    comparison, record = run(), record_of()
    task, demonstrations = small_task(), drawn("gpt2").demonstrations
    for example in record.examples:
        source = comparison.description.examples[position(comparison, example)]
        assert "".join(example.pieces) == task.template.render(source)
        assert (example.label, list(example.answers)) == (source.label, list(task.answers(source)))
    for each, source, label in zip(record.demonstrations, demonstrations.examples, demonstrations.labels, strict=True):
        answer = task.answers(source)[label]
        assert "".join(each.pieces) == task.template.render(source) + answer
        assert "".join(each.pieces[-each.answer_tokens :]) == answer


def test_probabilities_are_those_of_the_answers() -> None:
    comparison, record = run(), record_of()
    for example in record.examples:
        for name, table in comparison.records[0].log_probabilities.items():
            expected = table[position(comparison, example)].softmax(0).tolist()
            assert example.probabilities[name] == pytest.approx(expected, abs=1e-5)


def test_the_probe_at_the_first_label_word_is_among_the_tokens() -> None:
    comparison, record = run(probe="label0"), record_of(probe="label0")
    experiment = small_experiment(**SETTINGS)
    example = record.examples[0]
    query = experiment.queries[position(comparison, example)]
    assert record.probe == "label0"
    assert example.pieces[-1] == " negative"
    encoded = drawn("gpt2").encoded
    ids = (*encoded.prefix, *query.prompt, *query.answers[0])
    columns = [*encoded.content, *range(len(encoded.prefix), len(ids))]
    assert is_kept(example.icl.rows(), eager("gpt2", ids)[:, columns])


def test_without_demonstrations_everything_is_query_and_opening_token() -> None:
    record = record_of(k=0)
    assert record.demonstrations == ()
    example = record.examples[0]
    assert (example.ft_ranks, example.kendall) == (None, None)
    assert example.on_demonstrations == (0.0,) * LAYERS
    assert sum(example.icl.rows()[0]) + example.elsewhere["icl"][0] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("changes", [{"explore": 0}, {"learners": ("zsl", "icl")}, {"learners": ("icl", "ft")}])
def test_nothing_is_kept_with_explore_0_or_without_a_learner(changes: dict[str, Any]) -> None:
    comparison = run(**changes)
    assert comparison.attention is None
    assert comparison.records[0].attention == {}


@pytest.mark.parametrize("n", [-1, 65])
def test_a_number_of_queries_out_of_range_is_named(n: int) -> None:
    with pytest.raises(ConfigError, match=f"explore: .*{n}"):
        small_config(explore=n)


def test_exploring_changes_no_number() -> None:
    without, with_ = (numbers(run(explore=n).result) for n in (0, 8))
    assert without.pop("config") != with_.pop("config")
    assert without == with_


def test_a_seed_that_was_read_back_gives_the_same_record(tmp_path: Any) -> None:
    comparison = run()
    path = tmp_path / "piece.safetensors"
    path.write_bytes(comparison.records[0].to_piece().to_bytes())
    again = SeedRecord.from_piece(Piece.from_file(str(path)))
    assert attention_record(again, comparison.description) == record_of()


def test_the_first_seed_is_shown() -> None:
    comparison = run(seeds=(2, 1))
    assert comparison.attention is not None
    assert comparison.attention.seed == 2
    # Each seed keeps its own, so that one that was run alone is the same as one among others.
    second = dataclasses.replace(comparison, records=comparison.records[1:]).attention
    assert second == record_of()


@pytest.mark.parametrize("n", [1, 3, 8])
def test_as_many_queries_are_kept_as_requested_in_turns(n: int) -> None:
    comparison, record = run(explore=n), record_of(explore=n)
    tables = comparison.records[0].log_probabilities
    labels = torch.tensor([each.label for each in comparison.description.examples])
    right = [(tables[name].argmax(1) == labels).tolist() for name in ("zsl", "icl", "ft")]
    candidates = [_Candidate(i, PATTERNS.index(each)) for i, each in enumerate(zip(*right, strict=True))]
    expected = [each.index for each in _in_turns(candidates)][:n]
    assert [position(comparison, each) for each in record.examples] == expected


def test_patterns_take_turns_most_informative_first() -> None:
    candidates = [_Candidate(*each) for each in ((5, 7), (4, 0), (3, 7), (9, 0), (1, 6), (0, 7))]
    assert [(each.index, each.pattern) for each in _in_turns(candidates)] == [
        (4, 0),
        (1, 6),
        (0, 7),
        (9, 0),
        (3, 7),
        (5, 7),
    ]


@given(st.lists(st.integers(0, 7), max_size=30), st.randoms(), st.integers(1, 9))
def test_choosing_group_by_group_is_choosing_among_all(patterns: list[int], order: Any, n: int) -> None:
    candidates = [_Candidate(*each) for each in enumerate(patterns)]
    expected = _in_turns(candidates)[:n]
    order.shuffle(candidates)
    kept: list[_Candidate] = []
    while candidates:
        batch, candidates = candidates[:4], candidates[4:]
        kept = _in_turns([*kept, *batch])[:n]
    assert kept == expected


def test_fewer_queries_are_kept_where_they_would_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    n_prefix = len(drawn("gpt2").encoded.prefix)
    monkeypatch.setattr(attention_view, "MOST_BYTES", 3 * LAYERS * n_prefix * 2)
    comparison = compare(small_config(**SETTINGS), lm=small_lm(), task=small_task())
    assert comparison.attention is not None
    assert len(comparison.attention.examples) == 2


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=2, max_size=2))
def test_ranks_have_the_tau_of_what_they_rank(rows: list[list[int]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    ranks = dense_ranks(logits)
    assert ranks.dtype == torch.uint16
    a, b = kendall_tau_b(logits[:1], logits[1:]), kendall_tau_b(ranks[:1].double(), ranks[1:].double())
    torch.testing.assert_close(a, b, equal_nan=True)


def test_more_ranks_than_two_bytes_hold_share_them_in_order() -> None:
    ranks = dense_ranks(torch.arange(70_000, dtype=torch.float64)[None]).long()[0]
    assert (int(ranks[0]), int(ranks[-1])) == (0, 65_535)
    assert bool((ranks.diff() >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_that_attends_to_none_of_the_tokens_has_weights_of_zero(dtype: torch.dtype) -> None:
    # The scores of an opening token that takes all attention: what is left for others is no number any more.
    left = torch.tensor([[900.0, 0.0, -3.0], [0.0, 0.0, 0.0]], dtype=dtype).softmax(-1)[:, 1:]
    scale, codes = _coded(left)
    weights = Weights.packed(scale.tolist(), codes.numpy().tobytes())
    assert weights.rows()[0] == [0.0, 0.0]
    assert weights.rows()[1] == pytest.approx([1 / 3, 1 / 3], rel=1e-2)

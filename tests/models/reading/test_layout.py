import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualform.models.reading.layout import Query, group, lay_out

TOKEN = st.integers(2, 50)
TOKENS = st.lists(TOKEN, min_size=1, max_size=6).map(tuple)
QUERY = st.builds(Query, TOKENS, st.lists(TOKENS, min_size=1, max_size=4).map(tuple))
SOME_QUERIES = st.lists(QUERY, min_size=1, max_size=6)
PROBE = st.sampled_from(["prompt", "label0"])


def branches(query, probe):
    """What must be read of each answer."""
    cut = [list(answer[:-1]) for answer in query.answers]
    if probe == "label0":
        cut[0] = list(query.answers[0])
    return cut


def written_out(query, probe):
    """(token, position, branch) of each own token, branch None for the prompt."""
    tokens: list[tuple[int, int, int | None]] = [(token, i, None) for i, token in enumerate(query.prompt)]
    for answer, branch in enumerate(branches(query, probe)):
        tokens += [(token, len(query.prompt) + i, answer) for i, token in enumerate(branch)]
    return tokens


@settings(max_examples=60, deadline=None)
@given(SOME_QUERIES, PROBE)
def test_a_token_attends_to_its_query_up_to_itself_but_to_no_other_answer(queries, probe):
    layout = lay_out(queries, probe)
    for example, query in enumerate(queries):
        tokens = written_out(query, probe)
        for i, (_, _, mine) in enumerate(tokens):
            for j, (_, _, theirs) in enumerate(tokens):
                assert layout.visible[example, i, j] == (j <= i and theirs in (None, mine))


@settings(max_examples=60, deadline=None)
@given(SOME_QUERIES, PROBE)
def test_the_row_holds_every_token_once_with_its_position(queries, probe):
    layout = lay_out(queries, probe)
    expected = [entry for query in queries for entry in written_out(query, probe)]
    assert layout.tokens.tolist() == [token for token, _, _ in expected]
    assert layout.offsets.tolist() == [position for _, position, _ in expected]
    assert layout.own.sum() == len(expected)
    assert layout.gather[layout.own].tolist() == list(range(len(expected)))
    assert len(expected) == sum(query.width(probe) for query in queries)


@settings(max_examples=60, deadline=None)
@given(SOME_QUERIES, PROBE)
def test_padding_attends_to_itself_and_no_token_attends_to_padding(queries, probe):
    layout = lay_out(queries, probe)
    padding = ~layout.own
    assert layout.visible.diagonal(dim1=1, dim2=2).all()
    others = layout.visible & ~torch.eye(layout.own.shape[1], dtype=torch.bool)
    assert not (others & layout.own[:, :, None] & padding[:, None, :]).any()


@settings(max_examples=60, deadline=None)
@given(SOME_QUERIES, PROBE, st.integers(0, 2**31))
def test_scores_are_means_over_each_answers_tokens(queries, probe, seed):
    layout = lay_out(queries, probe)
    generator = torch.Generator().manual_seed(seed)
    # A different number for every (row, token): a slip of one row or one token shows.
    table = torch.randn(len(layout.tokens), 51, generator=generator, dtype=torch.float64)
    scores = layout.score(table[layout.scored_rows])
    start = 0
    for example, query in enumerate(queries):
        first = start + len(query.prompt)
        for answer, (word, branch) in enumerate(zip(query.answers, branches(query, probe), strict=True)):
            rows = [start + len(query.prompt) - 1, *range(first, first + len(word) - 1)]
            expected = sum(float(table[row, token]) for row, token in zip(rows, word, strict=True)) / len(word)
            assert scores[example, answer] == pytest.approx(expected, rel=1e-12)
            first += len(branch)
        assert torch.isneginf(scores[example, len(query.answers) :]).all()
        assert layout.scored_rows[layout.first_scored[example]] == start + len(query.prompt) - 1
        start += query.width(probe)
    assert scores.shape == (len(queries), max(len(query.answers) for query in queries))


@settings(max_examples=60, deadline=None)
@given(SOME_QUERIES, PROBE)
def test_the_probe_is_the_end_of_the_prompt_or_first_answer_and_attends_to_all_before_it(queries, probe):
    layout = lay_out(queries, probe)
    for example, query in enumerate(queries):
        expected = len(query.prompt) + (len(query.answers[0]) if probe == "label0" else 0) - 1
        last = query.answers[0][-1] if probe == "label0" else query.prompt[-1]
        assert layout.probe[example] == expected
        assert layout.seen[example] == expected + 1
        assert layout.tokens[layout.probe_rows[example]] == last
        assert layout.visible[example, expected, : expected + 1].all()
        assert layout.seen_mask[example].sum() == expected + 1
    assert layout.seen_mask.shape[1] == layout.seen.max()


@settings(max_examples=100, deadline=None)
@given(st.lists(QUERY, max_size=20), st.integers(1, 40), st.integers(1, 5), PROBE)
def test_grouping_covers_every_query_once_and_keeps_within_its_limits(queries, max_tokens, max_examples, probe):
    rows = group(queries, max_tokens, max_examples, probe)
    assert sorted(index for row in rows for index in row) == list(range(len(queries)))
    for row in rows:
        assert 1 <= len(row) <= max_examples
        total = sum(queries[index].width(probe) for index in row)
        assert total <= max_tokens or len(row) == 1


def test_memory_of_a_row_does_not_grow_with_the_number_of_queries():
    def largest(n):
        queries = [Query((2,) * (1 + i % 7), ((3, 4), (5,))) for i in range(n)]
        return max(sum(queries[i].width() for i in row) for row in group(queries, 64, 32, "prompt"))

    assert largest(1000) == largest(100) <= 64


def test_queries_of_similar_length_share_a_row():
    queries = [Query((2,) * n, ((3,),)) for n in (9, 2, 8, 1)]
    assert group(queries, 17, 2, "prompt") == [[3, 1], [2, 0]]


def test_an_answer_of_one_token_takes_no_room():
    query = Query((5, 6, 7), ((8,), (9,)))
    assert query.width() == 3
    assert query.width("label0") == 4
    assert Query((5, 6, 7), ()).width() == 3
    assert lay_out([query]).tokens.tolist() == [5, 6, 7]


def test_the_example_of_the_docstring():
    layout = lay_out([Query((10, 11, 12, 13), ((20, 21, 99), (30, 98)))])
    assert layout.tokens.tolist() == [10, 11, 12, 13, 20, 21, 30]
    assert layout.offsets.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert layout.visible[0, 6].tolist() == [True] * 4 + [False, False, True]
    assert layout.n_examples == 1

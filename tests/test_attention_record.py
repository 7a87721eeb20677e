import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualform.attention_record import AttentionRecord, Ranks, Weights
from tests.report.example_attention import example_attention, packed

ROWS = st.lists(st.lists(st.floats(1e-9, 1.0), min_size=3, max_size=3), min_size=1, max_size=4)


@given(ROWS)
def test_a_weight_is_off_by_no_more_than_its_promise(rows: list[list[float]]) -> None:
    for expected, found in zip(rows, packed(rows).rows(), strict=True):
        largest = max(expected)
        for weight, again in zip(expected, found, strict=True):
            # Half a code of its square root, and six digits of the scale.
            assert abs(again - weight) <= (weight * largest) ** 0.5 / 255 + 4e-6 * largest


def test_the_largest_weight_of_a_layer_is_kept_as_it_is() -> None:
    assert packed([[0.25, 0.5], [0.125, 0.0]]).rows()[0][1] == 0.5
    assert packed([[0.25, 0.5], [0.125, 0.0]]).rows()[1] == [0.125, 0.0]


def test_ranks_come_back() -> None:
    codes = bytes([1, 0, 0, 1, 2, 0, 255, 255])
    assert Ranks.packed(codes).rows(2) == [[1, 256], [2, 65535]]


def test_a_record_comes_back_from_its_text() -> None:
    record = example_attention()
    assert AttentionRecord.from_json(record.to_json()) == record
    assert json.loads(record.to_json())["schema"] == 1


def test_the_file_of_a_usual_run_is_about_a_megabyte() -> None:
    demonstrations = [[" word"] * 36 for _ in range(31)]
    record = example_attention(demonstrations, [[" word"] * 60] * 8, layers=30)
    assert record.n_demonstration_tokens == 1116
    assert len(record.to_json()) < 1_400_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zsl": Weights.packed([1.0], bytes(8))}, "query 0: weights of zsl are not"),
        ({"icl": Weights.packed([1.0] * 4, bytes(8))}, "query 0: weights of icl are not"),
        ({"ft": Weights(scale=(1.0,) * 4, codes="?")}, "not base64"),
        ({"ft_ranks": Ranks.packed(bytes(6))}, "query 0: ft_ranks are not"),
        ({"kendall": (0.1,)}, "query 0: not one number a layer"),
        ({"label": 2}, "query 0: label 2 is not among"),
        ({"elsewhere": {"zsl": (0.0,) * 4}}, "query 0: elsewhere is of"),
        ({"probabilities": {"zsl": (1.0,)}}, "query 0: not one probability an answer"),
    ],
)
def test_a_record_whose_parts_do_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    record = example_attention()
    broken = record.examples[0].model_copy(update=changes)
    text = record.model_copy(update={"examples": (broken,)}).to_json()
    with pytest.raises(ValueError, match=message):
        AttentionRecord.from_json(text)


def test_another_schema_is_refused() -> None:
    text = example_attention().to_json().replace('"schema":1', '"schema":2', 1)
    with pytest.raises(ValueError, match="schema"):
        AttentionRecord.from_json(text)

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dualform.errors import TaskError
from dualform.tasks.splits import arrange_splits
from dualform.tasks.task import Example


def examples(texts, label_of=lambda row: row % 2):
    return [Example({"text": text}, label_of(row), row) for row, text in enumerate(texts)]


def texts_of(split):
    return {example.fields["text"] for example in split}


TEXTS = st.lists(st.integers(0, 60).map("text {}".format), min_size=12, max_size=60)


@given(train=TEXTS, validation=st.none() | TEXTS, test=st.none() | TEXTS)
def test_no_text_is_in_two_splits_and_none_is_empty(train, validation, test):
    given_splits = {"train": examples(train)}
    given_splits |= {"validation": examples(validation)} if validation else {}
    given_splits |= {"test": examples(test)} if test else {}
    try:
        arranged = arrange_splits(given_splits, ["text"], "toy")
    except TaskError:
        assume(False)  # too much in common: refused, see below
    train, selection, report = (texts_of(split) for split in arranged.splits.values())
    assert train
    assert selection
    assert report
    assert len(train | selection | report) == len(train) + len(selection) + len(report)


def test_splits_with_shared_texts_are_not_disjoint_before():
    train, test = examples(["a", "b", "c", "d"]), examples(["b", "c"])
    assert texts_of(train) & texts_of(test)
    arranged = arrange_splits({"train": train, "validation": examples(["e", "c"]), "test": test}, ["text"], "toy")
    assert texts_of(arranged.splits["train"]) == {"a", "d"}
    assert texts_of(arranged.splits["validation"]) == {"e"}
    assert texts_of(arranged.splits["test"]) == {"b", "c"}
    assert arranged.notes == (
        "Left out of validation: 1 of 2 rows, whose text also occurs in test.",
        "Left out of train: 2 of 4 rows, whose text also occurs in test or validation.",
    )


def test_with_all_three_splits_nothing_is_held_out():
    found = {name: examples([f"{name} {i}" for i in range(4)]) for name in ("train", "validation", "test")}
    arranged = arrange_splits(found, ["text"], "toy")
    assert (arranged.selection_split, arranged.report_split, arranged.notes) == ("validation", "test", ())
    assert {name: list(split) for name, split in arranged.splits.items()} == found


def test_without_test_the_validation_split_is_reported_and_selection_held_out():
    found = {"train": examples([f"t {i}" for i in range(50)]), "validation": examples(["v 0", "v 1"])}
    arranged = arrange_splits(found, ["text"], "toy")
    assert (arranged.selection_split, arranged.report_split) == ("selection", "validation")
    assert {name: len(split) for name, split in arranged.splits.items()} == {
        "train": 40,
        "selection": 10,
        "validation": 2,
    }
    assert "selection split consists of 10 of the 50 rows of train" in arranged.notes[0]


def test_without_either_both_are_held_out_in_proportion_to_the_labels():
    found = {"train": examples([f"t {i}" for i in range(200)], lambda row: int(row % 4 == 0))}
    arranged = arrange_splits(found, ["text"], "toy")
    counts = {name: Counter(e.label for e in split) for name, split in arranged.splits.items()}
    assert counts == {"train": {0: 84, 1: 28}, "selection": {0: 21, 1: 7}, "report": {0: 45, 1: 15}}
    assert len(arranged.notes) == 2


def test_at_most_500_rows_are_held_out_for_selection():
    found = {"train": examples([f"t {i}" for i in range(4000)]), "test": examples(["q"])}
    assert len(arrange_splits(found, ["text"], "toy").splits["selection"]) == 500


@given(st.permutations(range(30)))
def test_what_is_held_out_does_not_depend_on_the_order_of_the_rows(order):
    rows = [Example({"text": f"t {i}"}, i % 3, i) for i in range(30)]
    straight = arrange_splits({"train": rows}, ["text"], "toy").splits
    mixed = arrange_splits({"train": [rows[i] for i in order]}, ["text"], "toy").splits
    assert {name: texts_of(split) for name, split in straight.items()} == {
        name: texts_of(split) for name, split in mixed.items()
    }


def test_it_does_depend_on_the_texts():
    one = arrange_splits({"train": examples([f"t {i}" for i in range(30)])}, ["text"], "toy").splits
    other = arrange_splits({"train": examples([f"u {i}" for i in range(30)])}, ["text"], "toy").splits
    assert [e.row for e in one["report"]] != [e.row for e in other["report"]]


def test_equal_texts_stay_on_one_side_and_row_numbers_are_those_of_train():
    found = {"train": examples([f"t {i // 4}" for i in range(80)], lambda row: row // 4 % 2)}
    arranged = arrange_splits(found, ["text"], "toy")
    for split in arranged.splits.values():
        assert set(Counter(e.fields["text"] for e in split).values()) == {4}
        assert all(found["train"][e.row] is e for e in split)


def test_white_space_does_not_make_a_text_new():
    found = {"train": examples(["a b ", "c", "d", "e", "f", "g"]), "test": examples(["a  b"])}
    arranged = arrange_splits(found, ["text"], "toy")
    assert "a b " not in texts_of(arranged.splits["train"]) | texts_of(arranged.splits["selection"])


def test_a_field_that_the_prompt_does_not_show_does_not_make_a_row_new():
    train = [Example({"text": text, "id": str(i)}, i % 2, i) for i, text in enumerate("abcdef")]
    test = [Example({"text": "a", "id": "99"}, 0, 0)]
    assert "a" not in texts_of(arrange_splits({"train": train, "test": test}, ["text"], "toy").splits["train"])


def test_each_label_keeps_a_text_in_train():
    arranged = arrange_splits({"train": examples(["a", "b", "c", "d", "e"])}, ["text"], "toy")
    assert {e.label for e in arranged.splits["train"]} == {0, 1}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"test": ["a"]}, "no train rows .* Its splits are: test"),
        ({}, "Its splits are: none"),
        ({"train": ["a", "b"]}, "cannot make a report split: train has 2 rows with 2 different texts and 2 labels"),
        ({"train": ["a", "b"], "test": ["a", "b", "c"]}, "every text of train also occurs in test"),
        ({"train": ["a", "b"], "validation": ["c"], "test": ["c"]}, "every text of validation also occurs in test"),
    ],
)
def test_splits_that_leave_a_role_empty_are_refused(found, message):
    with pytest.raises(TaskError, match=message):
        arrange_splits({name: examples(texts) for name, texts in found.items()}, ["text"], "toy")

import pytest

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.build import build_task
from dualform.tasks.options import NO_OPTIONS, TaskOptions
from dualform.tasks.prompts import WORDINGS
from dualform.tasks.raw import RawTask


def raw_task(train, *, test=None, **changes):
    splits = {"train": train} | ({"test": test} if test else {})
    settings = {"name": "toy", "source": "toy.csv", "files": {split: f"{split}.csv" for split in splits}}
    return RawTask(rows=splits, **(settings | changes))


def table(values, column="label"):
    return [{"text": f"text {row}", column: value} for row, value in enumerate(values)]


def labels_by_row(task):
    found = {example.row: example.label for split in task.splits.values() for example in split}
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 9, 10] * 3, ("9", "10")),
        (["10", "9", "9", "10"] * 3, ("9", "10")),
        (["b", "a", "a", "b"] * 3, ("a", "b")),
        ([1.0, 0.0, 0.0, 1.0] * 3, ("0", "1")),
        ([True, False, False, True] * 3, ("False", "True")),
    ],
)
def test_label_values_are_numbered_in_sorted_order_and_are_the_words_by_default(values, names):
    task = build_task(raw_task(table(values)), NO_OPTIONS)
    assert task.label_names == task.label_words == names
    assert labels_by_row(task) == [1, 0, 0, 1] * 3
    assert (task.template.prompt, task.template.separator) == ("Text: {text}\nLabel:", "\n\n")


def test_integer_labels_of_a_source_with_names_are_indices():
    task = build_task(raw_task(table([0, 1] * 6), label_names=("2", "1")), NO_OPTIONS)
    assert labels_by_row(task) == [0, 1] * 6
    with pytest.raises(TaskError, match=r"train.csv, row 1 .*label 2 is not among the 2 labels"):
        build_task(raw_task(table([0, 2] * 6), label_names=("2", "1")), NO_OPTIONS)


def test_textual_labels_of_a_source_with_names_are_names():
    task = build_task(raw_task(table(["no", "yes"] * 6), label_names=("yes", "no")), NO_OPTIONS)
    assert labels_by_row(task) == [1, 0] * 6
    with pytest.raises(TaskError, match=r"row 0 .*label 'maybe' is not among the labels yes, no"):
        build_task(raw_task(table(["maybe", "yes"]), label_names=("yes", "no")), NO_OPTIONS)


def test_the_text_column_may_have_any_name_and_is_also_called_text():
    rows = [{"body": f"b {row}", "title": f"t {row}", "kind": "xy"[row % 2]} for row in range(12)]
    task = build_task(raw_task(rows), TaskOptions(text="body", label="kind", prompt="{title}: {text} ({body}) ="))
    example = next(example for example in task.demonstration_pool)
    assert task.template.render(example) == f"t {example.row}: b {example.row} (b {example.row}) ="
    assert "kind" not in example.fields


def test_options_come_before_the_known_wording():
    raw = raw_task(table([0, 1] * 6), label_names=("negative", "positive"), wording=WORDINGS["sst2"])
    known = build_task(raw, NO_OPTIONS)
    assert (known.template, known.label_words) == (WORDINGS["sst2"].template, ("Negative", "Positive"))
    own = build_task(raw, TaskOptions(prompt="{text} =>", label_words="down,up", separator="\n"))
    assert (own.template.prompt, own.template.separator, own.label_words) == ("{text} =>", "\n", ("down", "up"))
    assert [e.row for e in own.splits["report"]] == [e.row for e in known.splits["report"]]


def test_the_word_eos_stands_for_the_end_of_sequence_token():
    assert build_task(raw_task(table([0, 1] * 6)), TaskOptions(separator="eos")).template.separator is None


def test_another_label_column_drops_the_known_words():
    rows = [{"text": f"t {row}", "label": 0, "tone": "xy"[row % 2]} for row in range(12)]
    raw = raw_task(rows, label_names=("negative", "positive"), wording=WORDINGS["sst2"])
    assert build_task(raw, TaskOptions(label="tone")).label_words == ("x", "y")


def test_the_papers_split_is_named_only_where_there_is_one():
    wording = WORDINGS["subj"]
    rows, test = table([0, 1] * 6), [{"text": "q", "label": 1}]
    with_test = raw_task(rows, test=test, label_names=wording.label_names, wording=wording)
    without = raw_task(rows, label_names=wording.label_names, wording=wording)
    assert build_task(with_test, NO_OPTIONS).paper_split == "test"
    assert build_task(without, NO_OPTIONS).paper_split is None


def choice_rows(n=8, **changes):
    return [{"text": f"q {row}", "choices": ["a", "b", "c"], "label": row % 3} | changes for row in range(n)]


def test_lists_of_choices_make_a_multiple_choice_task():
    task = build_task(raw_task(choice_rows()), NO_OPTIONS)
    assert task.is_multiple_choice
    assert task.label_names is None
    assert task.answers(task.demonstration_pool[0]) == (" a", " b", " c")


def test_choices_may_be_columns_of_their_own_or_text_in_a_cell():
    columns = [{"goal": f"q {row}", "sol1": "a", "sol2": "b", "label": row % 2} for row in range(8)]
    task = build_task(raw_task(columns), TaskOptions(text="goal", choices="sol1, sol2"))
    assert task.demonstration_pool[0].choices == ("a", "b")
    cells = [{"text": f"q {row}", "options": '["a", "b"]', "label": str(row % 2)} for row in range(8)]
    assert build_task(raw_task(cells), TaskOptions(choices="options")).demonstration_pool[0].choices == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (choice_rows(label=3), NO_OPTIONS, "row 0 .*label 3 is not among the 3 choices"),
        (choice_rows(label="b"), NO_OPTIONS, "label 'b' is not among the numbers of the choices"),
        (choice_rows(choices="a|b"), TaskOptions(choices="choices"), r"must contain a list of choices .* 'a\|b'"),
        (choice_rows(choices=["a", None]), NO_OPTIONS, "a choice is missing in choices"),
        (
            choice_rows(),
            TaskOptions(choices="sol1"),
            "no column 'sol1'. Its columns are: text, choices, label.*--choices",
        ),
    ],
)
def test_choices_that_do_not_fit_are_explained(rows, options, message):
    with pytest.raises(TaskError, match=message):
        build_task(raw_task(rows), options)


def test_label_words_have_no_place_in_multiple_choice():
    with pytest.raises(LabelWordError, match=r"multiple choice.*'yes,no'"):
        build_task(raw_task(choice_rows()), TaskOptions(label_words="yes,no"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TaskOptions(label="tone"), "train.csv has no column 'tone'. Its columns are: text, label. .*--label"),
        (TaskOptions(text="body"), "train.csv has no column 'body'. Its columns are: text, label. .*--text"),
        (TaskOptions(prompt="{title}:"), r"\{title\}, which the file does not have. Its fields are: text"),
        (TaskOptions(prompt="{text} {label}:"), r"uses \{label\}, which contains the answer"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(options, message):
    with pytest.raises(TaskError, match=message):
        build_task(raw_task(table([0, 1] * 6)), options)


def test_without_a_text_column_or_prompt_the_user_is_asked_for_one():
    rows = [{"body": "b", "title": "t", "label": row % 2} for row in range(4)]
    with pytest.raises(TaskError, match=r"no column 'text'. .* body, title. Name one with --text"):
        build_task(raw_task(rows), NO_OPTIONS)


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_text_is_named_with_file_and_row(text):
    rows = table([0, 1] * 6)
    rows[7]["text"] = text
    with pytest.raises(TaskError, match=r"train.csv, row 7 \(counting from 0\): the text of 'text' is empty"):
        build_task(raw_task(rows), NO_OPTIONS)


def test_an_empty_cell_that_the_prompt_does_not_show_is_no_matter():
    rows = [{**row, "comment": None} for row in table([0, 1] * 6)]
    assert build_task(raw_task(rows), NO_OPTIONS).n_labels == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "row 2 .*column 'label' has no label"),
        (None, "row 2 .*column 'label' has no label"),
        (0.5, r"row 2 .*label 0\.5 is not a whole number"),
        ([1], r"row 2 .*label \[1\] is neither"),
    ],
)
def test_a_label_that_is_none_is_named_with_file_and_row(value, message):
    rows = table([0, 1] * 6)
    rows[2]["label"] = value
    with pytest.raises(TaskError, match=message):
        build_task(raw_task(rows), NO_OPTIONS)


def test_a_column_that_is_no_label_is_recognised():
    with pytest.raises(TaskError, match=r"fewer than two values \(only 1\)"):
        build_task(raw_task(table([1] * 6)), NO_OPTIONS)
    with pytest.raises(TaskError, match="6 different values in 6 rows"):
        build_task(raw_task(table(range(6))), NO_OPTIONS)

import pytest

from dualform.errors import TaskError
from dualform.tasks.task import Example, Task, Template
from dualform.tasks.texts import NO_LABEL, read_lines, unlabelled_texts


def task(prompt="Review: {text}\nSentiment:"):
    fields = Template(prompt).fields
    examples = tuple(Example({name: f"{name} {i}" for name in fields}, i % 2, i) for i in range(4))
    return Task(
        "film", "here", {"train": examples, "test": examples}, Template(prompt), ("bad", "good"), None, "train", "test"
    )


def test_a_text_file_gives_a_text_for_each_line_that_is_not_empty(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("fine film\n\n   dull one \n", encoding="utf-8")
    found = unlabelled_texts(path, task())
    assert [dict(example.fields) for example in found] == [{"text": "fine film"}, {"text": "dull one"}]
    assert {example.label for example in found} == {NO_LABEL}


def test_a_table_gives_the_columns_that_the_prompt_shows_and_no_label(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"a": "x", "b": "y", "label": 1}\n{"a": "p", "b": "q", "label": 0}\n', encoding="utf-8")
    found = unlabelled_texts(path, task("{a} Question: {b} Answer:"))
    assert [dict(example.fields) for example in found] == [{"a": "x", "b": "y"}, {"a": "p", "b": "q"}]
    assert {example.label for example in found} == {NO_LABEL}


def test_rows_of_a_table_without_a_text_are_left_out(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("text,label\nfine film,1\n  ,0\n,1\ndull one,0\n", encoding="utf-8")
    found = unlabelled_texts(path, task())
    assert [(example.row, dict(example.fields)) for example in found] == [
        (0, {"text": "fine film"}),
        (3, {"text": "dull one"}),
    ]


def test_mistakes_name_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "some.txt"
    with pytest.raises(TaskError, match=r"some\.txt does not exist"):
        unlabelled_texts(path, task())
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"some\.txt contains no text\. Write one text on each line"):
        unlabelled_texts(path, task())
    path.write_bytes(b"one\n\xff")
    with pytest.raises(TaskError, match=r"some\.txt is not UTF-8: byte 0xff in line 2"):
        read_lines(path)
    path.write_text("one\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"uses 2 fields \(a, b\)\. Give a table"):
        unlabelled_texts(path, task("{a} {b} Answer:"))
    table = tmp_path / "some.csv"
    table.write_text("body,topic\nx,y\n", encoding="utf-8")
    with pytest.raises(
        TaskError, match=r"no column 'text', which the prompt of task film uses. Its columns are: body, topic"
    ):
        unlabelled_texts(table, task())

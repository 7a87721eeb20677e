import pytest

from dualform.errors import TaskError
from dualform.tasks.build import build_task
from dualform.tasks.directory import read_directory
from dualform.tasks.json_rows import read_json_lines
from dualform.tasks.options import NO_OPTIONS
from dualform.tasks.prompts import WORDINGS
from dualform.tasks.table import read_table


def test_every_split_is_read_in_order(write_directory, rows):
    folder = write_directory("toy", {"train": rows("t", 4), "validation": rows("v", 2), "test": rows("q", 3)})
    raw = read_directory(folder)
    assert {split: len(found) for split, found in raw.rows.items()} == {"train": 4, "validation": 2, "test": 3}
    assert raw.rows["train"][3] == {"text": "t 3", "label": 1}
    assert raw.label_names == ("negative", "positive")
    assert raw.files["test"] == str(folder / "test.jsonl")
    assert (raw.wording, raw.notes) == (None, ())


def test_a_known_name_with_its_labels_brings_the_known_wording(write_directory, rows):
    folder = write_directory("sst2", {"train": rows("t", 4)})
    assert read_directory(folder).wording is WORDINGS["sst2"]


def test_a_known_name_with_other_labels_does_not(write_directory, rows):
    folder = write_directory("sst2", {"train": rows("t", 4)}, label_names=["positive", "negative"])
    assert read_directory(folder).wording is None


def test_further_files_beside_the_splits_are_left_alone(write_directory, rows):
    extra = {"extra_files": {"train_phrases": {"file": "train_phrases.jsonl.gz"}}}
    assert list(read_directory(write_directory("toy", {"train": rows("t", 4)}, **extra)).rows) == ["train"]


def test_without_declared_splits_the_usual_files_are_taken(write_directory, rows):
    folder = write_directory("toy", {"train": rows("t", 4), "test": rows("q", 2)})
    (folder / "dataset.json").write_text('{"label_names": ["a", "b"]}')
    raw = read_directory(folder)
    assert (raw.name, list(raw.rows)) == ("toy", ["train", "test"])


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "one\u2028two\x85three", "label": 0}\r\n\n{"text": "b", "label": 1}'.encode())
    assert [row["text"] for row in read_json_lines(path).rows] == ["one\u2028two\x85three", "b"]


def test_another_number_of_rows_than_declared_is_noted(write_directory, rows):
    folder = write_directory("toy", {"train": rows("t", 4)})
    (folder / "dataset.json").write_text('{"splits": {"train": {"file": "train.jsonl", "rows": 9}}}')
    assert read_directory(folder).notes == ("train.jsonl has 4 rows, but dataset.json says 9.",)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "dataset.json is not JSON"),
        ("[]", "must contain a JSON object .* not list"),
        ('{"label_names": "ab"}', "label_names must be a list of texts or null, not 'ab'"),
        ('{"splits": {}}', "names no split"),
        ('{"splits": {"train": {"file": "../train.jsonl"}}}', "must name a file in the folder, not '../train.jsonl'"),
        ('{"splits": {"train": {"rows": 3}}}', "must name a file in the folder, not None"),
        ('{"splits": {"train": {"file": "train.txt"}}}', "no labelled rows: the file of split 'train' is train.txt"),
        ('{"splits": {"train": {"file": "gone.jsonl"}}}', "gone.jsonl is missing, though dataset.json names it"),
    ],
)
def test_a_description_that_does_not_fit_is_explained(write_directory, rows, description, message):
    folder = write_directory("toy", {"train": rows("t", 4)})
    (folder / "dataset.json").write_text(description)
    with pytest.raises(TaskError, match=message):
        read_directory(folder)


def test_a_folder_without_a_description_is_refused(tmp_path):
    with pytest.raises(TaskError, match=r"has no dataset.json"):
        read_directory(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a", "label": 1}\n{"text": ', "line 2: not JSON .*'{\"text\":'"),
        (b'{"text": "a", "label": 1}\n[1]\n', r"line 2: expected a JSON object, found '\[1\]'"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message):
        build_task(read_table(path), NO_OPTIONS)

import json

import pyarrow
import pyarrow.parquet
import pytest

from dualform.errors import TaskError
from dualform.tasks.table import read_table


def test_csv_cells_are_text_as_written(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text('text,label,code\n"one,\ntwo",true,007\n"say ""hi""",false,\n', encoding="utf-8")
    raw = read_table(path)
    assert (raw.name, list(raw.rows)) == ("tickets", ["train"])
    assert raw.rows["train"] == [
        {"text": "one,\ntwo", "label": "true", "code": "007"},
        {"text": 'say "hi"', "label": "false", "code": ""},
    ]


def test_the_four_kinds_of_table_hold_the_same_rows(tmp_path):
    rows = [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    (tmp_path / "t.csv").write_text("text,label\na b,x\nc,y\n")
    (tmp_path / "t.TSV").write_text("text\tlabel\na b\tx\nc\ty\n")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.csv", "t.TSV", "t.jsonl", "t.parquet"):
        assert read_table(tmp_path / name).rows["train"] == rows


@pytest.mark.parametrize("name", ["notes.txt", "rows.xlsx", "table"])
def test_another_suffix_is_refused(tmp_path, name):
    (tmp_path / name).write_text("text,label\n")
    with pytest.raises(TaskError, match=r"is not a table that dualform reads: its suffix is .*\.csv, \.tsv"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty. Write a line of column names"),
        ("t.csv", b"text,label\n", "contains no rows"),
        (
            "t.csv",
            b"text,label\n\xff\xfe,b\n",
            "is not UTF-8: byte 0xff in line 2 .*iconv -f WINDOWS-1252 -t UTF-8",
        ),
        ("t.csv", b"text,text\na,b\n", "has 2 columns named 'text'"),
        ("t.parquet", b"nothing of the sort", "cannot be read as Parquet: Parquet magic bytes not found"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        read_table(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"gone.csv does not exist"):
        read_table(tmp_path / "gone.csv")

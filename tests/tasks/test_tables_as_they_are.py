"""Tables in the shapes in which people have them: read right, or answered with one message that says what to do.

Expected rows are written out by hand, or are those from which another program (csv, json, pyarrow) wrote the file.
"""

import csv
import gzip
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.sources import load_task
from dualform.tasks.table import read_rows
from dualform.tasks.task import Task

TEXTS = [f"a text number {i}" for i in range(24)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv_of(labels: list[Any], texts: list[str] = TEXTS) -> str:
    return "text,label\n" + "".join(f"{text},{labels[i % len(labels)]}\n" for i, text in enumerate(texts))


def lines_of(labels: list[Any], texts: list[Any] = TEXTS) -> str:
    return "".join(json.dumps({"text": t, "label": labels[i % len(labels)]}) + "\n" for i, t in enumerate(texts))


def label_of_text(task: Task) -> dict[str, str]:
    names = task.label_names
    assert names is not None
    return {e.fields["text"]: names[e.label] for examples in task.splits.values() for e in examples}


# --- Labels ---


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ([0, 1], ("0", "1")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "0.0"], ("0", "1")),
        (["1", "0.0"], ("0", "1")),
        ([10, 9, 100], ("9", "10", "100")),
        (["b ", " a", "\u00a0a", "\ufeffb"], ("a", "b")),
        (["cafe\u0301", "th\u00e9"], ("caf\u00e9", "th\u00e9")),
        ([True, False], ("False", "True")),
        (["true", "false"], ("False", "True")),
        (["TRUE", "False"], ("False", "True")),
        (["none", "favour"], ("favour", "none")),
        (["+", "-"], ("+", "-")),
        ([-1, 1], ("-1", "1")),
        ([-2, -1, 0], ("-2", "-1", "0")),
        (["[POS]", "[NEG]"], ("[NEG]", "[POS]")),
        (["Business, Technology", "Sports"], ("Business, Technology", "Sports")),
    ],
)
def test_labels_are_read_alike_in_every_format(tmp_path: Path, written: list[Any], names: tuple[str, ...]) -> None:
    labels = [written[i % len(written)] for i in range(24)]
    quoted = io.StringIO()
    csv.writer(quoted).writerows([("text", "label"), *zip(TEXTS, labels, strict=True)])
    paths = [write(tmp_path / "t.csv", quoted.getvalue()), write(tmp_path / "t.jsonl", lines_of(labels))]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    paths.append(write(tmp_path / "t.json", json.dumps(rows, indent=1)))
    table = pyarrow.table({"text": TEXTS, "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "t.arrow")
    for path in (*paths, tmp_path / "t.parquet", tmp_path / "t.arrow"):
        assert load_task(path).label_names == names, path.name


def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    for labels in (["2", "1", "01", "x"], ["b", "a", "10", "9"]):
        names = set()
        for turn in range(4):
            turned = [*labels[turn:], *labels[:turn]]
            names.add(load_task(write(tmp_path / f"{turn}.csv", csv_of(turned))).label_names)
        assert len(names) == 1


@pytest.mark.parametrize("mark", ["nan", "NaN", "None", "null", "NA", "N/A", "<NA>", "", "  "])
def test_a_missing_label_is_refused_with_its_line_and_left_out_on_request(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "t.csv", csv_of(["2", "1", mark]))
    with pytest.raises(TaskError, match=r"8 of 24 rows .*t\.csv, line 4: column 'label' has no label.* \(also lines"):
        load_task(path)
    task = load_task(path, skip_bad_rows=True)
    assert task.label_names == ("1", "2")
    assert len(label_of_text(task)) == 16
    assert any("Left out: 8 unusable rows" in note for note in task.notes)


def test_a_text_that_marks_missing_values_is_a_label_where_somebody_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", csv_of(["None", "some"]))
    assert load_task(path, label_words="None=no,some=yes").label_words == ("no", "yes")


@pytest.mark.parametrize("value", ["NaN", "null", '""'])
def test_json_without_a_label_is_refused(tmp_path: Path, value: str) -> None:
    rows = [f'{{"text": "{text}", "label": {[0, 1, value][i % 3]}}}\n' for i, text in enumerate(TEXTS)]
    with pytest.raises(TaskError, match=r"t\.jsonl, line 3: column 'label' has no label"):
        load_task(write(tmp_path / "t.jsonl", "".join(rows)))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["-", "neutral", "contradiction"], ("contradiction", "neutral")),
        ([-1, 0, 1, 2], ("0", "1", "2")),
        (["-1", "1", "2"], ("1", "2")),
        ([-1.0, 0.0, 1.0, 2.0], ("0", "1", "2")),
    ],
)
def test_rows_that_a_data_set_leaves_unlabelled_are_left_out_and_counted(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...]
) -> None:
    task = load_task(write(tmp_path / "t.jsonl", lines_of(labels)))
    assert task.label_names == names
    n = 24 // len(labels)
    assert any(f"Left out of train: {n} of 24 rows without a label" in note for note in task.notes)


def test_minus_one_zero_and_one_are_three_classes_and_that_is_noted(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of([-1, 0, 1])))
    assert task.label_names == ("-1", "0", "1")
    assert any("read as three classes" in note for note in task.notes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0.25", "1.5"], "label 0.25 is not a whole number.*divide ratings into classes"),
        ([0.25, 1.5], "label 0.25 is not a whole number"),
        ([Decimal("0.25"), Decimal("1.5")], "label 0.25 is not a whole number"),
        (['"0,25"', '"1,75"'], "label 0,25 is not a whole number, or contains several labels"),
        (['"[0]"', '"[0, 3]"'], r"label \[0\] is a list"),
        (["['a']", "['b']"], r"label \['a'\] is a list"),
        (["['a' 'b']", "['b']"], r"label \['a' 'b'\] is a list"),
        (["[0 3]", "[3]"], r"label \[0 3\] is a list"),
        (["[]", "[3]"], r"label \[\] is a list"),
        ([[0], [0, 3]], r"label \[0\] is neither a whole number nor a text but a list"),
        ([{"a": 1}, {"b": 1}], r"label \{'a': 1\} is neither .* but an object"),
        ([10**30, 1], "label 10+ is too large"),
    ],
)
def test_what_is_no_label_is_refused_with_the_remedy(tmp_path: Path, labels: list[Any], message: str) -> None:
    if isinstance(labels[0], str):
        path = write(tmp_path / "t.csv", csv_of(labels))
    elif isinstance(labels[0], Decimal):
        path = tmp_path / "t.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": labels * 12}), path)
    else:
        path = write(tmp_path / "t.jsonl", lines_of(labels))
    with pytest.raises(TaskError, match=message):
        load_task(path)


def test_labels_that_differ_in_case_or_spaces_are_noted(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of(["Spam", "spam", "ham", "HAM ", "h am"])))
    assert task.n_labels == 5
    noted = [note for note in task.notes if "differ only in case or spaces" in note]
    assert any("'Spam' (5 rows) and 'spam' (5 rows)" in note for note in noted)
    assert any("'HAM'" in note and "'h am'" in note for note in noted)


def test_spellings_of_true_and_false_are_one_label_each_and_that_is_noted(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of(["TRUE", "True", "true", "false"])))
    assert task.label_names == ("False", "True")
    assert any("TRUE, True, false, true" in note for note in task.notes)
    assert load_task(tmp_path / "t.csv", label_words="true=yes,FALSE=no").label_words == ("no", "yes")


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_class_names_of_a_schema_are_used(tmp_path: Path, format: str) -> None:
    about = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    labels = [[0, 1, -1][i % 3] for i in range(24)]
    table = pyarrow.table({"text": TEXTS, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path = tmp_path / f"t.{format}"
    if format == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    task = load_task(path)
    assert task.label_names == task.label_words == ("bad", "good")
    assert label_of_text(task) == {t: ["bad", "good"][i % 3] for i, t in enumerate(TEXTS) if i % 3 < 2}


# --- Delimiters and quotation marks ---

ROWS = [("plain words", "a"), ("one, two; three", "b"), ('say "hi" now', "a"), ("two\nlines", "b"), ("\ttab", "a")] * 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_pythons_csv_writes_is_read_back(tmp_path: Path, delimiter: str, quoting: int, end: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows([("text", "label"), *ROWS])
    for name in ("t.csv", "t.tsv"):
        found = read_rows(write(tmp_path / name, written.getvalue())).rows
        assert [(row["text"], row["label"]) for row in found] == ROWS


def test_backslashes_before_quotation_marks(tmp_path: Path) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, doublequote=False, escapechar="\\")
    writer.writerows([("text", "label"), *ROWS])
    found = read_rows(write(tmp_path / "t.csv", written.getvalue())).rows
    assert [(row["text"], row["label"]) for row in found] == ROWS


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_quotation_marks_that_enclose_nothing_swallow_no_rows(tmp_path: Path, name: str) -> None:
    texts = ['"a warm film', "dull", 'nice" touch', '"quoted" at the start', 'at the end "quoted"', '"all of it"', "x"]
    delimiter = "\t" if name.endswith("tsv") else ","
    rows = [f"{text}{delimiter}{'ab'[i % 2]}" for i, text in enumerate(texts * 3)]
    found = read_rows(write(tmp_path / name, "\n".join([f"text{delimiter}label", *rows]) + "\n"))
    assert [row["text"] for row in found.rows] == texts * 3
    assert any("Quotation marks" in note for note in found.notes)


def test_a_pair_of_quotation_marks_lines_apart_swallows_no_rows(tmp_path: Path) -> None:
    rows = ['"first\ta', "second\tb", 'third"\ta', "fourth\tb"]
    found = read_rows(write(tmp_path / "t.tsv", "\n".join(["text\tlabel", *rows]))).rows
    assert [row["text"] for row in found] == ['"first', "second", 'third"', "fourth"]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    rows = ['"two\nlines",a', "", "one,b", '"three\n\nlines",a', ",b", "one cell", "x,a,b"]
    path = write(tmp_path / "t.csv", "\n".join(["text,label", *rows]) + "\n")
    assert read_rows(path).lines == [2, 5, 6, 9, 10, 11]
    with pytest.raises(TaskError) as caught:
        load_task(path)
    message = str(caught.value)
    assert "3 of 6 rows cannot be used" in message
    assert "line 9: the text of 'text' is empty" in message
    assert "line 10: 1 cells where the first line names 2 columns" in message
    assert "line 11: 3 cells where the first line names 2 columns" in message
    assert "\n" not in message


def test_the_users_own_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "body,kind\na,x\n ,y\nb,\n" + "c,x\nd,y\n" * 4)
    with pytest.raises(
        TaskError, match=r"line 3: the text of 'body' is empty|line 4: column 'kind' has no label"
    ) as found:
        load_task(path, text="body", label="kind")
    assert "line 3: the text of 'body' is empty" in str(found.value)
    assert "line 4: column 'kind' has no label" in str(found.value)


def test_only_the_first_few_of_many_bad_rows_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", csv_of(["a", "b"], ["" if i % 2 else f"t {i}" for i in range(2000)]))
    with pytest.raises(TaskError, match=r"1000 of 2000 rows .* and 993 more\)") as found:
        load_task(path)
    assert len(str(found.value)) < 500


def test_excels_first_line_says_the_delimiter(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path / "t.csv", "sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n"))
    assert found.rows == [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]
    assert found.lines == [3, 4]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("v1,v2,,,\nham,hello,,,\nspam,win,more,,\n", [("ham", "hello"), ("spam", "win")]),
        (",v1,v2\n0,ham,hello\n1,spam,win\n", [("ham", "hello"), ("spam", "win")]),
        ("v1,v2\nham,hello,\nspam,win,,\n", [("ham", "hello"), ("spam", "win")]),
        ('"v1","v2"\n"1","ham","hello"\n"2","spam","win"\n', [("ham", "hello"), ("spam", "win")]),
        (" v1 , v2\nham,hello\nspam,win\n", [("ham", "hello"), ("spam", "win")]),
        ("v1,v2\rham,hello\rspam,win\r", [("ham", "hello"), ("spam", "win")]),
        ("\n\nv1,v2\n\nham,hello\n,\nspam,win\n\n", [("ham", "hello"), ("spam", "win")]),
        ('v1, v2\nham, "hello"\nspam, "win, now"\n', [("ham", "hello"), ("spam", "win, now")]),
    ],
)
def test_columns_without_a_name_and_cells_without_a_column(
    tmp_path: Path, content: str, rows: list[tuple[str, str]]
) -> None:
    found = read_rows(write(tmp_path / "t.csv", content)).rows
    assert [(row["v1"], row["v2"]) for row in found] == rows
    assert {len(row) for row in found} == {2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str, name: str) -> None:
    text = "texte,cat\u00e9gorie\ncaf\u00e9,x\nth\u00e9,y\n"
    if name != "t.csv":
        rows = [{"texte": "caf\u00e9", "cat\u00e9gorie": "x"}, {"texte": "th\u00e9", "cat\u00e9gorie": "y"}]
        text = "\n".join(map(json.dumps, rows)) if name == "t.jsonl" else json.dumps(rows)
    found = read_rows(write(tmp_path / name, text.encode(encoding))).rows
    assert [list(row.values()) for row in found] == [["caf\u00e9", "x"], ["th\u00e9", "y"]]


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (
            "texte,cat\u00e9gorie\ncaf\u00e9,x\n".encode("latin-1"),
            "iconv -f WINDOWS-1252 -t UTF-8 .*t.csv > .*t-utf8.csv",
        ),
        ("a\u0081,b\nx,y\n".encode("latin-1"), "iconv -f LATIN1 -t UTF-8"),
        ("text,label\nabc,x\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        ("text,label\nabc,x\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
    ],
)
def test_other_encodings_are_answered_with_the_command_that_converts(
    tmp_path: Path, content: bytes, command: str
) -> None:
    with pytest.raises(TaskError, match=command):
        read_rows(write(tmp_path / "t.csv", content))


def test_packed_tables(tmp_path: Path) -> None:
    for name in ("t.csv.gz", "t.jsonl.gz"):
        content = csv_of(["a", "b"]) if "csv" in name else lines_of(["a", "b"])
        task = load_task(write(tmp_path / name, gzip.compress(content.encode())))
        assert (task.name, len(label_of_text(task))) == ("t", 24)


# --- JSON ---


@pytest.mark.parametrize(
    "document",
    [
        [{"text": "p", "label": 0}, {"text": "q", "label": 1}],
        {"text": ["p", "q"], "label": [0, 1]},
        {"text": {"0": "p", "1": "q"}, "label": {"0": 0, "1": 1}},
        {"0": {"text": "p", "label": 0}, "1": {"text": "q", "label": 1}},
        {"columns": ["text", "label"], "index": [0, 1], "data": [["p", 0], ["q", 1]]},
        {"schema": {"fields": []}, "data": [{"text": "p", "label": 0}, {"text": "q", "label": 1}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_documents_as_pandas_and_others_write_them(tmp_path: Path, document: Any, indent: int | None) -> None:
    found = read_rows(write(tmp_path / "t.json", json.dumps(document, indent=indent))).rows
    assert [(row["text"], row["label"]) for row in found] == [("p", 0), ("q", 1)]


def test_json_files_that_hold_the_other_kind(tmp_path: Path) -> None:
    lines = '{"text": "p"}\n\n{"text": "q"}\n'
    listed = '[\n{"text": "p"},\n{"text": "q"}]'
    for name in ("t.json", "t.jsonl", "t.ndjson"):
        assert [row["text"] for row in read_rows(write(tmp_path / name, lines)).rows] == ["p", "q"]
        found = read_rows(write(tmp_path / name, listed))
        assert [row["text"] for row in found.rows] == ["p", "q"]
        assert found.lines == [2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", '[{"a": 1},\n{"a": 2},\n]', r"line 3: not JSON \(a comma precedes the end of the list\)"),
        ("t.json", '[{"a": 1}\n{"a": 2}]', r"line 2: not JSON \(a comma is missing"),
        ("t.json", '[{"a": 1},\n{"a": ', r"line 2: not JSON"),
        ("t.json", '[{"a": 1}', r"line 1: not JSON \(the file ends within the list\)"),
        ("t.json", '{"a": [1, 2], "b": [1]}', r"columns of different lengths \(a 2, b 1\)"),
        ("t.json", '"text"', "is JSON but not a table"),
        ("t.json", "{}", "is JSON but not a table"),
        ("t.jsonl", "", "contains no rows"),
        ("t.json", "[]", "contains no rows"),
    ],
)
def test_json_that_is_no_table_is_explained(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read_rows(write(tmp_path / name, content))


def test_lines_that_are_no_rows_are_all_reported(tmp_path: Path) -> None:
    good = '{"text": "t %d", "label": %d}'
    rows = [good % (i, i % 2) for i in range(20)]
    rows[3:3] = [
        '{"text": "cut',
        "[1]",
        '{"text": "a", "text": "b", "label": 1}',
        '{"text": "x", "label": ' + "9" * 5000 + "}",
    ]
    path = write(tmp_path / "t.jsonl", "\n".join(rows))
    with pytest.raises(TaskError) as caught:
        load_task(path)
    message = str(caught.value)
    assert "4 of 24 rows cannot be used" in message
    for part in ("line 4: not JSON", "line 5: expected a JSON object", "line 6: not usable JSON (the field 'text'"):
        assert part in message
    task = load_task(path, skip_bad_rows=True)
    assert sum(map(len, task.splits.values())) == 20
    # Numbers of rows stay those of the file.
    assert max(example.row for examples in task.splits.values() for example in examples) == 23


# --- Texts ---


def test_a_text_that_json_writes_as_nan_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", lines_of([0, 1], [float("nan"), *TEXTS[1:]]))
    with pytest.raises(TaskError, match=r"line 1: the text of 'text' is empty"):
        load_task(path)


def test_a_text_that_looks_missing_is_read_and_noted(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of(["a", "b"], ["nan", "nan", *TEXTS])))
    assert any("2 rows have the text 'nan' in column 'text'" in note for note in task.notes)


def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path) -> None:
    texts = [*TEXTS[:5], "cut \ud83d", *TEXTS[5:]]
    path = write(tmp_path / "t.jsonl", lines_of([0, 1], texts))
    with pytest.raises(TaskError, match=r"line 6: the text of 'text' contains half of a surrogate pair \(\\ud83d\)"):
        load_task(path)
    assert len(label_of_text(load_task(path, skip_bad_rows=True))) == 24
    # A whole pair is a character.
    assert len(label_of_text(load_task(write(path, lines_of([0, 1], [*TEXTS, "\U0001f600"]))))) == 25


def test_a_very_long_text_is_named_or_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", csv_of(["a", "b"], [*TEXTS, "x" * 2_000_000]))
    with pytest.raises(TaskError, match=r"line 26: the text of 'text' has 2,000,000 characters; .* --truncate"):
        load_task(path)
    task = load_task(path, truncate=True)
    assert max(map(len, label_of_text(task))) == 1_000_000
    assert any("1 texts were cut" in note for note in task.notes)


def test_a_text_that_is_a_list_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", lines_of([0, 1], [["a", "b"]] * 24))
    with pytest.raises(TaskError, match=r"'text' contains a list, not a text"):
        load_task(path)


def test_numbers_dates_and_entities_are_texts_as_written(tmp_path: Path) -> None:
    texts = ["007", "3.50", "2024-02-30", "&amp;quot;", "#REF!", "=SUM(A1)"] * 4
    task = load_task(write(tmp_path / "t.csv", csv_of(["a", "b"], [f"{t}" for t in texts])), prompt="{text} {text}:")
    assert set(label_of_text(task)) == set(texts)


# --- What makes a number mean less ---


def test_one_text_with_several_labels_is_noted_with_what_it_costs(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"{text},{label}\n" for text in TEXTS for label in ("neg", "pos"))
    notes = load_task(write(tmp_path / "t.csv", content)).notes
    assert any("24 texts have different labels in different rows (48 rows" in note for note in notes)
    assert any("report split cannot exceed 50.0%" in note for note in notes)


def choice_lines(choices: list[str], label: Any, n: int = 24) -> str:
    return "".join(json.dumps({"text": f"q {i}", "choices": choices, "label": label}) + "\n" for i in range(n))


def test_rows_whose_right_choice_stands_there_twice(tmp_path: Path) -> None:
    twice = choice_lines(["a", "b", " a"], 2)
    with pytest.raises(TaskError, match=r"in all 24 rows the correct choice occurs twice"):
        load_task(write(tmp_path / "t.jsonl", twice))
    fine = "".join(json.dumps({"text": f"r {i}", "choices": ["a", "b", "c"], "label": i % 3}) + "\n" for i in range(24))
    task = load_task(write(tmp_path / "t.jsonl", twice + fine))
    assert sum(map(len, task.splits.values())) == 24
    assert any("24 of 48 rows in which the correct choice occurs twice" in note for note in task.notes)


def test_a_first_choice_that_is_never_right_is_noted(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"q {i}", "choices": ["a", "b", "c"], "label": 1 + i % 2}) for i in range(24)]
    task = load_task(write(tmp_path / "t.jsonl", "\n".join(rows)))
    assert any("Choice 0 is never correct in 24 rows" in note for note in task.notes)


def test_a_label_without_a_row_to_report_or_to_show_is_noted(tmp_path: Path) -> None:
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(TEXTS)] + [("alone", "c")]
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    notes = load_task(write(tmp_path / "t.csv", content)).notes
    assert any("1 label has no row in the report split, so results say nothing about it: c" in note for note in notes)


# --- Labels that only look different, or only look alike ---


@pytest.mark.parametrize("mark", ["\u200e", "\u200f", "\u00ad", "\u200c"])
def test_invisible_characters_around_a_label_make_no_class(tmp_path: Path, mark: str) -> None:
    assert load_task(write(tmp_path / "t.csv", csv_of(["pos", "neg", f"pos{mark}", f"{mark}neg"]))).n_labels == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [("pos", "po\u200ds"), ("pos", "\uff50\uff4f\uff53"), ("1", "01"), ("1", "+1"), ("pos", "'pos'"), ("pos", "pos.")],
)
def test_labels_that_differ_only_in_how_they_are_written_are_noted(tmp_path: Path, one: str, other: str) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of([one, other, "2"])))
    assert task.n_labels == 3
    assert any("differ only in spelling" in note and "(8 rows)" in note for note in task.notes)


@pytest.mark.parametrize("labels", [["0 1", "1"], ["C++", "C#"], ["+", "-"], ["a b", "c"], ["10", "1"]])
def test_labels_that_differ_are_not_noted(tmp_path: Path, labels: list[str]) -> None:
    assert not any("differ only" in note for note in load_task(write(tmp_path / "t.csv", csv_of(labels))).notes)


@pytest.mark.parametrize("labels", [["True", "1", "False", "0"], [True, 1, False, 0]])
def test_truth_values_next_to_numbers_are_noted(tmp_path: Path, labels: list[Any]) -> None:
    task = load_task(write(tmp_path / "t.jsonl", lines_of(labels)))
    assert any("truth values (False, True) as well as 0, 1" in note for note in task.notes)


@pytest.mark.parametrize(
    ("labels", "mark"), [(["?", "a", "b"], "?"), (["-99", "0", "1"], "-99"), (["999", "0", "1"], "999")]
)
def test_what_often_marks_a_missing_label_is_noted(tmp_path: Path, labels: list[str], mark: str) -> None:
    task = load_task(write(tmp_path / "t.csv", csv_of(labels)))
    assert task.n_labels == 3
    assert any(f"Label {mark!r} (8 rows)" in note and "counts as a class" in note for note in task.notes)


@pytest.mark.parametrize("mark", ["n/a", "\\N", "#DIV/0!", "-nan"])
def test_more_marks_of_missing_values(tmp_path: Path, mark: str) -> None:
    with pytest.raises(TaskError, match="line 4: column 'label' has no label but"):
        load_task(write(tmp_path / "t.csv", csv_of(["a", "b", mark])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a\nb", "c"], r"line 1: label a\\nb contains a line break"),
        (["inf", "0", "1"], "contains whole numbers, but 'inf' in 8 rows"),
        (["9" * 20, "0"], "is too large for a class number"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: list[str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(write(tmp_path / "t.jsonl", lines_of(labels)))


def test_dates_are_names_in_every_format(tmp_path: Path) -> None:
    days = [date(2024, 1, 1 + i % 2) for i in range(24)]
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "label": days}), tmp_path / "t.parquet")
    assert load_task(tmp_path / "t.parquet").label_names == ("2024-01-01", "2024-01-02")


# --- Class names and splits that do not fit together ---


def with_class_names(path: Path, names: list[str], texts: list[str] = TEXTS) -> Path:
    about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": texts, "label": [0, 1] * 12})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    return path


def test_splits_whose_class_names_disagree_are_refused(tmp_path: Path) -> None:
    with_class_names(tmp_path / "train.parquet", ["neg", "pos"])
    with_class_names(tmp_path / "test.parquet", ["pos", "neg"], [f"{text} more" for text in TEXTS])
    write(tmp_path / "dataset.json", "{}")
    with pytest.raises(TaskError, match=r"neg, pos in train\.parquet but pos, neg in test\.parquet"):
        load_task(tmp_path)


def test_label_names_in_another_order_than_the_schema_are_refused(tmp_path: Path) -> None:
    with_class_names(tmp_path / "train.parquet", ["neg", "pos"])
    write(tmp_path / "dataset.json", '{"label_names": ["Pos", "Neg"]}')
    with pytest.raises(
        TaskError, match=r"label_names are Pos, Neg, but train.parquet has .* in another order: neg, pos"
    ):
        load_task(tmp_path)
    write(tmp_path / "dataset.json", '{"label_names": ["bad", "good"]}')
    assert load_task(tmp_path).label_names == ("bad", "good")


@pytest.mark.parametrize("mark", ["-1", "-"])
def test_a_test_split_whose_labels_are_hidden_is_left_out(tmp_path: Path, mark: str) -> None:
    write(tmp_path / "train.csv", csv_of(["0", "1"]))
    write(tmp_path / "test.csv", csv_of([mark], [f"{text} more" for text in TEXTS]))
    write(tmp_path / "dataset.json", "{}")
    task = load_task(tmp_path)
    assert task.label_names == ("0", "1")
    assert task.report_split == "report"
    assert any("Left out: split test" in note and "24 rows are unlabelled" in note for note in task.notes)


def test_a_text_that_is_the_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="text column 'label' contains the answer"):
        load_task(write(tmp_path / "t.csv", csv_of(["a", "b"])), text="label")


def test_a_folder_without_a_train_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", csv_of(["a", "b"]))
    write(tmp_path / "dataset.json", "{}")
    with pytest.raises(TaskError, match=r"has no train rows .* splits are: test"):
        load_task(tmp_path)


def test_a_folder_of_tables_without_a_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    write(tmp_path / "mine" / "data" / "train-00000-of-00001.csv", csv_of(["a", "b"]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"mine has no dataset.json. It contains data/train-00000-of-00001.csv"):
        load_task("mine")


# --- What stands in a table's place ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS pointer .*git lfs pull"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS pointer .*git lfs pull"),
        ("t.csv", "<!DOCTYPE html><html>404</html>\n", "a web page, not CSV"),
        ("t.csv.gz", "text,label\na,b\n", "not compressed with gzip.* Remove .gz from its name"),
        ("t.csv", csv_of(["a", "b"]).replace(",", "^"), r"are separated by '\^'"),
        ("t.csv", csv_of(["a", "b"]).replace(",", "::"), "are separated by '::'"),
        ("t.csv", csv_of(["a", "b"]) + csv_of(["a", "b"]), "line 26: the column names are repeated here"),
        (
            "t.csv",
            ("caf\u00e9 th\u00e9 \u00e0,a\n" * 9).encode() + b"caf\xe9,b\n",
            "is UTF-8, but byte 0xe9 in line 10",
        ),
        ("t.jsonl", lines_of(["a", "b"]).replace("}\n", "},\n"), "a comma follows the object.*Remove the comma"),
        ("t.jsonl", lines_of(["a", "b"]).replace('"}', '",}'), "a comma precedes a closing bracket"),
        ("t.jsonl", "{'text': 'x', 'label': 'a'}\n" * 3, r"single quotes.*json\.dumps"),
        ("t.json", json.dumps({"train": [{"text": "x"}], "test": [{"text": "y"}]}), r"several tables \(train, test\)"),
        ("t.json", json.dumps({"data": [{"text": t, "label": t[-1]} for t in TEXTS] + ["x"]}), "row 24 .*found 'x'"),
        ("t.jsonl", lines_of(["a", "b"], ["\u200e\u200f", *TEXTS[1:]]), "line 1: the text of 'text' is empty"),
    ],
)
def test_the_cause_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(write(tmp_path / name, content))


@pytest.mark.parametrize("text", [{"indent": 1}, {}])
def test_objects_one_after_another_are_rows(tmp_path: Path, text: dict[str, int]) -> None:
    rows = [{"text": t, "label": "ab"[i % 2]} for i, t in enumerate(TEXTS)]
    found = read_rows(write(tmp_path / "t.jsonl", "\n".join(json.dumps(row, **text) for row in rows)))  # type: ignore[arg-type]
    assert found.rows == rows
    assert found.lines == [1 + 4 * i if text else 1 + i for i in range(24)]
    assert read_rows(write(tmp_path / "t.jsonl", "".join(map(json.dumps, rows)))).rows == rows


def test_bytes_that_are_no_text_are_called_so(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"caf\u00e9 {i}".encode("latin-1") for i in range(24)], "label": [0, 1] * 12})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(TaskError, match="the text of 'text' contains bytes that are not UTF-8"):
        load_task(tmp_path / "t.parquet")


@pytest.mark.parametrize("address", ["https://example.org/x.csv", "s3://bucket/x.csv"])
def test_an_address_is_no_path(address: str) -> None:
    with pytest.raises(TaskError, match=f"^{address} is an address"):
        load_task(address)


def test_how_a_table_was_read_is_said_where_it_does_not_fit(tmp_path: Path) -> None:
    rows = "".join(f"{text}, well,{'ab'[i % 2]}\n" for i, text in enumerate(TEXTS))
    with pytest.raises(TaskError, match=r"cannot make a report split.*assumed to hold row names"):
        load_task(write(tmp_path / "t.csv", "text,label\n" + rows))


@pytest.mark.parametrize("words", [{"a": "x", "b": None}, ["x", 1]])
def test_label_words_from_python_must_be_texts(tmp_path: Path, words: Any) -> None:
    with pytest.raises(LabelWordError, match=r"is (NoneType|int), not text"):
        load_task(write(tmp_path / "t.csv", csv_of(["a", "b"])), label_words=words)


def test_a_prompt_in_a_message_is_one_short_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", csv_of(["a", "b"]))
    for prompt in ("{te\nxt} L:", "{te" + "x" * 5000 + "} L:"):
        with pytest.raises(TaskError, match="uses the field") as told:
            load_task(path, prompt=prompt)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 600

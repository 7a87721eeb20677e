import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualform.errors import ConfigError, StorageError
from dualform.runs.cell_store import CellKey, CellStore
from dualform.runs.exports import export, records, short, to_csv, to_jsonl, to_latex, to_markdown
from dualform.runs.results import failures_table, overview, results_table, select, sort, where

HOSTILE = {
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "script": "<script>alert(1)</script>",
    "null": "a\x00b",
    "turned": "\u202egnp.exe",
    "pipe": "a | b || c",
    "tex": "&_%$#{}~^\\",
    "lines": "one\ntwo\r\nthree",
    "formula": '=HYPERLINK("http://x")',
    "sum": "@SUM(1)",
    "minus": "-2+3",
    "row end": "[12pt] *",
    "half": "\ud800",
    "markup": "[bold]x[/bold] `code` *a* _b_ ![i](j)",
    "long": "x" * 1_000_000,
}


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "store")


def fill(store: CellStore) -> None:
    """Two models, two tasks, three seeds; `big` has no accuracy of ft."""
    for model in ("small", "big"):
        for task in ("sst2", "mr"):
            for seed in (1, 2, 3):
                accuracy = {"icl": 0.6 + seed / 10} | ({"ft": 0.5} if model == "small" else {})
                facts = {"model": model, "task": task, "seed": seed, "accuracy": accuracy, "seconds": seed * 1.5}
                identity = {"settings": {"k": 4, "seed": seed, "model": model, "task": task, "rates": [1e-3, 0.01]}}
                store.write(CellKey(identity), {}, {"study": "compare", "folded": model == "big", **facts})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """A table that tests only read."""
    store = CellStore(tmp_path_factory.mktemp("filled"))
    fill(store)
    return results_table(store.cells())


def one_row(facts: dict[str, Any], store: CellStore) -> pa.Table:
    store.write(CellKey({"a": 1}), {}, facts)
    return results_table(store.cells())


# ---- the table


def test_a_row_is_a_cell_and_nested_names_are_dotted(table: pa.Table) -> None:
    assert table.num_rows == 12
    assert table.column_names[:7] == ["key", "study", "model", "task", "seed", "accuracy.icl", "accuracy.ft"] or (
        table.column_names[:7] == ["key", "study", "model", "task", "seed", "accuracy.ft", "accuracy.icl"]
    )
    assert table.column_names[-5:] == [
        *("identity.settings.k", "identity.settings.model", "identity.settings.rates"),
        *("identity.settings.seed", "identity.settings.task"),
    ]
    row = where(table, ["model=small", "task=mr", "seed=2"]).to_pylist()
    assert len(row) == 1
    assert row[0]["accuracy.icl"] == pytest.approx(0.8)
    assert row[0]["identity.settings.rates"] == "[0.001, 0.01]"
    types = {name: str(table.schema.field(name).type) for name in ("seed", "seconds", "folded", "model", "accuracy.ft")}
    assert types == {"seed": "int64", "seconds": "double", "folded": "bool", "model": "string", "accuracy.ft": "double"}


def test_what_a_cell_does_not_have_is_null(table: pa.Table) -> None:
    assert set(where(table, ["model=big"]).column("accuracy.ft").to_pylist()) == {None}


def test_values_of_several_kinds_are_a_column_of_text(store: CellStore) -> None:
    for number, value in enumerate([1, "two", None, [3], True, 2**80]):
        store.write(CellKey({"n": number}), {}, {"mixed": value, "large": 2**80, "number": number or 0.5})

    table = results_table(store.cells())

    assert set(table.column("mixed").to_pylist()) == {"1", "two", None, "[3]", "true", str(2**80)}
    assert set(table.column("large").to_pylist()) == {str(2**80)}
    assert set(table.column("number").to_pylist()) == {0.5, 1, 2, 3, 4, 5}


def test_a_fact_is_not_mistaken_for_a_column_of_the_store(store: CellStore) -> None:
    table = one_row({"key": "mine", "finished": "never", "identity.a": 2, "dualform": "9"}, store)

    row = table.to_pylist()[0]
    assert row["key"] == CellKey({"a": 1}).digest
    assert (row["facts.key"], row["facts.finished"], row["facts.dualform"]) == ("mine", "never", "9")
    assert (row["identity.a"], row["facts.identity.a"]) == (1, 2)


def test_facts_of_any_depth_are_listed_or_no_cell(store: CellStore) -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"a": deep}

    table = one_row({"deep": deep}, store)

    assert [name for name in table.column_names if name.startswith("deep")] == ["deep" + ".a" * 200]


def test_no_cells_are_a_table_without_rows() -> None:
    table = results_table([])
    assert (table.num_rows, table.column_names) == (0, ["key"])
    assert where(table, ["model=x"]).num_rows == 0


def test_failures_are_a_table_too(store: CellStore) -> None:
    store.fail(
        CellKey({"a": 1}), {"message": "no memory", "traceback": "x", "attempts": 2}, {"model": "big", "seed": 1}
    )

    row = failures_table(store.failures()).to_pylist()[0]

    assert (row["model"], row["seed"], row["failure.message"], row["failure.attempts"]) == ("big", 1, "no memory", 2)
    assert overview(failures_table(store.failures())).column_names == [
        "model",
        "seed",
        "failure.message",
        "failure.attempts",
    ]


# ---- filters


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        ([], 12),
        (["model=small"], 6),
        (["model = small "], 6),
        (["model==small"], 6),
        (["model!=small"], 6),
        (["model=small,big"], 12),
        (["model=s*"], 6),
        (["model=*"], 12),
        (["model!=*a*"], 6),
        (["model=sm"], 0),
        (["seed=1..2"], 8),
        (["seed=1,3"], 8),
        (["seed=1..2,3"], 12),
        (["seed!=1..2"], 4),
        (["seed>1"], 8),
        (["seed>=1", "seed<3", "task=mr"], 4),
        (["accuracy.icl>0.75"], 8),
        (["accuracy.icl=0.65..0.85"], 8),
        (["icl>0.75"], 8),
        (["accuracy.ft>0"], 6),
        (["accuracy.ft<=0"], 0),
        (["accuracy.ft="], 6),
        (["accuracy.ft!="], 6),
        (["accuracy.ft!=0.5"], 6),
        (["folded=true"], 6),
        (["folded!=yes"], 6),
        (["k=4"], 12),
        (["identity.settings.k!=4"], 0),
        (["rates=[0.001*"], 12),
        (["finished>2020-01-01"], 12),
        (["seed=1e0"], 4),
    ],
)
def test_conditions_keep_the_rows_they_name(table: pa.Table, conditions: list[str], rows: int) -> None:
    assert where(table, conditions).num_rows == rows


def test_a_filter_answers_to_the_obvious_loop(table: pa.Table) -> None:
    kept = where(table, ["accuracy.icl>0.75", "task!=mr", "seed=1..2"]).to_pylist()

    assert kept == [
        row for row in table.to_pylist() if row["accuracy.icl"] > 0.75 and row["task"] != "mr" and 1 <= row["seed"] <= 2
    ]
    assert kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("model", r"--where 'model' is not a condition: give NAME=VALUE"),
        ("=x", "is not a condition"),
        ("\x1b[2J", r"--where '\\x1b\[2J' is not a condition"),
        ("modle=x", "no column is called 'modle'. Columns include model"),
        ("seed=x", "column seed holds numbers, but 'x' is not a number"),
        ("seed=1..x", "column seed holds numbers, but 'x' is not a number"),
        ("seed>", "column seed holds numbers, but '' is not a number"),
        ("folded=maybe", "column folded holds booleans: compare it with true or false, not 'maybe'"),
    ],
)
def test_a_condition_that_makes_no_sense_is_named(table: pa.Table, condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        where(table, [condition])


def test_a_name_that_may_be_several_columns_is_named(store: CellStore) -> None:
    table = one_row({"accuracy.icl": 0.5, "time.icl": 1.0}, store)

    with pytest.raises(ConfigError, match=r"'icl' matches several columns, accuracy.icl, time.icl"):
        where(table, ["icl>0"])


def test_columns_come_in_the_requested_order(table: pa.Table) -> None:
    assert select(table, ["seed", "model"]).column_names == ["seed", "model"]
    assert set(select(table, ["accuracy.*"]).column_names) == {"accuracy.icl", "accuracy.ft"}
    assert select(table, ["*"]).column_names == table.column_names
    assert select(table, ["icl", "accuracy.icl"]).column_names == ["accuracy.icl"]
    with pytest.raises(ConfigError, match=r"no column is called 'acuracy\.icl'\. Columns include accuracy\.icl"):
        select(table, ["acuracy.icl"])
    with pytest.raises(ConfigError, match="no column is called"):
        select(table, ["nothing*"])


def test_rows_are_sorted_by_several_columns_empty_ones_last(table: pa.Table) -> None:
    rows = sort(table, ["-accuracy.ft", "task", "-seed"]).to_pylist()

    assert [(row["accuracy.ft"], row["task"], row["seed"]) for row in rows] == [
        (ft, task, seed) for ft in (0.5, None) for task in ("mr", "sst2") for seed in (3, 2, 1)
    ]
    assert sort(table, ["accuracy.ft"]).column("accuracy.ft").to_pylist()[-6:] == [None] * 6
    assert sort(table, []).equals(table)


def test_the_overview_leaves_out_uninformative_columns(table: pa.Table) -> None:
    assert set(overview(table).column_names) == {*("model", "task", "seed", "accuracy.icl", "accuracy.ft", "seconds")}
    small = overview(where(table, ["model=big", "task=mr"]))
    assert small.column_names == ["model", "task", "seed", "accuracy.icl", "seconds"]


# ---- exports


def test_parquet_csv_and_json_lines_read_back_the_same(table: pa.Table, tmp_path: Path) -> None:
    for ending in ("parquet", "csv", "jsonl"):
        export(table, tmp_path / "new" / f"results.{ending}")

    assert pq.read_table(tmp_path / "new" / "results.parquet").equals(table)
    lines = (tmp_path / "new" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == table.to_pylist()
    with (tmp_path / "new" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy.icl"]) for row in rows] == table.column("accuracy.icl").to_pylist()
    assert {row["accuracy.ft"] for row in rows} == {"0.5", ""}
    assert {row["folded"] for row in rows} == {"true", "false"}


def test_tables_for_papers_look_as_they_should(store: CellStore) -> None:
    store.write(CellKey({"a": 1}), {}, {"model": "smol_lm", "seed": 1, "accuracy.icl": 0.123456, "ok": True})
    table = select(results_table(store.cells()), ["model", "seed", "icl", "ok"])

    assert to_markdown(table) == (
        "| model | seed | accuracy.icl | ok |\n| --- | ---: | ---: | --- |\n| smol\\_lm | 1 | 0.1235 | yes |\n"
    )
    assert to_latex(table) == (
        "% needs \\usepackage{booktabs}\n\\begin{tabular}{lrrl}\n\\toprule\nmodel & seed & accuracy.icl & ok \\\\\n"
        "\\midrule\nsmol\\_lm & 1 & 0.1235 & yes \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_an_unknown_ending_and_a_place_that_refuses_are_named(table: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(
        ConfigError, match=r"results\.xlsx: use a file name ending in \.parquet, \.csv, \.tex, \.md, \.jsonl"
    ):
        export(table, tmp_path / "results.xlsx")
    with pytest.raises(StorageError, match=r"cannot write .*file.*--to"):
        export(table, tmp_path / "file" / "results.csv")
    assert list(tmp_path.glob("*.xlsx")) == []


@pytest.fixture
def hostile(store: CellStore) -> pa.Table:
    return one_row({**HOSTILE, **{f"name {value[:40]}": name for name, value in HOSTILE.items()}}, store)


def test_every_export_of_hostile_text_is_whole_and_without_characters_that_steer(
    hostile: pa.Table, tmp_path: Path
) -> None:
    for ending in ("csv", "tex", "md", "jsonl"):
        export(hostile, tmp_path / f"x.{ending}")
        text = (tmp_path / f"x.{ending}").read_text(encoding="utf-8")
        steering = {c for c in text if (c < " " and c != "\n") or c == "\x7f" or "\x80" <= c < "\xa0" or c == "\u202e"}
        assert steering == set(), ending
        assert "x" * 1_000_000 in text


def test_parquet_and_json_lines_keep_hostile_text_unchanged(hostile: pa.Table, tmp_path: Path) -> None:
    export(hostile, tmp_path / "x.parquet")
    (read,) = pq.read_table(tmp_path / "x.parquet").to_pylist()
    for row in (read, json.loads(to_jsonl(hostile))):
        for name, value in HOSTILE.items():
            # Half a character cannot be written as UTF-8.
            assert row[name] == (value if name != "half" else "\\ud800")


def test_no_cell_of_a_csv_is_a_formula(hostile: pa.Table) -> None:
    head, row = csv.reader(io.StringIO(to_csv(hostile.drop(["long"]))))

    assert len(head) == len(row) == hostile.num_columns - 1
    assert [text for text in [*head, *row] if text.lstrip().startswith(("=", "+", "-", "@"))] == []
    cells = dict(zip(head, row, strict=True))
    assert cells["formula"] == "'" + HOSTILE["formula"]
    assert cells["minus"] == "'-2+3"
    # Numbers below zero are numbers.
    assert to_csv(pa.table({"x": [-1.5]})) == "x\n-1.5\n"


def test_a_row_of_markdown_stays_a_row_without_tags(hostile: pa.Table) -> None:
    lines = to_markdown(hostile).splitlines()

    assert len(lines) == 3
    bars = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines]
    assert bars == [hostile.num_columns + 1] * 3
    assert "<" not in "".join(lines)
    assert "&lt;script&gt;" in lines[2]
    assert r"\[bold\]x" in lines[2]


def test_a_row_of_latex_stays_a_row_of_plain_text(hostile: pa.Table) -> None:
    lines = to_latex(hostile).splitlines()

    assert len(lines) == 8
    for line in (lines[3], lines[5]):
        assert len(re.findall(r"(?<!\\)&", line)) == hostile.num_columns - 1
        bare = re.sub(
            r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]|\{[\[\]*]\}", "", line
        )
        assert bare.endswith(r" \\")
        assert set(bare.removesuffix(r" \\")) & set("\\%$#_{}~^<>|[]*") == set()
    assert not lines[5].startswith("[")


def test_values_for_people_are_short_and_harmless() -> None:
    values = [0.123456, 1e-9, 12345678.0, float("nan"), float("inf"), None, True, 12345678, "a\x1bb\n"]

    assert [short(value) for value in values] == [
        "0.1235",
        "1e-09",
        "1.235e+07",
        "",
        "",
        "",
        "yes",
        "12345678",
        r"a\x1bb\n",
    ]


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    assert records(pa.table({"x": [float("nan"), 1.0, float("-inf")]})) == [{"x": None}, {"x": 1.0}, {"x": None}]

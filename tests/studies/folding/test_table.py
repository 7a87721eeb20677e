import pytest

from dualform.studies.folding.table import axis_table, compositions_table, levels_table, tables, transfer_table
from dualform.studies.folding.words import AXES
from tests.report.example_folding import around, composition, example_folding, point, study, transfer
from tests.report.example_result import empty_result
from tests.studies.comparison.test_table import printed


def test_tables_fit_in_eighty_columns_without_losing_a_number():
    all_tables = tables(example_folding())
    assert len(all_tables) == 1 + len(AXES) + 2
    for table in all_tables:
        text = printed(table)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "…" not in text


def test_the_widest_numbers_still_fit():
    wide = point("method", "a method with a long name", around(1.0), perplexity_ratio=1234.5)
    wide = wide.model_copy(update={"recovered": wide.recovered.model_copy(update={"mean": -123.456})})
    text = printed(axis_table(example_folding(folding=study(points=[wide])), "method"))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert all(expected in text for expected in ("undefined", "1234.50", "97.0 to 103.0 %"))


def test_another_study_has_no_tables():
    assert tables(empty_result(study="folding")) == []
    for table in (levels_table, transfer_table, compositions_table):
        assert table(empty_result(study="folding")).row_count == 0


def test_a_row_contains_icl_with_the_same_demonstrations():
    [row] = [line for line in printed(axis_table(example_folding(), "k")).splitlines() if line.startswith("│ 8 ")]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "8",
        "63.0 %",
        "60.0 to 66.0 %",
        "64.8 %",
        "78.0 %",
        "39.5 %",
    ]


@pytest.mark.parametrize(("axis", "has_column"), [("strength", True), ("k", False)])
def test_perplexity_has_a_column_only_if_it_is_known(axis, has_column):
    assert ("perpl." in printed(axis_table(example_folding(), axis))) is has_column


def test_a_row_contains_the_sum_and_the_fold_alone():
    [row, _] = [line for line in printed(compositions_table(example_folding())).splitlines() if "│ reviews │" in line]
    assert all(expected in row for expected in ("66.0 %", "64.0 to 68.0 %", "71.0 %", "69.0 to 73.0 %"))


def test_square_brackets_in_a_name_are_no_markup():
    name = "[bold]loud[/bold]"
    hostile = study(
        points=[point(name, name)],
        transfer=[transfer(name, 0.5, around(0.0))],
        compositions=[composition([name], {name: (0.5, 0.5)})],
    )
    hostile_tables = tables(example_folding(folding=hostile))
    assert len(hostile_tables) == 4
    for table in hostile_tables[1:]:
        assert name in printed(table, width=200)

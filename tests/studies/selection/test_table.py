import pytest

from dualform.studies.selection.table import (
    choices_table,
    optimism_table,
    similarity_table,
    tables,
)
from tests.report.example_result import empty_result
from tests.report.example_selection import choice, estimate, example_selection, study
from tests.studies.comparison.test_table import printed

TABLES = [optimism_table, choices_table, similarity_table]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_tables_fit_in_eighty_columns_without_losing_a_number(table):
    text = printed(table(example_selection()))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_another_study_has_no_tables():
    assert tables(empty_result(study="selection")) == []
    assert all(table(empty_result(study="selection")).row_count == 0 for table in TABLES)


def test_a_row_contains_the_scores_and_their_optimism():
    [row] = [
        line
        for line in printed(optimism_table(example_selection()), width=200).splitlines()
        if "FT on report" in line and "finetuned" in line
    ]
    assert all(expected in row for expected in ("72.1 %", "66.0 %", "+6.1", "+3.2 to +9.0"))


def test_a_row_contains_the_chosen_settings_and_the_cost_of_the_search():
    [row] = [
        line
        for line in printed(choices_table(example_selection()), width=200).splitlines()
        if "FT on report" in line and "finetuned" in line
    ]
    assert all(expected in row for expected in ("seed 2, order 1, rate 0.01", "1,900,000", "36"))


def test_the_range_is_the_last_row_of_each_measure():
    lines = [line for line in printed(similarity_table(example_selection())).splitlines() if "SimAOU" in line]
    assert len(lines) == 6
    assert "highest minus lowest" in lines[-1]
    assert "0.050 to 0.110" in lines[-1]


def test_square_brackets_in_a_name_are_no_markup():
    name = "[bold]loud[/bold]"
    hostile = choice(name, name, icl=(0.1, 0, 0.2), ft=(0.1, 0, 0.2), similarity={name: estimate((0.1, 0, 0.2))})
    for table in tables(example_selection(selection=study(hostile))):
        assert name in printed(table, width=200)

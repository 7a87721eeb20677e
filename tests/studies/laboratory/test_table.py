import pytest

from dualform.report.numerals import MISSING
from dualform.studies.laboratory.table import claim_table, claim_tables
from tests.report.example_laboratory import claim, estimate, example_laboratory, laboratory, study
from tests.report.example_result import empty_result
from tests.studies.comparison.test_table import printed


def cells(text: str) -> list[list[str]]:
    """Each claim as its cells, the lines of a cell joined."""
    rows: list[list[str]] = [[""] * 4]
    for line in text.splitlines():
        if line.startswith(("├", "┡")):
            rows.append([""] * 4)
        elif line.startswith("│"):
            parts = [part.strip() for part in line.split("│")[1:-1]]
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], parts, strict=True)]
    return rows[1:]


def test_there_is_a_table_for_each_study_with_claims():
    tables = claim_tables(example_laboratory())
    assert [str(table.title).split(":")[0] for table in tables] == ["constructed", "trained", "layers"]
    assert claim_tables(empty_result(study="regression")) == []
    assert claim_tables(laboratory(study())) == []


def test_tables_fit_in_eighty_columns_without_losing_a_number():
    wide = [claim("A " + "claim " * 30, estimate(-1.234567e-300, 1.2e-300)), claim(expected="x" * 60)]
    for table in [*claim_tables(example_laboratory()), claim_table(study(claims=wide))]:
        text = printed(table)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "…" not in text


def test_a_claim_is_listed_with_the_expected_and_the_measured_value():
    first, *_, permuted = cells(printed(claim_tables(example_laboratory())[0]))
    assert first == [
        "The constructed layer makes the prediction of one step of gradient descent.",
        "below 1e-12",
        "3.30e-16",
        "holds",
    ]
    assert permuted[2:] == ["1.40e+09 1.20e+09 to 1.60e+09", "fails, as it must"]


def test_problems_are_named_in_words():
    statuses = [row[2:] for row in cells(printed(claim_tables(example_laboratory())[1]))]
    assert [each for _, each in statuses] == ["holds", "does not hold", "must fail, but holds", "could not be measured"]
    assert statuses[-1][0] == MISSING


def test_a_case_that_must_fail_and_has_no_number_is_not_passed_off_as_failing():
    unmeasured = study(claims=[claim(found=estimate(None), holds=False, must_fail=True)])
    assert cells(printed(claim_table(unmeasured)))[0][2:] == [MISSING, "must fail: could not be measured"]


@pytest.mark.parametrize("text", ["[bold]l[/bold]", "[red]", "[/]"])
def test_square_brackets_are_no_markup(text):
    loud = study(text, question=text, claims=[claim(text, expected=text)])
    assert printed(claim_table(loud), width=200).count(text) == 4

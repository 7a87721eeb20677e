import pytest

from dualform.report.numerals import MISSING
from dualform.studies.momentum.table import (
    cost_table,
    difference_table,
    momentum_tables,
    perplexity_table,
    pretrained_table,
    regression_table,
    tasks_table,
)
from tests.report.example_momentum import arm, curve, estimate, example_momentum, paired, pretrained, regression, study
from tests.report.example_result import empty_result
from tests.studies.comparison.test_table import printed

TABLES = (difference_table, perplexity_table, tasks_table, regression_table, pretrained_table, cost_table)


def with_arms(*arms, **changes):
    return example_momentum(momentum=study(arms=list(arms), **changes))


def test_tables_fit_in_eighty_columns_without_losing_a_number():
    tables = momentum_tables(example_momentum())
    assert len(tables) == len(TABLES)
    for table in tables:
        text = printed(table)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "…" not in text


def test_the_widest_numbers_still_fit():
    wide = arm(
        "momentum",
        0.0,
        eta=0.123,
        parameters=1_234_567_890,
        perplexity={length: estimate(12345.6, 1234.5) for length in ("256", "1024", "2048")},
        difference={"256": paired(-12.3456, 1.5)},
    )
    result = with_arms(
        arm("vanilla", 0.0),
        wide,
        regression=regression(curves=[curve("linear-momentum 0.123", 1e4, 0.1, -12.3)], references={}),
        pretrained=[pretrained("an-organisation/a-model-1.5b", -12.3).model_copy(update={"base": 12345.6})],
    )
    text = "".join(printed(table) for table in momentum_tables(result))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert all(in_terminal in text for in_terminal in ("-12.3456", "11,111 to 13,580", "1,234,567,890", "12,346"))


def test_another_study_has_no_tables():
    assert momentum_tables(empty_result(study="momentum")) == []
    for table in TABLES:
        assert table(empty_result(study="momentum")).row_count == 0


def test_a_study_of_which_nothing_is_known_has_only_the_tables_with_rows():
    bare = with_arms(arm("vanilla", None), regression=None, pretrained=[])
    assert [str(table.title) for table in momentum_tables(bare)] == ["What it costs"]


def test_an_arm_is_listed_with_its_difference_change_test_and_seeds():
    lines = printed(difference_table(example_momentum())).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("│ momentum 0.3"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines[at : at + 2]]
    assert rows[0] == ["momentum 0.3", "-0.0081", "-0.81 %", "< 0.001", "5"]
    assert rows[1][0] == "minus vanilla"
    assert all(" to " in cell for cell in rows[1][1:3])
    assert "256 tokens" in str(difference_table(example_momentum()).title)


def test_one_seed_has_neither_interval_nor_test_and_a_failed_arm_has_dashes():
    result = with_arms(arm("vanilla", 0.0), arm("momentum", -0.01, eta=0.1, seeds=1), arm("momentum", None, eta=0.5))
    text = printed(difference_table(result))
    assert " to " not in text
    [line] = [line for line in text.splitlines() if "momentum 0.1" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["momentum 0.1", "-0.0100", "-1.00 %", MISSING, "1"]
    [failed] = [line for line in text.splitlines() if "momentum 0.5" in line]
    assert [cell.strip() for cell in failed.split("│")[2:-1]] == [MISSING] * 4


def test_perplexity_has_a_column_a_length_up_to_three():
    assert [column.title for column in perplexity_table(example_momentum()).columns[1:]] != []
    text = printed(perplexity_table(example_momentum()))
    assert text.index(" 64 ") < text.index(" 128 ") < text.index(" 256 ")
    many = arm("vanilla", 0.0, perplexity={str(2**n): estimate(20.0) for n in range(6, 12)})
    assert len(perplexity_table(with_arms(many)).terminal().columns) == 4
    assert len(perplexity_table(with_arms(many)).columns) == 7


def test_a_baseline_has_no_difference_and_no_step_of_its_own():
    [vanilla] = [line for line in printed(cost_table(example_momentum())).splitlines() if "│ vanilla" in line]
    assert [cell.strip() for cell in vanilla.split("│")[1:-1]] == ["vanilla", "", "4,214,912", "", ""]
    [learned] = [line for line in printed(cost_table(example_momentum())).splitlines() if "│ learned" in line]
    assert [cell.strip() for cell in learned.split("│")[2:-1]] == ["0.3", "4,214,928", "16", "1.08 x"]
    [vanilla] = [line for line in printed(tasks_table(example_momentum())).splitlines() if "│ vanilla" in line]
    assert [cell.strip() for cell in vanilla.split("│")[2:-1]] == ["3", "49.3 %", "", "", ""]


def test_regression_has_a_block_a_condition_number_with_exact_predictors_last():
    text = printed(regression_table(example_momentum()))
    rows = [line.split("│")[1:3] for line in text.splitlines() if line.startswith("│") and "to" not in line]
    assert [row[0].strip() for row in rows if row[0].strip()] == ["1", "100"]
    assert text.index("heavy-ball 0.3") < text.index("least squares (exact)") < text.index("100")


@pytest.mark.parametrize("name", ["[bold]loud[/bold]", "[red]"])
def test_square_brackets_in_a_name_are_no_markup(name):
    loud = arm("momentum", -0.01, eta=0.1, name=name, baseline="vanilla")
    result = with_arms(
        arm("vanilla", 0.0),
        loud,
        regression=regression(curves=[curve(name, 1.0, 0.1, -0.1)], references={name: [curve(name, 1.0, 0.1, None)]}),
        pretrained=[pretrained(name, 0.0)],
    )
    tables = momentum_tables(result)
    assert len(tables) == len(TABLES)
    for table in tables:
        assert name in printed(table, width=200)

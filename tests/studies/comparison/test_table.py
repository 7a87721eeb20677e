import io

import pytest
from rich.console import Console
from rich.table import Table as RichTable

from dualform.report.numerals import MISSING, decimal, percent, significant
from dualform.report.table import Table
from dualform.result import Accuracy, Estimate, Similarity
from dualform.studies.comparison.similarity_tables import similarity_table
from dualform.studies.comparison.table import accuracy_table, against_table, by_label_table, cost_table
from tests.report.example_result import empty_result, example_result, old_result


def printed(table: Table | RichTable, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table.terminal() if isinstance(table, Table) else table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "table", [accuracy_table, similarity_table, cost_table, against_table], ids=lambda table: table.__name__
)
@pytest.mark.parametrize("result", [example_result(), old_result()], ids=["new", "old"])
def test_tables_fit_in_eighty_columns_without_losing_a_number(table, result):
    narrow, wide = printed(table(result)), printed(table(result), width=400)
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert "…" not in narrow
    assert max(len(line.rstrip()) for line in wide.splitlines()) <= 80


@pytest.mark.parametrize(
    "table", [accuracy_table, similarity_table, cost_table, against_table], ids=lambda table: table.__name__
)
def test_an_empty_result_makes_an_empty_table(table):
    assert table(empty_result()).row_count == 0
    printed(table(empty_result()))


def test_accuracies_are_in_order_and_a_collapse_is_marked():
    text = printed(accuracy_table(example_result()))
    assert text.index("zero-shot") < text.index("in-context") < text.index("finetuned") < text.index("folded")
    [zero_shot] = [line for line in text.splitlines() if "zero-shot" in line]
    assert "94.7 % !" in zero_shot
    assert text.count("!") == 1


def test_similarities_have_floor_and_ceiling_and_the_caption_names_the_floors():
    text = printed(similarity_table(example_result()))
    [raw] = [line for line in text.splitlines() if "SimAOU, raw" in line]
    assert [cell.strip() for cell in raw.split("│")[2:7]] == ["0.143", "0.131 to 0.155", "0.093", "0.334", "0.21"]
    [kendall] = [line for line in text.splitlines() if "Kendall, tokens" in line]
    assert kendall.split("│")[6].strip() == MISSING
    assert "Floor: shuffled labels; chance level (Rec2FTP)" in " ".join(text.split())
    assert any("length of ICL's" in line and "3.100 to 3.300" in line for line in text.splitlines())


def test_the_widest_numbers_still_fit_in_eighty_columns():
    result = example_result()
    low = Similarity(mean=-0.00012, ci95=(-0.1234, -0.1111), n=2000)
    placed = result.calibrated["sim_aou"].model_copy(update={"mean": -12.345, "floor": -0.00012, "ceiling": -0.00011})
    keys = list(result.similarity)
    wide = example_result(similarity=dict.fromkeys(keys, low), calibrated=dict.fromkeys(keys, placed))
    text = printed(similarity_table(wide))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("-0.123 to -0.111") == text.count("-12.35") + text.count("-12.34") == len(keys)


def test_without_scales_similarities_are_next_to_the_random_control_and_companions_below():
    lines = printed(similarity_table(old_result())).splitlines()
    [sim_aou] = [line for line in lines if "SimAOU " in line]
    assert "0.186" in sim_aou
    assert "0.001" in sim_aou
    assert any("total variation" in line and "0.112" in line for line in lines)
    assert any("relative error" in line and "0.660 to 0.700" in line and "2,000" in line for line in lines)
    assert any("chance level" in line and "0.553" in line for line in lines)
    assert any("a_future_measure" in line and MISSING in line for line in lines)


def test_costs_are_in_the_units_of_their_columns():
    [icl] = [line for line in printed(cost_table(example_result())).splitlines() if "in-context" in line]
    assert all(number in icl for number in ("1.21", "18.0", "1,158", "330"))


def test_agreement_with_icl_is_a_column_where_it_is_known():
    [fold] = [line for line in printed(accuracy_table(example_result())).splitlines() if "folded" in line]
    assert [cell.strip() for cell in fold.split("│")[1:-1]] == [
        "folded",
        "70.9 %",
        "67.7 to 74.1 %",
        "2,000",
        "61.0 %",
        "88.4 %",
    ]
    [icl] = [line for line in printed(accuracy_table(example_result())).splitlines() if "in-context" in line]
    assert icl.split("│")[6].strip() == ""
    assert "like ICL" not in printed(accuracy_table(old_result()))


def test_a_learner_that_is_never_cheaper_is_marked_as_such():
    lines = printed(against_table(example_result())).splitlines()
    [fold] = [line for line in lines if "folded" in line]
    assert all(text in fold for text in ("88.4 %", "86.4 to 90.4 %", "94.3 %", " 13 ", "1,084"))
    [lora] = [line for line in lines if "LoRA" in line]
    assert [cell.strip() for cell in lora.split("│")[5:7]] == ["3", "never"]
    [probe] = [line for line in lines if "linear probe" in line]
    assert [cell.strip() for cell in probe.split("│")[5:7]] == [MISSING, MISSING]


def test_square_brackets_in_a_name_are_no_markup():
    similarity = {"[bold]loud[/bold]": example_result().similarity["sim_aou"]}
    assert "[bold]loud[/bold]" in printed(similarity_table(example_result(similarity=similarity)))


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (12.34, "12.3"), (1234.5, "1,230"), (0.9996, "1.000"), (1.2e-7, "1.20e-07")],
)
def test_three_digits_are_significant(number, text):
    assert significant(number) == text


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), "text", True])
def test_what_is_no_number_is_a_dash(nothing):
    assert percent(nothing) == decimal(nothing) == significant(nothing) == MISSING


def test_a_small_number_is_not_rounded_to_zero():
    assert decimal(0.0001) == "1.0e-04"
    assert decimal(0.0) == "0.000"


def test_names_in_the_table_by_label_are_broken_between_words_alone():
    each = Accuracy(mean=0.7, ci95=(0.4, 1.0), n=24, per_seed={}, macro_f1=Estimate(mean=0.5, ci95=(0.25, 0.75), n=24))
    worst = {"negative": Estimate(mean=0.5, ci95=(0.0, 1.0), n=12)}
    keys = ("zsl", "icl", "ft", "lora", "probe", "fold")
    result = empty_result(accuracy={key: each.model_copy(update={"per_label": worst}) for key in keys})
    text = printed(by_label_table(result))
    for word in ("zero-shot", "in-context", "(ICL)", "finetuned", "LoRA", "probe", "folded"):
        assert word in text

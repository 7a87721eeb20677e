import io

import pytest
from rich.console import Console

from dualform.report.numerals import MISSING, rounded, rounded_interval
from dualform.report.phrases import gap_in_prose, score_in_prose, share_in_prose
from dualform.report.table import BLANK, Cell, Column, Row, Table, estimate_cell, learner_row
from dualform.result import Estimate
from tests.report.parsed_page import ATTACKS, Page

TABLE = Table(
    "Accuracy",
    (
        Column("learner"),
        Column("accuracy", "share", interval=True),
        Column("over majority, points", "difference", where="page"),
        Column("n", "count"),
        Column("top answer", "share", where="terminal"),
    ),
    (
        learner_row(
            "icl",
            estimate_cell(Estimate(mean=0.721, ci95=(0.681, 0.761), n=2000), "share"),
            Cell(0.0812, "difference", (-0.01, 0.172)),
            Cell(2000, "count"),
            Cell(0.95, "share", flag="collapsed"),
        ),
        learner_row("ft", estimate_cell(Estimate(mean=0.75, ci95=(0.2, 0.9), n=4), "share"), BLANK, BLANK, BLANK),
        Row((Cell("50 % & more_"), Cell(0.5, "share"), BLANK, BLANK, BLANK), style="reference"),
    ),
    caption="As run.",
    note="Only here.",
)


def printed(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(table.terminal())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("cell", "text", "interval"),
    [
        (Cell(0.7213, "share", (0.68, 0.76)), "72.1 %", "68.0 to 76.0 %"),
        (Cell(0.0411, "points", (0.03, 0.052)), "4.1", "3.0 to 5.2"),
        (Cell(-0.041, "difference", (-0.06, 0.0)), "-4.1", "-6.0 to +0.0"),
        (Cell(0.18649, "score", (0.17, 0.201)), "0.186", "0.170 to 0.201"),
        (Cell(-0.001, "ratio", (-0.1, 0.1)), "0.00", "-0.10 to 0.10"),
        (Cell(1158, "count"), "1,158", ""),
        (Cell(12.345, "seconds"), "12.3", ""),
        (Cell(0.0004, "p"), "< 0.001", ""),
        (Cell(None, "p"), "no test", ""),
        (Cell(float("nan"), "score"), MISSING, ""),
        (Cell(0.9, "share", (None, None)), "90.0 %", ""),
        (Cell(7, "count", override="never"), "never", ""),
        (BLANK, "", ""),
    ],
)
def test_a_number_is_written_as_its_kind_says(cell, text, interval):
    assert (cell.text, cell.interval) == (text, interval)


def test_a_share_of_few_answers_is_a_count_without_an_interval():
    cell = TABLE.rows[1].cells[1]
    assert (cell.text, cell.interval) == ("3 of 4", "")


def test_the_terminal_shows_its_own_columns_and_a_flag():
    lines = printed(TABLE).splitlines()
    assert max(map(len, lines)) <= 80
    [icl] = [line for line in lines if "in-context" in line]
    cells = [cell.strip() for cell in icl.strip("│").split("│")]
    assert cells == ["in-context (ICL)", "72.1 %", "68.1 to 76.1 %", "2,000", "95.0 % !"]
    assert "As run." in "".join(lines)
    assert "Only here." not in "".join(lines)
    assert TABLE.row_count == 3


def test_the_page_shows_every_interval_below_its_value():
    page = Page(TABLE.html())
    text = " ".join(" ".join(page.text).split())
    assert "learner accuracy over majority, points n in-context (ICL) 72.1 % 68.1 to 76.1 % +8.1 -1.0 to +17.2" in text
    assert "top answer" not in text
    assert "Only here." in text
    assert [each for tag, each in page.tags if tag == "th" and each.get("scope") == "row"] == [{"scope": "row"}] * 3


def test_text_of_others_is_no_markup_in_any_notation():
    rows = tuple(Row((Cell(attack), Cell(attack, notes=(attack,), flag=attack))) for attack in ATTACKS)
    table = Table(ATTACKS[0], (Column(ATTACKS[1]), Column(ATTACKS[2])), rows, caption=ATTACKS[0], note=ATTACKS[1])
    tags = {tag for tag, _ in Page(table.html()).tags}
    assert tags == {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "strong", "p"}
    assert "[bold]" in printed(Table("", (Column("name"),), (Row((Cell("[bold]"),)),)))
    assert "<script" not in table.markdown()


def test_latex_and_markdown_hold_what_the_page_holds():
    assert TABLE.latex() == (
        "\\begin{tabular}{lrrr}\n\\toprule\n"
        "learner & accuracy & over majority, points & n \\\\\n\\midrule\n"
        "in-context (ICL) & 72.1 \\% (68.1 to 76.1 \\%) & +8.1 (-1.0 to +17.2) & 2,000 \\\\\n"
        "finetuned (FT) & 3 of 4 &  &  \\\\\n"
        "50 \\% \\& more\\_ & 50.0 \\% &  &  \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    lines = TABLE.markdown().splitlines()
    assert lines[:2] == ["| learner | accuracy | over majority, points | n |", "| --- | ---: | ---: | ---: |"]
    assert lines[4] == "| 50 % &amp; more\\_ | 50.0 % |  |  |"


def test_a_data_frame_holds_the_numbers_unrounded():
    frame = TABLE.frame()
    assert list(frame.columns) == [
        *("learner", "accuracy", "accuracy low", "accuracy high", "accuracy n"),
        *("over majority, points", "over majority, points low", "over majority, points high", "n"),
    ]
    assert frame["accuracy"].tolist() == [0.721, 0.75, 0.5]
    assert frame["accuracy high"][0] == 0.761
    # Of four answers there is no interval, but the n is known.
    assert frame["accuracy high"].isna().tolist() == [False, True, True]
    assert frame["accuracy n"][1] == 4


def test_an_empty_table_says_so():
    assert not Table("", TABLE.columns, ())
    assert TABLE


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.7213, (0.681, 0.761), "72 % (68 to 76 %)"),
        (0.7213, (0.716, 0.727), "72.1 % (71.6 to 72.7 %)"),
        (0.7213, (0.2, 0.9), "72 % (20 to 90 %)"),
        (0.7213, (None, None), "72.1 %"),
    ],
)
def test_a_share_in_a_sentence_has_the_digits_that_its_interval_supports(value, interval, text):
    assert share_in_prose(Estimate(mean=value, ci95=interval, n=900)) == text


def test_a_score_in_a_sentence_keeps_an_end_that_is_not_zero_apart_from_zero():
    assert score_in_prose(Estimate(mean=0.186, ci95=(0.17, 0.201), n=9)) == "0.19 (0.17 to 0.20)"
    assert score_in_prose(Estimate(mean=0.05, ci95=(0.004, 0.1), n=9)) == "0.05 (0.004 to 0.100)"
    assert (rounded(None, None), rounded_interval((None, 1.0))) == (MISSING, MISSING)
    assert gap_in_prose(-0.0374, (-0.06, -0.01)) == "4 points"

from markupsafe import Markup

from dualform.report.page import Fact, Page, render
from dualform.report.section import Figure, Section
from dualform.report.table import Cell, Column, Row, Table
from tests.report.parsed_page import ATTACKS
from tests.report.parsed_page import Page as Parsed

TABLE = Table("Numbers", (Column("name"), Column("value", "score")), (Row((Cell("a"), Cell(0.5, "score"))),))
EMPTY = Table("Nothing", TABLE.columns, ())


def test_a_section_shows_what_it_holds_and_leaves_out_what_is_empty():
    inner = [Section("empty", "Empty", note="only a note"), Section("inner", "Inner", ["said"])]
    shown = Section(
        "outer", "Outer", charts=[Figure("none", None, "")], tables=[EMPTY, TABLE], sections=inner
    ).without_empty_parts()
    assert shown is not None
    assert (list(shown.charts), list(shown.tables)) == ([], [TABLE])
    assert [each.id for each in shown.sections] == ["inner"]
    assert (
        Section("empty", "Empty", tables=[EMPTY], note="how to read it", sections=[inner[0]]).without_empty_parts()
        is None
    )


def test_sections_are_closed_until_opened_and_the_contents_link_to_them():
    page = Parsed(
        render(
            Page(
                "title",
                "The answer.",
                sections=[Section("one", "One", ["x"]), Section("two", "Two", ["y"], detail=False)],
                glossary=[("word", "meaning"), ("other", "")],
            )
        )
    )
    closed = {each["id"] for tag, each in page.tags if tag == "details" and "open" not in each}
    assert closed == {"one", "glossary"}
    links = [each["href"].removeprefix("#") for tag, each in page.tags if tag == "a"]
    assert links == ["top", "one", "two", "glossary"]
    assert set(links) <= page.ids()
    assert "other" not in [text.strip() for text in page.text]


def test_the_answer_and_the_warnings_come_before_everything_else():
    facts = [Fact("queries", "143", "all")]
    page = Page("t", "Use it.", warnings=["Beware."], facts=facts, sections=[Section("s", "S", ["later"])])
    text = " ".join(Parsed(render(page)).text)
    assert text.index("Use it.") < text.index("Beware.") < text.index("143") < text.index("later")


def test_text_of_others_is_escaped_wherever_it_stands():
    bad = ATTACKS[1]
    section = Section("s", bad, [bad], tables=[TABLE], note=bad, as_list=True, sections=[Section("i", bad, [bad])])
    html = render(
        Page(bad, bad, bad, bad, [bad], facts=[Fact(bad, bad, bad)], sections=[section], glossary=[(bad, bad)])
    )
    page = Parsed(html)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "".join(page.text).count(bad) >= 10


def test_markup_that_is_vouched_for_is_kept():
    html = render(Page("t", "a", sections=[Section("s", "S", body=Markup("<em id='mine'>x</em>"))]))
    assert "mine" in Parsed(html).ids()

import json

import pytest

from dualform.studies.comparison.explorer import LONGEST_PIECE, MOST_TOKENS, displayed, explorer_section
from dualform.studies.pages import render_page
from tests.report.example_attention import DEMONSTRATIONS, QUERIES, example_attention
from tests.report.example_result import empty_result, example_result
from tests.report.parsed_page import ATTACKS, Page

STEERING = "\x00\x1b[31m\x9b\u200f\u202e\u2066\u2028\ufeff"


def page_of(**changes) -> Page:
    return Page(render_page(empty_result(), example_attention(**changes)))


def test_the_explorer_follows_the_section_on_similarity():
    few = {key: example_result().similarity[key] for key in ("rec2ftp", "agreement")}
    html = render_page(example_result(similarity=few), example_attention())
    order = [
        html.index(f'<details id="{name}"') for name in ("against", "accuracy", "similarity", "attention", "sweep")
    ]
    assert order == sorted(order)


def test_without_a_record_the_page_has_no_explorer():
    html = render_page(empty_result())
    assert "look" not in Page(html).ids()
    assert "look-query" not in html
    assert explorer_section(example_attention(queries=())) is None


def test_the_page_allows_the_explorers_script_and_still_loads_nothing():
    page = page_of()
    policy = next(tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == len(page.code()) == 2


def test_each_query_is_named_by_who_is_right_and_how_it_begins():
    section = explorer_section(example_attention())
    assert section is not None
    assert section["options"] == [
        "1. ICL and FT correct it: Review: charming and lively Sentiment:",
        "2. all are right: Review: nothing works here Sentiment:",
        "3. only FT is right: Review: naïve but fine Sentiment:",
    ]


def test_the_page_holds_the_records_numbers_as_they_are():
    record = example_attention()
    data = page_of().specs()["look-data"]
    assert data["layers"] == record.n_layers
    for mine, theirs in zip(data["examples"], record.examples, strict=True):
        assert mine["icl"] == json.loads(theirs.icl.model_dump_json())
        assert mine["ranks"] == (theirs.ft_ranks and theirs.ft_ranks.codes)
    assert [each["answer"] for each in data["demonstrations"]] == ["positive", "negative"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" film", " film"),
        ("\n", "↵\n"),
        ("a\r\n\tb", "a↵\n⇥b"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x00", "\\x00"),
        ("\u202etfel", "\\u202etfel"),
        ("שלום 日本 😀", "שלום 日本 😀"),
        ("<script>", "<script>"),
    ],
)
def test_control_characters_are_escaped_and_the_rest_is_unchanged(text, expected):
    assert displayed(text) == expected


def test_a_long_text_is_cut_with_the_number_of_characters_omitted():
    cut = displayed("x" * 1_000_000)
    assert cut == "x" * LONGEST_PIECE + "… [999,880 more characters]"


def test_a_hostile_data_set_makes_a_harmless_page():
    attacks = [*ATTACKS, STEERING]
    html = render_page(
        empty_result(),
        example_attention(demonstrations=[(*attacks, " positive")], queries=[attacks], answers=(attacks[1], STEERING)),
    )
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "b"})
    assert not [name for _, tag in page.tags for name in tag if name.startswith("on")]
    assert len(page.code()) == 2
    assert not set(html) & set(STEERING.replace("[31m", ""))
    assert page.specs()["look-data"]["examples"][0]["pieces"][: len(ATTACKS)] == ATTACKS


def test_a_megabyte_of_text_and_ten_thousand_tokens_are_cut_for_the_page():
    record = example_attention(demonstrations=[["x" * 1_000_000, " y"]], queries=[["z"] * 10_000], layers=1)
    html = render_page(empty_result(), record)
    assert len(html) < 250_000
    data = Page(html).specs()["look-data"]
    assert (len(data["examples"][0]["pieces"]), data["examples"][0]["tokens"]) == (MOST_TOKENS, 10_000)


@pytest.mark.parametrize("changes", [{"demonstrations": ()}, {"ranked": False}, {"demonstrations": DEMONSTRATIONS[:1]}])
def test_whatever_is_missing_is_left_out(changes):
    ids = page_of(**changes).ids()
    assert ("look-shown" in ids) == (changes.get("demonstrations") != ())
    assert ("look-order" in ids) == ("demonstrations" not in changes)


def test_the_first_query_is_the_first_of_the_record():
    data = page_of().specs()["look-data"]
    assert "".join(data["examples"][0]["pieces"]) == "".join(QUERIES[0]).replace("\n", "↵\n")

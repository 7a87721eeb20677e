import json

import pytest

from dualform.result import Result
from dualform.studies.folding.words import AXES
from dualform.studies.pages import render_page
from tests.report.example_folding import around, composition, example_folding, perplexity, point, study, transfer
from tests.report.example_result import empty_result
from tests.report.parsed_page import ATTACKS, Page


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_folding())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def attacked() -> Result:
    """The example with every text from outside replaced by an attack."""
    hostile = study(
        points=[
            *(point(attack, attack, note=attack) for attack in ATTACKS),
            *(point("method", attack, note=attack, perplexity_ratio=1.1) for attack in ATTACKS),
        ],
        perplexity=perplexity((1.1, 1.0, 1.2)).model_copy(update={"source": ATTACKS[0]}),
        transfer=[transfer(attack, 0.5, around(0.0)) for attack in ATTACKS],
        compositions=[composition(ATTACKS, dict.fromkeys(ATTACKS, (0.5, 0.6)))],
    )
    return example_folding(
        folding=hostile,
        model={"name": ATTACKS[0], ATTACKS[1]: ATTACKS[2]},
        task={"name": ATTACKS[1], "label_words": ATTACKS, "prompt": "\n".join(ATTACKS), "n_report": 5},
        config={ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={"command": ATTACKS[0]},
        warnings=ATTACKS,
    )


def test_a_complete_study_has_every_section_and_chart(page):
    sections = {"verdict", "levels", *AXES, "plain", "transfer", "compositions", "run", "prompt", "config", "glossary"}
    assert sections <= page.ids()
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert boxes == set(page.specs()) == {f"spec-{axis}" for axis in AXES}


def test_sections_are_in_page_order(html):
    places = [html.index(f'<details id="{axis}"') for axis in AXES]
    assert places == sorted(places)


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = text_of(page)
    for expected in ("dualform: folding for smollm2-135m on reviews", "Folding, 400 queries"):
        assert expected in text
    for expected in (
        "KV momentum A query still reads the prompt's keys. 72.4 % 69.4 to 75.4 %",
        "134,515,008",
        "1,158",
    ):
        assert expected in text
    for expected in ("agnews 46.0 % 43.0 to 49.0 % 38.0 % 35.0 to 41.0 % -8.0 -11.0 to -5.0", "reviews + agnews"):
        assert expected in text
    assert "multiplies perplexity by 1.043 (1.021 to 1.066), from 18.20 to 18.98" in text


def test_columns_without_a_number_are_left_out_and_icl_is_shown_if_it_varies(page):
    text = text_of(page)
    assert "demonstrations accuracy ICL agreement with ICL recovered 2 58.0 %" in text
    assert "unlabelled texts accuracy agreement with ICL recovered 16 62.0 %" in text
    assert "ridge strength accuracy agreement with ICL recovered ridge strength perplexity ratio 0.001" in text


def test_the_policy_allows_the_two_scripts_of_the_page_and_nothing_is_loaded(page):
    [policy] = [each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == len(page.code()) == 2
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "srcset", "action"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")


def test_hostile_text_becomes_text_and_no_tag(page):
    hostile = Page(render_page(attacked()))
    assert hostile.code() == page.code()
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in hostile.tags if "onerror" in attributes]
    text = "".join(hostile.text)
    for attack in ATTACKS:
        assert attack in text
        assert attack in json.dumps(hostile.specs()["spec-method"]).replace('\\"', '"')
    assert {"axis-1", "axis-2", "axis-3", "axis-4"} <= hostile.ids()


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"perplexity": None}, "plain"),
        ({"transfer": []}, "transfer"),
        ({"compositions": []}, "compositions"),
        ({"points": [point("method", "ridge")]}, "k"),
    ],
)
def test_a_section_without_data_is_left_out(changes, section):
    page = Page(render_page(example_folding(folding=study(**changes))))
    assert section not in page.ids()
    assert "method" in page.ids()


def test_a_study_without_finetuning_does_not_mention_it():
    assert "finetun" not in text_of(Page(render_page(example_folding(folding=study(ft=None)))))


def test_an_empty_study_still_makes_a_page():
    page = Page(render_page(empty_result(study="folding")))
    assert "This result holds no folding study." in " ".join(page.text)
    assert not page.specs()
    bare = study(points=[], perplexity=None, transfer=[], compositions=[])
    assert "levels" in Page(render_page(example_folding(folding=bare))).ids()


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_folding().to_json())) == html

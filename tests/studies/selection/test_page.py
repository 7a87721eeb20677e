import json

import pytest

from dualform.result import Result
from dualform.studies.pages import render_page
from tests.report.example_result import empty_result
from tests.report.example_selection import choice, estimate, example_selection, study
from tests.report.parsed_page import ATTACKS, Page


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_selection())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def attacked() -> Result:
    """The example with every text from outside replaced by an attack."""
    choices = [
        choice(
            attack,
            attack,
            icl=(0.1, 0, 0.2),
            ft=(0.1, 0, 0.2),
            seed=number,
            similarity={attack: estimate((0.1, 0, 0.2))},
        )
        for number, attack in enumerate(ATTACKS)
    ]
    for number, attack in enumerate(ATTACKS):
        scores = choices[number].scores
        choices[number] = choices[number].model_copy(update={"scores": scores | {attack: scores["icl"]}})
    return example_selection(
        selection=study(*choices),
        model={"name": ATTACKS[0], ATTACKS[1]: ATTACKS[2]},
        task={"name": ATTACKS[1], "label_words": ATTACKS, "prompt": "\n".join(ATTACKS), "n_report": 5},
        config={ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={"command": ATTACKS[0]},
        warnings=ATTACKS,
    )


def test_a_complete_study_has_every_section_and_chart(page):
    sections = {"verdict", "choices", "search", "similarity", "run", "prompt", "config", "glossary"}
    assert sections <= page.ids()
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert boxes == set(page.specs()) == {"spec-optimism", "spec-similarity"}


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = " ".join(page.text)
    for expected in ("dualform: selection for smollm2-135m on reviews", "ICL on report", "seed 2, order 1, rate 0.01"):
        assert expected in text
    for expected in ("72.1 %", "+6.1", "+3.2 to +9.0", "1,900,000", "SimAOU", "0.180 to 0.220", "highest minus lowest"):
        assert expected in text
    assert "134,515,008" in text


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
        assert attack in json.dumps(hostile.specs()["spec-optimism"]).replace('\\"', '"')


def test_an_empty_study_still_makes_a_page():
    for result in (empty_result(study="selection"), example_selection(selection=study())):
        page = Page(render_page(result))
        assert "This result holds no selection study." in " ".join(page.text)
        assert not page.specs()


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_selection().to_json())) == html

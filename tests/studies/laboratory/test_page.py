import json

import pytest

from dualform.report.numerals import MISSING
from dualform.result import Result
from dualform.studies.laboratory.result import LabRow, LabTable
from dualform.studies.pages import render_page
from tests.report.example_laboratory import chart, claim, curve, estimate, example_laboratory, laboratory, study
from tests.report.example_result import empty_result
from tests.report.parsed_page import ATTACKS, Page

STUDIES = ["constructed", "trained", "phases", "layers"]


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_laboratory())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def links(page: Page) -> list[str]:
    return [attributes["href"] for tag, attributes in page.tags if tag == "a"]


def attacked() -> Result:
    """A laboratory in which every text that others wrote is an attack."""
    hostile = [
        study(
            attack,
            question=attack,
            answer=attack,
            claims=[claim(attack, expected=attack, source=attack), claim(attack, holds=False)],
            charts=[chart(curve(attack, [1.0, 2.0], 0.1), title=attack, x=attack, y=attack, note=attack)],
            tables=[
                LabTable(title=attack, columns=[attack], rows=[LabRow(name=attack, cells=[estimate(1.0)])], note=attack)
            ],
            notes=[attack],
        )
        for attack in ATTACKS
    ]
    config = {ATTACKS[0]: {ATTACKS[1]: ATTACKS}}
    return laboratory(*hostile, config=config, environment={"command": ATTACKS[0]}, warnings=ATTACKS)


def test_a_complete_laboratory_has_every_section_and_chart(page):
    assert {*STUDIES, "overview", "verdict", "warnings", "run", "config", "glossary"} <= page.ids()
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    expected = {f"spec-{name}" for name in ("constructed-0", "trained-0", "trained-1", "phases-0", "layers-0")}
    assert boxes == set(page.specs()) == expected


def test_counts_and_problems_are_at_the_top(html, page):
    text = text_of(page)
    top = text[: text.index("The same with softmax.")]
    assert "5 of 7 claims hold, and 2 of 3 cases that must fail do; 1 could not be measured." in top
    assert "Does not hold (trained): Two recurrent layers reach GD++." in top
    assert "Holds, but must fail (trained): A layer of a wrong rate does so too." in top
    assert html.index('class="lead"') < html.index('id="verdict"') < html.index('id="constructed"')


def test_the_contents_lead_to_every_study_in_order(html, page):
    contents = [f"#{name}" for name in ("top", "overview", "verdict", *STUDIES, "run", "glossary")]
    assert links(page) == [*contents, *(f"#{name}" for name in STUDIES)]
    assert {link[1:] for link in links(page)} <= page.ids()
    places = [html.index(f'<details id="{name}"') for name in STUDIES]
    assert places == sorted(places)


def test_claims_are_listed_with_expected_and_measured_values(page):
    text = text_of(page)
    for fragment in (
        "one step of gradient descent. arXiv:2212.07677v2, proposition 1 below 1e-12 3.30e-16 1 holds",
        "The same with softmax. below 1e-12 0.2310 0.2190 to 0.2430 5 fails, as it must",
        "at most 0.110 0.1312 0.1270 to 0.1354 5 does not hold",
        "0.2073 0.2063 to 0.2083 5 must fail, but holds",
        f"any number {MISSING} 5 could not be measured",
    ):
        assert fragment in text, fragment
    marked = [attributes.get("class") for _, attributes in page.tags if attributes.get("data-label") == "status"]
    assert marked == ["good"] * 6 + ["bad"] * 3 + ["good"]


def test_tables_notes_and_remarks_are_shown(page):
    text = text_of(page)
    for fragment in (
        f"Loss by depth trained GD GD++ 1 layer 0.2071 0.2060 to 0.2082 0.2070 {MISSING}",
        "GD++ has no first layer of its own.",
        "Depth 5 was trained for half the steps.",
        "Log scale: training steps. Mean over 10,000 sequences",
        "1 point is zero or negative, and cannot be drawn on a log axis.",
        "Least squares leaves the chart where it is more than 1,000 times away from all models.",
    ):
        assert fragment in text, fragment


def test_nothing_is_loaded_and_two_scripts_may_run(page):
    [policy] = [each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == len(page.code()) == 2
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "srcset", "action"} & set(attributes)
    assert all(link.startswith("#") for link in links(page))


def test_what_scrolls_can_be_reached_and_moved_by_keyboard(page):
    scrolling = [
        attributes
        for tag, attributes in page.tags
        if attributes.get("class") == "scroll" and attributes.get("role") == "region"
    ]
    names = [each["aria-label"].split(":")[0] for each in scrolling]
    assert names == ["Studies", "constructed", "trained", "Loss by depth", "layers"]
    assert all(each["tabindex"] == "0" for each in scrolling)
    described = [attributes["aria-label"] for _, attributes in page.tags if "data-chart" in attributes]
    assert described[1].startswith("Loss while training: half the mean squared error over training steps, for linear")


def test_hostile_text_becomes_text_and_no_tag(page):
    hostile = Page(render_page(attacked()))
    assert hostile.code() == page.code()
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in hostile.tags if "onerror" in attributes]
    text = "".join(hostile.text)
    specs = json.dumps(hostile.specs()).replace('\\"', '"')
    for attack in ATTACKS:
        assert text.count(attack) > 10
        assert attack in specs
    assert {f"#study-{place}" for place in range(1, 5)} <= set(links(hostile))


def test_studies_with_a_name_that_is_already_taken_get_another_anchor():
    page = Page(render_page(laboratory(study("trained"), study("trained"), study("run"), study("shift"))))
    assert links(page)[3:7] == ["#study-1", "#study-2", "#study-3", "#shift"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))


def test_a_study_of_nothing_but_its_question_still_makes_a_page():
    page = Page(render_page(laboratory(study())))
    text = text_of(page)
    assert "No claim was tested." in text
    assert "constructed-claims" not in page.ids()
    assert "vegaEmbed =" not in "".join(page.code())
    assert "claims that hold" not in text


def test_awkward_numbers_still_make_a_page():
    estimates = [estimate(None), estimate(1e300, 1e299), estimate(0.0, 0.0), estimate(-1e-300)]
    sparse = LabTable(
        title="sparse",
        columns=["a", "b"],
        rows=[LabRow(name="none", cells=[None] * 2), LabRow(name="some", cells=[estimate(1e300), None])],
    )
    odd = study(
        claims=[claim(found=each) for each in estimates],
        charts=[
            chart(curve("nothing", [None, None])),
            chart(curve("zero", [0.0, 0.0]), log_y=True),
            chart(curve("huge", [1e300, 1.0]), curve("tiny", [1e-300, 2.0]), log_y=True),
        ],
        tables=[sparse],
    )
    page = Page(render_page(laboratory(odd)))
    text = text_of(page)
    assert set(page.specs()) == {"spec-constructed-2"}
    assert "1.00e+300 9.00e+299 to 1.10e+300" in text
    assert f"none {MISSING} {MISSING} some 1.00e+300 {MISSING}" in text
    assert "There is nothing to draw. 2 points have no number." in text
    assert "There is nothing to draw. Log scale: squared error. 2 points are zero or negative" in text


def test_tiles_show_the_requested_sizes(page):
    text = text_of(page)
    # A study may take fewer: it is its notes that say so.
    for tile in ("seeds 5 ", "dimension of inputs 10 requested", "examples in context 10 requested"):
        assert tile in text, tile


def test_a_result_with_a_setting_that_was_removed_is_still_read(html):
    older = example_laboratory(config=example_laboratory().config | {"resamples": 1000})
    page = Page(render_page(Result.from_json(older.to_json())))
    assert "resamples: 1000" in text_of(page)
    assert "resamples" not in html


def test_the_glossary_explains_intervals_and_exact_predictors(page):
    text = text_of(page)
    assert "Student's, over seeds." in text
    assert "bootstrap" not in text
    assert "Computed from the examples by a formula, not trained: nearest neighbours" in text


def test_an_empty_laboratory_still_makes_a_page():
    for result in (empty_result(study="regression"), laboratory()):
        page = Page(render_page(result))
        assert "This result holds no study of the laboratory." in " ".join(page.text)
        assert not page.specs()


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_laboratory().to_json())) == html

import json

import pytest

from dualform.result import Result
from dualform.studies.pages import render_page
from dualform.studies.stability.result import ModelStability, Stability
from tests.report.example_result import empty_result
from tests.report.example_stability import (
    LARGE,
    SMALL,
    contrast,
    example_model,
    example_stability,
    learner,
    one_model,
)
from tests.report.parsed_page import ATTACKS, Page


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_stability())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def attacked() -> Result:
    """The example with every text from outside replaced by an attack."""
    models: dict[str, ModelStability] = {}
    for attack in ATTACKS:
        model = example_model(attack, 10 + len(models))
        icl = model.learners["icl"]
        runs = [
            run.model_copy(update={"plain": run.plain.model_copy(update={"majority_label": f" {attack}"})})
            for run in icl.runs
        ]
        labels = dict.fromkeys(["true", attack], icl.labels["true"])
        hostile = icl.model_copy(update={"runs": runs, "labels": labels})
        learners = model.learners | {"icl": hostile, attack: hostile, f"{attack}@0.1": hostile}
        models[attack] = model.model_copy(update={"learners": learners, "model": model.model | {attack: attack}})
    contrasts = [
        contrast("ft", 0.02, 0.05, 0.4, (0.2, 0.8), ATTACKS[0]),
        contrast(ATTACKS[1], 0.02, 0.05, 0.4, (0.2, 0.8), ATTACKS[1]),
        contrast("icl", 0.02, 0.05, 0.4, (0.2, 0.8), ATTACKS[2], ATTACKS[3], question="size"),
    ]
    return example_stability(
        stability=Stability(models=models, contrasts=contrasts),
        task={"name": ATTACKS[0], "label_words": ATTACKS, "prompt": "\n".join(ATTACKS), "n_report": 5},
        config={"models": ATTACKS, ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={ATTACKS[2]: [ATTACKS[0]]},
        warnings=ATTACKS,
    )


def test_a_complete_study_has_every_section(page):
    sections = {"verdict", "warnings", "runs", "contrasts", "size", "fair", "collapse", "variance", "labels"}
    assert sections | {"run", "prompt", "config", "glossary"} <= page.ids()


def test_every_chart_has_a_box_and_a_specification(page):
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert boxes == set(page.specs())
    assert len(boxes) == 5


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = " ".join(page.text)
    for expected in (
        f"dualform: stability for {SMALL}, {LARGE} on reviews",
        "0.15 to 0.40",
        "30.0 %",
        "20.0 to 40.0 %",
    ):
        assert expected in text
    for expected in (
        "134,515,008",
        "4 sets, 2 orders, rate 0.001",
        "FT, rate 0.01",
        "contextual calibration",
        "residual",
    ):
        assert expected in text
    assert f"dualform stability {SMALL} {LARGE} --task reviews" in text


def test_the_policy_allows_the_two_scripts_of_the_page_and_nothing_is_loaded(page):
    [policy] = [each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == len(page.code()) == 2
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "srcset", "action"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")


def test_style_sheets_load_nothing(html):
    style = html[html.index("<style>") : html.index("</style>")]
    assert "th .under" in style
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_text_becomes_text_and_no_tag(page):
    hostile = Page(render_page(attacked()))
    assert hostile.code() == page.code()
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in hostile.tags if "onerror" in attributes]
    text = "".join(hostile.text)
    for attack in ATTACKS:
        assert attack in text
        assert attack in json.dumps(hostile.specs()["spec-accuracy"]).replace('\\"', '"')


def test_an_empty_study_still_makes_a_page():
    for result in (empty_result(study="stability"), example_stability(stability=None)):
        page = Page(render_page(result))
        assert "This result holds no stability study." in " ".join(page.text)
        assert not page.specs()


@pytest.mark.parametrize(
    ("result", "sections"),
    [
        (one_model({"icl": learner(0.6, 0.1, 0.1)}), {"labels", "contrasts", "size"}),
        (one_model({"zsl": learner(0.5, 0, 0, sets=1, orders=1)}), {"labels", "contrasts", "size", "variance"}),
        (one_model({"icl": learner(0.6, 0.1, 0.1, calibrated=False)}, warnings=[]), {"labels", "warnings"}),
    ],
    ids=["ICL alone", "zero-shot alone", "multiple choice"],
)
def test_a_section_without_data_is_left_out(result, sections):
    page = Page(render_page(result))
    assert not sections & page.ids()
    assert "runs" in page.ids()


def test_a_recorded_command_line_is_shown_as_it_was_typed():
    typed = "dualform stability 'my model' --task reviews  --orders 3"
    text = "".join(Page(render_page(one_model(environment={"command": typed}))).text)
    assert text.count(typed) == 1
    assert "other settings" not in text


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_stability().to_json())) == html

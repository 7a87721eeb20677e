import json
from typing import Any

import pytest

from dualform.result import Result
from dualform.studies.pages import render_page
from tests.report.example_momentum import (
    arm,
    broken,
    curve,
    estimate,
    example_momentum,
    paired,
    pretrained,
    regression,
    score,
    study,
)
from tests.report.example_result import empty_result
from tests.report.parsed_page import ATTACKS, Page

BARE = {"training", "controls", "tasks"}
PARTS = ["perplexity", "lengths", "training", "controls", "tasks", "regression", "pretrained", "published", "cost"]


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_momentum())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def with_arms(*arms, **changes) -> Result:
    return example_momentum(momentum=study(arms=list(arms), **changes))


def attacked() -> Result:
    """The example in which every text that others wrote is an attack."""
    scores = [score(attack, 0.5, 0.4, paired(0.1, 0.01)) for attack in ATTACKS]
    arms = [
        arm("vanilla", 0.0, name=ATTACKS[0], tasks=scores),
        *(arm("momentum", 0.0, eta=0.1, name=attack, baseline=ATTACKS[0], tasks=scores) for attack in ATTACKS[1:]),
        arm(ATTACKS[1], 0.3, name="another", baseline=ATTACKS[3], learned_eta=[0.1]),
        arm("momentum", None, name="lost", baseline=ATTACKS[2], difference={ATTACKS[0]: paired(0.1, 0.01)}),
    ]
    curves = [curve(attack, 1.0, 0.1, -0.1) for attack in ATTACKS]
    hostile = study(
        recipe=ATTACKS[0],
        arms=arms,
        regression=regression(curves=curves, references=dict.fromkeys(ATTACKS, curves)),
        pretrained=[pretrained(attack, 0.01) for attack in ATTACKS],
    )
    return example_momentum(
        momentum=hostile,
        model={"name": ATTACKS[0], ATTACKS[1]: ATTACKS[2]},
        config={ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={"command": ATTACKS[0]},
        warnings=ATTACKS,
    )


def test_a_complete_study_has_every_section_and_chart(page):
    sections = {"verdict", *PARTS, "run", "config", "glossary"}
    assert sections <= page.ids()
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert (
        boxes
        == set(page.specs())
        == {f"spec-{name}" for name in ("difference", "lengths", "training", "tasks", "regression")}
    )


def test_sections_stand_in_the_order_of_reading(html):
    places = [html.index(f'id="{part}"') for part in PARTS]
    assert places == sorted(places)


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = text_of(page)
    for fragment in ("dualform: momentum attention, recipe small", "nats a token"):
        assert fragment in text
    for fragment in ("momentum 0.9 minus vanilla +0.0382 +0.03", "256 tokens vanilla 33.12 32.77 to 33.47 29.37"):
        assert fragment in text
    for fragment in ("4,194,304 tokens in sequences of 256", "learned 0.3 0.031 0.120 0.241 0.420"):
        assert fragment in text
    for fragment in (
        "chance level 51.0 % 26.0 % 50.0 %",
        "heavy ball, 3 steps (exact) 0.018",
        "smollm2-135m 0.1 18.42 31.27 17.20",
    ):
        assert fragment in text
    assert "convolution 4,217,984 3,072 1.08" in text


def test_the_papers_numbers_are_compared_with_this_runs_where_it_has_them(page):
    text = text_of(page)
    assert "validation perplexity, 1,024 tokens 15.14 15.02 -0.79 %" in text
    assert "validation perplexity, 256 tokens 19.50 19.37 -0.67 % 26.05 25.70 to 26.40 25.7" in text
    assert "accuracy, cb 43.9 % 46.8 % +2.9 points 45.0 % 42.0 to 48.0 % 45." in text
    assert "accuracy, mean of the six 51.9 % 54.7 % +2.8 points" in text
    assert "one run each: no interval, no seed" in text


def test_a_run_that_shares_nothing_with_the_paper_has_no_columns_there():
    bare: dict[str, Any] = {"perplexity": {"64": estimate(20.0)}, "tasks": []}
    text = text_of(
        Page(render_page(with_arms(arm("vanilla", 0.0, **bare), arm("momentum", 0.0, eta=0.1, **bare), length=64)))
    )
    assert "This run shares neither length nor task with the paper." in text
    assert "paper, one run each number vanilla momentum change training" in text


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
        assert attack in json.dumps(hostile.specs()["spec-regression"]).replace('\\"', '"')
        assert attack in json.dumps(hostile.specs()["spec-tasks"]).replace('\\"', '"')


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"regression": None, "pretrained": []}, {"regression", "pretrained"}),
        ({"arms": [arm("vanilla", 0.0, tasks=[], curve=[])], "pretrained": []}, {"pretrained", "published", *BARE}),
        ({"arms": [arm("vanilla", 0.0), arm("convolution", 0.0, tasks=[])]}, {"published", "controls"}),
    ],
)
def test_a_section_without_data_is_left_out(changes, gone):
    page = Page(render_page(example_momentum(momentum=study(**changes))))
    assert set(PARTS) - page.ids() == gone


def test_one_seed_and_failed_runs_still_make_a_page():
    failed = arm("momentum", None, eta=0.5, difference={"256": broken()}, perplexity={"256": estimate(None)})
    lonely = arm("momentum", -0.01, eta=0.1, seeds=1, step_ratio=None)
    page = Page(render_page(with_arms(arm("vanilla", 0.0), lonely, failed)))
    text = text_of(page)
    assert "momentum attention cannot be compared with vanilla" in text
    assert "“momentum 0.5” could not be compared with “vanilla”" in text
    assert {"spec-difference", "spec-training"} <= set(page.specs())


def test_kinds_that_were_not_trained_are_not_explained():
    text = text_of(Page(render_page(with_arms(arm("vanilla", 0.0), arm("momentum", 0.0, eta=0.1)))))
    assert "Nesterov" not in text
    assert "Softmax attention." in text


def test_an_empty_study_still_makes_a_page():
    page = Page(render_page(empty_result(study="momentum")))
    assert "This result holds no comparison of momentum attention with vanilla." in " ".join(page.text)
    assert not page.specs()
    assert "perplexity" not in Page(render_page(with_arms(regression=None, pretrained=[]))).ids()


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_momentum().to_json())) == html

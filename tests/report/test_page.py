import json
import re
from html.parser import HTMLParser

import pytest

from dualform.report.page import json_for_script, render_page
from dualform.result import Result, Similarity
from tests.report.example_result import empty_result, example_result

ATTACKS = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "<!-- {{ 7 * 7 }} --!>", "\"'>&lt;b"]


class Page(HTMLParser):
    """The tags, their attributes, the text and the scripts of a page, as a browser's parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._within: tuple[str, dict[str, str]] = ("", {})
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = (tag, dict(attrs))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._within = ("", {})

    def handle_data(self, data):
        if self._within[0] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._within[0] != "style":
            self.text.append(data)

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def code(self) -> list[str]:
        return [text for attributes, text in self.scripts if attributes.get("type") != "application/json"]

    def specs(self) -> dict[str, dict]:
        return {
            attributes["id"]: json.loads(text)
            for attributes, text in self.scripts
            if attributes.get("type") == "application/json"
        }


@pytest.fixture(scope="module")
def html() -> str:
    return render_page(example_result())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def small_result(**changes) -> Result:
    """The example without most of its layers and heads, which take most of the time."""
    similarity = {key: example_result().similarity[key] for key in ("rec2ftp", "agreement")}
    similarity["sim_aou"] = Similarity(mean=0.1, ci95=(0.0, 0.2), n=9, per_layer=[0.1, None], per_head=[[0.1], [None]])
    return example_result(**({"similarity": similarity} | changes))


def attacked_result() -> Result:
    """An example in which every text that others wrote is an attack."""
    words = [f" {attack}" for attack in ATTACKS]
    result = example_result()
    predictions = {
        key: each.model_copy(update={"majority_label": words[0], "counts": dict.fromkeys(words, 500)})
        for key, each in result.predictions.items()
    }
    for number, attack in enumerate(ATTACKS):
        predictions[attack] = predictions["zsl"].model_copy(update={"majority_label": words[number]})
    hostile = {f"{attack}": Similarity(mean=0.1, ci95=(0, 0.2), n=5, per_layer=[0.1]) for attack in ATTACKS}
    return example_result(
        model={"name": ATTACKS[0], ATTACKS[1]: ATTACKS[2]},
        task={"name": ATTACKS[1], "label_words": words, "prompt": "\n".join(ATTACKS), "n_report": ATTACKS[0]},
        config={ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={ATTACKS[2]: [ATTACKS[0]], "nested": {ATTACKS[3]: ATTACKS[1]}},
        warnings=ATTACKS,
        predictions=predictions,
        accuracy=result.accuracy | dict.fromkeys(ATTACKS, result.accuracy["zsl"]),
        cost=result.cost | dict.fromkeys(ATTACKS, result.cost["zsl"]),
        similarity=result.similarity | hostile,
        controls=result.controls | dict.fromkeys(ATTACKS, hostile),
        trials=[each.model_copy(update={"learner": ATTACKS[0], "status": ATTACKS[1]}) for each in result.trials],
    )


def test_a_complete_result_has_every_section(page):
    sections = {"verdict", "warnings", "accuracy", "predictions", "similarity", "controls", "layers", "heads"}
    sections |= {"rec2ftp", "trials", "cost", "run", "prompt", "config", "glossary"}
    assert sections <= page.ids()


def test_every_chart_has_a_box_and_a_specification(page):
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert boxes == set(page.specs())
    assert len(boxes) == 6


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = " ".join(page.text)
    for shown in ("dualform: smollm2-135m on reviews", "72.1 %", "68.1 to 76.1 %", "433 of 533", "66.4 %"):
        assert shown in text
    for shown in ("+14.8 points", "59 of 190", "492 of 862", "0.186", "1,158", "143", "a_future_measure", "30 used"):
        assert shown in text
    for shown in ("dualform compare smollm2-135m reviews --seeds 1,2,3,4,5", "total variation", "untrained model"):
        assert shown in text


def test_the_lift_over_chance_has_its_interval(page):
    assert "+11.2 to +18.7 points" in " ".join("".join(page.text).split())


def test_agreement_is_explained_as_a_share_beside_its_chance_level(page):
    text = " ".join(page.text)
    row = text[text.index("Output agreement") : text.index("Linear relaxation")]
    for shown in ("Share of the queries", "0.790", "chance level", "0.553", "KL(ICL, FT), nats"):
        assert shown in row


def test_relaxation_is_a_cosine_by_layer_and_head_beside_its_relative_error(page):
    text = " ".join(page.text)
    row = text[text.index("Linear relaxation") :]
    row = row[: row.index("a_future_measure")]
    for shown in ("Cosine with the true output", "0.720", "relative error", "0.680", "0.660 to 0.700"):
        assert shown in row
    for chart in ("spec-layers", "spec-heads"):
        assert "Linear relaxation" in json.dumps(page.specs()[chart])


@pytest.mark.parametrize("study", ["comparison", "another"])
def test_a_recorded_command_line_is_shown_as_it_was_typed(study):
    typed = "dualform compare 'my model' reviews --seeds 1..5  --limit 20 <&-"
    page = Page(render_page(small_result(study=study, environment={"command": typed, "device": "cpu"})))
    text = "".join(page.text)
    assert text.count(typed) == 1
    assert "--seeds 1,2,3,4,5" not in text
    assert "other settings" not in text


def test_nothing_on_the_page_is_loaded(page):
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}, tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        assert "url(" not in attributes.get("style", "")
    assert not [code for code in page.code() if re.search(r"^\s*(import\s|import\()|\bimport\(['\"]http", code, re.M)]


def test_style_sheets_load_nothing(html):
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_two_scripts_of_the_page_and_no_network(page):
    [policy] = [each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == len(page.code()) == 2
    assert "http" not in policy


def test_the_libraries_are_embedded_once(page):
    engine, _ = page.code()
    assert "window.vegaEmbed" in engine
    assert engine.count("window.vegaEmbed=") == 1


def test_the_page_is_smaller_than_three_megabytes(html):
    assert len(html.encode()) < 3_000_000


def test_hostile_text_becomes_text_and_no_tag():
    plain, hostile = Page(render_page(example_result())), Page(render_page(attacked_result()))
    assert hostile.code() == plain.code()
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert not [attributes for _, attributes in hostile.tags if "onerror" in attributes]
    text = "".join(hostile.text)
    for attack in ATTACKS:
        assert attack in text


def test_hostile_text_survives_inside_a_chart_as_data():
    specs = Page(render_page(attacked_result())).specs()
    assert ATTACKS[1] in json.dumps(specs["spec-predictions"]).replace('\\"', '"')


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_for_a_script_tag_has_no_angle_bracket_and_reads_back(attack):
    written = json_for_script({attack: [attack]})
    assert "<" not in written
    assert json.loads(written) == {attack: [attack]}


def test_json_without_the_escape_would_end_the_script():
    """The case in which the claim fails: plain JSON does not protect."""
    broken = Page(f'<script type="application/json">{json.dumps(ATTACKS[1])}</script>')
    assert "img" in {tag for tag, _ in broken.tags}


def test_json_with_a_number_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Out of range float values"):
        json_for_script({"mean": float("nan")})


def test_an_empty_result_still_makes_a_page():
    page = Page(render_page(empty_result()))
    assert "This result holds no accuracies and no measures of likeness." in " ".join(page.text)
    assert page.ids() == {"run"}
    assert not page.scripts


@pytest.mark.parametrize(
    ("field", "empty", "section"),
    [
        ("accuracy", {}, "accuracy"),
        ("predictions", {}, "predictions"),
        ("similarity", {}, "similarity"),
        ("controls", {}, "controls"),
        ("cost", {}, "cost"),
        ("trials", [], "trials"),
        ("warnings", [], "warnings"),
        ("task", {}, "prompt"),
        ("config", {}, "config"),
        ("demonstrations", None, "nothing"),
    ],
)
def test_a_section_without_data_is_left_out(field, empty, section):
    page = Page(render_page(small_result(**{field: empty})))
    assert section not in page.ids()
    assert "accuracy" in page.ids() or field == "accuracy"


def test_a_result_read_back_from_its_file_makes_the_same_page(html):
    assert render_page(Result.from_json(example_result().to_json())) == html


def test_a_chosen_rate_at_the_edge_of_the_range_is_pointed_out():
    result = small_result()
    edge = [
        each.model_copy(update={"chosen": each.learning_rate == 1e-4}) for each in result.trials if each.learner == "ft"
    ]
    text = "".join(Page(render_page(small_result(trials=edge))).text)
    row = text[text.index("chosen at the edge of the range") :][:200]
    assert "yes" in row
    assert "yes" not in "".join(Page(render_page(result)).text).split("chosen at the edge of the range")[1][:200]

import itertools
import json
import re

import pytest

from dualform.report.numerals import MISSING, percent, percent_interval
from dualform.result import Result, Similarity
from dualform.studies.comparison.calibration_words import calibration_sentences
from dualform.studies.pages import render_page
from tests.report.example_result import empty_result, example_result, old_result
from tests.report.parsed_page import ATTACKS, Page


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
    scores = result.classification["icl"]
    scores = scores.model_copy(
        update={
            "labels": words[:2],
            "per_class": dict(zip(words, scores.per_class.values(), strict=False)),
        }
    )
    hostile = {f"{attack}": Similarity(mean=0.1, ci95=(0, 0.2), n=5, per_layer=[0.1]) for attack in ATTACKS}
    assert result.fold is not None
    hostile_fold = result.fold.model_copy(
        update={
            "method": ATTACKS[0],
            "source": ATTACKS[1],
            "plain_source": ATTACKS[2],
            "similarity": dict.fromkeys(ATTACKS, hostile),
        }
    )
    return example_result(
        model={"name": ATTACKS[0], ATTACKS[1]: ATTACKS[2]},
        task={"name": ATTACKS[1], "label_words": words, "prompt": "\n".join(ATTACKS), "n_report": ATTACKS[0]},
        config={ATTACKS[0]: {ATTACKS[1]: ATTACKS}},
        environment={ATTACKS[2]: [ATTACKS[0]], "nested": {ATTACKS[3]: ATTACKS[1]}},
        warnings=ATTACKS,
        predictions=predictions,
        accuracy=result.accuracy | dict.fromkeys(ATTACKS, result.accuracy["zsl"]),
        classification=result.classification | dict.fromkeys(ATTACKS, scores),
        cost=result.cost | dict.fromkeys(ATTACKS, result.cost["zsl"]),
        similarity=result.similarity | hostile,
        controls=result.controls | dict.fromkeys(ATTACKS, hostile),
        calibrated=dict.fromkeys(
            [*ATTACKS, "sim_aou"], result.calibrated["sim_aou"].model_copy(update={"control": ATTACKS[0]})
        ),
        tests=[each.model_copy(update={"first": ATTACKS[0], "second": ATTACKS[1]}) for each in result.tests],
        rate_sweep=[
            each.model_copy(update={"similarity": dict.fromkeys(ATTACKS, each.accuracy)}) for each in result.rate_sweep
        ],
        against_icl=result.against_icl | dict.fromkeys(ATTACKS, result.against_icl["zsl"]),
        fold=hostile_fold,
        trials=[each.model_copy(update={"learner": ATTACKS[0], "status": ATTACKS[1]}) for each in result.trials],
    )


def test_a_complete_result_has_every_section(page):
    sections = {"verdict", "warnings", "accuracy", "predictions", "similarity", "controls", "layers", "heads"}
    sections |= {
        "rec2ftp",
        "trials",
        "cost",
        "run",
        "prompt",
        "config",
        "glossary",
        "pairs",
        "sweep",
        "against",
        "fold",
        "by-label",
        "calibration",
    }
    assert sections <= page.ids()


def test_every_chart_has_a_box_and_a_specification(page):
    boxes = {attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes}
    assert boxes == set(page.specs())
    names = {"against", "alike", "accuracy", "predictions", "bands", "layers", "heads", "sweep", "trials"}
    assert boxes == {f"spec-{name}" for name in names | {"confusion", "reliability"}}


def test_the_page_shows_the_numbers_that_the_result_holds(page):
    text = " ".join(page.text)
    for value in ("dualform: smollm2-135m on reviews", "72.1 %", "68.1 to 76.1 %", "433 of 533", "66.4 %"):
        assert value in text
    for value in ("+14.8 points", "59 of 190", "492 of 862", "0.186", "1,158", "143", "a_future_measure", "30 used"):
        assert value in text
    for value in ("dualform compare smollm2-135m reviews --seeds 1,2,3,4,5", "total variation", "untrained model"):
        assert value in text


def test_scores_by_class_and_of_probabilities_are_in_tables(page):
    text = " ".join(page.text)
    probe = example_result().classification["probe"]
    for value in ("Scores beyond accuracy", "balanced accuracy", "11.8 % at probability 0", "by chance"):
        assert value in text
    precision = probe.per_class[" Positive"].precision
    assert percent(precision.mean) in text
    assert percent_interval(precision.ci95) in text
    for sentence in calibration_sentences(example_result()):
        assert sentence in text


def test_the_section_per_class_is_closed_and_exists_once(page):
    sections = [
        (tag, attributes) for tag, attributes in page.tags if attributes.get("id") in ("by-label", "calibration")
    ]
    assert [tag for tag, _ in sections] == ["details", "details"]
    assert all("open" not in attributes for _, attributes in sections)


def test_a_result_without_these_scores_has_its_old_tables():
    older = Page(render_page(example_result(classification={})))
    text = " ".join(older.text)
    assert "Scores beyond accuracy" not in text
    assert not {"spec-confusion", "spec-reliability"} & set(older.specs())
    assert "calibration" not in older.ids()


def test_the_lift_over_chance_has_its_interval(page):
    assert "+11.2 to +18.7 points" in " ".join("".join(page.text).split())


def test_agreement_is_explained_as_a_share_next_to_its_chance_level(page):
    text = " ".join(page.text)
    row = text[text.index("Output agreement") : text.index("Linear relaxation")]
    for value in ("Share of the queries", "0.790", "chance level", "0.553", "KL(ICL, FT), nats"):
        assert value in row


def test_relaxation_is_a_cosine_by_layer_and_head_next_to_its_relative_error(page):
    text = " ".join(page.text)
    row = text[text.index("Linear relaxation") :]
    row = row[: row.index("a_future_measure")]
    for value in ("Cosine with the true output", "0.720", "relative error", "0.680", "0.660 to 0.700"):
        assert value in row
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
        # Links lead to places of the page itself.
        assert attributes.get("href", "#").startswith("#"), attributes
        for name in ("src", "srcset", "action", "data", "poster", "background"):
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


def test_an_empty_result_still_makes_a_page():
    page = Page(render_page(empty_result()))
    assert "This result holds no accuracies and no measures of similarity." in " ".join(page.text)
    assert {"run", "settings"} & page.ids() == {"run"}
    assert not page.specs()
    assert "vegaEmbed =" not in "".join(page.code())


@pytest.mark.parametrize(
    ("field", "empty", "section"),
    [
        ("accuracy", {}, "accuracy"),
        ("predictions", {}, "predictions"),
        ("similarity", {}, "similarity"),
        ("controls", {}, "controls"),
        ("calibrated", {}, "spec-alike"),
        ("tests", [], "pairs"),
        ("rate_sweep", [], "sweep"),
        ("config", {}, "published"),
        ("cost", {}, "cost"),
        ("trials", [], "trials"),
        ("fold", None, "fold"),
        ("cost", {}, "spec-against"),
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


def text_of(result: Result) -> str:
    return " ".join(" ".join(Page(render_page(result)).text).split())


def test_a_measure_is_next_to_its_floor_ceiling_and_smallest_detectable_difference(page):
    text = " ".join(" ".join(page.text).split())
    row = text[text.index("SimAOU without normalising") :][:220]
    for value in (
        "0.143",
        "0.131 to 0.155",
        "2,000",
        "0.093",
        "shuffled labels",
        "0.334",
        "0.21",
        "0.17 to 0.24",
        "0.009",
    ):
        assert value in row
    assert "are computed from the 500 (seed, query) pairs on which controls were read" in text


def test_the_table_of_all_controls_is_folded_away_and_holds_every_one(page):
    assert "details" in {tag for tag, attributes in page.tags if attributes.get("id") == "controls"}
    text = " ".join(" ".join(page.text).split())
    table = text[text.index("All controls by measure") : text.index("Layer by layer")]
    for value in ("floors", "comparisons", "ceilings", "random weight change", "FT of the MLPs", "FT, other order"):
        assert value in table
    assert "accuracy of the control's learner" in table
    assert "58.2 % 50.0 to 70.0 %" in table


def test_the_section_on_pairs_states_what_five_seeds_can_show(page):
    text = " ".join(" ".join(page.text).split())
    assert "With 5 seeds a p-value over demonstrations is at least 0.0625, so no difference" in text
    assert "The p-values are not corrected for the 15 comparisons." in text
    assert "in-context (ICL) minus zero-shot +20.9 +18.1 to +23.7 < 0.001 0.0625 4.0 2,000" in text


def test_words_of_the_scales_are_explained_where_they_are_used(page):
    words = {"floor", "ceiling", "calibrated", "smallest detectable difference", "false discovery rate", "chance level"}
    terms = {text.strip() for text in page.text}
    assert words <= terms
    old = {text.strip() for text in Page(render_page(old_result())).text}
    assert words & old == {"floor", "chance level"}


def test_a_result_from_before_the_scales_keeps_its_page():
    page = Page(render_page(old_result()))
    assert not {"pairs", "sweep", "published", "spec-alike"} & page.ids()
    assert {"similarity", "controls", "layers", "spec-bands"} <= page.ids()
    text = " ".join(" ".join(page.text).split())
    assert "random direction" in text
    assert "in the band" not in text
    assert "Filled points" not in text


def test_a_run_of_the_papers_protocol_is_compared_with_the_paper():
    text = text_of(small_result(config={"preset": "dai2023"}, task={"name": "sst2"}))
    table = text[text.rindex("Compared with the paper") : text.rindex("Learning rates tried")]
    assert "the paper used two other models" in table
    assert "Rec2FTP 81.2 % 77.4 to 84.7 % 85.6 % 89.4 % mean of six tasks" in table
    assert "accuracy, in-context (ICL) 72.1 % 68.1 to 76.1 % 92.7 % 95.0 % sst2" in table


def test_a_task_that_the_paper_lacks_is_compared_with_its_means_only():
    text = text_of(small_result(config={"preset": "dai2023"}))
    assert "mean of six tasks" in text
    assert "92.7 %" not in text


def against_of(html: str) -> str:
    """The text of the section on prompting, finetuning and folding."""
    section = html[html.index('<details id="against"') :]
    return " ".join(" ".join(Page(section[: section.index("</details>")]).text).split())


def test_whether_to_prompt_finetune_or_fold_comes_first(html):
    assert html.index('<details id="against"') < html.index('<details id="accuracy"')
    text = against_of(html)
    assert text.startswith("Prompt, finetune or fold? In-context learning and folding do not differ significantly")
    assert "folded 70.9 % 67.7 to 74.1 % 88.4 % 86.4 to 90.4 % 94.3 % 80.3 to 108.3 % 4.00 8.41 13 1,084" in text
    assert "in-context (ICL) 72.1 % 68.1 to 76.1 % 0.320 330 cached: 12.1" in text
    nothing = f"{MISSING} {MISSING}"
    assert f"70.2 % 68.2 to 72.2 % 57.9 % 43.9 to 71.9 % {nothing} {MISSING} {MISSING}" in text


def test_how_the_prompt_was_folded_is_next_to_the_similarity_of_its_update(html):
    text = against_of(html)
    assert "Folded by “ridge” on 256 unlabelled texts per seed" in text
    assert "measure to ICL to FT SimAOU 0.641 0.621 to 0.661 0.171 0.151 to 0.191" in text
    assert "Output agreement 0.884 0.864 to 0.904" in text


def test_an_older_result_shows_its_costs_without_what_it_does_not_hold():
    html = render_page(old_result())
    assert "spec-against" in Page(html).ids()
    text = against_of(html)
    assert "In-context learning, finetuning and folding do not differ significantly in accuracy" in text
    assert "Cheaper after" not in text
    assert "agreement with ICL" not in text


@pytest.mark.parametrize(
    "keys",
    [keys for n in range(5) for keys in itertools.combinations(("zsl", "icl", "ft", "fold"), n)],
    ids=lambda keys: "+".join(keys) or "none",
)
def test_every_subset_of_learners_makes_a_page(keys):
    result = small_result(similarity={}, controls={}, calibrated={}, rate_sweep=[], trials=[])
    both = {"zsl", "icl"} <= set(keys)
    fewer = result.model_copy(
        update={
            "accuracy": {key: result.accuracy[key] for key in keys},
            "cost": {key: result.cost[key] for key in keys},
            "against_icl": {key: result.against_icl[key] for key in keys if key != "icl" and both},
            "fold": result.fold if "fold" in keys else None,
            "tests": [],
        }
    )
    page = Page(render_page(fewer))
    assert ("accuracy" in page.ids()) is bool(keys)
    assert ("spec-against" in page.ids()) is (len(keys) > 1 or keys == ("icl",))


def test_words_of_the_choice_are_explained_where_they_are_used(page):
    words = {"agreement with ICL", "share of ICL's gain", "cheaper after", "re-read, cached"}
    assert words <= {text.strip() for text in page.text}
    assert not words & {text.strip() for text in Page(render_page(old_result())).text}

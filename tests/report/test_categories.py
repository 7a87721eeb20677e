"""Any word can be a category of a chart: found again, as text and as a mark, in the drawing."""

import re
from itertools import pairwise

import pytest
import vl_convert

from dualform.report.categories import categories, category
from dualform.result import Baselines, Predictions, Trial
from dualform.studies.comparison.charts import OTHER_LABELS, TRUE_LABELS, prediction_chart, trials_chart
from tests.report.chart_rows import drawn
from tests.report.example_result import empty_result

WORDS = [
    "constructor", "toString", "__proto__", "hasOwnProperty", "valueOf", "isPrototypeOf", "__defineGetter__",
    "a.b", "a[0]", "it's", 'say "x"', "back\\slash", "null", "true", "NaN", "01", "datum.label", OTHER_LABELS,
]  # fmt: skip


def chart_of(words: list[str]):
    counts = {word: 10 * (place + 1) for place, word in enumerate(words)}
    predictions = {
        key: Predictions(majority_share=0.5, majority_label=words[0], entropy=0.1, counts=counts)
        for key in ("zsl", "icl")
    }
    return prediction_chart(empty_result(predictions=predictions))


@pytest.mark.parametrize("words", [list(pair) for pair in pairwise(WORDS)], ids=" ".join)
def test_every_word_has_its_mark_and_its_name_in_the_chart_of_predictions(words: list[str]) -> None:
    svg = vl_convert.vegalite_to_svg(chart_of(words).to_json())
    assert len(re.findall('aria-roledescription="bar"', svg)) == 2 * len(words)
    texts = [text.replace("\N{ZERO WIDTH SPACE}", "") for text in re.findall(r">([^<>]+)</text>", svg)]
    escaped = [word.replace("&", "&amp;").replace("<", "&lt;") for word in words]
    assert [word for word in escaped if word not in texts] == []


def test_words_that_look_alike_stay_apart() -> None:
    names = categories(["good", "good", "constructor", OTHER_LABELS], taken=[OTHER_LABELS])
    assert len({*names, OTHER_LABELS}) == 5
    assert category("good") == names[0] == "good"


def test_the_right_answers_have_a_row_of_their_own() -> None:
    predictions = {
        "icl": Predictions(majority_share=1.0, majority_label="yes", entropy=0.1, counts={"no": 0, "yes": 50})
    }
    baselines = Baselines(chance=0.5, majority=0.7, majority_label="yes", label_counts={"no": 15, "yes": 35}, n=50)
    rows = drawn(prediction_chart(empty_result(predictions=predictions, baselines=baselines)))
    true = {row["label"]: row["share"] for row in rows if row.get("learner") == TRUE_LABELS}
    assert true == {"no": 0.3, "yes": 0.7}


def trial(seed: int, accuracy: float | None, status: str = "finished") -> Trial:
    return Trial(
        learner="ft",
        seed=seed,
        learning_rate=0.01 * seed,
        validation_accuracy=accuracy,
        validation_log_probability=None,
        first_loss=2.0,
        last_loss=1.0,
        status=status,
        chosen=status == "finished",
    )


def test_a_seed_that_took_a_rate_found_elsewhere_has_no_point() -> None:
    rows = drawn(trials_chart(empty_result(trials=[trial(1, 0.8), trial(2, None), trial(3, None, "diverged")])))
    assert {row["seed"] for row in rows if "learning_rate" in row} == {"1", "3"}
    assert trials_chart(empty_result(trials=[trial(2, None)])) is None

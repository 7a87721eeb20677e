import builtins
import math
import subprocess
import sys
from dataclasses import replace

import altair as alt
import pandas
import pytest

from dualform.errors import ConfigError
from dualform.result import Result
from dualform.studies.pages import render_page
from dualform.studies.study import STUDIES, View
from tests.report.example_advice import example_advice
from tests.report.example_folding import example_folding
from tests.report.example_laboratory import example_laboratory
from tests.report.example_momentum import example_momentum
from tests.report.example_result import empty_result, example_result, old_result
from tests.report.example_selection import example_selection
from tests.report.example_stability import example_stability
from tests.report.parsed_page import ATTACKS, Page
from tests.studies.comparison.test_page import attacked_result

EXAMPLES = {
    "advice": example_advice,
    "comparison": example_result,
    "stability": example_stability,
    "selection": example_selection,
    "folding": example_folding,
    "momentum": example_momentum,
    "regression": example_laboratory,
}
every_study = pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)


def test_there_is_an_example_of_every_study():
    assert {STUDIES[name].result_name for name in STUDIES.own} - {"fold"} == EXAMPLES.keys()


def test_a_comparison_is_a_row_for_each_learner():
    result = example_result()
    frame = result.to_pandas().set_index("learner")
    assert list(frame.index) == ["zsl", "icl", "ft", "lora", "probe", "fold"]
    for key in frame.index:
        row, scores = frame.loc[key], result.classification[key]
        assert row["accuracy"] == result.accuracy[key].mean
        assert (row["accuracy_low"], row["accuracy_high"]) == result.accuracy[key].ci95
        assert scores.macro_f1 is not None
        assert (row["macro_f1"], row["log_loss"]) == (scores.macro_f1.mean, scores.log_loss.mean)
        assert (row["ece_low"], row["ece_high"]) == scores.ece.ci95
        assert row["query_seconds"] == result.cost[key].query_seconds
        assert row["n"] == result.accuracy[key].n
    assert math.isnan(frame.loc["zsl", "adapt_tokens"])
    assert all(dtype == "float64" for name, dtype in frame.dtypes.items() if name != "n")


def test_frames_of_two_results_can_be_joined_whatever_they_lack():
    frames = [make().to_pandas() for make in (example_result, old_result, empty_result)]
    assert len({tuple(frame.columns) for frame in frames}) == 1
    joined = pandas.concat(frames[:2], keys=["new", "old"])
    assert len(joined) == 12
    assert joined.loc["old", "log_loss"].isna().all()
    assert len(frames[2]) == 0


@every_study
def test_every_study_has_a_frame_charts_and_html(make):
    result = make()
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) > 1
    html = result._repr_html_()
    assert "<table" in html
    charts = result.charts()
    assert charts
    assert all(isinstance(chart, alt.TopLevelMixin) for chart in charts.values())
    # The very charts of the page.
    assert {f"spec-{name}" for name in charts} == set(Page(render_page(result)).specs())


def test_any_table_of_the_page_is_a_frame():
    result = example_result()
    pairs = result.to_pandas("Paired tests")
    assert pairs["difference, points"].tolist() == [test.difference for test in result.tests]
    assert set(result.to_pandas("Scores by label")["label"]) == {"Negative", "Positive"}


def test_a_table_that_does_not_exist_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no table 'Nothing'; choose among: .*'Paired tests'"):
        example_result().to_pandas("Nothing")


def test_without_pandas_there_is_one_clear_message(monkeypatch):
    original = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ConfigError, match="pip install pandas"):
        example_result().to_pandas()


def test_hostile_text_is_escaped_in_a_notebook():
    page = Page(attacked_result()._repr_html_())
    assert {tag for tag, _ in page.tags} <= {
        *("div", "style", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span", "details", "summary"),
        *("ul", "li"),
    }
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    text = "".join(page.text)
    assert all(attack in text for attack in ATTACKS)


def test_warnings_and_the_first_finding_are_shown():
    result = example_result(warnings=["Only <one> seed."])
    html = result._repr_html_()
    assert "Only &lt;one&gt; seed." in html
    assert "In-context learning has the highest mean accuracy" in html
    assert "<li>" not in example_result(warnings=[])._repr_html_()


def test_a_result_without_numbers_is_shown_too():
    assert empty_result().charts() == {}
    assert "<table" not in empty_result()._repr_html_()


def test_a_study_without_a_page_has_its_sentences_and_tables():
    result = example_result()
    tables = STUDIES["compare"].view.tables
    plain = replace(STUDIES["compare"], view=View(lambda result: ["Only <one> sentence."], tables))
    assert plain.charts(result) == {}
    assert "Only &lt;one&gt; sentence." in plain.notebook_html(result)
    assert "learner" in plain.data_frame(result).columns
    with pytest.raises(ConfigError, match="holds no numbers"):
        replace(plain, view=View(lambda result: [])).data_frame(result)


def test_a_study_that_is_not_installed_shows_its_accuracies():
    result = Result.from_json(example_result(study="lengths").to_json())
    assert result.study == "lengths"
    assert len(result.to_pandas()) == 6
    assert "72.1 %" in result._repr_html_()
    assert "accuracy" in result.charts()


def test_the_schema_alone_loads_neither_pandas_nor_altair():
    code = "import sys, dualform.result; print(*sorted({'altair', 'pandas', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"

from typing import Any

import pytest

from dualform.runs import sweep_charts
from dualform.runs.sweep_page import render_sweep
from dualform.runs.sweep_table import failures_table, grid_table, href, studies_table, sweep_tables
from dualform.sweep_result import CellFailure, SweepResult
from tests.report.chart_rows import held
from tests.report.example_sweep import empty_sweep, example_sweep, group_result, mixed_sweep, sweep_over_k
from tests.report.parsed_page import ATTACKS, Page

CHARTS = ("accuracy", "gain", "majority", "similarity", "cost")


@pytest.fixture(scope="module")
def html() -> str:
    return render_sweep(example_sweep())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_a_sweep_has_every_section_with_the_answer_first(html, page):
    sections = {"verdict", "accuracy", "stability", "similarity", "cost", "failures", "pending", "cells", "run"}
    assert sections <= page.ids()
    assert {f"spec-{name}" for name in CHARTS} <= page.ids()
    assert html.index('class="lead"') < html.index('id="verdict"') < html.index('id="accuracy"')
    assert html.index('id="accuracy"') < html.index('id="stability"') < html.index('id="similarity"')


def test_the_grid_marks_the_highest_and_what_is_not_significantly_different(html, page):
    row = html[html.index('<a href="./smollm2-135m-sst2/report.html">sst2</a>') :]
    row = row[: row.index("</tr>")]
    cells = row.split("<td")[1:7]
    best = [place for place, cell in enumerate(cells) if "best" in cell]
    level = [place for place, cell in enumerate(cells) if "≈" in cell]
    assert best == [1]
    assert level == [5]
    assert "collapsed" in cells[0]
    assert "seed 2 missing" in text_of(page)
    assert "no result yet" in text_of(page)
    assert "mean over 6 tasks" in text_of(page)


def test_groups_with_a_result_are_linked_and_others_are_not(page):
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert "./gemma3-270m-agnews/report.html" in links
    assert not any("gemma3-270m-cb" in link for link in links)
    assert all(link.startswith(("./", "#")) for link in links)


def test_failures_are_listed_with_a_collapsed_traceback(page):
    text = text_of(page)
    assert "TrainingError: finetuning on seed 2 gave NaN at step 3" in text
    assert "Traceback (most recent call last)" in text
    assert "3 attempts, worker lost" in text
    assert "gemma3-270m-cb, seed 2, 3" in text
    assert "dualform sweep six-tasks.yaml --engine ray --workers 2 --resume" in text


def test_the_grids_further_axes_have_sections_and_numbers_a_chart():
    page = Page(render_sweep(sweep_over_k()))
    assert {"option-1-section", "spec-option-1", "option-2-section"} <= page.ids()
    assert "spec-option-2" not in page.ids()
    text = text_of(page)
    assert "Accuracy against k" in text
    assert "Accuracy against fold.method" in text


def test_other_studies_say_what_they_say_themselves():
    text = text_of(Page(render_sweep(mixed_sweep())))
    assert "Finetuning is more stable than in-context learning in smollm2-135m" in text
    assert "laboratory (n 20) Laboratory no result yet" in text


def test_a_sweep_without_results_has_a_page_and_loads_no_chart_library():
    html = render_sweep(empty_sweep())
    assert "accuracy" in Page(html).ids()
    assert len(html) < 40_000
    assert "This sweep has no groups." in render_sweep(example_sweep(groups=[], cells=[]))


def test_seeds_and_means_in_the_charts_are_the_results_own():
    results = held(sweep_charts.accuracy_by_task_chart(example_sweep()), "interval")
    row = next(each for each in results if each["group"] == "smollm2-135m on sst2" and each["key"] == "icl")
    accuracy = group_result("smollm2-135m", "sst2").accuracy["icl"]
    assert (row["share"], row["low"], row["high"]) == (accuracy.mean, *accuracy.ci95)
    seeds = held(sweep_charts.accuracy_by_task_chart(example_sweep()), "seed")
    assert len([each for each in seeds if each["group"] == "smollm2-135m on subj" and each["key"] == "icl"]) == 2


def test_a_gain_is_in_points_and_a_place_is_cut_at_the_axis_end():
    gains = held(sweep_charts.gain_chart(example_sweep()), "gain")
    result = group_result("smollm2-135m", "sst2")
    row = next(each for each in gains if each["group"] == "smollm2-135m on sst2" and each["key"] == "ft")
    assert row["gain"] == pytest.approx(100 * ((result.accuracy["ft"].mean or 0) - (result.accuracy["zsl"].mean or 0)))
    far = result.calibrated["sim_aou"].model_copy(update={"mean": 9.0, "ci95": (-7.0, 11.0)})
    sweep = example_sweep()
    group = sweep.groups[0].model_copy(update={"result": result.model_copy(update={"calibrated": {"sim_aou": far}})})
    places = held(sweep_charts.similarity_by_task_chart(example_sweep(groups=[group])), "place")
    assert [(each["mean"], each["low"], each["high"], each["place"]) for each in places] == [(2.0, -1.0, 2.0, "9.00")]


def test_a_sweep_too_large_to_draw_row_by_row_keeps_its_heat_map_and_its_table():
    sweep = example_sweep()
    result = group_result("smollm2-135m", "sst2")
    group = sweep.groups[0].model_copy(update={"result": result})
    many = [
        group.model_copy(update={"name": f"m{model}-t{task}", "model": f"m{model}", "task": f"t{task}"})
        for model in range(13)
        for task in range(10)
    ]
    large = example_sweep(groups=many)
    assert sweep_charts.accuracy_by_task_chart(large) is None
    assert sweep_charts.similarity_by_task_chart(large) is None
    assert sweep_charts.cost_by_model_chart(large) is None
    assert len(held(sweep_charts.gain_chart(large), "gain")) == 5 * 130
    assert grid_table(large).row_count == 130


def test_charts_without_anything_to_draw_are_left_out():
    assert not Page(render_sweep(empty_sweep())).specs()
    assert sweep_charts.option_chart(example_sweep(), "k") is None
    assert sweep_charts.option_chart(sweep_over_k(), "fold.method") is None


def attacked() -> SweepResult:
    sweep = example_sweep()
    names: dict[str, Any] = {"name": ATTACKS[0], "model": ATTACKS[1], "task": ATTACKS[2]}
    groups = [each.model_copy(update=names | {"options": {ATTACKS[3]: ATTACKS[0]}}) for each in sweep.groups]
    failure = CellFailure(message=ATTACKS[0], traceback="\n".join(ATTACKS))
    cells = [
        each.model_copy(
            update={"group": ATTACKS[1], "key": ATTACKS[0]} | ({"failure": failure} if each.status == "failed" else {})
        )
        for each in sweep.cells
    ]
    return example_sweep(
        name=ATTACKS[0], groups=groups, cells=cells, engine=ATTACKS[1], warnings=ATTACKS, config={ATTACKS[0]: ATTACKS}
    )


def test_text_of_others_cannot_break_out_of_the_page(html):
    attacked_html = render_sweep(attacked())
    page, harmless = Page(attacked_html), Page(html)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    assert page.code() == harmless.code()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert all(link.startswith(("./%3C", "#")) for link in links)


def test_a_groups_address_is_always_a_folder_next_to_the_page():
    group = example_sweep().groups[0]
    for name, address in (
        ("javascript:alert(1)", "./javascript%3Aalert%281%29/report.html"),
        ("//example.invalid", "./%2F%2Fexample.invalid/report.html"),
        ("a b", "./a%20b/report.html"),
    ):
        assert href(group.model_copy(update={"name": name})) == address


def test_the_terminal_has_a_row_a_group_and_marks_highest_and_collapse():
    table = grid_table(example_sweep())
    assert table.row_count == 12
    columns = table.terminal().columns
    assert [str(cell) for cell in columns[3].cells][:2] == ["76.4*", "30.7*"]
    assert str(next(iter(columns[2].cells))) == "53.0 !"
    assert [str(cell) for cell in columns[1].cells][3] == "subj (1 missing)"
    assert failures_table(example_sweep()).row_count == 2
    assert studies_table(mixed_sweep()).row_count == 3
    assert [table.title for table in sweep_tables(empty_sweep())] == [grid_table(empty_sweep()).title]

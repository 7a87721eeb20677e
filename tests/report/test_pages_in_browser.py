"""Every kind of page, as a reader meets it: drawn, pointed at, on a phone, in the dark, by keyboard, offline."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from dualform.runs.sweep_page import render_sweep
from dualform.studies.pages import render_page
from tests.report.browser import PHONE, draw_all, overflows, undrawn, widest
from tests.report.chart_rows import values
from tests.report.example_folding import example_folding
from tests.report.example_laboratory import example_laboratory
from tests.report.example_momentum import example_momentum
from tests.report.example_result import example_result
from tests.report.example_selection import example_selection
from tests.report.example_stability import example_stability
from tests.report.example_sweep import example_sweep, mixed_sweep, sweep_over_k
from tests.report.parsed_page import Page

KINDS: dict[str, Callable[[], str]] = {
    "comparison": lambda: render_page(example_result()),
    "stability": lambda: render_page(example_stability()),
    "selection": lambda: render_page(example_selection()),
    "folding": lambda: render_page(example_folding()),
    "momentum": lambda: render_page(example_momentum()),
    "regression": lambda: render_page(example_laboratory()),
    "sweep": lambda: render_sweep(example_sweep()),
    "sweep over k": lambda: render_sweep(sweep_over_k()),
    "mixed sweep": lambda: render_sweep(mixed_sweep()),
}
FOCUSABLE = "a[href], summary, button, select, input, [tabindex='0']"

every_page = pytest.mark.parametrize("kind", KINDS)
# The rest are made of the same pieces.
pages_of_each_make = pytest.mark.parametrize("kind", ["comparison", "regression", "sweep", "mixed sweep"])


@cache
def html(kind: str) -> str:
    return KINDS[kind]()


def names(spec: Any) -> set[str]:
    """All texts in a chart's data: what a tooltip may name."""
    return {text for row in values(spec) for text in row.values() if isinstance(text, str) and len(text) > 1}


def tooltip_over_a_mark(page, chart: str, wanted: set[str]) -> str:
    """The tooltip of the first mark of a chart that shows one with a name; empty where none does."""
    places = page.evaluate(
        """(chart) => {
          const box = document.querySelector(`[data-chart="${chart}"]`);
          for (let each = box.parentElement; each; each = each.parentElement) {
            if (each.tagName === "DETAILS") each.open = true;
          }
          box.scrollIntoView({ block: "start" });
          const marks = [...box.querySelectorAll("[class*='role-mark'] path")];
          return marks.map((mark) => mark.getBoundingClientRect())
            .filter((at) => at.width + at.height > 0)
            .map((at) => [at.x + at.width / 2, at.y + at.height / 2])
            .filter(([x, y]) => x > 0 && x < innerWidth && y > 0 && y < innerHeight);
        }""",
        chart,
    )
    # Some of many, in an order that does not begin with the largest marks only.
    for x, y in places[:: max(1, len(places) // 24)]:
        page.mouse.move(x, y)
        page.mouse.move(x + 0.5, y)
        shown = page.evaluate("document.querySelector('#vg-tooltip-element.visible')?.textContent ?? ''")
        if any(name in shown for name in wanted):
            return str(shown)
    return ""


@every_page
def test_a_page_is_drawn_without_a_fault_and_every_chart_tells_what_it_shows(open_page, kind):
    page = open_page(html(kind))
    draw_all(page)
    assert undrawn(page) == []
    specs = Page(html(kind)).specs()
    assert specs
    silent = [chart for chart, spec in specs.items() if not tooltip_over_a_mark(page, chart, names(spec))]
    assert silent == []


def test_a_tooltip_names_the_learner_and_its_numbers(open_page):
    page = open_page(html("comparison"))
    draw_all(page)
    # Of the mean's own mark: seeds' small dots have a tooltip without an interval.
    shown = tooltip_over_a_mark(page, "spec-accuracy", {"mean accuracy72.1%"})
    assert "in-context (ICL)" in shown
    assert "2,000" in shown


def test_a_chart_without_tooltips_is_seen(open_page):
    page = open_page(html("comparison"))
    assert tooltip_over_a_mark(page, "spec-accuracy", {"no such learner"}) == ""


@every_page
def test_a_phone_shows_the_page_without_scrolling_sideways_and_in_the_dark(open_page, kind):
    page = open_page(html(kind), width=PHONE, height=844, dark=True)
    assert widest(page) == []
    assert not overflows(page)
    draw_all(page)
    assert undrawn(page) == []
    page.evaluate("document.querySelectorAll('main details').forEach((each) => { each.open = true; })")
    assert widest(page) == []
    assert not overflows(page)


_COLOURS = """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
  document.querySelector("[class*='role-axis-label'] text").getAttribute("fill")]"""


def test_colours_follow_the_screen_while_the_page_is_open(open_page):
    page = open_page(html("sweep"))
    light = page.evaluate(_COLOURS)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(light) => ({_COLOURS})()[2] !== light", arg=light[2])
    dark = page.evaluate(_COLOURS)
    assert [one != two for one, two in zip(light, dark, strict=True)] == [True, True, True]
    assert dark == open_page(html("sweep"), dark=True).evaluate(_COLOURS)


@pages_of_each_make
def test_the_keyboard_reaches_all_that_can_be_used_and_shows_where_it_is(open_page, kind):
    page = open_page(html(kind))
    wanted = page.evaluate(
        """(focusable) => {
          const usable = [...document.querySelectorAll(focusable)].filter((each) => each.checkVisibility());
          usable.forEach((each, number) => { each.dataset.number = number; });
          return usable.length;
        }""",
        FOCUSABLE,
    )
    reached: dict[int, bool] = {}
    for _ in range(3 * wanted + 40):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
              const style = getComputedStyle(document.activeElement);
              const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
              return [document.activeElement.dataset.number ?? null, seen || style.boxShadow !== "none"];
            }"""
        )
        if at[0] is not None:
            if int(at[0]) in reached:
                break
            reached[int(at[0])] = at[1]
    assert sorted(reached) == list(range(wanted))
    assert [number for number, seen in reached.items() if not seen] == []


def test_a_chart_is_saved_as_svg_by_mouse_and_by_keyboard(open_page):
    page = open_page(html("sweep"))
    page.locator("[data-chart='spec-gain']").scroll_into_view_if_needed()
    menu = page.locator("[data-chart='spec-gain'] summary")
    menu.click()
    link = page.locator("[data-chart='spec-gain'] a[download$='.svg']")
    link.and_(page.locator("[href^='blob:']")).wait_for()
    saved = []
    with page.expect_download() as waiting:
        link.click()
    saved.append(waiting.value)
    if not link.is_visible():
        menu.click()
    link.focus()
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    saved.append(waiting.value)
    for each in saved:
        text = each.path().read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "smollm2-135m" in text
        assert each.suggested_filename == "dualform-gain.svg"


def test_a_group_of_a_sweep_is_linked_to_beside_the_page(open_page, tmp_path):
    folder = tmp_path / "sweep"
    group = folder / "smollm2-135m-sst2"
    group.mkdir(parents=True)
    (folder / "report.html").write_text(html("sweep"), encoding="utf-8")
    (group / "report.html").write_text("<!doctype html><title>its own page</title>", encoding="utf-8")
    page = open_page(folder / "report.html")
    page.evaluate("document.getElementById('accuracy').open = true")
    page.locator("#accuracy table a").first.click()
    page.wait_for_function("document.title === 'its own page'")


def closed(page) -> list[str]:
    return list(
        page.evaluate("[...document.querySelectorAll('main details.section:not([open])')].map((each) => each.id)")
    )


def test_the_first_screen_holds_the_answer_the_chart_and_the_warnings_and_the_rest_is_closed(open_page):
    page = open_page(html("comparison"), width=1280, height=800)
    for place in (".lead", ".first-charts svg.marks", "#warnings"):
        assert page.locator(place).bounding_box()["y"] + page.locator(place).bounding_box()["height"] <= 800, place
    assert {"verdict", "against", "accuracy", "similarity", "cost", "run", "glossary"} <= set(closed(page))
    assert page.evaluate("document.querySelectorAll('main details.section[open]').length") == 0


def test_a_link_opens_the_section_that_it_leads_to_and_so_does_an_address_with_a_hash(open_page, tmp_path):
    page = open_page(html("comparison"))
    page.locator("nav a[href='#accuracy']").click()
    page.wait_for_function("document.getElementById('accuracy').open")
    assert "accuracy" not in closed(page)
    # A place within a closed section opens all that is around it, also when the hash is there from the start.
    page.evaluate("location.hash = '#layers-counted'")
    page.wait_for_function("document.getElementById('layers-counted').open")
    assert not {"similarity", "layers"} & set(closed(page))
    page.reload()
    page.wait_for_function("document.getElementById('layers-counted').open")
    assert "accuracy" in closed(page)


def test_paper_gets_every_section_and_the_screen_its_own_state_back(open_page):
    page = open_page(html("comparison"))
    before = closed(page)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert closed(page) == []
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert closed(page) == before
    page.locator("#open-all").click()
    assert closed(page) == []


def test_the_first_chart_is_seen_before_any_script_has_run_and_no_library_runs_for_it(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(html("comparison"), encoding="utf-8")
    page = browser.new_context(java_script_enabled=False, offline=True, color_scheme="dark").new_page()
    page.goto(path.as_uri())
    picture = page.locator(".first-charts svg")
    assert picture.bounding_box()["width"] > 300
    assert picture.locator("[class*='mark-symbol'] path").count() >= 6
    page.context.close()


def test_charts_of_open_sections_are_pictures_in_the_page_before_any_script_runs():
    found = re.findall(r'data-chart="spec-([\w-]+)"[^>]*>\s*<svg', html("comparison"))
    assert len(found) >= 2


def test_a_chart_in_a_closed_section_is_drawn_when_the_section_is_opened(open_page):
    page = open_page(html("comparison"))
    assert {"spec-accuracy", "spec-heads"} <= set(undrawn(page))
    page.locator("nav a[href='#accuracy']").click()
    page.locator("[data-chart='spec-accuracy'] svg.marks").wait_for()
    assert "spec-heads" in undrawn(page)


def test_a_printed_page_has_charts_that_nobody_has_opened(open_page):
    page = open_page(html("selection"))
    assert undrawn(page)
    page.evaluate(
        """() => window.addEventListener("afterprint", () => {
          const boxes = [...document.querySelectorAll("[data-chart]")];
          window.missing = boxes.filter((box) => !box.querySelector("svg")).length;
        })"""
    )
    page.pdf()
    assert page.evaluate("window.missing") == 0


def test_the_table_of_contents_stays_in_sight(open_page):
    page = open_page(html("comparison"), width=1280, height=800)
    page.locator("#open-all").click()
    page.evaluate("window.scrollTo(0, 3000)")
    assert 0 <= page.locator("nav.contents").bounding_box()["y"] < 800

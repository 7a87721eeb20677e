"""The browser that the tests of pages use must see what they forbid."""

import pytest

from tests.report.browser import PHONE, Watch, overflows, undrawn, widest

PLAIN = "<!doctype html><meta charset='utf-8'><title>t</title><link rel='icon' href='data:,'>"


def faults_of(browser, html: str) -> list[str]:
    page = browser.new_page(offline=True)
    watch = Watch()
    watch.over(page)
    page.set_content(PLAIN + html)
    page.wait_for_timeout(50)
    page.close()
    return watch.faults


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("<script>console.error('amiss')</script>", "console: amiss"),
        ("<script>throw Error('broken')</script>", "exception: broken"),
        ("<script>setTimeout(() => alert('boo'))</script>", "dialog: boo"),
        ("<img src='http://example.invalid/a.png'>", "request: http://example.invalid/a.png"),
    ],
)
def test_a_fault_is_seen(browser, html, fault):
    assert fault in faults_of(browser, html)


def test_a_harmless_page_has_no_faults(browser):
    assert faults_of(browser, "<p>good</p><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>") == []


def test_a_page_too_wide_is_seen_and_named(open_page):
    page = open_page(f"{PLAIN}<main><div class='broad' style='width:500px'>broad</div></main>", width=PHONE)
    assert overflows(page)
    assert widest(page) == ["DIV  broad broad"]


def test_what_scrolls_in_its_own_box_does_not_count_as_too_wide(open_page):
    html = "<main><div style='overflow-x:auto'><div style='width:500px'>broad</div></div></main>"
    page = open_page(PLAIN + html, width=PHONE)
    assert not overflows(page)
    assert widest(page) == []


def test_an_empty_chart_is_seen(open_page):
    page = open_page(f"{PLAIN}<div data-chart='spec-a'><svg></svg></div>")
    assert undrawn(page) == ["spec-a"]


def test_the_colour_scheme_is_the_one_asked_for(open_page):
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    assert open_page(PLAIN, dark=True).evaluate(dark) is True
    assert open_page(PLAIN).evaluate(dark) is False

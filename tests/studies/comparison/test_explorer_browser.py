import re

import pytest

from dualform.report.palette import learner_style
from dualform.studies.pages import render_page
from tests.report.browser import overflows, widest
from tests.report.example_attention import DEMONSTRATIONS, LAYERS, QUERIES, example_attention
from tests.report.example_result import empty_result, example_result
from tests.report.parsed_page import ATTACKS

N_SHOWN = sum(map(len, DEMONSTRATIONS))
PHONE = 390


def html(**changes) -> str:
    return render_page(empty_result(), example_attention(**changes))


def mean_weights(example: int = 0) -> list[float]:
    rows = example_attention().examples[example].icl.rows()
    return [sum(column) / LAYERS for column in zip(*rows, strict=True)]


def number(text: str) -> float:
    match = re.search(r"([\d.]+) %", text)
    assert match is not None, text
    return float(match[1]) / 100


def opened(page):
    """The page with the explorer's section open."""
    page.evaluate("document.getElementById('attention').open = true")
    return page


@pytest.fixture
def page(open_page):
    return opened(open_page(html()))


def test_the_first_query_is_shown_with_its_tokens_and_answers(page):
    tokens = page.locator("#look-text-icl .token").all_text_contents()
    assert "".join(tokens) == "".join(QUERIES[0]).replace("\n", "↵\n")
    rows = page.locator("#look-answers tbody tr")
    assert rows.nth(0).locator("th").text_content() == "positive (right answer)"
    assert [re.sub(r"\s+", " ", each) for each in rows.nth(0).locator("td").all_text_contents()] == [
        "40.0 %",
        "70.0 %✓ right",
        "60.0 %✓ right",
    ]
    assert rows.nth(1).locator("td").first.text_content() == "60.0 %✗ wrong"


def test_another_query_is_chosen_by_keyboard(page):
    page.focus("#look-query")
    page.keyboard.press("ArrowDown")
    assert page.locator("#look-text-zsl").text_content() == "".join(QUERIES[1]).replace("\n", "↵\n")
    page.keyboard.press("End")
    # A character of two tokens is one mark.
    assert "ïve" in page.locator("#look-text-ft .token").all_text_contents()


def test_pointing_at_a_token_shows_its_weight(page):
    token = page.locator("#look-text-icl .token").nth(2)
    token.hover()
    tip = page.locator("#look-tip")
    assert tip.is_visible()
    assert tip.text_content().startswith("“charming”: ")
    assert number(tip.text_content()) == pytest.approx(mean_weights()[N_SHOWN + 2], abs=6e-4)
    page.mouse.move(0, 0)
    assert not tip.is_visible()


def test_the_layer_is_chosen_by_keyboard(page):
    assert page.locator("#look-layer-name").text_content() == f"mean of all {LAYERS}"
    page.focus("#look-layer")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.locator("#look-layer-name").text_content() == "1"
    assert page.get_attribute("#look-layer", "aria-valuetext") == "layer 1"
    page.locator("#look-text-icl .token").nth(2).hover()
    weight = example_attention().examples[0].icl.rows()[1][N_SHOWN + 2]
    assert number(page.locator("#look-tip").text_content()) == pytest.approx(weight, abs=6e-4)
    assert page.locator("#look-tau").text_content().endswith("s tau in this layer, for this query: 0.100.")


def test_the_mean_over_layers_differs_from_a_layers_own_weight():
    """The case in which the test before would see nothing."""
    rows = example_attention().examples[0].icl.rows()
    assert abs(rows[1][N_SHOWN + 2] - mean_weights()[N_SHOWN + 2]) > 2e-3


def test_tokens_are_walked_with_arrow_keys_and_one_stop_of_tab_a_line(page):
    line = page.locator("#look-text-icl")
    assert line.locator(".token[tabindex='0']").count() == 1
    line.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == " charming"
    assert page.locator("#look-tip").text_content().startswith("“charming”: ")
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "look-tip"
    page.keyboard.press("Escape")
    assert not page.locator("#look-tip").is_visible()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == ":"


def test_each_demonstration_shows_its_share_and_opens_by_keyboard(page):
    weights = mean_weights()
    rows = page.locator("#look-shown > li")
    shares = [number(rows.nth(i).locator(".look-bar.icl").text_content()) for i in range(2)]
    assert shares == pytest.approx([sum(weights[:9]), sum(weights[9:N_SHOWN])], abs=6e-4)
    ft = [number(rows.nth(i).locator(".look-bar.ft").text_content()) for i in range(2)]
    assert sum(ft) == pytest.approx(1)
    assert rows.nth(0).locator(".token").count() == 0
    rows.nth(0).locator("summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#look-shown .token")
    assert rows.nth(0).locator(".look-text").count() == 2
    assert rows.nth(0).locator(".look-text").first.text_content() == "".join(DEMONSTRATIONS[0]).replace("\n", "↵\n")
    assert rows.nth(0).locator(".token.answer").first.text_content() == " positive"
    rows.nth(0).locator(".look-text").nth(1).locator(".token").first.hover()
    tip = page.locator("#look-tip").text_content()
    assert re.search(r"ranked above [\d.]+ % of the demonstrations. other tokens", tip)


def test_the_darkest_token_has_the_most_attention(page):
    page.locator("#look-shown summary").first.click()
    tokens = page.locator("#look-shown .look-text").first.locator(".token")
    darkness = tokens.evaluate_all(
        "all => all.map(each => Number(getComputedStyle(each).backgroundColor.match(/[\\d.]+(?=\\))/)[0]))"
    )
    assert darkness.index(max(darkness)) == 3
    assert max(darkness) == pytest.approx(0.62, abs=0.01)


def test_demonstrations_can_be_ordered_by_a_learners_attention(page):
    def order() -> list[str]:
        return page.locator("#look-shown .look-place").all_text_contents()

    for value, key in (("icl", "icl"), ("ft", "ft"), ("prompt", None)):
        page.select_option("#look-order", value)
        if key is None:
            assert order() == ["1", "2"]
        else:
            shares = [number(each) for each in page.locator(f"#look-shown .look-bar.{key}").all_text_contents()]
            assert shares == sorted(shares, reverse=True)


def test_the_table_of_ten_holds_the_most_attended_tokens(page):
    tables = page.locator("#look-tops table")
    assert tables.count() == 3
    rows = tables.first.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
    )
    pieces = [piece for each in (*DEMONSTRATIONS, QUERIES[0]) for piece in each]
    weights = mean_weights()
    order = sorted(range(len(pieces)), key=lambda place: -weights[place])[:10]
    assert [row[0] for row in rows] == [pieces[place].replace("\n", "↵\n") for place in order]
    assert [row[1] for row in rows] == [
        "dem. 1" if place < 9 else "dem. 2" if place < N_SHOWN else "query" for place in order
    ]
    assert [number(row[2]) for row in rows] == pytest.approx([weights[place] for place in order], abs=6e-4)


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out_at_the_width_of_a_phone(open_page, dark):
    page = opened(open_page(html(), width=PHONE, dark=dark))
    for summary in page.locator("#look-shown summary").all():
        summary.click()
    page.locator("#look-text-icl .token").last.hover()
    assert widest(page) == []
    assert not overflows(page)


def test_letters_stand_out_from_the_darkest_tint(open_page):
    for dark in (False, True):
        page = opened(open_page(html(), dark=dark))
        for key in ("zsl", "icl", "ft"):
            ratio = page.evaluate(_CONTRAST, f"#look-text-{key}")
            # WCAG AA for text.
            assert ratio >= 4.5, (key, dark, learner_style(key).colour, ratio)


_CONTRAST = """(selector) => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const line = document.querySelector(selector);
  const under = parts(getComputedStyle(line).backgroundColor);
  const ink = light(parts(getComputedStyle(line).color));
  const worst = [...line.querySelectorAll(".token")].map((token) => {
    const [r, g, b, a = 1] = parts(getComputedStyle(token).backgroundColor);
    const mixed = light([r, g, b].map((v, i) => a * v + (1 - a) * under[i]));
    return (Math.max(ink, mixed) + 0.05) / (Math.min(ink, mixed) + 0.05);
  });
  return Math.min(...worst);
}"""


def test_a_hostile_data_set_shows_its_text_and_does_nothing(open_page):
    attacks = [*ATTACKS, "\x00\x1b[31m", "\u202eright to left", "x" * 100_000]
    page = opened(
        open_page(html(demonstrations=[(*attacks, " positive")], queries=[attacks], answers=(ATTACKS[0], ATTACKS[1])))
    )
    page.locator("#look-shown summary").first.click()
    text = page.locator("#look-text-icl").text_content()
    assert text.startswith("".join(ATTACKS) + "\\x00\\x1b[31m\\u202eright to left" + "x" * 120 + "… [99,880 more")
    assert page.evaluate("document.querySelectorAll('#attention img, #attention script:not([type])').length") == 0
    page.locator("#look-text-icl .token").last.hover()
    assert not overflows(page)


def test_text_from_right_to_left_stays_within_its_box(open_page):
    page = opened(open_page(html(queries=[["שלום", " עולם", "\n", "Sentiment", ":"]]), width=PHONE))
    assert page.evaluate("getComputedStyle(document.getElementById('look-text-icl')).direction") == "rtl"
    assert page.evaluate("getComputedStyle(document.getElementById('look-sum-icl')).direction") == "ltr"
    page.locator("#look-text-icl .token").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == " עולם"
    assert not overflows(page)


@pytest.mark.parametrize("changes", [{"demonstrations": ()}, {"ranked": False}])
def test_what_was_not_recorded_is_not_missed(open_page, changes):
    page = opened(open_page(html(**changes)))
    assert page.locator("#look-text-icl .token").count() == len(QUERIES[0])
    assert page.locator("#look-tops table").count() == 2


def test_it_fits_on_a_page_with_all_charts(open_page):
    few = {key: example_result().similarity[key] for key in ("rec2ftp", "agreement")}
    page = opened(open_page(render_page(example_result(similarity=few), example_attention())))
    assert page.locator("#look").is_visible()
    assert page.locator(".first-charts svg").count() > 0

"""Pages in a real browser: headless Chromium, started once a file of tests, that must neither err nor ask the
network for anything.

    def test_a_page(open_page):
        page = open_page(render_page(result), width=390, dark=True)
        assert not overflows(page)

The fixtures `browser` and `open_page` are known below `tests/report`; elsewhere import them.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP, PHONE = 1200, 390
"""Widths of a window, in pixels."""
LOCAL = ("file:", "data:", "blob:", "about:")
"""Beginnings of addresses that need no network."""
PATIENCE = 30_000
"""Milliseconds after which a page that is not drawn counts as stuck; a loaded machine takes some."""

OpenPage = Callable[..., "Page"]
"""`open_page(html or path, width=1200, height=900, dark=False)`: the page, all charts in sight drawn."""


@dataclass
class Watch:
    """What a page did that no page of ours may do."""

    faults: list[str] = field(default_factory=list)

    def over(self, page: "Page") -> None:
        """Begin to watch."""
        page.on("console", lambda message: self._if(message.type in ("error", "warning"), f"console: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("crash", lambda _: self.faults.append("the page crashed"))
        page.on("popup", lambda popup: self.faults.append(f"opened a window: {popup.url}"))
        page.on("request", lambda each: self._if(not each.url.startswith(LOCAL), f"request: {each.url[:200]}"))
        page.on("dialog", self._dialog)

    def _if(self, wrong: bool, fault: str) -> None:
        if wrong:
            self.faults.append(fault)

    def _dialog(self, dialog: object) -> None:
        self.faults.append(f"dialog: {getattr(dialog, 'message', '')}")
        # Undismissed it would hold the page for ever.
        dialog.dismiss()  # type: ignore[attr-defined]


# Not for the session: as long as it runs, playwright's event loop counts as running in this thread, and whatever else
# calls `asyncio.run` would be refused.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; the test is skipped where there is none, or nothing to drive it."""
    reason = "python playwright is not installed: pip install playwright"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, so that it runs as root in a container; shared memory there may be small.
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: "Browser", tmp_path: Path) -> Iterator[OpenPage]:
    """Opens pages; a console message, an exception, a dialog or a request to the network fails the test."""
    from playwright import sync_api

    watched: list[Watch] = []
    contexts = []

    def open_(page: str | Path, width: int = DESKTOP, height: int = 900, dark: bool = False) -> "Page":
        path = page
        if isinstance(page, str):
            path = tmp_path / f"page-{len(watched)}.html"
            path.write_text(page, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        opened = context.new_page()
        watch = Watch()
        watch.over(opened)
        watched.append(watch)
        opened.goto(Path(path).resolve().as_uri())
        try:
            opened.wait_for_function(_IN_SIGHT_DRAWN)
        except sync_api.TimeoutError:
            pytest.fail(f"after {PATIENCE} ms these charts are not drawn: {undrawn(opened)}; {watch.faults}")
        assert watch.faults == []
        return opened

    yield open_
    for context in contexts:
        context.close()
    assert [fault for watch in watched for fault in watch.faults] == []


# A page of ours draws a chart when the reader comes near it, over the picture that the first screen begins with.
_LIVE = """(box) => box.querySelector("svg")
  && (box.classList.contains("vega-embed") || !document.getElementById("chart-engine"))"""
_IN_SIGHT_DRAWN = f"""() => [...document.querySelectorAll("[data-chart]")]
  .filter((box) => box.checkVisibility() && box.getBoundingClientRect().top < innerHeight).every({_LIVE})"""
_ALL_DRAWN = f"() => [...document.querySelectorAll('[data-chart]')].every({_LIVE})"


def draw_all(page: "Page") -> None:
    """Have every chart drawn, in closed sections too, as for paper; what is closed is closed again."""
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(_ALL_DRAWN)
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def overflows(page: "Page") -> bool:
    """Whether the page as a whole scrolls sideways; tables and charts may, within their own boxes."""
    return bool(page.evaluate("document.scrollingElement.scrollWidth > document.scrollingElement.clientWidth"))


def widest(page: "Page") -> list[str]:
    """What sticks out of the window on the right and is not inside a box that scrolls: for the message of a test."""
    found = page.evaluate(
        """() => {
          const scrolls = (element) => {
            for (let each = element.parentElement; each && each !== document.body; each = each.parentElement) {
              if (["auto", "scroll", "hidden"].includes(getComputedStyle(each).overflowX)) return true;
            }
            return false;
          };
          // An element's own text may reach beyond its box, which then ends where it should.
          const beyond = (each) => each.getBoundingClientRect().right > innerWidth + 1
            || (getComputedStyle(each).overflowX === "visible" && each.clientWidth > 0
              && each.getBoundingClientRect().left + each.scrollWidth > innerWidth + 1);
          return [...document.querySelectorAll("main *")]
            .filter((each) => beyond(each) && !scrolls(each))
            .map((each) => `${each.tagName} ${each.id} ${each.getAttribute("class")} ${each.textContent.slice(0, 40)}`)
            .slice(0, 8);
        }"""
    )
    return [str(each) for each in found]


def undrawn(page: "Page") -> list[str]:
    """Charts whose box holds no picture with marks in it and a size; those in a closed section have no size."""
    found = page.evaluate(
        """() => [...document.querySelectorAll("[data-chart]")]
          .filter((box) => {
            const svg = box.querySelector("svg");
            if (!svg || !svg.querySelector("[class*='mark-'] path, [class*='mark-'] line, [class*='mark-'] text")) {
              return true;
            }
            const { width, height } = svg.getBoundingClientRect();
            return box.checkVisibility() && !(width > 50 && height > 20);
          })
          .map((box) => box.dataset.chart)"""
    )
    return [str(each) for each in found]


def screenshot(page: "Page", path: Path) -> None:
    """The whole page, top to bottom, as a PNG."""
    page.screenshot(path=path, full_page=True)

"""How long a page takes to open: until something is seen, and until it can be read and used, against an empty page.

Headless Chromium opens each page anew, an empty one right before it, so that both meet the same load. Needs Chromium
and playwright.
"""

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Outcome, Size

EMPTY = "<!doctype html><title>empty</title><p>Nothing here."
TARGET = 1.0
"""Seconds above an empty page."""
_TIMES = """() => new Promise((done) => setTimeout(() => {
  const { domContentLoadedEventEnd } = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  done([paint ? paint.startTime : domContentLoadedEventEnd, domContentLoadedEventEnd]);
}, 0))"""
_DRAWN = """() => [...document.querySelectorAll(".first-charts [data-chart]")]
  .every((box) => box.classList.contains("vega-embed") && box.querySelector("svg")) && performance.now()"""


def run(size: Size) -> list[Outcome]:
    """The pages of the tests' examples, one of each study."""
    from tests.report.example_laboratory import example_laboratory
    from tests.report.example_momentum import example_momentum
    from tests.report.example_result import example_result
    from tests.report.example_stability import example_stability
    from tests.report.example_sweep import example_sweep

    from dualform.runs.sweep_page import render_sweep
    from dualform.studies.pages import render_page

    pages: dict[str, Callable[[], str]] = {
        "comparison": lambda: render_page(example_result()),
        "stability": lambda: render_page(example_stability()),
        "momentum": lambda: render_page(example_momentum()),
        "regression": lambda: render_page(example_laboratory()),
        "sweep": lambda: render_sweep(example_sweep()),
    }
    with tempfile.TemporaryDirectory() as temporary:
        files = {}
        for name, render in pages.items():
            files[name] = Path(temporary) / f"{name}.html"
            files[name].write_text(render(), encoding="utf-8")
        return opened(files, rounds=size.rounds)


def opened(files: dict[str, Path], rounds: int = 5) -> list[Outcome]:
    """Seconds from the request until a page is painted and loaded, less those of an empty page.

    Args:
        files: Pages by name.
        rounds: How often each is opened.
    """
    from playwright import sync_api

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    outcomes = []
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        empty = Path(temporary) / "empty.html"
        empty.write_text(EMPTY, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, file in files.items():
            base = []
            own = []
            for _ in range(rounds):
                base.append(_open(browser, empty))
                own.append(_open(browser, file))
            for part, what in enumerate(("first paint", "loaded", "its first charts answer the pointer")):
                more = tuple((mine[part] - other[part]) / 1000 for mine, other in zip(own, base, strict=True))
                ratio = statistics.median(mine[part] / other[part] for mine, other in zip(own, base, strict=True))
                detail = f"seconds more than an empty page, which is {ratio:.1f} times as fast"
                raw: dict[str, Any] = {"milliseconds": [mine[part] for mine in own], "empty": [e[part] for e in base]}
                target = TARGET if part < 2 else None
                outcomes.append(Outcome(f"page of {name}: {what}", more, "at most", target, detail, raw))
        browser.close()
    return outcomes


def _open(browser: Any, file: Path) -> list[float]:
    """Milliseconds to the first paint, until the document is loaded, and until the first charts are drawn live."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    painted, loaded = page.evaluate(_TIMES)
    drawn = page.wait_for_function(_DRAWN, polling=20).json_value()
    context.close()
    return [painted, loaded, drawn]


def main() -> None:
    """`python -m benchmarks.pages [FILE ...]`: print how long pages take to open."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="pages; by default those of the examples")
    parser.add_argument("--rounds", type=int, default=5, help="how often each page is opened; default 5")
    given = parser.parse_args()
    files = {file.parent.name or file.name: file for file in given.files}
    for outcome in opened(files, given.rounds) if files else run(Size(rounds=given.rounds)):
        print(f"{outcome.name:55s} {outcome.ratio:+.2f} s  {outcome.detail}", flush=True)


if __name__ == "__main__":
    main()

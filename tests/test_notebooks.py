"""The documentation's pages with cells: here each is run in one namespace, as the build runs it in a kernel."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted(path.stem for path in DOCS.glob("*.md") if path.read_text(encoding="utf-8")[:12] == "---\njupytext")


def cells(markdown: str) -> list[tuple[int, str]]:
    """A text notebook's code cells, each with the number of its first line; options of a cell become empty lines."""
    fenced = re.finditer(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)
    options = re.compile(r"\A(?::[\w-]+:[^\n]*\n)+")
    return [
        (
            markdown.count("\n", 0, match.start(1)) + 1,
            options.sub(lambda found: "\n" * found[0].count("\n"), match[1]),
        )
        for match in fenced
    ]


def run_cells(markdown: str, name: str) -> int:
    """Run them in order in one namespace; returns how many."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = cells(markdown)
    for line, cell in found:
        # The empty lines make a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + cell, name, "exec"), namespace)
    return len(found)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_of_the_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    path = DOCS / f"{name}.md"
    assert run_cells(path.read_text(encoding="utf-8"), str(path)) > 4
    torch.set_num_threads(threads)


def test_there_are_four_such_pages():
    assert NOTEBOOKS == ["internet_scale", "own_task", "reading_numbers", "theory"]


def test_a_failing_cell_is_named_by_file_and_line():
    page = "# title\n\n```{code-cell} python3\n:tags: [hide-input]\na = 1\na / 0\n```\n"
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells(page, "page.md")
    last = caught.traceback[-1]
    assert (str(last.path).endswith("page.md"), last.lineno + 1) == (True, 6)


def test_cells_share_a_namespace_and_other_blocks_are_left_alone():
    page = "```{code-cell} python3\na = 1\n```\n```python\na = 2\n```\n```{code-cell} ipython3\nassert a == 1\n```\n"
    assert run_cells(page, "page.md") == 2

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def python_blocks(markdown: str) -> list[tuple[int, str]]:
    """The fenced Python blocks of `markdown`, each with the line number of its first line."""
    fenced = re.finditer(r"^```python\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)
    return [(markdown.count("\n", 0, match.start(1)) + 1, match[1]) for match in fenced]


def run_blocks(markdown: str, name: str) -> int:
    """Run the blocks in order in one namespace, as a reader does who types them; returns how many."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = python_blocks(markdown)
    for line, block in blocks:
        # The empty lines make a traceback name the line of the file.
        exec(compile("\n" * (line - 1) + block, name, "exec"), namespace)
    return len(blocks)


@pytest.mark.real
@pytest.mark.usefixtures("shallow_packaged_model")
def test_every_python_example_in_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(README.read_text(encoding="utf-8"), str(README)) > 0


def test_blocks_share_one_namespace_and_other_languages_are_left_alone():
    assert (
        run_blocks("```python\na = 1\n```\n```bash\nfalse\n```\ntext\n```python\nassert a == 1\n```\n", "README.md")
        == 2
    )


def test_a_failing_example_is_named_by_file_and_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("# title\n\n```python\na = 1\na / 0\n```\n", "README.md")
    last = caught.traceback[-1]
    assert (str(last.path).endswith("README.md"), last.lineno + 1) == (True, 5)

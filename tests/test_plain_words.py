"""Source, messages and documentation are written in the words of the field: `plain_words.yaml` lists the others."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORDS = yaml.safe_load((Path(__file__).parent / "plain_words.yaml").read_text(encoding="utf-8"))
PROSE = [(re.compile(rf"\b(?:{pattern})(?!\w)", re.IGNORECASE), better) for pattern, better in WORDS["prose"].items()]
PYTHON = [path for top in ("src", "benchmarks", "examples", "tools") for path in sorted((ROOT / top).rglob("*.py"))]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string and comment of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, argument, function and class that a Python file defines.

    Fields of classes are left out: those of results and settings keep their names, because files hold them.
    """
    tree = ast.parse(source)
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def problems_in_prose(pieces: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{line}: “{match[0]}”, better: {better}"
        for line, text in pieces
        for pattern, better in PROSE
        for match in pattern.finditer(" ".join(text.split()))
    ]


def problems_in_names(source: str) -> list[str]:
    words = WORDS["names"]
    return [
        f"{line}: {name}, better: {words[name.strip('_')]}"
        for line, name in names_of(source)
        if name.strip("_") in words
    ]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_is_written_in_plain_words(path: Path):
    source = path.read_text(encoding="utf-8")
    problems = problems_in_prose(prose_of(source)) + problems_in_names(source)
    assert not problems, "\n".join([str(path.relative_to(ROOT)), *problems])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_written_in_plain_words(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    problems = problems_in_prose(iter(enumerate(lines, start=1)))
    assert not problems, "\n".join([path.name, *problems])


def test_a_word_of_the_list_is_seen_wherever_it_stands():
    source = '"""It hangs on the seed."""\n\ndef told(found):\n    one = f"likeness of {found}"  # reckoned\n'
    assert len(problems_in_prose(prose_of(source))) == 3
    assert len(problems_in_names(source)) == 3

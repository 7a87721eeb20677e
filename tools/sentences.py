"""Writes `docs/sentences.md`: every sentence that a page, a table, a chart or the terminal can print, by file.

    python tools/sentences.py

Read it through to check the wording: a sentence that cannot be understood here cannot be understood on a page either.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "dualform"
PAGE = ROOT / "docs" / "sentences.md"

HEADING = """# Sentences

Everything that a page, a table, a chart or the terminal can print, in the order of the source. `{...}` stands for what
is filled in. Generated: change the source, then run `python tools/sentences.py`.
"""

_WORD = r"[A-Za-z][a-z'\u2019-]+"
_SENTENCE = re.compile(rf"{_WORD}[,:;]? (?:\S+ )*?{_WORD}")


def is_sentence(text: str) -> bool:
    """Whether a text holds two words in a row, as no key, format, path, type or stretch of markup does."""
    if re.search(r"</?\w+[ >/]|function |=>|^\s*[.#]\w+ ?\{|^[\w.\[\], |]+$(?<=\])", text):
        return False
    return _SENTENCE.search(text) is not None


def _rendered(node: ast.expr) -> str | None:
    """A string as its author wrote it, with `{...}` for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(part) for part in node.values)
    return None


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    return "{" + ast.unparse(node.value) + "}"


def _skipped(tree: ast.AST) -> set[int]:
    """Nodes that are read by nobody: docstrings, strings below a field, annotations."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(annotation, ast.AST):
                skipped.update(id(child) for child in ast.walk(annotation) if not _is_option(child))
    return skipped


def _is_option(node: ast.AST) -> bool:
    """Help texts stand in annotations: `Annotated[int, Option("Help.")]`."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


def _of_template(text: str) -> Iterator[str]:
    """What an HTML template prints between its tags, and as tooltips and labels for screen readers."""
    text = re.sub(r"<(style|script)\b.*?</\1>|<!--.*?-->|\{#.*?#\}|\{%.*?%\}", " ", text, flags=re.DOTALL)
    yield from re.findall(r'(?:title|aria-label|placeholder)="([^"]*)"', text)
    yield from re.split(r"<[^>]*>", text)


def _of_script(text: str) -> Iterator[str]:
    """The strings of a script."""
    text = re.sub(r"^\s*//[^\n]*$|/\*.*?\*/", "", text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r'"((?:[^"\\\n]|\\.)*)"|`((?:[^`\\]|\\.)*)`', text):
        yield match[1] or match[2] or ""


def sentences(path: Path) -> list[str]:
    """The sentences of one file, in its order, each once."""
    text = path.read_text(encoding="utf-8")
    readers = {".py": _of_python, ".j2": _of_template, ".js": _of_script}
    texts = (" ".join(each.split()) for each in readers[path.suffix](text))
    return list(dict.fromkeys(each for each in texts if is_sentence(each)))


def _of_python(source: str) -> Iterator[str]:
    """The strings of a module, without docstrings."""
    tree = ast.parse(source)
    skipped = _skipped(tree)
    inside: set[int] = set()
    strings: list[tuple[int, int, str]] = []
    for node in ast.walk(tree):
        if id(node) in skipped or id(node) in inside or not isinstance(node, ast.expr):
            continue
        text = _rendered(node)
        if text is not None:
            inside.update(id(child) for child in ast.walk(node) if child is not node)
            strings.append((node.lineno, node.col_offset, text))
    yield from (text for _, _, text in sorted(strings))


def catalogue() -> str:
    """The whole page."""
    parts = [HEADING]
    for path in sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".j2", ".js")):
        lines = [f"- `{text}`" if "`" not in text else f"- {text}" for text in sentences(path)]
        if lines:
            parts.append(f"## {path.relative_to(SOURCE).as_posix()}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(catalogue(), encoding="utf-8")

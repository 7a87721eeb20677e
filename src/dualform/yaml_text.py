"""Read YAML from untrusted sources.

A few lines of YAML can expand to more values than fit into memory (aliases of aliases), nest deeper than Python's
stack, or repeat a key, of which the last would silently win. All of these are rejected before a value is constructed.
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from dualform.errors import DualformError
from dualform.files import read_bytes, show_path
from dualform.plain_text import plain

LARGEST = 32 << 20
"""Bytes of a file of settings."""
MOST_VALUES = 2_000_000
"""Maximum number of values in a text after expanding its aliases."""
DEEPEST = 50
"""Maximum depth of nested lists and mappings."""


# libyaml's parser where the installed PyYAML has it: the one in Python takes seconds for a megabyte.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _RefusedError(ValueError):
    """What is wrong with the text, in words."""


def read_yaml(path: Path, error: type[DualformError], what: str = "YAML file") -> Any:
    """The value in a YAML file.

    Args:
        path: A regular file of at most `LARGEST` bytes, UTF-8.
        error: Class of what is raised.
        what: What the file should be, for the message.

    Raises:
        DualformError: Of class `error`: the file cannot be read, or its text is not YAML that is accepted here.
    """
    content = read_bytes(path, LARGEST, error)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        looks = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding, such as Latin-1"
        raise error(
            f"{show_path(path)} cannot be read as a {what}: it is not UTF-8 (byte {fault.start + 1}) but perhaps "
            f"{looks}. Save it as UTF-8."
        ) from fault
    return parse_yaml(text, error, f"{show_path(path)} cannot be read as a {what}")


def parse_yaml(text: str, error: type[DualformError], about: str) -> Any:
    """The value that a YAML text holds: None, booleans, numbers, texts, dates, lists and mappings of these.

    Args:
        text: The text.
        error: Class of what is raised.
        about: Begins the message.

    Raises:
        DualformError: Of class `error`: the text is not YAML, names a key twice, nests deeper than `DEEPEST`, stands
            for more than `MOST_VALUES` values, or holds a value that Python has no place for.
    """
    try:
        _require_shallow(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _examine(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as fault:
        raise error(f"{about}: {_in_one_line(fault)}") from fault
    # An impossible date, a number of thousands of digits, a key that cannot be one, half a surrogate pair.
    except (ValueError, TypeError, OverflowError) as fault:
        raise error(f"{about}: {_in_one_line(fault)}") from fault


def _require_shallow(text: str) -> None:
    """Raise `_RefusedError` for text that nests too deeply, event by event: the parser itself is slow and recursive."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise _RefusedError(f"it nests too deeply (at most {DEEPEST} levels)")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _examine(root: yaml.Node) -> None:
    """Raise `_RefusedError` for what must not be built: every node once, whatever its aliases stand for."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            if not known:
                raise _RefusedError(
                    f"the alias on line {node.start_mark.line + 1} stands for something that contains itself"
                )
            return known
        # 0 marks a node that is being counted: meeting it again means that it contains itself.
        sizes[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            _require_single_keys(node)
            total += sum(size_of(key) + size_of(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size_of(each) for each in node.value)
        elif node.tag in _NUMBERS and (":" in node.value or re.fullmatch(r"[+-]?0[0-9_]+", node.value)):
            how = "in base 60" if ":" in node.value else "in base 8"
            raise _RefusedError(
                f"line {node.start_mark.line + 1} holds {node.value[:40]}, which YAML reads as a number {how}: put it "
                "in quotes if it is text, or write the number in base 10"
            )
        elif node.tag == "tag:yaml.org,2002:int" and len(node.value) > sys.int_info.default_max_str_digits:
            raise _RefusedError(f"line {node.start_mark.line + 1} holds a number of {len(node.value):,} digits")
        if total > MOST_VALUES:
            raise _RefusedError(f"it stands for more than {MOST_VALUES:,} values once its aliases are written out")
        sizes[id(node)] = total
        return total

    size_of(root)


def _require_single_keys(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        # `<<` merges a mapping and may stand twice.
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if (key.tag, key.value) in seen:
            raise _RefusedError(
                f"the key {key.value!r} stands twice, on lines {seen[key.tag, key.value]} and {line}: give it once"
            )
        seen[key.tag, key.value] = line


def _in_one_line(fault: Exception) -> str:
    text = " ".join(plain(str(fault), lines=True).split())
    # PyYAML's names for a text that it was given without a file.
    text = re.sub(r' in "<(unicode|byte) string>",', " at", text)
    return (text if len(text) <= 300 else f"{text[:300]} ...").rstrip(".") + "."

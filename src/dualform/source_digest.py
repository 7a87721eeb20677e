"""Which source code computes: what is kept from one run to the next is used only by the code that made it.

The version stands still while the code is worked on, so it cannot tell a result of a measure as it was from one of the
measure as it is.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dualform._version import __version__
from dualform.registry import added_modules

_PACKAGE = Path(__file__).parent


def source_digest() -> str:
    """Digest of every Python file of this package and of those that add to it; the same on every machine.

    Added are packages with a learner, a measure, a control or a study of their own: what they compute depends on their
    source as ours does on ours.

    Returns:
        Sixteen hexadecimal digits, computed once a process. Line endings make no difference, nor does where a package
        is installed. Where it is installed without its source, a digest of the version.
    """
    return _digest(added_modules(), tuple(sys.path))


@cache
def _digest(added: tuple[tuple[str, str], ...], path: tuple[str, ...]) -> str:
    ours = digest_of_source(_PACKAGE)
    if not added:
        return ours
    files = {f"{module}: {name}": file for module, _ in added for name, file in _source_of(module).items()}
    return _digest_of_files(files, f"{ours} {added}")


def _source_of(module: str) -> dict[str, Path]:
    """The Python files of a top-level module or package, which is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return {}
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        return {module: Path(spec.origin)} if spec.origin and spec.origin.endswith(".py") else {}
    return {path.relative_to(folder).as_posix(): path for folder in folders for path in folder.rglob("*.py")}


def digest_of_source(package: Path) -> str:
    """Digest of our own package, lying in a folder."""
    return _digest_of_files({path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}, __version__)


def _digest_of_files(files: Mapping[str, Path], beginning: str) -> str:
    digest = hashlib.sha256(beginning.encode())
    for name, path in sorted(files.items()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    return digest.hexdigest()[:16]

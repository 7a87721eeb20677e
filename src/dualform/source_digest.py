"""Which source code computes: what is kept from one run to the next is used only by the code that made it.

The version stands still while the code is worked on, so it cannot tell a result of a measure as it was from one of the
measure as it is.
"""

import hashlib
from functools import cache
from pathlib import Path

from dualform._version import __version__

_PACKAGE = Path(__file__).parent


@cache
def source_digest() -> str:
    """Digest of every Python file of this package, computed once a process; the same on every machine.

    Returns:
        Sixteen hexadecimal digits. Line endings make no difference, nor does where the package is installed. Where
        it is installed without its source, a digest of the version.
    """
    return digest_of_source(_PACKAGE)


def digest_of_source(package: Path) -> str:
    """The same of the package in a folder."""
    found = hashlib.sha256(__version__.encode())
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    for name, path in sorted(files.items()):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    return found.hexdigest()[:16]

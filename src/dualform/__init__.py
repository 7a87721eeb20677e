"""dualform: does this model learn from its prompt as it would from gradients, and which should you use?

Importing the package is quick; each name loads what it needs when it is first used. The public names are listed in the
stub `__init__.pyi`, which type checkers read as it is and this module reads when a name is looked up.
"""

from functools import cache
from importlib import import_module
from typing import Any

from dualform._version import __version__ as __version__


@cache
def _public_names() -> dict[str, str]:
    """Public name -> module that defines it, from the stub."""
    import ast
    import pkgutil

    stub = pkgutil.get_data(__name__, "__init__.pyi")
    assert stub is not None
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_public_names())
    # Names of the import system (`__path__` and its kin) are looked up often and are never in the stub.
    if not name.startswith("__"):
        if name in (public := _public_names()):
            return getattr(import_module(public[name]), name)

        from dualform._moved_names import MOVED

        if name in MOVED:
            import warnings

            warnings.warn(
                f"dualform.{name} is now imported from its own module: from {MOVED[name]} import {name}. The old way "
                "will not work in the next version.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(import_module(MOVED[name]), name)
    raise AttributeError(f"module 'dualform' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_public_names())

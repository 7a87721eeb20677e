"""Other people's packages, as an installer leaves them: modules and entry points in a folder on the search path."""

import shutil
import tomllib
from pathlib import Path


def install(source: Path, target: Path) -> Path:
    """Put a package of single modules into a folder, with the metadata that `pip install --target` writes.

    Args:
        source: Folder with `pyproject.toml` and modules.
        target: Folder that is made if need be.

    Returns:
        The folder, to be put on the search path.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target.mkdir(parents=True, exist_ok=True)
    for module in source.glob("*.py"):
        shutil.copy(module, target)
    return register(target, project["name"], project["version"], project["entry-points"])


def register(target: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> Path:
    """Write a package's metadata alone: group -> name of the entry point -> `module:attribute`."""
    about = target / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{a} = {b}" for a, b in points.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target

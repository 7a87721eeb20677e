"""Print exact pins of all that dualform and its development group need, taken from what is installed here.

    python tools/lock.py > requirements.lock

Only the closure of the requirements in pyproject.toml is listed, so what else lies in the environment stays out.
"""

import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

# Builds of torch for a GPU require their own runtime libraries; the pin of torch alone decides about them.
OF_THE_TORCH_BUILD = ("nvidia-", "cuda-", "triton")


def direct_requirements(pyproject: dict[str, Any]) -> list[Requirement]:
    """What pyproject.toml asks for: runtime dependencies and the dev group, without the extras."""
    texts = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["dev"]]
    return [Requirement(text) for text in texts]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Installed public version of everything that `requirements` lead to, by canonical name, sorted.

    Raises:
        SystemExit: Something is not installed, or not in the version asked for.
    """
    versions: dict[str, str] = {}
    seen = set()
    pending = list(requirements)
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen or name.startswith(OF_THE_TORCH_BUILD):
            continue
        seen.add((name, extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed here; run `make lock`, which installs it") from None
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise SystemExit(f"{requirement} is asked for, but {found.version} is installed; run `make lock`")
        # A local version (2.13.0+cpu) names one build, which another index does not have.
        versions[name] = Version(found.version).public
        for text in found.requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ["", *extras]):
                pending.append(child)
    return dict(sorted(versions.items()))


def main() -> None:
    """Print the lock."""
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    pins = closure(direct_requirements(pyproject))
    sys.stdout.write("".join(f"{name}=={version}\n" for name, version in pins.items()))


if __name__ == "__main__":
    main()

"""Print exact pins of all that dualform and its development group need, with the hashes of what is to be installed.

    python tools/lock.py > requirements.lock
    python tools/lock.py --pins < requirements.lock > constraints.txt

Versions are those that are installed here. Only the closure of the requirements in pyproject.toml is listed, so what
else lies in the environment stays out. Hashes are those of every file of a version, for all platforms, as the package
index lists them, so that pip refuses a file that is another. torch is left out: it comes first, alone, and which build
of it is for the machine to choose.

With `--pins`, the lines of a lock without its hashes: constraints for installing more than the lock covers, for which
pip would want hashes too.
"""

import re
import subprocess
import sys
import tempfile
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
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed here; run `make lock`, which installs it") from None
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise SystemExit(f"{requirement} is required, but {distribution.version} is installed; run `make lock`")
        # A local version (2.13.0+cpu) names one build, which another index does not have.
        versions[name] = Version(distribution.version).public
        for text in distribution.requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ["", *extras]):
                pending.append(child)
    return dict(sorted(versions.items()))


def with_hashes(pins: dict[str, str]) -> str:
    """The lock: each pin, and below it the SHA-256 of every file of that version.

    Raises:
        SystemExit: uv is not installed, or the index does not have a version.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, lock_file = Path(folder) / "requirements.in", Path(folder) / "requirements.lock"
        given.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--universal", "--no-config"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--output-file", str(lock_file), str(given)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the hashes cannot be had (uv, which `make lock` installs, says: {done.stderr.strip()})")
        return lock_file.read_text(encoding="utf-8")


def pins_of(lock: str) -> dict[str, str]:
    """Versions by name, as a lock has them."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\\n]+)", lock, re.MULTILINE))


def main() -> None:
    """Print the lock, or what `--pins` asks for."""
    if sys.argv[1:] == ["--pins"]:
        sys.stdout.write("".join(f"{name}=={version}\n" for name, version in pins_of(sys.stdin.read()).items()))
        return
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    pins = closure(direct_requirements(pyproject))
    del pins["torch"]
    sys.stdout.write(with_hashes(pins))


if __name__ == "__main__":
    main()

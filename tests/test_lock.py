import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tools.lock import PYPROJECT, closure, direct_requirements, pins_of

LOCK = Path(__file__).parent.parent / "requirements.lock"


def pins() -> dict[str, str]:
    return pins_of(LOCK.read_text(encoding="utf-8"))


def test_every_direct_requirement_is_pinned_within_its_bounds():
    for requirement in direct_requirements(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))):
        if requirement.name == "torch":
            # Installed before, in the build that the machine needs; the Makefile has its version.
            makefile = LOCK.with_name("Makefile").read_text(encoding="utf-8")
            assert f"install torch=={version_of('torch')}\n" in makefile
            continue
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes the locked {version}"


def test_the_lock_holds_nothing_but_sorted_pins_each_with_its_hashes():
    lock = LOCK.read_text(encoding="utf-8")
    one = r"[a-z0-9-]+==[0-9][0-9a-z.]*( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    # No address of an index, no option, no file of this machine.
    assert re.fullmatch(f"({one})+", lock)
    assert list(pins()) == sorted(pins())
    assert [name for name in pins() if name.startswith(("nvidia", "triton", "dualform", "torch"))] == []


def test_what_is_installed_with_the_lock_is_what_it_says():
    assert len(pins()) > 50
    assert {name: version_of(name) for name in ("transformers", "pydantic", "pytest")} == {
        name: pins()[name] for name in ("transformers", "pydantic", "pytest")
    }


def version_of(name: str) -> str:
    return Version(metadata.version(name)).public


def test_the_closure_follows_markers_and_extras():
    assert "execnet" in closure([Requirement("pytest-xdist")])
    assert "psutil" not in closure([Requirement("pytest-xdist")])
    assert "psutil" in closure([Requirement("pytest-xdist[psutil]")])
    assert "+" not in closure([Requirement("torch")])["torch"]


def test_what_is_missing_or_too_old_is_named():
    with pytest.raises(SystemExit, match=r"no-such-package>=3 is not installed here"):
        closure([Requirement("no-such-package>=3")])
    with pytest.raises(SystemExit, match=r"pytest>=1000 is required, but [0-9.]+ is installed"):
        closure([Requirement("pytest>=1000")])

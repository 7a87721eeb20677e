import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.lock import PYPROJECT, closure, direct_requirements

LOCK = Path(__file__).parent.parent / "requirements.lock"


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in LOCK.read_text(encoding="utf-8").splitlines())


def test_every_direct_requirement_is_pinned_within_its_bounds():
    for requirement in direct_requirements(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))):
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes the locked {version}"


def test_the_lock_holds_nothing_but_sorted_plain_pins():
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert [line for line in lines if line.startswith(("nvidia", "triton", "dualform"))] == []


def test_the_closure_follows_markers_and_extras():
    assert "execnet" in closure([Requirement("pytest-xdist")])
    assert "psutil" not in closure([Requirement("pytest-xdist")])
    assert "psutil" in closure([Requirement("pytest-xdist[psutil]")])
    assert "+" not in closure([Requirement("torch")])["torch"]


def test_what_is_missing_or_too_old_is_named():
    with pytest.raises(SystemExit, match=r"no-such-package>=3 is not installed here"):
        closure([Requirement("no-such-package>=3")])
    with pytest.raises(SystemExit, match=r"pytest>=1000 is asked for, but [0-9.]+ is installed"):
        closure([Requirement("pytest>=1000")])

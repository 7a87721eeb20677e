import sys
import tomllib
from pathlib import Path

import pytest

from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS, Learner
from dualform.registry import OWN, Registry, added_modules
from tests.packages import register

ROOT = Path(__file__).parent.parent
GROUP = "dualform.learners"


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that puts another package's learners on the search path."""

    def add(package: str, code: str = "", **points: str) -> None:
        folder = tmp_path / package
        register(folder, package, "2.0", {GROUP: points})
        (folder / f"{package}_module.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, f"{package}_module", raising=False)

    return add


LEARNER = """
from dualform.learners.base import Learner
class Mine(Learner):
    name = "mine"
    def adapt(self, context): ...
MINE = Mine()
"""


def test_the_installed_entry_points_are_those_of_the_source_tree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == OWN


@pytest.mark.parametrize("group", OWN)
def test_every_entry_of_our_own_can_be_loaded_and_bears_its_name(group):
    for name in OWN[group]:
        assert getattr(Registry(group, "entry", object)[name], "name", None) == name


def test_another_packages_learner_comes_after_our_own_and_says_where_it_is_from(other):
    before = LEARNERS.names()
    assert before == LEARNERS.own
    other("theirs", LEARNER, mine="theirs_module:MINE")
    assert LEARNERS.names() == (*before, "mine")
    assert isinstance(LEARNERS["mine"], Learner)
    assert added_modules() == (("theirs_module", "2.0"),)


def test_an_unknown_name_is_reported_with_those_that_are_known(other):
    with pytest.raises(ConfigError, match=f"unknown learner 'mime': choose among {', '.join(LEARNERS.own)} "):
        LEARNERS["mime"]
    other("theirs", LEARNER, mine="theirs_module:MINE")
    assert LEARNERS.problems(["zsl", "mime", "x"]) == [
        f"unknown learners 'mime', 'x': choose among {', '.join(LEARNERS.own)}, mine (a package adds one by an "
        "entry point in dualform.learners)"
    ]
    assert LEARNERS.get("mime") is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise ValueError('no such thing')",
            "mine of the package theirs cannot be loaded .*ValueError: no such thing",
        ),
        ("", "cannot be loaded from theirs_module:MINE: AttributeError"),
        ("MINE = 3", "is a int, but should be an instance of dualform.learners.base.Learner"),
        (LEARNER.replace('"mine"', '"yours"'), "the entry point mine in dualform.learners is the learner 'yours'"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named_with_its_package(other, code, words):
    other("theirs", code, mine="theirs_module:MINE")
    with pytest.raises(ConfigError, match=words):
        LEARNERS["mine"]


def test_a_name_that_two_packages_use_is_refused_and_no_other(other):
    other("theirs", LEARNER, mine="theirs_module:MINE", ft="theirs_module:MINE")
    other("ours", LEARNER, mine="ours_module:MINE")
    with pytest.raises(ConfigError, match="the learner 'mine' is defined by ours and by theirs"):
        LEARNERS["mine"]
    with pytest.raises(ConfigError, match="the learner 'ft' is defined by dualform and by theirs"):
        LEARNERS["ft"]
    assert LEARNERS["zsl"].name == "zsl"

import shutil
from pathlib import Path

import pytest

import dualform
from dualform.source_digest import digest_of_source, source_digest
from tests.packages import register

PACKAGE = Path(dualform.__file__).parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of some of the package."""
    for name in ("errors.py", "seeds.py", "ops/cosine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PACKAGE / name, tmp_path / name)
    return tmp_path


def test_it_is_that_of_the_installed_package_and_short() -> None:
    assert source_digest() == digest_of_source(PACKAGE)
    assert len(source_digest()) == 16


def test_any_change_of_the_source_changes_it(package: Path) -> None:
    seen = [digest_of_source(package)]
    path = package / "ops" / "cosine.py"
    path.write_text(path.read_text().replace("return", "return ", 1))
    seen.append(digest_of_source(package))
    path.rename(path.with_name("sine.py"))
    seen.append(digest_of_source(package))
    (package / "empty.py").touch()
    seen.append(digest_of_source(package))

    assert len(set(seen)) == 4


def test_two_machines_with_the_same_source_agree(package: Path) -> None:
    before = digest_of_source(package)
    for path in package.rglob("*.py"):
        # As a checkout on Windows may lie there.
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"\0")

    assert digest_of_source(package) == before


def test_a_package_that_adds_to_it_counts_with_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = source_digest()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    helper = tmp_path / "theirs" / "helper.py"
    seen = [ours]
    for version, code in (("1.0", "a = 1\n"), ("1.0", "a = 2\n"), ("1.1", "a = 2\n")):
        # Installed anew each time, since what is installed is read once for a search path.
        folder = tmp_path / f"installed {len(seen)}"
        helper.write_text(code)
        shutil.copytree(tmp_path / "theirs", folder / "theirs")
        register(folder, "theirs", version, {"dualform.measures": {"their_measure": "theirs.helper:MEASURE"}})
        with monkeypatch.context() as here:
            here.syspath_prepend(folder)
            seen.append(source_digest())

    assert len(set(seen)) == 4
    assert source_digest() == ours


def test_one_module_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "alone.py").write_text(f"a = {number}\n")
        register(folder, "alone", "1.0", {"dualform.studies": {"mine": "alone:STUDY"}})
        with monkeypatch.context() as here:
            here.syspath_prepend(folder)
            seen.add(source_digest())
    assert len(seen) == 2

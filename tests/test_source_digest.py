import shutil
from pathlib import Path

import pytest

import dualform
from dualform.source_digest import digest_of_source, source_digest

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

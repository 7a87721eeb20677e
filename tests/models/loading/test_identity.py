"""A model's identity covers every byte that loading reads, and a large file is read again only when it changed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualform.models.loading import identity
from dualform.models.loading.identity import digest_of_weights, file_digest, model_identity
from dualform.studies.experiment import weights_digest
from tests.models.loading.test_load_adapters import save_adapter
from tests.studies.small import small_lm
from tests.tiny import save_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def swap_two_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    rows[[100, 101]] = rows[[101, 100]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_two_rows_swapped_make_another_model(folder: Path) -> None:
    before = model_identity(str(folder))
    swap_two_rows(folder)
    assert model_identity(str(folder)) != before
    swap_two_rows(folder)
    assert model_identity(str(folder)) == before


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.bpe", "model.tiktoken", "code/more.py"]
)
def test_every_file_that_loading_may_read_counts(name: str, folder: Path) -> None:
    before = model_identity(str(folder))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + " ")
    assert model_identity(str(folder)) != before


def test_a_card_and_a_place_do_not_count(folder: Path, tmp_path: Path) -> None:
    before = model_identity(str(folder))
    (folder / "README.md").write_text("a card")
    shutil.copytree(folder, tmp_path / "copy")
    assert model_identity(str(folder)) == model_identity(str(tmp_path / "copy")) == before


def test_an_adapter_is_another_model_than_its_base_and_changes_with_it(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(folder, tmp_path / "adapter")
    before = model_identity(str(adapter))
    assert before != model_identity(str(folder))
    swap_two_rows(folder)
    changed = model_identity(str(adapter))
    assert changed != before
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    assert model_identity(str(adapter)) != changed


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_SMALL", 10)
    monkeypatch.setattr(identity, "_SETTLED", -1.0)
    monkeypatch.setattr(identity, "_CHUNK", 7)
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []
    digest_of = identity._digest_of

    def counted(path: Path) -> str:
        read.append(path)
        return digest_of(path)

    monkeypatch.setattr(identity, "_digest_of", counted)
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(100)))
    first = file_digest(path)
    assert file_digest(path) == first
    assert len(read) == 1

    # The same size, and the time of modification put back.
    times = path.stat()
    path.write_bytes(bytes([*range(98), 99, 98]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert file_digest(path) != first
    assert len(read) == 2

    # What was kept is damaged, or cannot be kept at all.
    for kept in (tmp_path / "cache" / "digests").iterdir():
        kept.write_text("{no")
    path.write_bytes(bytes(range(100)))
    assert file_digest(path) == first
    monkeypatch.setenv("DUALFORM_CACHE", str(path / "below a file"))
    assert file_digest(path) == first


def test_a_file_that_was_just_written_is_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two edits within one step of the file system's clock look alike.
    monkeypatch.setattr(identity, "_SMALL", 10)
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    file_digest(path)
    assert not list((tmp_path / "cache" / "digests").iterdir())


def test_weights_in_memory_are_digested_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    swapped = weight.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    digests = {
        digest_of_weights([("w", weights)]) for weights in (weight, swapped, weight.T, weight.bfloat16(), weight[:49])
    }
    assert len(digests) == 5
    assert digest_of_weights([("w", weight.clone())]) == digest_of_weights([("w", weight.T.contiguous().T)])
    assert digest_of_weights([("w", weight)]) != digest_of_weights([("v", weight)])
    assert digest_of_weights([("w", weight)], torch.bfloat16) == digest_of_weights([("w", weight.bfloat16())])
    assert digest_of_weights([("w", torch.tensor(1.0)), ("e", torch.zeros(0))])
    # Large ones in chunks, of which each byte counts as well.
    monkeypatch.setattr(identity, "_SMALL", 10)
    monkeypatch.setattr(identity, "_CHUNK", 64)
    assert digest_of_weights([("w", weight)]) != digest_of_weights([("w", swapped)])
    assert digest_of_weights([("w", weight)]) == digest_of_weights([("w", weight.clone())])


def test_the_inputs_of_a_study_change_with_two_rows() -> None:
    lm = small_lm()
    before = weights_digest(lm)
    rows = lm.model.get_input_embeddings().weight.data
    try:
        rows[[100, 101]] = rows[[101, 100]]
        assert weights_digest(lm) != before
    finally:
        rows[[100, 101]] = rows[[101, 100]]
    assert weights_digest(lm) == before


def test_the_commit_of_a_hub_model_is_read_off_the_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0a1b2c"
    cached = {("owner/model", "config.json"): str(snapshot / "config.json")}
    monkeypatch.setattr(identity, "try_to_load_from_cache", lambda name, file: cached.get((name, file)))
    assert identity.cached_commit("owner/model") == "0a1b2c"
    assert identity.cached_commit("owner/other") is None
    assert identity.cached_commit("smollm2-135m") is None


def test_a_folder_has_no_commit_though_the_hub_may_have_a_model_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(identity, "try_to_load_from_cache", lambda name, file: "/snapshots/0a1b2c/config.json")
    assert identity.cached_commit("owner/model") is None

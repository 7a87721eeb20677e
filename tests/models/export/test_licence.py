from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dualform.models.export import licence
from dualform.models.export.licence import Licence, front_matter, licence_in, licence_of


def test_a_packaged_model_has_the_licence_of_its_makers() -> None:
    assert licence_of("smollm2-135m") == Licence("apache-2.0")
    assert licence_of("gemma3-270m") == Licence("gemma")
    assert Licence("apache-2.0").free
    assert not Licence("gemma").free


def test_a_folder_has_what_its_card_says(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert licence_of(str(tmp_path)) == Licence("mit")
    (tmp_path / "model.gguf").touch()
    assert licence_of(str(tmp_path / "model.gguf")) == Licence("mit")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    assert licence_of(str(tmp_path)) is None


def test_a_gemma_without_a_card_is_a_gemma(tmp_path: Path) -> None:
    assert licence_of(str(tmp_path), "gemma3_text") == Licence("gemma")
    assert licence_of(str(tmp_path), "llama") is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    assert licence_of(str(tmp_path), "gemma4") == Licence("apache-2.0"), "later ones come under another"


def test_a_folder_with_a_packaged_models_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma3-270m").mkdir()
    assert licence_of("gemma3-270m") is None


def test_a_hub_models_card_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\nlicense_link: LICENSE\n---\n", encoding="utf-8")
    monkeypatch.setattr(licence, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert licence_of("org/name") == Licence("llama3.2", None, "LICENSE")


def test_a_hub_that_does_not_answer_leaves_the_licence_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert licence_of("org/no-such-model") is None
    assert licence_of("not a name") is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, None),
        ({"license": ""}, None),
        ({"license": 3}, None),
        ({"license": ["mit", "gemma"]}, Licence("gemma")),
        ({"license": ["mit", "apache-2.0"]}, Licence("mit")),
        ({"license": "other", "license_name": "own", "license_link": 1}, Licence("other", "own", None)),
    ],
)
def test_front_matter_may_name_one_several_or_none(header: dict[str, object], expected: Licence | None) -> None:
    assert licence_in(header) == expected


def metadata_of(card: str, folder: Path) -> dict[str, object] | None:
    (folder / "README.md").write_bytes(card.encode())
    return front_matter(folder / "README.md")


def test_front_matter_is_read_at_the_top_only(tmp_path: Path) -> None:
    assert metadata_of("---\na: 1\n---\ntext", tmp_path) == {"a": 1}
    assert metadata_of("\ufeff---\r\na: 1\r\n---\r\n", tmp_path) == {"a": 1}
    assert metadata_of("text\n---\na: 1\n---\n", tmp_path) is None
    assert metadata_of("---\na: 1\n", tmp_path) is None
    with pytest.raises(ValueError, match="dict"):
        metadata_of("---\n[1]\n---\n", tmp_path)
    with pytest.raises(ValueError, match="found"):
        metadata_of("---\na: [\n---\n", tmp_path)
    with pytest.raises(OSError, match="none"):
        front_matter(tmp_path / "none")


@pytest.mark.parametrize(
    "card",
    [
        "---\nnote: see---\nlicense: other\n---\n# A\n",
        "---\r\nnote: see --- \r\nlicense: other\r\n---",
        "---\nnote: see---\n\nlicense: other\n---\ntext\n---\n",
        "\n \n---\nlicense: other\n---\n",
        "---\nlicense: other\nnote: ---x\n---\n",
    ],
)
def test_front_matter_ends_where_the_hubs_own_reader_ends_it(card: str, tmp_path: Path) -> None:
    header = metadata_of(card, tmp_path)
    assert header is not None
    assert header["license"] == ModelCard(card).data.to_dict()["license"] == "other"


def test_front_matter_may_be_empty(tmp_path: Path) -> None:
    assert not metadata_of("---\n---\n# A model\n", tmp_path)
    assert not metadata_of("---\n---", tmp_path)
    assert not metadata_of("---\n\n---\n", tmp_path)

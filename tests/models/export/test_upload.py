"""Upload of folded models with the real client to a hub on this machine."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from dualform._version import __version__
from dualform.errors import ConfigError, HubError
from dualform.models.export import upload as hub_upload
from dualform.models.export.card import CardFacts, model_card
from dualform.models.export.licence import GEMMA_NOTICE, Licence
from dualform.models.export.upload import Uploaded, UploadFile, card_metadata, plan_upload, upload
from tests.models.hub_stub import Hub, served

FACTS = CardFacts(
    base="org/base",
    task="sst2",
    n_demonstrations=8,
    seed=1,
    rows=(3, 4),
    method="ridge",
    settings={},
    changed=("model.layers.0.self_attn.o_proj.weight",),
    licence=Licence("apache-2.0"),
    dataset="stanfordnlp/sst2",
)
NAME = "me/folded"


def card(**changes: Any) -> str:
    return model_card(CardFacts(**{**vars(FACTS), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as written by `dualform fold`."""
    checkpoint = tmp_path / "folded"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({"w": torch.arange(64.0)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "README.md").write_text(card(), encoding="utf-8")
    return checkpoint


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    save_file({"w": torch.arange(4.0)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text(card(form="adapter"), encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a token. Large files use the older of the client's two protocols, which needs no further server."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with served() as server:
        yield server


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*anything: Any, **more: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# What would be sent.


@pytest.mark.usefixtures("no_network")
def test_a_plan_names_every_file_its_size_and_the_cards_metadata(folder: Path) -> None:
    plan = plan_upload(folder, NAME)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert plan.files == tuple(UploadFile(name, sizes[name]) for name in sorted(sizes))
    assert plan.size == sum(sizes.values())
    assert plan.private
    assert (plan.licence, plan.notes) == (Licence("apache-2.0"), ())
    assert plan.card["base_model"] == "org/base"
    assert plan.card["datasets"] == ["stanfordnlp/sst2"]
    assert "license: apache-2.0" in card_metadata(plan).splitlines()


@pytest.mark.usefixtures("no_network")
def test_an_adapter_may_go_too(adapter: Path) -> None:
    plan = plan_upload(adapter, NAME, private=False)
    assert not plan.private
    assert plan.card["base_model_relation"] == "adapter"
    assert plan.notes == ()


@pytest.mark.parametrize(
    "repo_id", ["folded", "a/b/c", "", "me/", "me/a b", "-me/x", "me/x..y", "me/" + "x" * 97, "../x"]
)
def test_an_invalid_repository_name_is_an_error(folder: Path, repo_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_upload(folder, repo_id)
    assert str(caught.value).startswith(f"{repo_id!r} is not a valid repository name")
    assert "OWNER/NAME" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "may run code when they are loaded"),
        ("optimizer.pt", "may run code when they are loaded"),
        ("state/scaler.PKL", "may run code when they are loaded"),
        ("modeling_custom.py", "not part of a checkpoint"),
        (".env", "not part of a checkpoint"),
        ("notes.txt", "not part of a checkpoint"),
        ("checkpoint-10/config.json", "not part of a checkpoint"),
        ("model\n.safetensors", "not part of a checkpoint"),
    ],
)
def test_a_file_that_is_not_part_of_a_checkpoint_prevents_the_upload(folder: Path, name: str, words: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        plan_upload(folder, NAME)
    assert words in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_studys_result_is_not_uploaded(folder: Path) -> None:
    for name in ("result.json", "report.html"):
        (folder / name).write_text("{}", encoding="utf-8")
    planned = {file.name for file in plan_upload(folder, "me/folded").files}
    assert not planned & {"result.json", "report.html"}
    assert "model.safetensors" in planned


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"'vocab\.json', a link"):
        plan_upload(folder, NAME)


def test_other_files_of_a_checkpoint_may_be_uploaded(folder: Path) -> None:
    for name in ("LICENSE", "NOTICE", ".gitattributes", "tokenizer.model", "merges.txt", "chat_template.jinja"):
        (folder / name).write_text("x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    assert "additional_chat_templates/tools.jinja" in [file.name for file in plan_upload(folder, NAME).files]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "README.md"])
def test_an_incomplete_checkpoint_is_not_uploaded(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(ConfigError) as caught:
        plan_upload(folder, NAME)
    assert lost in str(caught.value)


def test_a_part_that_the_index_names_must_be_there(folder: Path) -> None:
    parts = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (folder / "model.safetensors").rename(folder / parts["w"])
    with pytest.raises(ConfigError, match=r"is incomplete: model-00002-of-00002\.safetensors missing"):
        plan_upload(folder, NAME)
    save_file({"v": torch.zeros(1)}, folder / parts["v"])
    assert len(plan_upload(folder, NAME).files) == 6


def test_truncated_weights_are_not_uploaded(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match="is not a valid safetensors file"):
        plan_upload(folder, NAME)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A model\n", "has no metadata at the top"),
        ("---\n---\n# A model\n", "has no metadata at the top"),
        ("---\ntags: [a\n---\n", "cannot be read"),
        ("---\n- a\n---\n", "should be a dict"),
        ("---\nlicense: 3\n---\n", "license 3"),
        ("---\ntags: [1]\n---\n", "tags [1]"),
        ("---\nbase_model: /home/me/model\n---\n", "base_model '/home/me/model'"),
        ("---\ndatasets: [a b]\n---\n", "datasets 'a b'"),
        ("---\n!!python/object/apply:os.system [exit]\n---\n", "cannot be read"),
    ],
)
def test_a_card_that_the_hub_would_reject_is_an_error(folder: Path, text: str, words: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        plan_upload(folder, NAME)
    assert words in str(caught.value)


def test_what_a_card_lacks_is_noted(folder: Path, adapter: Path) -> None:
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# x\n", encoding="utf-8")
    notes = plan_upload(folder, NAME).notes
    assert [note.partition(" ")[2].partition(",")[0] for note in notes[:1]] == ["card has no licence"]
    assert len(notes) == 3
    about = {"base_model_name_or_path": "/home/me/models/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    (note,) = plan_upload(adapter, NAME).notes
    assert "/home/me/models/base" in note


@pytest.mark.parametrize("how", ["card", "config", "base model", "adapter"])
def test_gemma_is_uploaded_only_if_its_terms_are_accepted(folder: Path, adapter: Path, how: str) -> None:
    where = adapter if how == "adapter" else folder
    if how == "card":
        (folder / "README.md").write_text(card(licence=Licence("gemma")), encoding="utf-8")
    elif how == "config":
        (folder / "README.md").write_text(card(licence=None), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps({"model_type": "gemma3_text"}), encoding="utf-8")
    elif how == "base model":
        (folder / "README.md").write_text(card(licence=None, base="google/gemma-3-270m"), encoding="utf-8")
    else:
        (adapter / "README.md").write_text(card(licence=None, base="x", base_is_local=True), encoding="utf-8")
        about = {"base_model_name_or_path": "google/gemma-3-270m"}
        (adapter / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        plan_upload(where, NAME)
    assert "Gemma Terms of Use" in str(caught.value)
    assert "--accept-terms" in str(caught.value)
    plan = plan_upload(where, NAME, accept_terms=True)
    assert plan.licence == Licence("gemma")
    assert any(GEMMA_NOTICE in note for note in plan.notes)
    (where / "NOTICE").write_text(GEMMA_NOTICE)
    assert not any(GEMMA_NOTICE in note for note in plan_upload(where, NAME, accept_terms=True).notes)


@pytest.mark.parametrize("licence", ["llama3.2", "cc-by-nc-4.0", "other", "openrail", "no-such-licence"])
def test_terms_of_ones_own_are_for_a_person_to_accept(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(card(licence=Licence(licence, "my terms", "https://a.b/c")), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is subject to licence terms \(https://a\.b/c\)"):
        plan_upload(folder, NAME)
    assert plan_upload(folder, NAME, accept_terms=True).licence == Licence(licence, "my terms", "https://a.b/c")


def test_a_value_that_ends_in_dashes_does_not_hide_the_licence_after_it(folder: Path) -> None:
    text = "---\ntags: [dualform]\nlicense_note: see---\nlicense: other\nlicense_name: x\n---\n# A\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is subject to licence terms \(licence x\)"):
        plan_upload(folder, NAME)


# Sending it.


def test_a_new_repository_is_private_and_gets_the_files_in_one_commit(folder: Path, hub: Hub) -> None:
    sent = upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert sent == Uploaded(f"{hub.url}/{NAME}/commit/{'1' * 40}", private=True)
    assert hub.one("/api/repos/create").json == {"name": "folded", "organization": "me", "visibility": "private"}
    assert hub.repositories[NAME]["private"]
    assert hub.repositories[NAME]["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    header = hub.one("/commit/main").lines[0]
    assert header["value"]["summary"] == f"Add a model folded by dualform {__version__}"
    assert all(request.headers["authorization"] == "Bearer hf_right" for request in hub.asked)
    assert f"dualform/{__version__}" in hub.asked[0].headers["user-agent"]
    assert hub.one("/api/validate-yaml").json["content"] == (folder / "README.md").read_text(encoding="utf-8")


def test_large_files_go_to_the_large_store(folder: Path, hub: Hub) -> None:
    hub.lfs_from = 200
    large = {path.name: path for path in folder.iterdir() if path.stat().st_size >= 200}
    assert set(large) == {"model.safetensors", "README.md"}
    upload(plan_upload(folder, NAME), message="Mine", endpoint=hub.url)
    batch = hub.one("/info/lfs/objects/batch")
    assert batch.path == f"/{NAME}.git/info/lfs/objects/batch"
    assert {entry["size"] for entry in batch.json["objects"]} == {path.stat().st_size for path in large.values()}
    # A token belongs to the hub, not to the store that it sends one to.
    assert all("authorization" not in request.headers for request in hub.asked if request.path.startswith("/large/"))
    kinds = {line["value"].get("path"): line["key"] for line in hub.one("/commit/main").lines}
    assert {kinds[name] for name in large} == {"lfsFile"}
    assert kinds["config.json"] == "file"
    assert hub.one("/commit/main").lines[0]["value"]["summary"] == "Mine"
    assert hub.repositories[NAME]["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_is_public_if_requested(folder: Path, hub: Hub) -> None:
    assert not upload(plan_upload(folder, NAME, private=False), endpoint=hub.url).private
    assert not hub.repositories[NAME]["private"]


def test_a_private_repository_stays_private_and_is_reported_as_such(folder: Path, hub: Hub) -> None:
    hub.repositories[NAME] = {"private": True, "files": {}}
    assert upload(plan_upload(folder, NAME, private=False), endpoint=hub.url).private
    assert hub.repositories[NAME]["private"]
    assert not any("/api/repos/create" in path for path in hub.paths)


def test_a_second_upload_goes_into_the_same_repository(folder: Path, hub: Hub) -> None:
    upload(plan_upload(folder, NAME), endpoint=hub.url)
    (folder / "README.md").write_text(card(task="mr"), encoding="utf-8")
    upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert b"`mr`" in hub.repositories[NAME]["files"]["README.md"]


def test_a_private_plan_is_not_uploaded_to_a_public_repository(folder: Path, hub: Hub) -> None:
    hub.repositories[NAME] = {"private": False, "files": {}}
    with pytest.raises(ConfigError, match="already exists and is public: nothing was uploaded"):
        upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert [path.partition("?")[0] for path in hub.paths] == [f"GET /api/models/{NAME}"]
    upload(plan_upload(folder, NAME, private=False), endpoint=hub.url)
    assert hub.repositories[NAME]["files"]


def test_weights_are_not_put_among_those_of_another_model(adapter: Path, hub: Hub) -> None:
    hub.repositories[NAME] = {"private": True, "files": {"README.md": b"", "model.safetensors": b""}}
    with pytest.raises(ConfigError, match=r"contains model\.safetensors, weights of another model"):
        upload(plan_upload(adapter, NAME), endpoint=hub.url)
    assert hub.repositories[NAME]["files"] == {"README.md": b"", "model.safetensors": b""}


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("/api/repos/create", 403, "this token may not write to me. Use one with write access"),
        ("/api/repos/create", 500, "the hub refused (HTTP 500: no luck\\x1b[31m)."),
        ("/commit/main", 403, "this token may not write to me"),
        ("/commit/main", 409, "me/folded is being changed by someone else. Try again"),
        ("/commit/main", 404, "the hub cannot find me/folded"),
        ("/preupload/", 429, "too many requests"),
        ("/info/lfs", 413, "it is too large for the hub"),
        ("/large/", 403, "this token may not write to me"),
        ("/api/validate-yaml", 400, "Invalid metadata in README.md. - no luck."),
    ],
)
@pytest.mark.filterwarnings("ignore:'?.* thrown while requesting:UserWarning")
def test_a_refusal_is_one_sentence(
    folder: Path, hub: Hub, part: str, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.lfs_from = 200
    answer: dict[str, Any] = {"error": "no luck\x1b[31m"}
    hub.refuse[part] = (status, {"errors": [{"message": "no luck"}]} if status == 400 else answer)
    # The client waits before it asks again.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(HubError) as caught:
        upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert str(caught.value).startswith("me/folded was not uploaded: ")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert "hf_right" not in str(caught.value)
    assert not hub.repositories.get(NAME, {}).get("files")
    # What is left behind is not kept from whoever sent it.
    assert (NAME in hub.repositories) == str(caught.value).endswith("The repository was created and is empty.")


@pytest.mark.filterwarnings("ignore:'?.* thrown while requesting:UserWarning")
def test_a_hub_that_does_not_say_what_is_there_is_not_sent_anything(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuse[f"/api/models/{NAME}"] = (500, {"error": "no luck"})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match=r"the hub refused \(HTTP 500: no luck\)"):
        upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert hub.repositories == {}


def test_a_wrong_token_is_named_in_the_error(folder: Path, hub: Hub) -> None:
    with pytest.raises(HubError, match=r"the access token is not valid\. Log in again with `hf auth login`"):
        upload(plan_upload(folder, NAME), endpoint=hub.url, token="hf_wrong")


def test_a_missing_token_is_an_error_before_any_request(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_upload, "get_token", lambda: None)
    with pytest.raises(HubError, match="no access token for the hub: log in with `hf auth login`, or set HF_TOKEN"):
        upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_is_named_in_the_error(folder: Path, hub: Hub) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(HubError, match=rf"{nowhere} could not be reached \(.*\)\. Try again with a network"):
        upload(plan_upload(folder, NAME), endpoint=nowhere)


def test_offline_mode_is_named_in_the_error(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set\. Unset it"):
        upload(plan_upload(folder, NAME), endpoint=hub.url)
    assert hub.asked == []


# The card, as the client reads it.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"library_name": "transformers", "base_model": "org/base", "license": "apache-2.0"}),
        ({"form": "adapter"}, {"library_name": "peft", "base_model": "org/base"}),
        ({"base": "smollm2-135m"}, {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}),
        ({"base_is_local": True}, {"base_model": None}),
        ({"licence": Licence("other", "mine", "https://a.b")}, {"license": "other", "license_name": "mine"}),
        ({"licence": None, "dataset": None}, {"license": None, "datasets": None}),
    ],
)
def test_the_hubs_own_reader_finds_the_metadata(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    data = ModelCard(card(**changes)).data.to_dict()
    assert data["pipeline_tag"] == "text-generation"
    assert {"dualform", "in-context-learning"} <= set(data["tags"])
    for name, value in expected.items():
        assert data.get(name) == value

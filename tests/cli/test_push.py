"""`dualform push`: what would be uploaded is shown, and uploaded only with --upload."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from huggingface_hub import constants
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from dualform.cli.push import push
from dualform.models.export.card import CardFacts, model_card
from dualform.models.export.licence import Licence
from tests.cli.conftest import Done
from tests.models.hub_stub import Hub, served
from tests.studies.small import write_csv
from tests.tiny import save_tiny

NAME = "me/folded"


def run(*arguments: str | Path) -> Done:
    app = typer.Typer()
    app.command()(push)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint and a model card."""
    save_tiny("llama", tmp_path / "folded")
    write_card(tmp_path / "folded", "apache-2.0")
    return tmp_path / "folded"


def write_card(folder: Path, licence: str) -> None:
    facts = CardFacts("org/base", "reviews", 4, 1, (), "ridge", {}, (), licence=Licence(licence))
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with served() as result:
        # As HF_ENDPOINT sets it when the client is imported.
        monkeypatch.setattr(constants, "ENDPOINT", result.url)
        yield result


def test_without_upload_everything_is_shown_and_nothing_sent(folder: Path, hub: Hub) -> None:
    done = run(folder, NAME)

    assert done.code == 0, done.err
    assert hub.asked == []
    output = " ".join(done.out.split())
    assert f"to {NAME} (private): " in output
    for path in folder.iterdir():
        assert path.name in output
    assert "base_model: org/base" in done.out
    assert "license: apache-2.0" in done.out
    assert done.message == "Nothing was uploaded. Add --upload to upload it."


def test_upload_sends_what_was_shown(folder: Path, hub: Hub) -> None:
    done = run(folder, NAME, "--upload", "--message", "First")

    assert done.code == 0, done.err
    assert done.message == f"Uploaded: {hub.url}/{NAME}/commit/{'1' * 40}"
    assert hub.repositories[NAME]["private"]
    assert hub.repositories[NAME]["files"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.one("/commit/").lines[0]["value"]["summary"] == "First"


def test_public_and_terms_need_their_own_options(folder: Path, hub: Hub) -> None:
    write_card(folder, "gemma")
    refused = run(folder, NAME, "--upload")
    assert refused.code == 2
    assert "--accept-terms" in refused.message
    assert hub.asked == []
    done = run(folder, NAME, "--upload", "--accept-terms", "--public")
    assert done.code == 0, done.err
    assert not hub.repositories[NAME]["private"]
    assert "Gemma's terms require a file NOTICE" in " ".join(done.out.split())


def test_a_private_repository_stays_private_with_a_note(folder: Path, hub: Hub) -> None:
    hub.repositories[NAME] = {"private": True, "files": {}}
    done = run(folder, NAME, "--upload", "--public")
    assert done.code == 0, done.err
    assert hub.repositories[NAME]["private"]
    assert f"Note: {NAME} already exists and is private" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-owner",), "'no-owner' is not a valid repository name"),
        (("me/a b",), "'me/a b' is not a valid repository name"),
        ((NAME, "--upload"), "this token may not write to me"),
    ],
)
def test_a_mistake_is_one_sentence_and_two(folder: Path, hub: Hub, arguments: tuple[str, ...], words: str) -> None:
    hub.refuse["/commit/"] = (403, {"error": "Forbidden"})
    done = run(folder, *arguments)

    assert done.code == 2
    assert done.message.startswith("error: ")
    assert words in done.message
    assert "Traceback" not in done.err


def test_a_folder_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", NAME)
    assert done.code == 2
    assert "there is no folder" in done.message


@pytest.mark.parametrize("form", ["checkpoint", "lora"])
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_a_folded_checkpoint_is_uploaded_completely_and_loads_there(
    dualform: Callable[..., Done], hub: Hub, tmp_path: Path, form: str
) -> None:
    base, prose = tmp_path / "base", tmp_path / "prose.txt"
    save_tiny("llama", base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    write_csv(tmp_path / "tickets.csv")
    prose.write_text("a cold and plain morning, and with wit and grace it went\none of the worst films\n", "utf-8")
    small = ["--text", "body", "--label", "topic", "-k", "4", "--limit", "8", "--resamples", "50", "--fold-texts", "12"]
    done = dualform(
        *("fold", base, tmp_path / "tickets.csv", *small, "--plain", prose, "--as", form, "--to", tmp_path / "folded")
    )
    assert done.code == 0, done.err
    done = run(tmp_path / "folded", NAME, "--upload")
    assert done.code == 0, done.err
    assert "license: mit" in done.out
    assert "does not name the base model's hub id" in " ".join(done.out.split())

    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.repositories[NAME]["files"].items():
        (arrived / name).write_bytes(content)
    if form == "lora":
        assert "adapter_config.json names its base model by a local folder" in " ".join(done.out.split())
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(arrived))
    else:
        AutoModelForCausalLM.from_pretrained(arrived)
        AutoTokenizer.from_pretrained(arrived)

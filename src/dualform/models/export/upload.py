"""A folded model on the hub: what would be sent is checked and shown first, and nothing else is ever sent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from dualform._version import __version__
from dualform.errors import ConfigError, HubError
from dualform.models.export.files import CARD, OF_A_STUDY, PART_OF_A_MODEL, PICKLED, WEIGHTS
from dualform.models.export.licence import GEMMA_NOTICE, Licence, front_matter, licence_in
from dualform.plain_text import plain


@dataclass(frozen=True)
class UploadFile:
    """One file that would be sent."""

    name: str
    """Inside the folder and inside the repository, `/` between parts."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class UploadPlan:
    """What would be sent where; made by `plan_upload`, sent by `upload`."""

    folder: Path
    repo_id: str
    """`owner/name`."""
    private: bool
    """Whether a new repository is private."""
    files: tuple[UploadFile, ...]
    card: Mapping[str, Any]
    """The card's front matter."""
    licence: Licence | None
    """As the card has it, or Gemma's where the model is one; None where nothing is said."""
    notes: tuple[str, ...]
    """What a careful person would mend first, in sentences."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Uploaded:
    """What `upload` did."""

    address: str
    """Of the commit."""
    private: bool
    """Whether the repository is; one that was there already stays what it was."""


def plan_upload(folder: Path, repo_id: str, *, private: bool = True, accept_terms: bool = False) -> UploadPlan:
    """Check a checkpoint's or an adapter's folder and say what would be sent; nothing asks the network.

    Args:
        folder: As `dualform fold` writes it: weights (safetensors), config, tokenizer, card.
        repo_id: `owner/name` on the hub.
        private: Make a new repository private.
        accept_terms: Whoever sends it keeps to the terms of the base model's licence, where it has terms of its own.

    Returns:
        The plan, with notes on what is not wrong but wanting.

    Raises:
        ConfigError: The folder is no whole checkpoint or adapter, holds what must not be sent (pickled files, code,
            links, anything else that is no part of a checkpoint), has no readable card, or comes under terms that
            were not accepted; or `repo_id` is no such name.
    """
    _check_repo_id(repo_id)
    if not folder.is_dir():
        raise ConfigError(f"no folder at {folder}. Give the folder that dualform fold wrote.")
    files = tuple(_files(folder))
    names = {file.name for file in files}
    configs = names & {"config.json", "adapter_config.json"}
    if not configs:
        raise ConfigError(
            f"{folder} holds neither config.json nor adapter_config.json, so it is no checkpoint and no adapter. Give "
            "the folder that dualform fold wrote."
        )
    config = {name: _json(folder / name) for name in sorted(configs)}
    _check_weights(folder, names)
    card = _card(folder)
    licence = licence_in(card)
    if licence is None and _is_gemma(card, config.values()):
        licence = Licence("gemma")
    if licence is not None and not licence.free and not accept_terms:
        text = GEMMA_NOTICE if licence.id == "gemma" else licence.link or f"licence {licence.name or licence.id}"
        raise ConfigError(
            f"{folder} comes under terms of its own ({text}): read what they ask of whoever passes a changed model on. "
            "With --accept-terms you say that you keep to them."
        )
    notes = _notes(card, config, licence, names)
    return UploadPlan(folder, repo_id, private, files, card, licence, tuple(notes))


def upload(
    plan: UploadPlan, *, message: str | None = None, endpoint: str | None = None, token: str | None = None
) -> Uploaded:
    """Send a plan's files in one commit: a reader of the hub sees all of them or none.

    A repository is made only where there is none of this name.

    Args:
        plan: From `plan_upload`.
        message: Of the commit.
        endpoint: Of the hub; `$HF_ENDPOINT` or the public one by default.
        token: To log in by; `$HF_TOKEN` or the saved one by default.

    Returns:
        Where the files are, and who may see them: a private repository is not made public here.

    Raises:
        ConfigError: The repository is public though a private one was asked for, or holds other weights.
        HubError: No token, or the hub did not answer or refused; the message says which.
    """
    token = token or get_token()
    if token is None:
        raise HubError("no token for the hub: log in with `hf auth login`, or set HF_TOKEN to one that may write.")
    api = HfApi(endpoint=endpoint, token=token, library_name="dualform", library_version=__version__)
    # Not `upload_folder`, which would leave out in silence a file that is gone since the plan was made.
    operations = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=plan.folder / file.name) for file in plan.files
    ]
    made = False
    try:
        try:
            found = api.model_info(plan.repo_id, timeout=30)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            api.create_repo(plan.repo_id, private=plan.private, exist_ok=True)
            made = True
            found = api.model_info(plan.repo_id, timeout=30)
        # What was there before is for its owner to say, and somebody else may have made it just now.
        _check_repository(plan, bool(found.private), [sibling.rfilename for sibling in found.siblings or ()])
        done = api.create_commit(
            plan.repo_id,
            operations=operations,
            commit_message=message or f"Add a model folded by dualform {__version__}",
        )
    except (HfHubHTTPError, TransportError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
        raise _explained(error, plan.repo_id, api.endpoint, made) from error
    return Uploaded(str(done.commit_url), bool(found.private))


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is no name of a repository ({str(error).splitlines()[0]}): give OWNER/NAME, of letters, "
            "digits, -, _ and . alone."
        ) from error


def _files(folder: Path) -> list[UploadFile]:
    """Everything in the folder but a study's result, all of which must be fit to be sent."""
    found: list[UploadFile] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ConfigError(f"{folder} holds {name!r}, a link, and what it points at may be anything. Copy the file.")
        if path.is_dir():
            continue
        if not path.is_file():
            raise ConfigError(f"{folder} holds {name!r}, a device or a pipe, which cannot be sent. Remove it.")
        if name in OF_A_STUDY:
            # Numbers and settings of this machine, its paths among them; the card says what others need.
            continue
        if PICKLED.fullmatch(name):
            raise ConfigError(
                f"{folder} holds {name!r}: pickled and packed arrays may run code when they are read, so they are not "
                "sent. Remove it, or save it as safetensors."
            )
        if not PART_OF_A_MODEL.fullmatch(name):
            raise ConfigError(
                f"{folder} holds {name!r}, which is no part of a checkpoint or an adapter. Remove it, or send a folder "
                "without it: whatever is in the folder is sent."
            )
        found.append(UploadFile(name, path.stat().st_size))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Fold again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no map of names. Fold again.")
    return found


def _check_weights(folder: Path, names: set[str]) -> None:
    """Check that the weights are there, all of them, and are what their names say."""
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    wanted = {"adapter_model.safetensors"} if "adapter_config.json" in names else {"model.safetensors"}
    index = "model.safetensors.index.json"
    if index in names:
        parts = _json(folder / index).get("weight_map")
        if not isinstance(parts, dict):
            raise ConfigError(f"{folder / index} has no weight_map that names the files. Fold again.")
        wanted = {str(part) for part in parts.values()}
    missing = sorted(wanted - set(weights))
    if missing or not weights:
        raise ConfigError(f"{folder} lacks {', '.join(missing) or 'weights'}: it is not whole. Fold again.")
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{folder / name} is no safetensors file ({error}). Fold again.") from error


def _card(folder: Path) -> dict[str, Any]:
    """Front matter of the card, checked as far as that can be done here."""
    path = folder / CARD
    remedy = "Fold again, or mend it: the hub shows it as the model's page."
    try:
        header = front_matter(path)
    except OSError as error:
        raise ConfigError(f"{folder} has no card ({CARD}). {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"the metadata at the top of {path} cannot be read ({error}). {remedy}") from error
    if not header:
        raise ConfigError(f"{path} has no metadata at its top, between lines of ---. {remedy}")
    wrong = [
        f"{name} {header[name]!r}"
        for name in ("license", "tags", "datasets", "base_model")
        if name in header and not _words(header[name])
    ]
    wrong += [
        f"{name} {value!r}"
        for name in ("base_model", "datasets")
        for value in _listed(header.get(name))
        if isinstance(value, str) and not _is_hub_name(value)
    ]
    if wrong:
        raise ConfigError(f"the metadata at the top of {path} has what the hub refuses: {'; '.join(wrong)}. {remedy}")
    return header


def _words(value: object) -> bool:
    found = _listed(value)
    return bool(found) and all(isinstance(word, str) and word for word in found)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _is_gemma(card: Mapping[str, Any], configs: Any) -> bool:
    """Whether the model is of a family whose terms hold whatever its card leaves out."""
    names = [str(name) for name in _listed(card.get("base_model"))]
    for config in configs:
        names += [str(config.get("model_type", "")), str(config.get("base_model_name_or_path", ""))]
    return any("gemma" in name.lower() for name in names)


def _notes(
    card: Mapping[str, Any], config: Mapping[str, Mapping[str, Any]], licence: Licence | None, names: set[str]
) -> list[str]:
    notes: list[str] = []
    if licence is None:
        notes.append(
            "The card names no licence, for that of the base model is not known: readers will not know what they may "
            "do. Find it, and add `license:` to the card."
        )
    elif licence.id == "gemma" and not any(name.startswith("NOTICE") for name in names):
        notes.append(f"Gemma's terms ask for a file NOTICE that says: “{GEMMA_NOTICE}”.")
    if "base_model" not in card:
        notes.append("The card names no base model by its name on the hub, which will not show where this one is from.")
    if "dualform" not in _listed(card.get("tags")):
        notes.append("The card lacks the tag dualform, by which folded models are found.")
    base = str(config.get("adapter_config.json", {}).get("base_model_name_or_path") or "")
    if base and not _is_hub_name(base):
        notes.append(
            f"adapter_config.json names its base as a folder of this machine ({base}): readers see that path, and must "
            "load the base by another name."
        )
    return notes


def _check_repository(plan: UploadPlan, private: bool, names: Sequence[str]) -> None:
    if plan.private and not private:
        raise ConfigError(
            f"{plan.repo_id} is there already and is public: nothing was sent. Give --public if that is what you want, "
            "or choose another name."
        )
    planned = {file.name for file in plan.files}
    other = sorted(name for name in names if WEIGHTS.fullmatch(name) and name not in planned)
    if other:
        raise ConfigError(
            f"{plan.repo_id} holds {other[0]}, weights of another model, among which these would lie: nothing was "
            "sent. Choose another name, or remove them on the hub."
        )


def _explained(error: Exception, repo_id: str, endpoint: str, made: bool) -> HubError:
    """What went wrong, in one sentence and a remedy, and what is left on the hub."""
    reason = _reason(error, repo_id, endpoint)
    left = " The repository was made before, and is there, empty." if made else ""
    return HubError(f"{repo_id} was not sent: {reason}.{left}")


def _reason(error: Exception, repo_id: str, endpoint: str) -> str:
    root: BaseException = error
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        # The client's own words, about the card or an answer that it cannot read, say more than the answer.
        return _one_line(str(error))
    while not isinstance(root, HfHubHTTPError | TransportError) and root.__cause__ is not None:
        # The client wraps what happened to a file.
        root = root.__cause__
    if isinstance(root, HfHubHTTPError):
        status = root.response.status_code
        owner = repo_id.partition("/")[0]
        known = {
            401: "the hub does not know this token. Log in anew with `hf auth login`",
            403: f"this token may not write to {owner}. Use one with write access, or another owner",
            404: f"the hub has no such place as {repo_id}. Check the owner's name",
            409: f"somebody else is changing {repo_id} at this moment. Try again",
            413: "the hub finds it too large",
            429: "the hub was asked too often. Try again later",
        }
        said = _one_line(root.server_message or "")
        reason = known.get(status, "the hub refused")
        return f"{reason} (HTTP {status}{': ' + said if said else ''})"
    if isinstance(root, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it"
    said = _one_line(str(root)) or type(root).__name__
    if isinstance(root, TransportError):
        return f"{endpoint} could not be reached ({said}). Try again with a network"
    return said


def _one_line(text: str) -> str:
    """An answer of the hub's, fit for a terminal."""
    return plain(" ".join(text.split()))[:200].rstrip(".")


def shown_card(plan: UploadPlan) -> str:
    """The card's front matter as YAML, any letter of it plain."""
    return yaml.safe_dump(dict(plan.card), sort_keys=False, allow_unicode=False).rstrip()

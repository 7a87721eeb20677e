"""Upload of a folded model to the hub: the files are checked and listed first, and only those are sent."""

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
from dualform.models.export.files import CARD, MODEL_FILE, PICKLED, STUDY_FILES, WEIGHTS
from dualform.models.export.licence import GEMMA_NOTICE, Licence, front_matter, licence_in
from dualform.plain_text import plain


@dataclass(frozen=True)
class UploadFile:
    """One file to upload."""

    name: str
    """Path relative to the folder and to the repository, with `/` between parts."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class UploadPlan:
    """What to upload and where; made by `plan_upload`, carried out by `upload`."""

    folder: Path
    repo_id: str
    """`owner/name`."""
    private: bool
    """Whether a new repository is private."""
    files: tuple[UploadFile, ...]
    card: Mapping[str, Any]
    """The card's front matter."""
    licence: Licence | None
    """The licence in the card, or Gemma's for such a model; None if there is none."""
    notes: tuple[str, ...]
    """Problems that do not prevent the upload, as sentences."""

    @property
    def size(self) -> int:
        """Total bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Uploaded:
    """The outcome of `upload`."""

    address: str
    """URL of the commit."""
    private: bool
    """Whether the repository is private; an existing one keeps its visibility."""


def plan_upload(folder: Path, repo_id: str, *, private: bool = True, accept_terms: bool = False) -> UploadPlan:
    """Check a checkpoint's or an adapter's folder and list the files to upload, without using the network.

    Args:
        folder: Folder written by `dualform fold`: weights (safetensors), config, tokenizer, card.
        repo_id: `owner/name` on the hub.
        private: Make a new repository private.
        accept_terms: The user accepts the terms of the base model's licence, if it has terms of its own.

    Returns:
        The plan, with notes on problems that do not prevent the upload.

    Raises:
        ConfigError: The folder is not a complete checkpoint or adapter, contains files that must not be uploaded
            (pickled files, code, links or other files), has no readable card, or its licence was not accepted; or
            `repo_id` is not a valid name.
    """
    _check_repo_id(repo_id)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}. Give a folder written by dualform fold.")
    files = tuple(_files(folder))
    names = {file.name for file in files}
    configs = names & {"config.json", "adapter_config.json"}
    if not configs:
        raise ConfigError(
            f"{folder} contains neither config.json nor adapter_config.json, so it is not a checkpoint or adapter. "
            "Give a folder written by dualform fold."
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
            f"{folder} is subject to licence terms ({text}): read what they require when a changed model is "
            "redistributed. Confirm with --accept-terms that you comply with them."
        )
    notes = _notes(card, config, licence, names)
    return UploadPlan(folder, repo_id, private, files, card, licence, tuple(notes))


def upload(
    plan: UploadPlan, *, message: str | None = None, endpoint: str | None = None, token: str | None = None
) -> Uploaded:
    """Upload a plan's files in one commit, so that all of them appear at once.

    The repository is created if it does not exist. An existing one is never made public.

    Args:
        plan: From `plan_upload`.
        message: Commit message.
        endpoint: URL of the hub; by default `$HF_ENDPOINT`, or the public hub.
        token: Access token; by default `$HF_TOKEN`, or the saved one.

    Returns:
        URL of the commit, and whether the repository is private.

    Raises:
        ConfigError: The repository is public although the plan is private, or contains other weights.
        HubError: No token, or the hub did not answer or refused; the message names the reason.
    """
    token = token or get_token()
    if token is None:
        raise HubError(
            "no access token for the hub: log in with `hf auth login`, or set HF_TOKEN to a token with write access."
        )
    api = HfApi(endpoint=endpoint, token=token, library_name="dualform", library_version=__version__)
    # `upload_folder` would silently skip a file that was deleted after the plan was made.
    operations = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=plan.folder / file.name) for file in plan.files
    ]
    created = False
    try:
        try:
            info = api.model_info(plan.repo_id, timeout=30)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
            api.create_repo(plan.repo_id, private=plan.private, exist_ok=True)
            created = True
            info = api.model_info(plan.repo_id, timeout=30)
        # Checked in both cases: another process may have created the repository just now.
        _check_repository(plan, bool(info.private), [sibling.rfilename for sibling in info.siblings or ()])
        commit = api.create_commit(
            plan.repo_id,
            operations=operations,
            commit_message=message or f"Add a model folded by dualform {__version__}",
        )
    except (HfHubHTTPError, TransportError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
        raise _upload_error(error, plan.repo_id, api.endpoint, created) from error
    return Uploaded(str(commit.commit_url), bool(info.private))


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is not a valid repository name ({str(error).splitlines()[0]}): give OWNER/NAME, made of "
            "letters, digits, -, _ and . only."
        ) from error


def _files(folder: Path) -> list[UploadFile]:
    """All files in the folder except a study's result; raises if one must not be uploaded."""
    files: list[UploadFile] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ConfigError(f"{folder} contains {name!r}, a link, which is not uploaded. Replace it by a copy.")
        if path.is_dir():
            continue
        if not path.is_file():
            raise ConfigError(f"{folder} contains {name!r}, a device or a pipe, which cannot be uploaded. Remove it.")
        if name in STUDY_FILES:
            # They contain local paths and settings; the card has what others need.
            continue
        if PICKLED.fullmatch(name):
            raise ConfigError(
                f"{folder} contains {name!r}: pickled files and packed arrays may run code when they are loaded, so "
                "they are not uploaded. Remove it, or save it as safetensors."
            )
        if not MODEL_FILE.fullmatch(name):
            raise ConfigError(
                f"{folder} contains {name!r}, which is not part of a checkpoint or an adapter. All files in the folder "
                "would be uploaded: remove it, or give a folder without it."
            )
        files.append(UploadFile(name, path.stat().st_size))
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Fold again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object. Fold again.")
    return content


def _check_weights(folder: Path, names: set[str]) -> None:
    """Check that all weight files are there and are safetensors."""
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    expected = {"adapter_model.safetensors"} if "adapter_config.json" in names else {"model.safetensors"}
    index = "model.safetensors.index.json"
    if index in names:
        parts = _json(folder / index).get("weight_map")
        if not isinstance(parts, dict):
            raise ConfigError(f"{folder / index} has no weight_map, which lists the weight files. Fold again.")
        expected = {str(part) for part in parts.values()}
    missing = sorted(expected - set(weights))
    if missing or not weights:
        raise ConfigError(f"{folder} is incomplete: {', '.join(missing) or 'weights'} missing. Fold again.")
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{folder / name} is not a valid safetensors file ({error}). Fold again.") from error


def _card(folder: Path) -> dict[str, Any]:
    """Read and check the card's front matter."""
    path = folder / CARD
    remedy = "Fold again, or correct the card: the hub shows it as the model's page."
    try:
        header = front_matter(path)
    except OSError as error:
        raise ConfigError(f"{folder} has no card ({CARD}). {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"the metadata at the top of {path} cannot be read ({error}). {remedy}") from error
    if not header:
        raise ConfigError(f"{path} has no metadata at the top, between lines of ---. {remedy}")
    invalid = [
        f"{name} {header[name]!r}"
        for name in ("license", "tags", "datasets", "base_model")
        if name in header and not _is_text(header[name])
    ]
    invalid += [
        f"{name} {value!r}"
        for name in ("base_model", "datasets")
        for value in _listed(header.get(name))
        if isinstance(value, str) and not _is_hub_name(value)
    ]
    if invalid:
        raise ConfigError(f"the metadata at the top of {path} are not valid: {'; '.join(invalid)}. {remedy}")
    return header


def _is_text(value: object) -> bool:
    entries = _listed(value)
    return bool(entries) and all(isinstance(entry, str) and entry for entry in entries)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_hub_name(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _is_gemma(card: Mapping[str, Any], configs: Any) -> bool:
    """Whether the model belongs to the Gemma family, whose terms apply even if the card does not name them."""
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
            "The card has no licence, because that of the base model is not known, so readers will not know what they "
            "may do. Look it up, and add `license:` to the card."
        )
    elif licence.id == "gemma" and not any(name.startswith("NOTICE") for name in names):
        notes.append(f"Gemma's terms require a file NOTICE with this text: “{GEMMA_NOTICE}”.")
    if "base_model" not in card:
        notes.append("The card does not name the base model's hub id, so the hub will not link to it.")
    if "dualform" not in _listed(card.get("tags")):
        notes.append("The card lacks the tag dualform, by which folded models are found.")
    base = str(config.get("adapter_config.json", {}).get("base_model_name_or_path") or "")
    if base and not _is_hub_name(base):
        notes.append(
            f"adapter_config.json names its base model by a local folder ({base}). This path will be public, and "
            "readers must find the base model themselves."
        )
    return notes


def _check_repository(plan: UploadPlan, private: bool, names: Sequence[str]) -> None:
    if plan.private and not private:
        raise ConfigError(
            f"{plan.repo_id} already exists and is public: nothing was uploaded. Add --public if that is what you "
            "want, or choose another name."
        )
    planned = {file.name for file in plan.files}
    other = sorted(name for name in names if WEIGHTS.fullmatch(name) and name not in planned)
    if other:
        raise ConfigError(
            f"{plan.repo_id} contains {other[0]}, weights of another model: nothing was uploaded. Choose another name, "
            "or remove them on the hub."
        )


def _upload_error(error: Exception, repo_id: str, endpoint: str, created: bool) -> HubError:
    """An error with the reason, the remedy, and what is left on the hub."""
    reason = _reason(error, repo_id, endpoint)
    left = " The repository was created and is empty." if created else ""
    return HubError(f"{repo_id} was not uploaded: {reason}.{left}")


def _reason(error: Exception, repo_id: str, endpoint: str) -> str:
    root: BaseException = error
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        # The client's own message is more informative than the hub's response.
        return _one_line(str(error))
    while not isinstance(root, HfHubHTTPError | TransportError) and root.__cause__ is not None:
        # The client wraps errors of single files.
        root = root.__cause__
    if isinstance(root, HfHubHTTPError):
        status = root.response.status_code
        owner = repo_id.partition("/")[0]
        known = {
            401: "the access token is not valid. Log in again with `hf auth login`",
            403: f"this token may not write to {owner}. Use one with write access, or another owner",
            404: f"the hub cannot find {repo_id}. Check the owner's name",
            409: f"{repo_id} is being changed by someone else. Try again",
            413: "it is too large for the hub",
            429: "too many requests. Try again later",
        }
        message = _one_line(root.server_message or "")
        reason = known.get(status, "the hub refused")
        return f"{reason} (HTTP {status}{': ' + message if message else ''})"
    if isinstance(root, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it"
    message = _one_line(str(root)) or type(root).__name__
    if isinstance(root, TransportError):
        return f"{endpoint} could not be reached ({message}). Try again with a network connection"
    return message


def _one_line(text: str) -> str:
    """A message from the hub in one line without control characters."""
    return plain(" ".join(text.split()))[:200].rstrip(".")


def card_metadata(plan: UploadPlan) -> str:
    """The card's front matter as YAML in ASCII."""
    return yaml.safe_dump(dict(plan.card), sort_keys=False, allow_unicode=False).rstrip()

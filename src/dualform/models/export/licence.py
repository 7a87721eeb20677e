"""The licence of a base model, which also applies to models derived from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

from dualform.models.loading.checkpoint_files import require_file
from dualform.models.loading.packaged import PACKAGED_MODELS

FREE = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "wtfpl", "cc0-1.0"),
        *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "mpl-2.0", "epl-2.0", "lgpl", "lgpl-2.1"),
        *("lgpl-3.0", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "artistic-2.0", "afl-3.0", "ecl-2.0", "ms-pl", "pddl"),
        *("odc-by", "bsl-1.0", "postgresql", "ncsa", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    }
)
"""Licences (identifiers on the hub) under which anyone may redistribute a changed model for any use."""

GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
"""Notice that these terms require with every copy."""


@dataclass(frozen=True)
class Licence:
    """A licence as named in model cards."""

    id: str
    """Identifier on the hub, such as `apache-2.0`, `gemma` or `other`."""
    name: str | None = None
    """Name of an `other` licence."""
    link: str | None = None
    """Link to its text."""

    @property
    def free(self) -> bool:
        """Whether anyone may redistribute a changed model for any use; False for unknown licences."""
        return self.id in FREE


def licence_of(name: str, model_type: str = "") -> Licence | None:
    """Find the licence of a model.

    Args:
        name: As in `load_model`. For a hub model whose card is not in the cache, the hub is asked once.
        model_type: `model_type` of the model's config; `gemma` is assumed for that family if no licence is found.

    Returns:
        The licence in the model's card or in the list of packaged models; None if there is none.
    """
    path = Path(name).expanduser()
    licence = None
    # The same order as in `find_model`.
    if path.exists():
        licence = _read(path if path.is_dir() else path.parent)
    elif name in PACKAGED_MODELS:
        known = PACKAGED_MODELS[name].licence
        licence = Licence(known) if known else None
    elif name.count("/") <= 1:
        licence = _from_hub(name)
    return licence or (Licence("gemma") if model_type.startswith("gemma") else None)


def licence_in(header: Mapping[str, Any]) -> Licence | None:
    """The licence in a card's front matter."""
    given = header.get("license")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    known = [name for name in names if isinstance(name, str) and name.strip()]
    if not known:
        return None
    # All of several licences apply, so the most restrictive one is reported.
    chosen = next((name for name in known if name not in FREE), known[0])
    own, link = header.get("license_name"), header.get("license_link")
    return Licence(chosen, own if isinstance(own, str) else None, link if isinstance(link, str) else None)


def front_matter(card: Path) -> dict[str, Any] | None:
    """Read the metadata at the top of a model card.

    Args:
        card: The file.

    Returns:
        The metadata; None if the card has none.

    Raises:
        ValueError: They are not a YAML mapping.
        OSError: The file cannot be read.
    """
    try:
        return metadata_load(card)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


_MOST_BYTES = 4 << 20
"""Largest size of a model card; a larger file is ignored."""


def _read(folder: Path) -> Licence | None:
    try:
        # The folder may be untrusted: the file could be huge, or a pipe that never ends.
        require_file(folder / "README.md", _MOST_BYTES)
        header = front_matter(folder / "README.md")
    except (OSError, ValueError):
        return None
    return licence_in(header or {})


def _from_hub(name: str) -> Licence | None:
    try:
        cached = try_to_load_from_cache(name, "README.md")
        if isinstance(cached, str):
            return _read(Path(cached).parent)
        data = HfApi().model_info(name, timeout=5).card_data
    except (OSError, ValueError, TransportError):
        # A cached model can be used without a network.
        return None
    return licence_in(data.to_dict()) if data is not None else None  # type: ignore[no-untyped-call]

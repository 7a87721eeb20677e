"""Under which terms a base model comes: what is made from it comes under them, too."""

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
"""Licences, by their names on the hub, under which anyone may pass a changed model on for any use."""

GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
"""What these terms ask for beside every copy."""


@dataclass(frozen=True)
class Licence:
    """Terms as model cards name them."""

    id: str
    """The hub's name, such as `apache-2.0`, `gemma` or `other`."""
    name: str | None = None
    """Own name of an `other` licence."""
    link: str | None = None
    """Where its text is."""

    @property
    def free(self) -> bool:
        """Whether anyone may pass a changed model on for any use; False for licences that we do not know."""
        return self.id in FREE


def licence_of(name: str, model_type: str = "") -> Licence | None:
    """The licence of a model, as far as it can be found.

    Args:
        name: As `load_model` takes it. The hub is asked, once, where the model is one of its and its card lies not in
            the cache.
        model_type: Of the model's config; the gemma family comes under its own terms whatever its folder says.

    Returns:
        What its card, or our own list of packaged models, says; None where nothing does.
    """
    path = Path(name).expanduser()
    found = None
    # In the order in which a model is looked for.
    if path.exists():
        found = _read(path if path.is_dir() else path.parent)
    elif name in PACKAGED_MODELS:
        known = PACKAGED_MODELS[name].licence
        found = Licence(known) if known else None
    elif name.count("/") <= 1:
        found = _from_hub(name)
    return found or (Licence("gemma") if model_type.startswith("gemma") else None)


def licence_in(header: Mapping[str, Any]) -> Licence | None:
    """What a card's front matter says."""
    given = header.get("license")
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    known = [name for name in names if isinstance(name, str) and name.strip()]
    if not known:
        return None
    # Of several, the one that asks for most: all of them hold.
    chosen = next((name for name in known if name not in FREE), known[0])
    own, link = header.get("license_name"), header.get("license_link")
    return Licence(chosen, own if isinstance(own, str) else None, link if isinstance(link, str) else None)


def front_matter(card: Path) -> dict[str, Any] | None:
    """Metadata at the top of a model card, as the hub's own client reads it.

    Args:
        card: The file.

    Returns:
        The map; None where the card has none, or an empty one.

    Raises:
        ValueError: It is no YAML, or no map of names.
        OSError: The file cannot be read.
    """
    try:
        return metadata_load(card)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


_MOST_BYTES = 4 << 20
"""Of a model card; a longer file is taken for none."""


def _read(folder: Path) -> Licence | None:
    try:
        # Anyone's file: it may be a pipe, which would never end, or huge.
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
        # The model itself may have come from the cache, without a network.
        return None
    return licence_in(data.to_dict()) if data is not None else None  # type: ignore[no-untyped-call]

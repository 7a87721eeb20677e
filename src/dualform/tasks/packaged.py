"""Four human-rated sentiment data sets from a package on the package index; neither a hub nor an account is needed.

Ratings are means over raters on a scale from -4 to 4. A rating above zero is positive. Ratings within 0.5 of zero
(inclusive) are left out, because raters disagree about their sign.

Source:
    Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text, ICWSM
    2014; the source archive of vaderSentiment 2.5 (MIT licence).
"""

import hashlib
import html
import json
import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from dualform.errors import HubError
from dualform.files import atomic_write, cache_dir, writable_dir
from dualform.package_index import Distribution, fetch
from dualform.tasks.directory import SPLITS, read_directory
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task_source import TaskSource, TaskSummary

DISTRIBUTION = Distribution(
    name="vaderSentiment",
    version="2.5",
    sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
    source=True,
)
INNER_ARCHIVE = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
LABEL_NAMES = ("negative", "positive")
NEUTRAL_WITHIN = 0.5
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@dataclass(frozen=True)
class PackagedSet:
    """One of the four sets."""

    title: str
    member: str
    """File name in the inner archive."""
    by_document: bool
    """Whether rows are sentences with ids `<document>_<sentence>`; a document is never divided between splits."""


PACKAGED_SETS: Mapping[str, PackagedSet] = {
    "reviews": PackagedSet("Film-review snippets", "movieReviewSnippets_GroundTruth.txt", by_document=False),
    "tweets": PackagedSet("Tweets", "tweets_GroundTruth.txt", by_document=False),
    "products": PackagedSet("Product-review sentences", "amazonReviewSnippets_GroundTruth.txt", by_document=True),
    "editorials": PackagedSet(
        "Newspaper-editorial sentences", "nytEditorialSnippets_GroundTruth.txt", by_document=True
    ),
}


def read_packaged(name: str) -> RawTask:
    """Rows of a packaged set, downloaded to the cache on first use.

    Args:
        name: A key of `PACKAGED_SETS`.

    Raises:
        HubError: The package index did not provide the archive.
        StorageError: The cache cannot be written.
    """
    if not is_local(name):
        _fetch_all()
    folder = folder_of(name)
    raw = read_directory(folder)
    return replace(raw, source=f"package index: {DISTRIBUTION.name} {DISTRIBUTION.version}")


def folder_of(name: str) -> Path:
    """Folder of a packaged set in the cache.

    Raises:
        StorageError: The cache cannot be written.
    """
    return cache_dir() / "data" / name


def is_local(name: str) -> bool:
    """Whether a packaged set is already in the cache."""
    folder = folder_of(name)
    return all((folder / file).is_file() for file in ("dataset.json", *(f"{split}.jsonl" for split in SPLITS)))


def _fetch_all() -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".data-") as temporary:
        archive = fetch(DISTRIBUTION, Path(temporary))
        # Members are read by name into memory, so that no path in the archive can write outside the folder.
        with tarfile.open(archive) as outer, tarfile.open(fileobj=_member(outer, INNER_ARCHIVE)) as inner:
            for name, packaged in PACKAGED_SETS.items():
                with _member(inner, f"hutto_ICWSM_2014/{packaged.member}") as file:
                    _write(name, packaged, _split_rows(packaged, _rated_texts(file.read().decode("utf-8"))))


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise HubError(f"the archive of {DISTRIBUTION.name} {DISTRIBUTION.version} has no file {name!r}.")
    return file


def _rated_texts(content: str) -> list[tuple[str, float, str]]:
    """(id, mean rating, text) of each line."""
    rated = []
    # str.splitlines would also split at other characters that occur in the texts.
    for line in content.split("\n"):
        if line.strip():
            identifier, rating, text = line.rstrip("\r").split("\t", 2)
            rated.append((identifier, float(rating), _unescaped(text).strip()))
    return rated


def _unescaped(text: str) -> str:
    """`text` with HTML entities such as `&amp;` resolved, repeatedly since some were escaped twice."""
    previous = None
    while previous != text:
        # Only with the semicolon: a bare "&copy" may be part of the text.
        previous, text = text, re.sub(r"&#?\w+;", lambda entity: html.unescape(entity.group()), text)
    return text


def _split_rows(packaged: PackagedSet, rated: Sequence[tuple[str, float, str]]) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    seen = set()
    for identifier, rating, text in rated:
        if abs(rating) <= NEUTRAL_WITHIN or text in seen:
            continue
        seen.add(text)
        unit = identifier.rsplit("_", 1)[0] if packaged.by_document else text
        splits[_split_of(unit)].append({"text": text, "label": int(rating > 0)})
    return splits


def _split_of(unit: str) -> str:
    """Split of a text or document, determined by its hash alone."""
    position = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8]) / 2**64
    if position < SHARES["train"]:
        return "train"
    return "validation" if position < SHARES["train"] + SHARES["validation"] else "test"


def _write(name: str, packaged: PackagedSet, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    folder = writable_dir(folder_of(name), remedy="Set DUALFORM_CACHE to a folder that you may write to.")
    about: dict[str, Any] = {
        "name": name,
        "title": packaged.title,
        "fields": {"text": "string", "label": "integer index into label_names"},
        "label_names": list(LABEL_NAMES),
        "splits": {},
        "split_note": (
            f"60 / 20 / 20 by the SHA-256 of the {'document number' if packaged.by_document else 'text'}; "
            "no random seed is involved."
        ),
        "processing": [
            f"Mean rating above zero is positive; ratings within {NEUTRAL_WITHIN} of zero (inclusive) are left out.",
            "HTML entities are resolved; surrounding white space and exact duplicates are removed.",
        ],
        "provenance": [{"package": DISTRIBUTION.name, "version": DISTRIBUTION.version, "sha256": DISTRIBUTION.sha256}],
        "licence": "MIT (vaderSentiment).",
        "citation": (
            "Hutto and Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media "
            "Text, ICWSM."
        ),
    }
    for split, rows in splits.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with atomic_write(folder / f"{split}.jsonl") as temporary:
            temporary.write_bytes(content)
        about["splits"][split] = {
            "file": f"{split}.jsonl",
            "rows": len(rows),
            "label_counts": [sum(row["label"] == label for row in rows) for label in range(len(LABEL_NAMES))],
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    # Written last, so that its presence means that the rows are complete.
    with atomic_write(folder / "dataset.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class PackagedTasks(TaskSource):
    """Data sets distributed in packages on the package index."""

    name = "packaged"

    def find(self, given: str) -> str | None:
        """The name itself if it is a packaged set."""
        return given if given in PACKAGED_SETS else None

    def read(self, which: str, options: TaskOptions) -> RawTask:
        """Rows of a packaged set."""
        return read_packaged(which)

    def is_local(self, which: str) -> bool:
        """Whether the set is in the cache."""
        return is_local(which)

    def tasks(self) -> list[TaskSummary]:
        """All packaged sets."""
        remote = f"package index: {DISTRIBUTION.name} {DISTRIBUTION.version}"
        return [
            TaskSummary(name, str(folder_of(name)) if (local := is_local(name)) else remote, LABEL_NAMES, local)
            for name in PACKAGED_SETS
        ]


PACKAGED = PackagedTasks()

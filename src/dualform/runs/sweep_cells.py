"""Which cells a sweep's groups consist of, and what each one's key in the store is."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dualform._version import __version__
from dualform.models.identity import model_identity
from dualform.runs.cell_store import CellKey
from dualform.runs.sweep_config import Group
from dualform.source_digest import source_digest
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import seeds_behind
from dualform.studies.settings import StudyConfig
from dualform.tasks.digest import task_digest
from dualform.tasks.sources import load_task

# Where things lie, and what only the summary reads, decide nothing about a seed's numbers.
PLACES = {"data_dir", "offload_folder"}
_SUMMARY = {"seeds", "resamples"}


@dataclass(frozen=True)
class GroupCell:
    """One cell of a group."""

    key: CellKey
    group: Group
    seed: int | None
    """None: the whole study, or what a comparison's seeds are put together to."""
    after: tuple[CellKey, ...] = ()
    """Cells that must be finished first: for a seed the one whose learning rates it takes."""
    pieces: Mapping[str, CellKey] = field(default_factory=dict)
    """Name of a piece (`seed 3`) -> the cell that holds it: the cell's own, and those it reads."""
    config: BaseModel | None = None
    """In place of the group's, when seeds failed: the settings with those that finished."""

    @property
    def settings(self) -> BaseModel:
        """What to run."""
        return self.config or self.group.config

    @property
    def warm(self) -> str:
        """What a worker should have loaded for it."""
        models = getattr(self.group.config, "models", None) or [getattr(self.group.config, "model", "")]
        return f"{' '.join(models)} {getattr(self.group.config, 'task', '')}"


class Identities:
    """Digests of models and data, each found once."""

    def __init__(self) -> None:
        self._found: dict[Any, str] = {}

    def model(self, name: str) -> str:
        """See `model_identity`."""
        return self._once(("model", name), lambda: model_identity(name))

    def task(self, config: StudyConfig) -> str:
        """See `task_digest`.

        Raises:
            DualformError: The task cannot be found or used.
        """
        columns = ("text", "label", "choices", "prompt", "label_words", "separator", "skip_bad_rows", "truncate")
        names = ("task", "data_dir", *columns, "reads_paper_rows")
        read = tuple(repr(getattr(config, name)) for name in names)
        return self._once(("task", *read), lambda: task_digest(config.load_task()))

    def other_task(self, name: str, data_dir: str | None) -> str:
        """The same of a task by its name."""
        return self._once(("other", name, data_dir), lambda: task_digest(load_task(name, data_dir=data_dir)))

    def file(self, name: str) -> str:
        """Digest of a file's content; of nothing where there is none, which the run will say."""
        path = Path(name).expanduser()
        return self._once(
            ("file", name), lambda: hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()[:16]
        )

    def _once(self, key: Any, find: Callable[[], str]) -> str:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


def cells_of(group: Group, identities: Identities) -> list[GroupCell]:
    """The cells of a group: a comparison's seeds, each one; another study as a whole.

    What a comparison's seeds are put together to is a cell too, see `assembled`.

    Raises:
        DualformError: A task cannot be found or used.
    """
    config = group.config
    if not isinstance(config, ComparisonConfig) or config.select != "none":
        settings = config.model_dump(mode="json", exclude=PLACES)
        return [GroupCell(_key(group.study, settings, read_by(config, identities)), group, None)]
    keys = _seed_keys(config, identities)
    found = []
    for seed in config.seeds:
        behind = seeds_behind(config, seed)
        pieces = {f"seed {one}": keys[one] for one in behind}
        found.append(GroupCell(keys[seed], group, seed, tuple(keys[one] for one in behind[:-1]), pieces))
    return found


def assembled(group: Group, seeds: Sequence[int], identities: Identities) -> GroupCell:
    """The cell in which finished seeds of a comparison are put together.

    Args:
        group: A comparison whose seeds are cells.
        seeds: Those that finished, at least one.
        identities: Where digests are kept.
    """
    config = group.config
    assert isinstance(config, ComparisonConfig)
    keys = _seed_keys(config, identities)
    # The first seed's learning rates serve the others, so it stays first.
    kept = config.model_copy(update={"seeds": tuple(seed for seed in config.seeds if seed in seeds)})
    settings = kept.model_dump(mode="json", exclude=PLACES)
    parts = {"settings": settings, "parts": [keys[seed].digest for seed in kept.seeds]}
    read = read_by(config, identities)
    key = CellKey({"cell": "comparison", **made_by(), "read": read, **parts})
    pieces = {f"seed {seed}": keys[seed] for seed in kept.seeds}
    return GroupCell(key, group, None, tuple(pieces.values()), pieces, kept)


def read_by(config: BaseModel, identities: Identities) -> dict[str, Any]:
    """Digests of everything outside its settings that a study's numbers hang on."""
    if not isinstance(config, StudyConfig):
        return {}
    models = getattr(config, "models", None) or (config.model,)  # type: ignore[attr-defined]
    found: dict[str, Any] = {
        "models": [identities.model(name) for name in models],
        "task": identities.task(config),
    }
    others = [name for name in (getattr(config, "other_task", None),) if name]
    others += [*getattr(config, "transfer", ()), *getattr(config, "compose", ())]
    if others:
        found["other_tasks"] = [identities.other_task(name, config.data_dir) for name in others]
    fold = getattr(config, "fold", None)
    files = [] if fold is None else [fold.calibration, fold.plain]
    files += [name for name in (getattr(config, "perplexity", None),) if name]
    files = [name for name in files if name not in ("train", "generated", "none")]
    if files:
        found["files"] = [identities.file(name) for name in files]
    return found


def _seed_keys(config: ComparisonConfig, identities: Identities) -> dict[int, CellKey]:
    settings = config.model_dump(mode="json", exclude=PLACES | _SUMMARY)
    read = read_by(config, identities)
    found = {}
    for seed in config.seeds:
        # A seed that searches for its own learning rates is the same cell whoever comes first.
        (first, *_) = seeds_behind(config, seed)
        found[seed] = _key("comparison seed", {**settings, "seed": seed, "rates_of": first}, read)
    return found


def _key(kind: str, settings: dict[str, Any], read: dict[str, Any]) -> CellKey:
    return CellKey({"cell": kind, **made_by(), "settings": settings, "read": read})


def made_by() -> dict[str, str]:
    """What every cell's identity says of the code that computes it."""
    return {"dualform": __version__, "source": source_digest()}


def by_digest(cells: Iterable[GroupCell]) -> dict[str, GroupCell]:
    """Cells by the digest of their key; one that two groups share is kept once."""
    found: dict[str, GroupCell] = {}
    for cell in cells:
        found.setdefault(cell.key.digest, cell)
    return found

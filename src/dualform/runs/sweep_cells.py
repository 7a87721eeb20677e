"""Which cells a sweep's groups consist of, and what each one's key in the store is."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dualform._version import __version__
from dualform.models.loading.identity import model_identity
from dualform.runs.cell_store import CellKey
from dualform.runs.sweep_config import Group
from dualform.source_digest import source_digest
from dualform.studies.settings import StudyConfig
from dualform.studies.study import STUDIES, SeedBySeed
from dualform.tasks.digest import task_digest
from dualform.tasks.sources import load_task

# Where things lie, and what only the summary reads, decide nothing about a seed's numbers.
PLACES = {"data_dir", "offload_folder"}


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
    def affinity(self) -> str:
        """What a worker should have loaded for it."""
        models = STUDIES[self.group.study].models(self.group.config)
        return f"{' '.join(models)} {getattr(self.group.config, 'task', '')}"


class DigestCache:
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
        return self._once(("file", name), lambda: _digest_of(Path(name).expanduser()))

    def _once(self, key: Any, find: Callable[[], str]) -> str:
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


def _digest_of(path: Path) -> str:
    if not path.is_file():
        return hashlib.sha256(b"").hexdigest()[:16]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cells_of(group: Group, identities: DigestCache) -> list[GroupCell]:
    """The cells of a group: its seeds, each one, where the study runs them one at a time; else the study as a whole.

    What seeds are put together to is a cell too, see `assembled`.

    Raises:
        DualformError: A task cannot be found or used.
    """
    config: Any = group.config
    seeds = STUDIES[group.study].seed_by_seed
    if seeds is None or not seeds.possible(config):
        settings = config.model_dump(mode="json", exclude=PLACES)
        return [GroupCell(_key(group.study, settings, digests(group.study, config, identities)), group, None)]
    keys = _seed_keys(group, seeds, identities)
    found = []
    for seed in config.seeds:
        behind = seeds.before(config, seed)
        pieces = {f"seed {one}": keys[one] for one in behind}
        found.append(GroupCell(keys[seed], group, seed, tuple(keys[one] for one in behind[:-1]), pieces))
    return found


def assembled(group: Group, seeds: Sequence[int], identities: DigestCache) -> GroupCell:
    """The cell in which finished seeds are put together.

    Args:
        group: One whose seeds are cells.
        seeds: Those that finished, at least one.
        identities: Where digests are kept.
    """
    config: Any = group.config
    study = STUDIES[group.study]
    assert study.seed_by_seed is not None
    keys = _seed_keys(group, study.seed_by_seed, identities)
    # The first seed may serve the others, so the order stays.
    finished = tuple(seed for seed in config.seeds if seed in seeds)
    kept = config.model_copy(update={"seeds": finished})
    settings = kept.model_dump(mode="json", exclude=PLACES)
    parts = {"settings": settings, "parts": [keys[seed].digest for seed in finished]}
    read = digests(group.study, config, identities)
    key = CellKey({"cell": study.result_name, **made_by(), "read": read, **parts})
    pieces = {f"seed {seed}": keys[seed] for seed in finished}
    return GroupCell(key, group, None, tuple(pieces.values()), pieces, kept)


def digests(study: str, config: Any, identities: DigestCache) -> dict[str, Any]:
    """Digests of everything outside its settings on which a study's numbers depend."""
    reads = STUDIES[study].reads(config)
    found: dict[str, Any] = {}
    if reads.models:
        found["models"] = [identities.model(name) for name in reads.models]
    if reads.task:
        found["task"] = identities.task(config)
    if reads.other_tasks:
        found["other_tasks"] = [identities.other_task(name, config.data_dir) for name in reads.other_tasks]
    if reads.files:
        found["files"] = [identities.file(name) for name in reads.files]
    return found


def _seed_keys(group: Group, seeds: SeedBySeed, identities: DigestCache) -> dict[int, CellKey]:
    config: Any = group.config
    settings = config.model_dump(mode="json", exclude=PLACES | seeds.only_summary)
    read = digests(group.study, config, identities)
    kind = f"{STUDIES[group.study].result_name} seed"
    found = {}
    for seed in config.seeds:
        # A seed that depends on no other is the same cell whoever comes first.
        (first, *_) = seeds.before(config, seed)
        found[seed] = _key(kind, {**settings, "seed": seed, "rates_of": first}, read)
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

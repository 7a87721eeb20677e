"""The cells of a sweep's groups and their keys in the store."""

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

PATH_SETTINGS = {"data_dir", "offload_folder"}
"""Settings that a cell's key leaves out, because paths do not affect its numbers."""


@dataclass(frozen=True)
class GroupCell:
    """One cell of a group."""

    key: CellKey
    group: Group
    seed: int | None
    """None for a cell that runs the whole study, or that combines finished seeds."""
    depends_on: tuple[CellKey, ...] = ()
    """Cells that must be finished first, such as the seed from which another seed takes its learning rates."""
    pieces: Mapping[str, CellKey] = field(default_factory=dict)
    """Name of a piece, such as `seed 3` -> the cell that holds it: this cell, or one that it reads."""
    config: BaseModel | None = None
    """Settings restricted to the seeds that finished, in a cell that combines them."""

    @property
    def settings(self) -> BaseModel:
        """Settings of the study to run."""
        return self.config or self.group.config

    @property
    def affinity(self) -> str:
        """Names of the models and task that the cell needs; engines prefer a worker that has them in memory."""
        models = STUDIES[self.group.study].models(self.group.config)
        return f"{' '.join(models)} {getattr(self.group.config, 'task', '')}"


class DigestCache:
    """Digests of models and data, each computed once."""

    def __init__(self) -> None:
        self._digests: dict[Any, str] = {}

    def model(self, name: str) -> str:
        """Digest of a model, see `model_identity`."""
        return self._cached(("model", name), lambda: model_identity(name))

    def task(self, config: StudyConfig) -> str:
        """Digest of a configuration's task, see `task_digest`.

        Raises:
            DualformError: The task cannot be found or used.
        """
        columns = ("text", "label", "choices", "prompt", "label_words", "separator", "skip_bad_rows", "truncate")
        names = ("task", "data_dir", *columns, "reads_paper_rows")
        values = tuple(repr(getattr(config, name)) for name in names)
        return self._cached(("task", *values), lambda: task_digest(config.load_task()))

    def other_task(self, name: str, data_dir: str | None) -> str:
        """Digest of a further task, given by its name."""
        return self._cached(("other", name, data_dir), lambda: task_digest(load_task(name, data_dir=data_dir)))

    def file(self, name: str) -> str:
        """Digest of a file's content. A missing file, which the run itself reports, has the digest of an empty one."""
        return self._cached(("file", name), lambda: _digest_of(Path(name).expanduser()))

    def _cached(self, key: Any, compute: Callable[[], str]) -> str:
        if key not in self._digests:
            self._digests[key] = compute()
        return self._digests[key]


def _digest_of(path: Path) -> str:
    if not path.is_file():
        return hashlib.sha256(b"").hexdigest()[:16]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cells_of(group: Group, digests: DigestCache) -> list[GroupCell]:
    """The cells of a group: one for each seed if the study runs seed by seed, else one for the whole study.

    Finished seeds are combined in a further cell, see `combined_cell`.

    Raises:
        DualformError: A task cannot be found or used.
    """
    config: Any = group.config
    seeds = STUDIES[group.study].seed_by_seed
    if seeds is None or not seeds.possible(config):
        settings = config.model_dump(mode="json", exclude=PATH_SETTINGS)
        return [GroupCell(_key(group.study, settings, input_digests(group.study, config, digests)), group, None)]
    keys = _seed_keys(group, seeds, digests)
    cells = []
    for seed in config.seeds:
        needed = seeds.before(config, seed)
        pieces = {f"seed {each}": keys[each] for each in needed}
        cells.append(GroupCell(keys[seed], group, seed, tuple(keys[each] for each in needed[:-1]), pieces))
    return cells


def combined_cell(group: Group, seeds: Sequence[int], digests: DigestCache) -> GroupCell:
    """The cell that combines finished seeds into a group's result.

    Args:
        group: A group with a cell per seed.
        seeds: The seeds that finished, at least one.
        digests: Cached digests of models and data.
    """
    config: Any = group.config
    study = STUDIES[group.study]
    assert study.seed_by_seed is not None
    keys = _seed_keys(group, study.seed_by_seed, digests)
    # In the configured order, because other seeds may depend on the first.
    finished = tuple(seed for seed in config.seeds if seed in seeds)
    kept = config.model_copy(update={"seeds": finished})
    settings = kept.model_dump(mode="json", exclude=PATH_SETTINGS)
    parts = {"settings": settings, "parts": [keys[seed].digest for seed in finished]}
    read = input_digests(group.study, config, digests)
    key = CellKey({"cell": study.result_name, **code_identity(), "read": read, **parts})
    pieces = {f"seed {seed}": keys[seed] for seed in finished}
    return GroupCell(key, group, None, tuple(pieces.values()), pieces, kept)


def input_digests(study: str, config: Any, digests: DigestCache) -> dict[str, Any]:
    """Digests of the models, tasks and files on which a study's numbers depend."""
    reads = STUDIES[study].reads(config)
    result: dict[str, Any] = {}
    if reads.models:
        result["models"] = [digests.model(name) for name in reads.models]
    if reads.task:
        result["task"] = digests.task(config)
    if reads.other_tasks:
        result["other_tasks"] = [digests.other_task(name, config.data_dir) for name in reads.other_tasks]
    if reads.files:
        result["files"] = [digests.file(name) for name in reads.files]
    return result


def _seed_keys(group: Group, seeds: SeedBySeed, digests: DigestCache) -> dict[int, CellKey]:
    config: Any = group.config
    settings = config.model_dump(mode="json", exclude=PATH_SETTINGS | seeds.only_summary)
    read = input_digests(group.study, config, digests)
    kind = f"{STUDIES[group.study].result_name} seed"
    keys = {}
    for seed in config.seeds:
        # The first seed is part of the key only if this seed depends on it.
        (first, *_) = seeds.before(config, seed)
        keys[seed] = _key(kind, {**settings, "seed": seed, "rates_of": first}, read)
    return keys


def _key(kind: str, settings: dict[str, Any], read: dict[str, Any]) -> CellKey:
    return CellKey({"cell": kind, **code_identity(), "settings": settings, "read": read})


def code_identity() -> dict[str, str]:
    """Version and source digest of dualform, which are part of every cell's identity."""
    return {"dualform": __version__, "source": source_digest()}


def by_digest(cells: Iterable[GroupCell]) -> dict[str, GroupCell]:
    """Cells by the digest of their key; a cell that several groups share is included once."""
    unique: dict[str, GroupCell] = {}
    for cell in cells:
        unique.setdefault(cell.key.digest, cell)
    return unique

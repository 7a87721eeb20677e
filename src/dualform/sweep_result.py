"""The schema of `sweep.json`, the result of a sweep, which `runs` write and `report` reads."""

from typing import Any, Literal

from pydantic import Field
from pydantic_core import from_json

from dualform.result import AnyResult, Number, Record
from dualform.schema_versions import require_known

SWEEP_SCHEMA_VERSION: Literal[1] = 1


class CellFailure(Record):
    """Why a cell has no result."""

    message: str
    """One line: the error's class and text."""
    traceback: str
    """All of it, as Python prints it; empty for a user's mistake, whose message says everything."""
    lost: bool = False
    """The worker died (killed, out of memory) instead of raising."""
    attempts: int = 1
    """How often it was tried."""


class SweepCell(Record):
    """One cell of the grid: one study of one model and task, for a comparison one demonstration seed of it."""

    key: str
    """Its address in the store: the digest of settings, version, data and model."""
    group: str
    """The group it belongs to, see `SweepGroup.name`."""
    seed: int | None
    """Demonstration seed; None where a cell is a whole study."""
    status: Literal["finished", "reused", "failed", "pending"]
    """`reused`: found finished in the store; `pending`: not begun, the sweep was stopped."""
    seconds: Number = None
    """What it took when it was run."""
    failure: CellFailure | None = None
    """Why it failed; None unless it did."""


class SweepGroup(Record):
    """All cells that differ in nothing but their seed, and what they found together."""

    name: str
    """Its folder below the sweep's, such as `smollm2-135m-sst2-k-4`."""
    study: str
    """`compare`, `stability`, `selection`, `folding` or `regress`."""
    model: str | None
    """Last part of the model's name; None for the laboratory."""
    task: str | None
    """Last part of its name; None for the laboratory."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The grid's other axes -> this group's values; empty without such axes."""
    result: AnyResult | None
    """None while a seed's cell is missing altogether; else over the seeds that finished."""
    missing_seeds: tuple[int, ...] = ()
    """Requested seeds that failed."""


class SweepResult(Record):
    """A sweep: groups, cells, and what it took."""

    schema_version: Literal[1] = Field(default=SWEEP_SCHEMA_VERSION, alias="schema")
    """Version of this schema, 1."""
    dualform: str
    """The version that wrote this."""
    name: str
    """The sweep's own, from its file."""
    study: Literal["sweep"] = "sweep"
    """Always `sweep`."""
    config: dict[str, Any]
    """The sweep's file as it was read, see `runs.sweep_config.SweepConfig`."""
    environment: dict[str, Any]
    """As in `result.json`, of the machine that drove the sweep."""
    engine: str
    """`local`, `ray` or `slurm`, with the number of workers."""
    groups: list[SweepGroup]
    """All groups."""
    cells: list[SweepCell]
    """All cells."""
    seconds: Number
    """Wall-clock time of the last call; earlier calls of a resumed sweep are not in it."""
    warnings: list[str] = Field(default_factory=list)
    """What to consider before relying on the numbers, one sentence each."""

    @classmethod
    def from_json(cls, text: str) -> "SweepResult":
        """Read `sweep.json`.

        Raises:
            ConfigError: A newer version of dualform wrote it.
            ValueError: The text is damaged, or does not follow the schema (`pydantic.ValidationError`).
        """
        fields = from_json(text)
        if isinstance(fields, dict):
            require_known(fields.get("schema"), SWEEP_SCHEMA_VERSION)
        return cls.model_validate(fields)

    def to_json(self) -> str:
        """Text of `sweep.json`."""
        return self.model_dump_json(by_alias=True, indent=1)

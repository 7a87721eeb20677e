"""The files in a sweep's folder, next to the folders of its groups.

    sweep.json         the results of all groups and the status of each cell
    results.parquet    one row for each group and learner
    report.html        the report, with links to those of the groups

Each file is written atomically.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dualform.errors import ConfigError
from dualform.files import atomic_write, show_path, writable_dir
from dualform.report.numerals import finite, known
from dualform.report.palette import learners_in_order
from dualform.result import Result
from dualform.runs.store import read_record
from dualform.runs.sweep_page import render_sweep
from dualform.runs.sweep_words import seed_spread
from dualform.sweep_result import SweepGroup, SweepResult

SWEEP_FILE = "sweep.json"
_REMEDY = "Free some space or choose another folder with --out."

_COLUMNS = pa.schema(
    [
        ("group", pa.string()),
        ("study", pa.string()),
        ("model", pa.string()),
        ("task", pa.string()),
        ("options", pa.string()),  # JSON, because an axis of the grid can have values of any type
        ("learner", pa.string()),
        ("seeds", pa.int64()),
        ("n", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
        ("seed_lowest", pa.float64()),
        ("seed_highest", pa.float64()),
        ("seed_sd", pa.float64()),
        ("majority_share", pa.float64()),
        ("majority_label", pa.string()),
        ("entropy", pa.float64()),
        ("agreement_with_icl", pa.float64()),
        ("recovered", pa.float64()),
        ("adapt_seconds", pa.float64()),
        ("search_seconds", pa.float64()),
        ("query_seconds", pa.float64()),
        ("tokens", pa.float64()),
        ("flops", pa.float64()),
    ]
)


def write_sweep(folder: Path, sweep: SweepResult) -> Path:
    """Write a sweep's files, `sweep.json` last.

    Args:
        folder: Created if it does not exist.
        sweep: A finished or unfinished sweep.

    Returns:
        Path of the report.

    Raises:
        StorageError: The folder cannot be created or written to.
    """
    writable_dir(folder, _REMEDY)
    with atomic_write(folder / "results.parquet", _REMEDY) as temporary:
        pq.write_table(results_table(sweep), temporary)
    page = _write_page(folder, sweep)
    with atomic_write(folder / SWEEP_FILE, _REMEDY) as temporary:
        temporary.write_text(sweep.to_json() + "\n", encoding="utf-8")
    return page


def read_sweep(folder: Path) -> SweepResult:
    """The results of a sweep.

    Raises:
        ConfigError: The folder holds no sweep, or one that is damaged or was written by a newer version of dualform.
    """
    path = folder / SWEEP_FILE
    if not path.exists():
        raise ConfigError(f"{show_path(folder)} has no {SWEEP_FILE}. Give the folder of a sweep (see --out).")
    return read_record(path, SweepResult.from_json, "sweep", "Restore the file, or run the sweep again.")


def holds_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (folder / SWEEP_FILE).is_file()


def write_sweep_report(folder: Path) -> Path:
    """Write the report of a sweep anew; the reports of its groups are unchanged.

    Returns:
        Path of the report.

    Raises:
        ConfigError: The folder holds no sweep.
        StorageError: The report cannot be written.
    """
    return _write_page(folder, read_sweep(folder))


def results_table(sweep: SweepResult) -> pa.Table:
    """One row for each group and learner, in the order of the sweep: accuracy and its spread, answers, cost.

    Shares are in [0, 1] and entropy in nats; missing numbers are null. Groups without accuracies have no row.
    """
    rows = [
        _row(group, group.result, learner)
        for group in sweep.groups
        if group.result is not None
        for learner in learners_in_order(group.result.accuracy)
    ]
    return pa.Table.from_pylist(rows, schema=_COLUMNS)


def _write_page(folder: Path, sweep: SweepResult) -> Path:
    page = folder / "report.html"
    text = render_sweep(sweep)
    with atomic_write(page, _REMEDY) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _row(group: SweepGroup, result: Result, learner: str) -> dict[str, Any]:
    accuracy, cost = result.accuracy[learner], result.cost.get(learner)
    predictions, against = result.predictions.get(learner), result.against_icl.get(learner)
    low, high = known(accuracy.ci95) or (None, None)
    lowest, highest, sd, _ = seed_spread(result, learner) or (None, None, None, 0)
    return {
        "group": group.name,
        "study": group.study,
        "model": group.model,
        "task": group.task,
        "options": json.dumps(group.options, default=str),
        "learner": learner,
        "seeds": len(accuracy.per_seed),
        "n": accuracy.n,
        "accuracy": finite(accuracy.mean),
        "accuracy_low": low,
        "accuracy_high": high,
        "seed_lowest": lowest,
        "seed_highest": highest,
        "seed_sd": sd,
        "majority_share": finite(predictions.majority_share) if predictions else None,
        "majority_label": predictions.majority_label if predictions else None,
        "entropy": finite(predictions.entropy) if predictions else None,
        "agreement_with_icl": finite(against.agreement.mean) if against else None,
        "recovered": finite(against.recovered.mean) if against else None,
        "adapt_seconds": finite(cost.adapt_seconds) if cost else None,
        "search_seconds": finite(cost.search_seconds) if cost else None,
        "query_seconds": finite(cost.query_seconds) if cost else None,
        "tokens": finite(cost.tokens) if cost else None,
        "flops": finite(cost.flops) if cost else None,
    }

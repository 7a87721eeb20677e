"""Parquet and Arrow files, whose sizes are looked at before they are unpacked."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.files import read_bytes, show_path
from dualform.tasks.decoding import larger, most_bytes, parsing, require_data
from dualform.tasks.labels import shown
from dualform.tasks.raw import Row, TableRows

_BYTES_OF_ROW = 50
"""What a row takes at least once it is read, so that a column of zeros, packed to nothing, counts too."""
_ROWS_AT_ONCE = 4096


def read_parquet(path: Path) -> TableRows:
    """Rows of a Parquet file.

    Raises:
        TaskError: The file is missing, damaged, or unpacks to more than is read.
    """
    import pyarrow.parquet

    most = most_bytes()
    content = read_bytes(path, most, TaskError, larger())
    require_data(content, path, "Parquet")
    with parsing(path, "Parquet"):
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        metadata = file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        _check_size(max(unpacked, metadata.num_rows * _BYTES_OF_ROW), metadata.num_rows, most, path)
        schema = file.schema_arrow
        _check_names(schema.names, path)
        # As dictionaries where they are packed as such: one long text in a million rows stays one text.
        packed = pyarrow.parquet.ParquetFile(
            io.BytesIO(content),
            page_checksum_verification=True,
            read_dictionary=[field.name for field in schema if _is_text(field.type)],
        )
        batches = packed.iter_batches(batch_size=_ROWS_AT_ONCE)
        return TableRows(_rows(batches, most, path), None, (), _class_names(schema))


def read_arrow(path: Path) -> TableRows:
    """Rows of an Arrow (or Feather) file, of the file or the stream format.

    Raises:
        TaskError: The file is missing, damaged, or unpacks to more than is read.
    """
    import pyarrow
    import pyarrow.ipc

    most = most_bytes()
    content = read_bytes(path, most, TaskError, larger())
    require_data(content, path, "Arrow")
    with parsing(path, "Arrow"):
        source = pyarrow.BufferReader(content)
        if content.startswith(b"ARROW1"):
            file = pyarrow.ipc.open_file(source)
            batches: Iterable[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            file = batches = pyarrow.ipc.open_stream(source)
        _check_names(file.schema.names, path)
        return TableRows(_rows(batches, most, path), None, (), _class_names(file.schema))


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_binary(kind))


def _rows(batches: Iterable[Any], most: int, path: Path) -> list[Row]:
    rows: list[Row] = []
    read = 0
    for batch in batches:
        batch.validate(full=True)
        read += sum(_unpacked_bytes(column) for column in batch.columns) + batch.num_rows * _BYTES_OF_ROW
        _check_size(read, len(rows) + batch.num_rows, most, path)
        rows += batch.to_pylist()
    return rows


def _unpacked_bytes(column: Any) -> int:
    """Bytes of a column's values, each counted as often as it stands there."""
    import pyarrow
    import pyarrow.compute as compute

    if pyarrow.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        lengths = compute.binary_length(column.dictionary).take(column.indices)
        return int(compute.sum(lengths.cast("int64")).as_py() or 0)
    return int(column.nbytes)


def _check_size(size: int, rows: int, most: int, path: Path) -> None:
    if size > most:
        raise TaskError(
            f"{show_path(path)} unpacks to {size:,} bytes or more ({rows:,} rows); at most {most:,} are read. "
            f"{larger()}"
        )


def _check_names(names: Iterable[str], path: Path) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise TaskError(f"{show_path(path)} has the column {shown(name)!r} {count} times. Rename one.")


def _class_names(schema: Any) -> Mapping[str, tuple[str, ...]]:
    """Column -> names of its numbers, as the `datasets` package writes them into a file's schema."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
        found = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    return {
        name: tuple(names)
        for name, names in found.items()
        if isinstance(names, list) and names and all(isinstance(one, str) for one in names)
    }

"""Read Parquet and Arrow files, checking their size before decompressing them."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.files import read_bytes, show_path
from dualform.tasks.decoding import most_bytes, parsing, require_data, size_remedy
from dualform.tasks.labels import abbreviate
from dualform.tasks.raw import Row, TableRows

_BYTES_OF_ROW = 50
"""Minimum memory of a row in bytes. It counts rows whose values compress to almost nothing."""
_ROWS_AT_ONCE = 4096


def read_parquet(path: Path) -> TableRows:
    """Rows of a Parquet file.

    Raises:
        TaskError: The file is missing, damaged or too large.
    """
    import pyarrow.parquet

    most = most_bytes()
    content = read_bytes(path, most, TaskError, size_remedy())
    require_data(content, path, "Parquet")
    with parsing(path, "Parquet"):
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        metadata = file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        _check_size(max(unpacked, metadata.num_rows * _BYTES_OF_ROW), metadata.num_rows, most, path)
        schema = file.schema_arrow
        _check_names(schema.names, path)
        # Dictionary-encoded columns stay encoded: a long text repeated in many rows is stored once.
        packed = pyarrow.parquet.ParquetFile(
            io.BytesIO(content),
            page_checksum_verification=True,
            read_dictionary=[field.name for field in schema if _is_text(field.type)],
        )
        batches = packed.iter_batches(batch_size=_ROWS_AT_ONCE)
        return TableRows(_rows(batches, most, path), None, (), _class_names(schema))


def read_arrow(path: Path) -> TableRows:
    """Rows of an Arrow (or Feather) file, in the file or the stream format.

    Raises:
        TaskError: The file is missing, damaged or too large.
    """
    import pyarrow
    import pyarrow.ipc

    most = most_bytes()
    content = read_bytes(path, most, TaskError, size_remedy())
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
    """Size of a column in bytes, counting repeated values each time they occur."""
    import pyarrow
    import pyarrow.compute as compute

    if pyarrow.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        lengths = compute.binary_length(column.dictionary).take(column.indices)
        return int(compute.sum(lengths.cast("int64")).as_py() or 0)
    return int(column.nbytes)


def _check_size(size: int, rows: int, most: int, path: Path) -> None:
    if size > most:
        raise TaskError(
            f"{show_path(path)} decompresses to at least {size:,} bytes ({rows:,} rows); the maximum is {most:,}. "
            f"{size_remedy()}"
        )


def _check_names(names: Iterable[str], path: Path) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise TaskError(
                f"{show_path(path)} has {count} columns named {abbreviate(name)!r}. Give each column a different name."
            )


def _class_names(schema: Any) -> Mapping[str, tuple[str, ...]]:
    """Class names by column, as the `datasets` package stores them in a file's schema."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
        class_names = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    return {
        name: tuple(names)
        for name, names in class_names.items()
        if isinstance(names, list) and names and all(isinstance(text, str) for text in names)
    }

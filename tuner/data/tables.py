"""Rows of parquet and arrow files as the JSON they stand for: no padding, no python objects, no bytes.

A struct column has the union of its rows' keys, and nulls where a row has none: those are taken out, at any depth. What is
no JSON is written as text (bytes as UTF-8, decimals as numbers, dates and times as ISO 8601); where that cannot be done,
the cell is a `NotText`, and only a row that uses it is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr

A_TIME = 1000
"""Rows that are made at once."""
WITH_BYTES = 32
"""The same where rows may hold pictures."""
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""How a picture's bytes begin."""


@dataclass(frozen=True, slots=True)
class NotText:
    """A cell of a table that cannot be written as text, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Binary(NotText):
    """The bytes of a picture."""

    value: bytes = b""


class _NotTextError(Exception):
    """Raised within a cell; becomes its NotText."""


Write = Callable[[Any], Any]


def broken_table(path: Path, kind: str, error: Exception) -> ConfigError:
    """The sentence for a parquet or arrow file that its library cannot read."""
    said = str(error).splitlines()[0].rstrip(".")
    return ConfigError(
        [
            Problem(
                "dataset",
                tr("{name} is not readable as {kind}: {said}.", name=path.name, kind=kind, said=said),
            )
        ]
    )


def table_batches(path: Path, kind: str) -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Rows of a parquet or arrow file a thousand at a time, and the share read. Raises ConfigError."""
    import pyarrow as pa

    try:
        yield from _parquet(path) if kind == "parquet" else _arrow(path)
    except (pa.ArrowException, OSError) as error:  # what ends too early is an OSError
        raise broken_table(path, kind, error) from error


def promised(path: Path) -> int:
    """How many rows a parquet file says it has."""
    from pyarrow import parquet

    return int(parquet.ParquetFile(path).metadata.num_rows)


def _parquet(path: Path) -> Iterator[tuple[list[dict[str, Any]], float]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    total, seen = max(file.metadata.num_rows, 1), 0
    for batch in file.iter_batches(batch_size=_a_time(file.schema_arrow)):
        seen += batch.num_rows
        yield table_rows(batch), seen / total


def _arrow(path: Path) -> Iterator[tuple[list[dict[str, Any]], float]]:
    for batch, share in arrow_batches(path):
        step = _a_time(batch.schema)
        for start in range(0, batch.num_rows, step):
            yield table_rows(batch.slice(start, step)), share


def _a_time(schema: Any) -> int:
    """How many rows of a table are made at once."""
    return WITH_BYTES if any("binary" in str(field.type) for field in schema) else A_TIME


def arrow_batches(path: Path) -> Iterator[tuple[Any, float]]:
    """The record batches of an arrow file, whether it is a file or a stream, memory-mapped."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
            for i in range(file.num_record_batches):
                yield file.get_batch(i), (i + 1) / file.num_record_batches
        except pa.ArrowInvalid:
            source.seek(0)
            size = max(source.size(), 1)
            for batch in pa.ipc.open_stream(source):
                yield batch, source.tell() / size


# --- one table's rows ----------------------------------------------------------------------------------------------


def table_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of a pyarrow table or record batch; a cell that is no text is a NotText."""
    import pyarrow as pa

    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):  # text that is no UTF-8, years beyond 9999
        rows = _cell_by_cell(table)
    writes = {f.name: write for f in table.schema if (write := _write(f.type)) is not None}
    for name, write in writes.items():
        for row in rows:
            value = row[name]
            if value is None or isinstance(value, NotText):
                continue
            try:
                row[name] = write(value)
            except _NotTextError as error:
                row[name] = NotText(str(error))
    return rows


def _cell_by_cell(table: Any) -> list[dict[str, Any]]:
    """The rows of a table some cells of which python has no value for."""
    columns = {name: table.column(i) for i, name in enumerate(table.schema.names)}
    return [{name: _cell(column[i]) for name, column in columns.items()} for i in range(table.num_rows)]


def _cell(scalar: Any) -> Any:
    import pyarrow as pa

    try:
        return scalar.as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return NotText(tr("{type} that cannot be read: {said}", type=scalar.type, said=said)[:160])


def _write(kind: Any) -> Write | None:
    """What makes values of an arrow type the JSON they stand for; None where they are already."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _parsed if kind.extension_name == "arrow.json" else _plain
    if types.is_struct(kind):
        return _struct({field.name: _write(field.type) for field in kind})
    if types.is_map(kind):
        return _map(_write(kind.item_type))
    if any(is_list(kind) for is_list in _LISTS(types)):
        inner = _write(kind.value_type)
        return _list(inner) if inner else None
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _write(kind.value_type)
    if any(is_bytes(kind) for is_bytes in _BYTES(types)):
        return _decoded
    if types.is_decimal(kind):
        return _number
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        return _iso
    known = types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return None if known or text else _plain


def _LISTS(types: Any) -> tuple[Callable[[Any], bool], ...]:  # noqa: N802  pyarrow is imported where it is used
    return (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )


def _BYTES(types: Any) -> tuple[Callable[[Any], bool], ...]:  # noqa: N802
    return (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)


def _struct(fields: dict[str, Write | None]) -> Write:
    odd = {name: write for name, write in fields.items() if write is not None}

    def write(value: dict[str, Any]) -> dict[str, Any]:
        kept = {name: given for name, given in value.items() if given is not None}
        for name, inner in odd.items():
            if name in kept:
                kept[name] = inner(kept[name])
        return kept

    return write


def _list(inner: Write) -> Write:
    return lambda values: [None if value is None else inner(value) for value in values]


def _map(inner: Write | None) -> Write:
    """A map's keys are a row's own, so that its nulls are data."""
    return lambda pairs: {str(k): v if v is None or inner is None else inner(v) for k, v in pairs}


def _parsed(value: Any) -> Any:
    """A cell of JSON text (`datasets` writes columns of mixed types so)."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _decoded(value: bytes) -> Any:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        if value.startswith(_MAGIC):
            return Binary(tr("{number:,} bytes of a picture", number=len(value)), value)
        raise _NotTextError(tr("{number:,} bytes that are no UTF-8 text", number=len(value))) from error


def _number(value: Any) -> str:
    return format(value, "f")


def _iso(value: Any) -> str:
    said: str = value.isoformat()
    return said


def _plain(value: Any) -> Any:
    """A value of any other type."""
    if isinstance(value, (str, int, float)):
        return value
    raise _NotTextError(tr("a value of type {name}", name=type(value).__name__))

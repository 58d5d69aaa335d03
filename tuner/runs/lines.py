"""The points in whole lines of metrics.jsonl: a few by json, many by Arrow, which takes a sixth of the time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.runs.curve import Steps, Values

Named = tuple[str, Steps, Values]
BLOCK = 2**22
"""Bytes that are read at a time."""
MANY = 2**18
"""Bytes from which on Arrow's import is worth its time."""
FURTHEST = 2**62


def blocks(path: Path, offset: int) -> Iterator[bytes]:
    """The file from a byte offset on, in pieces that end with a line. A half-written last line waits."""
    with path.open("rb") as file:
        file.seek(offset)
        rest = b""
        while piece := file.read(BLOCK):
            end = piece.rfind(b"\n") + 1
            if end:
                yield rest + piece[:end]
                rest = piece[end:]
            else:
                rest += piece


def points(block: bytes) -> list[Named]:
    """Each metric's steps and values, as they were written. What is no row of numbers is left out."""
    if len(block) >= MANY:
        # Arrow's own error is a ValueError. A block with a torn line in it is read by hand.
        with suppress(ValueError, KeyError, AttributeError):
            return _by_arrow(block)
    return _by_hand(block)


def _by_arrow(block: bytes) -> list[Named]:
    import pyarrow as pa
    from pyarrow import json as reader

    first = json.loads(block[: block.index(b"\n")])
    # Told what to expect it need not find out: half of the time.
    known = pa.schema(
        [(n, pa.int64() if n == "step" else pa.float64()) for n, v in first.items() if _is_number(v)]
    )
    table = reader.read_json(
        pa.BufferReader(block),
        read_options=reader.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=reader.ParseOptions(explicit_schema=known, unexpected_field_behavior="infer"),
    )
    steps, there = _cells(table["step"].chunk(0))
    if steps.dtype != np.int64 or not there.all():
        raise ValueError("a row without a step")
    found = []
    for name in table.column_names:
        column = table[name].chunk(0)  # one block, one chunk
        if name not in ("step", "time") and column.type in (pa.int64(), pa.float64()):
            values, there = _cells(column)
            found.append((name, steps[there], values[there].astype(float)))
    return found


def _cells(column: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """An Arrow array's numbers, and which of them there are. By its own way to numpy Arrow would import pandas."""
    valid, numbers = column.buffers()
    end = column.offset + len(column)
    cells = np.frombuffer(numbers, str(column.type).replace("double", "float64"))[column.offset : end]
    if valid is None:
        return cells, np.ones(len(cells), bool)
    there = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[column.offset : end]
    return cells, there.astype(bool)


def _by_hand(block: bytes) -> list[Named]:
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for line in block.splitlines():
        with suppress(ValueError, TypeError, AttributeError, OverflowError):
            row = json.loads(line)
            step = int(row.get("step", 0))
            if abs(step) < FURTHEST:
                _put(columns, step, row)
    return [(n, np.array(s, np.int64), np.array(v, float)) for n, (s, v) in columns.items()]


def _put(columns: dict[str, tuple[list[int], list[float]]], step: int, row: dict[str, object]) -> None:
    for name, value in row.items():
        if name not in ("step", "time") and _is_number(value):
            number = float(value)  # type: ignore[arg-type]
            steps, values = columns.setdefault(name, ([], []))
            steps.append(step)
            values.append(number)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""A run's metrics as arrays, read on from where the last look ended, shared by every open page."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.tracking.run import Run

Floats = NDArray[np.float64]
KEPT = 12
"""Runs whose arrays stay in memory; more than anybody watches at once."""


@dataclass
class _Column:
    steps: array[float] = field(default_factory=lambda: array("d"))
    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class _Cursor:
    offset: int = 0
    columns: dict[str, _Column] = field(default_factory=dict)


_cursors: OrderedDict[str, _Cursor] = OrderedDict()
_lock = threading.Lock()
_NOT_METRICS = {"step", "time"}


def read(run: Run) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Steps, times (seconds since the epoch) and values of every metric that a run has logged so far.

    Steps ascend; of a step logged twice, after a resume, the later value counts.
    """
    with _lock:
        cursor = _cursors.setdefault(run.id, _Cursor())
        _cursors.move_to_end(run.id)
        if _shrunk(run, cursor):
            cursor = _cursors[run.id] = _Cursor()
        rows, cursor.offset = run.metrics(cursor.offset)
        for row in rows:
            _take(cursor, row)
        while len(_cursors) > KEPT:
            _cursors.popitem(last=False)
        return {name: _settled(column) for name, column in cursor.columns.items()}


def _shrunk(run: Run, cursor: _Cursor) -> bool:
    try:
        return run.metrics_path.stat().st_size < cursor.offset
    except OSError:
        return cursor.offset > 0


def _take(cursor: _Cursor, row: dict[str, Any]) -> None:
    step = row.get("step")
    if not isinstance(step, int | float):
        return
    for name, value in row.items():
        if name in _NOT_METRICS or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        column = cursor.columns.setdefault(name, _Column())
        column.steps.append(step)
        column.times.append(float(row.get("time") or 0.0))
        column.values.append(value)


def _settled(column: _Column) -> tuple[Floats, Floats, Floats]:
    steps, times, values = (
        np.array(a, dtype=np.float64) for a in (column.steps, column.times, column.values)
    )
    if len(steps) > 1 and not np.all(np.diff(steps) > 0):
        _, last = np.unique(steps[::-1], return_index=True)
        order = len(steps) - 1 - last
        steps, times, values = steps[order], times[order], values[order]
    return steps, times, values


def smooth(values: Floats, weight: float) -> Floats:
    """An exponential moving average without the pull to its start. `weight` is 0 (none) to below 1; gaps (NaN) are kept."""
    if weight <= 0 or len(values) < 2:
        return values
    out = np.empty_like(values)
    mean, seen = 0.0, 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            seen = weight * seen + (1 - weight)
        out[i] = mean / seen if seen else np.nan
    return out


def thin(x: Floats, y: Floats, most: int = 1000) -> tuple[Floats, Floats]:
    """At most `most` points that keep every spike: the lowest and the highest of each bucket, and both ends."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2, dtype=int)
    kept = [0, len(x) - 1]
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        part = y[start:end]
        if end > start and np.isfinite(part).any():
            kept += [start + int(np.nanargmin(part)), start + int(np.nanargmax(part))]
    order = np.unique(kept)
    return x[order], y[order]

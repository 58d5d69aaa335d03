"""The points of a run's metrics.jsonl, read on from where the last look ended, and thinned so that spikes survive."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from tuner.tracking.run import Run

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps, rising, and the values at them."""
MOST_RUNS_KEPT = 8
_kept: OrderedDict[str, Tail] = OrderedDict()
_keeping = threading.Lock()


class Tail:
    """Every metric of one run's file so far. `look` reads only what was added since."""

    def __init__(self, run: Run):
        self._run = run
        self._lock = threading.Lock()
        self._inode = 0
        self._offset = 0
        self._columns: dict[str, tuple[list[int], list[float]]] = {}

    def look(self) -> Tail:
        with self._lock, suppress(FileNotFoundError):
            stat = self._run.metrics_path.stat()
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset, self._columns = stat.st_ino, 0, {}
            if stat.st_size > self._offset:
                rows, self._offset = self._run.metrics(self._offset)
                for row in rows:
                    self._add(row)
        return self

    def _add(self, row: dict[str, float]) -> None:
        step = int(row.get("step", 0))
        for name, value in row.items():
            if name in ("step", "time") or not isinstance(value, int | float):
                continue
            steps, values = self._columns.setdefault(name, ([], []))
            if steps and step <= steps[-1]:  # went on from a checkpoint: what came after it is replaced
                keep = bisect.bisect_left(steps, step)
                del steps[keep:], values[keep:]
            steps.append(step)
            values.append(float(value))

    def series(self, name: str) -> Series:
        with self._lock:
            steps, values = self._columns.get(name, ([], []))
            return np.array(steps, np.int64), np.array(values, float)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._columns)

    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        with self._lock:
            return {name: values[-1] for name, (_, values) in self._columns.items() if values}


def tail(run: Run) -> Tail:
    """The run's points up to now; the last few runs looked at stay in memory."""
    key = str(run.folder)
    with _keeping:
        found = _kept.pop(key, None) or Tail(run)
        _kept[key] = found
        while len(_kept) > MOST_RUNS_KEPT:
            _kept.popitem(last=False)
    return found.look()


def thinned(series: Series, most: int) -> Series:
    """At most `most` points (4 or more): the lowest and the highest of each stretch, the first and the last.

    A NaN stays only where a stretch has nothing else, as a gap in the line.
    """
    steps, values = series
    if len(steps) <= most:
        return series
    stretches = max(1, (most - 2) // 2)
    width = -(-len(values) // stretches)
    padded = np.full(width * stretches, np.nan)
    padded[: len(values)] = values
    table = padded.reshape(stretches, width)
    base = np.arange(stretches) * width
    lowest = np.where(np.isnan(table), np.inf, table).argmin(axis=1) + base
    highest = np.where(np.isnan(table), -np.inf, table).argmax(axis=1) + base
    kept = np.unique(np.concatenate([[0], lowest, highest, [len(values) - 1]]))
    kept = kept[kept < len(values)]
    return steps[kept], values[kept]


def spark(run: Run, points: int = 32) -> tuple[float, ...]:
    """The loss in a few numbers, for lists: the mean of each stretch, finite only."""
    found = tail(run)
    for name in ("loss", "train_loss", "eval_loss"):
        values = found.series(name)[1]
        values = values[np.isfinite(values)]
        if len(values) > 1:
            parts = np.array_split(values, min(points, len(values)))
            return tuple(float(f"{part.mean():.4g}") for part in parts)
    return ()

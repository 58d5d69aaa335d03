"""The points of runs: read on from where the last look ended, in bounded memory, and kept beside a run that has ended."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from tuner.runs import lines
from tuner.runs.curve import MOST, ROW, Curve, Series, thinned
from tuner.runs.files import replacing
from tuner.runs.run import Run
from tuner.runs.status import ENDED

__all__ = ["Series", "Tail", "keep", "recall", "remembered", "spark", "tail", "thinned"]

MOST_BYTES = 64 * 2**20
"""What is held in memory of all runs together; the run looked at last is held in any case."""
ROWS = 2**18
"""Rows of all curves of a run: where it has very many metrics, each may have fewer."""
LEAST = 256
WORTH_KEEPING = 2**20
"""Bytes of points from which on reading them again takes longer than keeping what came of them."""
FORM = 1
"""Of kept files; what has another one is made anew."""


class Weighed(Protocol):
    """What is held in memory; `size` is in bytes."""

    @property
    def size(self) -> int: ...


_held: OrderedDict[tuple[str, ...], Weighed] = OrderedDict()
_holding = threading.Lock()


def remembered(key: tuple[str, ...]) -> Weighed | None:
    """What is held under a key, which counts as used just now."""
    with _holding:
        if key in _held:
            _held.move_to_end(key)
        return _held.get(key)


def remember(key: tuple[str, ...], what: Weighed) -> None:
    """Hold it, and let go of what was not used for longest until all fits."""
    with _holding:
        _held[key] = what
        _held.move_to_end(key)
        weight = sum(one.size for one in _held.values())
        while weight > MOST_BYTES and len(_held) > 1:
            weight -= _held.popitem(last=False)[1].size


class Tail:
    """Every metric of one run's file so far. `look` reads only what was added since."""

    def __init__(self, run: Run):
        self._run = run
        self._lock = threading.Lock()
        self._inode = 0
        self._offset = 0
        self._kept = 0
        self._curves: dict[str, Curve] = {}

    @property
    def size(self) -> int:
        return 4096 + sum(curve.rows.nbytes for curve in list(self._curves.values()))

    @property
    def mark(self) -> tuple[int, int]:
        """Another one whenever there is another point."""
        return self._inode, self._offset

    def look(self) -> Tail:
        with self._lock, suppress(FileNotFoundError):
            stat = self._run.metrics_path.stat()
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._begin(stat)
            if stat.st_size > self._offset:
                for block in lines.blocks(self._run.metrics_path, self._offset):
                    self._take(block)
            self._keep(stat)
        return self

    def _begin(self, stat: os.stat_result) -> None:
        self._inode, self._offset, self._kept, self._curves = stat.st_ino, 0, 0, {}
        if stat.st_size >= WORTH_KEEPING and (found := recall(_file(self._run), _stamp(stat))):
            self._curves, self._offset = found, stat.st_size
            self._kept = self._offset

    def _take(self, block: memoryview) -> None:
        self._offset += len(block)
        found = lines.points(block)
        for name, _, _ in found:
            self._curves.setdefault(name, Curve())
        for name, steps, values in found:
            self._curves[name].add(steps, values, max(LEAST, min(MOST, ROWS // len(self._curves))))

    def _keep(self, stat: os.stat_result) -> None:
        """Beside the run, once it has ended, if that is worth it."""
        # A file that grew since, or whose last line is torn, is none to be recalled whole.
        if self._offset - self._kept < WORTH_KEEPING or self._offset != stat.st_size:
            return
        if self._run.status().state in ENDED:
            self._kept = self._offset
            keep(_file(self._run), _stamp(stat), self._curves)

    def curve(self, name: str) -> Curve | None:
        """One metric's curve as it is now; None where it has no point."""
        with self._lock:
            known = self._curves.get(name)
            return known and Curve(known.rows, known.width)  # rows are never changed, but replaced

    def series(self, name: str) -> Series:
        """All points of one metric, or of a long one the lowest and the highest of each stretch."""
        return (self.curve(name) or Curve()).series()

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._curves)

    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        with self._lock:
            return {name: float(curve.rows["high"][-1]) for name, curve in self._curves.items()}


def tail(run: Run) -> Tail:
    """The run's points up to now."""
    key = ("folder", str(run.folder))
    found = remembered(key)
    looked = (found if isinstance(found, Tail) else Tail(run)).look()
    remember(key, looked)
    return looked


def spark(run: Run, points: int = 32) -> tuple[float, ...]:
    """The reward of a run that learns from one, whose loss stays about zero, else the loss; in a few numbers, for lists:
    the mean of each stretch, finite only."""
    found = tail(run)
    for name in ("reward", "loss", "train_loss", "eval_loss"):
        values = (found.curve(name) or Curve()).means()[1]
        values = values[np.isfinite(values)]
        if len(values) > 1:
            parts = np.array_split(values, min(points, len(values)))
            return tuple(float(f"{part.mean():.4g}") for part in parts)
    return ()


# --- kept files


def _file(run: Run) -> Path:
    return run.folder / "curves"


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns}"


def keep(path: Path, stamp: str, curves: Mapping[str, Curve]) -> None:
    """Write curves down beside what says which points they are of; where that cannot be done they are made anew."""
    told = {name: [len(curve.rows), curve.width] for name, curve in curves.items()}
    head = json.dumps({"form": FORM, "stamp": stamp, "curves": told}).encode()
    with suppress(OSError), replacing(path) as fresh:
        fresh.write_bytes(b"\n".join([head, b"".join(c.rows.tobytes() for c in curves.values())]))


def recall(path: Path, stamp: str) -> dict[str, Curve] | None:
    """Curves that were kept, if they are of the points that the stamp stands for."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        told, _, body = path.read_bytes().partition(b"\n")
        head = json.loads(told)
        if head["form"] != FORM or head["stamp"] != stamp:
            return None
        rows = np.frombuffer(body, ROW)
        if len(rows) != sum(length for length, _ in head["curves"].values()):
            return None
        found, at = {}, 0
        for name, (length, width) in head["curves"].items():
            found[name] = Curve(rows[at : at + length].copy(), int(width))
            at += length
        return found
    return None

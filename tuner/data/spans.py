"""Where the rows of a text file begin and end, found by scanning its bytes for structure with numpy (about 300 MB/s)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Layout = Literal["lines", "array", "objects", "csv", "txt", "parquet", "arrow"]


@dataclass(frozen=True, slots=True)
class Spans:
    """Where some rows begin and end in a text file (bytes), and the line each begins in (from 1)."""

    starts: Array
    ends: Array
    lines: Array


_STRUCTURE = np.zeros(256, dtype=bool)
_STRUCTURE[list(b'"\\{}[]')] = True


class Scanner:
    """Finds rows in text fed chunk by chunk; what a chunk leaves open is carried to the next."""

    def __init__(self) -> None:
        self.offset = 0
        self.line = 1
        self.open = 0  # where the row being read begins
        self.open_line = 1

    def feed(self, chunk: bytes) -> Spans:
        """The rows that end within this chunk."""
        data: Bytes = np.frombuffer(chunk, dtype=np.uint8)
        newlines: Array = np.flatnonzero(data == 10)
        spans = self.cut(data, newlines)
        self.offset += len(data)
        self.line += len(newlines)
        return spans

    def cut(self, data: Bytes, newlines: Array) -> Spans:
        raise NotImplementedError

    def finish(self) -> Spans:
        """The row that the end of the file closes."""
        if self.open >= self.offset:
            return _spans([], [], [])
        return _spans([self.open], [self.offset], [self.open_line])


def _spans(starts: Any, ends: Any, lines: Any) -> Spans:
    return Spans(*(np.asarray(a, dtype=np.int64) for a in (starts, ends, lines)))


class Lines(Scanner):
    """One row a line; with `quoted`, a line break between double quotes is part of the row (csv)."""

    def __init__(self, quoted: bool = False):
        super().__init__()
        self.quoted = quoted
        self.inside = 0

    def cut(self, data: Bytes, newlines: Array) -> Spans:
        breaks, line_of = newlines, np.arange(len(newlines))
        if self.quoted:
            quotes = np.flatnonzero(data == 34)
            outside = (np.searchsorted(quotes, newlines) + self.inside) % 2 == 0
            breaks, line_of = newlines[outside], line_of[outside]
            self.inside = (self.inside + len(quotes)) % 2
        if not len(breaks):
            return _spans([], [], [])
        ends = breaks + self.offset
        starts = np.concatenate(([self.open], ends[:-1] + 1))
        lines = np.concatenate(([self.open_line], line_of[:-1] + self.line + 1))
        self.open, self.open_line = int(ends[-1]) + 1, int(line_of[-1]) + self.line + 1
        filled = ends > starts  # blank lines stand between rows, they are none
        return Spans(starts[filled], ends[filled], lines[filled])


class Objects(Scanner):
    """JSON values at one depth: 1 inside a list, 0 for objects that follow each other."""

    def __init__(self, depth: int):
        super().__init__()
        self.base = depth
        self.depth = 0
        self.inside = 0
        self.backslashes = 0
        self.within = False

    def feed(self, chunk: bytes) -> Spans:
        if self.inside and b'"' not in chunk and b"\\" not in chunk:
            # Deep inside a long text, which is the whole of some files: nothing to find.
            self.backslashes = 0
            self.offset += len(chunk)
            self.line += chunk.count(b"\n")
            return _spans([], [], [])
        return super().feed(chunk)

    def cut(self, data: Bytes, newlines: Array) -> Spans:
        at: Array = np.flatnonzero(_STRUCTURE[data])
        kinds = data[at]
        quotes = (kinds == 34) & ~self._escaped(at, kinds, data)
        outside = (np.cumsum(quotes) + self.inside) % 2 == 0
        opens = ((kinds == 123) | (kinds == 91)) & outside
        closes = ((kinds == 125) | (kinds == 93)) & outside
        depth = self.depth + np.cumsum(opens.astype(np.int64) - closes)
        starts = at[opens & (depth == self.base + 1)]
        ends = at[closes & (depth == self.base)] + 1
        if len(at):
            self.depth = int(depth[-1])
        self.inside = (self.inside + int(quotes.sum())) % 2
        return self._pair(starts, ends, newlines)

    def _escaped(self, at: Array, kinds: Bytes, data: Bytes) -> NDArray[np.bool_]:
        """Which structural characters stand behind an odd number of backslashes."""
        slashes = kinds == 92
        before, self.backslashes = self.backslashes, _trailing(data, self.backslashes)
        if not slashes.any() and not before:
            return np.zeros(len(at), dtype=bool)
        # Each run of backslashes is known by where it begins; one that reaches back begins before this chunk.
        gap = np.ones(len(at), dtype=bool)
        gap[1:] = (np.diff(at) != 1) | ~slashes[:-1]
        begin = np.where(gap, at, -1)
        if len(at) and at[0] == 0 and before:
            begin[0] = -before
        begin = np.where(gap, begin, 0)
        run = begin[np.maximum.accumulate(np.where(gap, np.arange(len(at)), 0))]
        odd: NDArray[np.bool_] = (at - run) % 2 == 1
        return odd

    def _pair(self, starts: Array, ends: Array, newlines: Array) -> Spans:
        lines = np.searchsorted(newlines, starts) + self.line
        starts = starts + self.offset
        ends = ends + self.offset
        if self.within:
            starts = np.concatenate(([self.open], starts))
            lines = np.concatenate(([self.open_line], lines))
        count = min(len(starts), len(ends))
        self.within = len(starts) > count
        if self.within:
            self.open, self.open_line = int(starts[count]), int(lines[count])
        return Spans(starts[:count], ends[:count], lines[:count])

    def finish(self) -> Spans:
        return super().finish() if self.within else _spans([], [], [])


def _trailing(data: Bytes, before: int) -> int:
    """How many backslashes the text ends with, counting those of earlier chunks when this one is nothing else."""
    count = 0
    while count < len(data) and data[-1 - count] == 92:
        count += 1
    return count + before if count == len(data) else count


def scanner(kind: Layout) -> Scanner:
    """The scanner for a text layout."""
    if kind in ("array", "objects"):
        return Objects(1 if kind == "array" else 0)
    return Lines(quoted=kind == "csv")


def spans(path: Path, kind: Layout, first_chunk: int = 1 << 18) -> Iterator[Spans]:
    """Where the rows of a text file lie, some at a time; the first soon."""
    scan = scanner(kind)
    size = first_chunk
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield scan.feed(chunk)
            size = 1 << 22
    yield scan.finish()

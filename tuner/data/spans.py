"""Where the rows of a text file begin and end, found by scanning its bytes for structure with numpy (about 300 MB/s)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
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
_LF, _CR, _QUOTE = 10, 13, 34
_BOM = b"\xef\xbb\xbf"


class Scanner:
    """Finds rows in text fed chunk by chunk; what a chunk leaves open is carried to the next.

    A line ends with \\n, \\r\\n or \\r, as python's own files see it; no other character ends one.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.line = 1
        self.open = 0  # where the row being read begins
        self.open_line = 1
        self.after_cr = False  # whether the chunk before ended with \r, whose \n may come yet

    def skip(self, size: int) -> None:
        """Begin behind so many bytes, which are no text of the file."""
        self.offset = self.open = size

    def feed(self, chunk: bytes) -> Spans:
        """The rows that end within this chunk."""
        data: Bytes = np.frombuffer(chunk, dtype=np.uint8)
        breaks: Array = np.flatnonzero(data == _LF)
        line_ends = breaks
        if self.after_cr or b"\r" in chunk:
            breaks, line_ends = self._breaks(data)
        spans = self.cut(data, breaks, line_ends)
        self.offset += len(data)
        self.line += len(line_ends)
        return spans

    def _breaks(self, data: Bytes) -> tuple[Array, Array]:
        """Every \\n and \\r of a chunk, and those of them that end a line: of \\r\\n only one does."""
        breaks = np.flatnonzero((data == _LF) | (data == _CR))
        ends = np.ones(len(breaks), dtype=bool)
        feeds = data[breaks] == _LF
        ends[:-1] &= ~(~feeds[:-1] & feeds[1:] & (np.diff(breaks) == 1))
        if self.after_cr and len(breaks) and breaks[0] == 0 and feeds[0]:
            ends[0] = False
        self.after_cr = bool(len(data)) and int(data[-1]) == _CR
        return breaks, breaks[ends]

    def cut(self, data: Bytes, breaks: Array, line_ends: Array) -> Spans:
        raise NotImplementedError

    def finish(self) -> Spans:
        """The row that the end of the file closes."""
        if self.open >= self.offset:
            return _spans([], [], [])
        return _spans([self.open], [self.offset], [self.open_line])


def _spans(starts: Any, ends: Any, lines: Any) -> Spans:
    return Spans(*(np.asarray(a, dtype=np.int64) for a in (starts, ends, lines)))


class Lines(Scanner):
    """One row a line, its line end not included; empty lines stand between rows, they are none.

    With `blank`, a line of nothing but white space is none either.
    """

    def __init__(self, blank: bool = False):
        super().__init__()
        self.blank = blank
        self.empty_so_far = True  # whether the row being read is white space up to here

    def cut(self, data: Bytes, breaks: Array, line_ends: Array) -> Spans:
        outside = self.outside(data, breaks)
        at = breaks if outside is None else breaks[outside]
        opened = self.open - self.offset
        if not len(at):
            self.empty_so_far = self.empty_so_far and self._white(data, max(opened, 0), len(data))
            return _spans([], [], [])
        starts = np.concatenate(([opened], at[:-1] + 1))
        after = np.searchsorted(line_ends, at, side="right") + self.line
        lines = np.concatenate(([self.open_line], after[:-1]))
        filled = at > starts
        if self.blank:
            self._drop_white(data, starts, at, filled)
        self.open, self.open_line = int(at[-1]) + 1 + self.offset, int(after[-1])
        self.empty_so_far = self._white(data, int(at[-1]) + 1, len(data))
        return Spans(starts[filled] + self.offset, at[filled] + self.offset, lines[filled])

    def outside(self, data: Bytes, breaks: Array) -> NDArray[np.bool_] | None:
        """Which line ends end a row; None for all."""
        return None

    def _drop_white(self, data: Bytes, starts: Array, ends: Array, filled: NDArray[np.bool_]) -> None:
        """Mark lines of nothing but white space as not filled."""
        if starts[0] < 0 and self.empty_so_far and self._white(data, 0, int(ends[0])):
            filled[0] = False
        begins = data[np.maximum(starts, 0)]
        for i in np.flatnonzero(filled & (starts >= 0) & ((begins == 32) | (begins == 9))).tolist():
            filled[i] = not self._white(data, int(starts[i]), int(ends[i]))

    def _white(self, data: Bytes, start: int, end: int) -> bool:
        return self.blank and not data[start:end].tobytes().strip(b" \t")

    def finish(self) -> Spans:
        return _spans([], [], []) if self.blank and self.empty_so_far else super().finish()


class Csv(Lines):
    """One row a record, cut where python's csv module would: a line end between double quotes is part of the row.

    A quote opens only at a field's begin, anywhere else outside of quotes it is an ordinary character; inside, two of
    them are one, and one of them closes. (The states of CPython's Modules/_csv.c, of its default dialect.)
    """

    def __init__(self, delimiter: str):
        super().__init__()
        self.begins = np.zeros(256, dtype=bool)  # characters behind which a field begins
        self.begins[[ord(delimiter), _LF, _CR]] = True
        self.inside = 0
        self.before = _LF  # the last byte of the chunk before
        self.closed = False  # whether that was a quote that closed

    def outside(self, data: Bytes, breaks: Array) -> NDArray[np.bool_] | None:
        quotes = np.flatnonzero(data == _QUOTE)
        if not len(quotes) and not self.inside:
            self.before, self.closed = int(data[-1]) if len(data) else self.before, False
            return None
        quotes = self._acting(data, quotes)
        outside: NDArray[np.bool_] = (np.searchsorted(quotes, breaks) + self.inside) % 2 == 0
        self.inside = (self.inside + len(quotes)) % 2
        self.before = int(data[-1])
        self.closed = not self.inside and len(quotes) > 0 and int(quotes[-1]) == len(data) - 1
        return outside

    def _acting(self, data: Bytes, quotes: Array) -> Array:
        """The quotes that open or close, without those that are ordinary characters."""
        before = np.where(quotes > 0, data[quotes - 1], self.before)
        may_open = self.begins[before]
        twice = np.diff(quotes, prepend=-1 if self.closed else -2) == 1
        # In most files every quote acts: then each second one opens, at a field's begin or as the second of two.
        opening = np.arange(len(quotes)) % 2 == self.inside
        if (may_open | twice)[opening].all():
            return quotes
        acting: list[int] = []
        inside, closed_at = bool(self.inside), -1 if self.closed else -2
        for at, opens in zip(quotes.tolist(), may_open.tolist(), strict=True):
            if inside:
                inside, closed_at = False, at
            elif opens or at == closed_at + 1:
                inside = True
            else:
                continue
            acting.append(at)
        return np.asarray(acting, dtype=np.int64)


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
        if (
            self.inside
            and b'"' not in chunk
            and b"\\" not in chunk
            and b"\r" not in chunk
            and not self.after_cr
        ):
            # Deep inside a long text, which is the whole of some files: nothing to find.
            self.backslashes = 0
            self.offset += len(chunk)
            self.line += chunk.count(b"\n")
            return _spans([], [], [])
        return super().feed(chunk)

    def cut(self, data: Bytes, breaks: Array, line_ends: Array) -> Spans:
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
        return self._pair(starts, ends, line_ends)

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

    def _pair(self, starts: Array, ends: Array, line_ends: Array) -> Spans:
        lines = np.searchsorted(line_ends, starts) + self.line
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


DELIMITERS = ",;\t"


def delimiter_of(path: Path) -> str:
    """What parts the fields of a csv file: the character that stands in its header outside of quotes.

    Of several, the one by which the first rows have as many fields as the header, and a tab before others: prose has no tabs,
    and a field is not quoted for the signs of prose where tabs part it.
    """
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        head = file.read(1 << 16).removeprefix(_BOM).decode("utf-8", "replace").lstrip("\r\n")
    header = _outside_quotes(head)
    held = [d for d in DELIMITERS if d in header] or [","]
    return (
        held[0]
        if len(held) == 1
        else max(held, key=lambda d: (_agreeing(head, d), d == "\t", header.count(d)))
    )


def _outside_quotes(text: str) -> str:
    """The first line of a csv text without what stands between quotes."""
    found = []
    inside, begins = False, True
    for character in text:
        if character == '"' and (inside or begins):
            inside, begins = not inside, inside  # behind a quote that closes, another one opens again
            continue
        if not inside and character in "\r\n":
            break
        if not inside:
            found.append(character)
        begins = not inside and character in DELIMITERS
    return "".join(found)


def _agreeing(text: str, delimiter: str) -> int:
    """How many of the first rows have as many fields as the header."""
    try:
        header, *rows = islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 50)
    except csv.Error:
        return 0
    return sum(len(row) == len(header) for row in rows)


def scanner(path: Path, kind: Layout) -> Scanner:
    """The scanner for a text file of this layout."""
    if kind in ("array", "objects"):
        return Objects(1 if kind == "array" else 0)
    return Csv(delimiter_of(path)) if kind == "csv" else Lines(blank=kind == "lines")


def spans(
    path: Path, kind: Layout, scan: Scanner | None = None, first_chunk: int = 1 << 18
) -> Iterator[Spans]:
    """Where the rows of a text file lie, some at a time; the first soon. A byte order mark is no part of a row."""
    scan = scan or scanner(path, kind)
    size = first_chunk
    with path.open("rb") as file:
        if file.read(len(_BOM)) == _BOM:
            scan.skip(len(_BOM))
        else:
            file.seek(0)
        while chunk := file.read(size):
            yield scan.feed(chunk)
            size = 1 << 22
    yield scan.finish()

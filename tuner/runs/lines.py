"""The points in whole lines of metrics.jsonl: a few by json, many at once by the shape that their lines share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner.runs.curve import Steps, Values

Named = tuple[str, Steps, Values]
Places = NDArray[np.int64]
"""Offsets in a block."""
Part = dict[str, tuple[NDArray[np.int64], Steps, Values]]
"""Points by the names of their metrics: in which line of the block each stands, its step and its value."""
BLOCK = 2**20
"""Bytes that are read at a time: what fits into a processor's own memory is the quickest."""
MANY = 2**18
"""Bytes from which on Arrow's import is worth its time."""
SHAPES = 12
"""Sorts of lines that are told apart in a block; those of any others are read one by one."""
FURTHEST = 2**62
EXACT = 2**53
"""Whole numbers below it are exact as floating-point ones."""
COMMA, NEWLINE = b",\n"


def blocks(path: Path, offset: int) -> Iterator[bytes]:
    """The file from a byte offset on, in pieces that end with a line. A half-written last line waits."""
    size = BLOCK
    with path.open("rb", buffering=0) as file:
        while piece := os.pread(file.fileno(), size, offset):
            end = piece.rfind(b"\n") + 1
            if end:
                yield piece[:end]
                offset += end
            elif len(piece) < size:
                return
            else:
                size *= 2


def points(block: bytes) -> list[Named]:
    """Each metric's steps and values, as they were written. What is no row of numbers is left out."""
    return _in_order(_by_shape(block) if len(block) >= MANY else [_by_hand(enumerate(block.split(b"\n")))])


def _in_order(parts: list[Part]) -> list[Named]:
    found = []
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        numbers, steps, values = own[0] if len(own) == 1 else map(np.concatenate, zip(*own, strict=True))
        written = np.argsort(numbers, kind="stable") if len(own) > 1 else slice(None)
        found.append((name, steps[written], values[written]))
    return found


# --- many lines


def _by_shape(block: bytes) -> list[Part]:
    every = _Lines(block)
    left, parts, odd = np.arange(len(every.commas)), list[Part](), list[Steps]()
    for _ in range(SHAPES):
        if not len(left):
            break
        heads = _heads(every.line(left[0]))
        fits, marks = every.fitting(left, heads)
        part = _columns(every, left[fits], marks, heads) if fits[0] else None
        fits[0] = True  # or it would be the first one again
        parts += [part] if part else []
        odd += [] if part else [left[fits]]
        left = left[~fits]
    others = np.concatenate([*odd, left])
    return [*parts, _by_hand((n, every.line(n)) for n in others.tolist())] if len(others) else parts


def _heads(line: bytes) -> dict[str, bytes]:
    """What stands before each value of a line, by its name; empty where it is no row of numbers behind a step."""
    with suppress(ValueError, TypeError, AttributeError):
        row = json.loads(line)
        if next(iter(row), "") == "step" and all(map(_is_number, row.values())):
            first = [b"{", *[b", "] * len(row)]
            return {
                name: start + f"{json.dumps(name)}: ".encode()
                for name, start in zip(row, first, strict=False)
            }
    return {}


class _Lines:
    """A block's lines, and where in it their commas and ends are."""

    def __init__(self, block: bytes):
        self.block = block
        text = np.frombuffer(block, np.uint8)
        found = text == COMMA
        found |= text == NEWLINE
        marks = np.flatnonzero(found)
        self._ends = np.flatnonzero(text[marks] == NEWLINE)
        self._marks = np.append(marks, -1)  # where the line before the first one ends
        self.commas = np.diff(self._ends, prepend=-1) - 1

    def line(self, number: int) -> bytes:
        begin = self._marks[self._ends[number - 1] if number else -1] + 1
        return self.block[begin : self._marks[self._ends[number]]]

    def fitting(self, numbers: Steps, heads: dict[str, bytes]) -> tuple[NDArray[np.bool_], list[Places]]:
        """Which of these lines have these heads; and of those where each begins, has its commas, and ends."""
        fits = self.commas[numbers] == len(heads) - 1
        ends = self._ends[numbers[fits]]
        marks = [self._marks[ends - before] for before in range(len(heads), -1, -1)]
        marks[0] += 1
        closed = self._there(b"}", marks[-1] - 1)
        for head, at in zip(heads.values(), marks, strict=False):
            closed &= self._there(head, at)
        fits[fits] = closed
        return fits, marks if closed.all() else [at[closed] for at in marks]

    def _there(self, text: bytes, at: Places) -> NDArray[np.bool_]:
        every = np.ndarray((len(self.block) - len(text) + 1,), f"S{len(text)}", self.block, strides=(1,))
        found: NDArray[np.bool_] = every[np.minimum(at, len(every) - 1)] == text
        return found

    def numbers(self, begins: list[Places], ends: list[Places]) -> Values:
        """What stands between these places, which rise from column to column and from row to row, as a table of both.
        Raises ValueError where that is no number."""
        import pyarrow as pa

        edges = np.empty((len(begins[0]), len(begins), 2), np.int32)
        for column, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            edges[:, column, 0], edges[:, column, 1] = begin, end
        # Every other piece of the text is what stands between two numbers.
        known = np.full(edges.size // 8 + 1, 0b01010101, np.uint8)
        buffers = [pa.py_buffer(known), pa.py_buffer(edges), pa.py_buffer(self.block)]
        cells = pa.Array.from_buffers(pa.string(), edges.size - 1, buffers).cast(pa.float64()).buffers()[1]
        return np.frombuffer(cells, float)[: edges.size : 2].reshape(edges.shape[:2])


def _columns(every: _Lines, own: Steps, marks: list[Places], heads: dict[str, bytes]) -> Part | None:
    """The points of lines of one shape; None where one of them holds something else than numbers."""
    begins = {name: at + len(head) for (name, head), at in zip(heads.items(), marks, strict=False)}
    ends = dict(zip(heads, [*marks[1:-1], marks[-1] - 1], strict=True))  # a brace stands behind the last one
    names = [name for name in heads if name != "time"]
    with suppress(ValueError):
        table = every.numbers([begins[n] for n in names], [ends[n] for n in names])
        if (np.abs(table[:, 0]) < EXACT).all():
            steps = table[:, 0].astype(np.int64)
            return {name: (own, steps, table[:, at]) for at, name in enumerate(names) if at}
    return None


# --- single ones


def _by_hand(numbered: Iterable[tuple[int, bytes]]) -> Part:
    columns: dict[str, list[tuple[int, int, float]]] = {}
    for number, line in numbered:
        with suppress(ValueError, TypeError, AttributeError, OverflowError):
            row = json.loads(line)
            step = int(row.get("step", 0))
            if abs(step) < FURTHEST:
                for name, value in _measured(row).items():
                    columns.setdefault(name, []).append((number, step, value))
    return {name: _arrays(*zip(*points, strict=True)) for name, points in columns.items()}


def _arrays(
    numbers: Sequence[int], steps: Sequence[int], values: Sequence[float]
) -> tuple[Steps, Steps, Values]:
    return np.array(numbers, np.int64), np.array(steps, np.int64), np.array(values, float)


def _measured(row: dict[str, Any]) -> dict[str, float]:
    """Raises OverflowError for a whole number beyond what a float can be."""
    return {n: float(v) for n, v in row.items() if n not in ("step", "time") and _is_number(v)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

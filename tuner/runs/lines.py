"""The points in whole lines of metrics.jsonl: a few by json, many at once by the shape that their lines share."""

from __future__ import annotations

import json
import os
import sys
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
BLOCK = 2**21
"""Bytes that are read at a time: each time costs something of its own, whatever their number."""
PIECE = 2**17
"""Bytes that fit into the quickest memory of a processor, with what is asked of them."""
MANY = 2**18
"""Bytes from which on Arrow's import is worth its time."""
SOME = 2**14
"""Bytes from which on Arrow is quicker where it was imported before."""
SHAPES = 12
"""Sorts of lines that are told apart in a block; those of any others are read one by one."""
FURTHEST = 2**62
EXACT = 2**53
"""Whole numbers below it are exact as floating-point ones."""
COMMA, NEWLINE = b",\n"


def blocks(path: Path, offset: int) -> Iterator[memoryview]:
    """The file from a byte offset on, in pieces that end with a line, each good until the next one is asked for. A
    half-written last line waits."""
    piece = bytearray(BLOCK)  # one for all, for memory that is new costs more than what is read into it
    with path.open("rb", buffering=0) as file:
        while got := os.preadv(file.fileno(), [piece], offset):
            end = piece.rfind(b"\n", 0, got) + 1
            if end:
                yield memoryview(piece)[:end]
                offset += end
            elif got < len(piece):
                return
            else:
                piece = bytearray(2 * len(piece))


def points(block: bytes | memoryview) -> list[Named]:
    """Each metric's steps and values, as they were written. What is no row of numbers is left out."""
    many = len(block) >= (SOME if "pyarrow.compute" in sys.modules else MANY)
    return _in_order(_by_shape(block) if many else [_by_hand(enumerate(bytes(block).split(b"\n")))])


def _in_order(parts: list[Part]) -> list[Named]:
    found = []
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        numbers, steps, values = own[0] if len(own) == 1 else map(np.concatenate, zip(*own, strict=True))
        written = np.argsort(numbers, kind="stable") if len(own) > 1 else slice(None)
        found.append((name, steps[written], values[written]))
    return found


# --- many lines


def _by_shape(block: bytes | memoryview) -> list[Part]:
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


def _marks(text: NDArray[np.uint8]) -> Places:
    """Where commas and ends of lines are."""
    found = text == COMMA
    found |= text == NEWLINE
    marks: Places = found.nonzero()[0]
    return marks


class _Lines:
    """A block's lines, and where in it their commas and ends are."""

    def __init__(self, block: bytes | memoryview):
        self.block = block
        text = np.frombuffer(block, np.uint8)
        marks = np.concatenate([_marks(text[at : at + PIECE]) + at for at in range(0, len(text), PIECE)])
        self._ends = np.flatnonzero(text[marks] == NEWLINE)
        self._marks = np.append(marks, -1)  # where the line before the first one ends
        self.commas = np.diff(self._ends, prepend=-1) - 1

    def line(self, number: int) -> bytes:
        begin = self._marks[self._ends[number - 1] if number else -1] + 1
        return bytes(self.block[begin : self._marks[self._ends[number]]])

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
        """Where a text stands: compared as a few whole numbers, which takes a third of the time of comparing texts."""
        last = len(self.block) - len(text)
        size = min(8, 1 << (len(text).bit_length() - 1))
        found: NDArray[np.bool_] = at <= last
        at = np.minimum(at, last)
        for offset in [*range(0, len(text) - size, size), len(text) - size]:
            words = np.ndarray((last + 1,), f"<u{size}", self.block, offset, (1,))
            found &= words[at] == int.from_bytes(text[offset : offset + size], "little")
        return found

    def numbers(self, begins: Places, ends: Places) -> Values:
        """What stands between these places, which rise. Raises ValueError where one of it is no number."""
        import pyarrow as pa

        edges = np.empty((len(begins), 2), np.int32)
        edges[:, 0], edges[:, 1] = begins, ends
        # Every other piece of the text is what stands between two numbers.
        known = np.full(edges.size // 8 + 1, 0b01010101, np.uint8)
        buffers = [pa.py_buffer(known), pa.py_buffer(edges), pa.py_buffer(self.block)]
        cells = pa.Array.from_buffers(pa.string(), edges.size - 1, buffers).cast(pa.float64()).buffers()[1]
        return np.frombuffer(cells, float)[: edges.size : 2]


def _columns(every: _Lines, own: Steps, marks: list[Places], heads: dict[str, bytes]) -> Part | None:
    """The points of lines of one shape; None where one of them holds something else than numbers."""
    begins = [at + len(head) for head, at in zip(heads.values(), marks, strict=False)]
    ends = [*marks[1:-1], marks[-1] - 1]  # a brace stands behind the last one
    with suppress(ValueError):
        columns = {
            name: every.numbers(*edges)
            for name, *edges in zip(heads, begins, ends, strict=True)
            if name != "time"
        }
        step = columns.pop("step")
        if (np.abs(step) < EXACT).all():
            steps = step.astype(np.int64)
            return {name: (own, steps, values) for name, values in columns.items()}
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

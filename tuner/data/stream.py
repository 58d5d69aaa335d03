"""Rows while they are trained on: read, converted and tokenised as they are asked for, shuffled within a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


class Stream:
    """Encoded rows of a streamed run; each pass over it reads the sets anew, in an order of its own.

    `open_sets` gives one iterator a data set. The first `skip` rows of the unshuffled order are left to evaluation.
    """

    def __init__(
        self,
        open_sets: Callable[[], Sequence[Iterable[Row]]],
        *,
        strategy: str,
        shares: Sequence[float] | None,
        buffer_size: int,
        seed: int,
        skip: int = 0,
    ):
        self._open = open_sets
        self._strategy = strategy
        self._shares = shares
        self._buffer_size = buffer_size
        self._seed = seed
        self._skip = skip
        self.passes = 0

    def __iter__(self) -> Iterator[Row]:
        seed = self._seed + self.passes
        self.passes += 1
        rows = self.in_order()
        for _ in range(self._skip):
            next(rows, None)
        return shuffled(rows, self._buffer_size, seed)

    def in_order(self) -> Iterator[Row]:
        """The rows mixed, not shuffled."""
        return mixed(self._open(), self._strategy, self._shares, self._seed)


def shuffled(rows: Iterator[Row], size: int, seed: int) -> Iterator[Row]:
    """Rows drawn at random from a buffer that is filled up as they go; none is lost or doubled."""
    draw = random.Random(seed)
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < size:
            buffer.append(row)
            continue
        at = draw.randrange(size)
        yield buffer[at]
        buffer[at] = row
    draw.shuffle(buffer)
    yield from buffer


def mixed(
    sets: Sequence[Iterable[Row]], strategy: str, shares: Sequence[float] | None, seed: int
) -> Iterator[Row]:
    """Rows of several sets one behind the other, or drawn in turn or by shares until sets run out (see `mix.mix`).

    `interleave_over` begins a short set anew until the longest has been gone through.
    """
    if strategy == "concat" or len(sets) < 2:
        for one in sets:
            yield from one
        return
    draw = np.random.default_rng(seed)
    open_now = [iter(one) for one in sets]
    ended: set[int] = set()
    for which in _choices(len(sets), shares, draw):
        row = next(open_now[which], None)
        if row is None:
            ended.add(which)
            if strategy == "interleave_under" or len(ended) == len(sets):
                return
            if strategy == "interleave_over":
                open_now[which] = iter(sets[which])
                row = next(open_now[which], None)
        if row is not None:
            yield row


def _choices(sets: int, shares: Sequence[float] | None, draw: np.random.Generator) -> Iterator[int]:
    while True:
        yield from draw.choice(sets, size=1000, p=shares).tolist() if shares else range(sets)

"""Keys and values of rows at fixed places, so that a captured step can be replayed over them.

Row i of `count` holds its tokens in columns 0 to length - 1. What a step reads and writes stands in tensors that stay where
they are: the next token of each row, how many it holds, whether it is in use, and the number of the adapter that it wears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GRAIN = 128
"""Columns are set aside in steps that grow with their number, and are at least this many."""


@dataclass(frozen=True)
class Sizes:
    """What one column of one row takes: layers, key heads and numbers a head."""

    layers: int
    heads: int
    size: int


class Arena:
    """Room for `rows` rows of `columns` columns; it grows, and is then another to those who captured it (`age`)."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: torch.device):
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self.rows = self.columns = self.age = 0
        self.held = [self._layer(0, 0) for _ in range(sizes.layers)]  # each [2, rows, heads, columns, size]
        self._state(0)

    def _layer(self, rows: int, columns: int) -> Tensor:
        shape = (2, rows, self.sizes.heads, columns, self.sizes.size)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def size(self) -> int:
        """Bytes of its keys and values."""
        return sum(held.numel() * held.element_size() for held in self.held)

    def reserve(self, rows: int, columns: int, hoped: int = 0) -> None:
        """Have room for so many; what is held stays. `hoped` columns are set aside where there is memory for them."""
        wanted = max(columns, hoped)
        if rows <= self.rows and wanted <= self.columns:
            return
        try:
            self._grow(rows, wanted)
        except torch.OutOfMemoryError:
            if rows > self.rows or columns > self.columns:
                self._grow(rows, columns)

    def _grow(self, rows: int, columns: int) -> None:
        rows, columns = max(self.rows, bucket(rows)), max(self.columns, roomy(columns))
        self.age += 1  # also where only some layers find memory
        for number, held in enumerate(self.held):
            grown = self._layer(rows, columns)
            grown[:, : self.rows, :, : self.columns] = held[:, : self.rows, :, : self.columns]
            self.held[number] = grown  # one layer after the other: there is never all of it twice
        old = (self.tokens, self.lengths, self.active, self.worn)
        self._state(rows)
        for new, was in zip((self.tokens, self.lengths, self.active, self.worn), old, strict=True):
            new[: self.rows] = was
        self.rows, self.columns = rows, columns

    def _state(self, rows: int) -> None:
        self.tokens, self.lengths, self.active, self.worn = (
            torch.zeros(rows, dtype=torch.long, device=self.device) for _ in range(4)
        )

    def enter(
        self, first: int, cache: Any, chosen: Sequence[int], lengths: Sequence[int], worn: int = 0
    ) -> None:
        """Put the chosen rows of a padded cache, whose last columns they fill, into rows from `first` on."""
        filled, width = int(cache.get_seq_length()), max(lengths)
        there = torch.tensor(lengths, device=self.device)
        columns = (torch.arange(width, device=self.device)[None] + filled - there[:, None]).clamp(
            max=filled - 1
        )
        rows = torch.tensor(list(chosen), device=self.device)[:, None]
        end = first + len(lengths)
        for number, layer in enumerate(cache.layers):
            for kind, states in enumerate((layer.keys, layer.values)):
                # [rows, columns, heads, size], for an index on either side of a slice comes first
                self.held[number][kind, first:end, :, :width] = states[rows, :, columns].transpose(1, 2)
        self.lengths[first:end] = there
        self.active[first:end] = 1
        self.worn[first:end] = worn

    def leave(self, count: int, gone: Sequence[int], columns: int) -> list[int]:
        """Take rows out of the first `count`, which hold `columns` at most; the last ones move to their places. Which rows
        stand there now, in order."""
        left = count - len(gone)
        order, holes = list(range(count)), sorted(i for i in gone if i < left)
        movers = sorted(set(range(left, count)) - set(gone))
        if movers:
            to, of = (torch.tensor(x, device=self.device) for x in (holes, movers))
            for held in self.held:
                held[:, to, :, :columns] = held[:, of, :, :columns]
            for state in (self.tokens, self.lengths, self.worn):
                state[to] = state[of]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.active[left:] = 0
        self.lengths[left:] = 0
        return order[:left]


def bucket(rows: int) -> int:
    """The number of rows that a step works on, at least `rows`: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96..."""
    return rows if rows <= 2 else _steps(rows, 8 if rows > 8 else 2)


def roomy(columns: int) -> int:
    """The number of columns that are set aside for so many."""
    return _steps(max(columns, GRAIN), GRAIN)


def _steps(number: int, grain: int) -> int:
    """The next number of 1, 1.5, 2, 3, 4, 6, 8... times the grain."""
    at = grain
    while at < number:
        half = at + at // 2
        if at >= grain * 2 and number <= half:
            return half
        at *= 2
    return at

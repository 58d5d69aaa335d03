"""Steps over an arena, replayed from CUDA graphs where there is a GPU: one launch instead of hundreds.

A number of rows runs as it is the first time, is captured the second time and replayed from then on. A graph reads and
writes the arena's own tensors, so an arena that has grown is captured anew.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from tuner.generate.arena import Arena, bucket
from tuner.generate.written import Ends, Outfit, State, Written

logger = logging.getLogger(__name__)


MOST_OUTFITS = 8
"""Adapters whose rows stand in one arena; when it is empty and has had so many, it forgets them."""


class Steps:
    """Steps of one arena, whose rows wear what they wore when they entered. Logits are overwritten by the next step."""

    def __init__(self, written: Written, ends: Ends, arena: Arena, capture: bool):
        self.written, self.ends, self.arena, self.capture = written, ends, arena, capture
        self.outfits: dict[State, Outfit] = {}
        self.worn = written.worn(ends, [])
        self.table: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.seen: set[int] = set()
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool: Any = None  # torch's handle of the memory that the graphs share
        self.stream = torch.cuda.Stream() if capture else None
        self.age = -1

    def wear(self, state: State, empty: bool) -> int:
        """The number of what is on the model now among what is worn here; what is new is taken in."""
        if state not in self.outfits:
            if empty and len(self.outfits) >= MOST_OUTFITS:
                self.outfits.clear()
            self.outfits[state] = self.written.outfit()
            self.worn = self.written.worn(self.ends, list(self.outfits.values()))
            self.close()
        return list(self.outfits).index(state)

    def renew(self, state: State) -> None:
        """Copy what is on the model now over what was copied of it before, in its place, where graphs read it."""
        if list(self.outfits) != [state]:
            self.outfits.clear()  # taken in when it is next worn
            return
        self.outfits[state] = self.written.outfit()
        self.worn.overwrite(self.written.worn(self.ends, list(self.outfits.values())))

    def __call__(self, rows: int, columns: int) -> Tensor:
        """Read the next token of the first `rows` rows, which then hold `columns` at most, and put the likeliest one after
        it in its place; logits [rows, vocabulary]."""
        self._renew()
        if not self.capture:
            return self._step(rows, columns)
        size = self._size(rows)
        if size not in self.graphs and (size not in self.seen or not self._captured(size)):
            self.seen.add(size)
            return self._step(size, self.arena.columns)[:rows]
        graph, logits = self.graphs[size]
        graph.replay()
        return logits[:rows]

    def _size(self, rows: int) -> int:
        """How many rows a step for these works on: a captured one may do twice as much as it must."""
        least = bucket(rows)
        found = [size for size in self.graphs if least <= size <= 2 * least]
        return min(found, default=least) if rows > 1 else 1

    def _renew(self) -> None:
        if self.age != self.arena.age:
            self.close()
            self.age, self.table = self.arena.age, self.written.table(self.arena.columns)

    def close(self) -> None:
        """Forget the graphs."""
        if self.graphs:
            torch.cuda.synchronize()  # one of them may be at work
        self.graphs.clear()
        self.pool = None  # it went with the last of them

    def _step(self, rows: int, columns: int) -> Tensor:
        arena = self.arena
        logits = self.written.step(self.worn, arena, self.table, rows, columns)
        arena.lengths[:rows] += arena.active[:rows]
        arena.tokens[:rows] = logits.argmax(-1)
        return logits

    def _captured(self, rows: int) -> bool:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(self.stream):
                graph.capture_begin(self.pool, capture_error_mode="thread_local")
                try:
                    logits = self._step(rows, self.arena.columns)
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("Text is made without CUDA graphs, which is slower: %s", error)
            self.capture = False
            return False
        self.pool = self.pool or graph.pool()
        self.graphs[rows] = (graph, logits)
        return True

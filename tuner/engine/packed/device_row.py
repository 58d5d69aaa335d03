"""A packed row on the device: typed tensor views into one buffer, and the pieces a CPU's attention loops
over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tuner.engine.packed.rows import Row, RowShape

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GatheredKeys:
    """For variable-length attention: key rows in segment order, offsets of queries and keys, longest of
    each."""

    index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int


Beside = Callable[[Row, "DeviceRow"], None]


@dataclass(frozen=True)
class SeenRow:
    """What stands beside the ids of a model that takes pictures: `places` [T] of pictures' tokens, what is put there
    (`features` [T, H]) and, behind the first layers, added (`deep` [T, H] each), and `positions` along one axis or three
    [A, T]."""

    places: Tensor
    features: Tensor
    deep: tuple[Tensor, ...]
    positions: Tensor

    def first(self, tokens: int) -> SeenRow:
        """The same memory for a shorter row."""
        deep = tuple(level[:tokens] for level in self.deep)
        return SeenRow(self.places[:tokens], self.features[:tokens], deep, self.positions[:, :tokens])

    def embedded(self, embeds: Tensor) -> Tensor:
        """Embeddings [T, H] with pictures in their places."""
        return torch.where(self.places[:, None], self.features.to(embeds.dtype), embeds)

    def added(self, layer: int, hidden: Tensor) -> Tensor:
        """What goes on behind a layer [T, H]."""
        if layer >= len(self.deep):
            return hidden
        return hidden + torch.where(self.places[:, None], self.deep[layer].to(hidden.dtype), 0.0)


class DeviceRow:
    """Views: ids, positions [T]; sources, targets, token_weights [N]; token_values [channels, N]; counts [S + 1]; lengths,
    references [S]; weights, labels [U]; groups [U, U]; query_tiles, key_tiles [tiles, 5].

    `load` copies another row of the same shape into the same memory, which is what graph replays need; `beside` lays out
    what else a row has.
    """

    def __init__(
        self,
        row: Row,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        beside: Beside | None = None,
    ) -> None:
        self.shape: RowShape = row.shape
        self.buffer = torch.empty(row.shape.size, dtype=torch.int32, device=device)
        self.views: dict[str, Tensor] = {}
        for name, (offset, shape, kind) in row.shape.fields.items():
            view = self.buffer[offset : offset + int(np.prod(shape))].view(shape)
            self.views[name] = view.view(torch.float32) if kind is np.float32 else view
        self.segments, self.dtype, self.beside = row.segments, dtype, beside
        self.seen: SeenRow | None = None
        self._pieces: dict[int | None, list[tuple[Spans, Spans, Tensor]]] = {}
        self.load(row)

    def __getitem__(self, name: str) -> Tensor:
        return self.views[name]

    def load(self, row: Row) -> None:
        """Copy a row's buffer here, without waiting for the device."""
        host = torch.from_numpy(row.buffer)
        if self.buffer.is_cuda:
            host = host.pin_memory()
        self.buffer.copy_(host, non_blocking=True)
        if self.beside is not None:
            self.beside(row, self)

    def pieces(self, window: int | None = None) -> list[tuple[Spans, Spans, Tensor]]:
        """What attention loops over on a CPU: (query spans, key spans, additive mask [queries, keys]).

        Per unit: the prompt over itself, and its answers, as one run, over the prompt and themselves, each token over at
        most `window` ending with itself.
        """
        if window not in self._pieces:
            self._pieces[window] = self._made_pieces(window)
        return self._pieces[window]

    def _made_pieces(self, window: int | None) -> list[tuple[Spans, Spans, Tensor]]:
        found: list[tuple[Spans, Spans, Tensor]] = []
        for prompt, answers in self.segments:
            size = prompt[1] - prompt[0]
            if size:
                found.append(((prompt,), (prompt,), self._mask(0, [size], window)))
            if answers and answers[-1][1] > answers[0][0]:
                run = (answers[0][0], answers[-1][1])
                keys = (prompt, run) if size else (run,)
                found.append(((run,), keys, self._mask(size, [e - s for s, e in answers], window)))
        return found

    def _mask(self, prefix: int, sizes: list[int], window: int | None) -> Tensor:
        """[sum(sizes), prefix + sum(sizes)]: 0 where a token of a causal segment may look, else -inf."""
        total = sum(sizes)
        mask = torch.full((total, prefix + total), float("-inf"), dtype=self.dtype, device=self.buffer.device)
        mask[:, :prefix] = 0.0
        at = 0
        for size in sizes:
            own = mask[at : at + size, prefix + at : prefix + at + size]
            own.triu_(1)  # keeps -inf above the diagonal, writes 0 on and below it
            at += size
        if window is not None:
            queries = torch.cat([prefix + torch.arange(size) for size in sizes])
            places = torch.cat([torch.arange(prefix), queries])
            mask[queries[:, None] - places[None] >= window] = float("-inf")
        return mask

    @cached_property
    def gathered_keys(self) -> GatheredKeys:
        """Every segment's keys: its prompt, then itself. Segments lie in row order, so queries need no
        gather."""
        spans = [(s, (0, 0)) for s, _ in self.segments] + [(a, s) for s, more in self.segments for a in more]
        spans = sorted(x for x in spans if x[0][1] > x[0][0])
        keys = [np.r_[prefix[0] : prefix[1], own[0] : own[1]] for own, prefix in spans]
        queries = [own[1] - own[0] for own, _ in spans]
        offsets = [np.cumsum([0, *sizes]).astype(np.int32) for sizes in (queries, [len(k) for k in keys])]
        device = self.buffer.device
        return GatheredKeys(
            torch.from_numpy(np.concatenate(keys).astype(np.int32)).to(device),
            torch.from_numpy(offsets[0]).to(device),
            torch.from_numpy(offsets[1]).to(device),
            max(queries),
            max(map(len, keys)),
        )

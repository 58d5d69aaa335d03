"""A packed row on the device: typed tensor views into one buffer, and the pieces a CPU's attention loops over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tuner.engine.packed.rows import Row, RowShape


@dataclass(frozen=True)
class Part:
    """One unit's place in the row's list of splits, and the mask [answers, prompt + answers] of its answers."""

    prompt: int | None
    answers: int | None
    mask: Tensor | None


@dataclass(frozen=True)
class GatheredKeys:
    """For variable-length attention: key rows in segment order, offsets of queries and keys, longest of each."""

    index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    max_query: int
    max_key: int


class DeviceRow:
    """Views: ids, positions [T]; sources, targets, token_weights [N]; counts [S + 1]; lengths, references [S];
    weights, labels [U]; groups [U, U]; query_tiles, key_tiles [tiles, 5].

    `load` copies another row of the same shape into the same memory, which is what graph replays need.
    """

    def __init__(self, row: Row, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.shape: RowShape = row.shape
        self.buffer = torch.empty(row.shape.size, dtype=torch.int32, device=device)
        self.views: dict[str, Tensor] = {}
        for name, (offset, shape, kind) in row.shape.fields.items():
            view = self.buffer[offset : offset + int(np.prod(shape))].view(shape)
            self.views[name] = view.view(torch.float32) if kind is np.float32 else view
        self.split_sizes: list[int] = []
        self.parts: list[Part] = []
        self.segments = row.segments
        self.load(row)
        if not row.shape.blocks:
            self._prepare_parts(row, device, dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self.views[name]

    def load(self, row: Row) -> None:
        """Copy a row's buffer here, without waiting for the device."""
        host = torch.from_numpy(row.buffer)
        if self.buffer.is_cuda:
            host = host.pin_memory()
        self.buffer.copy_(host, non_blocking=True)

    def _prepare_parts(self, row: Row, device: torch.device, dtype: torch.dtype) -> None:
        """Splits in row order (prompts, then answers, then padding) and one additive mask per unit."""
        prompts = [s for s, answers in row.segments if answers]
        padding = [s for s, answers in row.segments if not answers]
        runs = [(a[0][0], a[-1][1]) for _, a in row.segments if a]
        spans = [s for s in [*prompts, *runs, *padding] if s[1] > s[0]]
        self.split_sizes = [e - s for s, e in spans]
        place = {s: i for i, s in enumerate(spans)}
        for (prompt, answers), run in zip([x for x in row.segments if x[1]], runs, strict=True):
            mask = _answer_mask(prompt[1] - prompt[0], [e - s for s, e in answers], device, dtype)
            self.parts.append(Part(place.get(prompt), place.get(run), mask))
        self.parts += [Part(place[s], None, None) for s in padding]


    @cached_property
    def gathered_keys(self) -> GatheredKeys:
        """Every segment's keys: its prompt, then itself. Segments lie in row order, so queries need no gather."""
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


def _answer_mask(prompt: int, answers: list[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Additive mask [sum(answers), prompt + sum(answers)]: 0 where an answer token may look, else -inf."""
    total = sum(answers)
    mask = torch.full((total, prompt + total), float("-inf"), dtype=dtype, device=device)
    mask[:, :prompt] = 0.0
    at = 0
    for size in answers:
        block = mask[at : at + size, prompt + at : prompt + at + size]
        block.copy_(torch.triu(torch.full((size, size), float("-inf"), dtype=dtype), diagonal=1))
        at += size
    return mask

"""Keys and values of rows that come and go: padded on the left, so that all write into the same column.

A row that is shorter than the longest begins at a later column, and the mask hides what stands before it. Positions are
the row's own, so what a row reads does not depend on who stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

ROOM = 64
"""Columns that are set aside at least when a layer grows."""


class PaddedLayer(CacheLayerMixin):
    """One layer's keys and values [rows, heads, columns, size], with free columns on the right."""

    is_sliding = False  # it keeps all columns; the mask hides those outside a window

    def __init__(self) -> None:
        super().__init__()
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; returns all there are."""
        if not self.is_initialized:
            self.keys, self.values = key_states, value_states
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.filled = key_states.shape[2]
            return key_states, value_states
        end = self.filled + key_states.shape[2]
        if end > self.keys.shape[2]:
            room = max(ROOM, end // 4)
            self.keys, self.values = (
                _grown(self.keys, self.filled, end + room),
                _grown(self.values, self.filled, end + room),
            )
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return -1


def _grown(held: torch.Tensor, filled: int, columns: int) -> torch.Tensor:
    rows, heads, _, size = held.shape
    grown = held.new_zeros(rows, heads, columns, size)
    grown[:, :, :filled] = held[:, :, :filled]
    return grown


def empty() -> Cache:
    """A cache whose layers are made as they are written."""
    return Cache(layer_class_to_replicate=PaddedLayer)


def joined(parts: Sequence[tuple[Cache, Sequence[int]]], columns: int) -> Cache:
    """The named rows of several caches in one of `columns` columns, each ending at the last of them.

    What a row holds must be in its cache's last `columns` columns.
    """
    made = empty()
    for number in range(max(len(cache.layers) for cache, _ in parts)):
        made.layers.append(_joined([(cache.layers[number], rows) for cache, rows in parts], columns))
    return made


def _joined(parts: Sequence[tuple[PaddedLayer, Sequence[int]]], columns: int) -> PaddedLayer:
    made = PaddedLayer()
    made.lazy_initialization(parts[0][0].keys, parts[0][0].values)
    made.keys = _stacked([(layer.keys, layer.filled, rows) for layer, rows in parts], columns)
    made.values = _stacked([(layer.values, layer.filled, rows) for layer, rows in parts], columns)
    made.filled = columns
    return made


def _stacked(parts: Sequence[tuple[torch.Tensor, int, Sequence[int]]], columns: int) -> torch.Tensor:
    first = parts[0][0]
    rows = sum(len(chosen) for _, _, chosen in parts)
    made = first.new_zeros(rows, first.shape[1], columns + ROOM, first.shape[3])
    at = 0
    for held, filled, chosen in parts:
        kept = min(filled, columns)
        piece = held[list(chosen), :, filled - kept : filled]
        made[at : at + len(chosen), :, columns - kept : columns] = piece
        at += len(chosen)
    return made

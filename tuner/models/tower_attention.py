"""Attention of the part that sees, over many pictures at once.

Towers of Qwen2-VL and its kin attend within windows and pictures that lie side by side in one sequence, and without the
flash-attn package transformers runs them one by one: hundreds of small calls a layer. Here all of one length are one call.
Registered under a name with `flash` in it, by which those towers hand over where windows begin (`cu_seq_lens_q`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "tuner_flash_windows"


class Group(NamedTuple):
    """Windows of one length, and where their tokens stand; None where they are all that there is, in order."""

    length: int
    places: Tensor | None


_groups: dict[int, tuple[Tensor, list[Group]]] = {}
"""Of each tensor of borders that was met inside `side_by_side`, by its id; the tensor is kept, so that no other gets that id."""


@contextmanager
def side_by_side(tower: nn.Module) -> Iterator[None]:
    """Inside, a tower that knows where windows begin attends to all of one length in one call; others are as before."""
    if not any("cu_seqlens" in inspect.signature(type(m).forward).parameters for m in tower.modules()):
        yield
        return
    AttentionInterface.register(NAME, _forward)
    config: Any = tower.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _groups.clear()


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """q, k and v [1, H, T, D] -> [1, T, H, D]."""
    if cu_seq_lens_q is None:
        raise TypeError("a tower that does not say where its windows begin")
    parts = (query[0], key[0], value[0])
    mixed = torch.empty_like(query[0].transpose(0, 1))
    for length, places in _groups_of(cu_seq_lens_q):
        q, k, v = (_windows(part, length, places) for part in parts)
        found = scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1)
        if places is None:
            return found[None], None
        mixed.index_copy_(0, places, found)
    return mixed[None], None


def _windows(part: Tensor, length: int, places: Tensor | None) -> Tensor:
    """[H, T, D] -> [N, H, length, D]."""
    chosen = part if places is None else part.index_select(1, places)
    return chosen.unflatten(1, (-1, length)).transpose(0, 1)


def _groups_of(borders: Tensor) -> list[Group]:
    """The windows between borders [N + 1], by their length."""
    if id(borders) not in _groups:
        _groups[id(borders)] = borders, _grouped(borders)
    return _groups[id(borders)][1]


def _grouped(borders: Tensor) -> list[Group]:
    known = borders.tolist()
    by_length: dict[int, list[int]] = {}
    for start, end in zip(known, known[1:], strict=False):
        by_length.setdefault(end - start, []).append(start)
    by_length.pop(0, None)
    if len(by_length) == 1:
        return [Group(next(iter(by_length)), None)]
    return [Group(length, _places(starts, length).to(borders.device)) for length, starts in by_length.items()]


def _places(starts: list[int], length: int) -> Tensor:
    return (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()

"""One token more of each row in plain torch: the CPU's way, and what the GPU's is tested against.

M rows, H hidden, D numbers a head. The same functions as `step_triton`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tuner.generate.arena import Arena
from tuner.models import pointwise_torch
from tuner.models.linears import Adapted, Linears
from tuner.models.llama_family import Norm

GRAIN = 1
"""Ranks of adapters are rounded up to a multiple of this."""


@dataclass(frozen=True)
class Heads:
    """How one layer attends; `window` is how many columns a row sees, its own included, 0 for all."""

    queries: int
    keys: int
    size: int
    scale: float
    window: int
    norms: tuple[Norm, Norm] | None


@dataclass(frozen=True)
class Place:
    """Where the rows of a step stand: their arena, lengths [M], rotary cosines and sines [M, 1, D], of which the first half
    of the sines is negative, and masks by window."""

    arena: Arena
    lengths: Tensor
    cos: Tensor
    sin: Tensor
    masks: dict[int, Tensor]
    columns: int


def place(arena: Arena, rows: int, columns: int, table: tuple[Tensor, Tensor], windows: set[int]) -> Place:
    """What all layers of a step share. `table` holds cosines and sines [positions, D] in float32."""
    lengths = arena.lengths[:rows]
    at = torch.arange(columns, device=lengths.device)[None]
    masks = {}
    for window in windows:
        seen = at <= lengths[:, None]
        if window:
            seen &= at > lengths[:, None] - window
        masks[window] = seen[:, None, None]
    sin = table[1][lengths][:, None]
    sin[..., : sin.shape[-1] // 2].neg_()
    return Place(arena, lengths, table[0][lengths][:, None], sin, masks, columns)


def normed(x: Tensor, norm: Norm | None, kernels: Any = None) -> Tensor:
    """x [M, H], normed where there is a norm: by these kernels, else by torch, whose one call is the quickest on a CPU."""
    if norm is None:
        return x
    if kernels is None and x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    out = torch.empty_like(x)
    (kernels or pointwise_torch).rms_norm(x, norm.weight, norm.eps, out)
    return out


def product(x: Tensor, linears: Linears, lora: Adapted | None, residual: Tensor | None = None) -> Tensor:
    """x [M, K] -> [M, N]: the linears, their adapters, and what is added to them."""
    made = [F.linear(x, weight) for weight in linears.weights]
    out = made[0] if len(made) == 1 else torch.cat(made, 1)
    if linears.bias is not None:
        out += linears.bias
    if lora is not None:
        out.addmm_(lora.read(x), lora.b.t())
    return out if residual is None else out.add_(residual)


def linear(
    x: Tensor,
    linears: Linears,
    lora: Adapted | None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The product of x or of normed x."""
    return product(normed(x, norm), linears, lora, residual)


def gated(x: Tensor, linears: Linears, lora: Adapted | None, norm: Norm) -> Tensor:
    """silu(gate) * up of normed x, [M, I]."""
    gate, up = product(normed(x, norm), linears, lora).chunk(2, 1)
    return F.silu(gate).mul_(up)


def rotated(x: Tensor, where: Place) -> Tensor:
    """Queries and keys [M, heads, D], turned by their rows' positions: few calls, for these tensors are small."""
    wide = x.float()
    return torch.addcmul(wide * where.cos, wide.roll(x.shape[-1] // 2, -1), where.sin).to(x.dtype)


def attend(qkv: Tensor, heads: Heads, number: int, where: Place) -> Tensor:
    """Writes a layer's keys and values of the new tokens and attends to all, from qkv [M, (Hq + 2 Hk) D]; [M, Hq D]."""
    rows, both = qkv.shape[0], heads.queries + heads.keys
    width = both * heads.size
    if heads.norms is not None:
        qk = qkv.new_empty(rows, width)
        first, second = heads.norms
        weights, counts = (first.weight, second.weight), (heads.queries, heads.keys)
        pointwise_torch.head_norm(qkv, weights, counts, first.eps, qk)
        qkv[:, :width] = qk
    turned = rotated(qkv[:, :width].unflatten(1, (both, heads.size)), where)
    q, k = turned.split([heads.queries, heads.keys], 1)
    v = qkv[:, width:].unflatten(1, (heads.keys, heads.size))
    held = where.arena.held[number]
    at = torch.arange(rows, device=qkv.device)
    held[0][at, :, where.lengths], held[1][at, :, where.lengths] = k, v
    keys, values = held[:, :rows, :, : where.columns]
    q = q.reshape(rows, heads.keys, -1, heads.size)  # the queries of a key head, as if they were positions
    mask = where.masks[heads.window]
    return F.scaled_dot_product_attention(q, keys, values, mask, scale=heads.scale).flatten(1)

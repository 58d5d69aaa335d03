"""One token more of each row as Triton kernels: the same functions as `step_torch`, for CUDA.

One row alone is bound by reading the weights and by the number of kernels: its products take norm, bias, adapter, gate and
residual in one kernel each (two with an adapter). More rows go through the library's matrix products. Everything is
computed in float32 and no kernel uses atomics, so that a step gives the same numbers whenever it runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuner.generate import step_torch
from tuner.generate.arena import Arena
from tuner.generate.step_torch import Heads, Place
from tuner.models import pointwise_triton
from tuner.models.linears import Adapted, Linears
from tuner.models.llama_family import Norm

GRAIN = 16
LOG2E = 1.4426950408889634
COLUMNS = 64
"""Columns of keys that one program reads at a time."""
PROGRAMS = 264
"""Programs that keep a GPU busy: two for each processor of an H100."""
RANKS = 256
"""Ranks of adapters, all together, that the kernels of one row take."""


def tile(width: int, gated: bool) -> tuple[int, int, int]:
    """Rows and columns of a weight's tile and warps, for weights of so many columns: the fastest on an H100 of sixteen, by
    `tests/bench/decoding.py --gpu --sweep`. They are within a third of what the memory's bandwidth allows."""
    if width > 2048:
        return 1, 1024, 8
    return 1, max(128, triton.next_power_of_2(width)), 8 if gated else 4


def place(arena: Arena, rows: int, columns: int, table: tuple[Tensor, Tensor], windows: set[int]) -> Place:
    return Place(arena, arena.lengths[:rows], table[0], table[1], {}, arena.columns)


@triton.jit
def _one_row(
    x, norm, weight, bias, thin, b, residual, hidden, out, eps, stride, n,
    k: tl.constexpr, rank: tl.constexpr, padded: tl.constexpr, normed: tl.constexpr, biased: tl.constexpr, gated: tl.constexpr,
    added: tl.constexpr, hiding: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """out = act(W norm(x) + B thin + bias) + residual for `rows` rows of W."""
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    ok = row < n
    wide = row.to(tl.int64)
    at = tl.arange(0, columns)
    sums = tl.zeros([rows, columns], tl.float32)
    ups = tl.zeros([rows, columns], tl.float32)
    squares = tl.zeros([columns], tl.float32)
    for start in range(0, k, columns):
        column = start + at
        there = column < k
        value = tl.load(x + column, mask=there, other=0.0).to(tl.float32)
        if normed:
            squares += value * value
            value *= tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
        both = ok[:, None] & there[None, :]
        w = tl.load(weight + wide[:, None] * stride + column[None, :], mask=both, other=0.0).to(tl.float32)
        sums += w * value[None, :]
        if gated:
            u = tl.load(weight + (wide[:, None] + n) * stride + column[None, :], mask=both, other=0.0)
            ups += u.to(tl.float32) * value[None, :]
    y = tl.sum(sums, 1)
    up = tl.sum(ups, 1)
    if normed:
        r = tl.rsqrt(tl.sum(squares, 0) / k + eps)
        y *= r
        up *= r
    if biased:
        y += tl.load(bias + row, mask=ok, other=0.0).to(tl.float32)
    if rank:
        item = tl.arange(0, padded)
        mine = ok[:, None] & (item < rank)[None, :]
        t = tl.load(thin + item, mask=item < rank, other=0.0).to(tl.float32)[None, :]
        lora = tl.load(b + wide[:, None] * rank + item[None, :], mask=mine, other=0.0).to(tl.float32)
        y += tl.sum(lora * t, 1)
    if gated:
        if biased:
            up += tl.load(bias + n + row, mask=ok, other=0.0).to(tl.float32)
        if rank:
            item = tl.arange(0, padded)
            mine = ok[:, None] & (item < rank)[None, :]
            t = tl.load(thin + item, mask=item < rank, other=0.0).to(tl.float32)[None, :]
            lora = tl.load(b + (wide[:, None] + n) * rank + item[None, :], mask=mine, other=0.0)
            up += tl.sum(lora.to(tl.float32) * t, 1)
        y = y * tl.sigmoid(y) * up
    if added:
        y += tl.load(residual + row, mask=ok, other=0.0).to(tl.float32)
    if hiding:
        y = tl.where(tl.load(hidden + row, mask=ok, other=1) != 0, 0.0, y)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=ok)


def _vector(
    x: Tensor, weight: Tensor, out: Tensor, norm: Norm | None, bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None, residual: Tensor | None = None, gated: bool = False,
    hidden: Tensor | None = None,
) -> Tensor:  # fmt: skip
    n = out.shape[1]
    rows, columns, warps = tile(x.shape[1], gated)
    thin, b = lora if lora is not None else (x, x)
    _one_row[(triton.cdiv(n, rows),)](
        x, norm.weight if norm else x, weight, x if bias is None else bias, thin, b, x if residual is None else residual,
        x if hidden is None else hidden, out, norm.eps if norm else 0.0, weight.stride(0), n, x.shape[1], b.shape[1] if lora is not None else 0,
        triton.next_power_of_2(b.shape[1]) if lora is not None else 0,
        norm is not None, bias is not None, gated, residual is not None, hidden is not None, rows, columns, num_warps=warps,
    )  # fmt: skip
    return out


def _alone(
    x: Tensor, linears: Linears, lora: Adapted | None, norm: Norm | None, residual: Tensor | None, gated: bool
) -> Tensor:
    thin = None
    if lora is not None:
        made = x.new_empty(1, len(lora.a), dtype=torch.float32)
        read = _vector(
            x, lora.a, made, norm, hidden=None if lora.hidden is None else lora.hidden.view(torch.uint8)
        )
        thin = (read, lora.b)
    out = x.new_empty(1, linears.outputs // 2 if gated else linears.outputs)
    return _vector(x, linears.weights[0], out, norm, linears.bias, thin, residual, gated)


def _fits(x: Tensor, linears: Linears, lora: Adapted | None) -> bool:
    return len(x) == 1 and len(linears.weights) == 1 and (lora is None or len(lora.a) <= RANKS)


def linear(
    x: Tensor,
    linears: Linears,
    lora: Adapted | None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    if _fits(x, linears, lora):
        return _alone(x, linears, lora, norm, residual, False)
    return step_torch.product(step_torch.normed(x, norm, pointwise_triton), linears, lora, residual)


def gated(x: Tensor, linears: Linears, lora: Adapted | None, norm: Norm) -> Tensor:
    if _fits(x, linears, lora):
        return _alone(x, linears, lora, norm, None, True)
    both = step_torch.product(step_torch.normed(x, norm, pointwise_triton), linears, lora)
    out = both.new_empty(len(both), both.shape[1] // 2)
    pointwise_triton.swiglu(both, out)
    return out


@triton.jit
def _write(
    qkv, keys, values, lengths, cos, sin, q_weight, k_weight, stride, row_stride, head_stride, hq, hk, eps,
    half: tl.constexpr, normed: tl.constexpr,
):  # fmt: skip
    """Norms and rotates one head of one row; queries stay where they are, keys and values go to their column."""
    row, head = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, half)
    at = tl.load(lengths + row)
    own = qkv + row * stride + head * 2 * half
    first, second = tl.load(own + i).to(tl.float32), tl.load(own + half + i).to(tl.float32)
    query, value = head < hq, head >= hq + hk
    if normed:
        r = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * half) + eps)
        w1 = tl.where(query, tl.load(q_weight + i), tl.load(k_weight + i)).to(tl.float32)
        w2 = tl.where(query, tl.load(q_weight + half + i), tl.load(k_weight + half + i)).to(tl.float32)
        first = tl.where(value, first, first * r * w1)
        second = tl.where(value, second, second * r * w2)
    c = tl.where(value, 1.0, tl.load(cos + at * 2 * half + i))
    s = tl.where(value, 0.0, tl.load(sin + at * 2 * half + i))
    low = (first * c - second * s).to(qkv.dtype.element_ty)
    high = (second * c + first * s).to(qkv.dtype.element_ty)
    if query:
        tl.store(own + i, low)
        tl.store(own + half + i, high)
    else:
        column = row.to(tl.int64) * row_stride + ((head - hq) % hk) * head_stride + at * 2 * half
        if value:
            tl.store(values + column + i, low)
            tl.store(values + column + half + i, high)
        else:
            tl.store(keys + column + i, low)
            tl.store(keys + column + half + i, high)


@triton.jit
def _attend(
    q, keys, values, out, parts, stats, lengths, q_stride, row_stride, head_stride, out_stride, scale2,
    repeats: tl.constexpr, padded: tl.constexpr, d: tl.constexpr, block: tl.constexpr, splits: tl.constexpr,
    window: tl.constexpr,
):  # fmt: skip
    """The queries of one key head of one row over one of `splits` shares of the row's columns."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = (tl.load(lengths + row) + 1).to(tl.int32)
    begin = end * 0
    if window:
        begin = tl.maximum(end - window, 0)
    share = tl.cdiv(tl.cdiv(end - begin, splits), block) * block
    low = begin + split * share
    high = tl.minimum(low + share, end)
    group, dims, cols = tl.arange(0, padded), tl.arange(0, d), tl.arange(0, block)
    own = head * repeats + group
    mine = group < repeats
    query = tl.load(q + row * q_stride + own[:, None] * d + dims[None, :], mask=mine[:, None], other=0.0)
    start = row.to(tl.int64) * row_stride + head * head_stride
    top = tl.full([padded], float("-inf"), tl.float32)
    total = tl.zeros([padded], tl.float32)
    acc = tl.zeros([padded, d], tl.float32)
    for c in range(low, high, block):
        at = c + cols
        ok = at < high
        place = start + at[:, None] * d + dims[None, :]
        key = tl.load(keys + place, mask=ok[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale2
        score = tl.where(ok[None, :], score, float("-inf"))
        above = tl.maximum(top, tl.max(score, 1))
        p = tl.exp2(score - above[:, None])
        less = tl.exp2(top - above)
        total = total * less + tl.sum(p, 1)
        value = tl.load(values + place, mask=ok[:, None], other=0.0)
        acc = acc * less[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
        top = above
    if splits == 1:
        to = out + row * out_stride + own[:, None] * d + dims[None, :]
        tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=mine[:, None])
    else:
        item = (row * tl.num_programs(1) * repeats + own) * splits + split
        tl.store(parts + item[:, None] * d + dims[None, :], acc, mask=mine[:, None])
        tl.store(stats + item * 2, top, mask=mine)
        tl.store(stats + item * 2 + 1, total, mask=mine)


@triton.jit
def _gather(parts, stats, out, out_stride, d: tl.constexpr, splits: tl.constexpr):
    """The shares of one query head of one row, put together."""
    row, head = tl.program_id(0), tl.program_id(1)
    item = (row * tl.num_programs(1) + head) * splits + tl.arange(0, splits)
    dims = tl.arange(0, d)
    top, total = tl.load(stats + item * 2), tl.load(stats + item * 2 + 1)
    less = tl.exp2(top - tl.max(top, 0))
    acc = tl.load(parts + item[:, None] * d + dims[None, :])
    y = tl.sum(acc * less[:, None], 0) / tl.sum(total * less, 0)
    tl.store(out + row * out_stride + head * d + dims, y.to(out.dtype.element_ty))


def splits_of(rows: int, heads: int, columns: int) -> int:
    """Into how many shares a row's columns are cut, a power of two: enough programs, and none without a tile."""
    most = max(1, min(columns // COLUMNS, PROGRAMS // (rows * heads)))
    return 1 << (most.bit_length() - 1)


def attend(qkv: Tensor, heads: Heads, number: int, where: Place) -> Tensor:
    rows, d = len(qkv), heads.size
    keys, values = where.arena.held[number]
    row_stride, head_stride = keys.stride(0), keys.stride(1)
    q_norm, k_norm = heads.norms if heads.norms is not None else (None, None)
    _write[(rows, heads.queries + 2 * heads.keys)](
        qkv, keys, values, where.lengths, where.cos, where.sin, q_norm.weight if q_norm else qkv,
        k_norm.weight if k_norm else qkv, qkv.stride(0), row_stride, head_stride, heads.queries, heads.keys,
        q_norm.eps if q_norm else 0.0, d // 2, q_norm is not None, num_warps=1,
    )  # fmt: skip
    splits, repeats = splits_of(rows, heads.keys, where.columns), heads.queries // heads.keys
    out = qkv.new_empty(rows, heads.queries * d)
    parts = qkv.new_empty(rows * heads.queries * splits, d, dtype=torch.float32) if splits > 1 else out
    stats = qkv.new_empty(rows * heads.queries * splits, 2, dtype=torch.float32) if splits > 1 else out
    _attend[(rows, heads.keys, splits)](
        qkv, keys, values, out, parts, stats, where.lengths, qkv.stride(0), row_stride, head_stride, out.stride(0),
        heads.scale * LOG2E, repeats, max(16, triton.next_power_of_2(repeats)), d, COLUMNS, splits, heads.window,
        num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _gather[(rows, heads.queries)](parts, stats, out, out.stride(0), d, splits, num_warps=1)
    return out

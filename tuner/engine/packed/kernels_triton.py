"""The engine's fused operations as Triton kernels; the same functions as `kernels_torch`, for CUDA.

Every kernel is deterministic (no atomics), reads and writes each element once, computes in float32 and
takes strided rows. Attention works on lists of tiles that the host prepared (`rows._fill_tiles`), so a
prompt's keys are read where they lie and no key or value is ever copied; padding tiles are empty and end at
once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.rows import BLOCK, AttentionRule
from tuner.models.pointwise_triton import _tanh as _tanh
from tuner.models.pointwise_triton import geglu as geglu
from tuner.models.pointwise_triton import geglu_backward as geglu_backward
from tuner.models.pointwise_triton import head_norm as head_norm
from tuner.models.pointwise_triton import head_norm_backward as head_norm_backward
from tuner.models.pointwise_triton import rms_norm as rms_norm
from tuner.models.pointwise_triton import rms_norm_backward as rms_norm_backward
from tuner.models.pointwise_triton import rotate as rotate
from tuner.models.pointwise_triton import swiglu as swiglu
from tuner.models.pointwise_triton import swiglu_backward as swiglu_backward
from tuner.models.pointwise_triton import to_float8 as to_float8

LOG2E = 1.4426950408889634


@triton.jit
def _copy_scaled(
    pointers, sizes, scales, source_type: tl.constexpr, target_type: tl.constexpr, block: tl.constexpr
):
    item = tl.program_id(0)
    count, columns = tl.load(sizes + item * 3), tl.load(sizes + item * 3 + 1)
    at = tl.program_id(1) * block + tl.arange(0, block)
    if tl.program_id(1) * block < count:
        ok = at < count
        source = tl.load(pointers + item * 2).to(tl.pointer_type(source_type))
        target = tl.load(pointers + item * 2 + 1).to(tl.pointer_type(target_type))
        value = tl.load(source + at, mask=ok, other=0.0).to(tl.float32) * tl.load(scales + item)
        place = (at // columns) * tl.load(sizes + item * 3 + 2) + at % columns
        tl.store(target + place, value.to(target_type), mask=ok)


_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


class ScaledCopies:
    """target = source * scale for many (contiguous source, target [rows, columns], scale) in one launch."""

    def __init__(self, copies: list[tuple[Tensor, Tensor, float]]) -> None:
        self.copies = copies  # keeps the memory behind the pointers alive
        source, target, _ = copies[0]
        self.types = (_TYPES[source.dtype], _TYPES[target.dtype])
        device = source.device
        self.pointers = torch.tensor([[s.data_ptr(), t.data_ptr()] for s, t, _ in copies], device=device)
        sizes = [[s.numel(), s.shape[1], t.stride(0)] for s, t, _ in copies]
        self.sizes = torch.tensor(sizes, dtype=torch.int32, device=device)
        self.scales = torch.tensor([scale for _, _, scale in copies], dtype=torch.float32, device=device)
        self.blocks = triton.cdiv(max(s.numel() for s, _, _ in copies), 2048)

    def run(self) -> None:
        grid = (len(self.copies), self.blocks)
        _copy_scaled[grid](self.pointers, self.sizes, self.scales, *self.types, 2048, num_warps=8)


@triton.jit
def _score(
    logits, targets, scores, stride, scores_stride, n, cap,
    capped: tl.constexpr, gradient: tl.constexpr, measure: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * stride
    target = tl.load(targets + row)
    top = tl.full([block], float("-inf"), tl.float32)
    total, weighted = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for start in range(0, n, block):
        cols = start + tl.arange(0, block)
        value = tl.load(base + cols, mask=cols < n, other=float("-inf")).to(tl.float32)
        if capped:
            value = tl.where(cols < n, _tanh(value / cap) * cap, float("-inf"))
        new = tl.maximum(top, value)
        safe = tl.where(new == float("-inf"), 0.0, new)
        shrink, power = tl.exp(top - safe), tl.exp(value - safe)
        total = total * shrink + power
        if measure:
            weighted = weighted * shrink + power * tl.where(power > 0, value, 0.0)
        top = new
    high = tl.max(top, 0)
    shrink = tl.exp(top - high)
    all_of_it = tl.sum(total * shrink, 0)
    logsum = high + tl.log(all_of_it)
    picked = tl.load(base + target).to(tl.float32)
    if capped:
        picked = _tanh(picked / cap) * cap
    tl.store(scores + row, picked - logsum)
    if measure:
        tl.store(scores + scores_stride + row, tl.where(picked >= high, 1.0, 0.0))
        tl.store(scores + 2 * scores_stride + row, logsum - tl.sum(weighted * shrink, 0) / all_of_it)
    if gradient:
        tl.debug_barrier()
        for start in range(0, n, block):
            cols = start + tl.arange(0, block)
            value = tl.load(base + cols, mask=cols < n, other=float("-inf")).to(tl.float32)
            if capped:
                tanh = _tanh(value / cap)
                value = tl.where(cols < n, tanh * cap, float("-inf"))
            p = tl.exp(value - logsum)
            p = tl.where(cols == target, p - 1.0, p)
            if capped:
                p *= 1.0 - tanh * tanh
            tl.store(base + cols, p.to(logits.dtype.element_ty), mask=cols < n)


def score_logits(
    logits: Tensor, targets: Tensor, scores: Tensor, gradient: bool, softcap: float | None = None
) -> None:
    if not len(targets):
        return
    _score[(logits.shape[0],)](
        logits, targets, scores, logits.stride(0), scores.stride(0), logits.shape[1], softcap or 1.0,
        bool(softcap), gradient, scores.shape[0] > 1, 8192, num_warps=16,
    )  # fmt: skip


@triton.jit
def _seen(rows, at, ok, q_places, k_places, window, causal: tl.constexpr, windowed: tl.constexpr):
    """Which of the keys `at` each of the queries `rows` looks at; either one may run along the first axis."""
    visible = ok
    if causal:
        visible = visible & (at <= rows)
    if windowed:
        visible = visible & (q_places - k_places < window)
    return visible


@triton.jit
def _attend_over(
    acc, total, top, q, k, v, positions, k_stride, v_stride, first, last, rows, places, scale, cap, window,
    causal: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr, d: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Online softmax of one tile of queries over the keys first..last."""
    cols = tl.arange(0, block)
    dims = tl.arange(0, d)
    for start in range(first, last, block):
        at = start + cols
        ok = at < last
        keys = tl.load(k + at[None, :] * k_stride + dims[:, None], mask=ok[None, :], other=0.0)
        score = tl.dot(q, keys, input_precision="ieee") * scale
        if capped:
            score = _tanh(score) * cap
        key_places = at
        if windowed:
            key_places = tl.load(positions + at, mask=ok, other=0)
        visible = _seen(
            rows[:, None],
            at[None, :],
            ok[None, :],
            places[:, None],
            key_places[None, :],
            window,
            causal,
            windowed,
        )
        score = tl.where(visible, score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(score - safe[:, None])
        shrink = tl.exp2(top - safe)
        values = tl.load(v + at[:, None] * v_stride + dims[None, :], mask=ok[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(p, 1)
        top = new
    return acc, total, top


@triton.jit
def _reach(own, pre, pre_end, first, window, windowed: tl.constexpr, block: tl.constexpr):
    """Where the keys begin that a tile of queries from `first` on can see: in its own segment, and in its prompt."""
    if windowed:
        behind = (
            first - own + 1 - window
        )  # places of the own segment that are out of reach; below 0 of the prompt
        own += tl.maximum(behind, 0) // block * block
        pre += tl.maximum(behind + pre_end - pre, 0) // block * block
    return own, pre


@triton.jit
def _attention_forward(
    q, k, v, out, lse, tiles, positions, q_stride, k_stride, v_stride, out_stride, lse_stride, scale, cap, window,
    repeats: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr, d: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1)
    if first < last:
        own, pre = tl.load(tiles + tile * 5 + 2), tl.load(tiles + tile * 5 + 3)
        pre_end = tl.load(tiles + tile * 5 + 4)
        rows, dims = first + tl.arange(0, block), tl.arange(0, d)
        ok = rows < last
        places = tl.load(positions + rows, mask=ok, other=0)
        own, pre = _reach(own, pre, pre_end, first, window, windowed, block)
        query = tl.load(q + rows[:, None] * q_stride + head * d + dims[None, :], mask=ok[:, None], other=0.0)
        kh, vh = k + (head // repeats) * d, v + (head // repeats) * d
        acc = tl.zeros([block, d], tl.float32)
        total, top = tl.zeros([block], tl.float32), tl.full([block], float("-inf"), tl.float32)
        acc, total, top = _attend_over(
            acc, total, top, query, kh, vh, positions, k_stride, v_stride, pre, pre_end, rows, places, scale,
            cap, window, False, capped, windowed, d, block,
        )  # fmt: skip
        acc, total, top = _attend_over(
            acc, total, top, query, kh, vh, positions, k_stride, v_stride, own, last, rows, places, scale,
            cap, window, True, capped, windowed, d, block,
        )  # fmt: skip
        acc = acc / total[:, None]
        place = out + rows[:, None] * out_stride + head * d + dims[None, :]
        tl.store(place, acc.to(out.dtype.element_ty), mask=ok[:, None])
        tl.store(lse + head * lse_stride + rows, top + tl.log2(total), mask=ok)


def _numbers(rule: AttentionRule) -> tuple[float, float, int]:
    """Factors of a score before and behind tanh, in powers of 2, and the window; without a cap there is no tanh."""
    if rule.softcap:
        return rule.scale / rule.softcap, rule.softcap * LOG2E, rule.window or 0
    return rule.scale * LOG2E, 1.0, rule.window or 0


def _stages(d: int) -> dict[str, int]:
    """How a kernel uses a multiprocessor's memory: tiles of large heads fill it by themselves."""
    return {"num_warps": 8, "num_stages": 1} if d > 128 else {"num_warps": 4, "num_stages": 2}


def attention(
    q: Tensor, k: Tensor, v: Tensor, row: DeviceRow, rule: AttentionRule, out: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    tokens, heads, d = q.shape
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    _attention_forward[(row.shape.tiles, heads)](
        q, k, v, out, lse, row["query_tiles"], row["positions"], q.stride(0), k.stride(0), v.stride(0),
        out.stride(0), lse.stride(0), *_numbers(rule), heads // k.shape[1], bool(rule.softcap),
        rule.window is not None, d, BLOCK, **_stages(d),
    )  # fmt: skip
    return (q, k, v, out, lse) if keep else ()


@triton.jit
def _query_gradient(
    acc, q, do, lse, delta, k, v, positions, k_stride, v_stride, first, last, rows, places, scale, cap, window,
    causal: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr, d: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, block)
    dims = tl.arange(0, d)
    for start in range(first, last, block):
        at = start + cols
        ok = at < last
        keys = tl.load(k + at[None, :] * k_stride + dims[:, None], mask=ok[None, :], other=0.0)
        score = tl.dot(q, keys, input_precision="ieee") * scale
        if capped:
            tanh = _tanh(score)
            score = tanh * cap
        key_places = at
        if windowed:
            key_places = tl.load(positions + at, mask=ok, other=0)
        visible = _seen(
            rows[:, None],
            at[None, :],
            ok[None, :],
            places[:, None],
            key_places[None, :],
            window,
            causal,
            windowed,
        )
        p = tl.where(visible, tl.exp2(score - lse[:, None]), 0.0)
        values = tl.load(v + at[None, :] * v_stride + dims[:, None], mask=ok[None, :], other=0.0)
        dp = tl.dot(do, values, input_precision="ieee")
        ds = p * (dp - delta[:, None])
        if capped:
            ds *= 1.0 - tanh * tanh
        acc += tl.dot(ds.to(q.dtype), tl.trans(keys), input_precision="ieee")
    return acc


@triton.jit
def _attention_dq(
    q, k, v, out, do, lse, delta, dq, tiles, positions, q_stride, k_stride, v_stride, out_stride, do_stride,
    dq_stride, lse_stride, slope, scale, cap, window, repeats: tl.constexpr, capped: tl.constexpr,
    windowed: tl.constexpr, d: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Query gradients of one tile; also writes delta = sum(out * do), which the key kernel reads."""
    tile, head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1)
    if first < last:
        own, pre = tl.load(tiles + tile * 5 + 2), tl.load(tiles + tile * 5 + 3)
        pre_end = tl.load(tiles + tile * 5 + 4)
        rows, dims = first + tl.arange(0, block), tl.arange(0, d)
        ok = rows < last
        places = tl.load(positions + rows, mask=ok, other=0)
        own, pre = _reach(own, pre, pre_end, first, window, windowed, block)
        column = head * d + dims[None, :]
        query = tl.load(q + rows[:, None] * q_stride + column, mask=ok[:, None], other=0.0)
        grad = tl.load(do + rows[:, None] * do_stride + column, mask=ok[:, None], other=0.0)
        value = tl.load(out + rows[:, None] * out_stride + column, mask=ok[:, None], other=0.0)
        dot = tl.sum(grad.to(tl.float32) * value.to(tl.float32), 1)
        tl.store(delta + head * lse_stride + rows, dot, mask=ok)
        stat = tl.load(lse + head * lse_stride + rows, mask=ok, other=0.0)
        kh, vh = k + (head // repeats) * d, v + (head // repeats) * d
        acc = tl.zeros([block, d], tl.float32)
        acc = _query_gradient(
            acc, query, grad, stat, dot, kh, vh, positions, k_stride, v_stride, pre, pre_end, rows, places,
            scale, cap, window, False, capped, windowed, d, block,
        )  # fmt: skip
        acc = _query_gradient(
            acc, query, grad, stat, dot, kh, vh, positions, k_stride, v_stride, own, last, rows, places,
            scale, cap, window, True, capped, windowed, d, block,
        )  # fmt: skip
        place = dq + rows[:, None] * dq_stride + column
        tl.store(place, (acc * slope).to(dq.dtype.element_ty), mask=ok[:, None])


@triton.jit
def _key_gradient(
    dk, dv, keys, values, q, do, lse, delta, positions, q_stride, do_stride, first, last, at, ok, key_places,
    scale, cap, window, causal: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr, d: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Adds what the queries first..last give to one tile of keys and values (both [block, d])."""
    rows = tl.arange(0, block)
    dims = tl.arange(0, d)
    for start in range(first, last, block):
        r = start + rows
        there = r < last
        query = tl.load(q + r[:, None] * q_stride + dims[None, :], mask=there[:, None], other=0.0)
        grad = tl.load(do + r[:, None] * do_stride + dims[None, :], mask=there[:, None], other=0.0)
        stat = tl.load(lse + r, mask=there, other=0.0)
        dot = tl.load(delta + r, mask=there, other=0.0)
        score = tl.dot(keys, tl.trans(query), input_precision="ieee") * scale  # [keys, queries]
        if capped:
            tanh = _tanh(score)
            score = tanh * cap
        places = r
        if windowed:
            places = tl.load(positions + r, mask=there, other=0)
        seen = ok[:, None] & there[None, :]
        visible = _seen(
            r[None, :], at[:, None], seen, places[None, :], key_places[:, None], window, causal, windowed
        )
        p = tl.where(visible, tl.exp2(score - stat[None, :]), 0.0)
        dv += tl.dot(p.to(grad.dtype), grad, input_precision="ieee")
        dp = tl.dot(values, tl.trans(grad), input_precision="ieee")
        ds = p * (dp - dot[None, :])
        if capped:
            ds *= 1.0 - tanh * tanh
        dk += tl.dot(ds.to(query.dtype), query, input_precision="ieee")
    return dk, dv


@triton.jit
def _attention_dkv(
    q, k, v, do, lse, delta, dk_out, dv_out, tiles, positions, q_stride, k_stride, v_stride, do_stride,
    dkv_stride, lse_stride, slope, scale, cap, window, repeats: tl.constexpr, capped: tl.constexpr,
    windowed: tl.constexpr, d: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1)
    if first < last:
        own_end, more = tl.load(tiles + tile * 5 + 2), tl.load(tiles + tile * 5 + 3)
        more_end = tl.load(tiles + tile * 5 + 4)
        at, dims = first + tl.arange(0, block), tl.arange(0, d)
        ok = at < last
        places = tl.load(positions + at, mask=ok, other=0)
        if windowed:
            own_end = tl.minimum(own_end, last - 1 + window)
        column = kv_head * d + dims[None, :]
        keys = tl.load(k + at[:, None] * k_stride + column, mask=ok[:, None], other=0.0)
        values = tl.load(v + at[:, None] * v_stride + column, mask=ok[:, None], other=0.0)
        dk, dv = tl.zeros([block, d], tl.float32), tl.zeros([block, d], tl.float32)
        for i in range(repeats):
            head = kv_head * repeats + i
            qh, doh = q + head * d, do + head * d
            lh, dh = lse + head * lse_stride, delta + head * lse_stride
            dk, dv = _key_gradient(
                dk, dv, keys, values, qh, doh, lh, dh, positions, q_stride, do_stride, first, own_end, at, ok,
                places, scale, cap, window, True, capped, windowed, d, block,
            )  # fmt: skip
            dk, dv = _key_gradient(
                dk, dv, keys, values, qh, doh, lh, dh, positions, q_stride, do_stride, more, more_end, at, ok,
                places, scale, cap, window, False, capped, windowed, d, block,
            )  # fmt: skip
        place = at[:, None] * dkv_stride + column
        tl.store(dk_out + place, (dk * slope).to(dk_out.dtype.element_ty), mask=ok[:, None])
        tl.store(dv_out + place, dv.to(dv_out.dtype.element_ty), mask=ok[:, None])


def attention_backward(
    saved: tuple[Tensor, ...], dout: Tensor, row: DeviceRow, rule: AttentionRule, dqkv: Tensor
) -> None:
    q, k, v, out, lse = saved
    _, heads, d = q.shape
    kv_heads = k.shape[1]
    delta = torch.empty_like(lse)
    dq, dk, dv = dqkv.split([heads * d, kv_heads * d, kv_heads * d], 1)
    common = (
        lse.stride(0), rule.scale, *_numbers(rule), heads // kv_heads, bool(rule.softcap),
        rule.window is not None, d, BLOCK,
    )  # fmt: skip
    _attention_dq[(row.shape.tiles, heads)](
        q, k, v, out, dout, lse, delta, dq, row["query_tiles"], row["positions"], q.stride(0), k.stride(0),
        v.stride(0), out.stride(0), dout.stride(0), dq.stride(0), *common, **_stages(d),
    )  # fmt: skip
    _attention_dkv[(row.shape.tiles, kv_heads)](
        q, k, v, dout, lse, delta, dk, dv, row["key_tiles"], row["positions"], q.stride(0), k.stride(0),
        v.stride(0), dout.stride(0), dk.stride(0), *common, **{**_stages(d), "num_stages": 1},
    )  # fmt: skip

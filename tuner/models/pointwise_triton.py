"""Norms, rotary embedding and activation as Triton kernels; the same functions as `pointwise_torch`, for CUDA.

Every kernel is deterministic (no atomics), reads and writes each element once, computes in float32 and takes strided rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_forward(x, w, out, rstd, x_stride, out_stride, eps, n, block: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, block)
    ok = cols < n
    value = tl.load(x + row * x_stride + cols, mask=ok, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(value * value, 0) / n + eps)
    weight = tl.load(w + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + cols, (value * r * weight).to(out.dtype.element_ty), mask=ok)
    tl.store(rstd + row, r)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    rstd = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    n = x.shape[1]
    _norm_forward[(x.shape[0],)](
        x, weight, out, rstd, x.stride(0), out.stride(0), eps, n, triton.next_power_of_2(n), num_warps=8
    )
    return rstd


@triton.jit
def _norm_backward(
    dy, x, w, rstd, residual, dx, dy_stride, x_stride, res_stride, dx_stride, n, block: tl.constexpr
):
    row = tl.program_id(0)
    cols = tl.arange(0, block)
    ok = cols < n
    g = tl.load(dy + row * dy_stride + cols, mask=ok, other=0.0).to(tl.float32)
    g *= tl.load(w + cols, mask=ok, other=0.0).to(tl.float32)
    r = tl.load(rstd + row)
    normed = tl.load(x + row * x_stride + cols, mask=ok, other=0.0).to(tl.float32) * r
    inner = tl.sum(g * normed, 0) / n
    add = tl.load(residual + row * res_stride + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + row * dx_stride + cols, (add + (g - normed * inner) * r).to(dx.dtype.element_ty), mask=ok)


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, residual: Tensor) -> Tensor:
    dx, n = torch.empty_like(x), x.shape[1]
    strides = (dy.stride(0), x.stride(0), residual.stride(0), dx.stride(0))
    _norm_backward[(x.shape[0],)](
        dy, x, weight, rstd, residual, dx, *strides, n, triton.next_power_of_2(n), num_warps=8
    )
    return dx


@triton.jit
def _rotate(
    x, cos, sin, stride, heads, half: tl.constexpr, size: tl.constexpr, apart: tl.constexpr, step: tl.constexpr,
    sign, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    item = tl.program_id(1) * block + tl.arange(0, block)
    head, i = item // half, item % half
    ok = head < heads
    at = x + row * stride + head * size + i * step
    c = tl.load(cos + row * 2 * half + i)
    s = tl.load(sin + row * 2 * half + i) * sign
    a = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(at + apart, mask=ok, other=0.0).to(tl.float32)
    tl.store(at, (a * c - b * s).to(x.dtype.element_ty), mask=ok)
    tl.store(at + apart, (b * c + a * s).to(x.dtype.element_ty), mask=ok)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    inverse: bool = False,
    size: int = 0,
    interleaved: bool = False,
) -> None:
    half = cos.shape[1] // 2
    grid = (x.shape[0], triton.cdiv(heads * half, 1024))
    pairs = (1, 2) if interleaved else (half, 1)
    sign = -1.0 if inverse else 1.0
    _rotate[grid](x, cos, sin, x.stride(0), heads, half, size or 2 * half, *pairs, sign, 1024, num_warps=4)


def _heads(width: int) -> int:
    """Heads that one program of the head norms takes: eight of the usual sizes."""
    return 8 if width <= 512 else 1


@triton.jit
def _head_norm(
    x, w, out, rstd, x_stride, out_stride, rstd_stride, eps, count, d: tl.constexpr, block: tl.constexpr,
    heads: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1) * heads + tl.arange(0, heads)
    cols = tl.arange(0, block)
    ok = (head < count)[:, None] & (cols < d)[None, :]
    place = head[:, None] * d + cols[None, :]
    value = tl.load(x + row * x_stride + place, mask=ok, other=0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(value * value, 1) / d + eps)
    weight = tl.load(w + cols, mask=cols < d, other=0.0).to(tl.float32)
    normed = value * r[:, None] * weight[None, :]
    tl.store(out + row * out_stride + place, normed.to(out.dtype.element_ty), mask=ok)
    tl.store(rstd + row * rstd_stride + head, r, mask=head < count)


def head_norm(
    x: Tensor, weights: tuple[Tensor, Tensor], heads: tuple[int, int], eps: float, out: Tensor
) -> Tensor:
    rstd = torch.empty(x.shape[0], sum(heads), dtype=torch.float32, device=x.device)
    at = done = 0
    for weight, count in zip(weights, heads, strict=True):
        d = weight.shape[0]
        _head_norm[(x.shape[0], triton.cdiv(count, _heads(d)))](
            x[:, at:], weight, out[:, at:], rstd[:, done:], x.stride(0), out.stride(0),
            rstd.stride(0), eps, count, d, triton.next_power_of_2(d), _heads(d), num_warps=4,
        )  # fmt: skip
        at, done = at + count * d, done + count
    return rstd


@triton.jit
def _head_norm_backward(
    dy, x, w, rstd, dy_stride, x_stride, rstd_stride, count, d: tl.constexpr, block: tl.constexpr,
    heads: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1) * heads + tl.arange(0, heads)
    cols = tl.arange(0, block)
    ok = (head < count)[:, None] & (cols < d)[None, :]
    place = head[:, None] * d + cols[None, :]
    g = tl.load(dy + row * dy_stride + place, mask=ok, other=0.0).to(tl.float32)
    g *= tl.load(w + cols, mask=cols < d, other=0.0).to(tl.float32)[None, :]
    r = tl.load(rstd + row * rstd_stride + head, mask=head < count, other=0.0)[:, None]
    normed = tl.load(x + row * x_stride + place, mask=ok, other=0.0).to(tl.float32) * r
    inner = tl.sum(g * normed, 1)[:, None] / d
    tl.store(dy + row * dy_stride + place, ((g - normed * inner) * r).to(dy.dtype.element_ty), mask=ok)


def head_norm_backward(
    dy: Tensor, x: Tensor, weights: tuple[Tensor, Tensor], heads: tuple[int, int], rstd: Tensor
) -> None:
    at = done = 0
    for weight, count in zip(weights, heads, strict=True):
        d = weight.shape[0]
        _head_norm_backward[(x.shape[0], triton.cdiv(count, _heads(d)))](
            dy[:, at:], x[:, at:], weight, rstd[:, done:], dy.stride(0), x.stride(0),
            rstd.stride(0), count, d, triton.next_power_of_2(d), _heads(d), num_warps=4,
        )  # fmt: skip
        at, done = at + count * d, done + count


@triton.jit
def _swiglu(gate_up, out, stride, out_stride, n, block: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.program_id(1) * block + tl.arange(0, block)
    ok = cols < n
    gate = tl.load(gate_up + row * stride + cols, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + n + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + cols, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=ok)


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    n = out.shape[1]
    grid = (out.shape[0], triton.cdiv(n, 2048))
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), n, 2048, num_warps=8)


@triton.jit
def _swiglu_backward(gate_up, dy, out, stride, dy_stride, n, block: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.program_id(1) * block + tl.arange(0, block)
    ok = cols < n
    gate = tl.load(gate_up + row * stride + cols, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + n + cols, mask=ok, other=0.0).to(tl.float32)
    g = tl.load(dy + row * dy_stride + cols, mask=ok, other=0.0).to(tl.float32)
    sig = tl.sigmoid(gate)
    silu = gate * sig
    tl.store(out + row * stride + n + cols, (g * silu).to(out.dtype.element_ty), mask=ok)
    d_gate = g * up * sig * (1 + gate - silu)
    tl.store(out + row * stride + cols, d_gate.to(out.dtype.element_ty), mask=ok)


def swiglu_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    out, n = torch.empty_like(gate_up), dy.shape[1]
    grid = (dy.shape[0], triton.cdiv(n, 2048))
    _swiglu_backward[grid](gate_up, dy, out, gate_up.stride(0), dy.stride(0), n, 2048, num_warps=8)
    return out


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _geglu(gate_up, out, stride, out_stride, n, block: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.program_id(1) * block + tl.arange(0, block)
    ok = cols < n
    gate = tl.load(gate_up + row * stride + cols, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + n + cols, mask=ok, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1 + _tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    tl.store(out + row * out_stride + cols, (gelu * up).to(out.dtype.element_ty), mask=ok)


def geglu(gate_up: Tensor, out: Tensor) -> None:
    n = out.shape[1]
    grid = (out.shape[0], triton.cdiv(n, 2048))
    _geglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), n, 2048, num_warps=8)


@triton.jit
def _geglu_backward(gate_up, dy, out, stride, dy_stride, n, block: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.program_id(1) * block + tl.arange(0, block)
    ok = cols < n
    gate = tl.load(gate_up + row * stride + cols, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + n + cols, mask=ok, other=0.0).to(tl.float32)
    g = tl.load(dy + row * dy_stride + cols, mask=ok, other=0.0).to(tl.float32)
    tanh = _tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate))
    gelu = 0.5 * gate * (1 + tanh)
    inner = 0.7978845608028654 * (1 + 0.134145 * gate * gate)
    slope = 0.5 * (1 + tanh) + 0.5 * gate * (1 - tanh * tanh) * inner
    tl.store(out + row * stride + n + cols, (g * gelu).to(out.dtype.element_ty), mask=ok)
    tl.store(out + row * stride + cols, (g * up * slope).to(out.dtype.element_ty), mask=ok)


def geglu_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    out, n = torch.empty_like(gate_up), dy.shape[1]
    grid = (dy.shape[0], triton.cdiv(n, 2048))
    _geglu_backward[grid](gate_up, dy, out, gate_up.stride(0), dy.stride(0), n, 2048, num_warps=8)
    return out


@triton.jit
def _to_float8(x, out, scales, stride, n, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, block)
    ok = cols < n
    values = tl.load(x + row * stride + cols, mask=ok, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / 448.0
    tl.store(out + row * n + cols, (values / scale).to(tl.float8e4nv), mask=ok)
    tl.store(scales + row, scale)


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, n = x.shape
    out = torch.empty(rows, n, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(n)
    _to_float8[(rows,)](x, out, scales, x.stride(0), n, block, num_warps=4 if block <= 4096 else 8)
    return out, scales

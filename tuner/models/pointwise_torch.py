"""Norms, rotary embedding and activation in plain torch, each with its backward beside it: the CPU's path, and what the
GPU's kernels are tested against.

Same signatures as `pointwise_triton`. `T` tokens, `H` hidden, `D` head size; outputs named `out` may be strided views with
a contiguous last dimension. Nothing here uses autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
    """out = x / rms(x) * weight over the last dimension; returns 1/rms, float32 [T]."""
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    torch.mul(wide, rstd[:, None], out=out) if out.dtype == torch.float32 else out.copy_(wide * rstd[:, None])
    out.mul_(weight)
    return rstd


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, residual: Tensor) -> Tensor:
    """residual + d/dx of `rms_norm`; `dy` [T, H] may be strided. The weight is frozen."""
    g, normed = dy.float() * weight.float(), x.float() * rstd[:, None]
    inner = (g * normed).mean(-1, keepdim=True)
    g.sub_(normed.mul_(inner)).mul_(rstd[:, None])
    return g.add_(residual).to(x.dtype)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    inverse: bool = False,
    size: int = 0,
    interleaved: bool = False,
) -> None:
    """Rotary embedding in place on the first `heads * D` columns of x [T, ...]; cos and sin [T, R] float32.

    The first R numbers of each head of `size` D (by default R) turn: those of one half with those of the other, or
    `interleaved` each with its neighbour.
    """
    turned = cos.shape[1]
    half, size = turned // 2, size or turned
    view = x[:, : heads * size].unflatten(1, (heads, size))[:, :, :turned]
    pairs = view.unflatten(2, (half, 2)).transpose(2, 3) if interleaved else view.unflatten(2, (2, half))
    c, s = cos[:, None, :half], sin[:, None, :half]
    if inverse:
        s = -s
    a, b = pairs[:, :, 0].float(), pairs[:, :, 1].float()
    first, second = a * c - b * s, b * c + a * s
    pairs[:, :, 0].copy_(first)
    pairs[:, :, 1].copy_(second)


def head_norm(
    x: Tensor, weights: tuple[Tensor, Tensor], heads: tuple[int, int], eps: float, out: Tensor
) -> Tensor:
    """A norm of every query and key head, each side as wide as its weight: x, out [T, columns], strided; returns 1/rms
    [T, hq + hk]."""
    stats, at = [], 0
    for weight, count in zip(weights, heads, strict=True):
        d = weight.shape[0]
        wide = x[:, at : at + count * d].unflatten(1, (count, d)).float()
        rstd = torch.rsqrt(wide.square().mean(-1) + eps)
        out[:, at : at + count * d].unflatten(1, (count, d)).copy_(wide * rstd[..., None] * weight)
        stats.append(rstd)
        at += count * d
    return torch.cat(stats, 1)


def head_norm_backward(
    dy: Tensor, x: Tensor, weights: tuple[Tensor, Tensor], heads: tuple[int, int], rstd: Tensor
) -> None:
    """Backward of `head_norm`, in place on dy [T, >= (hq + hk) * D]."""
    at = done = 0
    for weight, count in zip(weights, heads, strict=True):
        d = weight.shape[0]
        r = rstd[:, done : done + count, None]
        grad = dy[:, at : at + count * d].unflatten(1, (count, d))
        normed = x[:, at : at + count * d].unflatten(1, (count, d)).float() * r
        g = grad.float() * weight.float()
        grad.copy_((g - normed * (g * normed).mean(-1, keepdim=True)) * r)
        at, done = at + count * d, done + count


def swiglu(gate_up: Tensor, out: Tensor) -> None:
    """out = silu(gate) * up; gate_up [T, 2 I], out [T, I]."""
    gate, up = gate_up.chunk(2, 1)
    torch.mul(F.silu(gate), up, out=out)


def swiglu_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    """d gate_up [T, 2 I] from dy [T, I] (strided)."""
    gate, up = gate_up.chunk(2, 1)
    out = torch.empty_like(gate_up)
    d_gate, d_up = out.chunk(2, 1)
    sig = torch.sigmoid(gate)
    silu = sig * gate
    torch.mul(dy, silu, out=d_up)
    # d silu / d gate = sig * (1 + gate - silu)
    silu.neg_().add_(gate).add_(1.0).mul_(sig).mul_(up)
    torch.mul(silu, dy, out=d_gate)
    return out


GELU = 0.7978845608028654, 0.044715
"""sqrt(2 / pi) and the cubic's share in tanh's approximation of GELU (arXiv 1606.08415)."""


def geglu(gate_up: Tensor, out: Tensor) -> None:
    """out = gelu(gate) * up with tanh's approximation; gate_up [T, 2 I], out [T, I]."""
    gate, up = gate_up.chunk(2, 1)
    torch.mul(F.gelu(gate, approximate="tanh"), up, out=out)


def geglu_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    """d gate_up [T, 2 I] from dy [T, I] (strided)."""
    gate, up = (part.float() for part in gate_up.chunk(2, 1))
    root, share = GELU
    tanh = torch.tanh(root * (gate + share * gate**3))
    slope = 0.5 * (1 + tanh) + 0.5 * gate * (1 - tanh.square()) * root * (1 + 3 * share * gate.square())
    wide = dy.float()
    return torch.cat([wide * up * slope, wide * 0.5 * gate * (1 + tanh)], 1).to(gate_up.dtype)


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] as 8-bit floats [T, K] and what each row is to be multiplied by, float32 [T, 1]: its largest number becomes
    448, the largest that e4m3 has."""
    wide = x.float()
    scales = wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / 448.0
    return (wide / scales).to(torch.float8_e4m3fn), scales

"""The engine's fused operations in plain torch: the CPU's path, and what the GPU's kernels are tested against.

Same signatures as `kernels_triton`. `T` tokens, `H` hidden, `D` head size; outputs named `out` may be strided views
with a contiguous last dimension. Nothing here uses autograd: each operation has its backward beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tuner.engine.packed.device_row import DeviceRow


class ScaledCopies:
    """target = source * scale for many (source, target [rows, columns], scale) at once."""

    def __init__(self, copies: list[tuple[Tensor, Tensor, float]]) -> None:
        self.copies = copies

    def run(self) -> None:
        for source, target, scale in self.copies:
            torch.mul(source, scale, out=target) if source.dtype == target.dtype else target.copy_(source * scale)


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, inverse: bool = False) -> None:
    """Rotary embedding in place on the first `heads * D` columns of x [T, ...]; cos and sin [T, D] float32."""
    half = cos.shape[1] // 2
    view = x[:, : heads * 2 * half].unflatten(1, (heads, 2, half))
    c, s = cos[:, None, :half], sin[:, None, :half]
    if inverse:
        s = -s
    a, b = view[:, :, 0].float(), view[:, :, 1].float()
    first, second = a * c - b * s, b * c + a * s
    view[:, :, 0].copy_(first)
    view[:, :, 1].copy_(second)


def head_norm(x: Tensor, weights: tuple[Tensor, Tensor], heads: tuple[int, int], eps: float, out: Tensor) -> Tensor:
    """Qwen3's norm of every query and key head: x, out [T, (hq + hk) * D], strided; returns 1/rms [T, hq + hk]."""
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


def score_logits(logits: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """Log-probs [n] of the targets; with `gradient`, logits [n, V] become softmax minus one-hot, in place."""
    rows = torch.arange(len(targets), device=logits.device)
    targets = targets.long()
    picked = logits[rows, targets].float()
    if not gradient:
        return picked - torch.logsumexp(logits.float(), 1)
    top = logits.amax(1)
    logits.sub_(top[:, None]).exp_()
    total = logits.sum(1, dtype=torch.float32)
    logits.div_(total[:, None])
    logits[rows, targets] -= 1.0
    return picked - top.float() - total.log()


def attention(
    q: Tensor, k: Tensor, v: Tensor, row: DeviceRow, scale: float, out: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    """Attention over a packed row, unit by unit; q [T, Hq, D], k and v [T, Hk, D], out [T, Hq * D].

    Returns what `attention_backward` needs; empty without `keep`.
    """
    with torch.set_grad_enabled(keep):
        leaves = tuple(x.detach().requires_grad_(keep) for x in (q, k, v))
        result = segment_attention(*(x.transpose(0, 1) for x in leaves), row, scale)
    out.unflatten(1, q.shape[1:]).copy_(result.detach().transpose(0, 1))
    return (*leaves, result) if keep else ()


def attention_backward(saved: tuple[Tensor, ...], dout: Tensor, row: DeviceRow, scale: float, dqkv: Tensor) -> None:
    """Writes dq, dk, dv side by side into dqkv [T, (Hq + 2 Hk) * D]; dout [T, Hq * D]."""
    *leaves, result = saved
    grads = torch.autograd.grad(result, leaves, dout.unflatten(1, leaves[0].shape[1:]).transpose(0, 1))
    at = 0
    for grad in grads:
        width = grad.shape[1] * grad.shape[2]
        dqkv[:, at : at + width].copy_(grad.reshape(-1, width))
        at += width


def segment_attention(q: Tensor, k: Tensor, v: Tensor, row: DeviceRow, scale: float) -> Tensor:
    """Differentiable form for q [Hq, T, D], k and v [Hk, T, D]; returns [Hq, T, D].

    A prompt attends to itself causally; the answers of a unit, as one run, to the prompt and causally to
    themselves under a mask that keeps them apart.
    """
    repeats = q.shape[0] // k.shape[0]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    sizes = row.split_sizes
    qs, ks, vs = (x.split(sizes, 1) for x in (q, k, v))
    out: list[Tensor] = [q[:, :0]] * len(sizes)
    for part in row.parts:
        p, a = part.prompt, part.answers
        if p is not None:
            out[p] = _sdpa(qs[p], ks[p], vs[p], scale)
        if a is not None:
            keys, values = ks[a], vs[a]
            if p is not None:
                keys, values = torch.cat([ks[p], keys], 1), torch.cat([vs[p], values], 1)
            out[a] = _sdpa(qs[a], keys, values, scale, part.mask)
    return torch.cat(out, 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    mask = None if mask is None else mask.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out[0]

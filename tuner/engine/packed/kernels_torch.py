"""The engine's fused operations in plain torch: the CPU's path, and what the GPU's kernels are tested
against.

Same signatures as `kernels_triton`. `T` tokens, `H` hidden, `D` head size; outputs named `out` may be
strided views with a contiguous last dimension. Nothing here uses autograd: each operation has its backward
beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.rows import AttentionRule
from tuner.models.pointwise_torch import geglu as geglu
from tuner.models.pointwise_torch import geglu_backward as geglu_backward
from tuner.models.pointwise_torch import head_norm as head_norm
from tuner.models.pointwise_torch import head_norm_backward as head_norm_backward
from tuner.models.pointwise_torch import rms_norm as rms_norm
from tuner.models.pointwise_torch import rms_norm_backward as rms_norm_backward
from tuner.models.pointwise_torch import rotate as rotate
from tuner.models.pointwise_torch import swiglu as swiglu
from tuner.models.pointwise_torch import swiglu_backward as swiglu_backward
from tuner.models.pointwise_torch import to_float8 as to_float8

KEPT_NUMBERS = 4 << 20  # attention probabilities of one layer that are kept for the backward pass


class ScaledCopies:
    """target = source * scale for many (source, target [rows, columns], scale) at once."""

    def __init__(self, copies: list[tuple[Tensor, Tensor, float]]) -> None:
        self.copies = copies

    def run(self) -> None:
        for source, target, scale in self.copies:
            torch.mul(source, scale, out=target) if source.dtype == target.dtype else target.copy_(
                source * scale
            )


def score_logits(
    logits: Tensor, targets: Tensor, scores: Tensor, gradient: bool, softcap: float | None = None
) -> None:
    """Scores [1 or 3, n] of the targets (see `logps.py`), from logits [n, V], which are spent: with `gradient` they become
    softmax minus one-hot, in place. With `softcap` the logits are first softcap * tanh(logits / softcap)."""
    slope = None
    if softcap:
        tanh = logits.div_(softcap).tanh_()
        slope = 1 - tanh.square() if gradient else None
        logits = tanh.mul_(softcap)
    rows = torch.arange(len(targets), device=logits.device)
    targets = targets.long()
    picked = logits[rows, targets].float()
    measure = scores.shape[0] > 1
    if not gradient and not measure:
        scores[0] = picked - torch.logsumexp(logits.float(), 1)
        return
    top = logits.amax(1)
    shifted = logits.sub_(top[:, None])
    powers = shifted.exp() if measure else shifted.exp_()
    total = powers.sum(1, dtype=torch.float32)
    scores[0] = picked - top.float() - total.log()
    if measure:
        scores[1] = picked >= top.float()
        scores[2] = total.log() - torch.linalg.vecdot(powers, shifted).float() / total
    if gradient:
        torch.div(powers, total[:, None], out=logits) if powers.dtype == total.dtype else logits.copy_(
            powers / total[:, None]
        )
        logits[rows, targets] -= 1.0
        if slope is not None:
            logits.mul_(slope)


def attention(
    q: Tensor, k: Tensor, v: Tensor, row: DeviceRow, rule: AttentionRule, out: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    """Attention over a packed row, unit by unit; q [T, Hq, D], k and v [T, Hk, D], out [T, Hq * D].

    Returns what `attention_backward` needs; empty without `keep`. Probabilities are kept only while they are
    small: they grow with the square of the length and are cheap to compute again.
    """
    place = out.unflatten(1, q.shape[1:])
    pieces = row.pieces(rule.window)
    size = q.shape[1] * sum(mask.numel() for _, _, mask in pieces)
    kept: list[Tensor] = []
    for queries, keys, mask in pieces:
        weights = _probabilities(q, k, queries, keys, mask, rule)
        _put(place, queries, weights @ _heads(v, keys))
        if keep and size <= KEPT_NUMBERS:
            kept.append(weights)
    return (q, k, v, *kept) if keep else ()


def attention_backward(
    saved: tuple[Tensor, ...], dout: Tensor, row: DeviceRow, rule: AttentionRule, dqkv: Tensor
) -> None:
    """Writes dq, dk, dv side by side into dqkv [T, (Hq + 2 Hk) * D]; dout [T, Hq * D]."""
    q, k, v, *kept = saved
    groups = k.shape[1]
    dout = dout.unflatten(1, q.shape[1:])
    heads = (q.shape[1], groups, groups)
    dq, dk, dv = dqkv.unflatten(1, (sum(heads), q.shape[2])).split(heads, 1)
    dk.zero_()
    dv.zero_()
    for i, (queries, keys, mask) in enumerate(row.pieces(rule.window)):
        weights = kept[i] if kept else _probabilities(q, k, queries, keys, mask, rule)
        grad = _heads(dout, queries, groups)
        _add(dv, keys, weights.transpose(1, 2) @ grad)
        d_weights = grad @ _heads(v, keys).transpose(1, 2)
        inner = (d_weights * weights).sum(-1, keepdim=True)  # rounds less than sum(dout * out) does
        d_weights.sub_(inner).mul_(weights).mul_(rule.scale)
        if rule.softcap:
            d_weights.mul_(1 - _tanh(q, k, queries, keys, rule).square())
        _put(dq, queries, d_weights @ _heads(k, keys))
        _add(dk, keys, d_weights.transpose(1, 2) @ _heads(q, queries, groups))


Spans = tuple[tuple[int, int], ...]


def _probabilities(
    q: Tensor, k: Tensor, queries: Spans, keys: Spans, mask: Tensor, rule: AttentionRule
) -> Tensor:
    """softmax(q k^T * scale + mask): [Hk, repeats * queries, keys]; the query heads of a key head lie
    together."""
    groups = k.shape[1]
    repeats = q.shape[1] // groups
    bias = (mask if repeats == 1 else mask.repeat(repeats, 1)).to(q.dtype)
    if rule.softcap:
        scores = torch.add(bias, _tanh(q, k, queries, keys, rule), alpha=rule.softcap)
    else:
        pair = _heads(q, queries, groups), _heads(k, keys).transpose(1, 2)
        scores = torch.baddbmm(bias, *pair, alpha=rule.scale)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)


def _tanh(q: Tensor, k: Tensor, queries: Spans, keys: Spans, rule: AttentionRule) -> Tensor:
    """tanh(q k^T * scale / softcap), in the shape of `_probabilities`."""
    scores = _heads(q, queries, k.shape[1]) @ _heads(k, keys).transpose(1, 2)
    return scores.mul_(rule.scale / (rule.softcap or 1.0)).tanh_()


def _heads(x: Tensor, spans: Spans, groups: int | None = None) -> Tensor:
    """Rows of x [T, heads, D] in these spans -> [groups, heads / groups * rows, D]; a view where possible."""
    rows = x[slice(*spans[0])] if len(spans) == 1 else torch.cat([x[slice(*s)] for s in spans])
    rows = rows.transpose(0, 1)
    if groups is None or groups == x.shape[1]:
        return rows
    return rows.reshape(groups, -1, x.shape[2])


def _put(target: Tensor, spans: Spans, value: Tensor) -> None:
    """value [groups, repeats * rows, D] into the rows of target [T, heads, D]."""
    rows = target[slice(*spans[0])].transpose(0, 1)
    rows.copy_(value.reshape(rows.shape))


def _add(target: Tensor, spans: Spans, value: Tensor) -> None:
    at = 0
    for start, end in spans:
        target[start:end].transpose(0, 1).add_(value[:, at : at + end - start])
        at += end - start

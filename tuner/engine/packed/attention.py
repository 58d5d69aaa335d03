"""Packed attention for models that run through transformers' own modules.

Registered under the name `tuner_packed`; transformers builds no mask for a name that its mask table does
not hold, so the function gets plain q, k, v and reads the row's segments from `over(model, row)`. Head
sizes for which there is no Triton kernel go to torch's `varlen_attn` with gathered keys and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tuner.engine.packed import kernels_torch
from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.rows import AttentionRule
from tuner.plan.engine import HEAD_SIZES

NAME = "tuner_packed"
_current: list[DeviceRow] = []


@contextmanager
def over(model: Any, row: DeviceRow) -> Iterator[None]:
    """Inside, the attention layers of a transformers model attend over this row; outside they are as
    before."""
    AttentionInterface.register(NAME, _forward)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _current.append(row)
    try:
        yield
    finally:
        _current.pop()
        model.set_attn_implementation(before)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """q [1, Hq, T, D], k and v [1, Hk, T, D] -> [1, T, Hq, D]."""
    row = _current[-1]
    if torch.is_autocast_enabled(
        query.device.type
    ):  # as torch's own attention; rotary embedding leaves float32
        query, key, value = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (query, key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    rule = AttentionRule(scale, softcap, sliding_window)
    if not q.is_cuda:
        return _Attend.apply(q, k, v, row, rule, kernels_torch)[None], None
    if q.shape[-1] in HEAD_SIZES:
        from tuner.engine.packed import kernels_triton

        parts = (x.contiguous() for x in (q, k, v))
        return _Attend.apply(*parts, row, rule, kernels_triton)[None], None
    if torch.cuda.is_current_stream_capturing():  # a graph would attend over this row's segments for ever
        raise RuntimeError(f"attention heads of {q.shape[-1]} numbers cannot be captured")
    if q.dtype == torch.float32 or softcap:  # torch's varlen attention is flash attention, which has neither
        return _Attend.apply(q, k, v, row, rule, kernels_torch)[None], None
    return varlen(q, k, v, row, rule)[None], None


class _Attend(torch.autograd.Function):
    """The engine's attention kernels under autograd; q [T, Hq, D], k and v [T, Hk, D] -> [T, Hq, D]."""

    @staticmethod
    def forward(ctx, q, k, v, row, rule, kernels):  # type: ignore[no-untyped-def]
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        ctx.attention = kernels.attention(q, k, v, row, rule, out, True)
        ctx.row, ctx.rule, ctx.kernels = row, rule, kernels
        return out.view(q.shape)

    @staticmethod
    def backward(ctx, dout):  # type: ignore[no-untyped-def]
        q, k, _ = ctx.attention[:3]
        grad = q.new_empty(q.shape[0], (q.shape[1] + 2 * k.shape[1]) * q.shape[2])
        dout = dout.reshape(q.shape[0], -1)
        ctx.kernels.attention_backward(ctx.attention, dout, ctx.row, ctx.rule, grad)
        parts = grad.unflatten(1, (-1, q.shape[2])).split([q.shape[1], k.shape[1], k.shape[1]], 1)
        return *parts, None, None, None


def varlen(q: Tensor, k: Tensor, v: Tensor, row: DeviceRow, rule: AttentionRule) -> Tensor:
    """torch's varlen attention over gathered keys and values; q [T, Hq, D] -> [T, Hq, D]."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"scale": rule.scale}
    if "window_size" in known:
        options["window_size"] = (-1 if rule.window is None else rule.window - 1, 0)
    else:
        options["is_causal"] = True
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    keys = row.gathered_keys
    k, v = k.index_select(0, keys.index), v.index_select(0, keys.index)
    mixed: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only when the log-sum-exp is asked for
        q.contiguous(), k, v, keys.query_offsets, keys.key_offsets, keys.max_query, keys.max_key, **options
    )
    return mixed

"""Decoder layers of the Llama family (Llama, Mistral, Qwen2, Qwen3) with a forward and a backward written
out.

One layer: x -> x + o(attention(qkv(norm x))) -> + down(silu(gate) * up)(norm). No autograd runs: a layer's
forward returns what its backward reads (`Saved`), or only its input when it is to be recomputed. Gradients
go to the LoRA parameters alone; everything else is frozen. Shapes: T tokens, H hidden, I intermediate,
Hq/Hk heads of size D.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.lora import GradientBuffer, LinearGroup
from tuner.models.llama_family import adapter_of, base_of
from tuner.models.quantized import Scratch


@dataclass
class Saved:
    """What one layer's backward reads. With only `x` set, the layer's forward runs again first.

    `Any` is a Tensor, or None before the forward pass.
    """

    x: Tensor  # [T, H]
    normed: Any = None  # [T, H + R] input of qkv
    rstd: Any = None
    qkv: Any = None  # [T, (Hq + 2 Hk) D], rotated unless heads are normed
    head_rstd: Any = None
    attention: tuple[Tensor, ...] = ()
    mixed: Any = None  # [T, Hq D + R] input of o
    middle: Any = None  # [T, H] after attention
    middle_normed: Any = None
    middle_rstd: Any = None
    gate_up: Any = None  # [T, 2 I]
    activated: Any = None  # [T, I + R] input of down


class FusedLayer:
    """One decoder layer over PEFT's parameters; `kernels` is `kernels_torch` or `kernels_triton`."""

    def __init__(self, layer: Any, gradients: GradientBuffer, kernels: ModuleType, scratch: Scratch) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kernels = kernels
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        qkv, gate_up = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
        self.qkv, self.o, self.gate_up, self.down = (
            LinearGroup(group, gradients, self.norm1.weight, scratch)
            for group in (qkv, [attention.o_proj], gate_up, [mlp.down_proj])
        )
        self.head_size = int(attention.head_dim)
        self.q_heads = base_of(attention.q_proj).out_features // self.head_size
        self.k_heads = base_of(attention.k_proj).out_features // self.head_size
        self.scale = float(attention.scaling)
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.groups = (self.qkv, self.o, self.gate_up, self.down)

    def forward(
        self, x: Tensor, row: DeviceRow, rope: tuple[Tensor, Tensor], keep: bool, last: bool
    ) -> tuple[Tensor, Saved]:
        """x [T, H] -> the layer's output [T, H]; rope is (cos, sin), float32 [T, D].

        The `last` layer goes on after attention with the rows that predict an answer token: output [N, H].
        """
        s, tokens = Saved(x), x.shape[0]
        s.normed = self.qkv.input_buffer(tokens)
        s.rstd = self._norm(self.norm1, x, s.normed)
        s.qkv = self.qkv.forward(s.normed)
        q, k, v = self._rotate(s, rope)
        s.mixed = self.o.input_buffer(tokens)
        s.attention = self.kernels.attention(q, k, v, row, self.scale, s.mixed[:, : self.o.inputs], keep)
        if last:
            s.mixed, x = s.mixed.index_select(0, row["sources"]), x.index_select(0, row["sources"])
        s.middle = self.o.forward(s.mixed, residual=x)
        s.middle_normed = self.gate_up.input_buffer(x.shape[0])
        s.middle_rstd = self._norm(self.norm2, s.middle, s.middle_normed)
        s.gate_up = self.gate_up.forward(s.middle_normed)
        s.activated = self.down.input_buffer(x.shape[0])
        self.kernels.swiglu(s.gate_up, s.activated[:, : self.down.inputs])
        out = self.down.forward(s.activated, residual=s.middle)
        return out, s if keep else Saved(s.x)

    def backward(
        self, s: Saved, dout: Tensor, row: DeviceRow, rope: tuple[Tensor, Tensor], first: bool, last: bool
    ) -> Tensor | None:
        """d output -> d input [T, H], or None for the `first` layer, whose input is frozen."""
        if s.normed is None:
            s = self.forward(s.x, row, rope, True, last)[1]
        d_activated = self.down.backward(dout, s.activated)
        d_gate_up = self.kernels.swiglu_backward(s.gate_up, d_activated)
        d_normed = self.gate_up.backward(d_gate_up, s.middle_normed)
        del d_activated, d_gate_up
        d_middle = self.kernels.rms_norm_backward(
            d_normed, s.middle, self.norm2.weight, s.middle_rstd, residual=dout
        )
        d_mixed: Any = self.o.backward(d_middle, s.mixed)
        if last:
            d_mixed, d_middle = (_scatter(d, row["sources"], s.x.shape[0]) for d in (d_mixed, d_middle))
        d_qkv = torch.empty_like(s.qkv)
        self.kernels.attention_backward(s.attention, d_mixed, row, self.scale, d_qkv)
        self._rotate_back(s, d_qkv, rope)
        d_normed = self.qkv.backward(d_qkv, s.normed, need_input=not first)
        if first:
            return None
        return self.kernels.rms_norm_backward(d_normed, s.x, self.norm1.weight, s.rstd, residual=d_middle)

    def _norm(self, norm: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        return self.kernels.rms_norm(x, norm.weight, norm.variance_epsilon, out[:, : x.shape[1]])

    def _rotate(self, s: Saved, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.q_heads + self.k_heads
        width = heads * self.head_size
        qk = s.qkv[:, :width]
        if self.q_norm is not None:
            qk = s.qkv.new_empty(s.qkv.shape[0], width)
            s.head_rstd = self.kernels.head_norm(
                s.qkv,
                (self.q_norm.weight, self.k_norm.weight),
                (self.q_heads, self.k_heads),
                self.q_norm.variance_epsilon,
                qk,
            )
        self.kernels.rotate(qk, *rope, heads)
        q, k = qk.unflatten(1, (heads, self.head_size)).split([self.q_heads, self.k_heads], 1)
        return q, k, s.qkv[:, width:].unflatten(1, (self.k_heads, self.head_size))

    def _rotate_back(self, s: Saved, d_qkv: Tensor, rope: tuple[Tensor, Tensor]) -> None:
        self.kernels.rotate(d_qkv, *rope, self.q_heads + self.k_heads, inverse=True)
        if self.q_norm is not None:
            self.kernels.head_norm_backward(
                d_qkv,
                s.qkv,
                (self.q_norm.weight, self.k_norm.weight),
                (self.q_heads, self.k_heads),
                s.head_rstd,
            )


def _scatter(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """values [N, H] added up at their rows [count, H]; a row has at most two, so the order cannot matter."""
    return values.new_zeros(count, values.shape[1]).index_add_(0, rows, values)


class FusedTrunk:
    """Embedding and decoder layers, from a row to the hidden states [N, H] that the final norm and head
    score.

    `recompute` is the number of layers, from the first, whose activations are recomputed in the backward
    pass.
    """

    def __init__(self, decoder: Any, gradients: GradientBuffer, kernels: ModuleType) -> None:
        self.decoder = decoder
        scratch = Scratch()
        self.layers = [FusedLayer(layer, gradients, kernels, scratch) for layer in decoder.layers]
        groups = [group for layer in self.layers for group in layer.groups]
        self.copies = kernels.ScaledCopies([pair for group in groups for pair in group.shadows()])
        self.recompute = 0

    def refresh(self) -> None:
        """Bring the adapters' present values into the compute matrices (cast to the weights' dtype)."""
        self.copies.run()

    def use_adapters(self, on: bool) -> None:
        for layer in self.layers:
            for group in layer.groups:
                group.use_adapters = on

    @torch.no_grad()
    def forward(self, row: DeviceRow, keep: bool) -> tuple[Tensor, tuple[list[Saved], tuple[Tensor, Tensor]]]:
        """-> hidden [N, H] and what `backward` needs (nothing of use without `keep`)."""
        x = self.decoder.embed_tokens(row["ids"])
        rope = self._rope(row["positions"])
        saved: list[Saved] = []
        for i, layer in enumerate(self.layers):
            x, s = layer.forward(x, row, rope, keep and i >= self.recompute, i == len(self.layers) - 1)
            if keep:
                saved.append(s)
        return x, (saved, rope)

    @torch.no_grad()
    def backward(
        self, dx: Tensor, row: DeviceRow, context: tuple[list[Saved], tuple[Tensor, Tensor]]
    ) -> None:
        """Adds the LoRA gradients of `sum(dx * hidden)` to the gradient buffer."""
        saved, rope = context
        top = len(self.layers) - 1
        grad: Any = dx  # None once the first layer is through
        for i in range(top, -1, -1):
            grad = self.layers[i].backward(saved.pop(), grad, row, rope, first=i == 0, last=i == top)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        probe = torch.empty(0, dtype=torch.float32, device=positions.device)
        cos, sin = self.decoder.rotary_emb(probe, positions[None])
        return cos[0], sin[0]


def lora_parameters(decoder: Any) -> list[nn.Parameter]:
    """LoRA parameters in the order the fused layers want them: per linear group every A, then every B."""
    ordered: list[nn.Parameter] = []
    for layer in decoder.layers:
        a, m = layer.self_attn, layer.mlp
        for group in ([a.q_proj, a.k_proj, a.v_proj], [a.o_proj], [m.gate_proj, m.up_proj], [m.down_proj]):
            pairs = [p for p in map(adapter_of, group) if p]
            ordered += [p[0] for p in pairs] + [p[1] for p in pairs]
    return ordered

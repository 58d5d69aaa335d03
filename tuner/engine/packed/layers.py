"""Decoder layers of the Llama family and its relatives (`forms.NORMS`) with a forward and a backward written
out.

One layer: x -> x + o(attention(qkv(norm x))) -> + down(silu(gate) * up)(norm), as its `Form` has it. No autograd runs: a
layer's forward returns what its backward reads (`Saved`), or only its input when it is to be recomputed. Gradients
go to the LoRA parameters alone; everything else is frozen. Shapes: T tokens, H hidden, I intermediate,
Hq/Hk heads of size D.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tuner.engine.packed.device_row import DeviceRow
from tuner.engine.packed.forms import form_of, linears
from tuner.engine.packed.lora import GradientBuffer, LinearGroup
from tuner.models.llama_family import Norm, adapter_of
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
    attended: Any = None  # [T, H] before the norm behind attention
    attended_rstd: Any = None
    middle: Any = None  # [T, H] after attention
    middle_normed: Any = None
    middle_rstd: Any = None
    gate_up: Any = None  # [T, 2 I]
    activated: Any = None  # [T, I + R] input of down
    written: Any = None  # [T, H] before the norm behind the MLP
    written_rstd: Any = None


Ropes = dict[str, tuple[Tensor, Tensor]]
"""(cos, sin), float32 [T, R], by the kind of layer whose they are."""


class FusedLayer:
    """One decoder layer over PEFT's parameters; `kernels` is `kernels_torch` or `kernels_triton`."""

    def __init__(
        self,
        layer: Any,
        config: Any,
        gradients: GradientBuffer,
        kernels: ModuleType,
        scratch: Scratch,
        float8: bool,
    ) -> None:
        self.kernels, self.form = kernels, form_of(layer, config)
        form, like = self.form, layer.post_attention_layernorm.weight
        self.qkv, self.o, self.gate_up, self.down = (
            LinearGroup(group, gradients, like, scratch, kernels if float8 else None)
            for group in (form.qkv, [form.o], form.gate_up, [form.down])
        )
        self.activate = getattr(kernels, form.activation)
        self.activate_backward = getattr(kernels, f"{form.activation}_backward")
        self.groups = (self.qkv, self.o, self.gate_up, self.down)

    def forward(
        self, x: Tensor, row: DeviceRow, ropes: Ropes, keep: bool, last: bool
    ) -> tuple[Tensor, Saved]:
        """x [T, H] -> the layer's output [T, H].

        The `last` layer goes on after attention with the rows that predict an answer token: output [N, H].
        """
        s = self._until_down(x, row, ropes, keep, last)
        out, s.written, s.written_rstd = self._added(self.form.after_mlp, self.down, s.activated, s.middle)
        return out, s if keep else Saved(s.x)

    def _until_down(self, x: Tensor, row: DeviceRow, ropes: Ropes, keep: bool, last: bool) -> Saved:
        """All of the forward pass but its last product."""
        form, s = self.form, Saved(x)
        s.normed = self.qkv.input_buffer(x.shape[0])
        s.rstd = self._before(form.before_attention, x, s.normed)
        s.qkv = self.qkv.forward(s.normed)
        q, k, v = self._rotate(s, ropes)
        s.mixed = self.o.input_buffer(x.shape[0])
        s.attention = self.kernels.attention(q, k, v, row, form.rule, s.mixed[:, : self.o.inputs], keep)
        if last:
            s.mixed, x = s.mixed.index_select(0, row["sources"]), x.index_select(0, row["sources"])
        s.middle, s.attended, s.attended_rstd = self._added(form.after_attention, self.o, s.mixed, x)
        s.middle_normed = self.gate_up.input_buffer(x.shape[0])
        s.middle_rstd = self._before(form.before_mlp, s.middle, s.middle_normed)
        s.gate_up = self.gate_up.forward(s.middle_normed)
        s.activated = self.down.input_buffer(x.shape[0])
        self.activate(s.gate_up, s.activated[:, : self.down.inputs])
        return s

    def _again(self, x: Tensor, row: DeviceRow, ropes: Ropes, last: bool) -> Saved:
        """What the backward pass reads, computed anew. The layer's output is no part of it, so that the product that makes
        it is left out, unless a norm behind it reads it; what LoRA's gradients read of its input is made alone."""
        if self.form.after_mlp is not None:
            return self.forward(x, row, ropes, True, last)[1]
        s = self._until_down(x, row, ropes, True, last)
        self.down.read(s.activated)
        return s

    def backward(
        self, s: Saved, dout: Tensor, row: DeviceRow, ropes: Ropes, first: bool, last: bool
    ) -> Tensor | None:
        """d output -> d input [T, H], or None for the `first` layer, whose input is frozen."""
        if s.normed is None:
            s = self._again(s.x, row, ropes, last)
        form = self.form
        d_activated: Any = self.down.backward(
            self._through(form.after_mlp, dout, s.written, s.written_rstd), s.activated
        )
        d_gate_up = self.activate_backward(s.gate_up, d_activated)
        d_normed: Any = self.gate_up.backward(d_gate_up, s.middle_normed)
        del d_activated, d_gate_up
        d_middle = self._before_backward(form.before_mlp, d_normed, s.middle, s.middle_rstd, dout)
        d_mixed: Any = self.o.backward(
            self._through(form.after_attention, d_middle, s.attended, s.attended_rstd), s.mixed
        )
        if last:
            d_mixed, d_middle = (_scatter(d, row["sources"], s.x.shape[0]) for d in (d_mixed, d_middle))
        d_qkv = torch.empty_like(s.qkv)
        self.kernels.attention_backward(s.attention, d_mixed, row, form.rule, d_qkv)
        self._rotate_back(s, d_qkv, ropes)
        d_normed = self.qkv.backward(d_qkv, s.normed, need_input=not first)
        return (
            None if first else self._before_backward(form.before_attention, d_normed, s.x, s.rstd, d_middle)
        )

    # --- norms: before a sublayer, where there is one, and behind it

    def _before(self, norm: Norm | None, x: Tensor, out: Tensor) -> Tensor | None:
        """What a sublayer reads of x, into `out`; 1/rms, or None without a norm."""
        place = out[:, : x.shape[1]]
        if norm is None:
            place.copy_(x)
            return None
        found: Tensor = self.kernels.rms_norm(x, norm.weight, norm.eps, place)
        return found

    def _before_backward(
        self, norm: Norm | None, d: Tensor, x: Tensor, rstd: Any, residual: Tensor
    ) -> Tensor:
        if norm is None:
            return residual + d
        found: Tensor = self.kernels.rms_norm_backward(d, x, norm.weight, rstd, residual=residual)
        return found

    def _added(
        self, norm: Norm | None, group: LinearGroup, given: Tensor, x: Tensor
    ) -> tuple[Tensor, Any, Any]:
        """x + what a sublayer's last linears make, normed where there is a norm; and what the norm's backward reads."""
        if norm is None:
            return group.forward(given, residual=x), None, None
        made = group.forward(given)
        out = torch.empty_like(made)
        rstd = self.kernels.rms_norm(made, norm.weight, norm.eps, out)
        return out.add_(x), made, rstd

    def _through(self, norm: Norm | None, d: Tensor, made: Any, rstd: Any) -> Tensor:
        """The gradient behind a sublayer's norm -> before it."""
        if norm is None:
            return d
        nothing = torch.zeros_like(made)
        found: Tensor = self.kernels.rms_norm_backward(d, made, norm.weight, rstd, residual=nothing)
        return found

    # --- queries and keys

    def _rotate(self, s: Saved, ropes: Ropes) -> tuple[Tensor, Tensor, Tensor]:
        form = self.form
        heads = form.q_heads + form.k_heads
        width = heads * form.head_size
        qk = s.qkv[:, :width]
        if form.head_norms is not None:
            qk = s.qkv.new_empty(s.qkv.shape[0], width)
            weights, counts = self._head_norms(form.head_norms)
            s.head_rstd = self.kernels.head_norm(s.qkv, weights, counts, form.head_norms[0].eps, qk)
        self._turn(qk, ropes)
        q, k = qk.unflatten(1, (heads, form.head_size)).split([form.q_heads, form.k_heads], 1)
        return q, k, s.qkv[:, width:].unflatten(1, (form.k_heads, form.head_size))

    def _rotate_back(self, s: Saved, d_qkv: Tensor, ropes: Ropes) -> None:
        self._turn(d_qkv, ropes, inverse=True)
        if self.form.head_norms is not None:
            weights, counts = self._head_norms(self.form.head_norms)
            self.kernels.head_norm_backward(d_qkv, s.qkv, weights, counts, s.head_rstd)

    def _head_norms(self, norms: tuple[Norm, Norm]) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Weights, and how many parts of a weight's width queries and keys have: heads, or one each."""
        counts = (1, 1) if self.form.whole_norm else (self.form.q_heads, self.form.k_heads)
        return (norms[0].weight, norms[1].weight), counts

    def _turn(self, qk: Tensor, ropes: Ropes, inverse: bool = False) -> None:
        form = self.form
        if form.turns:
            heads = form.q_heads + form.k_heads
            self.kernels.rotate(qk, *ropes[form.kind], heads, inverse, form.head_size, form.interleaved)


def _scatter(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """values [N, H] added up at their rows [count, H]; a row has at most two, so the order cannot matter."""
    return values.new_zeros(count, values.shape[1]).index_add_(0, rows, values)


class FusedTrunk:
    """Embedding and decoder layers, from a row to the hidden states [N, H] that the final norm and head
    score.

    `recompute` is the number of layers, from the first, whose activations are recomputed in the backward
    pass.
    """

    def __init__(
        self, decoder: Any, gradients: GradientBuffer, kernels: ModuleType, float8: bool = False
    ) -> None:
        self.decoder, self.kernels = decoder, kernels
        scratch = Scratch()
        config = decoder.config
        self.layers = [
            FusedLayer(layer, config, gradients, kernels, scratch, float8) for layer in decoder.layers
        ]
        self.kinds = sorted({layer.form.kind for layer in self.layers})
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
    def forward(self, row: DeviceRow, keep: bool) -> tuple[Tensor, tuple[list[Saved], Ropes]]:
        """-> hidden [N, H] and what `backward` needs (nothing of use without `keep`)."""
        x, seen = self.decoder.embed_tokens(row["ids"]), row.seen
        x = x if seen is None else seen.embedded(x)
        ropes = self._ropes(row["positions"][None] if seen is None else seen.positions)
        saved: list[Saved] = []
        for i, layer in enumerate(self.layers):
            x, s = layer.forward(x, row, ropes, keep and i >= self.recompute, i == len(self.layers) - 1)
            x = x if seen is None else seen.added(i, x)
            if keep:
                saved.append(s)
        return x, (saved, ropes)

    @torch.no_grad()
    def backward(self, dx: Tensor, row: DeviceRow, context: tuple[list[Saved], Ropes]) -> None:
        """Adds the LoRA gradients of `sum(dx * hidden)` to the gradient buffer."""
        saved, ropes = context
        top = len(self.layers) - 1
        grad: Any = dx  # None once the first layer is through
        for i in range(top, -1, -1):
            grad = self.layers[i].backward(saved.pop(), grad, row, ropes, first=i == 0, last=i == top)

    def _ropes(self, positions: Tensor) -> Ropes:
        """Of positions [1, T], or [3, T] along three axes, which the embedding makes one of."""
        probe = torch.empty(0, dtype=torch.float32, device=positions.device)
        turn = self.decoder.rotary_emb
        named = "layer_type" in inspect.signature(type(turn).forward).parameters
        places = positions[:, None] if len(positions) > 1 else positions
        found = {}
        for kind in self.kinds:
            cos, sin = turn(probe, places, kind) if named else turn(probe, places)
            found[kind] = (cos[0], sin[0])
        return found


def lora_parameters(decoder: Any) -> list[nn.Parameter]:
    """LoRA parameters in the order the fused layers want them: per linear group every A, then every B."""
    ordered: list[nn.Parameter] = []
    for layer in decoder.layers:
        for group in linears(layer):
            pairs = [p for p in map(adapter_of, group) if p]
            ordered += [p[0] for p in pairs] + [p[1] for p in pairs]
    return ordered

"""Linear layers with LoRA as two matrix products forward and four backward, over PEFT's own parameters.

Linears that read the same input (q, k, v; gate, up) become one product, and LoRA rides inside it: the
frozen weight W [N, K] is stored with extra columns that hold every B, the input x [T, K] with extra columns
that hold x A^T:

    [x | x A^T] @ [W | B]^T  =  x W^T + (x A^T) B^T

so the backward product with the same matrix gives both d x and d(x A^T). PEFT's modules keep their
parameters; the frozen weights become views of the wider storage, so no second copy exists; quantized ones are
multiplied out into a matrix that layers take turns in, once forward and once backward. The scale alpha / r is
folded into A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from tuner.engine.packed.float8 import Float8Weight, takes
from tuner.models.llama_family import adapter_of, base_of
from tuner.models.quantized import Scratch, plain_weight, quantized


@dataclass
class Slot:
    """One adapted projection inside a group: where its rows and its rank columns lie, and its gradients."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    rows: slice
    columns: slice
    grad_a: Tensor
    grad_b: Tensor


class GradientBuffer:
    """One float32 vector that holds every LoRA gradient, so that it is cleared by one fill.

    Parameters are laid out in the order given; `view(p)` is the part of a parameter, in its shape.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        size = sum(p.numel() for p in self.parameters)
        device = (
            self.parameters[0].device if self.parameters else None
        )  # a model that only scores trains none
        self.flat = torch.zeros(size, dtype=torch.float32, device=device)
        self.offsets: dict[int, int] = {}
        at = 0
        for p in self.parameters:
            self.offsets[id(p)] = at
            at += p.numel()
        self.views = [self.view(p) for p in self.parameters]

    def view(self, p: nn.Parameter) -> Tensor:
        at = self.offsets[id(p)]
        return self.flat[at : at + p.numel()].view(p.shape)

    def joined(self, parameters: Sequence[nn.Parameter]) -> Tensor | None:
        """One view [sum of rows, columns] over matrices that lie one after the other, else None."""
        if not parameters:
            return None
        start = at = self.offsets[id(parameters[0])]
        for p in parameters:
            if self.offsets[id(p)] != at or p.shape[1] != parameters[0].shape[1]:
                return None
            at += p.numel()
        return self.flat[start:at].view(-1, parameters[0].shape[1])

    def publish(self) -> None:
        """Make the buffer the parameters' `.grad`, where the optimizer and the gradient clipping look."""
        for p, view in zip(self.parameters, self.views, strict=True):
            p.grad = view if p.dtype == torch.float32 else view.to(p.dtype)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients to a global L2 norm of at most `max_norm`; returns the norm before (scalar)."""
        norm = torch.linalg.vector_norm(self.flat)
        if max_norm < float("inf"):
            self.flat.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
            if self.parameters[0].dtype != torch.float32:
                self.publish()
        return norm


class LinearGroup:
    """Linears that share an input, with their adapters.

    With `float8`, the kernels that round to it, the frozen weights are multiplied in 8 bits.
    forward: x [T, K + R] (columns from K on are scratch, filled here) -> y [T, N], plus a residual if given.
    backward: dy [T, N] -> d x [T, K] (a strided view) and LoRA gradients added to the buffer.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        gradients: GradientBuffer,
        like: Tensor,
        scratch: Scratch,
        float8: ModuleType | None = None,
    ) -> None:
        bases = [base_of(m) for m in modules]
        pairs = [adapter_of(m) for m in modules]
        self.bases, self.like, self.scratch = bases, like, scratch
        self.inputs = bases[0].in_features
        ranks = [p[0].shape[0] if p else 0 for p in pairs]
        self.rank = sum(ranks)
        # a multiple of 32 keeps rows of the widened matrices aligned for the tensor cores
        grain = 32 if like.is_cuda else 8
        self.extra = -(-self.rank // grain) * grain
        self.width = self.inputs + self.extra
        self.outputs = sum(b.out_features for b in bases)
        self.weight: Tensor | None = None
        if any(map(quantized, bases)):
            self.b = like.new_zeros(self.outputs, self.extra)
        else:
            self.weight = like.new_zeros(self.outputs, self.width)
            self.b = self.weight[:, self.inputs :]
        self.a = like.new_zeros(self.extra, self.inputs)
        self.bias = self._stack_bias(bases)
        self.slots: list[Slot] = []
        row = column = 0
        for base, pair, rank in zip(bases, pairs, ranks, strict=True):
            rows = slice(row, row + base.out_features)
            if self.weight is not None:
                self.weight[rows, : self.inputs].copy_(base.weight.data)
                base.weight.data = self.weight[rows, : self.inputs]
            if pair is not None:
                a, b, scale = pair
                columns = slice(self.inputs + column, self.inputs + column + rank)
                self.slots.append(Slot(a, b, scale, rows, columns, gradients.view(a), gradients.view(b)))
                column += rank
            row = rows.stop
        self.float8: Float8Weight | None = None
        if float8 is not None and self.weight is not None and takes(plain := self.weight[:, : self.inputs]):
            self.float8 = Float8Weight(plain, float8)
        self.use_adapters = True
        self.down_slots = self._down_slots(gradients)

    def _down_slots(self, gradients: GradientBuffer) -> list[tuple[slice, Tensor, float]]:
        """(rank columns, gradient of A, scale): one entry for all projections where their gradients touch."""
        entries = [
            (slice(s.columns.start - self.inputs, s.columns.stop - self.inputs), s.grad_a, s.scale)
            for s in self.slots
        ]
        joined = gradients.joined([s.a for s in self.slots])
        if joined is None or len({scale for _, _, scale in entries}) != 1:
            return entries
        return [(slice(0, self.rank), joined, entries[0][2])]

    @staticmethod
    def _stack_bias(bases: Sequence[nn.Linear]) -> Tensor | None:
        if all(b.bias is None for b in bases):
            return None
        biases = (b.bias for b in bases)
        given = next(b for b in biases if b is not None)
        return torch.cat([given.new_zeros(b.out_features) if b.bias is None else b.bias.data for b in bases])

    def shadows(self) -> list[tuple[Tensor, Tensor, float]]:
        """(parameter, its place in the compute matrices, scale): what has to be copied after every step."""
        pairs: list[tuple[Tensor, Tensor, float]] = []
        for s in self.slots:
            rank = slice(s.columns.start - self.inputs, s.columns.stop - self.inputs)
            pairs += [(s.a.data, self.a[rank], s.scale), (s.b.data, self.b[s.rows, rank], 1.0)]
        return pairs

    def input_buffer(self, tokens: int) -> Tensor:
        """An uninitialised x [T, K + R]."""
        return self.like.new_empty(tokens, self.width)

    def wide(self) -> Tensor:
        """[W | B], to be used at once: the next layer of this shape may write over it."""
        if self.weight is not None:
            return self.weight
        wide, row = self.scratch.matrix(self.outputs, self.width, self.like), 0
        for base in self.bases:
            wide[row : row + base.out_features, : self.inputs].copy_(plain_weight(base))
            row += base.out_features
        wide[:, self.inputs :].copy_(self.b)
        return wide

    def read(self, x: Tensor) -> None:
        """Fill the columns of x [T, K + R] that the adapters read: x A^T."""
        if self.extra and self.use_adapters:
            torch.mm(x[:, : self.inputs], self.a.t(), out=x[:, self.inputs :])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self.read(x)
        if self.float8 is not None:
            return self._forward_float8(self.float8, x, residual)
        if self.extra and self.use_adapters:
            weight = self.wide()
        else:
            x, weight = x[:, : self.inputs], self.wide()[:, : self.inputs]
        if residual is not None:
            out = torch.addmm(residual, x, weight.t())
            return out if self.bias is None else out.add_(self.bias)
        return torch.mm(x, weight.t()) if self.bias is None else torch.addmm(self.bias, x, weight.t())

    def _forward_float8(self, weight: Float8Weight, x: Tensor, residual: Tensor | None) -> Tensor:
        out = weight.forward(x[:, : self.inputs])
        if self.extra and self.use_adapters:
            out.addmm_(x[:, self.inputs :], self.b.t())
        for more in (residual, self.bias):
            out = out if more is None else out.add_(more)
        return out

    def _input_gradient(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """d x of the frozen weights [T, K] and d(x A^T) [T, R]."""
        if self.float8 is not None:
            return self.float8.backward(dy), dy @ self.b
        wide = dy @ self.wide()
        return wide[:, : self.inputs], wide[:, self.inputs :]

    def backward(self, dy: Tensor, x: Tensor, need_input: bool = True) -> Tensor | None:
        if not self.slots:
            return self._input_gradient(dy)[0] if need_input else None
        dx, dxa = self._input_gradient(dy) if need_input else (None, dy @ self.b)
        for s in self.slots:
            add_product(s.grad_b, dy[:, s.rows].t(), x[:, s.columns], 1.0)
        for columns, grad_a, scale in self.down_slots:
            add_product(grad_a, dxa[:, columns].t(), x[:, : self.inputs], scale)
        if dx is not None:
            dx.addmm_(dxa, self.a)
        return dx


def add_product(out: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """out += scale * left @ right, in float32 whatever the inputs are."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, alpha=scale)
    elif left.is_cuda:
        torch.addmm(out, left, right, out_dtype=torch.float32, alpha=scale, out=out)
    else:
        out.add_((left @ right).float(), alpha=scale)

"""Linears that read the same input as one product, and the adapters that lie on them as two thin ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuner.models.llama_family import base_of


@dataclass(frozen=True)
class Linears:
    """Weights [N, K] side by side: one matrix where they lie together in memory, else several. `bias` is [sum of N]."""

    weights: tuple[Tensor, ...]
    bias: Tensor | None

    @property
    def outputs(self) -> int:
        return sum(w.shape[0] for w in self.weights)


@dataclass(frozen=True)
class Adapted:
    """LoRA on linears that stand side by side: A [R, K] with alpha / r folded in, B [N, R]."""

    a: Tensor
    b: Tensor


def together(modules: Sequence[nn.Module]) -> Linears:
    """The linears below these modules. Frozen ones become views of one matrix, so that no second copy stays."""
    bases = [base_of(module) for module in modules]
    one = _one_view([base.weight.data for base in bases])
    if one is None and not any(base.weight.requires_grad for base in bases):
        one = torch.cat([base.weight.data for base in bases])
        for base, part in zip(bases, one.split([base.out_features for base in bases]), strict=True):
            base.weight.data = part
    weights = (one,) if one is not None else tuple(base.weight.data for base in bases)
    return Linears(weights, _bias(bases))


def _one_view(weights: Sequence[Tensor]) -> Tensor | None:
    """One matrix over matrices that lie one after the other, else None."""
    first, rows = weights[0], 0
    for w in weights:
        begins = first.data_ptr() + rows * first.stride(0) * first.element_size()
        same = w.stride() == first.stride() and w.untyped_storage().data_ptr() == _storage(first)
        if not same or w.data_ptr() != begins:
            return None
        rows += w.shape[0]
    return first.as_strided((rows, first.shape[1]), first.stride())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bias(bases: Sequence[nn.Linear]) -> Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    like = bases[0].weight
    parts = [
        like.new_zeros(base.out_features) if base.bias is None else base.bias.data.to(like.dtype)
        for base in bases
    ]
    return torch.cat(parts)


def adapted(modules: Sequence[Any], like: Tensor, grain: int = 1) -> Adapted | None:
    """What the active adapters add to these modules' linears, None if nothing. R becomes a multiple of `grain`."""
    pairs, row = [], 0
    for module in modules:
        pairs += [(a, b, row) for a, b in _pairs(module)]
        row += base_of(module).out_features
    if not pairs:
        return None
    rank = sum(a.shape[0] for a, _, _ in pairs)
    made_a = like.new_zeros(-(-rank // grain) * grain, pairs[0][0].shape[1])
    made_b, at = like.new_zeros(row, len(made_a)), 0
    for a, b, first in pairs:
        made_a[at : at + len(a)] = a
        made_b[first : first + len(b), at : at + len(a)] = b
        at += len(a)
    return Adapted(made_a, made_b)


def _pairs(module: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(scaled A, B) of each active adapter on a module."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return
    for name in module.active_adapters:
        if name in module.lora_A:
            a, b = module.lora_A[name].weight.data, module.lora_B[name].weight.data
            yield a * module.scaling[name], b

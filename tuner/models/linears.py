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
class Pair:
    """One LoRA pair: A [r, K] with alpha / r folded in, B [N, r], and the first of its outputs among those of its group."""

    a: Tensor
    b: Tensor
    first: int


@dataclass(frozen=True)
class Adapted:
    """LoRA of some adapters on linears that stand side by side: A [R, K], B [N, R], and whose each of the R ranks is.

    Where rows wear different adapters `hidden` [M, R] says which ranks are not a row's own.
    """

    a: Tensor
    b: Tensor
    owners: tuple[int, ...]
    hidden: Tensor | None = None

    def read(self, x: Tensor) -> Tensor:
        """x [M, K] -> what B is multiplied by [M, R]; nothing of adapters that are not the row's."""
        thin = x @ self.a.t()
        return thin if self.hidden is None else thin.masked_fill_(self.hidden, 0.0)


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


def pairs_on(modules: Sequence[Any]) -> list[Pair]:
    """What the active adapters add to these modules' linears."""
    made, first = [], 0
    for module in modules:
        made += [Pair(a, b, first) for a, b in _pairs(module)]
        first += base_of(module).out_features
    return made


def _pairs(module: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(scaled A, B) of each active adapter on a module."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return
    for name in module.active_adapters:
        if name in module.lora_A:
            a, b = module.lora_A[name].weight.data, module.lora_B[name].weight.data
            yield a * module.scaling[name], b


def adapted(sets: Sequence[Sequence[Pair]], outputs: int, like: Tensor, grain: int = 1) -> Adapted | None:
    """The pairs of several adapters as one, None if there are none. R becomes a multiple of `grain`."""
    owned = [(number, pair) for number, pairs in enumerate(sets) for pair in pairs]
    if not owned:
        return None
    rank = sum(len(pair.a) for _, pair in owned)
    a = like.new_zeros(-(-rank // grain) * grain, owned[0][1].a.shape[1])
    b, owners = like.new_zeros(outputs, len(a)), [-1] * len(a)
    at = 0
    for number, pair in owned:
        end = at + len(pair.a)
        a[at:end] = pair.a
        b[pair.first : pair.first + len(pair.b), at:end] = pair.b
        owners[at:end] = [number] * len(pair.a)
        at = end
    return Adapted(a, b, tuple(owners))

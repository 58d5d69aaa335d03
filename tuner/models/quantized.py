"""Frozen linears whose weights bitsandbytes keeps in 4 or 8 bits, as plain matrices for the time of a product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LINEARS = frozenset({"Linear4bit", "Linear8bitLt"})
"""Its classes, by name: bitsandbytes is imported where a model was loaded with it only."""


def quantized(module: nn.Module) -> bool:
    """Whether a linear's weights are in few bits."""
    return type(module).__name__ in LINEARS


def plain_weight(module: Any) -> Tensor:
    """The weights [N, K] of a linear, quantized or not.

    8-bit weights are multiplied out by their row's scale (arXiv 2208.07339, eq. 3); what their own product does to its
    input besides, rounding it to 8 bits too, is left out.
    """
    if not quantized(module):
        return module.weight.data
    weight = module.weight
    if type(module).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    moved = module.state.CB is not None  # its first product moves them there
    codes, scales = (module.state.CB, module.state.SCB) if moved else (weight.data, weight.SCB)
    return codes.float().mul_(scales[:, None] / 127.0)


class Scratch:
    """Matrices that layers of the same shape take turns in."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Tensor] = {}

    def matrix(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """The matrix of this shape, of the dtype and on the device of `like`; what is in it is somebody else's."""
        if (rows, columns) not in self.kept:
            self.kept[rows, columns] = torch.empty(rows, columns, dtype=like.dtype, device=like.device)
        return self.kept[rows, columns]

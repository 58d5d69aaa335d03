"""Frozen weights in 8-bit floats (e4m3): a GPU that has them (Ada, Hopper) multiplies them at twice the rate of bfloat16.

What is multiplied with them is rounded to 8 bits on the way, a scale for each row, and each row of a weight has its own,
too. Losses and gradients are therefore near those of bfloat16, and not the same; LoRA's own products stay as they are.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

GRAIN = 16
"""Rows and columns of a weight come in multiples of this."""
FAST = True
"""Sums are gathered in the tensor cores' own numbers, which is what makes 8 bits twice as fast on Hopper."""
_ROWS = ScalingType.RowWise


def takes(weight: Tensor) -> bool:
    """Whether a weight's shape is one that 8-bit products take."""
    return not any(size % GRAIN for size in weight.shape)


class Float8Weight:
    """A frozen weight [N, K] twice in 8 bits: by rows for the way forth, by columns for the way back."""

    def __init__(self, weight: Tensor, kernels: ModuleType) -> None:
        self.kernels = kernels
        self.forth: tuple[Tensor, Tensor] = kernels.to_float8(weight)
        self.back: tuple[Tensor, Tensor] = kernels.to_float8(weight.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K] -> x W^T [T, N]."""
        return self._product(x, *self.forth)

    def backward(self, dy: Tensor) -> Tensor:
        """dy [T, N] -> dy W [T, K]."""
        return self._product(dy, *self.back)

    def _product(self, x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        rounded, own = self.kernels.to_float8(x)
        made: Tensor = scaled_mm(
            rounded, codes.t(), own, _ROWS, scales.t(), _ROWS, output_dtype=x.dtype, use_fast_accum=FAST
        )
        return made

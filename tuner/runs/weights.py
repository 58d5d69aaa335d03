"""Reads safetensors files without torch: are they whole, is every number in them finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner import tensors
from tuner.tensors import BrokenWeights
from tuner.text.lookup import tr

__all__ = ["BrokenWeights", "check_finite"]

CHUNK = 16 * 2**20  # bytes looked at together
# How a number of each kind is told to be NaN or infinite: its bits as this type, all bits of the mask set.
NOT_FINITE: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


def check_finite(path: Path) -> None:
    """Raises BrokenWeights, naming the tensor, where a number is NaN or infinite or the file is not whole."""
    header, start = tensors.header(path)
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    for name, tensor in header.items():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        if not start <= begin <= end <= size:
            raise BrokenWeights(
                tr(
                    "{path} ends before its tensor {name}; it was not written to the end.",
                    path=path,
                    name=name,
                )
            )
        if tensor["dtype"] in NOT_FINITE and not _finite(data[begin:end], *NOT_FINITE[tensor["dtype"]]):
            raise BrokenWeights(
                tr(
                    "{name} holds NaN or infinite numbers in {name_2}; the training diverged.",
                    name=path.name,
                    name_2=name,
                )
            )


def _finite(raw: NDArray[np.uint8], kind: str, mask: int) -> bool:
    for begin in range(0, len(raw), CHUNK):
        # A copy, for a tensor may begin at any byte.
        bits = np.frombuffer(raw[begin : begin + CHUNK].tobytes(), kind)
        if bool(((bits & bits.dtype.type(mask)) == mask).any()):
            return False
    return True

"""Reads safetensors files without torch: are they whole, is every number in them finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 16 * 2**20  # bytes looked at together
LARGEST_HEADER = 100 * 2**20  # the format's own limit
# How a number of each kind is told to be NaN or infinite: its bits as this type, all bits of the mask set.
NOT_FINITE: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


class BrokenWeights(ValueError):  # noqa: N818  the word a person reads
    """A weights file that must not be used; the text says in a sentence why."""


def check_finite(path: Path) -> None:
    """Raises BrokenWeights, naming the tensor, where a number is NaN or infinite or the file is not whole."""
    header, start = _header(path)
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    for name, tensor in header.items():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        if not start <= begin <= end <= size:
            raise BrokenWeights(f"{path} ends before its tensor {name}; it was not written to the end.")
        if tensor["dtype"] in NOT_FINITE and not _finite(data[begin:end], *NOT_FINITE[tensor["dtype"]]):
            raise BrokenWeights(
                f"{path.name} holds NaN or infinite numbers in {name}; the training diverged."
            )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors by name and where their bytes begin."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        if not all({"dtype", "data_offsets"} <= set(tensor) for tensor in header.values()):
            raise ValueError
    except (ValueError, AttributeError, TypeError) as error:
        raise BrokenWeights(f"{path} is not a safetensors file.") from error
    return header, 8 + length


def _finite(raw: NDArray[np.uint8], kind: str, mask: int) -> bool:
    for begin in range(0, len(raw), CHUNK):
        # A copy, for a tensor may begin at any byte.
        bits = np.frombuffer(raw[begin : begin + CHUNK].tobytes(), kind)
        if bool(((bits & bits.dtype.type(mask)) == mask).any()):
            return False
    return True

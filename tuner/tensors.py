"""What a safetensors file says of itself, without torch and without reading a number of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuner.text.lookup import tr

LARGEST_HEADER = 100 * 2**20  # bytes; the format's own limit
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class BrokenWeights(ValueError):  # noqa: N818  the word a person reads
    """A weights file that must not be used; the text says in a sentence why."""


def header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors by name, each with dtype, shape and data_offsets, and where their bytes begin. Raises BrokenWeights."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError
            found = json.loads(file.read(length))
        found.pop("__metadata__", None)
        if not all({"dtype", "data_offsets"} <= set(tensor) for tensor in found.values()):
            raise ValueError
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BrokenWeights(tr("{path} is not a safetensors file.", path=path)) from error
    return found, 8 + length


def matrices(path: Path) -> dict[str, tuple[int, int]]:
    """The shapes of a file's matrices of floating-point numbers, by name. Raises BrokenWeights."""
    found = {}
    for name, tensor in header(path)[0].items():
        shape = tensor.get("shape")
        if tensor["dtype"] in FLOATS and isinstance(shape, list) and len(shape) == 2:
            found[name] = (int(shape[0]), int(shape[1]))
    return found

"""Checkpoints in pieces, torch's distributed format: what describes them is a pickle, and opened as one that may hold
nothing but descriptions."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem

FROM = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
"""Modules whose classes describe pieces."""
SINGLE = frozenset(
    {("torch", "Size"), ("torch", "device"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")}
    | {
        ("collections", "OrderedDict"),
        ("builtins", "set"),
        ("pathlib._local", "PosixPath"),
        ("pathlib", "Path"),
    }
)


class _Descriptions(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in SINGLE:
            return super().find_class(module, name)
        if module == "torch" and name in _DTYPES:
            return getattr(torch, name)
        if (
            module in FROM and "." not in name
        ):  # a dotted name leads on to what the module itself has imported
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's description.")


_DTYPES = frozenset(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))


def only_descriptions() -> None:
    """Let torch read what describes a checkpoint in this way, from here on."""
    safe = SimpleNamespace(load=lambda file: _Descriptions(file).load(), dump=pickle.dump, dumps=pickle.dumps)
    filesystem.pickle = safe  # type: ignore[attr-defined, assignment]

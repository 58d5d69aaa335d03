"""Names that other versions and other tools use: carried over where there is a new name, refused with a word where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RENAMED: dict[str, Callable[[Any], dict[str, Any]]] = {
    # transformers 5 reads a warm-up below 1 as a share of the run.
    "warmup_ratio": lambda v: {"warmup_steps": v} if float(v or 0) > 0 else {},
    "evaluation_strategy": lambda v: {"eval_strategy": v},
    "no_cuda": lambda v: {"use_cpu": v},
    "group_by_length": lambda v: (
        {"train_sampling_strategy": "group_by_length"} if str(v).lower() == "true" else {}
    ),
    "save_safetensors": lambda v: {},
    "logging_dir": lambda v: {},
}

REFUSED: dict[str, str] = {}

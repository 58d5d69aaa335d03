"""How many tokens a row may hold and how many layers are recomputed, from free memory and the estimate's formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from tuner.engine.packed.trainer import EngineSettings

CPU_BUDGET = 4096
GPU_BUDGET = 16384


@dataclass(frozen=True)
class Plan:
    """Tokens per training row and per reference row, recomputed layers, bytes of logits held at a time."""

    token_budget: int
    reference_budget: int
    recompute: int
    layers: int
    logits_bytes: int

    def __str__(self) -> str:
        return (
            f"at most {self.token_budget} tokens a row, {self.recompute} of {self.layers} layers recomputed"
        )


def plan_memory(model: nn.Module, device: torch.device, engine: EngineSettings) -> Plan:
    """The plan for a model on a device; fields set in `engine` win."""
    layers = model.config.num_hidden_layers
    low = engine.preset == "memory"
    if device.type != "cuda":
        recompute = layers if low else 0
        budget = 1024 if low else CPU_BUDGET
        logits = (32 if low else 64) << 20
        reference = budget
    else:
        recompute = layers if low else 0
        budget = 4096 if low else GPU_BUDGET
        logits = (64 if low else 512) << 20
        reference = 4096 if low else 8192
    return Plan(
        engine.token_budget or budget,
        engine.token_budget or reference,
        recompute if engine.recompute is None else engine.recompute,
        layers,
        logits,
    )

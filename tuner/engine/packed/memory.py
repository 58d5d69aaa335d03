"""How many tokens a row may hold and how many layers are recomputed, from free memory and the estimate's
formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tuner.estimate import CPU_TOKENS, LOGITS, SHARE, SMALL_LOGITS, SMALL_TOKENS, ModelShape, packed_plan

if TYPE_CHECKING:
    from tuner.engine.packed.trainer import EngineSettings


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


def plan_memory(model: Any, device: torch.device, engine: EngineSettings) -> Plan:
    """The plan for a model on a device; fields set in `engine` win over what is chosen here."""
    layers = model.config.num_hidden_layers
    logits = LOGITS if device.type == "cuda" else SMALL_LOGITS
    if engine.preset == "memory":
        budget, recompute, logits = SMALL_TOKENS, layers, SMALL_LOGITS
    elif device.type == "cuda":
        budget, recompute = _fit(model, device)
    else:
        budget, recompute = CPU_TOKENS, 0
    reference = min(4 * budget, 8192)  # nothing is kept for a backward pass
    return Plan(
        engine.token_budget or budget,
        engine.token_budget or reference,
        recompute if engine.recompute is None else engine.recompute,
        layers,
        logits,
    )


def _fit(model: Any, device: torch.device) -> tuple[int, int]:
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        shape = ModelShape.from_config(model.config.to_dict())
    except KeyError:  # a decoder with other names: its layers run through autograd, which keeps more
        return 4096, 0
    width = next(p.element_size() for p in model.parameters() if not p.requires_grad)
    return packed_plan(shape, int(SHARE * free), weight_bytes=width, logits_bytes=LOGITS)

"""The rows of the packed engine on the device where its model lies: as planned, or as what is free there now allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tuner.engine.packed.policy import fused_refusal
from tuner.models.llama_family import causal_lm
from tuner.plan.rows import Layers, RowBudget, holds, row_budget
from tuner.plan.shape import ModelShape

if TYPE_CHECKING:
    from tuner.engine.packed.trainer import EngineSettings


def rows_on(model: Any, device: torch.device, engine: EngineSettings) -> RowBudget:
    """The rows for a loaded model on its device: those planned, where they still fit."""
    on_gpu = device.type == "cuda"
    return rows_with(model, on_gpu, _free(device) if on_gpu else 0, engine)


def rows_with(model: Any, on_gpu: bool, free: int, engine: EngineSettings) -> RowBudget:
    """The same with `free` bytes beside the weights; fields set in `engine` win over what memory allows."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    shape, layers = _shape(config), config.num_hidden_layers
    rank = max((peft.r for peft in getattr(model, "peft_config", {}).values()), default=8)
    frozen = (p for p in model.parameters() if not p.requires_grad)
    width = 4 if (weight := next(frozen, None)) is None else weight.element_size()
    run_by = engine.run_by if fused_refusal(model) is not None else Layers()
    if (planned := engine.planned) and (
        not on_gpu or shape is None or holds(planned, shape, free, rank, width, run_by)
    ):
        return planned
    return row_budget(
        shape,
        layers,
        on_gpu=on_gpu,
        free=free,
        preset=engine.preset,
        token_budget=engine.token_budget,
        recompute=engine.recompute,
        rank=rank,
        weight_bytes=width,
        run_by=run_by,
    )


def _shape(config: Any) -> ModelShape | None:
    try:
        return ModelShape.from_config(config.to_dict())
    except KeyError:  # a decoder with other names
        return None


def _free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

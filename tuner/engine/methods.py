"""How a run changes weights: by an adapter, by some layers, by all of them; and what it is compared with meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftConfig, PeftModel

from tuner.config.config import Config
from tuner.engine import adapters, layers
from tuner.models import loading
from tuner.models.adapter_loading import adapter_folder
from tuner.models.loading import Source
from tuner.models.merging import merge_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTERS = ("lora", "oft")


def attach(
    config: Config, model: PreTrainedModel, checkpoint: Path | None = None
) -> tuple[PreTrainedModel | PeftModel, PeftConfig | None]:
    """The model with its trainable weights told, and the settings of an adapter the trainer is still to add."""
    if config.finetuning_type in ADAPTERS:
        return adapters.attach(config, model, checkpoint)
    layers.train_only(config, model)
    return model, None


def reference(config: Config, source: Source) -> PreTrainedModel | None:
    """The frozen model a preference is measured against; None where the adapter is switched off instead."""
    if config.ref_model:
        named = loading.find(config, config.ref_model)
        if config.ref_model_adapters:
            folders = [adapter_folder(config, name) for name in config.ref_model_adapters]
            named = merge_once(config, named, folders)
        bits = config.ref_model_quantization_bit
        return _frozen(loading.load(config, named, bits=bits, whole=False))
    if config.finetuning_type in ADAPTERS:
        return None
    return _frozen(loading.load(config, source, bits=None, whole=False))


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    return model.eval()


def settle_types(config: Config, model: torch.nn.Module) -> None:
    """Trained weights in float32, whatever the frozen ones are: a step's update is smaller than bfloat16 can hold.

    pure_bf16 asks for the opposite, to save memory.
    """
    wanted = torch.bfloat16 if config.pure_bf16 else torch.float32
    for weight in model.parameters():
        if weight.requires_grad and weight.is_floating_point():
            weight.data = weight.data.to(wanted)


def describe(model: torch.nn.Module) -> str:
    """How many weights are trained, in one line."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"trains {trained:,} of {total:,} weights ({100 * trained / max(total, 1):.2f}%)"

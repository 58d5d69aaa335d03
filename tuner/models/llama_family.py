"""Models whose decoder layers are written out: which they are, and what their linears hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

LAYER_CLASSES = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)


@dataclass(frozen=True)
class Norm:
    """Root mean square norm: its weight [H] and epsilon."""

    weight: Tensor
    eps: float


def adapter_of(module: Any) -> tuple[nn.Parameter, nn.Parameter, float] | None:
    """The active LoRA pair (A [r, K], B [N, r]) and scale of a PEFT linear, or None for a plain linear."""
    if not hasattr(module, "lora_A"):
        return None
    name = next((n for n in module.active_adapters if n in module.lora_A), None)
    if name is None:
        return None
    return module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name])


def base_of(module: Any) -> nn.Linear:
    """The frozen linear inside a PEFT layer, or the linear itself."""
    found: nn.Linear = module.base_layer if hasattr(module, "base_layer") else module
    return found


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(inner: Any) -> Any:
    """The decoder of a transformers model, with its embedding; of one that takes pictures the part that reads text."""
    base = getattr(inner, inner.base_model_prefix)
    return next(
        (getattr(base, name) for name in ("language_model", "text_model") if hasattr(base, name)), base
    )


def in_use(module: Any) -> Any:
    """The layer that works inside PEFT's wrapper of one that is trained whole, which `disable_adapter` switches."""
    if not hasattr(module, "modules_to_save"):
        return module
    off = module.disable_adapters or not module.active_adapters
    return module.original_module if off else module.modules_to_save[module.active_adapters[0]]

"""Frozen weights in few bits (QLoRA): which library does it, and one sentence where it is missing."""

from __future__ import annotations

from typing import Any

import torch

from tuner.config.config import Config
from tuner.config.libraries import QUANTIZATION, checkpoint, need


def settings(config: Config, bits: int, compute: torch.dtype) -> Any:
    """transformers' quantization config for `bits` bits. Raises ConfigError when the library is not installed."""
    method = config.quantization_method
    need(QUANTIZATION[method], knob="quantization_method")
    if method == "hqq":
        from transformers import HqqConfig

        return HqqConfig(nbits=bits, axis=0)
    if method == "eetq":
        from transformers import EetqConfig

        return EetqConfig()
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_type=config.quantization_type,
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_quant_storage=compute,
    )


def check_checkpoint(found: Any) -> None:
    """Refuse a checkpoint that comes quantized when the library that reads it is missing."""
    said = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
    need(checkpoint(said), knob="model_name_or_path")

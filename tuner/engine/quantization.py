"""Frozen weights in few bits (QLoRA): which library does it, and one sentence where it is missing."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from tuner.config.config import Config
from tuner.config.knobs import ConfigError, Problem

EXTRAS = {"bnb": ("bitsandbytes", "qlora"), "hqq": ("hqq", "hqq"), "eetq": ("eetq", "eetq")}
CHECKPOINTS = {  # quantization methods of ready-made checkpoints: the module, the extra
    "gptq": ("gptqmodel", "gptq"),
    "awq": ("gptqmodel", "gptq"),
    "aqlm": ("aqlm", "aqlm"),
    "bitsandbytes": EXTRAS["bnb"],
    "hqq": EXTRAS["hqq"],
    "eetq": EXTRAS["eetq"],
}


def settings(config: Config, bits: int, compute: torch.dtype) -> Any:
    """transformers' quantization config for `bits` bits. Raises ConfigError when the library is not installed."""
    method = config.quantization_method
    need(method, *EXTRAS[method], knob="quantization_method")
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
    method = str(said.get("quant_method", "")).lower()
    if method in CHECKPOINTS:
        need(method, *CHECKPOINTS[method], knob="model_name_or_path")


def need(method: str, module: str, extra: str, *, knob: str) -> None:
    """Raises ConfigError with the command that installs `module`, unless it is there."""
    if importlib.util.find_spec(module) is None:
        sentence = (
            f"--{knob} asks for {method}, which needs the library {module}: "
            f"run `pip install 'tuner[{extra}]'` (or `pip install {module}`), then start again."
        )
        raise ConfigError([Problem(knob, sentence)])

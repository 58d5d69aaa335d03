"""Which runs the packed engine takes; for the others, one sentence that says why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tuner.engine.losses import canonical_name
from tuner.engine.packed.policy import causal_lm, fused_refusal


def unsupported(config: Any, model: nn.Module) -> str | None:
    """Why the packed engine does not take this run, or None.

    `config` is a mapping or an object with the run's knobs as attributes; a knob that is missing has its
    default.
    """
    return _config_refusal(config) or _model_refusal(model)


def window_of(model: nn.Module) -> int | None:
    """The sliding window, in tokens, that layers attend through; None where all see everything before them.

    Mistral and Phi-3 name a window and no layer types: it is every layer's. Others list their layers' types.
    """
    config = causal_lm(model).config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or (kinds is None and not getattr(config, "use_sliding_window", True)):
        return None
    return int(window) if kinds is None or "sliding_attention" in kinds else None


def too_long_for(model: nn.Module, rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Why these rows need attention that packed rows do not have, or None: up to its length a window hides nothing."""
    window = window_of(model)
    if window is None:
        return None
    longest = max((length(row) for row in rows), default=0)
    if longest <= window:
        return None
    return f"its attention sees {window} tokens back (sliding_window) and rows have up to {longest}."


def length(row: Mapping[str, Any]) -> int:
    """Tokens of a row's prompt with the longest of its answers."""
    answers = (len(ids) for name, ids in row.items() if name.endswith("_ids") and name != "prompt_ids")
    return len(row["prompt_ids"]) + max(answers, default=0)


def _knob(config: Any, name: str, default: Any = None) -> Any:
    value = config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)
    return default if value is None else value


def _config_refusal(config: Any) -> str | None:
    try:
        canonical_name(_knob(config, "pref_loss", "sigmoid"))
    except ValueError:
        return f"the packed engine has no pref_loss {_knob(config, 'pref_loss')}."
    if _knob(config, "lora_dropout", 0.0) > 0:
        return "lora_dropout is above 0."
    if _knob(config, "use_dora", False):
        return "DoRA is used."
    if _knob(config, "finetuning_type", "lora") != "lora":
        return f"finetuning_type is {_knob(config, 'finetuning_type')}, not lora."
    if _knob(config, "ref_model", "") or _knob(config, "ref_model_adapters", ""):
        return "a separate reference model is given."
    if _knob(config, "fp16", False):
        return "fp16 needs loss scaling; use bf16."
    if (
        _knob(config, "deepspeed", "")
        or _knob(config, "fsdp", "")
        or int(os.environ.get("WORLD_SIZE", "1")) > 1
    ):
        return "the run is spread over several processes."
    if _knob(config, "neftune_noise_alpha", 0):
        return "neftune_noise_alpha adds noise to the embeddings."
    return None


def _model_refusal(model: Any) -> str | None:
    inner = causal_lm(model)
    config = inner.config
    if not hasattr(model, "peft_config"):
        return "the model has no LoRA adapter."
    if any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config")):
        return "the model takes more than text."
    if any(p.is_quantized or p.dtype in (torch.uint8, torch.int8) for p in model.parameters()):
        return "the base model is quantized."
    for name, peft in model.peft_config.items():
        if getattr(peft, "peft_type", None) != "LORA" or peft.use_dora or peft.lora_dropout > 0:
            return f"adapter '{name}' is not plain LoRA without dropout."
        if peft.modules_to_save:
            return f"adapter '{name}' trains whole modules as well (additional_target)."
    scaling = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"its rotary embedding ({scaling['rope_type']}) depends on the length of the input."
    return None if fused_refusal(model) is None else _decoder_refusal(inner)


def _decoder_refusal(inner: Any) -> str | None:
    """For models outside the Llama family: plain causal attention that an attention function may replace."""
    config, head = inner.config, inner.get_output_embeddings()
    if (
        getattr(config, "is_encoder_decoder", False)
        or not isinstance(head, nn.Linear)
        or head.bias is not None
    ):
        return "it is not a decoder with a plain language model head."
    if any(getattr(config, n, None) for n in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "it is a mixture of experts."
    if any(getattr(config, n, None) for n in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        return "it rescales its logits."
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "attn_logit_softcapping", None):
        return "its attention is not plain causal attention."
    if not getattr(inner, "_supports_attention_backend", False):
        return "its attention cannot be replaced."
    return None

"""What only a loaded model tells of whether the packed engine takes it; `plan/engine.py` has what its description does."""

from __future__ import annotations

from typing import Any

from torch import nn

from tuner.config.vision import family, part_of
from tuner.engine.packed.policy import fused_refusal, score_of
from tuner.models.llama_family import causal_lm, in_use
from tuner.plan.engine import adapter_refusal, model_refusal
from tuner.text.message import Message, message


def unsupported(model: Any) -> Message:
    """Why the packed engine does not take this model with its adapter; empty where it does."""
    adapters = getattr(model, "peft_config", {})
    refused = [why for peft in adapters.values() if (why := adapter_refusal(peft.to_dict()))]
    inner = causal_lm(model)
    why = refused[0] if refused else model_refusal(inner.config.to_dict()) or _looking(inner)
    return why if why or fused_refusal(model) is None else _decoder_refusal(inner)


def _looking(inner: Any) -> Message:
    """What a picture is seen as is kept, and so what sees may not change."""
    named = family(inner.config.to_dict())
    parts = inner.named_parameters() if named else ()
    trained = any(w.requires_grad and named and part_of(named, name) != "language" for name, w in parts)
    return message("engine.looks") if trained else Message()


def _decoder_refusal(inner: Any) -> Message:
    """For models that run their own layers: what those must let be replaced."""
    head = score_of(inner) or in_use(inner.get_output_embeddings())
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return message("engine.no_decoder")
    if any(hasattr(module, "sinks") for module in inner.modules()):
        return message("engine.attention")
    return (
        Message()
        if getattr(inner, "_supports_attention_backend", False)
        else message("engine.fixed_attention")
    )

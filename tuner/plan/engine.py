"""Which engine computes a run, and why not the packed one: from its config, the model's config.json and, for an adapter
that is gone on with, its adapter_config.json. The form asks before launch, the worker again with what it has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuner.config.config import Config
from tuner.config.kinds import ONLY_TRL, WITHOUT_REFERENCE
from tuner.config.vision import language_config, takes_pictures
from tuner.text.message import Message, message

PACKED, TRL, PADDED = "packed", "trl", "padded"
"""Packed rows, TRL's trainers, and padded sequences: what learns from rewards where packed rows do not fit."""
WRITTEN_OUT = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "glm", "glm4"}
    | {"olmo2", "olmo3", "smollm3", "seed_oss", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}
)
"""Model types of the Llama family and its relatives, whose layers the packed engine has written out."""
LEGACY = frozenset({"qwen", "internlm2"})
"""Old formats of that family, read as one of them."""
LOOKED_AT_ONCE = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3"})
"""Model types that take pictures, whose tokens attend to what came before as those of text do."""
LINEARS = frozenset(
    {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"}
    | {"gate_proj", "up_proj", "gate_up_proj", "down_proj"}
)
ACTIVATIONS = frozenset({"silu", "swish", "gelu_pytorch_tanh"})


def refusal(config: Config, model: Mapping[str, Any], adapter: Mapping[str, Any] | None = None) -> Message:
    """Why the packed engine does not take a run; empty where it does. An empty `model` is one that nobody knows yet."""
    if PACKED not in config.kind.engines:
        return message("engine.kind", label=config.kind.label)
    for code, holds in _RULES.items():
        if holds(config):
            return message(code, **{name: getattr(config, name) for name in _NAMED.get(code, ())})
    if takes_pictures(model) and not (config.freeze_vision_tower and config.freeze_multi_modal_projector):
        return message("engine.looks")
    if not config.kind.needs_reference and any(model.get(name) for name in _DROPOUTS):
        return message("engine.attention_dropout")
    return adapter_refusal(adapter or {}) or model_refusal(model)


def _has_no_loss(config: Config) -> bool:
    names = config.pref_loss.split(",")
    own = set(config.kind.losses) - ONLY_TRL
    return bool(own) and (len(names) != 1 or names[0] not in own)


def compares(config: Config) -> bool:
    """Whether the loss compares the model with a reference."""
    return config.kind.needs_reference and not (config.kind.losses and config.pref_loss in WITHOUT_REFERENCE)


def goes_on(config: Config) -> bool:
    """Whether an adapter is gone on with, rather than a fresh one begun."""
    return bool(config.adapter_name_or_path) and not config.create_new_adapter


def grows(config: Config) -> bool:
    """Whether the model gets room for new tokens."""
    added = config.add_tokens or config.add_special_tokens or config.new_special_tokens_config
    return bool(config.resize_vocab or added)


OPTIMIZERS = frozenset(
    {"adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop", "adagrad"}
    | {"adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit"}
)
"""Optimizers that take gradients from the parameters, as packed rows leave them there."""
_OWN_OPTIMIZERS = ("use_badam", "use_adam_mini", "use_muon", "use_galore", "use_apollo")
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")
"""Dropout of attention by a model's own description, which packed attention does not have. Where answers are compared
with a reference, it is off in any engine."""

_RULES: dict[str, Callable[[Config], object]] = {
    "engine.asked": lambda c: c.engine == TRL,
    "engine.streamed": lambda c: c.streaming and compares(c),
    "engine.losses": _has_no_loss,
    "engine.token_loss": lambda c: (
        c.kind.learns_tokens and (c.label_smoothing_factor or c.use_eaft_loss or c.use_asft_loss)
    ),
    "engine.method": lambda c: c.finetuning_type == "oft" or (c.finetuning_type != "lora" and compares(c)),
    "engine.continued": lambda c: goes_on(c) and compares(c),
    "engine.pissa": lambda c: c.pissa_init and not goes_on(c) and compares(c),
    "engine.optim": lambda c: c.optim not in OPTIMIZERS,
    "engine.own_optimizer": lambda c: any(getattr(c, name) for name in _OWN_OPTIMIZERS),
    "engine.reference": lambda c: not c.kind.rewarded and (c.ref_model or c.ref_model_adapters),
    "engine.fp16": lambda c: c.fp16,
    "engine.sharded": lambda c: c.sharded,
    "engine.running_mean": lambda c: c.processes > 1 and c.pref_bco_weight > 1e-6,
    "engine.balance": lambda c: c.moe_aux_loss_coef,
    "engine.neftune": lambda c: c.neftune_noise_alpha,
    "engine.quantized": lambda c: c.quantization_bit and c.quantization_method != "bnb",
    "engine.whole_modules": lambda c: not goes_on(c) and compares(c) and (c.additional_target or grows(c)),
}
"""Codes of text/ with the configs they speak of."""
_NAMED = {"engine.method": ("finetuning_type",), "engine.optim": ("optim",)}


def adapter_refusal(adapter: Mapping[str, Any]) -> Message:
    """The same of an adapter's own settings."""
    return message("engine.adapter") if adapter.get("peft_type", "LORA") != "LORA" else Message()


def model_refusal(model: Mapping[str, Any]) -> Message:
    """The same of a model's config.json."""
    if any(model.get(name) is not None for name in ("vision_config", "audio_config")):
        if model.get("model_type") not in LOOKED_AT_ONCE:
            return message("engine.more_than_text")
        return model_refusal(language_config(model))
    if (model.get("quantization_config") or {}).get("quant_method", "bitsandbytes") != "bitsandbytes":
        return message("engine.quantized")
    if kind := next((kind for kind in _ropes(model) if kind in ("dynamic", "longrope")), ""):
        return message("engine.rotary", kind=kind)
    if model.get("use_bidirectional_attention") or model.get("is_causal") is False:
        return message("engine.attention")
    return Message() if model.get("model_type") in WRITTEN_OUT | LEGACY else _decoder_refusal(model)


def _ropes(model: Mapping[str, Any]) -> Iterator[str]:
    """The kinds of rotary embedding that a model has; those with layers of several types list one for each."""
    rope = model.get("rope_scaling") or model.get("rope_parameters") or {}
    for one in [rope, *(part for part in rope.values() if isinstance(part, Mapping))]:
        yield str(one.get("rope_type", one.get("type", "default")))


def _decoder_refusal(model: Mapping[str, Any]) -> Message:
    """For models outside the Llama family: plain causal attention that an attention function may replace."""
    if model.get("is_encoder_decoder"):
        return message("engine.no_decoder")
    if any(model.get(n) for n in ("logit_scale", "logits_scaling")):
        return message("engine.logits")
    if model.get("kv_lora_rank") or model.get("model_type") in SINKS:
        return message("engine.attention")
    if not set(model.get("layer_types") or ()) <= {"full_attention", "sliding_attention"} or any(
        model.get(n)
        for n in ("block_types", "layers_block_type")  # of recurrent layers, by their older names
    ):
        return message("engine.attention")
    return Message()


_LAYER_DROPOUTS = ("resid_pdrop", "embd_pdrop", "residual_dropout")
_USUAL_ACTIVATION = {"gemma": "gelu_pytorch_tanh"}
"""What transformers takes where a config.json names none."""

SINKS = frozenset({"gpt_oss"})
"""Model types whose attention has a place for what attends to nothing, which packed attention does not have."""
HEAD_SIZES = (16, 32, 64, 128, 256)
"""Sizes of attention heads that the packed engine's kernels take on a GPU."""


def written_out(
    config: Config, model: Mapping[str, Any], on_gpu: bool, adapter: Mapping[str, Any] | None = None
) -> bool:
    """Whether the packed engine runs the model by its own layers, and not by the model's through autograd."""
    if model.get("model_type") in LOOKED_AT_ONCE:
        model = language_config(model)
    kind = str(model.get("model_type"))
    if on_gpu and _head_size(model) not in HEAD_SIZES:
        return False
    if config.finetuning_type != "lora" or not _plain(config, adapter or {}):
        return False
    named = None if kind == "gemma" else model.get("hidden_activation")  # Gemma itself takes the other one
    activation = named or model.get("hidden_act") or _USUAL_ACTIVATION.get(kind)
    plain = (activation or "silu") in ACTIVATIONS and not config.upcast_layernorm
    plain = plain and not any(model.get(name) for name in _LAYER_DROPOUTS)
    named = config.lora_target == ("all",) or {n.rsplit(".", 1)[-1] for n in config.lora_target} <= LINEARS
    return plain and named and kind in WRITTEN_OUT | LEGACY


def _plain(config: Config, adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter is LoRA on linears without dropout and nothing beside it."""
    if goes_on(config):
        return not any(adapter.get(name) for name in ("use_dora", "lora_dropout", "modules_to_save"))
    return not (config.use_dora or config.lora_dropout or config.additional_target or grows(config))


def _head_size(model: Mapping[str, Any]) -> int:
    return int(
        model.get("head_dim") or model.get("hidden_size", 0) // (model.get("num_attention_heads") or 1)
    )

"""How the first Qwen's and InternLM2's parameters and configs map onto Qwen2ForCausalLM and LlamaForCausalLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from tuner.config.models import LegacyKind
from tuner.text.lookup import tr


@dataclass(frozen=True)
class Layout:
    """How one legacy format maps onto a native class."""

    architecture: str
    config: Callable[[dict[str, Any]], PretrainedConfig]
    names: Mapping[str, str]
    layer: re.Pattern[str]
    layer_names: Mapping[str, str]
    fused: str
    split: Callable[[Tensor, PretrainedConfig], tuple[Tensor, Tensor, Tensor]]
    dropped: re.Pattern[str]


class UnfitError(Exception):
    """A checkpoint outside what the conversion was verified for; the text completes 'cannot be converted: ...'."""


def _qwen_config(source: dict[str, Any]) -> Qwen2Config:
    heads, hidden = source["num_attention_heads"], source["hidden_size"]
    require(source.get("rotary_pct", 1.0) == 1.0, tr("it rotates only a part of each head (rotary_pct)"))
    require(source["kv_channels"] * heads == hidden, tr("kv_channels times heads is not its hidden size"))
    require(source.get("no_bias", True), tr("its linear layers have biases (no_bias false)"))
    require(not source.get("emb_dropout_prob"), tr("it drops embeddings (emb_dropout_prob)"))
    require(source.get("scale_attn_weights", True), tr("it does not scale attention weights"))
    _check_plain(source)
    return Qwen2Config(
        vocab_size=source["vocab_size"],
        hidden_size=hidden,
        intermediate_size=source["intermediate_size"] // 2,  # counts w1 and w2 together
        num_hidden_layers=source["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        # Beyond it the original changes its rope and query scale in evaluation; no native class does that.
        max_position_embeddings=source["seq_length"],
        rms_norm_eps=source["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": source["rotary_emb_base"]},
        attention_dropout=source.get("attn_dropout_prob", 0.0),
        initializer_range=source.get("initializer_range", 0.02),
        use_sliding_window=False,
        sliding_window=None,
        tie_word_embeddings=False,
    )


def _internlm2_config(source: dict[str, Any]) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": source["rope_theta"]}
    scaling = source.get("rope_scaling")
    if scaling:
        kind = scaling.get("type") or scaling.get("rope_type")
        require(
            kind in ("dynamic", "linear"),
            tr('its rope scaling "{kind}" is neither dynamic nor linear', kind=kind),
        )
        rope |= {"rope_type": kind, "factor": float(scaling["factor"])}
    require(source.get("hidden_act", "silu") == "silu", tr("its activation is not silu"))
    _check_plain(source)
    return LlamaConfig(
        vocab_size=source["vocab_size"],
        hidden_size=source["hidden_size"],
        intermediate_size=source["intermediate_size"],
        num_hidden_layers=source["num_hidden_layers"],
        num_attention_heads=source["num_attention_heads"],
        num_key_value_heads=source.get("num_key_value_heads") or source["num_attention_heads"],
        max_position_embeddings=source["max_position_embeddings"],
        rms_norm_eps=source["rms_norm_eps"],
        rope_parameters=rope,
        attention_bias=source.get("bias", True),  # the original class's default
        initializer_range=source.get("initializer_range", 0.02),
        bos_token_id=source.get("bos_token_id", 1),
        eos_token_id=source.get("eos_token_id", 2),
        pad_token_id=source.get("pad_token_id", 2),
        tie_word_embeddings=False,
    )


def _check_plain(source: dict[str, Any]) -> None:
    require(not source.get("tie_word_embeddings"), tr("it ties its embeddings"))
    require("quantization_config" not in source, tr("it is quantized; take the release in bf16 or fp16"))


def require(holds: bool, reason: str) -> None:
    if not holds:
        raise UnfitError(reason)


def _split_contiguous(fused: Tensor, config: PretrainedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """c_attn [3 * hidden, ...] -> q, k, v."""
    q, k, v = fused.chunk(3, dim=0)
    return q, k, v


def _split_grouped(fused: Tensor, config: PretrainedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """wqkv [(heads + 2 * kv_heads) * head_dim, ...] -> q, k, v; per kv head its query heads, then k, then v."""
    rest = fused.shape[1:]
    size = config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // config.num_key_value_heads
    groups = fused.view(config.num_key_value_heads, queries + 2, size, *rest)
    q, k, v = groups[:, :queries], groups[:, -2], groups[:, -1]
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)


LAYOUTS: dict[LegacyKind, Layout] = {
    "qwen": Layout(
        architecture="Qwen2ForCausalLM",
        config=_qwen_config,
        names={
            "transformer.wte.weight": "model.embed_tokens.weight",
            "transformer.ln_f.weight": "model.norm.weight",
            "lm_head.weight": "lm_head.weight",
        },
        layer=re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<leaf>weight|bias)"),
        layer_names={
            "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm",
            "attn.c_proj": "self_attn.o_proj",
            "mlp.w1": "mlp.up_proj",  # c_proj(w1(x) * silu(w2(x))): the activated one is w2
            "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj",
        },
        fused="attn.c_attn",
        split=_split_contiguous,
        dropped=re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|logn_tensor)$"),
    ),
    "internlm2": Layout(
        architecture="LlamaForCausalLM",
        config=_internlm2_config,
        names={
            "model.tok_embeddings.weight": "model.embed_tokens.weight",
            "model.norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        },
        layer=re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<leaf>weight|bias)"),
        layer_names={
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",  # w2(silu(w1(x)) * w3(x))
            "feed_forward.w3": "mlp.up_proj",
            "feed_forward.w2": "mlp.down_proj",
        },
        fused="attention.wqkv",
        split=_split_grouped,
        dropped=re.compile(r"\.rotary_emb\.inv_freq$"),
    ),
}

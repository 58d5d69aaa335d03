"""The parts of a decoder layer by what they do: one description for every family whose layers are written out.

A layer is x + after(attention(before x)), and then x + after(mlp(before x)); what differs between families is which norms
there are, how heads are normed and turned, the activation, and what attention does with its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tuner.engine.packed.rows import AttentionRule
from tuner.models.llama_family import Norm, base_of

PLACES = ("before_attention", "after_attention", "before_mlp", "after_mlp")
_USUAL = ("input_layernorm", None, "post_attention_layernorm", None)
_FOUR = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_BEHIND = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_AROUND = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
NORMS: dict[str, tuple[str | None, ...]] = {
    "llama": _USUAL, "mistral": _USUAL, "qwen2": _USUAL, "qwen3": _USUAL, "gemma": _USUAL, "gemma2": _FOUR,
    "gemma3_text": _FOUR, "phi3": _USUAL, "glm": _USUAL, "glm4": _AROUND, "olmo2": _BEHIND, "olmo3": _BEHIND,
    "smollm3": _USUAL, "seed_oss": _USUAL, "qwen2_vl_text": _USUAL, "qwen2_5_vl_text": _USUAL, "qwen3_vl_text": _USUAL,
}  # fmt: skip
"""Norms before and behind attention, before and behind the MLP, by model type."""
INTERLEAVED = frozenset({"glm", "glm4"})
"""Types that turn neighbouring numbers of a head, not one of each half."""
ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu"}
"""Kernel by the activation's name in transformers."""


def norm_of(module: Any) -> Norm | None:
    """RMSNorm as the kernels take it; Gemma's weight is what is added to one."""
    if module is None:
        return None
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    weight = module.weight.data
    return Norm(1.0 + weight.float() if type(module).__name__.startswith("Gemma") else weight, float(eps))


@dataclass(frozen=True)
class Form:
    """A decoder layer's parts. `turns` says whether queries and keys are rotated, `kind` which rotary embedding is its."""

    qkv: Sequence[nn.Module]
    o: nn.Module
    gate_up: Sequence[nn.Module]
    down: nn.Module
    head_norms: tuple[Norm, Norm] | None
    whole_norm: bool
    activation: str
    rule: AttentionRule
    head_size: int
    q_heads: int
    k_heads: int
    turns: bool
    interleaved: bool
    kind: str
    before_attention: Norm | None = None
    after_attention: Norm | None = None
    before_mlp: Norm | None = None
    after_mlp: Norm | None = None


def linears(layer: Any) -> tuple[list[nn.Module], ...]:
    """The linears that read the same: queries, keys and values; attention's output; gate and up; down."""
    a, m = layer.self_attn, layer.mlp
    qkv = [a.qkv_proj] if hasattr(a, "qkv_proj") else [a.q_proj, a.k_proj, a.v_proj]
    gate_up = [m.gate_up_proj] if hasattr(m, "gate_up_proj") else [m.gate_proj, m.up_proj]
    return qkv, [a.o_proj], gate_up, [m.down_proj]


def activation_of(config: Any) -> str:
    """The name of a model's activation, as its config has it; Gemma's first generation reads no `hidden_activation`."""
    named = None if config.model_type == "gemma" else getattr(config, "hidden_activation", None)
    return str(named or getattr(config, "hidden_act", None) or "silu")


def form_of(layer: Any, config: Any) -> Form:
    """The parts of a layer of a model whose config says `model_type`, one of NORMS."""
    a = layer.self_attn
    qkv, (o,), gate_up, (down,) = linears(layer)
    norms = dict(zip(PLACES, NORMS[config.model_type], strict=True))
    size = int(a.head_dim)
    q_heads = base_of(o).in_features // size
    kind = str(getattr(a, "layer_type", None) or getattr(a, "attention_type", None) or "")
    return Form(
        qkv,
        o,
        gate_up,
        down,
        **{place: norm_of(getattr(layer, name) if name else None) for place, name in norms.items()},
        head_norms=_head_norms(a),
        whole_norm=config.model_type.startswith("olmo"),
        activation=ACTIVATIONS[activation_of(config)],
        rule=AttentionRule(float(a.scaling), getattr(a, "attn_logit_softcapping", None), _window(a, config)),
        head_size=size,
        q_heads=q_heads,
        k_heads=(sum(base_of(part).out_features for part in qkv) // size - q_heads) // 2,
        turns=bool(getattr(a, "use_rope", True)),
        interleaved=config.model_type in INTERLEAVED,
        kind=kind,
    )


def _head_norms(attention: Any) -> tuple[Norm, Norm] | None:
    q, k = (norm_of(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
    return None if q is None or k is None else (q, k)


def _window(attention: Any, config: Any) -> int | None:
    """Tokens that a layer sees, itself among them; None for all. Mistral's and Phi-3's layers know none of their own and
    hand their model's on."""
    size = getattr(attention if hasattr(attention, "sliding_window") else config, "sliding_window", None)
    return int(size) if size else None

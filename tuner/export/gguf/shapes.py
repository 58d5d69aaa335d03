"""The model shapes that can be written as GGUF: what llama.cpp calls them, and what each of them asks for.

Whatever it computes otherwise than transformers is refused here, in a sentence, instead of being written down wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from tuner.config.knobs import ConfigError, Problem
from tuner.text.lookup import tr
from tuner.text.message import Message, message


@dataclass(frozen=True)
class Shape:
    """One of them. `pairs` says that it turns neighbouring rows of q and k together, where transformers turns halves;
    `norms` is what its norms' weights are stored without; `activation` is the only one it has."""

    arch: MODEL_ARCH
    pairs: bool = False
    norms: float = 0.0
    activation: str = "silu"
    windows: int = 0
    """One layer in so many reads everything, the others a window; 0 where all layers read everything."""


SHAPES = {
    "llama": Shape(MODEL_ARCH.LLAMA, pairs=True),
    "mistral": Shape(MODEL_ARCH.LLAMA, pairs=True),
    "qwen2": Shape(MODEL_ARCH.QWEN2),
    "qwen3": Shape(MODEL_ARCH.QWEN3),
    "gemma": Shape(MODEL_ARCH.GEMMA, norms=1.0, activation="gelu_pytorch_tanh"),
    "gemma2": Shape(MODEL_ARCH.GEMMA2, norms=1.0, activation="gelu_pytorch_tanh", windows=2),
    "gemma3_text": Shape(MODEL_ARCH.GEMMA3, norms=1.0, activation="gelu_pytorch_tanh", windows=6),
    "phi3": Shape(MODEL_ARCH.PHI3),
}


def refuse(why: str) -> ConfigError:
    """That this model cannot be GGUF, and what to do instead."""
    sentence = tr("This model cannot be written as GGUF: {why}; use --export_format merged.", why=why)
    return ConfigError([Problem("export_format", sentence, {"export_format": "merged"})])


def shape_of(config: Any) -> Shape:
    """The shape of a model with this configuration of transformers'. Raises ConfigError where there is none."""
    shape = SHAPES.get(config.model_type)
    if shape is None:
        known = ", ".join(SHAPES)
        raise refuse(
            tr("its shape is {kind}, and those known are {known}", kind=config.model_type, known=known)
        )
    for differs, why in _differences(config, shape):
        if differs:
            raise refuse(why)
    return shape


def _differences(config: Any, shape: Shape) -> list[tuple[bool, str]]:
    """What llama.cpp would compute otherwise, each with the reason."""
    layers = getattr(config, "layer_types", None) or []
    windows = [kind == "sliding_attention" for kind in layers]
    wanted = [bool(shape.windows) and bool((i + 1) % shape.windows) for i in range(len(layers))]
    rope = _ropes(config)[0]
    return [
        (_activation(config) != shape.activation, tr("llama.cpp knows {known} here, and it has {found}", known=shape.activation, found=_activation(config))),
        (windows != wanted, tr("its layers with a sliding window are not where llama.cpp expects them")),
        (bool(getattr(config, "mlp_bias", False)), tr("its feed-forward layers have biases")),
        (bool(getattr(config, "attention_bias", False)) and shape.arch is not MODEL_ARCH.LLAMA, tr("its attention has biases")),
        (bool(getattr(config, "use_bidirectional_attention", False)), tr("it reads in both directions")),
        (_scale(config, shape) != getattr(config, "query_pre_attn_scalar", None), tr("its attention is scaled in its own way")),
        (rope["rope_type"] not in SCALING, tr("positions stretched by {kind} are not known", kind=rope["rope_type"])),
        (shape.arch is not ONLY.get(rope["rope_type"], shape.arch), tr("only another shape stretches positions by {kind}", kind=rope["rope_type"])),
    ]  # fmt: skip


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


def _scale(config: Any, shape: Shape) -> float | None:
    """The number of which llama.cpp takes the root; None where the shape has no knob for it."""
    if not hasattr(config, "query_pre_attn_scalar"):
        return None
    largest = {MODEL_ARCH.GEMMA2: 46, MODEL_ARCH.GEMMA3: 62}.get(shape.arch)
    if config.num_hidden_layers == largest:  # the 27B of each has a rule of its own, told by its depth
        return float(config.hidden_size / config.num_attention_heads)
    return float(head_dim(config))


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _ropes(config: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """How positions turn: in the layers that read everything, and in those with a window where that differs."""
    rope = config.rope_parameters
    return (rope["full_attention"], rope["sliding_attention"]) if "full_attention" in rope else (rope, None)


def describe(writer: GGUFWriter, config: Any, shape: Shape) -> list[Message]:
    """Write down what the model looks like. The messages are what its user should know."""
    rope, windowed = _ropes(config)
    turned = int(head_dim(config) * (rope.get("partial_rotary_factor") or 1.0))
    context, said = _context(config, shape)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    SCALING[rope["rope_type"]](writer, rope, config)
    if windowed:
        writer.add_rope_freq_base_swa(float(windowed["rope_theta"]))
    if shape.windows:
        writer.add_sliding_window(config.sliding_window)
    if cap := getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(cap)
    if cap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(cap)
    if rope["rope_type"] == "longrope":
        said = [*said, message("note.gguf_longrope", before=_before(rope, config))]
    return said


def _context(config: Any, shape: Shape) -> tuple[int, list[Message]]:
    """How many tokens the file says the model reads: no more than its window, where llama.cpp has none for it."""
    window = getattr(config, "sliding_window", None)
    longest = int(config.max_position_embeddings)
    if shape.windows or not window or window >= longest:
        return longest, []
    return int(window), [message("note.gguf_window", window=window, longest=longest)]


def _plain(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    """Positions as the model was made."""


def _linear(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(float(rope["factor"]))


def _yarn(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    own = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None}
    if changed := [name for name, usual in own.items() if rope.get(name) not in (None, usual)]:
        raise refuse(
            tr("its positions are stretched by yarn with {names} of its own", names=", ".join(changed))
        )
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(_before(rope, config))


def _longrope(writer: GGUFWriter, rope: dict[str, Any], config: Any) -> None:
    """Two tensors have the factors; what attention is scaled by for it is reckoned as transformers does."""
    before = _before(rope, config)
    factor = rope.get("factor") or config.max_position_embeddings / before
    scale = rope.get("attention_factor") or (
        1 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(before))
    )
    writer.add_rope_scaling_orig_ctx_len(before)
    writer.add_rope_scaling_attn_factors(float(scale))


def _before(rope: dict[str, Any], config: Any) -> int:
    """How long texts were before positions were stretched."""
    own = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return int(own or config.max_position_embeddings)


SCALING: dict[str, Callable[[GGUFWriter, dict[str, Any], Any], None]] = {
    "default": _plain,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _plain,  # a tensor of factors says it, see weights.py
    "longrope": _longrope,
}
ONLY = {"llama3": MODEL_ARCH.LLAMA, "longrope": MODEL_ARCH.PHI3}
"""The one shape for which llama.cpp reads factors of this kind."""

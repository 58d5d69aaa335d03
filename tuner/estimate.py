"""Sizes before anything is loaded: what a run needs in memory, from its config and the numbers of its model.

Pure functions of numbers; no torch. All sizes are bytes. The packed engine's formulas follow
`tuner/engine/packed/layers.py`, which keeps a known list of tensors per layer; those of TRL's trainers what autograd
keeps of a transformers decoder. tests/test_estimate.py holds both to counted tensors and to peaks measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tuner.config.config import Config

"""Stages whose examples are two sequences."""
SHARE = 0.45
"""Of free memory the packed engine plans for: eager rows and captured graphs each hold a row's activations."""
CPU_TOKENS, SMALL_TOKENS = 4096, 2048
"""Tokens of a packed row on a CPU, and with the memory preset."""
SMALL_LOGITS, LOGITS = 64 << 20, 512 << 20
"""Bytes of logits that a packed row holds at a time: with the memory preset or on a CPU, and otherwise."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a Llama-family decoder that sizes depend on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    tied: bool = False
    normed_heads: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the fields of a transformers config.json; raises KeyError naming a field that is missing."""
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return cls(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]) // (2 if config.get("model_type") == "qwen" else 1),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            normed_heads=config.get("model_type") == "qwen3",
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the seven linears of a layer."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }

    @property
    def parameters(self) -> int:
        """Weights of the base model (norms left out: they are under a ten-thousandth)."""
        layer = sum(n * k for n, k in self.linears.values())
        return self.layers * layer + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int, targets: Sequence[str] = ("all",)) -> int:
        """LoRA of this rank on the linears named, all seven where none of them is."""
        named = [size for name, size in self.linears.items() if name in targets] or self.linears.values()
        return self.layers * sum(rank * (n + k) for n, k in named)


@dataclass(frozen=True)
class Memory:
    """Bytes on the device during a step, by what they hold."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def packed_memory(
    shape: ModelShape,
    *,
    tokens: int,
    scored: int,
    rank: int = 8,
    recompute: int = 0,
    weight_bytes: int = 2,
    logits_bytes: int = LOGITS,
) -> Memory:
    """A training row of `tokens` tokens, `scored` of them predicted, `recompute` layers recomputed.

    Adapters, their gradients and Adam's two moments are float32; the weights are widened by the columns
    that hold the adapters (see `tuner/engine/packed/lora.py`).
    """
    adapters = 4 * shape.lora_parameters(rank)
    widened = shape.layers * sum(n * _widening(rank, name) for name, (n, _) in shape.linears.items())
    chunk = min(logits_bytes, scored * shape.vocab * weight_bytes)
    return Memory(
        weights=weight_bytes * (shape.parameters + widened),
        adapters=adapters,
        gradients=adapters,
        optimizer=2 * adapters,
        activations=_activations(shape, tokens, recompute, weight_bytes),
        logits=chunk + 3 * scored * shape.hidden * weight_bytes,
    )


def _widening(rank: int, name: str) -> int:
    """Extra columns of a linear's compute matrix: the ranks of its group, rounded up to 32."""
    together = 3 if name in ("q_proj", "k_proj", "v_proj") else 2 if name in ("gate_proj", "up_proj") else 1
    return -(-together * rank // 32) * 32


def layer_activations(shape: ModelShape, weight_bytes: int = 2) -> int:
    """Bytes per token that one layer keeps for its backward pass."""
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    numbers = 4 * shape.hidden + q + 2 * kv + q + 3 * shape.ffn + (q + kv if shape.normed_heads else 0)
    return weight_bytes * numbers + 4 * (shape.heads + 2)


def _activations(shape: ModelShape, tokens: int, recompute: int, weight_bytes: int) -> int:
    kept = shape.layers - recompute
    layer = layer_activations(shape, weight_bytes)
    # while a layer runs backward: its own tensors if they are recomputed, and the gradients of its widest
    # part
    working = weight_bytes * (3 * shape.ffn + 3 * shape.hidden) + (layer if recompute else 0)
    return tokens * (kept * layer + recompute * weight_bytes * shape.hidden + working)


def packed_plan(
    shape: ModelShape,
    free: int,
    *,
    rank: int = 8,
    weight_bytes: int = 2,
    logits_bytes: int = LOGITS,
    wanted: int = 4096,
    most: int = 16384,
) -> tuple[int, int]:
    """(token budget of a row, layers recomputed) for `free` bytes beside the loaded weights.

    Keeps every activation if rows of `wanted` tokens fit; else recomputes half of the layers, else all.
    """
    for recompute in (0, shape.layers // 2, shape.layers):
        at_one, at_many = (
            packed_memory(
                shape,
                tokens=tokens,
                scored=tokens // 2,
                rank=rank,
                recompute=recompute,
                weight_bytes=weight_bytes,
                logits_bytes=logits_bytes,
            )
            for tokens in (0, 1 << 14)
        )
        fixed = at_one.total - at_one.weights + min(logits_bytes, free // 4)
        per_token = (at_many.activations + at_many.logits - min(logits_bytes, at_many.logits)) / (1 << 14)
        budget = int((free - fixed) / per_token) // 256 * 256
        if budget >= wanted:
            return min(budget, most), recompute
    return max(budget, 512), shape.layers


# --- a whole run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of a set's examples, prompt and all answers together: mean, standard deviation, the longest."""

    mean: float
    deviation: float
    longest: int


def run_memory(config: Config, shape: ModelShape, lengths: Lengths, free: int) -> Memory:
    """What a run holds at its peak on each device. `free` is what the device has free, 0 for a CPU."""
    trained, width = _trained(config, shape), 2 if config.pure_bf16 else 4
    packed = takes_packed(config)
    steps = (
        _packed_step(config, shape, lengths, free)
        if packed
        else _padded_step(config, shape, lengths, on_gpu=free > 0)
    )
    return replace(
        steps,
        weights=_weights(config, shape) + (steps.weights if packed else 0),
        adapters=0 if _whole(config) else trained * width,
        gradients=trained * width,
        optimizer=int(trained * _optimizer_bytes(config.optim, width)),
    )


def takes_packed(config: Config) -> bool:
    """Whether the packed engine will likely take the run; it decides for itself once it sees the model."""
    plain = config.finetuning_type == "lora" and not (config.use_dora or config.lora_dropout or config.fp16)
    alone = not (config.quantization_bit or config.ref_model or config.streaming)
    return "packed" in config.kind.engines and config.engine != "trl" and plain and alone


def _whole(config: Config) -> bool:
    return config.finetuning_type in ("full", "freeze")


def _half(config: Config) -> bool:
    return bool(config.bf16 or config.fp16 or config.pure_bf16)


def _trained(config: Config, shape: ModelShape) -> int:
    """How many numbers are trained."""
    if config.finetuning_type == "full":
        return shape.parameters
    layer = sum(n * k for n, k in shape.linears.values())
    if config.finetuning_type == "freeze":
        return min(shape.layers, abs(int(config.freeze_trainable_layers))) * layer
    if config.finetuning_type == "oft":
        return (
            shape.layers * sum(k for _, k in shape.linears.values()) * max(1, int(config.oft_block_size)) // 2
        )
    whole = sum(name in config.additional_target for name in ("embed_tokens", "lm_head"))
    return shape.lora_parameters(config.lora_rank, config.lora_target) + whole * shape.vocab * shape.hidden


def _weights(config: Config, shape: ModelShape) -> int:
    """The base model, and a second one where a whole model is compared with what it was."""
    kept = 2 if _half(config) else 4
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    inner = shape.parameters - embeddings
    per_number = {4: 0.56, 8: 1.0}.get(config.quantization_bit or 0, float(kept))  # 4 bits and their scales
    frozen = int(inner * per_number) + embeddings * kept
    if not _whole(config):
        return frozen
    own = shape.parameters * (2 if config.pure_bf16 else 4)
    return own + (frozen if config.kind.needs_reference else 0)


def _optimizer_bytes(name: str, width: int) -> float:
    """Bytes of optimizer state for each trained number, by what the optimizer's name tells of it."""
    if "adafactor" in name or name.startswith("sgd"):
        return 0
    moments = 1 if any(part in name for part in ("lion", "muon", "rmsprop", "adagrad")) else 2
    small = 1 if "8bit" in name else 0.5 if "4bit" in name else width
    return moments * small


def _packed_step(config: Config, shape: ModelShape, lengths: Lengths, free: int) -> Memory:
    """The packed engine's row of a step; of its `weights` only the columns that the adapters add.

    The row that counts is the longest size that rows are padded to, the largest of 512 steps that were drawn
    (`engine/packed/levels.py`): 3 standard deviations above the mean.
    """
    examples = config.per_device_train_batch_size * config.gradient_accumulation_steps
    wanted = int(examples * lengths.mean + 3 * examples**0.5 * lengths.deviation)
    wanted = min(wanted, examples * 2 * config.cutoff_len)
    width, logits = 2 if _half(config) else 4, LOGITS
    if config.engine_preset == "memory":
        budget, recompute, logits = SMALL_TOKENS, shape.layers, SMALL_LOGITS
    elif free:
        beside = max(0, int(SHARE * (free - _weights(config, shape))))
        budget, recompute = packed_plan(shape, beside, rank=config.lora_rank, weight_bytes=width)
    else:
        budget, recompute, logits = CPU_TOKENS, 0, SMALL_LOGITS
    tokens = min(config.engine_token_budget or budget, wanted)
    step = packed_memory(
        shape,
        tokens=tokens,
        scored=tokens // 2,
        rank=config.lora_rank,
        recompute=recompute,
        weight_bytes=width,
        logits_bytes=logits,
    )
    return replace(step, weights=step.weights - width * shape.parameters)


def _padded_step(config: Config, shape: ModelShape, lengths: Lengths, on_gpu: bool) -> Memory:
    """A micro-batch of TRL's trainers, as long as its longest example; logits are made in pieces of 256 tokens."""
    packing = config.packing and config.kind.learns_tokens
    each = config.cutoff_len if packing else min(config.cutoff_len, lengths.longest)
    tokens = config.per_device_train_batch_size * (2 if config.kind.rows == "pairs" else 1) * each
    layer, width = (
        autograd_activations(shape, half=_half(config), whole=_whole(config)),
        2 if _half(config) else 4,
    )
    kept = shape.layers * layer
    if _recomputes(config, on_gpu):
        kept = shape.layers * width * shape.hidden + layer
    logits = 0 if config.kind.scores else min(tokens, 256) * shape.vocab * 12
    return Memory(0, 0, 0, 0, tokens * kept, logits)


def _recomputes(config: Config, on_gpu: bool) -> bool:
    if config.gradient_checkpointing is not None:
        return bool(config.gradient_checkpointing)
    return on_gpu and not config.disable_gradient_checkpointing


def autograd_activations(shape: ModelShape, *, half: bool, whole: bool) -> int:
    """Bytes per token that autograd keeps of one decoder layer of transformers with SDPA attention: with all weights
    trained (`whole`) or LoRA on all linears, under bf16 autocast (`half`) or in float32."""
    kv = shape.kv_heads * shape.head_size
    if whole:
        return (
            46 * shape.hidden + 6 * kv + 10 * shape.ffn
            if half
            else 32 * shape.hidden + 8 * kv + 16 * shape.ffn
        )
    return 25 * shape.hidden + 4 * kv + 8 * shape.ffn if half else 24 * shape.hidden + 8 * kv + 16 * shape.ffn

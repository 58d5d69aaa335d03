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
from tuner.data.encode import packs
from tuner.plan.engine import goes_on, grows

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


def packed_rows(
    shape: ModelShape,
    free: int,
    *,
    rank: int = 8,
    weight_bytes: int = 2,
    recompute: int | None = None,
    wanted: int = 4096,
    most: int = 16384,
) -> tuple[int, int]:
    """(token budget of a row, layers recomputed) for `free` bytes beside the loaded weights.

    Keeps every activation if rows of `wanted` tokens fit; else recomputes half of the layers, else all; or as many as
    `recompute` says.
    """
    choices = (0, shape.layers // 2, shape.layers) if recompute is None else (recompute,)
    for layers in choices:
        budget = _budget(shape, free, rank, weight_bytes, layers)
        if budget >= wanted:
            return min(budget, most), layers
    return max(budget, 512), choices[-1]


def _budget(shape: ModelShape, free: int, rank: int, weight_bytes: int, recompute: int) -> int:
    at_one, at_many = (
        packed_memory(
            shape, tokens=n, scored=n // 2, rank=rank, recompute=recompute, weight_bytes=weight_bytes
        )
        for n in (0, 1 << 14)
    )
    fixed = at_one.total - at_one.weights + min(LOGITS, free // 4)
    per_token = (at_many.activations + at_many.logits - min(LOGITS, at_many.logits)) / (1 << 14)
    return int((free - fixed) / per_token) // 256 * 256


@dataclass(frozen=True)
class RowBudget:
    """How the packed engine uses memory: tokens of a training row and of a reference row, recomputed layers, bytes of
    logits held at a time."""

    token_budget: int
    reference_budget: int
    recompute: int
    layers: int
    logits_bytes: int

    def __str__(self) -> str:
        return (
            f"at most {self.token_budget} tokens a row, {self.recompute} of {self.layers} layers recomputed"
        )


def row_budget(
    shape: ModelShape | None,
    layers: int,
    *,
    on_gpu: bool,
    free: int,
    preset: str = "speed",
    token_budget: int | None = None,
    recompute: int | None = None,
    rank: int = 8,
    weight_bytes: int = 2,
) -> RowBudget:
    """The rows of a model with `layers` layers on a device with `free` bytes beside its weights; `token_budget` and
    `recompute` win over what memory allows. `shape` is None for a decoder with other names, whose layers run through
    autograd, which keeps more."""
    logits = LOGITS if on_gpu and preset != "memory" else SMALL_LOGITS
    if preset == "memory":
        tokens, again = SMALL_TOKENS, layers
    elif not on_gpu or shape is None:
        tokens, again = CPU_TOKENS, 0
    else:
        share = max(0, int(SHARE * free))
        tokens, again = packed_rows(shape, share, rank=rank, weight_bytes=weight_bytes, recompute=recompute)
    reference = min(4 * tokens, 8192)  # nothing is kept for a backward pass
    return RowBudget(
        token_budget or tokens,
        token_budget or reference,
        again if recompute is None else recompute,
        layers,
        logits,
    )


def holds(budget: RowBudget, shape: ModelShape, free: int, rank: int = 8, weight_bytes: int = 2) -> bool:
    """Whether a row of this size fits twice, eager and captured in a graph, into `free` bytes beside the weights."""
    needed = packed_memory(
        shape,
        tokens=budget.token_budget,
        scored=budget.token_budget // 2,
        rank=rank,
        recompute=budget.recompute,
        weight_bytes=weight_bytes,
        logits_bytes=budget.logits_bytes,
    )
    return 2 * (needed.activations + needed.logits) <= free


# --- a whole run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of a set's examples, prompt and all answers together: mean, standard deviation, the longest."""

    mean: float
    deviation: float
    longest: int


def run_memory(
    config: Config, shape: ModelShape, lengths: Lengths, on_gpu: bool, budget: RowBudget | None, rank: int = 8
) -> Memory:
    """What a run holds at its peak on its device; `budget` are the packed engine's rows, None for TRL's batches."""
    trained_numbers, width = trained(config, shape, rank), trained_bytes(config)
    steps = (
        _packed_step(config, shape, lengths, budget, rank)
        if budget
        else _padded_step(config, shape, lengths, on_gpu)
    )
    return replace(
        steps,
        weights=weights(config, shape) + steps.weights,
        adapters=0 if _whole(config) else trained_numbers * width,
        gradients=trained_numbers * width,
        optimizer=optimizer(config, trained_numbers),
    )


def _whole(config: Config) -> bool:
    return config.finetuning_type in ("full", "freeze")


def frozen_bytes(config: Config) -> int:
    """Bytes of a frozen weight."""
    return 2 if _half(config) else 4


def trained_bytes(config: Config) -> int:
    """Bytes of a trained weight."""
    return 2 if config.pure_bf16 else 4


def _half(config: Config) -> bool:
    return bool(config.bf16 or config.fp16 or config.pure_bf16)


def trained(config: Config, shape: ModelShape, rank: int = 8) -> int:
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
    return (
        shape.lora_parameters(rank, config.lora_target)
        + _whole_ends(config, shape) * shape.vocab * shape.hidden
    )


def _whole_ends(config: Config, shape: ModelShape) -> int:
    """How many of embeddings and head are trained whole beside an adapter."""
    if goes_on(config):
        return 0
    if not config.additional_target and grows(config):
        return 1 if shape.tied else 2
    return sum(name in config.additional_target for name in ("embed_tokens", "lm_head"))


def weights(config: Config, shape: ModelShape) -> int:
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


def optimizer(config: Config, numbers: int) -> int:
    """Bytes of the optimizer's state for so many trained numbers."""
    return int(numbers * _optimizer_bytes(config.optim, trained_bytes(config)))


def _packed_step(config: Config, shape: ModelShape, lengths: Lengths, budget: RowBudget, rank: int) -> Memory:
    """The packed engine's row of a step; of its `weights` only the columns that the adapters add.

    The row that counts is the longest size that rows are padded to, the largest of 512 steps that were drawn
    (`engine/packed/levels.py`): 3 standard deviations above the mean.
    """
    examples = config.per_device_train_batch_size * config.gradient_accumulation_steps
    wanted = int(examples * lengths.mean + 3 * examples**0.5 * lengths.deviation)
    tokens = min(budget.token_budget, wanted, examples * 2 * config.cutoff_len)
    width = frozen_bytes(config)
    step = packed_memory(
        shape,
        tokens=tokens,
        scored=tokens // 2,
        rank=rank,
        recompute=budget.recompute,
        weight_bytes=width,
        logits_bytes=budget.logits_bytes,
    )
    return replace(step, weights=step.weights - width * shape.parameters)


def _padded_step(config: Config, shape: ModelShape, lengths: Lengths, on_gpu: bool) -> Memory:
    """A micro-batch of TRL's trainers, as long as its longest example; logits are made in pieces of 256 tokens."""
    each = config.cutoff_len if packs(config) else min(config.cutoff_len, lengths.longest)
    tokens = config.per_device_train_batch_size * (2 if config.kind.rows == "pairs" else 1) * each
    layer, width = autograd_activations(shape, half=_half(config), whole=_whole(config)), frozen_bytes(config)
    kept = shape.layers * layer
    if recomputes(config, on_gpu):
        kept = shape.layers * width * shape.hidden + layer
    logits = 0 if config.kind.scores else min(tokens, 256) * shape.vocab * 12
    return Memory(0, 0, 0, 0, tokens * kept, logits)


def recomputes(config: Config, on_gpu: bool) -> bool:
    """Whether TRL's trainers compute activations again in the backward pass: as asked, else on a GPU, where memory is
    short."""
    asked = asked_to_recompute(config)
    return on_gpu if asked is None else asked


def asked_to_recompute(config: Config) -> bool | None:
    """What the knobs say of it; None where it is left to the machine."""
    if config.gradient_checkpointing is not None:
        return bool(config.gradient_checkpointing)
    return False if config.disable_gradient_checkpointing else None


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

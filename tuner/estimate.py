"""Sizes before anything is loaded: what a preference run of the packed engine needs, from shape numbers
alone.

Pure functions of numbers; no torch. All sizes are bytes. The formulas follow
`tuner/engine/packed/layers.py`, which keeps a known list of tensors per layer, and are held to the real
peak by tests/bench and tests/test_estimate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


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
            ffn=int(config["intermediate_size"]),
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

    def lora_parameters(self, rank: int) -> int:
        """LoRA of this rank on all seven linears."""
        return self.layers * sum(rank * (n + k) for n, k in self.linears.values())


@dataclass(frozen=True)
class PackedMemory:
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
    logits_bytes: int = 512 << 20,
) -> PackedMemory:
    """A training row of `tokens` tokens, `scored` of them predicted, `recompute` layers recomputed.

    Adapters, their gradients and Adam's two moments are float32; the weights are widened by the columns
    that hold the adapters (see `tuner/engine/packed/lora.py`).
    """
    adapters = 4 * shape.lora_parameters(rank)
    widened = shape.layers * sum(n * _widening(rank, name) for name, (n, _) in shape.linears.items())
    chunk = min(logits_bytes, scored * shape.vocab * weight_bytes)
    return PackedMemory(
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
    logits_bytes: int = 512 << 20,
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

"""The numbers of a model and of its data that sizes depend on, and what a run's memory is made of. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

TIED = frozenset({"gemma", "gemma2", "gemma3_text", "smollm3"})
"""Model types whose head is their embedding where a config.json says nothing; files of transformers 4 leave that out."""
NORMED_HEADS = frozenset({"qwen3", "gemma3_text", "olmo2", "olmo3"})
"""Model types whose queries and keys are normed."""
NORMED_RESULTS = frozenset({"gemma2", "gemma3_text", "glm4", "olmo2", "olmo3"})
"""Model types with a norm behind attention and behind the MLP, whose backward reads what came before it."""


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
    normed_results: bool = False

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
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") in TIED)),
            normed_heads=config.get("model_type") in NORMED_HEADS,
            normed_results=config.get("model_type") in NORMED_RESULTS,
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
    """Bytes on the device during a step, by what they hold; `cache` is keys and values of answers that a run writes."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    cache: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Lengths:
    """Tokens of a set's examples, prompt and all answers together: mean, standard deviation, the longest."""

    mean: float
    deviation: float
    longest: int

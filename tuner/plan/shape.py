"""The numbers of a model and of its data that sizes depend on, and what a run's memory is made of. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tuner.config.vision import language_config
from tuner.plan.tower import Tower

TIED = frozenset({"gemma", "gemma2", "gemma3_text", "smollm3"})
"""Model types whose head is their embedding where a config.json says nothing; files of transformers 4 leave that out."""
NORMED_HEADS = frozenset({"qwen3", "qwen3_vl_text", "gemma3_text", "olmo2", "olmo3"})
"""Model types whose queries and keys are normed."""
REACHED = frozenset(
    {
        "afmoe", "cohere2_moe", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite",
        "hunyuan_v1_moe", "minimax", "minimax_m2", "mixtral", "olmoe", "qwen3_moe", "qwen3_next", "solar_open",
    }
)  # fmt: skip
"""Model types whose experts get an adapter where all linears do (PEFT 0.21); elsewhere they stay as they are."""
NORMED_RESULTS = frozenset({"gemma2", "gemma3_text", "glm4", "olmo2", "olmo3"})
"""Model types with a norm behind attention and behind the MLP, whose backward reads what came before it."""


@dataclass(frozen=True)
class Experts:
    """A mixture of `count` MLPs of width `ffn` in each layer, of which each token takes `chosen`; `adapted` is whether an
    adapter of all linears reaches them."""

    count: int
    chosen: int
    ffn: int
    adapted: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Experts | None:
        """From the fields of a config.json, which name them in one of four ways; None for a model without."""
        count = _first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        if not count:
            return None
        chosen = _first(config, "num_experts_per_tok", "moe_k", "moe_topk") or 1
        width = _first(config, "moe_intermediate_size") or int(config["intermediate_size"])
        return cls(count, chosen, width, config.get("model_type") in REACHED)

    def shared(self, config: Mapping[str, Any]) -> int:
        """The width of the MLP that every token takes beside those it chooses; 0 where there is none."""
        several = _first(config, "n_shared_experts", "moe_num_shared_experts", "num_shared_expert")
        return (
            _first(config, "shared_expert_intermediate_size", "shared_intermediate_size")
            or several * self.ffn
        )


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that says something; where layers differ, the first layer's."""
    found = next((config[name] for name in names if config.get(name)), 0)
    return int(found[0] if isinstance(found, list | tuple) else found)


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a Llama-family decoder that sizes depend on, and of the `tower` that sees for it. With `experts`, `ffn` is the MLP's that all tokens
    take, 0 for none."""

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
    experts: Experts | None = None
    tower: Tower | None = None

    @classmethod
    def from_config(cls, whole: Mapping[str, Any]) -> ModelShape:
        """From the fields of a transformers config.json; raises KeyError naming a field that is missing."""
        config = language_config(whole)
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        experts = Experts.from_config(config)
        width = int(config["intermediate_size"]) // (2 if config.get("model_type") == "qwen" else 1)
        return cls(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            ffn=width if experts is None else experts.shared(config),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") in TIED)),
            normed_heads=config.get("model_type") in NORMED_HEADS,
            normed_results=config.get("model_type") in NORMED_RESULTS,
            experts=experts,
            tower=Tower.from_config(whole),
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the seven linears of a layer; of the four of attention where experts are all of its MLP."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
        }
        if not self.ffn:
            return attention
        return attention | {
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }

    @property
    def of_experts(self) -> int:
        """Weights of a layer's experts."""
        return 0 if self.experts is None else 3 * self.experts.count * self.experts.ffn * self.hidden

    @property
    def of_layer(self) -> int:
        """Weights of a layer."""
        return sum(n * k for n, k in self.linears.values()) + self.of_experts

    @property
    def parameters(self) -> int:
        """Weights of the base model (norms and routers left out: they are under a thousandth), with what sees."""
        seen = self.tower.parameters + self.tower.projector if self.tower else 0
        return self.of_language + seen

    @property
    def of_language(self) -> int:
        """Weights of the language model."""
        return self.layers * self.of_layer + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int, targets: Sequence[str] = ("all",)) -> int:
        """LoRA of this rank on the linears named; where none of them is, on all, those of experts too, whose gate and up are
        one to PEFT and get twice the rank."""
        named = [size for name, size in self.linears.items() if name in targets]
        sizes = sum(n + k for n, k in named or self.linears.values())
        if not named and self.experts is not None and self.experts.adapted:
            sizes += self.experts.count * (3 * self.hidden + 5 * self.experts.ffn)
            sizes -= (
                3 * (self.hidden + self.ffn) if self.ffn else 0
            )  # PEFT takes their names for those of experts
        return self.layers * rank * sizes


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

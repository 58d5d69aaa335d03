"""Tiny models and pairs for the tests of the packed engine."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tuner.engine.losses import LossSettings
from tuner.engine.packed.objective import PreferenceObjective
from tuner.engine.packed.units import STRAY_IDS

CPU = torch.device("cpu")
VOCAB, CUTOFF = 199, 48
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"})
    ),
}


SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
RELATIVES = {
    "mistral": {"sliding_window": 12},
    "gemma": {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 3.0, **SLIDING},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 20, **SLIDING},
    "phi3": {"sliding_window": 12, "partial_rotary_factor": 0.5},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5, "attention_bias": True},
    "olmo2": {},
    "olmo3": SLIDING,
    "smollm3": {"no_rope_layers": [1, 0]},
    "seed_oss": {"head_dim": 16, "attention_bias": True, "residual_dropout": 0.0, "attention_dropout": 0.0},
}  # fmt: skip
"""Families whose layers are written out too, with windows shorter than the rows of the tests."""
FAMILIES |= {
    name: lambda name=name: AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **SIZES, **RELATIVES[name]), dtype=torch.float32
    )
    for name in RELATIVES
}

SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXTURES = {
    "qwen3_moe": {**SPARSE, "head_dim": 16},
    "qwen2_moe": {**SPARSE, "shared_expert_intermediate_size": 40},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 12},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
                 "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
}  # fmt: skip
"""Families whose layers choose experts; they run as they are, through autograd."""


def mixture(name: str, **sizes: int) -> torch.nn.Module:
    """A tiny mixture of experts. What transformers leaves for a checkpoint to fill is drawn."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **SIZES | MIXTURES[name] | sizes), dtype=torch.float32
    )
    for p in model.parameters():
        if p.ndim == 3 or not p.isfinite().all():
            p.data.normal_(0, 0.05)
    return model


def build(family: str = "qwen2", trained: bool = True) -> torch.nn.Module:
    """A tiny model with LoRA on every linear; `trained` gives the adapters something to say."""
    torch.manual_seed(0)
    model = FAMILIES[family]() if family in FAMILIES else mixture(family)
    for p in model.parameters():
        if p.ndim == 1:
            p.data.add_(0.1 * torch.randn_like(p))
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    if trained:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(0, 0.1)
    return model.eval()


def whole(family: str = "qwen2") -> torch.nn.Module:
    """The same without an adapter, every weight of it to be trained."""
    torch.manual_seed(0)
    return build(family).unload().requires_grad_(True)


def adapted(**settings) -> torch.nn.Module:
    """A tiny model with another kind of LoRA, everything trained moved off its start."""
    torch.manual_seed(0)
    plain = build(trained=False).unload()
    made = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(plain, made)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    return model.eval()


def pair_rows(count: int = 8, seed: int = 0) -> list[dict]:
    """Random lengths, and among them one-token answers, identical answers and texts that end at the
    cutoff."""
    g = np.random.default_rng(seed)
    ids = lambda n: g.integers(1, VOCAB, n).tolist()  # noqa: E731
    special = [(CUTOFF - 1, 1, 1), (20, CUTOFF - 20, 3), (1, 1, 1), (5, 7, 7)]
    sizes = special + [tuple(int(g.integers(1, 15)) for _ in range(3)) for _ in range(count - len(special))]
    rows = [{"prompt_ids": ids(p), "chosen_ids": ids(c), "rejected_ids": ids(r)} for p, c, r in sizes]
    rows[3]["rejected_ids"] = list(rows[3]["chosen_ids"])
    return rows


def labelled_rows(count: int = 8) -> list[dict]:
    """Marked answers, each with one to another prompt, as `mismatched` makes them; good and bad are uneven."""
    rows = [
        {"prompt_ids": r["prompt_ids"], "completion_ids": r["chosen_ids"], "label": i % 3 != 0}
        for i, r in enumerate(pair_rows(count))
    ]
    strays = [rows[i - 1]["completion_ids"] for i in range(count)]
    return [
        {**r, STRAY_IDS: stray[: CUTOFF - len(r["prompt_ids"])]}
        for r, stray in zip(rows, strays, strict=True)
    ]


def pairs(device: torch.device) -> PreferenceObjective:
    """DPO's loss as it is by default."""
    return PreferenceObjective(LossSettings(), device)


def token_rows(count: int = 7, seed: int = 0) -> list[dict]:
    """Texts with masks of several turns, and among them one that is learned whole, one whose last token alone is learned,
    one at the cutoff, two that share a row, and a row of two tokens."""
    g = np.random.default_rng(seed)
    rows = []
    for size in [2, CUTOFF, 9, 12, *(int(n) for n in g.integers(3, 30, count - 4))]:
        ids = g.integers(1, VOCAB, size)
        rows.append({"input_ids": ids.tolist(), "labels": np.where(g.random(size) < 0.5, ids, -100).tolist()})
    rows[0]["labels"] = rows[0]["input_ids"]
    rows[2]["labels"] = [-100] * 8 + rows[2]["input_ids"][-1:]
    rows[3] |= {"labels": rows[3]["input_ids"], "seq_lengths": [5, 7]}
    return rows

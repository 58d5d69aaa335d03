#!/usr/bin/env bash
# peft 0.21.0, transformers 5.23.0, torch 2.13.0
#
# Behaviour: with target_modules="all-linear" it depends on the family what of a mixture of experts gets an adapter. In transformers 5 all experts are one
# stacked parameter and no nn.Linear. PEFT reaches them all the same in qwen3_moe (gate and up as one, at twice the rank, and the router
# too), not in qwen2_moe, by which it calls that pattern, nor in granitemoe; no word in either case. In glm4_moe the experts are reached
# and the shared expert's three linears, which are nn.Linear, are left out, for their names are taken for those of the experts.
# An adapter on experts is added to their weights in each forward pass, and autograd keeps that sum: a layer holds its experts twice, in
# the dtype of the weights, however few tokens there are. In plain linears an adapter keeps nothing of that size.
# Seen: the names below; 1.2 MB kept a layer beside the tokens' share for experts of 1.2 MB, nothing where attention alone is adapted.
# Why a good guess is wrong: 'all-linear is every linear' and 'stacked experts are no linears, so none'. Both are wrong for some family, and
# the same rank is an adapter of another size and memory. Who sizes a run by the weights and the rank is short by the experts once over.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

PLAIN = dict(vocab_size=64, hidden_size=128, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
FAMILIES = {
    "qwen3_moe": dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, head_dim=32),
    "qwen2_moe": dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, shared_expert_intermediate_size=96),
    "granitemoe": dict(num_local_experts=8, num_experts_per_tok=2),
    "glm4_moe": dict(n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, head_dim=32, n_group=1, topk_group=1,
                     first_k_dense_replace=0, n_shared_experts=1),
}


def adapted(family, layers=1, targets="all-linear"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_hidden_layers=layers, bos_token_id=None, eos_token_id=1, **PLAIN, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets))


def places(model):
    return {n.split("layers.0.")[1].rsplit(".lora_A", 1)[0]: tuple(p.shape) for n, p in model.named_parameters() if "lora_A" in n}


found = {family: places(adapted(family)) for family in FAMILIES}
for family, names in found.items():
    print(family, sorted(names))
experts = {family: any("mlp.experts" in n or "block_sparse_moe" in n for n in names) for family, names in found.items()}
assert experts == {"qwen3_moe": True, "qwen2_moe": False, "granitemoe": False, "glm4_moe": True}, experts
both = [shape for name, shape in found["qwen3_moe"].items() if "experts" in name]
assert sorted(both) == [(32, 96), (64, 128)], both  # rank 4 of eight experts for down, 8 for gate and up together
assert "mlp.gate" in found["qwen3_moe"] and not any("shared" in n for n in found["glm4_moe"])
assert any("shared_expert.up_proj" in n for n in found["qwen2_moe"])


def kept(tokens, targets):
    """Bytes that a forward pass keeps in one more layer."""
    sizes = []
    for layers in (1, 2):
        model = adapted("qwen3_moe", layers, targets)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.arange(tokens)[None] % 64)
        sizes.append(sum(size for size, _ in seen.values()))
    return sizes[1] - sizes[0]


size = 3 * 8 * 128 * 96 * 4
for targets, copies in (("all-linear", 1), (["q_proj", "v_proj"], 0)):
    few, many = kept(64, targets), kept(128, targets)
    fixed = few - (many - few)
    print(targets, "kept beside the tokens' share:", fixed, "bytes; the experts:", size)
    assert abs(fixed - copies * size) < 0.05 * size, (targets, fixed)
PYTHON

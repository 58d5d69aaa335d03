#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0
#
# Behaviour: merge_and_unload of an adapter on embed_tokens of a model with tied embeddings adds the product to the one tensor that both ends
# share: the head gets it too. The only word is a warning about saving embedding layers.
# Seen: a random Llama with tie_word_embeddings: logits before and after the merge are more than 1 apart; untied, they are equal.
# Why a good guess is wrong: 'merging changes the file, not the answers'. Qwen2.5 to 3B, Llama 3.2 and Gemma are tied: what was measured with
# the adapter is not what the merged model answers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[1, 2, 3, 4]])


def apart(tied):
    torch.manual_seed(0)
    shape = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
    lora = LoraConfig(r=4, target_modules=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(model, lora).eval()
    with torch.no_grad():
        before = model(ids).logits
        return float((before - model.merge_and_unload()(ids).logits).abs().max())


assert apart(tied=False) < 1e-4 and apart(tied=True) > 1, (apart(False), apart(True))
print(f"tied ends: {apart(True):.1f} apart after merging")
PYTHON

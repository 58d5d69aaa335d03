#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0
#
# Behaviour: a name in modules_to_save that fits no module of the model is left out without an error or a warning; a target_modules name that
# fits nothing beside one that does is left out as well.
# Seen: modules_to_save=['lm_heads']: only LoRA weights are trained, and adapter_config.json still names lm_heads.
# Why a good guess is wrong: 'a misspelt module is an error, as it is when no target module is found'. The head that was to be trained whole
# stays as it was, and the saved description says otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import warnings

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "w_proj"], modules_to_save=["lm_heads"]))
trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
assert trained and all("q_proj.lora_" in name for name in trained), trained
assert model.peft_config["default"].modules_to_save == ["lm_heads"]
assert not [w for w in said if "lm_heads" in str(w.message) or "w_proj" in str(w.message)]
print("lm_heads and w_proj are left out, unsaid")
PYTHON

#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0
#
# Behaviour: an adapter folder whose safetensors file is valid and holds no tensor at all is loaded: no error, one warning among others. The
# adapter counts as active, and the model answers exactly as its base.
# Seen: PeftModel.from_pretrained returns, active_adapters is ['default'], every logit equals the base's.
# Why a good guess is wrong: 'an adapter that lacks all its weights is refused, as a base model with missing weights is reported'. The new
# LoRA layers keep their start, whose B is zero, so that nothing looks broken; an evaluation of such an adapter measures the base.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
base = LlamaForCausalLM(LlamaConfig(**shape)).eval()
base.save_pretrained("base")
trained = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
for name, weight in trained.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight)
ids = torch.tensor([[1, 2, 3]])
taught = trained(input_ids=ids).logits
trained.save_pretrained("adapter")
save_file({}, "adapter/adapter_model.safetensors")

plain = LlamaForCausalLM.from_pretrained("base").eval()
alone = plain(input_ids=ids).logits
loaded = PeftModel.from_pretrained(plain, "adapter").eval()
assert loaded.active_adapters == ["default"], loaded.active_adapters
answered = loaded(input_ids=ids).logits
assert torch.equal(answered, alone) and not torch.allclose(answered, taught)
print("an adapter without tensors is loaded and answers as the base")
PYTHON

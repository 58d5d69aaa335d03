#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0
#
# Behaviour: PeftModel.from_pretrained that raises because the adapter was trained on another model leaves the base changed: its layers are wrapped, and
# the parts whose sizes happen to fit have been loaded and answer.
# Seen: an adapter of a model with another MLP width is refused with "size mismatch" for down_proj; afterwards the base has PEFT's Linear layers, a
# peft_config, and logits that are up to 0.08 away from its own.
# Why a good guess is wrong: after an exception the object is expected to be what it was. A server that answers 404 for an adapter that does not fit and goes
# on with its base gives wrong answers from there on, to everybody, without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)


def base(width):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(intermediate_size=width, **shape)).eval()


made = get_peft_model(base(48), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
made.save_pretrained("adapter")
model, ids = base(64), torch.tensor([[1, 2, 3]])
with torch.no_grad():
    before = model(ids).logits
    try:
        PeftModel.from_pretrained(model, "adapter")
    except RuntimeError as error:
        refused = str(error)
    after = model(ids).logits
assert "size mismatch" in refused and "down_proj" in refused, refused
wrapped = [name for name, module in model.named_modules() if type(module).__module__.startswith("peft.tuners.lora")]
moved = float((after - before).abs().max())
assert wrapped and hasattr(model, "peft_config") and moved > 1e-3, (wrapped, moved)
print(f"refused, and {len(wrapped)} layers of the base are wrapped; its logits moved by {moved:.3f}")
PYTHON

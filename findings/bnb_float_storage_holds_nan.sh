#!/usr/bin/env bash
# bitsandbytes 0.50.2, transformers 5.23.0, accelerate 1.15.0, torch 2.13.0
#
# Behaviour: with bnb_4bit_quant_storage set to a float type (as sharded QLoRA needs), the packed codes of a healthy 4-bit model, read as numbers, hold
# NaN and infinities.
# Seen: model.named_parameters() shows weights of dtype float32 and shape [n, 1]; some are not finite; torch.equal(weight, weight) is False; dequantized,
# all are finite, and the model answers.
# Why a good guess is wrong: 'a weight whose dtype is float32 is a number'. A check of a loaded model for NaN calls it broken, "are the frozen
# weights unchanged?" answered by torch.equal says no, and a test for uint8 does not see that the model is quantized.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained("base")
bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32, bnb_4bit_compute_dtype=torch.float32
)
model = AutoModelForCausalLM.from_pretrained("base", quantization_config=bits, device_map={"": "cpu"}, dtype=torch.float32)
packed = [p for p in model.parameters() if hasattr(p, "quant_state")]
assert packed and all(p.dtype == torch.float32 and p.shape[1] == 1 for p in packed)
broken = [p for p in packed if not torch.isfinite(p).all()]
unequal = [p for p in packed if not torch.equal(p, p)]
assert broken and unequal, (len(broken), len(unequal))
assert all(torch.isfinite(dequantize_4bit(p.data, p.quant_state)).all() for p in packed)
assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
print(f"{len(broken)} of {len(packed)} healthy 4-bit weights look not finite, {len(unequal)} differ from themselves")
PYTHON

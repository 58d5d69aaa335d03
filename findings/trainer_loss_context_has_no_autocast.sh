#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0
#
# Behaviour: with bf16=True, Trainer.compute_loss_context_manager() enters nothing. Mixed precision is a wrapper that accelerate puts around the
# forward of the one model it prepares, so a trainer that calls a part of that model (its decoder, to score only some tokens) computes in float32.
# Seen: inside the context torch.is_autocast_enabled is False; a linear called through the decoder gives float32, through the whole model bfloat16,
# and inside trainer.accelerator.autocast() bfloat16 either way.
# Why a good guess is wrong: the method's name and its autocast_smart_context_manager say that it is the place of autocast, as it was in version 4,
# and the loss is right either way: what is lost is speed and memory, without a word (a 1.8B model on one GPU took 6.5 s a step instead of less than one).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

shape = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model, seen = LlamaForCausalLM(LlamaConfig(**shape)), {}
inside = None


def note(module, given, output):
    seen.setdefault(inside, output.dtype)


model.model.layers[0].mlp.up_proj.register_forward_hook(note)


class Parts(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        global inside
        core = self.accelerator.unwrap_model(model)
        seen["autocast"] = torch.is_autocast_enabled("cpu")
        inside = "decoder"
        core.model(input_ids=inputs["input_ids"])
        with self.accelerator.autocast():
            inside = "decoder under accelerate's"
            core.model(input_ids=inputs["input_ids"])
        inside = "whole"
        return model(**inputs).loss


rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]
arguments = TrainingArguments("out", bf16=True, use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True)
Parts(model, arguments, train_dataset=rows).train()
assert seen == {
    "autocast": False,
    "decoder": torch.float32,
    "decoder under accelerate's": torch.bfloat16,
    "whole": torch.bfloat16,
}, seen
print("no autocast in the trainer's loss context:", seen)
PYTHON
